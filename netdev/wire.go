package netdev

import (
	"fmt"
	"time"

	"github.com/ring3dev/ring3/bus"
)

// resyncEvery is how often, at most, a sender without credit asks the far end's
// device: a register read costs about 40 us on QEMU's models, and while frames flow
// the far end's Posted tells all that is needed.
const resyncEvery = 200 * time.Microsecond

// Wire makes two devices that are connected to each other (and to nobody else) lose
// nothing: each sends only as many frames as the other has free receive descriptors,
// as IEEE 802.3x pause frames would achieve on a cable. Both must be idle.
//
// The model that carries the frames must deliver them before a register read that was
// made after the doorbell returns. QEMU's hub does: a device transmits inside the
// doorbell write, and the far end's device receives inside that.
//
// # How the credit is counted
//
// With the counts as they were at the last look at the far end ("sync"), the sender
// may send up to
//
//	sent(sync) + Free(sync) + (Posted(now) - Posted(sync))
//
// frames. Free comes from the far end's head register and is exact at that moment,
// since all frames sent before have arrived and the sender sends none meanwhile.
// Posted(sync) is read after Free, so descriptors given to the device in between are
// forgotten rather than counted twice. A frame that the far end filters uses no
// descriptor; the credit it cost comes back with the next sync, which is made when
// the credit is used up, at most every 200 us.
//
// A frame must fit one receive descriptor, which holds for every driver here where both
// have the same MTU. A frame that the device cuts into segments costs as many as it makes.
//
// A far end that is stopped for a while (Link.Stopped) takes nothing, whatever was left: the sender waits, and goes on with what
// the far end says when it is back. Frames that a reset took away, at either end, cost credit until the next sync only.
//
// # Several queues
//
// A frame may land in any queue of the far end, so what may be sent is the least that any of them
// has room for, and every queue must be received from: one that nobody looks at stops the
// sender. The queues of a sender share what there is, see ledger.
func Wire(a, b Device) error {
	if a == b {
		return fmt.Errorf("wiring %s to itself: %w", a.Info().Name, bus.ErrNotSupported)
	}
	for _, d := range []Device{a, b} {
		if i := d.Info(); i.TxQueues < 1 || i.RxQueues < 1 {
			return fmt.Errorf("wiring %s: %d transmit and %d receive queues, want at least one of each: %w", i.Name, i.TxQueues, i.RxQueues, bus.ErrNotSupported)
		}
	}
	wireOneWay(a, b)
	wireOneWay(b, a)
	return nil
}

// segLimiter is a transmit queue that cuts frames into segments. It is told how many the far
// end has room for at most, so that a frame that makes more is not waited for in vain: it
// is sent, and may be lost in part, when the far end is empty.
type segLimiter interface{ SetMaxSegs(n int) }

// stopper is a receive queue whose device can be stopped for a while: nothing is to be sent to it then. It may be asked by other
// goroutines.
type stopper interface{ Stopped() bool }

// wireOneWay gives a sender credit for what the far end has room for.
func wireOneWay(from, to Device) {
	queues, far := from.Info().TxQueues, to.Info().RxQueues
	avail := func(int) func(uint64) int { return newCredit(to.Rx(0)).avail }
	most := to.Info().RxRing * 3 / 4 // a receiver refills in chunks
	if queues > 1 || far > 1 {
		l := newLedger(queues)
		for q := range far {
			rx := to.Rx(q)
			stop, _ := rx.(stopper)
			l.far = append(l.far, farQueue{rx: rx, stop: stop})
		}
		avail = func(q int) func(uint64) int { return func(sent uint64) int { return l.avail(q, sent) } }
		most /= queues
	}
	for q := range queues {
		tx := from.Tx(q)
		tx.SetCredit(avail(q))
		if s, ok := tx.(segLimiter); ok {
			s.SetMaxSegs(most)
		}
	}
}

// Unwire takes the credit of Wire away: frames that the far end has no room for are
// lost again. Both devices must be idle.
func Unwire(a, b Device) {
	for _, d := range []Device{a, b} {
		for q := range d.Info().TxQueues {
			d.Tx(q).SetCredit(nil)
		}
	}
}

// credit is one direction of a wire between single queues. It belongs to the sender's goroutine.
type credit struct {
	rx     RxQueue // the far end
	stop   stopper // the same, nil: it never is
	now    func() time.Time
	limit  uint64 // sent(sync) + Free(sync)
	posted uint64 // Posted(sync)
	asked  uint64 // sent as it was the last time
	synced time.Time
}

func newCredit(rx RxQueue) *credit {
	stop, _ := rx.(stopper)
	return &credit{rx: rx, stop: stop, now: time.Now}
}

// avail is how many frames may be sent after the sent so far. Who asks again without having
// sent anything needs more than there was.
func (c *credit) avail(sent uint64) int {
	if c.stop != nil && c.stop.Stopped() {
		return 0
	}
	n := c.left(sent)
	if n > 0 && sent != c.asked {
		c.asked = sent
		return n
	}
	if t := c.now(); c.synced.IsZero() || t.Sub(c.synced) >= resyncEvery {
		free := c.rx.Free()
		c.posted = c.rx.Posted() // after Free: see Wire
		c.limit = sent + uint64(max(free, 0))
		c.synced = t
		return c.left(sent)
	}
	return n
}

func (c *credit) left(sent uint64) int {
	if c.synced.IsZero() {
		return 0
	}
	return max(0, int(int64(c.limit+(c.rx.Posted()-c.posted)-sent)))
}
