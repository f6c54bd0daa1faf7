package uio

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/pci"
)

// The whole suite, on a model of a function.
func TestConformance(t *testing.T) {
	bustest.All(t, func(t *testing.T) bustest.Subject {
		m := newMachine(t)
		d := m.open()
		return bustest.Subject{
			Device:  d,
			Scratch: &bustest.Scratch{Region: 0, Off: 0x100, Reads: func(v uint32) uint32 { return v }},
			Raise:   func() { m.raise(true) },
			Lower:   func() { m.raise(false) },
			Kill:    func() { m.uio.Close() },
		}
	})
}

// The same by names, as root opens it.
func TestConformanceByName(t *testing.T) {
	bustest.All(t, func(t *testing.T) bustest.Subject {
		m := newMachine(t)
		m.fifo("uio0")
		return bustest.Plain(m.openWith(address, m.options()))
	})
}

func TestFunction(t *testing.T) {
	bustest.NoLeaks(t)
	m := newMachine(t)
	d := m.open()
	f := d.Function()
	wantID := pci.FunctionID{Vendor: 0x1234, Device: 0x11e8, SubVendor: 0x1af4, SubDevice: 0x1100, Class: 0xff00, Revision: 0x10}
	if f.Addr.String() != address || f.ID != wantID || f.Header != pci.HeaderDevice || f.Config.Size() != 4096 || len(f.BARs) != 3 {
		t.Errorf("Function = %+v, want what sysfs and config space say", f)
	}
	if d.Address() != address || d.Backend() != "uio" {
		t.Errorf("Address, Backend = %s, %s, want %s, uio", d.Address(), d.Backend(), address)
	}
	q, err := d.EnableIRQs(bus.INTx, 1)
	if err != nil {
		t.Fatal(err)
	}
	if got := q[0].HWIRQ(); got != 21 {
		t.Errorf("HWIRQ = %d, want 21 as the file irq says", got)
	}
}

func TestBridge(t *testing.T) {
	m := newMachine(t)
	m.config(pci.CfgHeader, []byte{0x81})
	m.config(0x18, []byte{0, 3, 10})
	m.config(pci.CfgCommand, []byte{0x07})
	d := m.open()
	if f := d.Function(); f.Header != pci.HeaderBridge || f.Secondary != 3 || f.Subordinate != 10 || !f.IsBridge() {
		t.Errorf("Function = %+v, want a bridge to buses 3 to 10", f)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if m.command()&pci.CmdMaster == 0 {
		t.Error("Close cleared a bridge's bus mastering, which is that of those behind it")
	}
}

// Close stops a device's DMA, and holds its interrupt back.
func TestCloseQuiesces(t *testing.T) {
	m := newMachine(t)
	d := m.open()
	pci.SetCommand(d.Config(), pci.CmdMaster, 0)
	if _, err := d.EnableIRQs(bus.INTx, 1); err != nil {
		t.Fatal(err)
	}
	if c := m.command(); c&pci.CmdMaster == 0 || c&pci.CmdINTxDisable != 0 {
		t.Fatalf("Command = %s, want Master and no INTxDisable", c)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if c := m.command(); c&pci.CmdMaster != 0 || c&pci.CmdINTxDisable == 0 {
		t.Errorf("Command after Close = %s, want INTxDisable and no Master", c)
	}
}

func TestRegions(t *testing.T) {
	bustest.NoLeaks(t)
	m := newMachine(t)
	lines := strings.SplitAfter(resource, "\n")
	lines[3] = "0x0000000000000000 0x0000000000000fff 0x0000000020040200\n" // not placed
	m.write(filepath.Join(m.fn(), "resource"), strings.Join(lines, ""))
	d := m.open()
	at := func(bar int, off int64) uint32 {
		t.Helper()
		b := make([]byte, 4)
		f, err := os.Open(filepath.Join(m.fn(), "resource"+string(rune('0'+bar))))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.ReadAt(b, off); err != nil {
			t.Fatal(err)
		}
		return binary.LittleEndian.Uint32(b)
	}
	for _, c := range []struct {
		bar int
		off bus.Off
		at  int64 // in the file
	}{
		{0, 0, 0}, {0, barSize - 4, barSize - 4},
		{1, 0, smallAt}, {1, smallBAR - 4, smallAt + smallBAR - 4}, // its page begins before it
		{2, 8, 8}, // I/O space
	} {
		r, err := d.Region(c.bar)
		if err != nil {
			t.Fatal(err)
		}
		r.Write32(c.off, 0xabcd0000+uint32(c.off))
		if got, want := at(c.bar, c.at), 0xabcd0000+uint32(c.off); got != want {
			t.Errorf("file of BAR %d has %#x at %#x after Write32(%#x), want %#x", c.bar, got, c.at, c.off, want)
		}
	}
	if _, err := d.Region(3); !errors.Is(err, bus.ErrNotSupported) || !strings.Contains(err.Error(), "not placed") {
		t.Errorf("Region(3) = %v, want that it was not placed", err)
	}
}

// mapped replaces mmap: the UIO device is this file, and what was asked of it is noted.
func mapped(t *testing.T, asked *[]int64) *kernel {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "mem"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(1 << 20); err != nil {
		t.Fatal(err)
	}
	return &kernel{mmap: func(_ int, at int64, n int) ([]byte, error) {
		*asked = append(*asked, at, int64(n))
		return unix.Mmap(int(f.Fd()), at, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	}}
}

// Without files of BARs, the driver's maps of the same addresses serve.
func TestRegionsByMaps(t *testing.T) {
	m := newMachine(t)
	m.window(m.fn(), "uio0", 0, 0xfe800000, barSize, 0)
	m.window(m.fn(), "uio0", 1, 0xfe900000, 4096, smallAt)
	o := m.options()
	o.Files = m.files()
	o.Files.Resource = nil
	var asked []int64
	o.kernel = mapped(t, &asked)
	d := m.openWith(address, o)
	for i, size := range []uint64{barSize, smallBAR} {
		r, err := d.Region(i)
		if err != nil {
			t.Fatal(err)
		}
		if r.Info().Size != size || r.Read32(bus.Off(size)-4) != 0 || r.Read32(bus.Off(size)) != 0xffffffff {
			t.Errorf("region %d = %+v, want %#x bytes of zeros", i, r.Info(), size)
		}
	}
	page := int64(pageSize)
	if want := []int64{0, barSize, page, smallAt + smallBAR}; !slices.Equal(asked, want) {
		t.Errorf("mmap was asked for (place, bytes) %v, want %v", asked, want)
	}
	_, err := d.Region(2) // I/O space is in no map
	wantErr(t, "Region(2)", err, bus.ErrNotSupported, "region 2", "not among those passed")
}

// platform makes a UIO device that is on no PCI bus.
func platform(m *machine) {
	dir := filepath.Join(m.sys, "devices/platform/board")
	m.mkdir(dir)
	m.link(filepath.Join(m.sys, "bus/platform"), filepath.Join(dir, "subsystem"))
	m.uioNode("uio1", dir, "board")
	m.window(dir, "uio1", 0, 0x40000000, 0x1000, 0)
	m.window(dir, "uio1", 2, 0x50000000, 0x2000, 0x10)
	m.window(dir, "uio1", 10, 0x60000000, 0x1000, 0)
}

func TestPlatform(t *testing.T) {
	bustest.NoLeaks(t)
	m := newMachine(t)
	platform(m)
	m.fifo("uio1")
	var asked []int64
	for _, name := range []string{"uio1", "/dev/uio1"} {
		o := m.options()
		o.kernel = mapped(t, &asked)
		o.HardwareIDs = []string{"MSFT0101"}
		d := m.openWith(name, o)
		tpm := &pci.Driver{Platform: []string{"MSFT0101"}}
		if serves, what := pci.Match(d); !serves(tpm) || serves(&pci.Driver{}) || what != "MSFT0101" {
			t.Errorf("%s: Match = %s, want that a driver of MSFT0101 serves it, and no other", name, what)
		}
		if d.Function() != nil || d.Address() != "uio1" || d.Config().Size() != 0 || d.Config().Read32(0) != 0xffffffff {
			t.Errorf("%s: Function = %v, Address = %s, config space of %d bytes, want none", name, d.Function(), d.Address(), d.Config().Size())
		}
		want := []bus.RegionInfo{{Index: 0, Size: 0x1000, Addr: 0x40000000}, {Index: 2, Size: 0x1ff0, Addr: 0x50000010}, {Index: 10, Size: 0x1000, Addr: 0x60000000}}
		if got := d.Regions(); !slices.Equal(got, want) {
			t.Errorf("Regions = %+v, want %+v", got, want)
		}
		asked = nil
		if _, err := d.Region(2); err != nil {
			t.Error(err)
		}
		if want := []int64{2 * int64(pageSize), 0x2000}; !slices.Equal(asked, want) {
			t.Errorf("mmap was asked for (place, bytes) %v, want %v", asked, want)
		}
		_, err := d.Region(1)
		wantErr(t, "Region(1)", err, bus.ErrNotSupported)
		wantErr(t, "Reset", d.Reset(t.Context()), bus.ErrNotSupported)
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
}

// A driver with irqcontrol is written to: 1 lets the interrupt through, 0 holds it back.
func TestIRQControl(t *testing.T) {
	m := newMachine(t)
	platform(m)
	o := m.options()
	o.Files = &Files{Device: "uio1", UIO: m.file}
	d := m.openWith("uio1", o)
	q, err := d.EnableIRQs(bus.INTx, 1)
	if err != nil {
		t.Fatal(err)
	}
	m.mu.Lock()
	m.fire(1)
	m.mu.Unlock()
	if n, err := q[0].Wait(t.Context()); n != 1 || err != nil {
		t.Errorf("Wait = %d, %v, want 1", n, err)
	}
	q[0].Unmask()
	if err := d.DisableIRQs(); err != nil {
		t.Error(err)
	}
	q[0].Unmask() // is nobody's any more
	for until := time.Now().Add(5 * time.Second); len(m.written()) < 3 && time.Now().Before(until); {
		time.Sleep(time.Millisecond)
	}
	if got, want := m.written(), []uint32{1, 1, 0}; !slices.Equal(got, want) {
		t.Errorf("/dev/uio1 was written %v, want %v", got, want)
	}
}

// Interrupts that nobody waited for are counted, also where the kernel's count wraps, and those
// before they were enabled are not.
func TestMissedInterrupts(t *testing.T) {
	m := newMachine(t)
	d := m.open()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	fire := func(n uint32) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.fire(n)
	}
	fire(5) // from 0xfffffffe on
	var q []*bus.IRQ
	var err error
	for range 100 { // until the five are surely read
		if q, err = d.EnableIRQs(bus.INTx, 1); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
	fire(7)
	if n, err := q[0].Wait(ctx); n != 7 || err != nil {
		t.Errorf("Wait = %d, %v, want 7", n, err)
	}
	m.mu.Lock()
	m.count = 0xffffffff
	m.mu.Unlock()
	fire(0)
	if _, err := q[0].Wait(ctx); err != nil {
		t.Error(err)
	}
	fire(3)
	if n, err := q[0].Wait(ctx); n != 3 || err != nil {
		t.Errorf("Wait over the wrap = %d, %v, want 3", n, err)
	}
}

// What a driver writes to Command while interrupts are enabled leaves INTx-Disable alone: its
// value is of before the interrupt.
func TestCommandKeepsMask(t *testing.T) {
	m := newMachine(t)
	d := m.open()
	c := d.Config()
	if _, err := d.EnableIRQs(bus.INTx, 1); err != nil {
		t.Fatal(err)
	}
	for _, masked := range []bool{true, false} {
		hi := byte(0)
		want := pci.Command(0)
		if masked {
			hi, want = byte(pci.CmdINTxDisable>>8), pci.CmdINTxDisable
		}
		for _, v := range []pci.Command{0, pci.CmdINTxDisable} {
			for name, write := range map[string]func(){
				"Write8":  func() { c.Write8(pci.CfgCommand+1, uint8(v>>8)) },
				"Write16": func() { c.Write16(pci.CfgCommand, uint16(v|pci.CmdMem)) },
				"Write32": func() { c.Write32(pci.CfgCommand, uint32(v|pci.CmdMem)) },
			} {
				m.config(pci.CfgCommand+1, []byte{hi})
				write()
				if got := m.command(); got&pci.CmdINTxDisable != want {
					t.Errorf("%s of %s: Command = %s, want INTxDisable as the kernel left it (%v)", name, v, got, masked)
				}
			}
		}
	}
	if err := d.DisableIRQs(); err != nil {
		t.Fatal(err)
	}
	c.Write16(pci.CfgCommand, 0)
	if got := m.command(); got != 0 {
		t.Errorf("Command = %s with interrupts disabled, want what was written", got)
	}
}

// A device without interrupt (its file says EIO) has no vector, and is not gone.
func TestNoInterrupt(t *testing.T) {
	m := newMachine(t)
	// What else says EIO: the memory of a process, where nothing is mapped.
	f, err := os.Open("/proc/self/mem")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	o := m.options()
	o.Files = m.files()
	o.Files.UIO = f
	d := m.openWith(address, o)
	if n := d.IRQVectors(bus.INTx); n != 0 || d.Err() != nil {
		t.Errorf("IRQVectors = %d, Err = %v, want 0, nil", n, d.Err())
	}
	_, err = d.EnableIRQs(bus.INTx, 1)
	wantErr(t, "EnableIRQs", err, bus.ErrNotSupported, "there are 0")
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	m.remove(filepath.Join(m.sys, "class/uio/uio0"))
	_, err = Open(t.Context(), address, o)
	wantErr(t, "Open of what vanishes", err, bus.ErrGone, "unbound")
}

func TestGone(t *testing.T) {
	bustest.NoLeaks(t)
	m := newMachine(t)
	d := m.open()
	q, err := d.EnableIRQs(bus.INTx, 1)
	if err != nil {
		t.Fatal(err)
	}
	m.uio.Close()
	<-d.Done()
	wantErr(t, "Err", d.Err(), bus.ErrGone, address, "removed, or unbound")
	q[0].Unmask()
	if err := d.DisableIRQs(); err != nil {
		t.Errorf("DisableIRQs of a dead device = %v", err)
	}
	wantErr(t, "Reset", d.Reset(t.Context()), bus.ErrGone)
}

// A BAR whose pages the kernel took away: no SIGBUS, and the device is dead.
func TestGoneByBAR(t *testing.T) {
	if raceEnabled {
		t.Skip("under the race detector accesses are its own runtime's, and a fault there ends the process")
	}
	m := newMachine(t)
	d := m.open()
	r, err := d.Region(0)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(m.fn(), "resource0"), 0); err != nil {
		t.Fatal(err)
	}
	if got := r.Read32(0x10); got != 0xffffffff {
		t.Errorf("Read32 = %#x, want all-ones", got)
	}
	wantErr(t, "Err", d.Err(), bus.ErrGone, "region 0", "took its pages away")
	if got := d.Config().Read16(0); got != 0xffff {
		t.Errorf("config space reads %#x, want all-ones", got)
	}
}

func TestReset(t *testing.T) {
	m := newMachine(t)
	d := m.open()
	if err := d.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(m.fn(), "reset")); err != nil || string(b) != "1" {
		t.Errorf("the file reset has %q, %v, want 1", b, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	wantErr(t, "Reset", d.Reset(ctx), context.Canceled)
	o := m.options()
	o.Files = m.files()
	o.Files.Reset = nil
	wantErr(t, "Reset", m.openWith(address, o).Reset(t.Context()), bus.ErrNotSupported, "no reset")
}

func TestNoDMA(t *testing.T) {
	d := newMachine(t).open()
	mem, err := d.DMA().Alloc(bus.DMARequest{Size: 4096})
	if mem != nil {
		t.Error("Alloc gave memory")
	}
	wantErr(t, "Alloc", err, bus.ErrNoIOMMU, address, "vfio", "dma=unsafe")
	_, err = d.DMA().Map(make([]byte, 4096), bus.DMARequest{Size: 4096})
	wantErr(t, "Map", err, bus.ErrNotSupported, address)
}
