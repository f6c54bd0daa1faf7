package campaign

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
	"github.com/ring3dev/ring3/bus/sim"
	"github.com/ring3dev/ring3/drivers/edu"
	"github.com/ring3dev/ring3/drivers/portbus"
	"github.com/ring3dev/ring3/drivers/portbus/aer"
	"github.com/ring3dev/ring3/drivers/portbus/bwctrl"
	"github.com/ring3dev/ring3/drivers/portbus/pciehp"
	"github.com/ring3dev/ring3/drivers/portbus/pme"
)

// portTime is how long a port may take for what it was asked; its own times are the machine's, and cost nothing. It is asked about while
// nothing else is waited for.
const portTime = 5 * time.Second

// portLook is how often a port is looked at: not before it has had the time for all that it is asked in a run, or the number of an access would depend on it.
const portLook = 200 * time.Millisecond

func portScenario() *Scenario {
	return &Scenario{
		Name: "portbus", About: "a root port: a card plugged in, used, an error of its bus, the card taken out by its slot's power", Driver: portbus.DriverName,
		Weight: 2, backends: []string{"sim"},
		open: func(ctx context.Context, b Backend) (*rig, error) {
			m, err := sim.Start(ctx, sim.Config{Clock: sim.Eager, Log: b.Log, Devices: []sim.DeviceSpec{{Name: "rp0", Model: "root-port"}}})
			if err != nil {
				return nil, err
			}
			dev, err := m.Device("rp0")
			if err != nil {
				return nil, errors.Join(err, m.Close())
			}
			reset := resetIn(m, "rp0", dev)
			return &rig{
				dev: dev, selfReset: selfResetIn(m, "rp0"), close: m.Close,
				live: func(ctx context.Context, dev bus.Device) error { return livePort(ctx, m, dev) },
				reset: func(ctx context.Context) error {
					if _, _, ok := named(m, "c0"); ok || m.Unplug("c0") == nil {
						_ = m.Unplug("c0") // it may have left its slot already
					}
					return reset(ctx)
				},
			}, nil
		},
	}
}

// livePort is a root port's life.
func livePort(ctx context.Context, m *sim.Machine, dev bus.Device) (err error) {
	ctx, cancel := awhile(ctx, 4*portTime) // nothing here waits for a device without a limit of its own
	defer cancel()
	b, err := portbus.New(&pme.Driver, &aer.Driver, pciehp.Driver(pciehp.Options{}), &bwctrl.Driver)
	if err != nil {
		return err
	}
	b.SetLook(portLook)
	h := &portHost{m: m, port: dev, drivers: []*pci.Driver{b.PortDriver(), edu.Driver}, turn: make(chan struct{}, 1)}
	h.log = slog.New(&h.said)
	defer func() {
		if e := h.close(); err == nil {
			err = e
		}
	}()
	h.adopt(m.Topology().Functions)
	if err := h.bindNew(ctx); err != nil {
		return err
	}
	p, ok := h.instance("rp0").(*portbus.Port)
	if !ok {
		return fmt.Errorf("%s %s: binding: the port is not in service: %w", dev.Address(), portbus.DriverName, bus.ErrProtocol)
	}
	slot, ok := p.Service(portbus.HP).(*pciehp.Slot)
	if !ok {
		h.await(ctx, func() bool { return h.said.complaint() != "" })
		return h.noticed("the slot is not in service")
	}
	if err := m.Plug(ctx, sim.DeviceSpec{Name: "c0", Model: "edu", Bus: "rp0"}); err != nil {
		return foreign("plugging a card in: %w", err)
	}
	if !h.await(ctx, func() bool { return slot.State() == "on" && h.instance("c0") != nil }) {
		return h.noticed("the slot is %s, want on with the card driven", slot.State())
	}
	if n, err := h.ask(ctx, p); err != nil {
		return fmt.Errorf("the card: 5!: %w", err)
	} else if n != 120 {
		return silent("the card: 5! = %d, want 120", n)
	}
	if err := m.InjectError("rp0", pci.AERError{Correctable: 1}); err != nil {
		return foreign("an error: %w", err)
	}
	if !h.await(ctx, func() bool { return h.said.has("AER: Correctable") }) {
		return h.noticed("an error was not told")
	}
	if err := slot.Switch(ctx, false); err != nil {
		return fmt.Errorf("switching the slot off: %w", err)
	}
	if !h.await(ctx, func() bool { return slot.State() == "off" && h.instance("c0") == nil }) {
		return h.noticed("the slot is %s, want off", slot.State())
	}
	return nil
}

// ask has the card compute 5!. One that was reset with its port says so: then that is noticed, too, and it is taken into service anew.
func (h *portHost) ask(ctx context.Context, p *portbus.Port) (n uint32, err error) {
	h.await(ctx, func() bool {
		card, ok := h.instance("c0").(*edu.Device)
		if !ok {
			err = fmt.Errorf("it is not in service: %w", bus.ErrGone)
			return p.Err() != nil
		}
		n, err = card.Factorial(ctx, 5)
		return err == nil || p.Err() != nil
	})
	return n, err
}

// named looks a function up by the name of its device.
func named(m *sim.Machine, name string) (*pci.Function, bus.Device, bool) {
	for _, f := range m.Topology().Functions {
		if n, dev, ok := m.Named(f); ok && n == name {
			return f, dev, true
		}
	}
	return nil, nil, false
}

// said is what drivers logged; slog.Handler.
type said struct {
	mu    sync.Mutex // guards what follows
	lines []string
	bad   string // the first warning, error, or failure
}

// failures are what pciehp says where a card cannot be taken into service, at the kernel's level, which is no warning.
var failures = []string{"No link", "Cannot train link", "No device found", "Timeout on hotplug command", "Timeout waiting for Presence Detect", "no response from device"}

// Enabled is a slog.Handler's.
func (s *said) Enabled(context.Context, slog.Level) bool { return true }

// Handle is a slog.Handler's.
func (s *said) Handle(_ context.Context, r slog.Record) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines = append(s.lines, r.Message)
	failed := slices.ContainsFunc(failures, func(t string) bool { return strings.Contains(r.Message, t) })
	if (r.Level >= slog.LevelWarn || failed) && s.bad == "" {
		s.bad = r.Message
	}
	return nil
}

// WithAttrs is a slog.Handler's.
func (s *said) WithAttrs([]slog.Attr) slog.Handler { return s }

// WithGroup is a slog.Handler's.
func (s *said) WithGroup(string) slog.Handler { return s }

func (s *said) has(text string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.lines, func(l string) bool { return strings.Contains(l, text) })
}

func (s *said) complaint() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bad
}

// portHost is a host as small as one can be: it finds what comes behind a port, gives it a driver, and takes it away; pci.Hierarchy.
type portHost struct {
	m       *sim.Machine
	port    bus.Device // what the port's driver gets instead of the machine's
	drivers []*pci.Driver
	log     *slog.Logger
	said    said
	turn    chan struct{} // held by who changes what there is

	mu      sync.Mutex // guards what follows
	members []*portMember
}

// portMember is a function that is known.
type portMember struct {
	fn      *pci.Function
	name    string
	dev     bus.Device
	restore func() error

	use    sync.RWMutex // held, for reading, while somebody uses inst
	inst   pci.Instance
	driver string
}

// noticed is the error of what did not come to be: one that the driver told of, if it did.
func (h *portHost) noticed(format string, args ...any) error {
	what := fmt.Sprintf(format, args...)
	if err := h.port.Err(); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if c := h.said.complaint(); c != "" {
		return fmt.Errorf("%s: %s: %w", what, c, bus.ErrProtocol)
	}
	return silent("mute: %s, and nothing was said", what)
}

// await asks until cond holds, the port is dead, or too much time is over.
func (h *portHost) await(ctx context.Context, cond func() bool) bool {
	ctx, cancel := within(ctx, portTime)
	defer cancel()
	// The port tells nobody. Most that is waited for comes at once; what does not may be asked about less often.
	for pause := 200 * time.Microsecond; !cond(); pause = min(2*pause, 20*time.Millisecond) {
		if h.port.Err() != nil || ctx.Err() != nil {
			return false
		}
		time.Sleep(pause)
	}
	return true
}

func (h *portHost) all() []*portMember {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.members)
}

// instance is what drives a device, nil for nothing.
func (h *portHost) instance(name string) pci.Instance {
	for _, x := range h.all() {
		if x.name == name {
			x.use.RLock()
			defer x.use.RUnlock()
			return x.inst
		}
	}
	return nil
}

func (h *portHost) adopt(fns []*pci.Function) {
	for _, f := range fns {
		name, dev, ok := h.m.Named(f)
		if !ok {
			continue
		}
		if name == "rp0" {
			dev = h.port
		}
		h.mu.Lock()
		h.members = append(h.members, &portMember{fn: f, name: name, dev: dev})
		h.mu.Unlock()
	}
}

// bindNew gives a driver to what has none. Its error is the port's.
func (h *portHost) bindNew(ctx context.Context) (err error) {
	for _, x := range h.all() {
		x.use.RLock()
		has := x.inst != nil
		x.use.RUnlock()
		if has {
			continue
		}
		res := pci.Bind(ctx, x.dev, pci.Env{Name: x.name, Log: h.log, Bus: h, Function: x.fn}, h.drivers)
		if res.Outcome != pci.Bound {
			if x.name == "rp0" {
				err = res.Err
			}
			continue
		}
		x.use.Lock()
		x.inst, x.driver, x.restore = res.Instance, res.Driver.Name, bus.SaveState(x.dev)
		x.use.Unlock()
	}
	return err
}

// drop takes a function out of service. A port's device is the caller's, and stays.
func (h *portHost) drop(x *portMember) error {
	x.use.Lock()
	inst := x.inst
	x.inst = nil
	x.use.Unlock()
	var err error
	if inst != nil {
		err = inst.Close()
	}
	h.mu.Lock()
	h.members = slices.DeleteFunc(h.members, func(o *portMember) bool { return o == x })
	h.mu.Unlock()
	if x.name != "rp0" {
		_ = x.dev.Close()
		h.m.Forget(x.fn)
		return nil // a card that was pulled out has its own to say
	}
	return err
}

// close takes everything out of service, leaves first.
func (h *portHost) close() error {
	h.turn <- struct{}{}
	defer func() { <-h.turn }()
	var err error
	for _, x := range slices.Backward(h.all()) {
		err = errors.Join(err, h.drop(x))
	}
	return err
}

// take waits for the turn.
func (h *portHost) take(ctx context.Context) error {
	select {
	case h.turn <- struct{}{}:
		if err := ctx.Err(); err != nil {
			<-h.turn
			return err
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (h *portHost) member(x *portMember) *pci.Member {
	x.use.RLock()
	defer x.use.RUnlock()
	return &pci.Member{Function: x.fn, Device: x.dev, Name: x.name, Driver: x.driver,
		Use: func(f func(pci.Instance)) {
			x.use.RLock()
			defer x.use.RUnlock()
			f(x.inst)
		},
		Restore: func() error {
			x.use.RLock()
			defer x.use.RUnlock()
			if x.restore == nil {
				return nil
			}
			return x.restore()
		}}
}

// Find is a pci.Hierarchy's.
func (h *portHost) Find(a pci.Addr) *pci.Member {
	for _, x := range h.all() {
		if x.fn.Addr == a {
			return h.member(x)
		}
	}
	return nil
}

// Below is a pci.Hierarchy's.
func (h *portHost) Below(port pci.Addr) (out []*pci.Member) {
	for _, x := range h.below(port) {
		out = append(out, h.member(x))
	}
	return out
}

func (h *portHost) below(port pci.Addr) (out []*portMember) {
	for _, x := range h.all() {
		if x.fn.Parent != nil && x.fn.Parent.Addr == port {
			out = append(out, x)
		}
	}
	return out
}

// Rescan is a pci.Hierarchy's.
func (h *portHost) Rescan(ctx context.Context, port pci.Addr) (int, error) {
	if err := h.take(ctx); err != nil {
		return 0, err
	}
	defer func() { <-h.turn }()
	for _, x := range h.all() {
		if x.fn.Addr != port {
			continue
		}
		found, err := h.m.Rescan(x.fn)
		if err != nil {
			return len(h.below(port)), err
		}
		h.adopt(found)
		_ = h.bindNew(ctx)
	}
	return len(h.below(port)), nil
}

// Remove is a pci.Hierarchy's.
func (h *portHost) Remove(ctx context.Context, port pci.Addr, gone bool) error {
	if err := h.take(ctx); err != nil {
		return err
	}
	defer func() { <-h.turn }()
	var err error
	for _, x := range h.all() {
		if x.fn.Addr == port && gone {
			h.m.Disconnect(x.fn)
		}
	}
	for _, x := range slices.Backward(h.below(port)) {
		err = errors.Join(err, h.drop(x))
	}
	return err
}

// Uevent is a pci.Hierarchy's.
func (h *portHost) Uevent(string, string, string, ...string) {}
