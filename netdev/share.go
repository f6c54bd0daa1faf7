package netdev

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/dma"
)

// Share lets several clients send by one device: pktgen and a TAP, say. Each has the device's transmit queues to itself, as it seems: what
// it is given is a [TxQueue] that belongs to one goroutine of its own, with pools of its own. Who sends is decided by bytes.
//
// # Who may send
//
// Where there is room for all, all send. Else each client's bytes count, divided by its weight; one that is ahead of another that
// waits, by more than a burst (100 us of the link's speed, two frames at least), is refused until that has sent, or has not asked
// again for a while. So clients that always have something to send get what their weights say, and one that has little to send is served at once,
// as if it were alone. What a client did not use while it had nothing to send is gone.
//
// A ring that is full of somebody's frames would hold up everybody else's. So, while others send at all, a client's frames that
// are in flight are no more than 1 ms of the link's speed, by its part of all weights. That, and a burst of each of the others, is how long a frame of a
// polite client waits.
//
// A client that is alone, or has been for a while, pays for a lock that nobody else holds.
//
// # What is counted
//
// A client that was refused and does not ask again, since it died or thought better of it, holds up others for 2 ms. Who sends without being
// refused does not look at the clock: how long ago a client sent is counted in bursts. A frame that the device cuts up counts as it was given.
type Share struct {
	dev    Device
	queues []*shareQueue

	mu      sync.Mutex // guards clients
	clients []*Client
}

// Client is one sender of a Share.
type Client struct {
	share  *Share
	name   string
	weight uint64
	queues []*clientQueue
	closed atomic.Bool
}

// ShareFigures are what one client did.
type ShareFigures struct {
	Client  string `json:"client"`
	Weight  uint64 `json:"weight"`
	Frames  uint64 `json:"frames"`
	Bytes   uint64 `json:"bytes"`
	Waited  uint64 `json:"waited"`  // bursts that were refused, or cut short, for the sake of others
	Full    uint64 `json:"full"`    // bursts that the device had no room for
	Credits int64  `json:"credits"` // bytes it may send before those that wait now; negative: it is ahead
}

// NewShare shares the transmit queues of a device, which belong to it from now on.
func NewShare(d Device) (*Share, error) {
	s := &Share{dev: d}
	for i := range d.Info().TxQueues {
		q := d.Tx(i)
		if q == nil {
			break
		}
		s.queues = append(s.queues, &shareQueue{dev: d, q: q, clock: time.Now})
	}
	if len(s.queues) == 0 {
		return nil, fmt.Errorf("sharing %s: no transmit queue: %w", d.Info().Name, bus.ErrNotSupported)
	}
	return s, nil
}

// MaxShare is the largest weight.
const MaxShare = 1000

// Client adds a sender. Its weight is what it gets beside others, 1 to MaxShare.
func (s *Share) Client(name string, weight int) *Client {
	c := &Client{share: s, name: name, weight: uint64(min(max(weight, 1), MaxShare))}
	for _, q := range s.queues {
		c.queues = append(c.queues, &clientQueue{share: q, weight: c.weight})
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clients = append(s.clients, c)
	for i, q := range s.queues {
		q.add(c.queues[i])
	}
	return c
}

// Figures are what the clients did, in the order in which they came.
func (s *Share) Figures() []ShareFigures {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []ShareFigures
	for _, c := range s.clients {
		f := ShareFigures{Client: c.name, Weight: c.weight}
		for _, q := range c.queues {
			f.Frames += q.frames.Load()
			f.Bytes += q.bytes.Load()
			f.Waited += q.waited.Load()
			f.Full += q.full.Load()
			f.Credits += q.share.credits(q)
		}
		out = append(out, f)
	}
	return out
}

// Name is the client's.
func (c *Client) Name() string { return c.name }

// Tx is the client's view of a queue; nil if there is no such queue.
func (c *Client) Tx(q int) TxQueue {
	if q < 0 || q >= len(c.queues) {
		return nil
	}
	return c.queues[q]
}

// Device is the device as the client sees it: with its transmit queues, and nothing that is not in Device.
func (c *Client) Device() Device { return sharedDevice{c.share.dev, c} }

type sharedDevice struct {
	Device
	c *Client
}

func (d sharedDevice) Tx(q int) TxQueue { return d.c.Tx(q) }

// Close takes the client away: nobody waits for it any more. Its frames that are in flight are sent; its queues take nothing from now on, but can
// be reaped. It is idempotent.
func (c *Client) Close() {
	if c.closed.Swap(true) {
		return
	}
	s := c.share
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, o := range s.clients {
		if o == c {
			s.clients = append(s.clients[:i:i], s.clients[i+1:]...)
			break
		}
	}
	for i, q := range s.queues {
		q.remove(c.queues[i])
	}
}

const (
	shareBurst   = 100  // us of the link's speed that a client may be ahead
	shareFlight  = 1000 // us of the link's speed that may be in flight of all, where there are several
	shareRecent  = 1 << 14
	shareIdle    = 256                  // bursts of the queue after which a client was idle
	shareLag     = 4                    // how often what it may be ahead a client may be behind: what it did not use beyond that is gone
	sharePatient = 2 * time.Millisecond // for one that was refused and does not ask again
	sharePrecise = 8                    // bits of a virtual byte behind the point
	minShare     = 2 * 1518
)

// shareQueue is one transmit queue of the device.
type shareQueue struct {
	dev   Device
	clock func() time.Time

	mu      sync.Mutex // guards all below, and what of clientQueue is not atomic
	q       TxQueue
	clients []*clientQueue
	weights uint64 // of all
	most    uint64 // the largest of them
	turn    uint64 // bursts so far
	speed   int    // Mb/s, as it was last
	ahead   uint64 // virtual bytes that one client may be ahead of another
	now     uint64 // virtual time: where who was served last stood
	flight  []flightRun
}

// flightRun is some frames of one client, which are in the ring behind those before.
type flightRun struct {
	c      *clientQueue
	frames int
	bytes  uint64
}

// clientQueue is a client's view of it.
type clientQueue struct {
	share  *shareQueue
	weight uint64

	wants   atomic.Bool // it waits for the lock
	backlog bool        // it was refused something, and will ask again
	asked   time.Time   // when it was refused last, for backlog
	virtual uint64      // bytes that it sent, divided by its weight
	last    uint64      // turn in which it asked last
	closed  bool

	inFrames int // in flight, at most
	inBytes  uint64

	frames, bytes, waited, full atomic.Uint64
}

func (s *shareQueue) add(c *clientQueue) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.virtual = s.now
	s.clients = append(s.clients, c)
	s.weigh()
}

func (s *shareQueue) remove(c *clientQueue) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.closed, c.backlog = true, false
	for i, o := range s.clients {
		if o == c {
			s.clients = append(s.clients[:i:i], s.clients[i+1:]...)
			break
		}
	}
	s.weigh()
}

// weigh adds the weights up. Called with mu held.
func (s *shareQueue) weigh() {
	s.weights, s.most, s.speed = 0, 1, 0
	for _, c := range s.clients {
		s.weights += c.weight
		s.most = max(s.most, c.weight)
	}
}

// tune looks at the link's speed now and then. Called with mu held.
func (s *shareQueue) tune() {
	if s.speed != 0 && s.turn%shareIdle != 0 {
		return
	}
	s.speed = max(s.dev.Link().Speed, 10)
	s.ahead = max(s.bytesIn(shareBurst), minShare) << sharePrecise / s.most
}

// bytesIn is what the link carries in so many microseconds.
func (s *shareQueue) bytesIn(us int) uint64 { return uint64(s.speed) * uint64(us) / 8 }

// Burst is TxQueue's.
func (c *clientQueue) Burst(bufs []*dma.Buf) int {
	s := c.share
	c.wants.Store(true)
	s.mu.Lock()
	c.wants.Store(false)
	defer s.mu.Unlock()
	if c.closed {
		return 0
	}
	s.turn++
	n := len(bufs)
	if len(s.clients) > 1 {
		n = s.allow(c, bufs)
	}
	c.last = s.turn
	if n == 0 && len(bufs) > 0 {
		c.waits()
		c.waited.Add(1)
		s.reap() // the ring must not stay full because nobody looks
		return 0
	}
	bytes := lengths(bufs[:n])
	took := min(max(s.q.Burst(bufs[:n]), 0), n)
	if took < n {
		bytes -= lengths(bufs[took:n]) // those are still the caller's
		c.full.Add(1)
	} else if n < len(bufs) {
		c.waited.Add(1)
	}
	s.book(c, took, bytes)
	if c.backlog = false; took < len(bufs) {
		c.waits()
	}
	return took
}

// waits notes that the client will ask again.
func (c *clientQueue) waits() {
	c.backlog = true
	if len(c.share.clients) > 1 {
		c.asked = c.share.clock()
	}
}

// book counts frames that were sent. Called with mu held.
func (s *shareQueue) book(c *clientQueue, n int, bytes uint64) {
	if n == 0 {
		return
	}
	c.frames.Add(uint64(n))
	c.bytes.Add(bytes)
	s.now = max(s.now, c.virtual)
	c.virtual += bytes << sharePrecise / c.weight
	c.inFrames += n
	c.inBytes += bytes
	if k := len(s.flight); k > 0 && s.flight[k-1].c == c && len(s.clients) == 1 {
		s.flight[k-1].frames += n
		s.flight[k-1].bytes += bytes
	} else {
		s.flight = append(s.flight, flightRun{c, n, bytes})
	}
	if len(s.flight) > maxFlightRuns {
		s.reap()
	}
}

// maxFlightRuns is when they are looked through though nobody asks.
const maxFlightRuns = 256

// allow is how many of bufs a client may send now. Called with mu held.
func (s *shareQueue) allow(c *clientQueue, bufs []*dma.Buf) int {
	s.tune()
	if lag := shareLag * s.ahead; s.turn-c.last > shareIdle {
		c.virtual = max(c.virtual, s.now)
	} else if s.now > lag {
		c.virtual = max(c.virtual, s.now-lag)
	}
	budget, rivals := int64(1<<62), false
	for _, o := range s.clients {
		if o == c {
			continue
		}
		rivals = rivals || s.turn-o.last < shareRecent && o.last > 0
		if !o.backlog && !o.wants.Load() {
			continue
		}
		if s.turn-o.last > shareIdle {
			o.virtual = max(o.virtual, s.now)
		}
		lead := int64(o.virtual + s.ahead - c.virtual)
		if lead <= 0 && o.backlog && s.clock().Sub(o.asked) > sharePatient {
			o.backlog = false
			continue
		}
		budget = min(budget, lead*int64(c.weight)>>sharePrecise)
	}
	if rivals {
		most := max(s.bytesIn(shareFlight)*c.weight/s.weights, minShare)
		if c.inBytes >= most {
			s.reap()
		}
		budget = min(budget, int64(most-min(c.inBytes, most)))
	}
	if budget <= 0 {
		return 0
	}
	for i, b := range bufs {
		if budget <= 0 {
			return i
		}
		budget -= int64(len(b.Data))
	}
	return len(bufs)
}

// credits are what a client may send before those that wait.
func (s *shareQueue) credits(c *clientQueue) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	least := uint64(1<<64 - 1)
	for _, o := range s.clients {
		if o != c && o.backlog {
			least = min(least, o.virtual)
		}
	}
	if least == 1<<64-1 {
		return int64(s.ahead * c.weight >> sharePrecise)
	}
	return int64(least+s.ahead-c.virtual) * int64(c.weight) >> sharePrecise
}

// reap gives back what was sent, and counts what is in flight anew: frames leave in the order in which they came. Called with mu held.
func (s *shareQueue) reap() {
	left := s.q.Reap()
	total := 0
	for i := len(s.flight) - 1; i >= 0; i-- {
		f := &s.flight[i]
		if total >= left {
			for k := range s.flight[:i+1] {
				s.flight[k].gone(s.flight[k].frames)
			}
			s.flight = s.flight[:copy(s.flight, s.flight[i+1:])]
			return
		}
		if total += f.frames; total > left {
			f.gone(total - left)
			total = left
		}
	}
}

// gone takes the first n frames out of a run.
func (f *flightRun) gone(n int) {
	bytes := f.bytes
	if n < f.frames {
		bytes = f.bytes * uint64(n) / uint64(f.frames)
	}
	f.frames -= n
	f.bytes -= bytes
	f.c.inFrames -= n
	f.c.inBytes -= bytes
}

// Reap frees what the device is done with, everybody's, and returns how many frames of the client are in flight.
func (c *clientQueue) Reap() int {
	s := c.share
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reap()
	return c.inFrames
}

// drainLook is the time between two looks of Drain.
const drainLook = 100 * time.Microsecond

// Drain waits until nothing of the client is in flight, the link dies or ctx ends. Others go on sending meanwhile.
func (c *clientQueue) Drain(ctx context.Context) error {
	var timer *time.Timer
	for c.Reap() > 0 {
		if timer == nil {
			timer = time.NewTimer(drainLook)
			defer timer.Stop()
		} else {
			timer.Reset(drainLook)
		}
		select {
		case <-timer.C:
		case <-c.share.dev.Done():
			return c.share.dev.Err()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// NewPool makes a pool whose buffers come back though other clients reap.
func (c *clientQueue) NewPool(n int) (*dma.Pool, error) {
	return sharedPool(c.share.q.NewPool(n))
}

// NewPoolOf is NewTxPool's.
func (c *clientQueue) NewPoolOf(n, size int) (*dma.Pool, error) {
	return sharedPool(NewTxPool(c.share.q, n, size))
}

func sharedPool(p *dma.Pool, err error) (*dma.Pool, error) {
	if err == nil {
		p.Share()
	}
	return p, err
}

// SetCredit is the device's queue's, for all clients.
func (c *clientQueue) SetCredit(avail func(sent uint64) int) { c.share.q.SetCredit(avail) }
