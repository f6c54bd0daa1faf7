package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/internal/link"
	"github.com/ring3dev/ring3/netdev/tap"
)

// outsideTAP is about the kernel interface of a device: tapCall, answered with tap.Reply and files.
const outsideTAP link.Method = 0x0330

type tapCall struct {
	Device string `json:"device"`
	tap.Request
}

// TAP implements Outside.
func (o *farOutside) TAP(device string) tap.Lender { return &farTAP{o, device} }

// farTAP asks the supervisor for an interface; tap.Lender.
type farTAP struct {
	o      *farOutside
	device string
}

// Call implements tap.Lender.
func (l *farTAP) Call(ctx context.Context, q tap.Request) (r tap.Reply, files []*os.File, err error) {
	files, err = l.o.call(ctx, outsideTAP, tapCall{l.device, q}, &r)
	return r, files, err
}

// heldTAPs are the interfaces of a group. They are made when a worker first asks, and outlive it; outsideBackend. Safe for concurrent use.
type heldTAPs struct {
	plan Plan
	c    Config

	mu     sync.Mutex
	closed bool
	taps   map[string]*tap.Holder // by device
}

// holdTAPs is one of outsideBackends.
func holdTAPs(c Config, g groupPlan) (outsideBackend, error) {
	if len(g.Plan.Taps) == 0 {
		return nil, nil
	}
	return &heldTAPs{plan: g.Plan, c: c, taps: map[string]*tap.Holder{}}, nil
}

func (h *heldTAPs) calls() map[link.Method]outsideCall {
	return map[link.Method]outsideCall{outsideTAP: h.answer}
}

// maxTAPCall bounds a request, in bytes.
const maxTAPCall = 1024

// answer answers outsideTAP.
func (h *heldTAPs) answer(ctx context.Context, body []byte, _ []*os.File) (any, []*os.File, error) {
	var q tapCall
	if len(body) > maxTAPCall {
		return nil, nil, fmt.Errorf("tap: a request of %d bytes, want at most %d: %w", len(body), maxTAPCall, bus.ErrProtocol)
	}
	if err := asked(body, &q); err != nil {
		return nil, nil, fmt.Errorf("tap: %w", err)
	}
	t, err := h.holder(q.Device)
	if err != nil {
		return nil, nil, err
	}
	r, files, err := t.Call(ctx, q.Request)
	return r, files, err
}

// holder is the interface of a device that the plan makes one.
func (h *heldTAPs) holder(device string) (*tap.Holder, error) {
	spec := h.plan.tap(device)
	if spec == nil {
		return nil, fmt.Errorf("tap: device %.64q: the plan makes it no kernel interface: %w", device, syscall.EACCES)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, fmt.Errorf("tap %s: %w", spec.Interface, bus.ErrClosed)
	}
	t := h.taps[device]
	if t == nil {
		t = tap.Hold(tap.Config{Name: spec.Interface, Up: spec.Up, Log: h.c.Log})
		h.taps[device] = t
	}
	return t, nil
}

// Quiesce implements outsideBackend: the interfaces wait for the next worker.
func (h *heldTAPs) Quiesce(context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, t := range h.taps {
		t.Left()
	}
	return nil
}

// Close implements outsideBackend.
func (h *heldTAPs) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	var errs []error
	for _, t := range h.taps {
		errs = append(errs, t.Close())
	}
	return errors.Join(errs...)
}
