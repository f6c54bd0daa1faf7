package netdev

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/internal/node"
	"github.com/ring3dev/ring3/sysfs"
)

// far models a receiver: a ring of size-1 descriptors, frames that are delivered at once, a
// program that takes them, and a refill that lags behind.
type far struct {
	size, posted, used, taken uint64
	reads, lost               int
}

func (f *far) Burst([]*dma.Buf) int       { return 0 }
func (f *far) Wait(context.Context) error { return nil }
func (f *far) Posted() uint64             { return f.posted }
func (f *far) Free() int                  { f.reads++; return int(f.posted - f.used) }

func (f *far) deliver() {
	if f.used == f.posted {
		f.lost++
		return
	}
	f.used++
}

func newFar(size uint64) *far { return &far{size: size, posted: size - 1} }

// take lets the program take some, and refills in chunks.
func (f *far) take(rnd *rand.Rand) {
	f.taken += uint64(rnd.IntN(int(f.used-f.taken) + 1))
	if free := f.taken + f.size - 1 - f.posted; free >= f.size/8 {
		f.posted += free
	}
}

// TestCredit runs a sender against the model: nothing is ever lost, whatever is filtered
// and however the receiver lags, and the sender is never stuck.
func TestCredit(t *testing.T) {
	for seed := range uint64(50) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		size := uint64(64) << rnd.IntN(7)
		f := newFar(size)
		now := time.Unix(0, 0)
		c := newCredit(f)
		c.now = func() time.Time { return now }
		sent, stuck := uint64(0), 0
		for sent < 50*size {
			now = now.Add(time.Duration(rnd.IntN(50)) * time.Microsecond)
			n := c.avail(sent)
			if n < 0 || uint64(n) > size-1 {
				t.Fatalf("seed %d: avail = %d with a ring of %d", seed, n, size)
			}
			n = min(n, 1+rnd.IntN(64))
			for range n {
				if rnd.IntN(4) != 0 { // else filtered
					f.deliver()
				}
			}
			sent += uint64(n)
			f.take(rnd)
			if stuck++; n > 0 {
				stuck = 0
			}
			if stuck > 10000 {
				t.Fatalf("seed %d: stuck after %d frames", seed, sent)
			}
		}
		if f.lost > 0 {
			t.Errorf("seed %d: %d frames lost", seed, f.lost)
		}
		if most := int(now.Sub(time.Unix(0, 0))/resyncEvery) + 2; f.reads > most {
			t.Errorf("seed %d: the far end was asked %d times, want at most %d", seed, f.reads, most)
		}
	}
}

// dev is a device without queues, whose state a test sets.
type dev struct {
	link  Link
	stats Stats
	done  chan struct{}
	info  Info
	tx    *tx
	rx    RxQueue
}

type tx struct {
	TxQueue
	credit  func(uint64) int
	maxSegs int
}

func (q *tx) SetMaxSegs(n int) { q.maxSegs = n }

func (q *tx) SetCredit(f func(uint64) int) { q.credit = f }

func newDev(name string) *dev {
	return &dev{done: make(chan struct{}), tx: &tx{}, rx: &far{}, info: Info{Name: name, Driver: "e1000", Model: "82574L", TxQueues: 1, RxQueues: 1, TxRing: 256, RxRing: 256}}
}

func (d *dev) Info() Info            { return d.info }
func (d *dev) MAC() net.HardwareAddr { return net.HardwareAddr{0x52, 0x54, 0, 0x12, 0x34, 0x56} }
func (d *dev) MTU() int              { return 1500 }
func (d *dev) Link() Link            { return d.link }
func (d *dev) Stats() Stats          { return d.stats }
func (d *dev) Tx(q int) TxQueue      { return d.tx }
func (d *dev) Rx(q int) RxQueue      { return d.rx }
func (d *dev) Done() <-chan struct{} { return d.done }
func (d *dev) Err() error            { return nil }

func TestWire(t *testing.T) {
	a, b := newDev("eth0"), newDev("eth1")
	if err := Wire(a, b); err != nil || a.tx.credit == nil || b.tx.credit == nil {
		t.Errorf("Wire = %v, credit %t and %t", err, a.tx.credit != nil, b.tx.credit != nil)
	}
	Unwire(a, b)
	if a.tx.credit != nil || b.tx.credit != nil {
		t.Error("Unwire left credit")
	}
	if err := Wire(a, a); !errors.Is(err, bus.ErrNotSupported) {
		t.Errorf("Wire to itself = %v, want %v", err, bus.ErrNotSupported)
	}
	b.info.RxQueues = 2
	if err := Wire(a, b); err != nil || a.tx.credit == nil || b.tx.credit == nil || a.tx.maxSegs != 192 {
		t.Errorf("Wire of two queues = %v, at most %d segments, want 192", err, a.tx.maxSegs)
	}
	b.info.RxQueues = 0
	if err := Wire(a, b); !errors.Is(err, bus.ErrNotSupported) || !strings.Contains(err.Error(), "eth1") {
		t.Errorf("Wire of no queue = %v, want %v", err, bus.ErrNotSupported)
	}
}

// plain makes one kind of pool, sized makes others.
type plain struct{ tx }

func (plain) NewPool(n int) (*dma.Pool, error) {
	return dma.NewPool(heap{}, n, dma.BufSize, bus.ToDevice)
}

type sized struct{ plain }

func (sized) NewPoolOf(n, size int) (*dma.Pool, error) {
	return dma.NewStaggered(heap{}, n, size, bus.ToDevice)
}

func TestNewTxPool(t *testing.T) {
	for _, c := range []struct {
		q          TxQueue
		size, want int
	}{
		{&plain{}, 60, dma.BufSize}, {&sized{}, 60, 60}, {&sized{}, dma.BufSize, dma.BufSize}, {&sized{}, dma.BufSize + 1, dma.BufSize + 1}, {&sized{}, MaxGSO, MaxGSO}, {&sized{}, MaxGSO + headroom + 1, dma.BufSize}, {&plain{}, MaxGSO, dma.BufSize}, {&sized{}, 0, dma.BufSize},
	} {
		p, err := NewTxPool(c.q, 3, c.size)
		if err != nil {
			t.Fatal(err)
		}
		if p.Len() != 3 || p.BufSize() != c.want {
			t.Errorf("NewTxPool(%T, 3, %d) : buffers of %d, %v, want %d", c.q, c.size, p.BufSize(), err, c.want)
		}
	}
}

// TestProcHeader compares with the kernel's own file.
func TestProcHeader(t *testing.T) {
	b, err := os.ReadFile("/proc/net/dev")
	if err != nil {
		t.Skip("no /proc/net/dev to compare with: ", err)
	}
	if !bytes.HasPrefix(b, []byte(ProcHeader)) {
		t.Errorf("ProcHeader = %q, the kernel has %q", ProcHeader, b[:min(len(b), len(ProcHeader))])
	}
	// Each of the kernel's lines comes out again from its own numbers.
	for _, line := range strings.SplitAfter(strings.TrimPrefix(string(b), ProcHeader), "\n") {
		name, rest, ok := strings.Cut(line, ":")
		if !ok {
			continue
		}
		var s Stats
		if _, err := fmt.Sscan(rest, &s.RxBytes, &s.RxPackets, &s.RxErrors, &s.RxDropped, &s.RxFIFOErrors, &s.RxFrameErrors, &s.RxCompressed, &s.Multicast,
			&s.TxBytes, &s.TxPackets, &s.TxErrors, &s.TxDropped, &s.TxFIFOErrors, &s.Collisions, &s.TxCarrierErrors, &s.TxCompressed); err != nil {
			t.Errorf("%q: %v", line, err)
			continue
		}
		var w bytes.Buffer
		if ProcLine(&w, strings.TrimSpace(name), s); w.String() != line {
			t.Errorf("ProcLine = %q, the kernel has %q", w.String(), line)
		}
	}
}

func TestProcLine(t *testing.T) {
	d := newDev("eth0")
	d.stats = Stats{
		RxPackets: 1, TxPackets: 2, RxBytes: 3, TxBytes: 4, RxErrors: 5, TxErrors: 6, RxDropped: 7, TxDropped: 8, Multicast: 9, Collisions: 10,
		RxLengthErrors: 100, RxOverErrors: 200, RxCRCErrors: 300, RxFrameErrors: 400, RxFIFOErrors: 15, RxMissedErrors: 16,
		TxAbortedErrors: 1000, TxCarrierErrors: 2000, TxFIFOErrors: 19, TxHeartbeatErrors: 3000, TxWindowErrors: 4000, RxCompressed: 22, TxCompressed: 23,
	}
	got, err := ProcNetDev(func() []Device { return []Device{d} }).ReadAll()
	want := ProcHeader + "  eth0:       3       1    5   23   15  1000         22         9        4       2    6    8   19    10   10000         23\n"
	if err != nil || string(got) != want {
		t.Errorf("/proc/net/dev = %q, %v, want %q", got, err, want)
	}
}

// cat reads an attribute below dir.
func cat(t *testing.T, dir *sysfs.Dir, path string) (string, error) {
	t.Helper()
	n, err := dir.Walk(path)
	if err != nil {
		return "", err
	}
	f, ok := n.(*node.File)
	if !ok {
		t.Fatalf("%s is a %T, want a file", path, n)
	}
	b, err := f.ReadAll()
	return string(b), err
}

func TestClassDir(t *testing.T) {
	d := newDev("eth0")
	d.stats.RxPackets = 1 << 40
	dir := ClassDir(d, ClassOptions{Device: "../../../1000:00:03.0", Subsystem: "../../../../../class/net", IfIndex: 7})
	check := func(state string, want map[string]string) {
		t.Helper()
		for f, w := range want {
			got, err := cat(t, dir, f)
			if w == "EINVAL" {
				if node.Errno(err) != syscall.EINVAL {
					t.Errorf("%s: %s = %q, %v, want EINVAL", state, f, got, err)
				}
				continue
			}
			if err != nil || got != w {
				t.Errorf("%s: %s = %q, %v, want %q", state, f, got, err, w)
			}
		}
	}
	check("no carrier", map[string]string{"carrier": "0\n", "speed": "-1\n", "duplex": "unknown\n", "operstate": "down\n"})
	d.link = Link{Up: true, Speed: 1000, FullDuplex: true}
	check("up", map[string]string{
		"carrier": "1\n", "speed": "1000\n", "duplex": "full\n", "operstate": "up\n", "address": "52:54:00:12:34:56\n", "addr_len": "6\n",
		"broadcast": "ff:ff:ff:ff:ff:ff\n", "mtu": "1500\n", "type": "1\n", "flags": "0x1003\n", "dev_id": "0x0\n", "dev_port": "0\n", "dormant": "0\n",
		"ifindex": "7\n", "iflink": "7\n", "link_mode": "0\n", "tx_queue_len": "1000\n", "uevent": "INTERFACE=eth0\nIFINDEX=7\n",
		"statistics/rx_packets": "1099511627776\n", "statistics/tx_window_errors": "0\n",
	})
	d.link.FullDuplex = false
	check("half duplex", map[string]string{"duplex": "half\n"})
	close(d.done)
	check("gone", map[string]string{"carrier": "EINVAL", "speed": "EINVAL", "duplex": "EINVAL", "dormant": "EINVAL", "operstate": "down\n", "flags": "0x1002\n"})

	for link, want := range map[string]string{"device": "../../../1000:00:03.0", "subsystem": "../../../../../class/net"} {
		if l, ok := dir.Lookup(link).(*node.Link); !ok || l.Target != want {
			t.Errorf("%s = %v, want a link to %s", link, dir.Lookup(link), want)
		}
	}
	if got := fmt.Sprint(dir.MkdirAll("queues").Names()); got != "[rx-0 tx-0]" {
		t.Errorf("queues has %s, want [rx-0 tx-0]", got)
	}
	bare := ClassDir(d, ClassOptions{})
	for _, f := range []string{"device", "subsystem", "ifindex", "iflink"} {
		if bare.Lookup(f) != nil {
			t.Errorf("%s is there without being known", f)
		}
	}
	if got, _ := cat(t, bare, "uevent"); got != "INTERFACE=eth0\n" {
		t.Errorf("uevent = %q, want INTERFACE=eth0", got)
	}
}

// TestClassNames holds our names against those of a real interface of this machine.
func TestClassNames(t *testing.T) {
	dir := ClassDir(newDev("eth0"), ClassOptions{Device: "x", Subsystem: "y", IfIndex: 1})
	for _, sub := range []string{"", "statistics"} {
		real, err := os.ReadDir("/sys/class/net/lo/" + sub)
		if err != nil {
			t.Skip("no /sys/class/net/lo to compare with: ", err)
		}
		have := map[string]bool{"device": true} // lo has none
		for _, e := range real {
			have[e.Name()] = true
		}
		for _, n := range dir.MkdirAll(sub).Names() {
			if !have[n] {
				t.Errorf("the kernel has no %s/%s", sub, n)
			}
			delete(have, n)
		}
		if sub != "" && len(have) > 1 {
			t.Errorf("%s lacks %v", sub, have)
		}
	}
}

// script is a receive queue that follows a list of bursts.
type script struct {
	far
	pool   *dma.Pool
	bursts []int // 0: nothing there; Wait moves on
	waits  atomic.Int32
	end    error
}

func (s *script) Burst(bufs []*dma.Buf) int {
	if len(bufs) == 0 || len(s.bursts) == 0 || s.bursts[0] == 0 {
		return 0
	}
	n := min(len(bufs), s.bursts[0])
	if s.bursts[0] -= n; s.bursts[0] == 0 {
		s.bursts = s.bursts[1:]
	}
	for i := range n {
		bufs[i] = s.pool.Get()
		bufs[i].Data = bufs[i].Mem[:60]
	}
	return n
}

func (s *script) Wait(ctx context.Context) error {
	s.waits.Add(1)
	if len(s.bursts) == 0 {
		if s.end == nil {
			<-ctx.Done()
			return ctx.Err()
		}
		return s.end
	}
	s.bursts = s.bursts[1:]
	return nil
}

type heap struct{}

func (heap) Alloc(r bus.DMARequest) (*bus.Memory, error) {
	return bus.NewMemory(make([]byte, r.Size), 0, func() {}), nil
}
func (heap) Map([]byte, bus.DMARequest) (*bus.Memory, error) { return nil, bus.ErrNotSupported }

func TestSink(t *testing.T) {
	gone := fmt.Errorf("eth0: %w", bus.ErrGone)
	for _, c := range []struct{ end, want error }{{nil, nil}, {bus.ErrClosed, nil}, {gone, gone}} {
		pool, err := dma.NewPool(heap{}, Budget, 64, bus.FromDevice)
		if err != nil {
			t.Fatal(err)
		}
		d := newDev("eth0")
		q := &script{pool: pool, bursts: []int{200, 0, 5, 0, 1}, end: c.end}
		d.rx = q
		s, err := NewSink(d)
		if err != nil {
			t.Fatal(err)
		}
		var tapped, watched atomic.Int32
		s.SetTap(func(f []byte) { tapped.Add(int32(len(f))) })
		s.Watch(func(fs []*dma.Buf) {
			for _, f := range fs {
				watched.Add(int32(len(f.Data)))
			}
		})
		for end := time.Now().Add(20 * time.Second); s.Frames() < 206; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%d frames, want 206", s.Frames())
			}
		}
		s.SetTap(nil)
		s.Watch(nil)
		if c.end != nil {
			<-s.Done()
		}
		if err := s.Close(); err != c.want {
			t.Errorf("Close after %v = %v, want %v", c.end, err, c.want)
		}
		if s.Bytes() != 206*60 || pool.Free() != pool.Len() || tapped.Load()%60 != 0 || watched.Load()%60 != 0 {
			t.Errorf("%d bytes, %d of %d buffers free, %d tapped, %d watched", s.Bytes(), pool.Free(), pool.Len(), tapped.Load(), watched.Load())
		}
		if got := q.waits.Load(); got != 3 {
			t.Errorf("%d sleeps, want 3", got)
		}
	}
}
