package vfio

import (
	"fmt"
	"sync"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/internal/fdio"
)

// config is the config space. A write that has the function stop decoding its BARs suspends
// the regions that are mapped: the kernel takes their pages away, and a touch would be SIGBUS.
type config struct {
	*fdio.Config
	pm bus.Off // where the power state is; 0 for nowhere

	mu      sync.Mutex // held while decoding or the power state is written
	windows []window
	off     bool // they are suspended
}

const (
	pmControl = 4    // of the capability: Control/Status, PCI Power Management 1.2, 3.2.4
	pmState   = 0b11 // of it: the power state, 0 is on
)

// openConfig opens the config space, which vfio-pci has as a region.
func (d *Device) openConfig() error {
	r, err := d.regionInfo(regionConfig)
	if err != nil {
		return err
	}
	if r.size != 256 && r.size != 4096 {
		return fmt.Errorf("config space of %d bytes, want 256 or 4096: %w", r.size, bus.ErrProtocol)
	}
	c := &config{Config: fdio.NewConfig(d.fd, r.offset, int(r.size))}
	if at, ok := pci.FindCap(c, pci.CapPM); ok {
		c.pm = at + pmControl
	}
	c.off = !c.decoding()
	d.cfg = c
	return nil
}

// decoding says whether the function answers where its memory BARs are.
func (c *config) decoding() bool {
	return pci.Command(c.Read16(pci.CfgCommand))&pci.CmdMem != 0 && (c.pm == 0 || c.Read8(c.pm)&pmState == 0)
}

// watch has a region suspended while the function does not decode.
func (c *config) watch(w window) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.windows = append(c.windows, w)
	if c.off {
		w.Suspend()
	}
}

// byteAt is the byte that an access of width bytes at off writes at a place, if it does.
func byteAt(place, off bus.Off, width int, v uint32) (uint8, bool) {
	if place < off || place >= off+bus.Off(width) {
		return 0, false
	}
	return uint8(v >> (8 * (place - off))), true
}

// write has do write v, with the regions suspended if need be.
func (c *config) write(off bus.Off, width int, v uint32, do func()) {
	cmd, isCmd := byteAt(pci.CfgCommand, off, width, v)
	pm, isPM := byteAt(c.pm, off, width, v)
	isPM = isPM && c.pm != 0
	if !isCmd && !isPM {
		do()
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if stops := isCmd && pci.Command(cmd)&pci.CmdMem == 0 || isPM && pm&pmState != 0; stops && !c.off {
		c.off = true
		for _, w := range c.windows {
			w.Suspend()
		}
	}
	do()
	if c.off && c.decoding() {
		c.off = false
		for _, w := range c.windows {
			w.Resume()
		}
	}
}

// Write8 is one access of 8 bits.
func (c *config) Write8(o bus.Off, v uint8) {
	c.write(o, 1, uint32(v), func() { c.Config.Write8(o, v) })
}

// Write16 is one access of 16 bits.
func (c *config) Write16(o bus.Off, v uint16) {
	c.write(o, 2, uint32(v), func() { c.Config.Write16(o, v) })
}

// Write32 is one access of 32 bits.
func (c *config) Write32(o bus.Off, v uint32) {
	c.write(o, 4, v, func() { c.Config.Write32(o, v) })
}
