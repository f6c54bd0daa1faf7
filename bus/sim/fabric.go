package sim

import (
	"encoding/binary"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// What is between functions: who reaches whom. Everything here is called with Machine.mu held.

// buses are the bus numbers that were written into a port.
func (p *port) buses() (secondary, subordinate uint8) {
	return p.d.space.b[brgBuses+1], p.d.space.b[brgBuses+2]
}

// takes says whether a port forwards accesses to config space on bus b.
func (p *port) takes(b uint8) bool {
	sec, sub := p.buses()
	return p.up && sec != 0 && sec <= b && b <= sub
}

// route is the function that answers at an address, nil for none: what bridges say of bus numbers decides, whatever they say. It ends,
// because each turn goes one port further down.
func (m *Machine) route(a pci.Addr) *device {
	if a.Fn != 0 {
		return nil // no model has more than one
	}
	on := m.roots
	for here := uint8(0); ; {
		var via *device
		for _, d := range on {
			if here == a.Bus && d.slot == a.Dev {
				return d
			}
			if d.port != nil && d.port.takes(a.Bus) && here != a.Bus {
				via = d
				break
			}
		}
		if via == nil {
			return nil
		}
		on = via.below
		here, _ = via.port.buses()
	}
}

// reached finds out whether config accesses get to the device where it was placed, and whether what it sends gets to memory.
func (d *device) reached() (config, master bool) {
	config, master = true, true
	for u := d.up; u != nil; u = u.up {
		if !u.port.takes(d.addr.Bus) {
			return false, false
		}
		if sec, _ := u.port.buses(); (sec == d.addr.Bus) != (u == d.up) {
			return false, false
		}
		if u.space.command()&pci.CmdMaster == 0 || u.space.asleep() {
			master = false
		}
	}
	return config, master
}

// refresh is called when something above a device, or in itself, may have changed.
func (d *device) refresh() {
	d.live, d.masters = d.reached()
	d.decode()
	for _, x := range d.below {
		x.refresh()
	}
}

// forwarded says whether the bridges above a device let accesses to a region through.
func (d *device) forwarded(r *bus.RegionInfo) bool {
	for u := d.up; u != nil; u = u.up {
		if !u.port.forwards(r) {
			return false
		}
	}
	return true
}

// forwards says whether one of a bridge's windows is over a region (PCI-to-PCI Bridge 1.2, 3.2.5.6 to 3.2.5.10).
func (p *port) forwards(r *bus.RegionInfo) bool {
	s := p.d.space
	first, last := r.Addr, r.Addr+r.Size-1
	inside := func(base, limit uint64) bool { return base <= first && last <= limit && first <= last }
	if r.Kind == bus.RegionIO {
		v := s.get16(brgIO)
		return s.command()&pci.CmdIO != 0 && !s.asleep() && inside(uint64(v&0xf0)<<8, uint64(v&0xf000)|0xfff)
	}
	if s.command()&pci.CmdMem == 0 || s.asleep() {
		return false
	}
	window := func(at int) (base, limit uint64) {
		v := s.get32(at)
		return uint64(v&0xfff0) << 16, uint64(v&0xfff00000) | 0xfffff
	}
	base, limit := window(brgMem)
	if inside(base, limit) {
		return true
	}
	base, limit = window(brgPref)
	return inside(base|uint64(s.get32(brgPrefHi))<<32, limit|uint64(s.get32(brgPrefHi+4))<<32)
}

// configured is told of a write to config space: what it means beyond keeping bits. before is what was there.
func (d *device) configured(off bus.Off, width int, v uint32, before *regsBefore) {
	s := d.space
	touched := func(at, n int) bool { return int(off) < at+n && at < int(off)+width }
	if s.aer != 0 && touched(s.aer+int(pci.AERUncSta), 4) {
		d.cleared(before.uncSta)
	}
	p := d.port
	if p == nil {
		return
	}
	if int(off) < 0x40 {
		p.bridgeControl(before.bridge)
	}
	if touched(s.exp+int(pci.ExpSltCtl), 2) && p.hasSlot() {
		p.slotControl(before.slot, touched(s.exp+int(pci.ExpSltCtl)+1, 1) && byteOf(off, v, s.exp+int(pci.ExpSltCtl)+1)&byte(pci.SltCtlLock>>8) != 0)
	}
	if touched(s.exp+int(pci.ExpLnkCtl), 1) && byteOf(off, v, s.exp+int(pci.ExpLnkCtl))&byte(pci.LnkCtlRetrain) != 0 {
		p.retrain()
	}
	if touched(s.exp+int(pci.ExpRtSta)+rtStaAt, 1) {
		p.nextPME()
	}
	if p.dpc != 0 && touched(p.dpc, dpcSize) {
		p.wroteDPC(off, width, v)
	}
	if p.vc != 0 && touched(p.vc, p.vcSize) {
		p.wroteVC(off, width, v)
	}
	if s.msi != 0 && touched(s.msi+msiCtl, 2) {
		p.numbers()
	}
	p.settle(true)
}

// byteOf is the byte that a write of v at off puts at at.
func byteOf(off bus.Off, v uint32, at int) byte { return byte(v >> (8 * (at - int(off)))) }

// regsBefore are registers of which it matters what they were before a write.
type regsBefore struct {
	bridge, slot uint16
	uncSta       uint32
}

func (d *device) before() (b regsBefore) {
	s := d.space
	if s.aer != 0 {
		b.uncSta = s.get32(s.aer + int(pci.AERUncSta))
	}
	if d.port != nil {
		b.bridge, b.slot = s.get16(int(pci.CfgBridgeCtl)), d.port.get(pci.ExpSltCtl)
	}
	return b
}

// writeConfig is a write to a function's config space.
func (d *device) writeConfig(off bus.Off, width int, v uint32) {
	if d.port == nil && d.space.aer == 0 {
		if d.space.write(off, width, v) {
			d.resetFunction(true)
			return
		}
		d.changed()
		return
	}
	b := d.before()
	if d.space.write(off, width, v) {
		d.resetFunction(true)
		return
	}
	d.configured(off, width, v, &b)
	d.changed()
}

// requester is how messages name the function.
func (d *device) requester() uint16 { return uint16(d.addr.Bus)<<8 | uint16(d.addr.Devfn()) }

// rootOf is the root port above a function, or the function itself; nil if none is.
func (d *device) rootOf() *port {
	for ; d != nil; d = d.up {
		if d.port != nil && d.port.kind.kind == pci.ExpRootPort {
			return d.port
		}
	}
	return nil
}

// headerBytes puts a header of a packet into a log, as software reads it: Base 5.0, 7.8.4.8.
func (s *space) headerBytes(at int, h [4]uint32) {
	for i, w := range h {
		binary.LittleEndian.PutUint32(s.b[at+4*i:], w)
	}
}
