package portbus

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// Recover takes all that stands below this port through error recovery, as the kernel's pcie_do_recovery does (Linux,
// Documentation/PCI/pci-error-recovery): everybody below is told and votes; frozen says that the link cannot be used, and then reset
// is called, which must bring it back; where all can go on without a reset their registers are looked at; where somebody wants one they are
// told that it happened; at last traffic goes on. at is the function that detected the error, this port or one below, whose status is
// cleared in the end. An event collector, and an endpoint that it collects for, have nothing below: they recover alone. The verdict is
// bus.Recovered, or why not. Recoveries below the same root port wait for each other.
//
// A recovery that began comes to its end though ctx ends, since drivers that were told to stop wait for it: within finishTime, or
// until the port dies. reset is called with a context that says so.
func (p *Port) Recover(ctx context.Context, at *pci.Member, frozen bool, reset func(context.Context) bus.Verdict) bus.Verdict {
	turn := p.bus.recovery(p.root())
	select {
	case turn <- struct{}{}:
		defer func() { <-turn }()
	case <-ctx.Done(): // so that a port can be closed whose turn never comes
		return bus.Disconnect
	}
	if ctx.Err() != nil { // nobody was told yet
		return bus.Disconnect
	}
	ctx, done := p.lasting(ctx)
	defer done()
	w := walk{p: p, ctx: ctx, bridge: p.Member()}
	if p.exp.Type == pci.ExpCollector {
		w.bridge = at
		w.members = []*pci.Member{at}
	} else {
		w.members = p.Below()
	}
	vote := w.detected(frozen)
	if frozen {
		if reset(ctx) != bus.Recovered {
			w.log(slog.LevelWarn, "subordinate device reset failed")
			return w.failed(vote)
		}
	}
	if vote == bus.CanRecover {
		vote = w.each(bus.Recovered, func(i pci.Instance) bus.Verdict {
			if h, ok := i.(bus.MMIOHandler); ok {
				return h.MMIOEnabled()
			}
			return bus.NoVote
		})
	}
	if vote == bus.NeedReset {
		vote = w.each(bus.Recovered, func(i pci.Instance) bus.Verdict {
			if h, ok := i.(bus.ErrorHandler); ok {
				return h.SlotReset(ctx)
			}
			return bus.NoVote
		})
	}
	if vote != bus.Recovered {
		return w.failed(vote)
	}
	w.resume()
	ClearStatus(at)
	w.log(slog.LevelInfo, "device recovery successful")
	return bus.Recovered
}

// root is the address of the root port that the port stands below, or its own.
func (p *Port) root() pci.Addr {
	f := p.env.Function
	if f == nil {
		return p.addr
	}
	for f.Parent != nil {
		f = f.Parent
	}
	return f.Addr
}

// walk is one recovery.
type walk struct {
	p       *Port
	ctx     context.Context
	bridge  *pci.Member // whose recovery it is, in messages
	members []*pci.Member
}

func (w *walk) log(level slog.Level, text string) {
	w.p.LogOf(w.bridge, level, "%s%s", w.p.prof.Ports.RecoveryPrefix, text)
}

// detected tells everybody of the error and gathers votes.
func (w *walk) detected(frozen bool) bus.Verdict {
	all := bus.CanRecover
	for _, m := range w.members {
		vote := bus.NoVote
		m.Use(func(i pci.Instance) {
			h, ok := i.(bus.ErrorHandler)
			switch {
			case m.Device.Err() != nil:
				vote = bus.Disconnect
			case ok:
				vote = h.ErrorDetected(frozen)
			case m.Function.Header != pci.HeaderBridge:
				vote = bus.NoHandler
				w.p.LogOf(m, slog.LevelInfo, "%scan't recover (no error_detected callback)", w.p.prof.Ports.RecoveryPrefix)
			}
		})
		w.tell(m, vote)
		all = Merge(all, vote)
	}
	return all
}

// each asks everybody the same and merges the answers into start.
func (w *walk) each(start bus.Verdict, ask func(pci.Instance) bus.Verdict) bus.Verdict {
	all := start
	for _, m := range w.members {
		vote := bus.NoVote
		m.Use(func(i pci.Instance) {
			if i != nil {
				vote = ask(i)
			}
		})
		all = Merge(all, vote)
	}
	return all
}

// resume lets traffic go on, and says so of everything that stands below, with or without a driver.
func (w *walk) resume() {
	for _, m := range w.members {
		m.Use(func(i pci.Instance) {
			if h, ok := i.(bus.ErrorHandler); ok {
				h.ErrorResume()
			}
		})
		w.tell(m, bus.Recovered)
	}
}

func (w *walk) failed(vote bus.Verdict) bus.Verdict {
	for _, m := range w.members {
		w.tell(m, bus.Disconnect)
	}
	w.log(slog.LevelInfo, "device recovery failed")
	if w.ctx.Err() != nil && w.p.dev.Err() == nil {
		w.log(slog.LevelWarn, fmt.Sprintf("the recovery was cut off %v after the service was taken away: drivers below stay stopped until they are bound again", w.p.finish))
	}
	if vote == bus.Recovered || vote == bus.CanRecover {
		vote = bus.Disconnect
	}
	return vote
}

// tell is the uevent that goes with a vote.
func (w *walk) tell(m *pci.Member, vote bus.Verdict) {
	h := w.p.env.Bus
	if h == nil {
		return
	}
	event, online := "", "0"
	switch vote {
	case bus.NoVote, bus.CanRecover, bus.NeedReset:
		event = "BEGIN_RECOVERY"
	case bus.Recovered:
		event, online = "SUCCESSFUL_RECOVERY", "1"
	case bus.Disconnect:
		event = "FAILED_RECOVERY"
	default:
		return
	}
	h.Uevent("change", pci.SysfsPath(m.Function), "pci", "ERROR_EVENT="+event, "DEVICE_ONLINE="+online)
}

// Merge joins one more vote to what was voted so far.
func Merge(so, vote bus.Verdict) bus.Verdict {
	switch {
	case vote == bus.NoHandler:
		return bus.NoHandler
	case vote == bus.NoVote:
		return so
	case so == bus.CanRecover || so == bus.Recovered:
		return vote
	case so == bus.Disconnect && vote == bus.NeedReset:
		return bus.NeedReset
	}
	return so
}

// ErrorDetected is the port's own vote when a port above it recovers; bus.ErrorHandler.
func (p *Port) ErrorDetected(frozen bool) bus.Verdict {
	p.upset(true)
	if frozen {
		return bus.NeedReset
	}
	return bus.CanRecover
}

// MMIOEnabled is a bus.MMIOHandler's.
func (p *Port) MMIOEnabled() bus.Verdict { return bus.Recovered }

// SlotReset sets the services up again after the port was reset; bus.ErrorHandler.
func (p *Port) SlotReset(ctx context.Context) bus.Verdict {
	defer p.upset(false)
	for _, d := range p.devices {
		// Who holds it takes the service into service or out of it just now, or suspends it: there is nothing to set up. He may wait for
		// the very recovery that asks.
		if !d.mu.TryLock() {
			continue
		}
		r, ok := d.inst.(Restorer)
		if ok {
			if err := r.SlotReset(ctx); err != nil {
				d.Log(slog.LevelWarn, "setting up again after a reset: %v", err)
			}
		}
		d.mu.Unlock()
	}
	if p.dev.Err() != nil {
		return bus.Disconnect
	}
	return bus.Recovered
}

// ErrorResume is a bus.ErrorHandler's: services never stopped.
func (p *Port) ErrorResume() { p.upset(false) }
