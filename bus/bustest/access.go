package bustest

import (
	"sync"
	"testing"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

func identity(t *testing.T, s Subject) {
	d := s.Device
	if d.Address() == "" || d.Backend() == "" {
		t.Errorf("Address = %q, Backend = %q, want both for messages", d.Address(), d.Backend())
	}
	if err := d.Err(); err != nil {
		t.Errorf("Err of a live device = %v, want nil", err)
	}
	select {
	case <-d.Done():
		t.Error("Done of a live device is closed")
	default:
	}
	last := -1
	for n, i := range d.Regions() {
		if isPlatform(d) && i.Index != n {
			t.Errorf("region %d of a platform device stands at %d, want them numbered from 0", i.Index, n)
		}
		if i.Index <= last {
			t.Errorf("region %d stands after region %d, want index order", i.Index, last)
		}
		last = i.Index
		if i.Size == 0 {
			t.Errorf("region %d has size 0", i.Index)
		}
		r, err := d.Region(i.Index)
		if err != nil {
			t.Errorf("Region(%d) = %v, though Regions lists it", i.Index, err)
		} else if r.Info() != i {
			t.Errorf("Region(%d).Info = %+v, want %+v as in Regions", i.Index, r.Info(), i)
		}
	}
	for _, i := range []int{-1, last + 1, 1 << 30} {
		r, err := d.Region(i)
		if r != nil {
			t.Errorf("Region(%d) is one, though Regions does not list it", i)
		}
		wantErr(t, "Region of none", err, bus.ErrNotSupported)
	}
	// The caller's copy is the caller's.
	if ids := bus.HardwareIDs(d); len(ids) > 0 {
		first := ids[0]
		if ids[0] = ""; bus.HardwareIDs(d)[0] != first || first == "" {
			t.Errorf("HardwareIDs = %q after the copy was changed, want %q", bus.HardwareIDs(d), first)
		}
	}
	if l := d.Regions(); len(l) > 0 {
		l[0].Size = 1
		if d.Regions()[0].Size == 1 {
			t.Error("changing what Regions returned changed the device")
		}
	}
}

func config(t *testing.T, s Subject) {
	c := s.Device.Config()
	if isPlatform(s.Device) {
		noConfig(t, c)
		return
	}
	if n := c.Size(); n != 256 && n != 4096 {
		t.Fatalf("Size = %d, want 256 or 4096", n)
	}
	id := pci.ReadID(c)
	if id.Vendor == 0xffff || id.Vendor == 0 {
		t.Fatalf("ReadID = %s, want a device", id)
	}
	// The header, in each width: the same bytes.
	for off := bus.Off(0); off < 64; off += 4 {
		if off == pci.CfgCommand {
			continue // Status may change
		}
		want := c.Read32(off)
		if got := uint32(c.Read16(off)) | uint32(c.Read16(off+2))<<16; got != want {
			t.Errorf("two Read16(%#x) = %#08x, want %#08x as Read32", off, got, want)
		}
		var got uint32
		for i := range bus.Off(4) {
			got |= uint32(c.Read8(off+i)) << (8 * i)
		}
		if got != want {
			t.Errorf("four Read8(%#x) = %#08x, want %#08x as Read32", off, got, want)
		}
	}
	// The interrupt line register is scratch memory in every function that has a pin, and
	// its neighbour the pin is read-only.
	if pci.INTxPin(c) == 0 {
		return
	}
	old, pin := c.Read8(pci.CfgIRQLine), c.Read8(pci.CfgIRQPin)
	for _, v := range []uint8{0x5a, 0xa5, old} {
		c.Write8(pci.CfgIRQLine, v)
		if got := c.Read8(pci.CfgIRQLine); got != v {
			t.Errorf("Interrupt Line = %#02x, want %#02x as written", got, v)
		}
	}
	c.Write8(pci.CfgIRQPin, ^pin)
	if got := c.Read8(pci.CfgIRQPin); got != pin {
		t.Errorf("Interrupt Pin = %d after a write, want %d: it is read-only", got, pin)
	}
}

// isPlatform says whether a device is no PCI function.
func isPlatform(d bus.Device) bool { return len(bus.HardwareIDs(d)) > 0 }

// noConfig holds a config space that is none to that.
func noConfig(t *testing.T, c bus.Config) {
	if n := c.Size(); n != 0 {
		t.Errorf("Size of a platform device's config space = %d, want 0", n)
	}
	for off := bus.Off(0); off < 64; off += 4 {
		c.Write32(off, 0)
		c.Write16(off, 0)
		c.Write8(off, 0)
		if a, b, e := c.Read8(off), c.Read16(off), c.Read32(off); a != 0xff || b != 0xffff || e != 0xffffffff {
			t.Errorf("config space of a platform device at %#x reads %#x, %#x, %#x, want all-ones", off, a, b, e)
		}
	}
}

func configOutside(t *testing.T, s Subject) {
	c := s.Device.Config()
	size := bus.Off(c.Size())
	before := c.Read32(pci.CfgBAR0)
	for _, off := range []bus.Off{size, size + 4, size + 0x10, 1 << 20, 1<<32 + 0x10, ^bus.Off(3), ^bus.Off(0)} {
		if off%4 == 0 {
			if got := c.Read32(off); got != 0xffffffff {
				t.Errorf("Read32(%#x) = %#x, want all-ones", off, got)
			}
			c.Write32(off, 0)
			if got := c.Read16(off); got != 0xffff {
				t.Errorf("Read16(%#x) = %#x, want all-ones", off, got)
			}
			c.Write16(off, 0)
		}
		if got := c.Read8(off); got != 0xff {
			t.Errorf("Read8(%#x) = %#x, want all-ones", off, got)
		}
		c.Write8(off, 0)
	}
	for _, off := range []bus.Off{1, 2, 3, 0x11, 0x12, 0x13, size - 1, size - 2, size - 3} {
		if got := c.Read32(off); got != 0xffffffff {
			t.Errorf("Read32(%#x) = %#x, want all-ones: it is not aligned", off, got)
		}
		c.Write32(off, 0)
		if off%2 == 1 {
			if got := c.Read16(off); got != 0xffff {
				t.Errorf("Read16(%#x) = %#x, want all-ones: it is not aligned", off, got)
			}
			c.Write16(off, 0)
		}
	}
	if got := c.Read32(pci.CfgBAR0); got != before {
		t.Errorf("BAR 0 = %#x after writes outside, want %#x as before", got, before)
	}
}

func regionOutside(t *testing.T, s Subject) {
	for _, info := range s.Device.Regions() {
		r, err := s.Device.Region(info.Index)
		if err != nil {
			t.Fatal(err)
		}
		size := bus.Off(info.Size)
		for _, w := range []struct {
			n     bus.Off
			read  func(bus.Off) uint64
			write func(bus.Off)
			ones  uint64
		}{
			{1, func(o bus.Off) uint64 { return uint64(r.Read8(o)) }, func(o bus.Off) { r.Write8(o, 0) }, 0xff},
			{2, func(o bus.Off) uint64 { return uint64(r.Read16(o)) }, func(o bus.Off) { r.Write16(o, 0) }, 0xffff},
			{4, func(o bus.Off) uint64 { return uint64(r.Read32(o)) }, func(o bus.Off) { r.Write32(o, 0) }, 0xffffffff},
			{8, func(o bus.Off) uint64 { return r.Read64(o) }, func(o bus.Off) { r.Write64(o, 0) }, ^uint64(0)},
		} {
			offs := []bus.Off{size, size + 8, size &^ (w.n - 1), 2 * size, 1 << 40, ^bus.Off(0), ^bus.Off(0) - w.n + 1}
			if w.n > 1 {
				offs = append(offs, 1, size-1, size-w.n+1)
			}
			if w.n == 8 && info.Kind == bus.RegionIO {
				offs = append(offs, 0) // I/O space has no 64-bit access
			}
			for _, off := range offs {
				if off < size && off%w.n == 0 && !(w.n == 8 && info.Kind == bus.RegionIO) {
					continue
				}
				if got := w.read(off); got != w.ones {
					t.Errorf("region %d: Read%d(%#x) = %#x, want all-ones", info.Index, 8*w.n, off, got)
				}
				w.write(off)
			}
		}
	}
	if err := s.Device.Err(); err != nil {
		t.Errorf("Err after accesses outside = %v, want nil: they reach nothing", err)
	}
	if s.Scratch != nil {
		scratch(t, s)
	}
}

func scratch(t *testing.T, s Subject) {
	if s.Scratch == nil {
		t.Skip("the subject has no scratch register")
	}
	r, err := s.Device.Region(s.Scratch.Region)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range []uint32{0, 1, 0x80000000, 0xffffffff, 0x12345678, 0xdeadbeef} {
		r.Write32(s.Scratch.Off, v)
		if got, want := r.Read32(s.Scratch.Off), s.Scratch.Reads(v); got != want {
			t.Errorf("scratch register after Write32(%#x) = %#x, want %#x", v, got, want)
		}
	}
	runs(t, s, r)
	// Two handles on a region are the same registers.
	r2, err := s.Device.Region(s.Scratch.Region)
	if err != nil {
		t.Fatal(err)
	}
	r2.Write32(s.Scratch.Off, 7)
	if got, want := r.Read32(s.Scratch.Off), s.Scratch.Reads(7); got != want {
		t.Errorf("scratch register through a second handle = %#x, want %#x", got, want)
	}
}

// A read comes after all writes before it.
func postedOrder(t *testing.T, s Subject) {
	if s.Scratch == nil {
		t.Skip("the subject has no scratch register")
	}
	r, err := s.Device.Region(s.Scratch.Region)
	if err != nil {
		t.Fatal(err)
	}
	v := uint32(0)
	for _, burst := range []int{1, 2, 10, 100, 1000} {
		for range burst {
			v += 0x01010101
			r.Write32(s.Scratch.Off, v)
		}
		if got, want := r.Read32(s.Scratch.Off), s.Scratch.Reads(v); got != want {
			t.Errorf("after %d writes the register reads %#x, want %#x of the last", burst, got, want)
		}
	}
}

// Many goroutines, each with whole accesses: nothing is torn or mixed up.
func concurrent(t *testing.T, s Subject) {
	c := s.Device.Config()
	id := pci.ReadID(c)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 50 {
				if got := pci.ReadID(c); got != id {
					t.Errorf("ReadID beside others = %+v, want %+v", got, id)
					return
				}
			}
		})
	}
	if s.Scratch != nil {
		r, err := s.Device.Region(s.Scratch.Region)
		if err != nil {
			t.Fatal(err)
		}
		valid := map[uint32]bool{}
		r.Write32(s.Scratch.Off, 0)
		for i := range uint32(4) {
			valid[s.Scratch.Reads(i*0x11111111)] = true
		}
		for i := range uint32(4) {
			wg.Go(func() {
				for range 50 {
					r.Write32(s.Scratch.Off, i*0x11111111)
					if got := r.Read32(s.Scratch.Off); !valid[got] {
						t.Errorf("scratch register beside others = %#x, want one of the values written", got)
						return
					}
				}
			})
		}
	}
	wg.Wait()
}

// runs reads in a row what single reads would give, more at once than a backend may have under way.
func runs(t *testing.T, s Subject, r bus.Region) {
	t.Helper()
	for _, n := range []int{0, 1, 2, 63, 64, 65, 200} {
		r.Write32(s.Scratch.Off, uint32(n)) // posted before it
		p := make([]uint32, n)
		bus.ReadRun32(r, s.Scratch.Off, 0, p)
		for i, got := range p {
			if want := s.Scratch.Reads(uint32(n)); got != want {
				t.Errorf("element %d of a run of %d = %#x, want %#x", i, n, got, want)
				break
			}
		}
	}
	size := bus.Off(r.Info().Size)
	p4, p8 := make([]uint32, 3), make([]uint64, 3)
	for _, at := range []bus.Off{size, size + 4, 1 << 40, ^bus.Off(0) - 3, 1} {
		bus.ReadRun32(r, at, 4, p4)
		bus.ReadRun64(r, at|1, 8, p8)
		if p4[0] != ^uint32(0) || at >= size && at < 1<<40 && p4[2] != ^uint32(0) || p8[0] != ^uint64(0) || p8[2] != ^uint64(0) {
			t.Errorf("runs from %#x = %#x, %#x, want all-ones: outside, or not aligned", at, p4, p8)
		}
	}
}
