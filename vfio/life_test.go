package vfio

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/pci"
)

// Two devices of one group, in one space; a third process's view of it.
func TestSharedSpace(t *testing.T) {
	bustest.NoLeaks(t)
	f := newFake(t)
	a, b := f.add(addr, 7, "vfio-pci"), f.add("0000:03:00.1", 7, "vfio-pci")
	f.add("0000:04:00.0", 8, "vfio-pci")
	s := NewSpace()
	o := f.options()
	o.Space = s
	if i := s.Info(); i.API != Auto || i.Ranges != nil {
		t.Errorf("Info before the first device = %+v", i)
	}
	if _, err := s.DMA().Alloc(bus.DMARequest{Size: 1}); !errors.Is(err, bus.ErrNotSupported) {
		t.Errorf("Alloc before the first device = %v, want ErrNotSupported", err)
	}
	d, e, g := f.mustOpen(t, addr, o), f.mustOpen(t, "0000:03:00.1", o), f.mustOpen(t, "0000:04:00.0", o)
	i := s.Info()
	if i.API != Group || len(i.Devices) != 3 || len(i.Ranges) != 2 || i.Ranges[0] != (Range{lowest, 0xfedfffff}) || i.PageSizes != f.pages || i.MoreMappings != 65535 {
		t.Errorf("Info = %+v", i)
	}
	if a.space != b.space {
		t.Error("two devices of a space are in two containers")
	}
	m, err := d.DMA().Alloc(bus.DMARequest{Size: 8192})
	if err != nil {
		t.Fatal(err)
	}
	own, err := s.DMA().Alloc(bus.DMARequest{Size: 4096})
	if err != nil {
		t.Fatal(err)
	}
	if f.reach(b, m.IOVA, 8192, permRead|permWrite) == nil {
		t.Error("a device does not reach the memory of another in its space")
	}
	// A group can be open once.
	_, err = Open(t.Context(), addr, f.options())
	if !errors.Is(err, bus.ErrBusy) || !strings.Contains(err.Error(), "group 7 is in use") {
		t.Errorf("Open of a device of a group that is open = %v, want ErrBusy", err)
	}
	if err := errors.Join(d.Close(), g.Close()); err != nil {
		t.Error(err)
	}
	if f.reach(b, m.IOVA, 1, permRead) != nil || f.reach(b, own.IOVA, 1, permRead) == nil {
		t.Error("memory of a device that is closed is reached still, or that of the space not any more")
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, err := Open(t.Context(), "0000:04:00.0", o); !errors.Is(err, bus.ErrClosed) {
		t.Errorf("Open in a closed space = %v, want ErrClosed", err)
	}
	if e.Err() != nil || f.reach(b, own.IOVA, 1, permRead) == nil {
		t.Error("closing the space ended a device that is in it")
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
	m.Bytes[0], own.Bytes[0] = 1, 1 // still there
	m.Free()
	own.Free()
	if len(b.space.maps) != 0 {
		t.Errorf("%d mappings are left", len(b.space.maps))
	}
}

// A device that is asked back, or fails, under a driver that goes on: everything ends in order.
func TestEnds(t *testing.T) {
	for index, says := range map[uint32]string{irqReq: "asked it back", irqErr: "reported an error"} {
		t.Run(says, func(t *testing.T) {
			bustest.NoLeaks(t)
			f := newFake(t)
			fn := f.add(addr, 7, "vfio-pci")
			d := f.mustOpen(t, addr, f.options())
			r, err := d.Region(0)
			if err != nil {
				t.Fatal(err)
			}
			m, err := d.DMA().Alloc(bus.DMARequest{Size: 1 << 20})
			if err != nil {
				t.Fatal(err)
			}
			q, err := d.EnableIRQs(bus.MSIX, 2)
			if err != nil {
				t.Fatal(err)
			}
			pci.SetCommand(d.Config(), pci.CmdMaster, 0)
			var wg sync.WaitGroup
			wg.Go(func() { // a driver that polls
				for r.Read32(8) != 0xffffffff {
					r.Write32(16, 1)
					m.Bytes[0]++
				}
			})
			handler := bus.Handle(q[0], "test", func(uint64) {})
			f.tell(fn, index)
			select {
			case <-d.Done():
			case <-time.After(10 * time.Second):
				t.Fatal("Done is not closed")
			}
			wg.Wait()
			if err := d.Err(); !errors.Is(err, bus.ErrGone) || !strings.Contains(err.Error(), says) {
				t.Errorf("Err = %v, want ErrGone, %q", err, says)
			}
			// Nothing of it is with this process any more, without anybody's help.
			for deadline := time.Now().Add(10 * time.Second); users(fn.ino) > 1; time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal("the descriptor is not closed")
				}
			}
			if maps, _ := os.ReadFile("/proc/self/maps"); strings.Contains(string(maps), "memfd:device") {
				t.Error("the registers are mapped still")
			}
			if f.reach(fn, m.IOVA, 1, permRead) != nil {
				t.Error("the device reaches memory still")
			}
			if v := pci.Command(binaryAt(t, fn, pci.CfgCommand)); v&pci.CmdMaster != 0 {
				t.Errorf("Command = %s, want bus mastering off", v)
			}
			m.Bytes[1<<20-1] = 1 // the driver's until it frees it
			m.Free()
			if err := errors.Join(handler.Close(), d.DisableIRQs(), d.Close()); err != nil {
				t.Errorf("closing = %v", err)
			}
			if err := d.Err(); !errors.Is(err, bus.ErrGone) {
				t.Errorf("Err after Close = %v, want ErrGone as before", err)
			}
		})
	}
}

func binaryAt(t *testing.T, fn *fakeFunc, off bus.Off) uint16 {
	t.Helper()
	var b [2]byte
	if _, err := fn.file.ReadAt(b[:], offsetOf(regionConfig)+int64(off)); err != nil {
		t.Fatal(err)
	}
	return host.Uint16(b[:])
}

func TestVectors(t *testing.T) {
	f := newFake(t)
	fn := f.add(addr, 7, "vfio-pci")
	d := f.mustOpen(t, addr, f.options())
	if err := d.SetVector(0, -1); !errors.Is(err, bus.ErrNotSupported) {
		t.Errorf("SetVector with none enabled = %v, want ErrNotSupported", err)
	}
	q, err := d.EnableIRQs(bus.MSIX, 3)
	if err != nil {
		t.Fatal(err)
	}
	other, err := bus.NewIRQ(bus.MSIX, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := d.SetVector(1, other.FD()); err != nil || fn.irqs[irqMSIX][1] != int32(other.FD()) || fn.irqs[irqMSIX][0] != int32(q[0].FD()) {
		t.Errorf("SetVector = %v, vectors %v, want vector 1 alone changed", err, fn.irqs[irqMSIX])
	}
	if err := d.SetVector(2, -1); err != nil || fn.irqs[irqMSIX][2] != -1 {
		t.Errorf("SetVector(-1) = %v, vectors %v", err, fn.irqs[irqMSIX])
	}
	if err := errors.Join(d.SetVector(3, -1), d.MaskINTx()); !errors.Is(err, bus.ErrNotSupported) {
		t.Errorf("SetVector of none, MaskINTx without INTx = %v, want ErrNotSupported", err)
	}
	// The kernel has fewer than the device.
	fn.left = 2
	if _, err := d.EnableIRQs(bus.MSI, 4); !errors.Is(err, bus.ErrNotSupported) || !strings.Contains(err.Error(), "2 vectors left") {
		t.Errorf("EnableIRQs of more than the kernel has = %v, want ErrNotSupported", err)
	}
	if n := d.IRQVectors(bus.MSI); n != 2 {
		t.Errorf("IRQVectors after the kernel said so = %d, want 2", n)
	}
	if _, err := d.EnableIRQs(bus.MSI, 2); err != nil {
		t.Error(err)
	}
	q, err = d.EnableIRQs(bus.INTx, 1)
	if err != nil {
		t.Fatal(err)
	}
	if q[0].HWIRQ() != fakeLine {
		t.Errorf("HWIRQ = %d, want %d of sysfs", q[0].HWIRQ(), fakeLine)
	}
	if err := d.MaskINTx(); err != nil || !fn.masked {
		t.Errorf("MaskINTx = %v", err)
	}
	f.raise(fn, true)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := q[0].Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Wait of a masked line = %v, want nothing", err)
	}
	q[0].Unmask()
	if _, err := q[0].Wait(t.Context()); err != nil {
		t.Error(err)
	}
	f.raise(fn, false)
	fn.irqs[irqINTx][0] = -1 // what the fake traces allocates, so the kernel's own call is counted
	if n := testing.AllocsPerRun(100, func() { _ = linux{}.setIRQs(-1, setNone|setUnmask, irqINTx, 0, 1, nil) }); n != 0 {
		t.Errorf("unmasking allocates %v times, want 0", n)
	}
}

func TestReset(t *testing.T) {
	f := newFake(t)
	fn := f.add(addr, 7, "vfio-pci")
	f.add("0000:03:00.1", 7, "vfio-pci")
	f.add("0000:03:00.2", 8, "vfio-pci")
	s := NewSpace()
	defer s.Close()
	o := f.options()
	o.Space = s
	d := f.mustOpen(t, addr, o)
	if err := d.Reset(t.Context()); err != nil || fn.resets != 1 || fn.hotWith != nil {
		t.Errorf("Reset = %v, %d resets, want one of the function's own", err, fn.resets)
	}
	ended, stop := context.WithCancel(t.Context())
	stop()
	if err := d.Reset(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("Reset with a ctx that ended = %v, want Canceled", err)
	}
	d.canReset = false
	if err := d.Reset(t.Context()); !errors.Is(err, bus.ErrNotSupported) || !strings.Contains(err.Error(), "no reset") {
		t.Errorf("Reset without any = %v, want ErrNotSupported", err)
	}
	self := dependent{fn.addr, 7}
	fn.hit = []dependent{self, {pci.Addr{Bus: 3, Fn: 1}, 7}}
	if err := d.Reset(t.Context()); err != nil || len(fn.hotWith) != 1 || int(fn.hotWith[0]) != s.groups[0].fd {
		t.Errorf("Reset of the bus = %v with %v, want the group's descriptor", err, fn.hotWith)
	}
	e := f.mustOpen(t, "0000:03:00.1", o)
	if err := d.Reset(t.Context()); !errors.Is(err, bus.ErrNotSupported) || !strings.Contains(err.Error(), "0000:03:00.1, which is in use") {
		t.Errorf("Reset that hits another that is in use = %v, want ErrNotSupported", err)
	}
	e.Close()
	fn.hit = append(fn.hit, dependent{pci.Addr{Bus: 3, Fn: 2}, 8})
	if err := d.Reset(t.Context()); !errors.Is(err, bus.ErrNotSupported) || !strings.Contains(err.Error(), "0000:03:00.2 (IOMMU group 8), which is not open") {
		t.Errorf("Reset that hits another's = %v, want ErrNotSupported", err)
	}
	// The function's own fails: the bus's is tried, and both are told.
	d.canReset, f.failAt = true, f.ops+1
	err := d.Reset(t.Context())
	if !errors.Is(err, errFake) || !errors.Is(err, bus.ErrNotSupported) || strings.Contains(err.Error(), "\n") {
		t.Errorf("Reset that fails both ways = %v, want both on one line", err)
	}
	f.failAt = 0
	d.canReset = false
	for what, c := range map[string]struct {
		flags uint32
		hit   []dependent
		ok    bool
	}{
		"owned":    {hotByDevice | hotOwned, []dependent{{fn.addr, 1}}, true},
		"another":  {hotByDevice, []dependent{{fn.addr, 1}, {pci.Addr{Bus: 3, Fn: 2}, notOwned}}, false},
		"not VFIO": {hotByDevice, []dependent{{fn.addr, 1}}, false},
	} {
		fds, err := s.mayReset(d, c.flags, c.hit)
		if c.ok && (err != nil || fds != nil) || !c.ok && !errors.Is(err, bus.ErrNotSupported) {
			t.Errorf("mayReset by iommufd, %s = %v, %v, want ok %v", what, fds, err, c.ok)
		}
	}
}

// Each operation of opening fails in turn: one line that names the device, and nothing is left.
func TestOpenFailsAnywhere(t *testing.T) {
	for _, cdev := range []bool{false, true} {
		for k := 1; ; k++ {
			f := newFake(t)
			fn := f.add(addr, 7, "vfio-pci")
			if cdev {
				f.withCdev(addr, 7)
			}
			before := descriptors(t)
			f.failAt = k
			o := f.options()
			o.API = Group
			if cdev {
				o.API = Cdev
			}
			d, err := Open(t.Context(), addr, o)
			if err == nil {
				_ = d.Close()
				if f.ops < 15 || k < 15 {
					t.Errorf("%d operations, want more: %v", f.ops, f.trace)
				}
				if k > f.ops {
					break
				}
				continue // what failed is not needed
			}
			last := f.trace[k-1]
			if !strings.Contains(err.Error(), addr) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%s fails: Open = %v, want one line with the address", last, err)
			}
			if n := descriptors(t); n != before || users(fn.ino) != 1 {
				t.Errorf("%s fails: %d descriptors, want %d as before", last, n, before)
			}
		}
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	e, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(e)
}

// Descriptors that somebody opened before are used, and stay his.
func TestFiles(t *testing.T) {
	f := newFake(t)
	f.add(addr, 7, "vfio-pci")
	o := f.options()
	a, err := Look(addr, o)
	if err != nil || a.Err != nil || len(a.Paths) != 2 || a.Paths[0] != "/dev/vfio/vfio" || a.Paths[1] != "/dev/vfio/7" {
		t.Fatalf("Look = %+v, %v, want the container and the group", a, err)
	}
	o.Files = map[string]*os.File{}
	for _, p := range a.Paths {
		fd, err := f.open(p)
		if err != nil {
			t.Fatal(err)
		}
		o.Files[p] = os.NewFile(uintptr(fd), p)
		f.denied[p] = unix.EACCES
	}
	d := f.mustOpen(t, addr, o)
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	for p, file := range o.Files {
		if err := file.Close(); err != nil {
			t.Errorf("%s was closed: %v", p, err)
		}
	}
}
