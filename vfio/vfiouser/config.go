package vfiouser

import (
	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// config is the device's configuration space; bus.Config. The server shows it as the kernel's VFIO
// does: what the bus owns, the client may write and read back, without effect.
type config struct {
	d    *Device
	size uint64
}

func (c *config) Size() int { return int(c.size) }

func (c *config) ok(off bus.Off, width int) bool {
	o := uint64(off)
	return o&uint64(width-1) == 0 && o < c.size
}

func (c *config) read(off bus.Off, width int) uint64 {
	if !c.ok(off, width) {
		return ^uint64(0)
	}
	return c.d.read(regionConfig, uint64(off), width)
}

func (c *config) write(off bus.Off, v uint64, width int) {
	if c.ok(off, width) {
		c.d.write(post{region: regionConfig, width: uint8(width), off: uint64(off), value: v})
	}
}

func (c *config) Read8(o bus.Off) uint8       { return uint8(c.read(o, 1)) }
func (c *config) Read16(o bus.Off) uint16     { return uint16(c.read(o, 2)) }
func (c *config) Read32(o bus.Off) uint32     { return uint32(c.read(o, 4)) }
func (c *config) Write8(o bus.Off, v uint8)   { c.write(o, uint64(v), 1) }
func (c *config) Write16(o bus.Off, v uint16) { c.write(o, uint64(v), 2) }
func (c *config) Write32(o bus.Off, v uint32) { c.write(o, uint64(v), 4) }

// clearMaster stops the device's DMA, and waits until it has.
func (c *config) clearMaster() {
	pci.SetCommand(c, 0, pci.CmdMaster)
	c.Read16(pci.CfgCommand)
}

// read is a REGION_READ of one access; all-ones when the link is dead.
func (d *Device) read(index uint32, off uint64, width int) uint64 {
	v, ok := d.l.readRegion(access{off, index, uint32(width)})
	if !ok {
		return ^uint64(0) >> (64 - 8*width) // dead, or refused: there is nothing
	}
	return v
}

// write is one posted write, by the queue or as a message.
func (d *Device) write(p post) {
	if d.l.dead.Load() {
		return
	}
	if d.queue != nil {
		if err := d.queue.put(p); err != nil {
			d.l.fail(err)
		}
		return
	}
	d.l.writeRegion(access{p.off, uint32(p.region), uint32(p.width)}, p.value)
}

// settle waits until the server has done all that was written before: what comes next goes past
// the messages.
func (d *Device) settle() {
	if d.l.dead.Load() {
		return
	}
	if d.queue != nil {
		if err := d.queue.flush(); err != nil {
			d.l.fail(err)
		}
		return
	}
	if d.l.posted.Load() {
		_ = d.l.ask(request{cmd: cmdDeviceInfo, body: func(w *writer) { w.deviceInfo(deviceInfo{argsz: deviceInfoSize}) }})
	}
}
