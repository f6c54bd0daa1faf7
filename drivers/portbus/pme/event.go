package pme

import (
	"context"
	"log/slog"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/drivers/portbus"
)

// riseTime is how long a function takes from D3hot to D0 (PCI Power Management 1.2, 5.4).
const riseTime = 10 * time.Millisecond

// event sees to a PME from a requester.
func (s *service) event(ctx context.Context, from uint16) {
	a := pci.Addr{Domain: s.port.Addr().Domain, Bus: uint8(from >> 8), Dev: uint8(from >> 3 & 0x1f), Fn: uint8(from & 7)}
	if !s.find(ctx, a) && ctx.Err() == nil && s.port.Err() == nil {
		s.d.Log(slog.LevelInfo, "Spurious native interrupt!")
	}
}

// find wakes up whoever asked in a requester's name, and says whether there was somebody.
func (s *service) find(ctx context.Context, a pci.Addr) bool {
	h := s.port.Hierarchy()
	if h == nil {
		return false
	}
	if a == s.port.Addr() {
		// It may be the port itself, or that the port speaks for what is no PCI Express device.
		return s.check(ctx, s.port.Member()) || s.conventional(ctx, nil)
	}
	if bridge := s.bridgeTo(a.Bus); bridge != nil && isToPCI(bridge) && a.Dev == 0 && a.Fn == 0 {
		if s.conventional(ctx, bridge.Function) {
			return true
		}
	}
	m := h.Find(a)
	if m == nil {
		return false
	}
	if s.check(ctx, m) {
		return true
	}
	return isToPCI(m) && s.conventional(ctx, m.Function)
}

// bridgeTo is the bridge below the port whose secondary bus has a number; nil if it has none.
func (s *service) bridgeTo(number uint8) *pci.Member {
	for _, m := range s.port.Below() {
		if m.Function.IsBridge() && m.Function.Secondary == number {
			return m
		}
	}
	return nil
}

// isToPCI says whether conventional PCI is behind a function.
func isToPCI(m *pci.Member) bool {
	e, ok := pci.FindExpress(m.Device.Config())
	return ok && e.Type == pci.ExpToPCI
}

// conventional asks all that is no PCI Express device behind a bridge; nil is the port.
func (s *service) conventional(ctx context.Context, bridge *pci.Function) (found bool) {
	for _, m := range s.port.Below() {
		if bridge != nil && !behind(m.Function, bridge) {
			continue
		}
		if _, express := pci.FindExpress(m.Device.Config()); !express && s.check(ctx, m) {
			found = true
		}
	}
	return found
}

func behind(f, bridge *pci.Function) bool {
	for f = f.Parent; f != nil; f = f.Parent {
		if f == bridge {
			return true
		}
	}
	return false
}

// check says whether a function asked for power, acknowledges that and wakes it up.
func (s *service) check(ctx context.Context, m *pci.Member) bool {
	if !portbus.TakePME(m) {
		return false
	}
	if err := s.rouse(ctx, m); err != nil && ctx.Err() == nil {
		s.port.LogOf(m, slog.LevelWarn, "PME: waking up: %v", err)
	}
	return true
}

// rouse wakes a function up.
func (s *service) rouse(ctx context.Context, m *pci.Member) error {
	if w, ok := s.port.Hierarchy().(pci.Waker); ok {
		return w.Wake(ctx, m.Function.Addr)
	}
	if !portbus.PowerUp(m) {
		return nil // it is awake
	}
	if err := s.port.Sleep(ctx, riseTime); err != nil {
		return err
	}
	var err error
	m.Use(func(i pci.Instance) {
		if h, ok := i.(bus.PowerHandler); ok {
			err = h.Resume(ctx)
		}
	})
	return err
}
