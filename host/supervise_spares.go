package host

import (
	"context"
	"fmt"
	"os"
	"sync"
)

// spares keeps one worker that waits, since to start one takes longer than all else of a recovery.
type spares struct {
	s *supervisor

	mu    sync.Mutex
	next  *spareWorker // nil: none is there or on its way
	ended bool
}

// spareWorker is one that waits, once ready is closed.
type spareWorker struct {
	ready chan struct{}
	w     *worker // nil: it could not be started
}

// refill starts one, unless there is one.
func (p *spares) refill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended || p.next != nil || p.s.ctx.Err() != nil {
		return
	}
	n := &spareWorker{ready: make(chan struct{})}
	p.next = n
	go func() {
		defer close(n.ready)
		w, err := startWorker(p.s.ctx, p.s, nil, false)
		if err != nil {
			if p.s.ctx.Err() == nil {
				p.s.log.Warn(fmt.Sprintf("starting a worker in advance: %v", err))
			}
			return
		}
		n.w = w
	}()
}

// take gives a worker of a program; nil for this one, of which there may be one that waits. A bare one never waited: who waits has given up its rights.
func (p *spares) take(ctx context.Context, program *os.File, bare bool) (*worker, error) {
	if program == nil && !bare {
		p.mu.Lock()
		n := p.next
		p.next = nil
		p.mu.Unlock()
		if n != nil {
			<-n.ready // bounded by helloTime
			if n.w != nil && !n.w.over() {
				return n.w, nil
			}
			if n.w != nil {
				_ = n.w.kill()
			}
		}
	}
	return startWorker(ctx, p.s, program, bare)
}

// close ends the one that waits.
func (p *spares) close() {
	p.mu.Lock()
	n := p.next
	p.next, p.ended = nil, true
	p.mu.Unlock()
	if n != nil {
		if <-n.ready; n.w != nil {
			_ = n.w.kill()
		}
	}
}
