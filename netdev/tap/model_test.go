package tap

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/netdev"
)

// card is a model of a network device with every feature, wired to another: what is sent on
// queue q arrives in queue q. It has the optional interfaces that a bridge uses.
type card struct {
	name string
	mac  net.HardwareAddr
	tx   []*cardTx
	rx   []*cardRx
	peer *card

	stall atomic.Bool // the ring is full
	sent  atomic.Uint64
	wrong atomic.Uint64 // frames that no device of that MTU and with those features takes

	mu   sync.Mutex // guards all below
	mtu  int
	mode netdev.RxMode
	on   netdev.Feature
	link bool
	err  error
	done chan struct{}
}

const cardFeatures = netdev.TxCsum | netdev.TxTSO4 | netdev.TxTSO6 | netdev.RxCsum

// MTUs of a card.
const (
	lowestMTU  = 68
	highestMTU = 9000
)

func newCard(name string, queues int) *card {
	c := &card{name: name, mac: net.HardwareAddr{2, 0, 0, 0, 1, name[len(name)-1]}, mtu: 1500, on: cardFeatures, link: true, done: make(chan struct{})}
	for q := range queues {
		c.tx = append(c.tx, &cardTx{c: c, q: q})
		c.rx = append(c.rx, &cardRx{c: c, wake: make(chan struct{}, 1)})
	}
	return c
}

// wire makes two cards with a wire between them.
func wired(queues int) (a, b *card) {
	a, b = newCard("x0", queues), newCard("x1", queues)
	a.peer, b.peer = b, a
	return a, b
}

func (c *card) Info() netdev.Info {
	return netdev.Info{Name: c.name, Driver: "model", TxQueues: len(c.tx), RxQueues: len(c.rx), TxRing: 256, RxRing: 256}
}
func (c *card) MAC() net.HardwareAddr { return c.mac }
func (c *card) MTU() int              { c.mu.Lock(); defer c.mu.Unlock(); return c.mtu }
func (c *card) Link() netdev.Link {
	c.mu.Lock()
	defer c.mu.Unlock()
	return netdev.Link{Up: c.link, Speed: 1000, FullDuplex: true}
}
func (c *card) Stats() netdev.Stats   { return netdev.Stats{TxPackets: c.sent.Load()} }
func (c *card) Done() <-chan struct{} { return c.done }
func (c *card) Err() error            { c.mu.Lock(); defer c.mu.Unlock(); return c.err }
func (c *card) Tx(q int) netdev.TxQueue {
	if q >= len(c.tx) {
		return nil
	}
	return c.tx[q]
}
func (c *card) Rx(q int) netdev.RxQueue {
	if q >= len(c.rx) {
		return nil
	}
	return c.rx[q]
}

func (c *card) Features() (available, on netdev.Feature) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return cardFeatures, c.on
}

func (c *card) SetFeatures(_ context.Context, on netdev.Feature) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.on = on
	return nil
}

func (c *card) MTURange() (lowest, highest int) { return lowestMTU, highestMTU }
func (c *card) SetMTU(_ context.Context, mtu int) error {
	if mtu < lowestMTU || mtu > highestMTU {
		return unix.EINVAL
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mtu = mtu
	return nil
}

func (c *card) RxMode() netdev.RxMode { c.mu.Lock(); defer c.mu.Unlock(); return c.mode }
func (c *card) SetRxMode(_ context.Context, m netdev.RxMode) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mode = m
	return nil
}

func (c *card) setLink(up bool) { c.mu.Lock(); defer c.mu.Unlock(); c.link = up }

// die takes the card out of service.
func (c *card) die(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = err
		close(c.done)
	}
}

// cardTx is a transmit queue, which sends at once.
type cardTx struct {
	c *card
	q int
}

func (t *cardTx) NewPool(n int) (*dma.Pool, error) { return t.NewPoolOf(n, dma.BufSize) }
func (t *cardTx) NewPoolOf(n, size int) (*dma.Pool, error) {
	return dma.NewStaggered(heap{}, n, size, bus.ToDevice)
}
func (t *cardTx) Reap() int                       { return 0 }
func (t *cardTx) Drain(context.Context) error     { return nil }
func (t *cardTx) SetCredit(func(sent uint64) int) {}
func (t *cardTx) Burst(bufs []*dma.Buf) int {
	c := t.c
	if c.stall.Load() || c.Err() != nil {
		return 0
	}
	_, on := c.Features()
	longest := c.MTU() + etherLen + tagLen
	for _, b := range bufs {
		if needs(b.Meta.Flags)&^on != 0 {
			c.wrong.Add(1)
			b.Free()
			continue
		}
		for _, f := range cut(b.Data, b.Meta) {
			if len(f) > longest {
				c.wrong.Add(1)
				continue
			}
			c.sent.Add(1)
			if c.peer != nil {
				c.peer.rx[t.q].arrive(f)
			}
		}
		b.Free()
	}
	return len(bufs)
}

// cardRx is a receive queue of any length.
type cardRx struct {
	c    *card
	wake chan struct{}
	pool *dma.Pool // the receiver's

	mu     sync.Mutex
	frames [][]byte
}

func (r *cardRx) arrive(f []byte) {
	r.mu.Lock()
	r.frames = append(r.frames, f)
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (r *cardRx) Burst(bufs []*dma.Buf) int {
	if r.pool == nil {
		r.pool, _ = dma.NewStaggered(heap{}, 256, 16<<10, bus.FromDevice)
	}
	_, on := r.c.Features()
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for n < len(bufs) && len(r.frames) > 0 && r.pool.Free() > 0 {
		b := r.pool.Get()
		b.Data = append(b.Data, r.frames[0]...)
		if s, ok := parse(b.Data); ok && on&netdev.RxCsum != 0 && s.verified(b) {
			b.Meta = dma.Meta{Flags: dma.CsumGood}
		}
		r.frames = r.frames[1:]
		bufs[n] = b
		n++
	}
	return n
}

func (r *cardRx) Wait(ctx context.Context) error {
	r.mu.Lock()
	n := len(r.frames)
	r.mu.Unlock()
	if n > 0 {
		return nil
	}
	select {
	case <-r.wake:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-r.c.done:
		return r.c.Err()
	}
}
func (r *cardRx) Posted() uint64 { return 0 }
func (r *cardRx) Free() int      { return 256 }

// attach bridges a device and closes the bridge with the test.
func attachT(t testing.TB, d netdev.Device, c Config) *Bridge {
	t.Helper()
	b, err := Attach(d, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("Close = %v, want nil", err)
		}
	})
	return b
}
