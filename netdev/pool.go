package netdev

import "github.com/ring3dev/ring3/bus/dma"

// sizedPools is implemented by transmit queues that can make pools of buffers of other sizes than
// their usual one.
type sizedPools interface {
	NewPoolOf(n, size int) (*dma.Pool, error)
}

// MaxGSO is the longest frame that a device cuts into segments: an IP packet of 65535 bytes
// behind an Ethernet header and two VLAN tags.
const MaxGSO = 14 + 2*4 + 65535

// headroom is what a program may keep in a buffer besides the frame: the TAP's header.
const headroom = 64

// NewTxPool makes a pool of n buffers for frames of up to size bytes, which q can send
// from. Buffers no larger than the frames lie close together, and a device model in
// another process reads frames of 60 bytes that lie together up to half as fast again as
// frames 2048 bytes apart: fewer pages, and a pattern that caches foresee. Jumbo frames, and
// frames of up to MaxGSO bytes that the device cuts into segments, take larger ones. A queue that
// has no choice makes its usual pool; BufSize tells.
func NewTxPool(q TxQueue, n, size int) (*dma.Pool, error) {
	if s, ok := q.(sizedPools); ok && size > 0 && size <= MaxGSO+headroom {
		return s.NewPoolOf(n, size)
	}
	return q.NewPool(n)
}
