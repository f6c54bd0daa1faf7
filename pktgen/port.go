package pktgen

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/netdev"
)

// port is a transmit queue with the pools that belong to it. They belong to one goroutine
// at a time; devices of several threads may share them ("eth0@0", "eth0@1").
type port struct {
	ring int // descriptors

	mu     sync.Mutex // guards all below
	q      netdev.TxQueue
	pools  [sizeClasses]*dma.Pool // by sizeClass; nil until one is needed
	queued [sizeClasses]*dma.Pool // the same for frames that go through qdisc
	qdisc  pfifo                  // queue_xmit's
	flight int                    // frames in flight, at most
	warned bool                   // that the device still has frames
}

// Frames are built in buffers of the next power of two, from 64 bytes to what jumbo frames take:
// small ones lie close together (netdev.NewTxPool).
const (
	minBuf      = 64
	sizeClasses = 11 // 64 to 65536
)

// sizeClass is the class of frames of n bytes; the last one also for those that are too
// long for any.
func sizeClass(n int) int {
	c := 0
	for size := minBuf; size < n && c < sizeClasses-1; size *= 2 {
		c++
	}
	return c
}

// pool is the pool for frames of n bytes. Called with mu held.
func (p *port) pool(n int) (*dma.Pool, error) { return p.poolOf(&p.pools, n, p.ring) }

// queuedPool is the same for frames that may wait in the queue discipline before they are in flight.
func (p *port) queuedPool(n int) (*dma.Pool, error) {
	return p.poolOf(&p.queued, n, min(p.ring, minDepth)+netdev.TxQueueLen)
}

// poolOf finds one among pools, or makes it.
func (p *port) poolOf(pools *[sizeClasses]*dma.Pool, n, bufs int) (_ *dma.Pool, err error) {
	c := sizeClass(n)
	if pools[c] == nil {
		pools[c], err = netdev.NewTxPool(p.q, min(bufs, maxPool, maxPoolBytes/(minBuf<<c)), minBuf<<c)
	}
	return pools[c], err
}

// portKey names a queue; done tells a device from a later one of the same name.
type portKey struct {
	name  string
	queue int
	done  <-chan struct{}
}

// maxPool is the most buffers of a pool. They are as many as there are descriptors, or a
// part of that, so that each descriptor keeps naming the same buffer (dma.Pool), and not more
// than are ever in flight, so that they stay in the caches.
const maxPool = 2048

// maxPoolBytes keeps pools of jumbo frames small: what a user may lock is often 8 MiB.
const maxPoolBytes = 4 << 20

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
		return nil, fmt.Errorf("%s says its ring has %d descriptors", name, ring)
	}
	p := &port{ring: ring, q: q}
	e.ports[key] = p
	return p, nil
}

// closePorts gives back the pools of a device, or of all where name is "". A device may still hold
// frames until it is closed, because it died or is stuck: its ports stay, for the next call.
func (e *Engine) closePorts(name string) {
	e.portMu.Lock()
	defer e.portMu.Unlock()
	for key, p := range e.ports {
		if name != "" && key.name != name {
			continue
		}
		held, warned := p.close()
		if held == 0 {
			delete(e.ports, key)
		} else if !warned && !isClosed(key.done) {
			e.log.Warn("pktgen: frames still in flight", "device", key.name, "queue", key.queue, "frames", held)
		}
	}
}

// close gives back the pools that are whole. It returns how many frames are missing from the
// others, and whether it did so before.
func (p *port) close() (held int, again bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reset()
	p.flight = p.q.Reap()
	for _, pools := range []*[sizeClasses]*dma.Pool{&p.pools, &p.queued} {
		for i, pool := range pools {
			switch {
			case pool == nil:
			case pool.Free() == pool.Len():
				pool.Close()
				pools[i] = nil
			default:
				held += pool.Len() - pool.Free()
			}
		}
	}
	again, p.warned = p.warned, held > 0
	return held, again
}

// drainTime bounds the wait for frames in flight when a run ends; noLinkTime where nothing leaves any more, so
// that the others of the thread go on.
const (
	drainTime  = time.Second
	noLinkTime = 10 * time.Millisecond
)

// drain waits until the queue has sent everything; without a link it drops what waits.
func (p *port) drain(up bool) {
	limit := drainTime
	if !up {
		limit = noLinkTime
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	p.mu.Lock()
	defer p.mu.Unlock()
	if !up {
		p.reset()
	}
	p.flush(ctx)
	_ = p.q.Drain(ctx) // a link that died, or a queue that is stuck: the run ends all the same
}

// port is the device's port for a queue.
func (d *device) port(queue int) (*port, error) {
	if queue < len(d.ports) && d.ports[queue] != nil {
		return d.ports[queue], nil
	}
	p, err := d.thr.eng.openPort(d.nd, d.base, queue)
	if err != nil {
		return nil, err
	}
	for len(d.ports) <= queue {
		d.ports = append(d.ports, nil)
	}
	d.ports[queue] = p
	return p, nil
}

// buffers is a port's pool for the device's packets. Called with the port's mu held.
func (d *device) buffers(p *port) (*dma.Pool, error) {
	n := len(d.tmpl.bytes)
	if d.capture != nil {
		n = d.capture.most
	}
	get := p.pool
	if d.mode == queueXmit {
		get = p.queuedPool
	}
	pool, err := get(n)
	if err == nil && n > pool.BufSize() {
		err = fmt.Errorf("packets of %d bytes do not fit %s: its buffers have %d", n, d.base, pool.BufSize())
	}
	return pool, err
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
