package bench

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/drivers/portbus"
)

// portMachine is a machine with ports: bus/sim's or bus/qemu's.
type portMachine interface {
	machine
	Topology() *pci.Topology
	Named(f *pci.Function) (name string, dev bus.Device, ok bool)
	InjectError(name string, e pci.AERError) error
}

// portRig is a machine whose ports' services are in service, and the host that they see (pci.Hierarchy, pci.Waker). It is as small as one can be: what it is told it
// hands to its observer, and does nothing about. Cards have a driver that takes part in recoveries, and does nothing either. So what is measured is the
// services, and no host.
type portRig struct {
	m       portMachine
	log     *slog.Logger
	seen    observer
	members []*pci.Member // parents before what is behind them
	ports   []pci.Instance
}

// newPortRig puts the devices of a machine into service. The machine belongs to the rig then.
func newPortRig(ctx context.Context, o *Options, m portMachine) (_ *portRig, err error) {
	r := &portRig{m: m}
	r.log = slog.New(&r.seen)
	defer func() {
		if err != nil {
			err = errors.Join(err, r.close())
		}
	}()
	b, err := portbus.New(o.Services...)
	if err != nil {
		return nil, err
	}
	for _, f := range m.Topology().Functions {
		name, dev, ok := m.Named(f)
		if !ok {
			continue
		}
		pci.EnableErrors(dev.Config()) // hosts do
		r.members = append(r.members, &pci.Member{Function: f, Device: dev, Name: name, Driver: "bench",
			Use: func(f func(pci.Instance)) { f(card{}) }, Restore: bus.SaveState(dev)})
	}
	for _, x := range r.members {
		if !x.Function.IsBridge() {
			continue
		}
		x.Driver = portbus.DriverName
		res := pci.Bind(ctx, x.Device, pci.Env{Name: x.Name, Log: r.log, Bus: r, Function: x.Function}, []*pci.Driver{b.PortDriver()})
		if res.Outcome != pci.Bound {
			return nil, fmt.Errorf("bench: %s: %w", x.Name, res.Err)
		}
		r.ports = append(r.ports, res.Instance)
		x.Use = func(f func(pci.Instance)) { f(res.Instance) }
	}
	return r, nil
}

func (r *portRig) close() error {
	var err error
	for _, p := range slices.Backward(r.ports) {
		err = errors.Join(err, p.Close())
	}
	return errors.Join(err, r.m.Close())
}

// portRegs is where a function's registers are.
type portRegs struct {
	cfg          bus.Config
	exp, aer, pm bus.Off
}

// regs are those of the device of a name; of none nothing.
func (r *portRig) regs(name string) (p portRegs) {
	i := slices.IndexFunc(r.members, func(m *pci.Member) bool { return m.Name == name })
	if i < 0 {
		return p
	}
	p.cfg = r.members[i].Device.Config()
	if e, ok := pci.FindExpress(p.cfg); ok {
		p.exp = e.At
	}
	p.aer, _ = pci.FindExtCap(p.cfg, pci.ExtCapAER)
	p.pm, _ = pci.FindCap(p.cfg, pci.CapPM)
	return p
}

// Find is a pci.Hierarchy's.
func (r *portRig) Find(a pci.Addr) *pci.Member {
	if i := slices.IndexFunc(r.members, func(m *pci.Member) bool { return m.Function.Addr == a }); i >= 0 {
		return r.members[i]
	}
	return nil
}

// Below is a pci.Hierarchy's.
func (r *portRig) Below(port pci.Addr) (out []*pci.Member) {
	for _, m := range r.members {
		for f := m.Function.Parent; f != nil; f = f.Parent {
			if f.Addr == port {
				out = append(out, m)
				break
			}
		}
	}
	return out
}

// Rescan is a pci.Hierarchy's: nothing comes.
func (r *portRig) Rescan(_ context.Context, port pci.Addr) (int, error) {
	return len(r.Below(port)), nil
}

// Remove is a pci.Hierarchy's: nothing goes.
func (r *portRig) Remove(context.Context, pci.Addr, bool) error { return nil }

// Uevent is a pci.Hierarchy's.
func (r *portRig) Uevent(action, path, _ string, env ...string) {
	r.seen.saw(time.Now(), action+"@"+path+" "+strings.Join(env, " "))
}

// Wake is a pci.Waker's.
func (r *portRig) Wake(_ context.Context, a pci.Addr) error {
	r.seen.saw(time.Now(), "wake "+a.String())
	return nil
}

// card is a driver that has nothing to lose in a recovery.
type card struct{}

func (card) Close() error                          { return nil }
func (card) ErrorDetected(bool) bus.Verdict        { return bus.NeedReset }
func (card) SlotReset(context.Context) bus.Verdict { return bus.Recovered }
func (card) ErrorResume()                          {}

// observer notes when each of some things was said for the first time: messages, events, wake-ups. It is a slog.Handler, called by whoever
// says it, so the time is that of the service's own goroutine, and nobody polls. Safe for concurrent use.
type observer struct {
	mu   sync.Mutex // guards what follows
	want []string   // "": it was said
	at   []time.Time
	left int
	done chan struct{}
}

// expect begins to wait for texts; done is closed when all were said.
func (w *observer) expect(ends []eventEnd) (done <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.want, w.at, w.left, w.done = nil, make([]time.Time, len(ends)), len(ends), make(chan struct{})
	for _, e := range ends {
		w.want = append(w.want, e.text)
	}
	return w.done
}

// times are when they were said.
func (w *observer) times() []time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.at
}

// missing are those that were not said yet.
func (w *observer) missing() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(w.want), func(t string) bool { return t == "" })
}

func (w *observer) saw(now time.Time, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, t := range w.want {
		if t != "" && strings.Contains(text, t) {
			w.want[i], w.at[i] = "", now
			if w.left--; w.left == 0 {
				close(w.done)
			}
			return
		}
	}
}

// Enabled is a slog.Handler's.
func (w *observer) Enabled(context.Context, slog.Level) bool { return true }

// Handle is a slog.Handler's.
func (w *observer) Handle(_ context.Context, r slog.Record) error {
	w.saw(time.Now(), r.Message)
	return nil
}

// WithAttrs is a slog.Handler's.
func (w *observer) WithAttrs([]slog.Attr) slog.Handler { return w }

// WithGroup is a slog.Handler's.
func (w *observer) WithGroup(string) slog.Handler { return w }
