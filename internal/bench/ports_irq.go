package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/qemu"
	"github.com/ring3dev/ring3/bus/sim"
	"github.com/ring3dev/ring3/internal/rt"
)

// Errors that are injected (PCI Express Base 5.0, 7.8.4.2, 7.8.4.5).
const (
	receiverError     uint32 = 1 << 0  // correctable
	completionTimeout uint32 = 1 << 14 // uncorrectable, not fatal
)

const (
	fewEvents = 10                     // one measurement has at least so many, however long they take
	eventRest = 500 * time.Microsecond // before each, as in the rows of --rt
	eventStep = 100 * time.Microsecond // between two looks whether the hardware is ready for the next
	eventTime = 10 * time.Second       // bounds the wait for one

	// settleTime is how long nobody may ask what is behind a link that came up (6.6.1).
	settleTime = 100 * time.Millisecond
)

// portEvent is something that a port interrupts for, and what tells that its service has handled it.
type portEvent struct {
	name string
	ends []eventEnd
	rest time.Duration // before each; 0: eventRest
	// next makes the hardware ready for one more, raise makes it interrupt, over says that it can be made ready again. next and over may be nil.
	next, raise func(context.Context) error
	over        func() bool
}

// eventEnd is a text, of a message, an event or a wake-up, to which is measured, and the name of its rows. Without a name it is only
// waited for.
type eventEnd struct {
	name, text string
	fixed      time.Duration // what the specification has everybody wait until then: it takes the place of the limit
}

// cases are the rows of an event.
func (e *portEvent) cases() (out []string) {
	for _, end := range e.ends {
		if end.name != "" {
			out = append(out, end.name+" p50", end.name+" p99")
		}
	}
	return append(out, e.name+" events")
}

// portIRQs measures the time from the call that makes a model raise a port's interrupt to what its service says when it has handled
// it. The limit is, in turn and with the same rest before each, an eventfd that is signalled and the first instruction of its handler: what any
// interrupt costs here. On QEMU the call is one of its monitor, whose round trip is the limit of one more row.
func portIRQs(ctx context.Context, o *Options, emit func(Row) error) error {
	for _, f := range []func(context.Context, *Options, func(Row) error) error{portIRQsSim, portIRQsQEMU} {
		if err := f(ctx, o, emit); err != nil {
			return fmt.Errorf("port-irq: %w", err)
		}
	}
	return nil
}

func (o *Options) wantsEvents(events []portEvent) bool {
	return slices.ContainsFunc(events, func(e portEvent) bool { return o.wantsAny("port-irq", e.cases()) })
}

// portIRQsSim has the interrupts of all services of one root port, which share a vector as on QEMU's, and of an empty slot.
func portIRQsSim(ctx context.Context, o *Options, emit func(Row) error) (err error) {
	if !o.wantsEvents(simEvents(&portRig{}, nil)) {
		return nil
	}
	m, err := sim.Start(ctx, sim.Config{Log: o.Log, Devices: []sim.DeviceSpec{
		{Name: "rp0", Model: "root-port", Props: []string{"dpc=on", "pme=on", "bw=on"}},
		{Name: "eth0", Model: "e1000e", Bus: "rp0", Props: []string{"aer=on", "pme=on"}},
		{Name: "rp1", Model: "root-port"},
	}})
	if err != nil {
		return err
	}
	r, err := newPortRig(ctx, o, m)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	return r.measure(ctx, o, simEvents(r, m), emit)
}

// simEvents are the events that bus/sim makes.
func simEvents(r *portRig, m *sim.Machine) []portEvent {
	port, nic := r.regs("rp0"), r.regs("eth0")
	speed, pressed := uint8(1), false
	press := func(context.Context) error { return m.PressButton("rp1") }
	return []portEvent{
		{
			name: "AER sim", ends: []eventEnd{{name: "AER sim", text: "   [ 0] RxErr"}}, // the last line of the report
			raise: func(context.Context) error { return m.InjectError("eth0", pci.AERError{Correctable: receiverError}) },
			over:  func() bool { return nic.cfg.Read32(nic.aer+pci.AERCorSta) == 0 },
		},
		{
			name: "PME sim", ends: []eventEnd{{name: "PME sim", text: "wake "}},
			next: func(context.Context) error { // the service disables it each time
				nic.cfg.Write16(nic.pm+pci.PMCtl, pci.PMCtlPMEEn|pci.PMCtlPMESta)
				return nil
			},
			raise: func(context.Context) error { return m.SignalPME("eth0") },
			over:  func() bool { return port.cfg.Read32(port.exp+pci.ExpRtSta)&pci.RtStaPME == 0 },
		},
		{
			name: "HP sim", ends: []eventEnd{{name: "HP sim", text: "Button press: will power on in 5 sec"}},
			next: func(ctx context.Context) error { // takes back the press before
				if !pressed {
					pressed = true
					return nil
				}
				_, err := r.wait(ctx, []eventEnd{{text: "canceling request"}}, press)
				return err
			},
			raise: press,
		},
		{
			name: "BW sim", ends: []eventEnd{{name: "BW sim", text: "LINK_SPEED="}}, rest: 12 * time.Millisecond, // it tells of changes each 10 ms
			raise: func(context.Context) error {
				speed = 3 - speed
				return m.SetLinkSpeed("rp0", speed, 1, true)
			},
		},
		{
			name:  "DPC sim",
			ends:  []eventEnd{{name: "DPC sim", text: "containment event"}, {name: "DPC sim released", text: "device recovery successful", fixed: settleTime}, {text: "ignored (recovered by DPC)"}},
			raise: func(context.Context) error { return m.TriggerDPC("rp0", 0, [4]uint32{}) },
		},
	}
}

// portIRQsQEMU has the errors of a root port: of all interrupts of ports QEMU 7.2 has those alone, and hot-plug's, which the rows of plug measure.
func portIRQsQEMU(ctx context.Context, o *Options, emit func(Row) error) (err error) {
	const monitor = "monitor alone"
	events := []portEvent{{
		name: "AER qemu", ends: []eventEnd{{name: "AER qemu", text: "   [14] CmpltTO"}, {name: "AER qemu recovered", text: "device recovery successful"}},
	}}
	alone := o.wantsAny("port-irq", []string{monitor + " p50", monitor + " p99"})
	if !alone && !o.wantsEvents(events) {
		return nil
	}
	m, err := qemu.Start(ctx, qemu.Config{Log: o.Log, Devices: []qemu.DeviceSpec{{Name: "rp0", Model: "pcie-root-port"}}})
	if err != nil {
		return err
	}
	r, err := newPortRig(ctx, o, m)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	events[0].raise = func(context.Context) error {
		return m.InjectError("rp0", pci.AERError{Uncorrectable: completionTimeout})
	}
	port := r.regs("rp0")
	events[0].over = func() bool { return port.cfg.Read32(port.aer+pci.AERUncSta) == 0 }
	if alone {
		e := portEvent{name: monitor, ends: []eventEnd{{name: monitor, text: monitor}}, raise: func(context.Context) error {
			_, err := m.Execute("human-monitor-command", map[string]any{"command-line": "info name"})
			r.seen.saw(time.Now(), monitor)
			return err
		}}
		events = append(events, e)
	}
	return r.measure(ctx, o, events, emit)
}

// measure measures events, in turn with an eventfd.
func (r *portRig) measure(ctx context.Context, o *Options, events []portEvent, emit func(Row) error) error {
	bare, err := newBareLine()
	if err != nil {
		return err
	}
	defer bare.close()
	for i := range events {
		e := &events[i]
		if !o.wantsAny("port-irq", e.cases()) {
			continue
		}
		if e.rest == 0 {
			e.rest = eventRest
		}
		var limits eventTimes
		values := make([]eventTimes, len(e.ends))
		for range o.Pairs {
			v, err := timed(o.Time, fewEvents, func() ([]time.Duration, error) { return r.once(ctx, e) })
			if err != nil {
				return fmt.Errorf("%s: %w", e.name, err)
			}
			for j := range v {
				values[j].add(v[j])
			}
			// As many, so that quantiles can be compared.
			l, err := timed(0, len(v[0]), func() ([]time.Duration, error) { return bare.once(ctx, e.rest) })
			if err != nil {
				return fmt.Errorf("eventfd: %w", err)
			}
			limits.add(l[0])
		}
		if err := emitEvents(o, e, &limits, values, emit); err != nil {
			return err
		}
	}
	return nil
}

func emitEvents(o *Options, e *portEvent, limits *eventTimes, values []eventTimes, emit func(Row) error) error {
	for j, end := range e.ends {
		if end.name == "" {
			continue
		}
		for _, q := range quantiles[:2] { // there are too few for more
			row := values[j].beside(limits, q.at)
			if end.fixed != 0 {
				row = values[j].beside(constant(end.fixed, len(limits.by)), q.at)
			}
			row.Bench, row.Case = "port-irq", end.name+" "+q.name
			if !o.wants(row.Bench, row.Case) {
				continue
			}
			if err := emit(row); err != nil {
				return err
			}
		}
	}
	row := Row{Bench: "port-irq", Case: e.name + " events", Value: float64(len(values[0].all)), Unit: "1"}
	if !o.wants(row.Bench, row.Case) {
		return nil
	}
	return emit(row)
}

// eventTimes are those of some measurements.
type eventTimes struct {
	all []time.Duration
	by  [][]time.Duration // sorted
}

func (l *eventTimes) add(v []time.Duration) {
	slices.Sort(v)
	l.all, l.by = append(l.all, v...), append(l.by, v)
}

// constant are n measurements that all took the same.
func constant(d time.Duration, n int) *eventTimes {
	l := &eventTimes{}
	for range n {
		l.add([]time.Duration{d})
	}
	return l
}

// beside is a quantile beside that of a limit: of all, and as the ratio the median of those of each pair.
func (l *eventTimes) beside(limit *eventTimes, at float64) Row {
	us := func(v []time.Duration) float64 { return float64(quantile(v, at).Nanoseconds()) / 1000 }
	slices.Sort(l.all)
	slices.Sort(limit.all)
	row := Row{Value: us(l.all), Unit: "us", Limit: us(limit.all)}
	for i := range l.by {
		row.Samples = append(row.Samples, us(l.by[i])/us(limit.by[i]))
	}
	row.Ratio = median(slices.Clone(row.Samples))
	return row
}

// timed calls f for some time, and so often at least, and gives what it gave each time, by what it measures.
func timed(d time.Duration, least int, f func() ([]time.Duration, error)) (out [][]time.Duration, err error) {
	begin := time.Now()
	for n := 0; n < least || time.Since(begin) < d; n++ {
		v, err := f()
		if err != nil {
			return nil, err
		}
		if out == nil {
			out = make([][]time.Duration, len(v))
		}
		for i := range v {
			out[i] = append(out[i], v[i])
		}
	}
	return out, nil
}

// once has one event happen.
func (r *portRig) once(ctx context.Context, e *portEvent) ([]time.Duration, error) {
	if e.next != nil {
		if err := e.next(ctx); err != nil {
			return nil, err
		}
	}
	rt.Sleep(e.rest)
	lat, err := r.wait(ctx, e.ends, e.raise)
	if err != nil || e.over == nil {
		return lat, err
	}
	for begin := time.Now(); !e.over(); rt.Sleep(eventStep) {
		if time.Since(begin) > eventTime {
			return nil, fmt.Errorf("the hardware still says what was handled after %s: %w", eventTime, bus.ErrTimeout)
		}
	}
	return lat, nil
}

// wait raises an interrupt and waits until all is said, and gives how long each took.
func (r *portRig) wait(ctx context.Context, ends []eventEnd, raise func(context.Context) error) ([]time.Duration, error) {
	done := r.seen.expect(ends)
	late := time.NewTimer(eventTime)
	defer late.Stop()
	begin := time.Now()
	if err := raise(ctx); err != nil {
		return nil, err
	}
	select {
	case <-done:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-late.C:
		return nil, fmt.Errorf("%q: not said within %s: %w", r.seen.missing(), eventTime, bus.ErrTimeout)
	}
	var lat []time.Duration
	for _, t := range r.seen.times() {
		lat = append(lat, t.Sub(begin))
	}
	return lat, nil
}

// bareLine is an eventfd with a handler.
type bareLine struct {
	q  *bus.IRQ
	h  *bus.Handler
	at chan time.Time
}

func newBareLine() (*bareLine, error) {
	q, err := bus.NewIRQ(bus.MSI, 0, nil)
	if err != nil {
		return nil, err
	}
	l := &bareLine{q: q, at: make(chan time.Time, 1)}
	l.h = bus.Handle(q, "bench", func(uint64) { l.at <- time.Now() })
	return l, nil
}

func (l *bareLine) close() { _ = l.h.Close() }

func (l *bareLine) once(ctx context.Context, rest time.Duration) ([]time.Duration, error) {
	rt.Sleep(rest)
	late := time.NewTimer(eventTime)
	defer late.Stop()
	begin := time.Now()
	l.q.Signal()
	select {
	case t := <-l.at:
		return []time.Duration{t.Sub(begin)}, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-late.C:
		return nil, fmt.Errorf("no interrupt within %s: %w", eventTime, bus.ErrTimeout)
	}
}
