package fabric

import (
	"sync"

	"github.com/ring3dev/ring3/rionet/rapidio"
)

// Events that wait to be told, at the most.
const (
	maxDoorbells  = 1024
	maxPortWrites = 64
	maxLinks      = 64
)

// eventQueue holds what an Mport tells rapidio.Events: in order, and without making the fabric wait.
type eventQueue struct {
	wake chan struct{}

	mu    sync.Mutex
	queue []event
	count [eventKinds]int
	spare []event
}

type event struct {
	kind eventKind
	up   bool
	src  rapidio.DestID
	info uint16
	n    int
	data [rapidio.MaxPortWrite]byte
}

type eventKind uint8

const (
	eventDoorbell eventKind = iota
	eventPortWrite
	eventConfig
	eventLink
	eventKinds
)

func (q *eventQueue) init() { q.wake = make(chan struct{}, 1) }

// add queues an event, unless there are as many of its kind.
func (q *eventQueue) add(e event, most int) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.count[e.kind] >= most {
		return false
	}
	q.count[e.kind]++
	q.queue = append(q.queue, e)
	return true
}

func (q *eventQueue) doorbell(src rapidio.DestID, info uint16) bool {
	return q.add(event{kind: eventDoorbell, src: src, info: info}, maxDoorbells)
}

func (q *eventQueue) portWrite(p []byte) {
	e := event{kind: eventPortWrite}
	e.n = copy(e.data[:], p)
	q.add(e, maxPortWrites)
}

func (q *eventQueue) configWritten() { q.add(event{kind: eventConfig}, 1) }

// link never loses how the link is in the end: where there are too many changes the last one tells the newest.
func (q *eventQueue) link(up bool) {
	if q.add(event{kind: eventLink, up: up}, maxLinks) {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for i := len(q.queue) - 1; i >= 0; i-- {
		if q.queue[i].kind == eventLink {
			q.queue[i].up = up
			return
		}
	}
	q.queue = append(q.queue, event{kind: eventLink, up: up})
	q.count[eventLink]++
}

func (q *eventQueue) flush() { signal(q.wake) }

// run tells e of what is queued, until done.
func (q *eventQueue) run(e rapidio.Events, done <-chan struct{}) {
	for {
		q.mu.Lock()
		batch := q.queue
		q.queue, q.spare = q.spare[:0], nil
		q.count = [eventKinds]int{}
		q.mu.Unlock()
		for i := range batch {
			select {
			case <-done:
				return
			default:
				batch[i].tell(e)
			}
		}
		q.mu.Lock()
		q.spare = batch[:0]
		empty := len(q.queue) == 0
		q.mu.Unlock()
		if !empty {
			continue
		}
		select {
		case <-q.wake:
		case <-done:
			return
		}
	}
}

func (v *event) tell(e rapidio.Events) {
	switch v.kind {
	case eventDoorbell:
		e.Doorbell(v.src, v.info)
	case eventPortWrite:
		e.PortWrite(v.data[:v.n])
	case eventConfig:
		e.ConfigWritten()
	case eventLink:
		e.Link(v.up)
	}
}
