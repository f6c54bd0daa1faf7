package portbus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// Times of a secondary bus reset: how long it is asserted (Trst, PCI Local Bus 3.0, 4.3.2: 1 ms), how long the link may take to come
// back where it is a fast one, and how long nobody may ask what is below afterwards, and how long it may then take to answer (PCI
// Express Base 5.0, 6.6.1).
const (
	resetHold  = 2 * time.Millisecond
	linkTime   = time.Second
	resetQuiet = 100 * time.Millisecond
	readyTime  = time.Second
	readyStep  = 10 * time.Millisecond
	// finishTime is how long what must be finished goes on once whoever wanted it does not any more: a link, and a few functions.
	finishTime = 5 * time.Second
)

// lastingKey marks a context that lasting made.
type lastingKey struct{}

// lasting is a context for what must not stop half-way. It ends finishTime after ctx, and when the port dies. That is a bound for people who wait, so it is of the
// wall clock: each wait for hardware has its own, by the port's clock, which in virtual time may run ahead of what is computed between two waits.
func (p *Port) lasting(ctx context.Context) (context.Context, func()) {
	if ctx.Value(lastingKey{}) != nil {
		return ctx, func() {}
	}
	long, cancel := context.WithCancel(context.WithValue(context.WithoutCancel(ctx), lastingKey{}, true))
	joined := make(chan struct{})
	go func() {
		defer close(joined)
		defer cancel()
		select {
		case <-ctx.Done():
		case <-p.dev.Done():
			return
		case <-long.Done():
			return
		}
		bound := time.NewTimer(p.finish)
		defer bound.Stop()
		select {
		case <-bound.C:
		case <-p.dev.Done():
		case <-long.Done():
		}
	}()
	return long, func() {
		cancel()
		<-joined
	}
}

// ResetBelow resets all that stands behind the port by its secondary bus, and brings config space and interrupt messages back to what they
// were. Hot-plug, if it serves the slot, takes no notice. What somebody else has there (Others) is reset too, since the link is one, and cannot be brought
// back: a message says so. Once the reset began it is finished though ctx ends, as in Recover: nothing is left reset and not restored.
func (p *Port) ResetBelow(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	ctx, done := p.lasting(ctx)
	defer done()
	restores := p.saveBelow()
	reset := p.resetBus
	if r, ok := p.Service(HP).(SlotResetter); ok {
		reset = func(ctx context.Context) error { return r.ResetSlot(ctx, p.resetBus) }
	}
	others := p.Others()
	if err := reset(ctx); err != nil {
		return err
	}
	if len(others) > 0 {
		p.Log(slog.LevelWarn, "%s: reset under the kernel's driver: root writes 1 to its file remove, and to /sys/bus/pci/rescan", strings.Join(others, ", "))
	}
	return p.restoreBelow(ctx, restores, "bus reset")
}

// RestoreBelow waits until all that stands behind the port answers again after its link was down, which reset it, and brings config space
// and interrupt messages back to what they were when each function came into service. what is for messages: "DPC". It is finished though ctx
// ends.
func (p *Port) RestoreBelow(ctx context.Context, what string) error {
	ctx, done := p.lasting(ctx)
	defer done()
	var all []saved
	for _, m := range p.Below() {
		all = append(all, saved{m: m, restore: m.Restore, aer: func() { clearAER(m) }})
	}
	return p.restoreBelow(ctx, all, what)
}

// resetBus asserts Secondary Bus Reset.
func (p *Port) resetBus(ctx context.Context) error {
	old := p.modify(pci.CfgBridgeCtl, 0, pci.BridgeReset)
	if old == 0xffff {
		return fmt.Errorf("%s: resetting the bus behind the port: Bridge Control reads all-ones: %w", p.addr, bus.ErrGone)
	}
	err := p.Sleep(ctx, resetHold)
	p.modify(pci.CfgBridgeCtl, pci.BridgeReset, 0) // whatever happened
	if err != nil {
		return err
	}
	return p.awaitLink(ctx)
}

// awaitLink waits for the link, and then for as long as nobody may use it. Up to 5 GT/s the time counts from the reset, above from when the link is
// up; a port that does not report that is given all the time there is.
func (p *Port) awaitLink(ctx context.Context) error {
	if len(p.Below()) == 0 && len(p.Others()) == 0 {
		return nil
	}
	if p.exp.HasLink() && p.fastLink() {
		if p.cfg.Read32(p.exp.At+pci.ExpLnkCap)&pci.LnkCapActive == 0 {
			return p.Sleep(ctx, linkTime+resetQuiet)
		}
		if err := p.awaitActive(ctx); err != nil {
			return err
		}
	}
	return p.Sleep(ctx, resetQuiet)
}

// awaitActive waits until the port says that the link is up.
func (p *Port) awaitActive(ctx context.Context) error {
	for waited := time.Duration(0); ; waited += readyStep {
		if sta := p.cfg.Read16(p.exp.At + pci.ExpLnkSta); sta != 0xffff && sta&pci.LnkStaActive != 0 {
			return nil
		}
		if err := p.dev.Err(); err != nil {
			return err
		}
		if waited >= linkTime {
			return fmt.Errorf("%s: the link is not up %v after a reset: %w", p.addr, linkTime, bus.ErrTimeout)
		}
		if err := p.Sleep(ctx, readyStep); err != nil {
			return err
		}
	}
}

// fastLink says whether the port could be faster than 5 GT/s, or does not say how fast it could be.
func (p *Port) fastLink() bool {
	const (
		gt5   = 2    // in Link Capabilities
		sls   = 0xfe // Supported Link Speeds in Link Capabilities 2 (7.5.3.18)
		above = 0xf8 // of those
	)
	if p.exp.Version >= 2 {
		if v := p.cfg.Read32(p.exp.At + pci.ExpLnkCap2); v != 0 {
			return v&sls == 0 || v&above != 0
		}
	}
	v := p.cfg.Read32(p.exp.At+pci.ExpLnkCap) & uint32(pci.LnkStaSpeed)
	return v == 0 || v > gt5
}

// saved is one function's state.
type saved struct {
	m       *pci.Member
	restore func() error
	aer     func() // what no capability list below 256 bytes holds
}

// saveBelow remembers what answers; of what does not answer any more there is what it was when it came into service.
func (p *Port) saveBelow() (all []saved) {
	for _, m := range p.Below() {
		c := m.Device.Config()
		if c.Read16(pci.CfgVendor) == 0xffff {
			all = append(all, saved{m: m, restore: m.Restore})
			continue
		}
		all = append(all, saved{m, bus.SaveState(m.Device), saveAER(m)})
	}
	return all
}

// saveAER remembers masks and severities. Status registers survive a reset (they are sticky), and what they say is over with it: restoring
// clears them, as the kernel does, or the next error would be reported with this one.
func saveAER(m *pci.Member) func() {
	c := config(m)
	at, ok := pci.FindExtCap(c, pci.ExtCapAER)
	if !ok {
		return nil
	}
	regs := []bus.Off{pci.AERUncMask, pci.AERUncSev, pci.AERCorMask, pci.AERCap}
	values := make([]uint32, len(regs))
	for i, r := range regs {
		values[i] = c.Read32(at + r)
	}
	return func() {
		for i, r := range regs {
			c.Write32(at+r, values[i])
		}
		clearAER(m)
	}
}

// clearAER clears what a function recorded of errors.
func clearAER(m *pci.Member) {
	ClearErrors(m, pci.AERNonFatal, ^uint32(0))
	ClearErrors(m, pci.AERCorrectable, ^uint32(0))
}

// restoreBelow waits for each function, parents first, and brings it back. One that was removed meanwhile is nobody's any more. One that does
// not come back, and what stands behind it, is left; the others are brought back all the same.
func (p *Port) restoreBelow(ctx context.Context, all []saved, what string) error {
	var errs []error
	var lost []*pci.Function
	for _, s := range all {
		if slices.ContainsFunc(lost, func(f *pci.Function) bool { return behind(s.m.Function, f) }) {
			continue
		}
		err := p.awaitReady(ctx, s.m)
		switch {
		case s.m.Device.Err() != nil:
			lost = append(lost, s.m.Function)
			continue
		case errors.Is(err, bus.ErrTimeout):
			p.LogOf(s.m, slog.LevelWarn, "not ready %dms after %s; giving up", readyTime.Milliseconds(), what)
		case err == nil:
			err = s.bringBack()
		}
		if err != nil {
			lost = append(lost, s.m.Function)
			errs = append(errs, err)
		}
		if p.dev.Err() != nil || ctx.Err() != nil {
			break
		}
	}
	if err := p.dev.Err(); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// bringBack restores one that answers. One that goes just then is as good as removed.
func (s saved) bringBack() error {
	if s.restore == nil {
		return nil
	}
	if err := s.restore(); err != nil {
		if s.m.Device.Err() != nil {
			return nil
		}
		return fmt.Errorf("%s: bringing back its state after the bus was reset: %w", s.m.Function.Addr, err)
	}
	if s.aer != nil {
		s.aer()
	}
	return nil
}

// behind says whether a function stands behind a bridge.
func behind(f, bridge *pci.Function) bool {
	for f = f.Parent; f != nil; f = f.Parent {
		if f == bridge {
			return true
		}
	}
	return false
}

// awaitReady waits until a function answers, or is gone for good.
func (p *Port) awaitReady(ctx context.Context, m *pci.Member) error {
	for waited := time.Duration(0); ; waited += readyStep {
		if err := m.Device.Err(); err != nil {
			return err
		}
		if m.Device.Config().Read16(pci.CfgVendor) != 0xffff {
			return nil
		}
		if err := p.dev.Err(); err != nil {
			return err
		}
		if waited >= readyTime {
			return fmt.Errorf("%s: it does not answer %v after a bus reset: %w", m.Function.Addr, readyTime, bus.ErrTimeout)
		}
		if err := p.Sleep(ctx, readyStep); err != nil {
			return fmt.Errorf("%s: waiting until it answers after a bus reset: %w", m.Function.Addr, err)
		}
	}
}
