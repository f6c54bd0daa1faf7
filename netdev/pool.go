package netdev

import "github.com/ring3dev/ring3/bus/dma"

// sizedPools is implemented by transmit queues that can make pools of buffers smaller than
// their usual ones.
type sizedPools interface {
	NewPoolOf(n, size int) (*dma.Pool, error)
}

// NewTxPool makes a pool of n buffers for frames of up to size bytes, which q can send
// from. Buffers no larger than the frames lie close together, and a device model in
// another process reads frames of 60 bytes that lie together up to half as fast again as
// frames 2048 bytes apart: fewer pages, and a pattern that caches foresee. A queue that has
// no choice makes its usual pool; BufSize tells.
func NewTxPool(q TxQueue, n, size int) (*dma.Pool, error) {
	if s, ok := q.(sizedPools); ok && size > 0 && size <= dma.BufSize {
		return s.NewPoolOf(n, size)
	}
	return q.NewPool(n)
}
