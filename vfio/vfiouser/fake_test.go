package vfiouser

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/pci"
)

// fake is a device that records what is done to it: a region of plain registers, one whose second
// page is shared memory, one of I/O space, any number of vectors, and windows of DMA memory.
type fake struct {
	mu      sync.Mutex
	cfg     []byte
	regs    [3][]byte // by region: 0, 2, 4
	log     []string  // of writes, and of what else happens
	windows []bus.Window
	irqs    []*bus.IRQ
	mode    bus.IRQMode
	vectors map[bus.IRQMode]int
	reset   error           // of Reset
	refuse  error           // of Place
	disable error           // of DisableIRQs
	reading func(o bus.Off) // called when config space was read; nil: nobody

	file   *os.File // of region 2, nil: it is not shared
	shared []byte

	done chan struct{}
	err  error
}

var fakeRegions = []bus.RegionInfo{
	{Index: 0, Size: 4096, Addr: 0xc0000000},
	{Index: 2, Size: 4 * 4096, Addr: 0x1_0000_4000, Is64: true, Prefetch: true},
	{Index: 4, Kind: bus.RegionIO, Size: 64, Addr: 0x2000},
}

// newFake makes one, whose region 2 is shared or not.
func newFake(t testing.TB, shared bool) *fake {
	t.Helper()
	f := &fake{cfg: make([]byte, 4096), vectors: map[bus.IRQMode]int{bus.INTx: 1, bus.MSI: 4, bus.MSIX: 100}, done: make(chan struct{})}
	for i, r := range fakeRegions {
		f.regs[i] = make([]byte, r.Size)
	}
	le := binary.LittleEndian
	le.PutUint32(f.cfg, 0x11e81234)
	le.PutUint16(f.cfg[pci.CfgCommand:], uint16(pci.CmdMem|pci.CmdIO))
	f.cfg[pci.CfgCommand+2] = byte(pci.StatusCaps)
	le.PutUint32(f.cfg[pci.CfgBAR0:], 0xc0000000)
	le.PutUint32(f.cfg[pci.CfgBAR0+8:], 0x4000|0b1100)
	le.PutUint32(f.cfg[pci.CfgBAR0+12:], 1)
	le.PutUint32(f.cfg[pci.CfgBAR0+16:], 0x2001)
	f.cfg[pci.CfgCapPtr], f.cfg[pci.CfgIRQPin] = 0x40, 1
	copy(f.cfg[0x40:], []byte{pci.CapMSI, 0x60, 2<<1 | 1<<7, 1}) // 4 vectors, 64 bits, masks
	copy(f.cfg[0x60:], []byte{pci.CapMSIX, 0x70, 99, 0})
	le.PutUint32(f.cfg[0x64:], 0x400) // table in region 0
	le.PutUint32(f.cfg[0x68:], 0xc00)
	copy(f.cfg[0x70:], []byte{pci.CapPCIe, 0, 2, 0})
	le.PutUint32(f.cfg[0x74:], 1<<28) // function-level reset
	if shared {
		var err error
		if f.file, err = newMemory("fake", 4*4096); err != nil {
			t.Fatal(err)
		}
		if f.shared, err = unix.Mmap(int(f.file.Fd()), 0, 4*4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			f.file.Close()
			_ = unix.Munmap(f.shared)
		})
	}
	return f
}

func (f *fake) note(format string, args ...any) { f.log = append(f.log, fmt.Sprintf(format, args...)) }

// took is the log so far, which begins anew.
func (f *fake) took() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := f.log
	f.log = nil
	return l
}

func (f *fake) Address() string              { return "1000:00:07.0" }
func (f *fake) Backend() string              { return "test:fake" }
func (f *fake) Config() bus.Config           { return fakeConfig{f} }
func (f *fake) Regions() []bus.RegionInfo    { return slices.Clone(fakeRegions) }
func (f *fake) DMA() bus.DMA                 { return fakeDMA{f} }
func (f *fake) Done() <-chan struct{}        { return f.done }
func (f *fake) IRQVectors(m bus.IRQMode) int { return f.vectors[m] }
func (f *fake) Close() error                 { return f.die(bus.ErrClosed) }

func (f *fake) Err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

func (f *fake) die(err error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.err = fmt.Errorf("fake: %w", err)
		close(f.done)
	}
	return nil
}

func (f *fake) Reset(context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.note("reset")
	return f.reset
}

func (f *fake) Region(i int) (bus.Region, error) {
	for k, r := range fakeRegions {
		if r.Index == i {
			return &fakeRegion{f: f, info: r, k: k}, nil
		}
	}
	return nil, fmt.Errorf("fake: no region %d: %w", i, bus.ErrNotSupported)
}

func (f *fake) EnableIRQs(m bus.IRQMode, n int) ([]*bus.IRQ, error) {
	_ = f.DisableIRQs()
	f.mu.Lock()
	defer f.mu.Unlock()
	if n < 1 || n > f.vectors[m] {
		return nil, fmt.Errorf("fake: %d %s vectors: %w", n, m, bus.ErrNotSupported)
	}
	f.note("enable %s %d", m, n)
	for i := range n {
		q, err := bus.NewIRQ(m, i, func() { f.mu.Lock(); f.note("unmask"); f.mu.Unlock() })
		if err != nil {
			return nil, err
		}
		f.irqs = append(f.irqs, q)
	}
	f.mode = m
	return slices.Clone(f.irqs), nil
}

func (f *fake) DisableIRQs() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.irqs) > 0 {
		f.note("disable")
	}
	for _, q := range f.irqs {
		_ = q.Close()
	}
	f.irqs = nil
	return f.disable
}

// fire is an interrupt.
func (f *fake) fire(i int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.irqs[i].Signal()
}

type fakeDMA struct{ f *fake }

func (d fakeDMA) Alloc(bus.DMARequest) (*bus.Memory, error)       { return nil, bus.ErrNotSupported }
func (d fakeDMA) Map([]byte, bus.DMARequest) (*bus.Memory, error) { return nil, bus.ErrNotSupported }

func (d fakeDMA) Place(w bus.Window) (func(), error) {
	d.f.mu.Lock()
	defer d.f.mu.Unlock()
	if d.f.refuse != nil {
		return nil, d.f.refuse
	}
	d.f.note("place %#x %#x dir=%d mapped=%v", uint64(w.IOVA), w.Size, w.Dir, w.Bytes != nil)
	d.f.windows = append(d.f.windows, w)
	return sync.OnceFunc(func() {
		d.f.mu.Lock()
		defer d.f.mu.Unlock()
		d.f.note("release %#x", uint64(w.IOVA))
		d.f.windows = slices.DeleteFunc(d.f.windows, func(x bus.Window) bool { return x.IOVA == w.IOVA })
	}), nil
}

// fakeRegion keeps what is written, and logs it.
type fakeRegion struct {
	f    *fake
	info bus.RegionInfo
	k    int
}

func (r *fakeRegion) Info() bus.RegionInfo { return r.info }

// Shared makes the second page of region 2 mappable.
func (r *fakeRegion) Shared() (*os.File, int64, []bus.Part) {
	if r.info.Index != 2 || r.f.file == nil {
		return nil, 0, nil
	}
	return r.f.file, 0, []bus.Part{{Off: 4096, Size: 4096}}
}

func (r *fakeRegion) mem(o bus.Off) []byte {
	if r.info.Index == 2 && r.f.shared != nil && o >= 4096 && o < 8192 {
		return r.f.shared
	}
	return r.f.regs[r.k]
}

func (r *fakeRegion) read(o bus.Off, n int) (v uint64) {
	r.f.mu.Lock()
	defer r.f.mu.Unlock()
	if r.f.err != nil || uint64(o)+uint64(n) > r.info.Size {
		return ^uint64(0)
	}
	for i := range n {
		v |= uint64(r.mem(o)[int(o)+i]) << (8 * i)
	}
	r.f.note("read%d %d+%#x", 8*n, r.info.Index, o)
	return v
}

func (r *fakeRegion) write(o bus.Off, n int, v uint64) {
	r.f.mu.Lock()
	defer r.f.mu.Unlock()
	if r.f.err != nil || uint64(o)+uint64(n) > r.info.Size {
		return
	}
	for i := range n {
		r.mem(o)[int(o)+i] = byte(v >> (8 * i))
	}
	r.f.note("write%d %d+%#x=%#x", 8*n, r.info.Index, o, v)
}

func (r *fakeRegion) Read8(o bus.Off) uint8       { return uint8(r.read(o, 1)) }
func (r *fakeRegion) Read16(o bus.Off) uint16     { return uint16(r.read(o, 2)) }
func (r *fakeRegion) Read32(o bus.Off) uint32     { return uint32(r.read(o, 4)) }
func (r *fakeRegion) Read64(o bus.Off) uint64     { return r.read(o, 8) }
func (r *fakeRegion) Write8(o bus.Off, v uint8)   { r.write(o, 1, uint64(v)) }
func (r *fakeRegion) Write16(o bus.Off, v uint16) { r.write(o, 2, uint64(v)) }
func (r *fakeRegion) Write32(o bus.Off, v uint32) { r.write(o, 4, uint64(v)) }
func (r *fakeRegion) Write64(o bus.Off, v uint64) { r.write(o, 8, v) }

// fakeConfig keeps everything that is written, so that it shows what reaches the device.
type fakeConfig struct{ f *fake }

func (c fakeConfig) Size() int { return len(c.f.cfg) }

func (c fakeConfig) read(o bus.Off, n int) (v uint32) {
	c.f.mu.Lock()
	defer func() {
		read := c.f.reading
		if c.f.mu.Unlock(); read != nil {
			read(o)
		}
	}()
	if c.f.err != nil {
		return ^uint32(0)
	}
	for i := range n {
		v |= uint32(c.f.cfg[int(o)+i]) << (8 * i)
	}
	return v
}

func (c fakeConfig) write(o bus.Off, n int, v uint32) {
	c.f.mu.Lock()
	defer c.f.mu.Unlock()
	for i := range n {
		c.f.cfg[int(o)+i] = byte(v >> (8 * i))
	}
	c.f.note("config%d %#x=%#x", 8*n, o, v)
}

func (c fakeConfig) Read8(o bus.Off) uint8       { return uint8(c.read(o, 1)) }
func (c fakeConfig) Read16(o bus.Off) uint16     { return uint16(c.read(o, 2)) }
func (c fakeConfig) Read32(o bus.Off) uint32     { return c.read(o, 4) }
func (c fakeConfig) Write8(o bus.Off, v uint8)   { c.write(o, 1, uint32(v)) }
func (c fakeConfig) Write16(o bus.Off, v uint16) { c.write(o, 2, uint32(v)) }
func (c fakeConfig) Write32(o bus.Off, v uint32) { c.write(o, 4, v) }

// wantLog checks what reached the device since the last time.
func (f *fake) wantLog(t *testing.T, what string, want ...string) {
	t.Helper()
	if got := f.took(); !slices.Equal(got, want) {
		t.Errorf("%s: the device saw\n  %q\nwant\n  %q", what, got, want)
	}
}

func fakeServer(t testing.TB) ServerOptions { return ServerOptions{Log: bustest.Log(t)} }
