package e1000

import (
	"context"
	"fmt"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/netdev"
)

// BareTransmit measures how fast the device itself transmits: every descriptor of the
// ring points to one frame, and a loop does nothing but advance the tail by burst
// descriptors, without ever looking at what became of them. What a driver reaches is to be
// compared with that. It runs for about d and returns frames a second, counted when the
// device had sent the last. inst is an instance of this driver whose transmit queue 0 is
// idle, and stays usable.
//
// A tail may not advance by a whole ring, so a burst is at most half of it.
func BareTransmit(ctx context.Context, inst pci.Instance, frame []byte, burst int, d time.Duration) (float64, error) {
	n, ok := inst.(*nic)
	if !ok {
		return 0, fmt.Errorf("measuring the bare loop on %T: no instance of e1000: %w", inst, bus.ErrNotSupported)
	}
	if burst < 1 || len(frame) < minWire || len(frame) > frameLen(n.MTU()) {
		return 0, n.errorf("measuring the bare loop: burst %d of %d bytes: want at least 1, and %d to %d: %w", burst, len(frame), minWire, frameLen(n.MTU()), bus.ErrNotSupported)
	}
	q := &n.tx[0]
	pool, err := netdev.NewTxPool(q, 1, len(frame))
	if err != nil {
		return 0, err
	}
	defer pool.Close()
	b := pool.Get()
	copy(b.Mem, frame)
	if err := q.Drain(ctx); err != nil {
		return 0, err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed || n.dead.Load() {
		return 0, n.errorf("measuring the bare loop: %w", bus.ErrGone)
	}
	if err := n.alive("measuring the bare loop"); err != nil {
		return 0, err
	}
	size := int(q.c.mask) + 1
	for i := range uint32(size) {
		cmd := txEOP | txIFCS | txCmd(len(frame))
		if (i+1)%reportEvery == 0 {
			cmd |= txRS
		}
		putTx(q.ring, i, b.Addr, cmd)
	}
	before := q.sent
	pps, err := n.ringDoorbell(ctx, uint64(min(burst, size/2)), d)
	q.octets += (q.sent - before) * uint64(len(frame))
	return pps, err
}

// ringDoorbell is the loop itself. Called with the queue's lock held.
func (n *nic) ringDoorbell(ctx context.Context, burst uint64, d time.Duration) (float64, error) {
	const looks = 64 // doorbells between two looks at the clock
	q := &n.tx[0]
	first := q.c.tail
	start := time.Now()
	for time.Since(start) < d && ctx.Err() == nil && !n.stopped() {
		for range looks {
			q.c.tail += burst
			n.regs.Write32(q.tail, q.c.at(q.c.tail))
		}
	}
	// Reading a register waits for the writes before it; then the device has sent all.
	err := n.poll(ctx, time.Second, func() bool { return n.regs.Read32(regTDH(0)) == q.c.at(q.c.tail) })
	took := time.Since(start)
	sent := q.c.tail - first
	q.c.head = q.c.tail
	q.sent += sent
	if err != nil {
		return 0, n.errorf("measuring the bare loop: TDH has not reached TDT: %w", err)
	}
	return float64(sent) / took.Seconds(), nil
}
