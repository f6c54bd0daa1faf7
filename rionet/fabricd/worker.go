package fabricd

import (
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/rionet/fabric"
	"github.com/ring3dev/ring3/rionet/rapidio"
	"github.com/ring3dev/ring3/rionet/shm"
)

const (
	// burst is how many records are taken before others are told of them.
	burst = 64
	// spins is how often a worker looks for more before it sleeps. It yields each time.
	spins = 32
	// holdWait is how long a message waits for room at its destination before its sender is told Retry: the most, and the least that is
	// left of it for a destination that is slow.
	holdWait = 100 * time.Millisecond
	holdMin  = holdWait / 32
	// lookFirst is how long a held message is tried again and again: its destination may be about to take something, if it has a processor.
	lookFirst = 50 * time.Microsecond
	// Then it is tried after firstPause, then more and more seldom, up to lastPause.
	firstPause = 20 * time.Microsecond
	lastPause  = 500 * time.Microsecond
)

// mailbox is one of a destination.
type mailbox struct {
	dest rapidio.DestID
	mbox uint8
}

// work moves what the node sends, until it ends.
func (n *node) work() {
	defer close(n.working)
	idle := 0
	for !n.ended() {
		switch {
		case n.config.Load() && n.config.Swap(false):
			n.renumber()
		case n.burst() > 0:
			idle = 0
		case idle < spins:
			idle++
			yield()
		default:
			idle = 0
			n.sleep()
		}
	}
}

// yield offers the processor to others, of other processes above all: one of them is about to send something, or to take it.
func yield() { _, _, _ = unix.Syscall(unix.SYS_SCHED_YIELD, 0, 0, 0) }

// sleep waits for the node to send something, or for a poke.
func (n *node) sleep() {
	if err := n.d.Err(); err != nil {
		n.expel(fmt.Sprintf("it broke the rules: %v", err))
		return
	}
	if !n.d.ArmTx() && !n.config.Load() && !n.ended() {
		if _, err := n.wake.Read(n.signals[:]); err != nil && !n.ended() {
			n.end(fmt.Sprintf("waiting for it: %v", err))
		}
	}
	n.d.DisarmTx()
}

// burst moves some of what is there, and says how much.
func (n *node) burst() int {
	var h shm.Header
	k := 0
	for k < burst {
		data, ok := n.d.NextTx(&h)
		if !ok {
			break
		}
		k++
		if h.Kind == shm.KindMessage {
			n.used = true
			n.message(&h, data)
			continue
		}
		n.sendRun()
		if h.Kind == shm.KindReset {
			n.restart()
			break
		}
		n.used = true
		n.do(&h, data)
	}
	n.sendRun()
	if k > 0 {
		n.d.ReleaseTx()
		n.port.Flush()
		n.Flush()
	}
	return k
}

// do does one of the node's wishes, but for messages. What the node wrote is checked here or by the port; data may change under it.
func (n *node) do(h *shm.Header, data []byte) {
	switch h.Kind {
	case shm.KindDoorbell:
		if st := n.port.Doorbell(h.Tag, h.Peer, h.Info); st != rapidio.Pending {
			n.d.PutResult(h.Tag, st)
		}
	case shm.KindPortWrite:
		if len(data) <= rapidio.MaxPortWrite { // or it is no port-write, and lost as others are
			n.port.PortWrite(h.Peer, n.portWrite[:copy(n.portWrite[:], data)])
		}
	case shm.KindLocal, shm.KindMaint:
		m := fabric.Maint{Tag: h.Tag, Local: h.Kind == shm.KindLocal, Dest: h.Peer, Hop: h.Hop, Off: rapidio.Off(h.Off), Width: h.Width, Write: h.Write, Value: h.Value}
		v, st := n.port.Maint(&m)
		if st != rapidio.Pending {
			n.d.PutResponse(h.Tag, v, st)
		}
		if m.Local && m.Write {
			n.renumber()
		}
	case shm.KindMailbox:
		n.d.PutResponse(h.Tag, 0, n.setMailbox(h.Mbox, h.Value))
	case shm.KindDoorbells:
		n.port.SetDoorbells(h.Value != 0)
		n.d.PutResponse(h.Tag, 0, rapidio.Done)
	default:
		n.expel(fmt.Sprintf("it broke the rules: a record of %v", h.Kind))
	}
}

// run is what of a burst goes to one mailbox, in a row: its data is the node's memory, which ReleaseTx gives back.
type run struct {
	to    mailbox
	order rapidio.Order // of the first; the others are Behind it, or all are Alone
	n     int
	tags  [burst]uint32
	data  [burst][]byte
}

// message adds one to the run, which is sent before where it goes elsewhere.
func (n *node) message(h *shm.Header, data []byte) {
	to, r, order := mailbox{h.Peer, h.Mbox}, &n.run, rapidio.Order(h.Info)
	if order != rapidio.Behind && order != rapidio.Again {
		order = rapidio.Alone
	}
	if r.n > 0 && (r.to != to || order == rapidio.Again || (order == rapidio.Alone) != (r.order == rapidio.Alone)) {
		n.sendRun()
	}
	if r.n == 0 {
		r.to, r.order = to, order
	}
	r.tags[r.n], r.data[r.n] = h.Tag, data
	r.n++
}

// sendRun sends the run, and holds a message for a while where its destination has no room.
func (n *node) sendRun() {
	r := &n.run
	for i := 0; i < r.n; {
		if r.order == rapidio.Behind && n.port.Refuses(r.to.dest, r.to.mbox) {
			n.d.PutResults(r.tags[i:r.n], rapidio.Retry)
			break
		}
		k, st := n.port.Messages(r.tags[i:r.n], r.to.dest, r.to.mbox, r.order, r.data[i:r.n])
		if r.order == rapidio.Again {
			r.order = rapidio.Behind
		}
		if st == rapidio.Retry {
			k = 1
			m := rapidio.Message{Peer: r.to.dest, Mbox: r.to.mbox, Data: r.data[i]}
			if r.order != rapidio.Alone {
				m.Order = rapidio.Again
			}
			st = n.hold(r.tags[i], &m)
		} else if len(n.patience) > 0 && st == rapidio.Done && n.stalled(r.to) {
			n.patience[r.to] = holdMin // it took something
		}
		if st != rapidio.Pending {
			n.d.PutResults(r.tags[i:i+k], st)
		}
		i += k
	}
	clear(r.data[:r.n])
	r.n = 0
}

// hold tries a message again for a while until there is room for it: a sender that is told Retry loses much time, or the order of
// its messages. A destination for which that was in vain has stalled: nothing is held for it until it takes something. For one that makes
// room so late that it would stop the sender's messages for others, too, less and less time is spent.
func (n *node) hold(tag uint32, m *rapidio.Message) rapidio.Status {
	to := mailbox{m.Peer, m.Mbox}
	limit, known := n.patience[to]
	if !known {
		limit = holdWait
	}
	if limit == 0 {
		return rapidio.Retry
	}
	n.port.Flush() // so that it sees what is in its mailbox
	n.Flush()
	begin := time.Now()
	took := time.Duration(0)
	for pause := firstPause; ; {
		if took < lookFirst {
			yield()
		} else if n.pause(pause) {
			pause = min(2*pause, lastPause)
		} else {
			return rapidio.Retry
		}
		took = time.Since(begin)
		if n.s.refused.room(n.destID(), m.Mbox) {
			if st := n.port.Message(tag, m); st != rapidio.Retry {
				n.learn(to, limit, took)
				return st
			}
		}
		if took > limit {
			n.patience[to] = 0
			return rapidio.Retry
		}
	}
}

// pause lets time go by. It says false where the node is to end.
func (n *node) pause(d time.Duration) bool {
	n.timer.Reset(d)
	select {
	case <-n.timer.C:
		return true
	case <-n.stop:
		return false
	}
}

// learn makes of the time that a destination took to make room the time that it is given next.
func (n *node) learn(to mailbox, limit, took time.Duration) {
	switch {
	case took > limit/4:
		n.patience[to] = max(limit/2, holdMin)
	case limit >= holdWait/2:
		delete(n.patience, to)
	default:
		n.patience[to] = 2 * limit
	}
}

// stalled tells whether nothing is held for a destination.
func (n *node) stalled(to mailbox) bool {
	limit, known := n.patience[to]
	return known && limit == 0
}

// setMailbox opens or closes an inbound mailbox of the node's.
func (n *node) setMailbox(mbox uint8, entries uint32) rapidio.Status {
	if mbox >= rapidio.MaxMboxes || entries > uint32(n.d.MaxEntries()) {
		return rapidio.Error
	}
	n.boxes.Lock()
	defer n.boxes.Unlock()
	n.port.SetMailbox(mbox, false, false)
	n.d.SetMailbox(int(mbox), int(entries))
	n.open[mbox] = entries > 0
	n.full[mbox].Store(false)
	n.port.SetMailbox(mbox, entries > 0, false)
	return rapidio.Done
}

// restart does what a node asks for that begins anew: after it joined, and when another driver takes the same device over. What the one
// before it had under way would be answered to this one, so to the fabric it went and came.
func (n *node) restart() {
	n.boxes.Lock()
	n.open = [rapidio.MaxMboxes]bool{}
	n.boxes.Unlock()
	if n.used {
		if wait := n.restarts.wait(time.Now()); wait > 0 && !n.pause(wait) {
			return
		}
		n.used = false
		n.port.Detach()
		port, err := n.s.fab.Attach(n.name, n)
		if err != nil {
			n.end(err.Error())
			return
		}
		n.port = port
	}
	clear(n.patience)
	n.d.Reset()
	n.renumber()
	n.kick(1 << shm.VecEvents)
}

// renumber looks at the device ID of the node's endpoint.
func (n *node) renumber() {
	ids := idSize(n.s.topo)
	v, st := n.port.Maint(&fabric.Maint{Local: true, Off: rapidio.RegBaseDeviceID, Width: 4})
	if id := uint32(ids.Of(v)); st == rapidio.Done && n.id.Swap(id) != id {
		n.group.renumber()
		n.s.tell(Event{What: EventNumbered, Node: n.name})
	}
}

// refusals remember, by the source of a message, who had no room for it, until the source asks: which it does at once, before it sends
// another. Two sources of one slot may learn of each other's, which costs them time.
type refusals [256]atomic.Pointer[node]

// note remembers that by had no room for a message of src's.
func (r *refusals) note(src rapidio.DestID, by *node) { r[src&0xff].Store(by) }

// room tells whether who refused the last message of src's may have room now.
func (r *refusals) room(src rapidio.DestID, mbox uint8) bool {
	n := r[src&0xff].Load()
	if n == nil {
		return true
	}
	n.life.RLock()
	defer n.life.RUnlock()
	return n.dead || n.d.Free(int(mbox)) > 0
}

// forget drops a node that is gone.
func (r *refusals) forget(n *node) {
	for i := range r {
		r[i].CompareAndSwap(n, nil)
	}
}
