package aer

import (
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/ring3dev/ring3/bus/pci"
)

const (
	// queueLen is how many messages wait at most, as in the kernel.
	queueLen = 128
	// turns is how often the handler looks again whether more came while it acknowledged.
	turns = 8
	// pause is the time to the next look where that was not enough. It doubles each time in a row, doublings times at most.
	pause     = 10 * time.Millisecond
	doublings = 4
)

// received are the bits of Root Error Status that tell of a message.
const received = pci.RootStaCor | pci.RootStaMultiCor | pci.RootStaUnc | pci.RootStaMultiUnc

// message is what the root port remembers of one or more error messages.
type message struct{ status, source uint32 }

// queue is a ring of messages. It never grows: what does not fit is counted and forgotten, as the root port itself forgets.
type queue struct {
	mu   sync.Mutex
	ring [queueLen]message
	head uint32
	n    uint32
	lost uint64
	more bool // status would not become clear, or could not be read: look again
}

func (q *queue) push(m message) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.n == queueLen {
		q.lost++
		return
	}
	q.ring[(q.head+q.n)%queueLen] = m
	q.n++
}

func (q *queue) pop() (m message, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.n == 0 {
		return m, false
	}
	m = q.ring[q.head]
	q.head = (q.head + 1) % queueLen
	q.n--
	return m, true
}

// rest is what else there is to know once the queue is empty; it is forgotten with that.
func (q *queue) rest() (lost uint64, more bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	lost, more = q.lost, q.more
	q.lost, q.more = 0, false
	return lost, more
}

// interrupt reads what the root port remembers, acknowledges it and hands it to the goroutine. With messages an interrupt
// comes only when all status was clear before (PCI Express Base 5.0, 6.2.4.1.2), so it looks until that is so: what came between its read and
// its write would otherwise silence the port. Where that is so in the end, whatever was read was a message of its own; where it is not, what was
// read again may be a status that would not clear, and counts once.
func (i *instance) interrupt() (meant bool) {
	i.irq.Lock()
	defer i.irq.Unlock()
	var got [turns]message
	for n := range turns {
		m := message{status: i.cfg.Read32(i.at + pci.AERRootSta)}
		if m.status == 0xffffffff && i.port.Err() == nil {
			return i.unclear(got[:n]) // it may answer later
		}
		if m.status == 0xffffffff || m.status&received == 0 {
			for _, m := range got[:n] {
				i.q.push(m)
			}
			i.signal(n > 0)
			return n > 0
		}
		m.source = i.cfg.Read32(i.at + pci.AERErrSrc)
		i.cfg.Write32(i.at+pci.AERRootSta, m.status)
		got[n] = m
	}
	return i.unclear(got[:])
}

// unclear hands over what was read of a status that did not become clear, each value once, and has the goroutine look again.
func (i *instance) unclear(got []message) (meant bool) {
	for n, m := range got {
		if !slices.Contains(got[:n], m) {
			i.q.push(m)
		}
	}
	i.q.mu.Lock()
	i.q.more = true
	i.q.mu.Unlock()
	i.signal(true)
	return len(got) > 0
}

func (i *instance) signal(meant bool) {
	if meant {
		select {
		case i.wake <- struct{}{}:
		default: // it is awake
		}
	}
}

// run works messages off.
func (i *instance) run() {
	defer close(i.done)
	for {
		select {
		case <-i.ctx.Done():
			return
		case <-i.wake:
		}
		i.drain()
		lost, more := i.q.rest()
		if lost > 0 && i.port.Err() == nil {
			i.d.Log(slog.LevelWarn, "%d error messages came faster than they could be read and are lost", lost)
		}
		if !more {
			i.gap = 0
			continue
		}
		if i.gap == doublings {
			i.d.Log(slog.LevelError, "Root Error Status does not stay clear, or cannot be read")
		}
		if i.port.Err() == nil && i.port.Sleep(i.ctx, pause<<min(i.gap, doublings)) == nil {
			i.interrupt()
		}
		i.gap++
	}
}

// drain works off what is queued, unless the service is to end.
func (i *instance) drain() {
	for {
		m, ok := i.q.pop()
		if !ok || i.ctx.Err() != nil {
			return
		}
		if i.port.Err() == nil { // what a dead port told of its devices helps nobody
			i.handle(m)
		}
	}
}
