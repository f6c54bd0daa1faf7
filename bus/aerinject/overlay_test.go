package aerinject

import (
	"testing"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

const msg = message << pci.RootStaMsgAt

// Each kind of error, what is read of it, and what clearing leaves.
func TestOverlay(t *testing.T) {
	g := newRig(t)
	g.enable(bus.MSIX, 4)
	header := [4]uint32{1, 2, 3, 4}
	g.inject(fnAddr, pci.AERError{Correctable: 0x41})
	g.want(g.fn, "correctable", map[bus.Off]uint32{pci.AERCorSta: 0x41, pci.AERUncSta: 0, pci.AERHeader: 0, pci.AERCap: 0, pci.AERRootSta: 0, pci.AERErrSrc: 0})
	g.want(g.root, "correctable", map[bus.Off]uint32{pci.AERRootSta: msg | 0x1, pci.AERErrSrc: requester, pci.AERCorSta: 0})

	g.inject(fnAddr, pci.AERError{Uncorrectable: 0x4000, Header: header})
	g.want(g.fn, "non-fatal", map[bus.Off]uint32{pci.AERUncSta: 0x4000, pci.AERHeader: 1, pci.AERHeader + 4: 2, pci.AERHeader + 8: 3, pci.AERHeader + 12: 4})
	g.want(g.root, "non-fatal", map[bus.Off]uint32{pci.AERRootSta: msg | 0x25, pci.AERErrSrc: requester<<16 | requester})

	// A second of each: multiple, and the first's source stays.
	g.inject(rootAddr, pci.AERError{Correctable: 0x80, Uncorrectable: 0x10, Header: [4]uint32{9}})
	g.want(g.root, "second", map[bus.Off]uint32{pci.AERRootSta: msg | 0x6f, pci.AERErrSrc: requester<<16 | requester, pci.AERCorSta: 0x80, pci.AERUncSta: 0x10, pci.AERHeader: 9})

	c := g.fn.Config()
	c.Write32(aerAt+pci.AERCorSta, 0x1)
	c.Write32(aerAt+pci.AERUncSta, 0xffffffff)
	g.want(g.fn, "cleared", map[bus.Off]uint32{pci.AERCorSta: 0x40, pci.AERUncSta: 0, pci.AERHeader: 0})
	c.Write32(aerAt+pci.AERCorSta, 0x1) // what the kernel's module would set again
	g.want(g.fn, "cleared again", map[bus.Off]uint32{pci.AERCorSta: 0x40})
	r := g.root.Config()
	r.Write32(aerAt+pci.AERRootSta, r.Read32(aerAt+pci.AERRootSta))
	g.want(g.root, "cleared", map[bus.Off]uint32{pci.AERRootSta: msg, pci.AERErrSrc: requester<<16 | requester})

	// From then on the first again.
	g.inject(rootAddr, pci.AERError{Uncorrectable: 0x10})
	g.want(g.root, "first fatal", map[bus.Off]uint32{pci.AERRootSta: msg | 0x54, pci.AERErrSrc: 0x20<<16 | requester})
	for _, d := range []*Device{g.fn, g.root} {
		if !d.Pending() {
			t.Errorf("Pending() of %s = false, want true", d.Address())
		}
		for _, o := range []bus.Off{pci.AERCorSta, pci.AERUncSta, pci.AERRootSta} {
			d.Config().Write32(aerAt+o, 0xffffffff)
		}
		if d.Pending() {
			t.Errorf("Pending() of %s = true after clearing, want false", d.Address())
		}
	}
}

// What hardware has itself is seen beside, and cleared in it.
func TestOverlayHardware(t *testing.T) {
	g := newRig(t)
	g.enable(bus.MSI, 1)
	const other = 0x0308
	g.below.set(aerAt+pci.AERCorSta, 0x1000)
	g.hw.set(aerAt+pci.AERRootSta, msg|0x1)
	g.hw.set(aerAt+pci.AERErrSrc, other)
	g.inject(fnAddr, pci.AERError{Correctable: 0x40})
	g.want(g.fn, "both", map[bus.Off]uint32{pci.AERCorSta: 0x1040})
	g.want(g.root, "hardware first", map[bus.Off]uint32{pci.AERRootSta: msg | 0x3, pci.AERErrSrc: other})
	g.fn.Config().Write32(aerAt+pci.AERCorSta, 0x1040)
	g.root.Config().Write32(aerAt+pci.AERRootSta, 0x3)
	g.want(g.fn, "cleared", map[bus.Off]uint32{pci.AERCorSta: 0})
	g.want(g.root, "cleared", map[bus.Off]uint32{pci.AERRootSta: msg})

	g.inject(fnAddr, pci.AERError{Correctable: 0x40})
	g.hw.set(aerAt+pci.AERRootSta, msg|0x1)
	g.want(g.root, "injected first", map[bus.Off]uint32{pci.AERRootSta: msg | 0x3, pci.AERErrSrc: requester})
	g.root.Config().Write32(aerAt+pci.AERRootSta, 0x3)
	g.want(g.root, "cleared", map[bus.Off]uint32{pci.AERErrSrc: requester})
	g.hw.set(aerAt+pci.AERRootSta, msg|0x1)
	g.want(g.root, "hardware alone", map[bus.Off]uint32{pci.AERRootSta: msg | 0x1, pci.AERErrSrc: other})
}

// Every bit alone, at every width.
func TestOverlayWidths(t *testing.T) {
	for bit := range uint(32) {
		set := uint32(1) << bit
		g := newRig(t)
		g.enable(bus.MSI, 1)
		g.inject(fnAddr, pci.AERError{Correctable: 1 << bit, Uncorrectable: 1 << bit, Header: [4]uint32{1 << bit}})
		c := g.fn.Config()
		for _, o := range []bus.Off{pci.AERCorSta, pci.AERUncSta, pci.AERHeader} {
			o += aerAt
			for i := range bus.Off(4) {
				if got, want := c.Read8(o+i), uint8(set>>(8*i)); got != want {
					t.Errorf("Read8(%#x) = %#x, want %#x", uint64(o+i), got, want)
				}
				if got, want := c.Read16(o+i&^1), uint16(set>>(8*(i&^1))); got != want {
					t.Errorf("Read16(%#x) = %#x, want %#x", uint64(o+i&^1), got, want)
				}
			}
		}
		c.Write16(aerAt+pci.AERCorSta+bus.Off(bit/16*2), 1<<(bit%16))
		c.Write8(aerAt+pci.AERUncSta+bus.Off(bit/8), 1<<(bit%8))
		g.want(g.fn, "cleared", map[bus.Off]uint32{pci.AERCorSta: 0, pci.AERUncSta: 0, pci.AERHeader: 0})
		if got := c.Read32(aerAt + pci.AERCorSta + 2); got != 0xffffffff {
			t.Errorf("Read32 that is not aligned = %#x, want all-ones", got)
		}
	}
}

// A dead function shows nothing of it.
func TestOverlayDead(t *testing.T) {
	g := newRig(t)
	g.enable(bus.MSI, 1)
	g.inject(fnAddr, pci.AERError{Uncorrectable: 0x4000})
	g.below.kill()
	g.want(g.fn, "dead", map[bus.Off]uint32{pci.AERUncSta: 0xffffffff, pci.AERHeader: 0xffffffff})
}

func TestWrapPassesOn(t *testing.T) {
	g := newRig(t)
	if err := bus.SaveState(g.fn)(); err == nil || g.fn.Unwrap() != bus.Device(g.below) {
		t.Errorf("SaveState gives restore() = %v, want the model's", err)
	}
}

// FuzzOverlay makes accesses of all widths anywhere around the capability, errors between them, and compares with what
// each register must be: never less than hardware has, and of what was injected nothing but what was.
func FuzzOverlay(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9})
	f.Add([]byte{6, 0x41, 0, 0x10, 2, 0x10, 6, 0, 0x40, 5, 0x04, 0xff})
	f.Fuzz(func(t *testing.T, ops []byte) {
		g := newRig(t)
		g.enable(bus.MSI, 1)
		var cor, unc uint32 // that may be set
		for ; len(ops) >= 3; ops = ops[3:] {
			o, v := aerAt-4+bus.Off(ops[1]%0x44), uint32(ops[2])*0x01010101
			d := [...]*Device{g.fn, g.root}[ops[0]>>7]
			switch ops[0] & 7 {
			case 0:
				d.Config().Read8(o)
			case 1:
				d.Config().Read16(o)
			case 2:
				d.Config().Write8(o, uint8(v))
			case 3:
				d.Config().Write16(o, uint16(v))
			case 4:
				d.Config().Write32(o, v)
			default:
				e := pci.AERError{Correctable: uint32(ops[1]), Uncorrectable: uint32(ops[2]) << 12}
				if err := g.in.Inject(Record{Domain: 0x1000, Bus: 1, Dev: 2, Fn: 1, Error: e}); err == nil && !g.fn.Pending() && e != (pci.AERError{}) {
					t.Fatalf("Inject(%+v) left nothing", e)
				}
				cor, unc = cor|e.Correctable, unc|e.Uncorrectable
			}
			c := g.fn.Config()
			if got := c.Read32(aerAt + pci.AERCorSta); got&^cor != 0 {
				t.Fatalf("Correctable Error Status = %#x, only %#x was injected", got, cor)
			}
			if got := c.Read32(aerAt + pci.AERUncSta); got&^unc != 0 {
				t.Fatalf("Uncorrectable Error Status = %#x, only %#x was injected", got, unc)
			}
			if s := g.root.Config().Read32(aerAt + pci.AERRootSta); s>>pci.RootStaMsgAt != message || s&^pci.RootStaMessage > 0x7f {
				t.Fatalf("Root Error Status = %#x", s)
			}
		}
	})
}
