package vfio

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/mmio"
	"github.com/ring3dev/ring3/bus/pci"
)

const addr = "0000:03:00.0"

// withCdev gives a function a device file of its own.
func (f *fake) withCdev(addr string, group int) {
	f.cdevs = true
	f.write(fmt.Sprintf("bus/pci/devices/%s/vfio-dev/vfio%d/dev", addr, group), "")
}

// subject is a device of the fake with all that the suite can use.
func subject(t *testing.T, cdev, sparse, io bool) bustest.Subject {
	f := newFake(t)
	fn := f.add(addr, 7, "vfio-pci")
	fn.sparse, fn.io = sparse, io
	want := Group
	if cdev {
		f.withCdev(addr, 7)
		want = Cdev
	}
	d := f.mustOpen(t, addr, f.options())
	if got := d.Access().API; got != want {
		t.Fatalf("API = %s, want %s", got, want)
	}
	t.Cleanup(func() {
		_ = d.Close()
		if n := users(fn.ino); n != 1 { // the fake's own
			t.Errorf("%d descriptors of the device are left after Close", n-1)
		}
		if len(fn.space.maps) != 0 {
			t.Errorf("%d mappings are left after Close", len(fn.space.maps))
		}
	})
	return bustest.Subject{
		Device:  d,
		Scratch: &bustest.Scratch{Region: 0, Off: 4096, Reads: func(v uint32) uint32 { return v }},
		Raise:   func() { f.raise(fn, true) },
		Lower:   func() { f.raise(fn, false) },
		MaxMove: 65536, MoveMask: 1<<28 - 1,
		Move: func(_ context.Context, dst, src bus.IOVA, n int) error {
			from, to := f.reach(fn, src, n, permRead), f.reach(fn, dst, n, permWrite)
			if from == nil || to == nil {
				return errors.New("stopped by the IOMMU")
			}
			copy(to, from)
			return nil
		},
		Kill: func() {
			f.tell(fn, irqReq)
			<-d.Done()
		},
	}
}

func TestConformance(t *testing.T) {
	for _, c := range []struct {
		name             string
		cdev, sparse, io bool
	}{{"group", false, false, true}, {"group-sparse", false, true, false}, {"cdev", true, false, false}} {
		t.Run(c.name, func(t *testing.T) {
			bustest.All(t, func(t *testing.T) bustest.Subject { return subject(t, c.cdev, c.sparse, c.io) })
		})
	}
}

// A BAR that can be mapped is handed out as it is: nothing stands between driver and registers.
func TestRegions(t *testing.T) {
	f := newFake(t)
	fn := f.add(addr, 7, "vfio-pci")
	fn.io = true
	d := f.mustOpen(t, addr, f.options())
	fun := d.Function()
	want := []bus.RegionInfo{{Index: 0, Size: barSize, Addr: 0xfea00000}, {Index: 1, Kind: bus.RegionIO, Size: 32, Addr: 0xc000}}
	if len(fun.BARs) != 2 || fun.BARs[0] != want[0] || fun.BARs[1] != want[1] || fun.Addr.String() != addr || fun.ID.String() != "1234:11e8" || fun.Header != 0 {
		t.Errorf("Function = %+v, want BARs %+v", fun, want)
	}
	r, err := d.Region(0)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := r.(*mmio.Region); !ok {
		t.Errorf("Region(0) is %T, want *mmio.Region", r)
	}
	io, err := d.Region(1)
	if err != nil {
		t.Fatal(err)
	}
	io.Write32(8, 0x11223344)
	if got := io.Read16(10); got != 0x1122 {
		t.Errorf("I/O space reads %#x, want 0x1122", got)
	}
	var b [4]byte
	if _, err := fn.file.ReadAt(b[:], offsetOf(1)+8); err != nil || b[3] != 0x11 {
		t.Errorf("the device's file has % x, %v, want what was written", b, err)
	}
	for what, do := range map[string]func(){
		"a mapped register": func() { r.Write32(0, r.Read32(4)) },
		"I/O space":         func() { io.Write32(0, io.Read32(4)) },
		"config space":      func() { d.Config().Read32(0) },
	} {
		if n := testing.AllocsPerRun(100, do); n != 0 && !raceEnabled {
			t.Errorf("access to %s allocates %v times, want 0", what, n)
		}
	}
}

// Areas are mapped, what lies between is not, and an access goes to one or the other.
func TestSparse(t *testing.T) {
	f := newFake(t)
	fn := f.add(addr, 7, "vfio-pci")
	fn.sparse = true
	d := f.mustOpen(t, addr, f.options())
	r, err := d.Region(0)
	if err != nil {
		t.Fatal(err)
	}
	for off := bus.Off(0); off < barSize; off += 1020 &^ 7 {
		v := uint64(off)*0x9e3779b97f4a7c15 + 1
		r.Write64(off, v)
		var b [8]byte
		if _, err := fn.file.ReadAt(b[:], offsetOf(0)+int64(off)); err != nil || host.Uint64(b[:]) != v {
			t.Errorf("the device's file at %#x has % x, %v, want %#x", off, b, err, v)
		}
		if got := r.Read64(off); got != v {
			t.Errorf("Read64(%#x) = %#x, want %#x", off, got, v)
		}
		if got := r.Read8(off + 1); got != uint8(v>>8) {
			t.Errorf("Read8(%#x) = %#x, want %#x", off+1, got, uint8(v>>8))
		}
		r.Write16(off+2, 0xabcd)
		if got := r.Read32(off); got != uint32(v)&0xffff|0xabcd0000 {
			t.Errorf("Read32(%#x) after Write16 = %#x", off, got)
		}
		r.Write8(off, 1)
		r.Write32(off+4, 9)
		if got := r.Read16(off + 4); got != 9 {
			t.Errorf("Read16(%#x) = %#x, want 9", off+4, got)
		}
	}
	if n := testing.AllocsPerRun(100, func() { r.Write32(0, r.Read32(4096)) }); n != 0 && !raceEnabled {
		t.Errorf("an access allocates %v times, want 0", n)
	}
}

// While the function does not decode, mapped registers are not touched: that would be SIGBUS.
func TestNotDecoding(t *testing.T) {
	f := newFake(t)
	f.add(addr, 7, "vfio-pci")
	d := f.mustOpen(t, addr, f.options())
	c := d.Config()
	r, err := d.Region(0)
	if err != nil {
		t.Fatal(err)
	}
	r.Write32(0, 5)
	check := func(step string, want uint32) {
		t.Helper()
		if got := r.Read32(0); got != want {
			t.Errorf("%s: a register reads %#x, want %#x", step, got, want)
		}
	}
	pci.SetCommand(c, 0, pci.CmdMem)
	check("Command without Mem", 0xffffffff)
	pci.SetCommand(c, pci.CmdMaster, 0)
	check("bus mastering on", 0xffffffff)
	pci.SetCommand(c, pci.CmdMem, 0)
	check("Command with Mem", 5)
	c.Write16(0x44, 3)
	check("D3", 0xffffffff)
	c.Write32(pci.CfgCommand, 0)
	c.Write16(0x44, 0)
	check("D0, without Mem", 0xffffffff)
	c.Write8(pci.CfgCommand, uint8(pci.CmdMem))
	check("D0, with Mem", 5)
	c.Write8(pci.CfgCommand, 0)
	r2, err := d.Region(0)
	if err != nil || r2 != r {
		t.Errorf("Region(0) again = %v, %v, want the same", r2, err)
	}
	check("asked for again", 0xffffffff)
}
