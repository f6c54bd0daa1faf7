package porttest

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// Find is a pci.Hierarchy's.
func (r *Rig) Find(a pci.Addr) *pci.Member {
	if e := r.find(a); e != nil {
		return r.member(e)
	}
	return nil
}

// Below is a pci.Hierarchy's.
func (r *Rig) Below(port pci.Addr) []*pci.Member {
	var ms []*pci.Member
	for _, e := range r.below(port) {
		ms = append(ms, r.member(e))
	}
	return ms
}

func (r *Rig) member(e *entry) *pci.Member {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := &pci.Member{Function: e.fn, Device: e.dev, Name: e.name, Driver: e.driver, Use: e.using}
	m.Restore = func() error {
		e.use.RLock()
		defer e.use.RUnlock()
		if e.restore == nil {
			return nil
		}
		return e.restore()
	}
	return m
}

// Others is a pci.Foreign's.
func (r *Rig) Others(pci.Addr) []string {
	if r.opts.Others == nil {
		return nil
	}
	return r.opts.Others()
}

// Rescan is a pci.Hierarchy's.
func (r *Rig) Rescan(ctx context.Context, port pci.Addr) (int, error) {
	if r.opts.NoRescan {
		return 0, fmt.Errorf("%s: rescanning: the kernel has the bus: %w", port, bus.ErrNotSupported)
	}
	if err := r.take(ctx); err != nil {
		return 0, err
	}
	defer func() { <-r.turn }()
	e := r.find(port)
	if e == nil {
		return 0, fmt.Errorf("%s: rescanning: no such port: %w", port, bus.ErrGone)
	}
	found, err := r.m.Rescan(e.fn)
	if err != nil {
		return len(r.below(port)), err
	}
	r.adopt(found)
	r.bindNew(ctx)
	return len(r.below(port)), nil
}

// Remove is a pci.Hierarchy's.
func (r *Rig) Remove(ctx context.Context, port pci.Addr, gone bool) error {
	if err := r.take(ctx); err != nil {
		return err
	}
	defer func() { <-r.turn }()
	e := r.find(port)
	if e == nil {
		return fmt.Errorf("%s: removing what is behind it: no such port: %w", port, bus.ErrGone)
	}
	if gone {
		r.m.Disconnect(e.fn)
	}
	var err error
	for _, x := range slices.Backward(r.below(port)) {
		err = errors.Join(err, r.drop(x))
		if x.fn.Parent == e.fn {
			r.m.Forget(x.fn)
		}
	}
	return err
}

// Uevent is a pci.Hierarchy's.
func (r *Rig) Uevent(action, path, subsystem string, env ...string) {
	r.rec.event(action, path, subsystem, env)
}
