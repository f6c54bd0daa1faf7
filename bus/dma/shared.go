package dma

import (
	"sync"
	"sync/atomic"
)

// returned are buffers of a shared pool that were freed, by whichever goroutine, and which its owner did not look for yet.
type returned struct {
	mu   sync.Mutex
	bufs []*Buf
	some atomic.Bool
}

// Share lets other goroutines than the pool's own free its buffers, and retain them: those of a queue that has several
// senders. It costs a lock for each Free, FreeAll takes one for a run of buffers. It is called before the first buffer is taken.
func (p *Pool) Share() {
	p.back.bufs = make([]*Buf, 0, len(p.bufs))
	p.shared = true
}

// takeBack takes what was returned. It tells whether there was anything.
func (p *Pool) takeBack() bool {
	if !p.shared || !p.back.some.Load() {
		return false
	}
	p.back.mu.Lock()
	defer p.back.mu.Unlock()
	p.back.some.Store(false)
	if p.closed {
		p.back.bufs = p.back.bufs[:0]
		return false
	}
	for _, b := range p.back.bufs {
		at := p.head + p.n
		if at >= len(p.free) {
			at -= len(p.free)
		}
		p.free[at] = b
		p.n++
	}
	p.back.bufs = p.back.bufs[:0]
	return true
}

func (p *Pool) retain(b *Buf, n int) { atomic.AddInt32(&b.refs, int32(n)) }

// freeShared is Free.
func (p *Pool) freeShared(b *Buf) {
	one := [1]*Buf{b}
	p.freeRunShared(one[:])
}

// freeRunShared is freeRun. The first of bufs is p's.
func (p *Pool) freeRunShared(bufs []*Buf) int {
	p.back.mu.Lock()
	defer p.back.mu.Unlock()
	for i, b := range bufs {
		if b == nil || b.pool != p {
			return i
		}
		switch refs := atomic.AddInt32(&b.refs, -1); {
		case refs < 0:
			atomic.StoreInt32(&b.refs, 0)
			debugTwice(b)
		case refs == 0:
			debugFree(b)
			p.back.bufs = append(p.back.bufs, b)
			p.back.some.Store(true)
		}
	}
	return len(bufs)
}
