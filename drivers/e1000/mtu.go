package e1000

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus/dma"
)

// Limits of the MTU: IPv4's lowest, and frames of 9018 bytes with their check sequence for the
// 82574L, of 16128 for the 8254x.
const (
	defaultMTU  = 1500
	minMTU      = 68
	maxMTU82574 = 9000
	maxMTU8254x = 16110
)

// errInvalid is what a value gives that cannot be.
const errInvalid = unix.EINVAL

// stopTime is how long a receiver that was disabled may still write a frame.
const stopTime = 10 * time.Millisecond

// rxBufSize is the smallest buffer that the hardware knows, RCTL.BSIZE and BSEX, that a frame
// fits in at an MTU, with tag and check sequence.
func rxBufSize(mtu int) int {
	for _, size := range []int{2048, 4096, 8192} {
		if frameLen(mtu)+fcsLen <= size {
			return size
		}
	}
	return 16384
}

// rctlLen is the bits of RCTL that say how long frames are.
const rctlLen = rctlLPE | rctlBSIZE | rctlBSEX

// rctlOf is those bits at an MTU. Without LPE the hardware takes 1522 bytes.
func rctlOf(mtu int) (v rctl) {
	if frameLen(mtu)+fcsLen > 1522 {
		v |= rctlLPE
	}
	switch rxBufSize(mtu) {
	case 4096:
		v |= rctlBSEX | put(rctlBSIZE, 3)
	case 8192:
		v |= rctlBSEX | put(rctlBSIZE, 2)
	case 16384:
		v |= rctlBSEX | put(rctlBSIZE, 1)
	}
	return v
}

// MTU is the largest payload in bytes.
func (n *nic) MTU() int { return int(n.mtu.Load()) }

// MTURange is the smallest and the largest MTU; netdev.MTUSetter.
func (n *nic) MTURange() (lowest, highest int) { return minMTU, n.chip.maxMTU() }

func (c chip) maxMTU() int {
	if c.pcie {
		return maxMTU82574
	}
	return maxMTU8254x
}

// SetMTU changes the MTU; netdev.MTUSetter. Where the receive buffers do not fit the new one, the
// receiver is stopped and begins anew with others: frames that were received and not taken
// are lost, frames that the program holds stay what they are. On QEMU's 82540EM it is deaf
// for a second after that.
func (n *nic) SetMTU(_ context.Context, mtu int) error {
	if mtu < minMTU || mtu > n.chip.maxMTU() {
		return n.errorf("MTU %d: the %s takes %d to %d: %w", mtu, n.chip.model, minMTU, n.chip.maxMTU(), errInvalid)
	}
	n.confMu.Lock()
	defer n.confMu.Unlock()
	step := fmt.Sprintf("MTU %d", mtu)
	if err := n.alive(step); err != nil {
		return err
	}
	old := int(n.mtu.Load())
	if rctlOf(mtu) != rctlOf(old) {
		if err := n.resizeRx(mtu); err != nil {
			return err
		}
	}
	n.mtu.Store(int32(mtu))
	for i := range n.queues {
		q := &n.tx[i]
		q.mu.Lock()
		q.limit = frameLen(mtu)
		q.mu.Unlock()
	}
	n.pauseThresholds()
	return n.alive(step)
}

// resizeRx gives the receiver buffers for another MTU. Called with confMu held.
func (n *nic) resizeRx(mtu int) error {
	size := rxBufSize(mtu)
	var pools [maxQueues]*dma.Pool
	for i := range n.queues {
		pool, err := newRxPool(n.dev.DMA(), n.ring, size)
		if err != nil {
			for _, p := range pools[:i] {
				p.Close()
			}
			return n.errorf("MTU %d: %w", mtu, err)
		}
		pools[i] = pool
	}
	n.lockRx()
	defer n.unlockRx()
	v := rctl(n.regs.Read32(regRCTL)) &^ rctlLen
	n.regs.Write32(regRCTL, uint32(v&^rctlEN))
	n.regs.Read32(regSTATUS)
	stop := time.NewTimer(stopTime)
	defer stop.Stop()
	select {
	case <-stop.C:
	case <-n.done:
	}
	for i := range n.queues {
		n.rx[i].renew(pools[i])
	}
	n.startReceiver(v|rctlEN|rctlOf(mtu), func(q *rxQueue) { q.refill() })
	return nil
}

// lockRx takes the locks of all receive queues, in order.
func (n *nic) lockRx() {
	for i := range n.queues {
		n.rx[i].mu.Lock()
	}
}

func (n *nic) unlockRx() {
	for i := range n.queues {
		n.rx[i].mu.Unlock()
	}
}

// startReceiver writes RCTL with the receiver enabled, and gives each queue its buffers. Called with the receive
// queues' locks held.
func (n *nic) startReceiver(v rctl, give func(*rxQueue)) {
	n.regs.Write32(regRCTL, uint32(v))
	if n.chip.quirk {
		n.regs.Read32(regSTATUS) // the time runs from when RCTL was written
		n.deafUntil.Store(time.Now().Add(deafTime).UnixNano())
	}
	for i := range n.queues {
		give(&n.rx[i])
	}
}
