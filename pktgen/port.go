package pktgen

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/netdev"
)

// port is a transmit queue with the pool that belongs to it. Both belong to one
// goroutine at a time; devices of several threads may share them ("eth0@0", "eth0@1").
type port struct {
	ring int // descriptors

	mu     sync.Mutex // guards all below
	q      netdev.TxQueue
	pool   *dma.Pool
	flight int // frames in flight, at most
}

// portKey names a queue; done tells a device from a later one of the same name.
type portKey struct {
	name  string
	queue int
	done  <-chan struct{}
}

// spare is how many buffers a pool has beyond those that the ring can hold: enough to
// build a burst while the ring is full.
const spare = 256

// openPort finds the port of a queue, or makes it.
func (e *Engine) openPort(nd netdev.Device, name string, queue int) (*port, error) {
	key := portKey{name, queue, nd.Done()}
	e.portMu.Lock()
	defer e.portMu.Unlock()
	if p := e.ports[key]; p != nil {
		return p, nil
	}
	q := nd.Tx(queue)
	if q == nil {
		return nil, fmt.Errorf("%s has no transmit queue %d", name, queue)
	}
	ring := nd.Info().TxRing
	if ring <= 0 {
		ring = spare
	}
	pool, err := q.NewPool(ring + min(ring, spare))
	if err != nil {
		return nil, err
	}
	p := &port{ring: ring, q: q, pool: pool}
	e.ports[key] = p
	return p, nil
}

// closePorts gives back the pools of a device, or of all where name is "".
func (e *Engine) closePorts(name string) {
	e.portMu.Lock()
	defer e.portMu.Unlock()
	for key, p := range e.ports {
		if name != "" && key.name != name {
			continue
		}
		delete(e.ports, key)
		p.mu.Lock()
		p.q.Reap()
		if p.pool.Free() == p.pool.Len() {
			p.pool.Close()
		} else {
			// The device may still read these; they go when its DMA memory goes.
			e.log.Warn("pktgen: frames still in flight", "device", key.name, "queue", key.queue, "frames", p.pool.Len()-p.pool.Free())
		}
		p.mu.Unlock()
	}
}

// drainTime bounds the wait for frames in flight when a run ends.
const drainTime = time.Second

// drain waits until the queue has sent everything.
func (p *port) drain() {
	ctx, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	p.mu.Lock()
	defer p.mu.Unlock()
	_ = p.q.Drain(ctx) // a link that died, or a queue that is stuck: the run ends all the same
}

// port is the device's port for a queue, ready for its packets.
func (d *device) port(queue int) (*port, error) {
	if queue < len(d.ports) && d.ports[queue] != nil {
		return d.ports[queue], d.fits(d.ports[queue])
	}
	p, err := d.thr.eng.openPort(d.nd, d.base, queue)
	if err != nil {
		return nil, err
	}
	for len(d.ports) <= queue {
		d.ports = append(d.ports, nil)
	}
	d.ports[queue] = p
	return p, d.fits(p)
}

func (d *device) fits(p *port) error {
	if n := len(d.tmpl.bytes); n > p.pool.BufSize() {
		return fmt.Errorf("packets of %d bytes do not fit %s: its buffers have %d", n, d.base, p.pool.BufSize())
	}
	return nil
}
