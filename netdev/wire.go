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
// A frame must fit one receive descriptor, which holds for every driver here at its MTU.
func Wire(a, b Device) error {
	if a == b {
		return fmt.Errorf("wiring %s to itself: %w", a.Info().Name, bus.ErrNotSupported)
	}
	for _, d := range []Device{a, b} {
		if i := d.Info(); i.TxQueues != 1 || i.RxQueues != 1 {
			return fmt.Errorf("wiring %s: %d transmit and %d receive queues, want one of each: %w", i.Name, i.TxQueues, i.RxQueues, bus.ErrNotSupported)
		}
	}
	a.Tx(0).SetCredit(newCredit(b.Rx(0)).avail)
	b.Tx(0).SetCredit(newCredit(a.Rx(0)).avail)
	return nil
}

// Unwire takes the credit of Wire away: frames that the far end has no room for are
// lost again. Both devices must be idle.
func Unwire(a, b Device) {
	a.Tx(0).SetCredit(nil)
	b.Tx(0).SetCredit(nil)
}

// credit is one direction of a wire. It belongs to the sender's goroutine.
type credit struct {
	rx     RxQueue // the far end
	now    func() time.Time
	limit  uint64 // sent(sync) + Free(sync)
	posted uint64 // Posted(sync)
	synced time.Time
}

func newCredit(rx RxQueue) *credit { return &credit{rx: rx, now: time.Now} }

// avail is how many frames may be sent after the sent so far.
func (c *credit) avail(sent uint64) int {
	if n := c.left(sent); n > 0 {
		return n
	}
	if t := c.now(); c.synced.IsZero() || t.Sub(c.synced) >= resyncEvery {
		free := c.rx.Free()
		c.posted = c.rx.Posted() // after Free: see Wire
		c.limit = sent + uint64(max(free, 0))
		c.synced = t
		return c.left(sent)
	}
	return 0
}

func (c *credit) left(sent uint64) int {
	if c.synced.IsZero() {
		return 0
	}
	return max(0, int(int64(c.limit+(c.rx.Posted()-c.posted)-sent)))
}
