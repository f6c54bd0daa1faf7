package pktgen

import (
	"bytes"
	"context"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/internal/frame"
	"github.com/ring3dev/ring3/netdev"
	"golang.org/x/sys/unix"
)

// sink is a network device that swallows what it is sent: at once, or, with hold, when
// Reap, a later Burst or Drain finds the ring full.
type sink struct {
	name   string
	mtu    int
	ring   int
	queues []*sinkQueue
	down   atomic.Bool
	done   chan struct{}
	bufLen int
	sized  bool // it makes pools of any size
}

func newSink(name string) *sink {
	s := &sink{name: name, mtu: 1500, ring: 256, done: make(chan struct{}), bufLen: dma.BufSize}
	s.queues = []*sinkQueue{{dev: s}}
	return s
}

func (s *sink) Info() netdev.Info {
	return netdev.Info{Name: s.name, Driver: "sink", TxQueues: len(s.queues), TxRing: s.ring}
}
func (s *sink) MAC() net.HardwareAddr { return net.HardwareAddr{0x52, 0x54, 0, 0x12, 0x34, 0x56} }
func (s *sink) MTU() int              { return s.mtu }
func (s *sink) Link() netdev.Link {
	return netdev.Link{Up: !s.down.Load(), Speed: 1000, FullDuplex: true}
}
func (s *sink) Stats() netdev.Stats { return netdev.Stats{} }
func (s *sink) Tx(q int) netdev.TxQueue {
	if q < 0 || q >= len(s.queues) {
		return nil
	}
	return s.queues[q]
}
func (s *sink) Rx(int) netdev.RxQueue { return nil }
func (s *sink) Done() <-chan struct{} { return s.done }
func (s *sink) Err() error            { return nil }

// sinkQueue is a transmit queue. It notices being used by two goroutines at once, and a
// buffer that is not its own.
type sinkQueue struct {
	dev   *sink
	hold  bool // frames stay in the ring until they must go
	stuck atomic.Bool
	limit int // most frames a Burst takes; 0: what the ring has room for
	keep  int // how many frames to record; 0 none, -1 all

	// patience is how long the last Drain might have waited.
	patience atomic.Int64

	inUse  atomic.Int32
	flight []*dma.Buf
	n      atomic.Uint64

	mu     sync.Mutex
	frames [][]byte
	bursts []int
}

// heap is DMA memory that is Go's own.
type heap struct{}

func (heap) Alloc(r bus.DMARequest) (*bus.Memory, error) {
	return bus.NewMemory(make([]byte, r.Size), 1<<20, func() {}), nil
}
func (heap) Map([]byte, bus.DMARequest) (*bus.Memory, error) { return nil, bus.ErrNotSupported }

func (q *sinkQueue) NewPool(n int) (*dma.Pool, error) {
	return dma.NewPool(heap{}, n, q.dev.bufLen, bus.ToDevice)
}

// NewPoolOf makes the usual pool of a device that has no others.
func (q *sinkQueue) NewPoolOf(n, size int) (*dma.Pool, error) {
	if !q.dev.sized {
		return q.NewPool(n)
	}
	return dma.NewPool(heap{}, n, size, bus.ToDevice)
}

func (q *sinkQueue) enter() {
	if q.inUse.Add(1) != 1 {
		panic("a transmit queue used by two goroutines at once")
	}
}

func (q *sinkQueue) leave() { q.inUse.Add(-1) }

func (q *sinkQueue) Burst(bufs []*dma.Buf) int {
	q.enter()
	defer q.leave()
	if q.stuck.Load() {
		return 0
	}
	n := len(bufs)
	if q.limit > 0 {
		n = min(n, q.limit)
	}
	if q.hold {
		if len(q.flight) > q.dev.ring/2 {
			q.free(len(q.flight) / 2)
		}
		n = min(n, q.dev.ring-len(q.flight))
	}
	if q.keep != 0 {
		q.record(bufs[:n])
	}
	q.n.Add(uint64(n))
	if q.hold {
		q.flight = append(q.flight, bufs[:n]...)
		return n
	}
	for _, b := range bufs[:n] {
		b.Free()
	}
	return n
}

func (q *sinkQueue) record(bufs []*dma.Buf) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(bufs) > 0 {
		q.bursts = append(q.bursts, len(bufs))
	}
	for _, b := range bufs {
		if q.keep < 0 || len(q.frames) < q.keep {
			q.frames = append(q.frames, bytes.Clone(b.Data))
		}
	}
}

func (q *sinkQueue) free(n int) {
	for _, b := range q.flight[:n] {
		b.Free()
	}
	q.flight = append(q.flight[:0], q.flight[n:]...)
}

func (q *sinkQueue) Reap() int {
	q.enter()
	defer q.leave()
	if q.hold && !q.stuck.Load() {
		q.free(min(len(q.flight), 8))
	}
	return len(q.flight)
}

func (q *sinkQueue) Drain(ctx context.Context) error {
	q.enter()
	defer q.leave()
	if at, ok := ctx.Deadline(); ok {
		q.patience.Store(int64(time.Until(at)))
	}
	if q.stuck.Load() {
		<-ctx.Done()
		return ctx.Err()
	}
	q.free(len(q.flight))
	return nil
}

func (q *sinkQueue) SetCredit(func(uint64) int) {}

// got returns the recorded frames, decoded.
func (q *sinkQueue) got(t *testing.T) []frame.Packet {
	t.Helper()
	q.mu.Lock()
	defer q.mu.Unlock()
	ps := make([]frame.Packet, len(q.frames))
	for i, b := range q.frames {
		p, err := frame.Decode(b)
		if err != nil {
			t.Fatalf("frame %d: %v\n%x", i, err, b)
		}
		ps[i] = p
	}
	return ps
}

// bench is an engine with devices to write at.
type bench struct {
	t testing.TB
	e *Engine
	s map[string]*sink
}

func newBench(t testing.TB, cpus []int, devs ...*sink) *bench {
	t.Helper()
	return newBenchOf(t, Config{CPUs: cpus}, devs...)
}

// newBenchOf is a bench whose Lookup finds devs.
func newBenchOf(t testing.TB, c Config, devs ...*sink) *bench {
	t.Helper()
	b := &bench{t: t, s: map[string]*sink{}}
	for _, s := range devs {
		b.s[s.name] = s
	}
	c.Lookup = func(name string) (netdev.Device, error) {
		if name == "down0" {
			return nil, unix.ENETDOWN
		}
		if s := b.s[name]; s != nil {
			return s, nil
		}
		return nil, unix.ENODEV
	}
	e, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	b.e = e
	return b
}

// oneDevice is eth0 on kpktgend_0.
func oneDevice(t testing.TB) (*bench, *sink) {
	t.Helper()
	s := newSink("eth0")
	s.queues[0].keep = -1
	b := newBench(t, []int{0}, s)
	b.ok("kpktgend_0", "add_device eth0")
	return b, s
}

// write is one write(2); it returns the errno.
func (b *bench) write(file, text string) unix.Errno {
	b.t.Helper()
	f := b.file(file)
	n, err := f.Write(b.t.Context(), []byte(text))
	if err != nil {
		errno, isErrno := err.(unix.Errno)
		if !isErrno || n != 0 {
			b.t.Fatalf("writing %q to %s: %d, %v, want 0 and an errno", text, file, n, err)
		}
		return errno
	}
	if n != len(text) {
		b.t.Fatalf("writing %q to %s: %d bytes taken, want %d", text, file, n, len(text))
	}
	return 0
}

func (b *bench) ok(file string, texts ...string) {
	b.t.Helper()
	for _, text := range texts {
		if errno := b.write(file, text); errno != 0 {
			b.t.Fatalf("writing %q to %s: %v", text, file, errno)
		}
	}
}

func (b *bench) file(name string) *fileNode {
	b.t.Helper()
	f, isFile := b.e.Dir().Lookup(name).(*fileNode)
	if !isFile {
		b.t.Fatalf("no file %s", name)
	}
	return f
}

func (b *bench) read(file string) string {
	b.t.Helper()
	p, err := b.file(file).ReadAll()
	if err != nil {
		b.t.Fatalf("reading %s: %v", file, err)
	}
	return string(p)
}

// dev is the device behind a file.
func (b *bench) dev(name string) *device {
	b.t.Helper()
	for _, t := range b.e.threads {
		t.mu.Lock()
		devs := t.devs
		t.mu.Unlock()
		for _, d := range devs {
			if d.name == name {
				return d
			}
		}
	}
	b.t.Fatalf("no device %s", name)
	return nil
}

func (b *bench) result(name string) string {
	d := b.dev(name)
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.result
}

// run starts everything and fails if it does not end by itself.
func (b *bench) run() {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), 20*time.Second)
	defer cancel()
	if n, err := b.file("pgctrl").Write(ctx, []byte("start\n")); n != 6 || err != nil {
		b.t.Fatalf("start = %d, %v, want 6, nil", n, err)
	}
	if ctx.Err() != nil {
		b.t.Fatalf("the run did not end: sent so far %v", b.s)
	}
}
