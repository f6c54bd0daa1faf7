package e1000

import (
	"math"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/netdev"
)

// NAPI is how the queues are polled; netdev.NAPIUser.
func (n *nic) NAPI() netdev.NAPI { return *n.napi.Load() }

// SetNAPI changes it, for polls that run too; netdev.NAPIUser.
func (n *nic) SetNAPI(p netdev.NAPI) error {
	switch {
	case p.Weight < 0 || p.Weight > netdev.Budget:
		return n.errorf("weight %d, want 1 to %d: %w", p.Weight, netdev.Budget, unix.ERANGE)
	case p.DeferHardIRQs < 0 || p.DeferHardIRQs > math.MaxInt32 || p.GROFlushTimeout < 0:
		return n.errorf("deferring interrupts: %d times %s: %w", p.DeferHardIRQs, p.GROFlushTimeout, unix.ERANGE)
	}
	n.napi.Store(&p)
	return nil
}

// NAPI is how the queue is polled, for netdev.Poll.
func (q *rxQueue) NAPI() netdev.NAPI { return q.nic.NAPI() }

// Done is closed when the device is out of service, for netdev.Poll.
func (q *rxQueue) Done() <-chan struct{} { return q.nic.done }

// Stopped is whether the device is out of service for a while, for netdev.Wire.
func (q *rxQueue) Stopped() bool { return q.nic.stopped() }
