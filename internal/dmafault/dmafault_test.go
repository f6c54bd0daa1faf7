package dmafault

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus/pci"
)

func TestParse(t *testing.T) {
	edu, nic := pci.Addr{Dev: 8}, pci.Addr{Bus: 3}
	for line, want := range map[string]Fault{
		"DMAR: [DMA Write NO_PASID] Request device [00:08.0] fault addr 0x7f1000 [fault reason 0x05] PTE Write access is not set":   {Addr: edu, IOVA: 0x7f1000, Write: true},
		"DMAR: [DMA Read NO_PASID] Request device [0x00:0x08.0] fault addr 0x1000 [fault reason 0x06] PTE Read access is not set":   {Addr: edu, IOVA: 0x1000},
		"DMAR: [DMA Write] Request device [03:00.0] PASID ffffffff fault addr fff000 [fault reason 05] PTE Write access is not set": {Addr: nic, IOVA: 0xfff000, Write: true},
		"DMAR: [DMA Read PASID 0x1] Request device [03:00.0] fault addr 0xffffffff00000000 [fault reason 0x71] SM: Present bit":     {Addr: nic, IOVA: 0xffffffff00000000},
		"AMD-Vi: Event logged [IO_PAGE_FAULT device=03:00.0 domain=0x0010 address=0xfd000000 flags=0x0020]":                         {Addr: nic, IOVA: 0xfd000000, Write: true},
		"AMD-Vi: Event logged [IO_PAGE_FAULT device=0001:03:00.0 domain=0x0010 address=0xfd000000 flags=0x0000]":                    {Addr: pci.Addr{Domain: 1, Bus: 3}, IOVA: 0xfd000000},
		"vfio-pci 0000:03:00.0: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x0010 address=0x12340 flags=0x0030]":                    {Addr: nic, IOVA: 0x12340, Write: true},
		"arm-smmu-v3 9050000.smmuv3: event: F_TRANSLATION client: 0000:00:08.0 sid: 0x40 ssid: 0x0 iova: 0xdead000 ipa: 0x0":        {Addr: edu, IOVA: 0xdead000},
	} {
		want.Text = line
		if got, ok := Parse(line); !ok || got != want {
			t.Errorf("Parse(%q) = %+v, %v, want %+v", line, got, ok, want)
		}
	}
	for _, line := range []string{
		"", "DMAR: DRHD: handling fault status reg 2", "DMAR: IOMMU enabled", "DMAR: [DMA Write NO_PASID] Request device [00:08.9] fault addr 0x1",
		"DMAR: [INTR-REMAP] Request device [00:08.0] fault index 0x1 [fault reason 0x26]",
		"somebody wrote: DMAR: [DMA Write NO_PASID] Request device [00:08.0] fault addr 0x1 ", "DMAR: [DMA Write NO_PASID] Request device [00:08.0] fault addr 0x10000000000000000 ",
	} {
		if got, ok := Parse(line); ok {
			t.Errorf("Parse(%q) = %+v, want nothing", line, got)
		}
	}
}

// A log like /dev/kmsg, whose records are what one write gives: a pipe of packets would do, and a FIFO with a reader that keeps up does.
func TestFollow(t *testing.T) {
	path := t.TempDir() + "/kmsg"
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	w, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	f := newFile(r)
	got, ended := make(chan Fault, 1), make(chan error, 1)
	go func() { ended <- f.Follow(func(x Fault) { got <- x }) }()
	if _, err := w.WriteString("3,1,2,-;DMAR: [DMA Write NO_PASID] Request device [00:08.0] fault addr 0x7f1000 [fault reason 0x05] x\n SUBSYSTEM=pci\n"); err != nil {
		t.Fatal(err)
	}
	select {
	case x := <-got:
		if x.IOVA != 0x7f1000 || x.Addr.Dev != 8 {
			t.Errorf("%+v, want the fault at 0x7f1000", x)
		}
	case <-time.After(30 * time.Second):
		t.Error("the fault is not told")
	}
	// What stands there when somebody has stopped the devices is told before, or not at all; what comes later is told.
	for i := range 50 {
		for range 3 {
			if _, err := w.WriteString("3,1,2,-;DMAR: [DMA Write NO_PASID] Request device [00:08.0] fault addr 0x1000 [fault reason 0x05] x\n"); err != nil {
				t.Fatal(err)
			}
		}
		skipped := make(chan struct{})
		go func() {
			defer close(skipped)
			if err := f.Skip(t.Context()); err != nil {
				t.Error(err)
			}
		}()
		for over := false; !over; {
			select {
			case <-got:
			case <-skipped:
				over = true
			case <-time.After(30 * time.Second):
				t.Fatal("Skip does not return")
			}
		}
		if _, err := fmt.Fprintf(w, "3,1,2,-;DMAR: [DMA Read NO_PASID] Request device [00:08.0] fault addr %#x [fault reason 0x06] x\n", 0x100000+i); err != nil {
			t.Fatal(err)
		}
		for x := range got {
			if !x.Write {
				if x.IOVA != uint64(0x100000+i) {
					t.Fatalf("after Skip: %+v, want the one that came later, %#x", x, 0x100000+i)
				}
				break
			}
			if x.IOVA != 0x1000 {
				t.Fatalf("%+v", x)
			}
		}
	}
	f.Close()
	if err := f.Skip(t.Context()); err != nil { // of one that has ended it returns
		t.Errorf("Skip after Close = %v, want nil", err)
	}
	if err := <-ended; err != nil {
		t.Errorf("Follow after Close = %v, want nil", err)
	}
	if _, err := Open(path + "/no"); err == nil {
		t.Error("Open of nothing is no error")
	}
	if f, err := Open(""); err == nil {
		f.Close()
	} else if !errors.Is(err, fs.ErrPermission) && !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open = %v, want nil, or that it may not be read", err)
	}
}

// Of a log whose reader cannot be woken Skip returns, again and again; and so it does when its time is over.
func TestSkipEnds(t *testing.T) {
	r, w, err := pipe(t, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	f := newFile(r)
	ended := make(chan error, 1)
	go func() { ended <- f.Follow(func(Fault) {}) }()
	for range 3 {
		if err := f.Skip(t.Context()); !errors.Is(err, os.ErrNoDeadline) {
			t.Fatalf("Skip of what is not pollable: %v, want ErrNoDeadline", err)
		}
	}
	w.Close() // wakes the reader, with an end of file
	if err := <-ended; err == nil {
		t.Error("Follow of a log that ended: want an error")
	}
	f.Close()

	r, w, err = pipe(t, unix.O_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	f = newFile(r) // nobody follows it
	defer f.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 3 {
		if err := f.Skip(ctx); !errors.Is(err, context.Canceled) {
			t.Fatalf("Skip in no time: %v, want that it is over", err)
		}
	}
}

func pipe(t *testing.T, flags int) (r, w *os.File, err error) {
	t.Helper()
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|flags); err != nil {
		return nil, nil, err
	}
	return os.NewFile(uintptr(fds[0]), "log"), os.NewFile(uintptr(fds[1]), "writer"), nil
}

// FuzzParse: a fault or none, never a panic.
func FuzzParse(f *testing.F) {
	f.Add("3,1,2,-;DMAR: [DMA Write NO_PASID] Request device [00:08.0] fault addr 0x7f1000 [fault reason 0x05] x")
	f.Add("3,1,2,-;AMD-Vi: Event logged [IO_PAGE_FAULT device=03:00.0 domain=0x0010 address=0xfd000000 flags=0x0020]")
	f.Fuzz(func(t *testing.T, s string) {
		x, ok := Parse(text(s))
		if !ok && x != (Fault{}) {
			t.Errorf("Parse = %+v, and nothing", x)
		}
	})
}
