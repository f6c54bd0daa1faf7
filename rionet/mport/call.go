package mport

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/rionet/rapidio"
	"github.com/ring3dev/ring3/rionet/shm"
)

// Tags: whose in 31:29, an outbox's number or a call. Of an outbox the rest counts its messages; of a call it is
// 28:10 how often the slot was used, 9:0 the slot.
const (
	tagShift  = 29
	tagCall   = rapidio.MaxMboxes
	tagCount  = 1<<tagShift - 1
	callSlots = shm.MaxCalls
)

// call is a transaction that waits for its answer.
type call struct {
	ch     chan struct{} // of capacity 1: it is answered
	uses   uint32
	tag    uint32
	waits  bool
	status rapidio.Status
	value  uint32
}

// transact sends a record and waits for its answer.
func (p *Port) transact(ctx context.Context, h *shm.Header, data []byte) (uint32, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if err := p.Err(); err != nil {
		return 0, err
	}
	var slot uint16
	select {
	case slot = <-p.slots:
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-p.done:
		return 0, p.Err()
	}
	c := &p.calls[slot]
	p.ansMu.Lock()
	c.uses++
	c.tag, c.waits = tagCall<<tagShift|(c.uses*callSlots+uint32(slot))&tagCount, true
	h.Tag = c.tag
	p.ansMu.Unlock()
	err := p.send(ctx, h, data)
	if err == nil && !p.poll(c) {
		err = p.sleep(ctx, c)
	}
	p.ansMu.Lock()
	answered, v, st := !c.waits, c.value, c.status
	c.waits = false
	select {
	case <-c.ch:
	default:
	}
	p.ansMu.Unlock()
	p.slots <- slot
	if !answered {
		return 0, err
	}
	return v, st.Err()
}

// answeredYet says whether a call is, without looking at the ring.
func (p *Port) answeredYet(c *call) bool {
	p.ansMu.Lock()
	defer p.ansMu.Unlock()
	return !c.waits
}

// poll looks for the answer for a moment: the fabric may be about to give it.
func (p *Port) poll(c *call) bool {
	for begin := time.Now(); time.Since(begin) < pollCall; {
		yield()
		if p.take() && p.answeredYet(c) {
			return true
		}
	}
	return false
}

// sleep waits for the answer.
func (p *Port) sleep(ctx context.Context, c *call) error {
	p.rest(1)
	defer p.rest(-1)
	t := time.NewTimer(p.timeout)
	defer t.Stop()
	select {
	case <-c.ch:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-p.done:
		return p.Err()
	case <-t.C:
		return rapidio.ErrNoReply
	}
}

// rest counts who sleeps until an answer comes. While somebody does, the ring is armed.
func (p *Port) rest(n int) {
	if !p.enter() {
		return
	}
	defer p.leave()
	p.ansMu.Lock()
	p.sleepers += n
	wake := p.drain(n > 0)
	p.ansMu.Unlock()
	if wake {
		p.kick(daemon, 0)
	}
}

// take takes the answers that there are. It says false where there is no ring.
func (p *Port) take() bool {
	if !p.enter() {
		return false
	}
	defer p.leave()
	p.ansMu.Lock()
	wake := p.drain(false)
	p.ansMu.Unlock()
	if wake {
		p.kick(daemon, 0)
	}
	return true
}

// answered is what the answers' interrupt does: also where there is room again.
func (p *Port) answered() {
	p.room.wake()
	if !p.enter() {
		return
	}
	defer p.leave()
	p.ansMu.Lock()
	wake := p.drain(p.sleepers > 0)
	for _, b := range p.out {
		if b != nil && b.asleep {
			b.waker.Wake() // it may have waited for room
		}
	}
	p.ansMu.Unlock()
	if wake {
		p.kick(daemon, 0)
	}
}

// drain takes answers, and with arm has the fabric signal the next. It says whether the fabric waits for room. ansMu is held.
func (p *Port) drain(arm bool) (wake bool) {
	a := p.node.Answers
	var h shm.Header
	for range 4 { // a fabric that answers without end is looked at again at the next call
		for range maxAnswers {
			if _, ok := a.Next(&h); !ok {
				break
			}
			p.answer(&h)
		}
		wake = a.Release() || wake
		if err := a.Err(); err != nil {
			p.broken("answers", err)
			return false
		}
		if !arm || !a.Arm() {
			return wake
		}
	}
	p.notArmed()
	return wake
}

// notArmed is where somebody sleeps, and nobody will signal.
func (p *Port) notArmed() { p.missed.Wake() }

// catchUp does what the answers' interrupt would, where drain left the ring without asking for one. It is none of the goroutines that wait
// for answers, as that of the events may.
func (p *Port) catchUp() {
	for {
		select {
		case <-p.missed.C():
			p.answered()
		case <-p.done:
			return
		}
	}
}

// maxAnswers is how many are taken at once.
const maxAnswers = 1 << 14

// answer gives an answer to who waits for it.
func (p *Port) answer(h *shm.Header) {
	if h.Status != rapidio.Done && h.Status != rapidio.Retry {
		h.Status = rapidio.Error
	}
	if h.Kind == shm.KindResponse {
		p.end(h.Tag, h.Value, h.Status)
		return
	}
	if h.Kind != shm.KindResult {
		return
	}
	if who := h.Tag >> tagShift; who < tagCall {
		if b := p.out[who]; b != nil {
			b.results(h.Tag&tagCount, int(h.Len), h.Status)
		}
		return
	}
	for i := range min(uint32(h.Len), callSlots) {
		p.end(h.Tag+i, 0, h.Status)
	}
}

// end answers a call.
func (p *Port) end(tag, v uint32, st rapidio.Status) {
	c := &p.calls[tag&(callSlots-1)]
	if tag>>tagShift != tagCall || !c.waits || c.tag != tag {
		return // it waited long enough
	}
	c.waits, c.value, c.status = false, v, st
	select {
	case c.ch <- struct{}{}:
	default:
	}
}

// send puts one record, and waits for room if it must.
func (p *Port) send(ctx context.Context, h *shm.Header, data []byte) error {
	for {
		if !p.enter() {
			return p.Err()
		}
		again := p.room.next()
		p.txMu.Lock()
		tx := p.node.Tx
		ok := tx.Put(h, data)
		wake := tx.Publish()
		room := ok || tx.WantRoom()
		err := tx.Err()
		p.txMu.Unlock()
		p.leave()
		if err != nil {
			p.broken("sending", err)
		}
		if wake {
			p.kick(daemon, 0)
		}
		if ok || err != nil {
			return p.Err()
		}
		if room {
			continue
		}
		t := time.NewTimer(p.timeout)
		select {
		case <-again:
		case <-ctx.Done():
			err = ctx.Err()
		case <-p.done:
			err = p.Err()
		case <-t.C:
			err = fmt.Errorf("no room to send: %w", bus.ErrTimeout)
		}
		if t.Stop(); err != nil {
			return err
		}
	}
}

// roomWait is who waits for room.
type roomWait struct {
	mu sync.Mutex
	ch chan struct{} // closed by the next wake; nil: nobody asked
}

// next is closed by the next wake.
func (r *roomWait) next() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ch == nil {
		r.ch = make(chan struct{})
	}
	return r.ch
}

func (r *roomWait) wake() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ch != nil {
		close(r.ch)
		r.ch = nil
	}
}
