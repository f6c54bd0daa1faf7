package portbus

import (
	"errors"
	"sync"
	"testing"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/drivers/portbus/internal/portmodel"
)

// seen is a range of config space that a service reads, or writes too.
type seen struct {
	from, to bus.Off
	write    bool
}

// head is what every service reads: the header's beginning, and PCI Express Capabilities.
var head = []seen{{0x00, 0x0f, false}, {0x50, 0x54, false}}

// What each service sees of a root port with everything, whose PCI Express capability is at 0x50.
var views = map[Service][]seen{
	PME: {{0x6c, 0x70, false}, {0x70, 0x74, true}},
	AER: {{0x54, 0x5a, false}, {0x5a, 0x5c, true}, {0x6c, 0x6e, false}, {0x100, 0x138, true}},
	HP:  {{0x19, 0x1a, false}, {0x5c, 0x6a, false}, {0x6a, 0x6c, true}, {0x62, 0x64, false}, {0x84, 0x88, false}},
	DPC: {{0x5c, 0x68, false}, {0x150, 0x194, true}},
	BW:  {{0x5c, 0x62, false}, {0x62, 0x64, true}, {0x7c, 0x84, false}},
	VC:  {{0x200, 0x1000, true}},
}

// Every offset at every width, for every service: what it may, and nothing else reaches the device.
func TestView(t *testing.T) {
	r := newRig(t, all(pci.ExpRootPort))
	for s, list := range views {
		c := r.device(s).Config()
		may := func(off, n bus.Off) (read, write bool) {
			for _, v := range append(head, list...) {
				if off >= v.from && off+n <= v.to {
					read, write = true, write || v.write
				}
			}
			return
		}
		if got := c.Size(); got != 4096 {
			t.Errorf("Size of %s = %d, want 4096", s, got)
		}
		for off := bus.Off(0); off < 4100; off++ {
			for _, n := range []bus.Off{1, 2, 4} {
				read, write := may(off, n)
				before := r.model.Accesses()
				switch n {
				case 1:
					c.Read8(off)
				case 2:
					c.Read16(off)
				case 4:
					c.Read32(off)
				}
				if got := r.model.Accesses() != before; got != read {
					t.Errorf("%s: Read%d(%#x) reaches the device: %t, want %t", s, n*8, off, got, read)
				}
				before = r.model.Accesses()
				switch n {
				case 1:
					c.Write8(off, 0)
				case 2:
					c.Write16(off, 0)
				case 4:
					c.Write32(off, 0)
				}
				if got := r.model.Accesses() != before; got != write {
					t.Errorf("%s: Write%d(%#x) reaches the device: %t, want %t", s, n*8, off, got, write)
				}
			}
		}
		if a, b, d := c.Read8(0x3e), c.Read16(0x3e), c.Read32(0x10); a != 0xff || b != 0xffff || d != 0xffffffff {
			t.Errorf("%s: out of reach reads %#x, %#x, %#x, want all-ones", s, a, b, d)
		}
	}
}

// A version 1 capability ends before Device Capabilities 2, and so do the views.
func TestViewVersion1(t *testing.T) {
	m := portmodel.New(all(pci.ExpRootPort))
	m.Set(portmodel.Express+pci.ExpFlags, pci.FlagVersion, 1)
	r := &rig{T: t, model: m, tree: &portmodel.Tree{}}
	r.bus, _ = New()
	r.bind("")
	if got := r.device(BW).Config().Read16(portmodel.Express + pci.ExpLnkCtl2); got != 0xffff {
		t.Errorf("BW: Link Control 2 of version 1 reads %#x, want all-ones", got)
	}
	if got := r.device(HP).Config().Read32(portmodel.Express + pci.ExpSltCap2); got != 0xffffffff {
		t.Errorf("HP: Slot Capabilities 2 of version 1 reads %#x, want all-ones", got)
	}
}

// Whose each bit of each control register is. Nobody else changes it, and no bit has two owners.
var owners = map[bus.Off]map[Service]uint16{
	pci.ExpDevCtl:  {AER: 0x000f},
	pci.ExpRtCtl:   {AER: 0x0007, PME: 0x0008},
	pci.ExpSltCtl:  {HP: 0xffff},
	pci.ExpLnkCtl:  {HP: 0x0010, BW: 0x0c20},
	pci.ExpLnkCtl2: {BW: 0x000f},
	pci.ExpDevCtl2: {},
}

func TestModifyOwners(t *testing.T) {
	r := newRig(t, all(pci.ExpRootPort))
	for reg, who := range owners {
		var taken uint16
		for _, bits := range who {
			if taken&bits != 0 {
				t.Errorf("bits %#x of register %#x have two owners", taken&bits, reg)
			}
			taken |= bits
		}
		for bit := range 16 {
			for _, s := range []Service{PME, AER, HP, DPC, BW, VC} {
				want := error(nil)
				if who[s]&(1<<bit) == 0 {
					want = bus.ErrNotSupported
				}
				before := r.model.Peek(portmodel.Express+reg, 2)
				for _, set := range []uint16{1 << bit, 0} {
					if _, err := r.device(s).Modify(reg, 1<<bit&^set, set, false); !errors.Is(err, want) {
						t.Errorf("%s: Modify of bit %d of register %#x = %v, want %v", s, bit, reg, err, want)
					}
				}
				if after := r.model.Peek(portmodel.Express+reg, 2); after&^(1<<bit) != before&^(1<<bit) || want != nil && after != before {
					t.Errorf("%s: Modify of bit %d of register %#x changed it from %#x to %#x", s, bit, reg, before, after)
				}
			}
		}
	}
}

func TestModifyWrites(t *testing.T) {
	r := newRig(t, all(pci.ExpRootPort))
	d := r.device(HP)
	writes := 0
	r.model.OnWrite(func(bus.Off, int, uint32) { writes++ })
	for _, c := range []struct {
		set    uint16
		always bool
		want   int
	}{{pci.SltCtlHP, false, 1}, {pci.SltCtlHP, false, 0}, {pci.SltCtlHP, true, 1}, {0, true, 1}} {
		writes = 0
		if _, err := d.Modify(pci.ExpSltCtl, 0, c.set, c.always); err != nil || writes != c.want {
			t.Errorf("Modify(set %#x, always %t) = %v, %d writes, want %d", c.set, c.always, err, writes, c.want)
		}
	}
	r.model.Die()
	if old, err := d.Modify(pci.ExpSltCtl, 0, pci.SltCtlHP, true); !errors.Is(err, bus.ErrGone) || old != 0xffff {
		t.Errorf("Modify of a dead port = %#x, %v, want ErrGone", old, err)
	}
}

// Four services change their bits of two registers at once: nobody loses anything.
func TestModifyConcurrent(t *testing.T) {
	r := newRig(t, all(pci.ExpRootPort))
	var wg sync.WaitGroup
	for _, c := range []struct {
		s    Service
		reg  bus.Off
		bits uint16
	}{
		{AER, pci.ExpRtCtl, pci.RtCtlSysErr}, {PME, pci.ExpRtCtl, pci.RtCtlPME},
		{HP, pci.ExpLnkCtl, pci.LnkCtlDisable}, {BW, pci.ExpLnkCtl, pci.LnkCtlLBMIE | pci.LnkCtlLABIE},
	} {
		wg.Go(func() {
			d := r.device(c.s)
			for i := range 500 {
				clear, set := c.bits, uint16(0)
				if i%2 == 0 {
					clear, set = set, clear
				}
				old, err := d.Modify(c.reg, clear, set, false)
				if want := clear; err != nil || i > 0 && old&c.bits != want {
					t.Errorf("%s: Modify %d = %#x, %v, want %#x", c.s, i, old&c.bits, err, want)
					return
				}
			}
		})
	}
	wg.Wait()
}

// A capability ends where the next one begins, whatever its size should be; one whose registers have no room is not used.
func TestViewCut(t *testing.T) {
	insert := func(m *portmodel.Port, after, at, next bus.Off) { // another one between two
		m.Set32(after, 0xfff00000, uint32(at)<<20)
		m.Set32(at, 0xffffffff, 0x0b|1<<16|uint32(next)<<20)
	}
	for _, c := range []struct {
		what      string
		after, at bus.Off
		next      bus.Off
		has       Service
		line      string
	}{
		{"behind DPC's registers", portmodel.DPC, 0x16c, portmodel.VC, PME | AER | HP | DPC | BW | VC, ""},
		{"in DPC's registers", portmodel.DPC, 0x158, portmodel.VC, PME | AER | HP | BW | VC,
			"the capability Downstream Port Containment at 0x150 has 0x8 bytes, want 0xc: it is not used"},
		{"in AER's registers", portmodel.AER, 0x12c, portmodel.DPC, PME | HP | BW | VC,
			"the capability Advanced Error Reporting at 0x100 has 0x2c bytes, want 0x38: it is not used"},
	} {
		m := portmodel.New(all(pci.ExpRootPort))
		insert(m, c.after, c.at, c.next)
		before := m.Peek(c.at, 4)
		r := &rig{T: t, model: m, tree: &portmodel.Tree{}}
		r.bus, _ = New()
		r.bind("")
		var got Service
		for _, d := range r.port.devices {
			got |= d.service
			if d.service&(AER|DPC) == 0 {
				continue
			}
			for off := c.at; off < c.next; off += 4 {
				n := m.Accesses()
				d.Config().Write32(off, 0)
				if d.Config().Read32(off); m.Accesses() != n {
					t.Errorf("%s: %s reaches %#x", c.what, d.service, off)
				}
			}
		}
		lines := []string{"pcieport 1000:00:04.0: " + c.line}
		if c.line == "" {
			lines = nil
		}
		equal(t, c.what+": messages", r.tree.Lines(), lines)
		if got != c.has || m.Peek(c.at, 4) != before {
			t.Errorf("%s: services %#x, want %#x; the other capability %#x, want %#x", c.what, uint8(got), uint8(c.has), m.Peek(c.at, 4), before)
		}
	}
}
