package netdev

import (
	"context"
	"math"
	"sync"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/dma"
)

// line is a transmit queue whose device sends at a rate of its own: so many bytes each time that tick is called.
type line struct {
	ring  int
	mu    sync.Mutex
	queue []*dma.Buf
	done  []*dma.Buf // sent, not freed
	left  int
	// ticked are all bytes that could have been sent.
	ticked int
	sent   func(b *dma.Buf)
}

func (l *line) NewPool(n int) (*dma.Pool, error) {
	return dma.NewPool(heap{}, n, dma.BufSize, bus.ToDevice)
}

func (l *line) Burst(bufs []*dma.Buf) int {
	l.Reap()
	l.mu.Lock()
	defer l.mu.Unlock()
	n := min(len(bufs), l.ring-len(l.queue))
	l.queue = append(l.queue, bufs[:n]...)
	return n
}

func (l *line) Reap() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	dma.FreeAll(l.done)
	l.done = l.done[:0]
	return len(l.queue)
}

func (l *line) Drain(context.Context) error     { return nil }
func (l *line) SetCredit(func(sent uint64) int) {}

func (l *line) tick(bytes int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ticked += bytes
	for l.left += bytes; len(l.queue) > 0 && l.left >= len(l.queue[0].Data); {
		b := l.queue[0]
		l.left -= len(b.Data)
		if l.sent != nil {
			l.sent(b)
		}
		l.queue = l.queue[1:]
		l.done = append(l.done, b)
	}
	if len(l.queue) == 0 {
		l.left = 0
	}
}

// lined is a device with such a queue.
type lined struct {
	*dev
	l *line
}

func (d *lined) Info() Info { return Info{Name: "eth0", TxQueues: 1, TxRing: d.l.ring} }
func (d *lined) Tx(q int) TxQueue {
	if q != 0 {
		return nil
	}
	return d.l
}
func (d *lined) Link() Link { return Link{Up: true, Speed: 1000, FullDuplex: true} }

// shared is a share and what its clients send.
type shared struct {
	t *testing.T
	l *line
	s *Share
}

func newShared(t *testing.T) *shared {
	t.Helper()
	l := &line{ring: 256}
	s, err := NewShare(&lined{newDev("eth0"), l})
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	s.queues[0].clock = func() time.Time { // by what the line has carried, at 1000 Mb/s
		l.mu.Lock()
		defer l.mu.Unlock()
		return start.Add(time.Duration(l.ticked) * 8)
	}
	return &shared{t, l, s}
}

// sender sends frames of one size as long as there is room.
type sender struct {
	q     TxQueue
	pool  *dma.Pool
	size  int
	burst int
	have  []*dma.Buf
	bytes int
}

func (x *shared) sender(c *Client, size, burst int) *sender {
	x.t.Helper()
	q := c.Tx(0)
	p, err := NewTxPool(q, 1024, size)
	if err != nil {
		x.t.Fatal(err)
	}
	x.t.Cleanup(p.Close)
	return &sender{q: q, pool: p, size: size, burst: burst}
}

// try sends one burst, or what there was of the last one.
func (s *sender) try() int {
	if s.pool.Free() == 0 {
		s.q.Reap()
	}
	for len(s.have) < s.burst {
		b := s.pool.Get()
		if b == nil {
			break
		}
		b.Data, b.Tag = b.Mem[:s.size], uint32(s.size)
		s.have = append(s.have, b)
	}
	n := s.q.Burst(s.have)
	s.have = append(s.have[:0], s.have[n:]...)
	s.bytes += n * s.size
	return n
}

// TestShareWeights has greedy clients, with frames and bursts of all kinds, on a line that is slower than they are: they get what their weights
// say. Each asks as often as it likes, in whatever order.
func TestShareWeights(t *testing.T) {
	for _, c := range []struct {
		weights, sizes, bursts, tries []int
	}{
		{[]int{1, 1}, []int{60, 1514}, []int{32, 1}, []int{10, 10}},
		{[]int{1, 3}, []int{1514, 1514}, []int{64, 64}, []int{1, 1}},
		{[]int{1, 1}, []int{1514, 1514}, []int{64, 1}, []int{10, 3}},
		{[]int{5, 1}, []int{60, 1000}, []int{1, 64}, []int{200, 7}},
		{[]int{2, 3, 5}, []int{300, 1514, 60}, []int{16, 8, 64}, []int{3, 1, 2}},
	} {
		x := newShared(t)
		var clients []*sender
		total := 0
		for i, w := range c.weights {
			clients = append(clients, x.sender(x.s.Client("c", w), c.sizes[i], c.bursts[i]))
			total += w
		}
		for x.l.tick(0); ; x.l.tick(3000) {
			sum := 0
			for i, s := range clients {
				for range c.tries[i] {
					s.try()
				}
				sum += s.bytes
			}
			if sum > 8e6 {
				for i, s := range clients {
					want := float64(sum) * float64(c.weights[i]) / float64(total)
					if math.Abs(float64(s.bytes)-want) > 0.05*want {
						t.Errorf("weights %v, sizes %v, bursts %v, tries %v: client %d sent %d of %d bytes, want %.0f", c.weights, c.sizes, c.bursts, c.tries, i, s.bytes, sum, want)
					}
				}
				break
			}
		}
		for _, f := range x.s.Figures() {
			if f.Bytes == 0 || f.Frames == 0 || f.Waited+f.Full == 0 {
				t.Errorf("figures %+v", f)
			}
		}
		x.drain(clients)
	}
}

// drain sends what is left, and looks whether every buffer came back.
func (x *shared) drain(clients []*sender) {
	x.t.Helper()
	for i, s := range clients {
		dma.FreeAll(s.have)
		s.have = nil
		for s.q.Reap() > 0 {
			x.l.tick(1e6)
		}
		if free := s.pool.Free(); free != s.pool.Len() {
			x.t.Errorf("client %d: %d of %d buffers came back", i, free, s.pool.Len())
		}
	}
}

// TestSharePolite has a client that sends a frame now and then beside a greedy one: it is never refused, and what leaves before its frame is bounded.
func TestSharePolite(t *testing.T) {
	x := newShared(t)
	greedy, polite := x.sender(x.s.Client("greedy", 1), 1514, 64), x.sender(x.s.Client("polite", 1), 100, 1)
	before, worst := 0, 0
	x.l.sent = func(b *dma.Buf) {
		if b.Tag == 100 {
			worst, before = max(worst, before), 0
		} else {
			before += len(b.Data)
		}
	}
	polite.try() // it is known; before that a ring may be full
	sent := 0
	for i := range 20000 {
		greedy.try()
		if i%50 == 49 {
			x.l.mu.Lock()
			before = 0
			x.l.mu.Unlock()
			if polite.try() != 1 {
				t.Fatalf("the polite client was refused, in turn %d", i)
			}
			sent++
		}
		x.l.tick(2000)
	}
	// A ms of the link's speed, by its half of the weights, and a burst.
	if limit := 125*1000/2 + 125*100 + 1514; worst > limit || sent != 400 {
		t.Errorf("up to %d bytes left before a frame of the polite client, want at most %d; %d frames", worst, limit, sent)
	}
	// It does not keep the greedy one from sending: the line was never idle.
	if greedy.bytes < 19000*2000 {
		t.Errorf("the greedy client sent %d bytes of %d", greedy.bytes, 20000*2000)
	}
	x.drain([]*sender{greedy, polite})
}

// TestShareGone has a client that waits, and never asks again; and one that is closed. The other goes on.
func TestShareGone(t *testing.T) {
	for _, closes := range []bool{false, true} {
		x := newShared(t)
		c := x.s.Client("gone", 1)
		gone, stays := x.sender(c, 1514, 64), x.sender(x.s.Client("stays", 1), 1514, 64)
		for range 1000 {
			gone.try()
			stays.try()
			x.l.tick(3000)
		}
		for gone.try() > 0 { // until it waits
		}
		if closes {
			c.Close()
			c.Close()
			if gone.try() != 0 {
				t.Error("a closed client sends")
			}
		}
		from := stays.bytes
		for range 1000 {
			stays.try()
			x.l.tick(3000)
		}
		if got := stays.bytes - from; got < 1000*3000*9/10 {
			t.Errorf("closed %v: beside one that does not ask any more a client sent %d bytes, want nearly %d", closes, got, 1000*3000)
		}
		if n := len(x.s.Figures()); closes && n != 1 || !closes && n != 2 {
			t.Errorf("closed %v: %d clients", closes, n)
		}
		x.drain([]*sender{gone, stays})
	}
}

// TestShareThreads has clients in goroutines of their own: buffers come back to their pools, whoever reaps, and nobody starves.
func TestShareThreads(t *testing.T) {
	bustest.NoLeaks(t)
	x := newShared(t)
	stop := make(chan struct{})
	var wg, ticker sync.WaitGroup
	ticker.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				x.l.tick(5000)
			}
		}
	})
	var clients []*sender
	for i := range 3 {
		s := x.sender(x.s.Client("c", 1), 60+500*i, 32)
		clients = append(clients, s)
		wg.Go(func() {
			for end := time.Now().Add(20 * time.Second); s.bytes < 1e6; {
				if s.try() == 0 {
					time.Sleep(10 * time.Microsecond)
					if time.Now().After(end) {
						t.Errorf("client %d sent %d bytes within 20 s", i, s.bytes)
						return
					}
				}
			}
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			if err := s.q.Drain(ctx); err != nil {
				t.Errorf("client %d: draining: %v", i, err)
			}
		})
	}
	wg.Wait()
	close(stop)
	ticker.Wait()
	x.drain(clients)
	if d := x.s.clients[0].Device(); d.Tx(0) != x.s.clients[0].Tx(0) || d.Tx(1) != nil || d.Info().Name != "eth0" {
		t.Error("the device of a client is another")
	}
}

// BenchmarkShare is what a client that is alone pays for each burst.
func BenchmarkShare(b *testing.B) {
	for _, kind := range []string{"own", "shared"} {
		b.Run(kind, func(b *testing.B) {
			l := &line{ring: 256}
			var q TxQueue = l
			if kind == "shared" {
				s, err := NewShare(&lined{newDev("eth0"), l})
				if err != nil {
					b.Fatal(err)
				}
				q = s.Client("c", 1).Tx(0)
			}
			p, err := q.NewPool(256)
			if err != nil {
				b.Fatal(err)
			}
			bufs := make([]*dma.Buf, 32)
			for b.Loop() {
				n := p.GetAll(bufs)
				for _, x := range bufs[:n] {
					x.Data = x.Mem[:60]
				}
				q.Burst(bufs[:n])
				l.tick(1e6)
				q.Reap()
			}
		})
	}
}
