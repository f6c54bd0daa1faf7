package rionet

import (
	"context"
	"math"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/netdev"
	"github.com/ring3dev/ring3/rionet/rapidio"
)

// Limits of the MTU: IPv4's lowest, and what fits a message with an Ethernet header.
const (
	headerLen = 14
	minMTU    = 68
	maxMTU    = rapidio.MaxMessage - headerLen
)

// MTU is the largest payload in bytes, at first 4082; netdev.Device.
func (d *Device) MTU() int { return int(d.mtu.Load()) }

// MTURange is 68 to 4082; netdev.MTUSetter.
func (d *Device) MTURange() (lowest, highest int) { return minMTU, maxMTU }

// SetMTU changes the MTU; netdev.MTUSetter. It bounds what is sent: what comes in is received whatever its length.
func (d *Device) SetMTU(_ context.Context, mtu int) error {
	if mtu < minMTU || mtu > maxMTU {
		return d.errorf("MTU %d, want %d to %d: %w", mtu, minMTU, maxMTU, unix.EINVAL)
	}
	if d.dead() {
		return d.errorf("MTU %d: %w", mtu, d.Err())
	}
	d.mtu.Store(int32(mtu))
	return nil
}

// NAPI is how the receive queue is polled; netdev.NAPIUser.
func (d *Device) NAPI() netdev.NAPI { return *d.napi.Load() }

// SetNAPI changes it, for polls that run too; netdev.NAPIUser.
func (d *Device) SetNAPI(p netdev.NAPI) error {
	switch {
	case p.Weight < 0 || p.Weight > netdev.Budget:
		return d.errorf("weight %d, want 1 to %d: %w", p.Weight, netdev.Budget, unix.ERANGE)
	case p.DeferHardIRQs < 0 || p.DeferHardIRQs > math.MaxInt32 || p.GROFlushTimeout < 0:
		return d.errorf("deferring interrupts: %d times %s: %w", p.DeferHardIRQs, p.GROFlushTimeout, unix.ERANGE)
	}
	d.napi.Store(&p)
	return nil
}

// NAPI is how the queue is polled, for netdev.Poll.
func (q *rxQueue) NAPI() netdev.NAPI { return q.dev.NAPI() }

// Done is closed when the device is out of service, for netdev.Poll.
func (q *rxQueue) Done() <-chan struct{} { return q.dev.done }
