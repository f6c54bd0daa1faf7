package campaign

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/qemu"
	"github.com/ring3dev/ring3/bus/sim"
)

// Scenario is a driver's life that is lived again and again: brought up, used, closed.
type Scenario struct {
	Name  string // "e1000e"
	About string // one line
	// Driver is what its errors say after the device's address.
	Driver    string
	Registers []bus.Register
	// Short: every access is tried with every kind, before faults are chosen at random.
	Short bool
	// Weight is its share of a campaign, in parts of the sum of all.
	Weight int

	id       uint32   // of the device, where there are others: vendor, device
	backends []string // that it can run on
	open     func(ctx context.Context, b Backend) (*rig, error)
	accesses []place // of a run without fault: universe.txt
	up       *upPart // of the backends up and up-qemu; nil: of the others
}

// On says whether the scenario runs on a backend.
func (s *Scenario) On(b Backend) bool {
	for _, have := range s.backends {
		if have == b.Name {
			return true
		}
	}
	return false
}

// Backend is where devices come from.
type Backend struct {
	Name   string // "sim", "qemu", "vfio", "up", "up-qemu"
	Device string // of vfio: the addresses of the devices, the one that fails first
	Log    *slog.Logger
}

// ParseBackend reads sim, qemu, up, up-qemu or vfio:ADDRESS[,ADDRESS].
func ParseBackend(s string) (Backend, error) {
	name, device, _ := strings.Cut(s, ":")
	switch {
	case (name == "sim" || name == "qemu" || name == upBackend || name == upQEMU) && device == "", name == "vfio" && device != "":
		return Backend{Name: name, Device: device}, nil
	}
	return Backend{}, fmt.Errorf("backend %q: want sim, qemu, up, up-qemu, or vfio:ADDRESS, for a NIC vfio:ADDRESS,ADDRESS of two that are wired", s)
}

// fresh says whether each run has a device of its own: where one costs nothing.
func (b Backend) fresh() bool { return b.Name == "sim" }

// waiting is how many runs may be on their way for one that is at work: one that waits costs nothing but its device.
func (b Backend) waiting() int {
	if b.fresh() {
		return 8
	}
	return 1
}

// single says that there is one device, whose runs come one after the other, each with it opened anew.
func (b Backend) single() bool { return b.Name == "vfio" }

// afterFault is how long a driver that waits for a device that lies may go on: more where what it waits for takes time.
func (b Backend) afterFault() time.Duration {
	if b.fresh() {
		return 50 * time.Millisecond
	}
	return time.Second
}

// rig is a device that is to fail, and what is around it, which is well.
type rig struct {
	dev bus.Device // that is to be wrapped
	// live is one life of a driver on dev, or on a wrapper around it. It returns nil, what the driver returned first, or one of
	// lost, silent and foreign. It closes the driver, whatever comes.
	live func(ctx context.Context, dev bus.Device) error
	// reset brings the device to where a new driver can begin.
	reset func(ctx context.Context) error
	// selfReset is what the fault "reset" does; nil: Device.Reset.
	selfReset func() error
	close     func() error
}

// lostError: what was sent did not all come, and what was sent after that did.
type lostError struct{ error }

// dataError: the driver gave as good what is not. Whoever meets it goes on with the same driver, to see what comes next, and joins that: to what the driver said
// then, or as right where it said nothing and all that came was.
type dataError struct {
	error
	right bool
}

// silentError: the driver goes on giving as good what is not, or does nothing, and says nothing.
type silentError struct{ error }

// foreignError: something that is not the driver's went wrong.
type foreignError struct{ error }

func (e lostError) Unwrap() error    { return e.error }
func (e dataError) Unwrap() error    { return e.error }
func (e silentError) Unwrap() error  { return e.error }
func (e foreignError) Unwrap() error { return e.error }

func lost(format string, args ...any) error { return lostError{fmt.Errorf(format, args...)} }

func wrongData(format string, args ...any) dataError {
	return dataError{error: fmt.Errorf("wrong data: "+format, args...)}
}

// then joins what came of it.
func (e dataError) then(err error) error {
	var went lostError
	e.right = err == nil || errors.As(err, &went)
	return errors.Join(e, err)
}
func silent(format string, args ...any) error  { return silentError{fmt.Errorf(format, args...)} }
func foreign(format string, args ...any) error { return foreignError{fmt.Errorf(format, args...)} }

// Scenarios are all that there are, in order.
func Scenarios() []*Scenario {
	all := append(e1000Scenarios(), eduScenario())
	all = append(all, tpmScenarios()...)
	all = append(append(all, portScenario()), upScenarios()...)
	for _, s := range all {
		s.accesses = universe(s.Name)
	}
	return all
}

// Select is those whose name matches; nil matches all.
func Select(all []*Scenario, re *regexp.Regexp, b Backend) ([]*Scenario, error) {
	id, err := b.id()
	if err != nil {
		return nil, err
	}
	var out []*Scenario
	for _, s := range all {
		if (re == nil || re.MatchString(s.Name)) && s.On(b) && (id == 0 || id == s.id) {
			out = append(out, s)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("no scenario matches %v on %s", re, b.Name)
	}
	return out, nil
}

// Find is the scenario of a name.
func Find(name string) (*Scenario, error) {
	var names []string
	for _, s := range Scenarios() {
		if s.Name == name {
			return s, nil
		}
		names = append(names, s.Name)
	}
	return nil, fmt.Errorf("no scenario is named %q: there are %s", name, strings.Join(names, ", "))
}

// Backends that scenarios can run on: those of TPMs not on VFIO, which has none.
var (
	allBackends = []string{"sim", "qemu", "vfio"}
)

// machine is what a rig stands on.
type machine interface {
	Device(name string) (bus.Device, error)
	Close() error
}

// part is one device of a machine.
type part struct{ name, model, under string }

// start makes a machine of either kind.
func start(ctx context.Context, b Backend, wires [][2]string, parts ...part) (machine, error) {
	if b.Name == "sim" {
		c := sim.Config{Clock: sim.Eager, Wires: wires, Log: b.Log}
		for _, p := range parts {
			c.Devices = append(c.Devices, sim.DeviceSpec{Name: p.name, Model: p.model, Bus: p.under})
		}
		return sim.Start(ctx, c)
	}
	if b.Name == "vfio" {
		return openReal(ctx, b, parts)
	}
	c := qemu.Config{Wires: wires, Log: b.Log}
	for _, p := range parts {
		// A port above each device can reset it, whatever the model can.
		if p.under == "" && !strings.Contains(p.model, "port") {
			port := "rp-" + p.name
			c.Devices = append(c.Devices, qemu.DeviceSpec{Name: port, Model: "pcie-root-port"})
			p.under = port
		}
		c.Devices = append(c.Devices, qemu.DeviceSpec{Name: p.name, Model: p.model, Bus: p.under})
	}
	return qemu.Start(ctx, c)
}

// resetIn is a rig's reset on a machine.
func resetIn(m machine, name string, dev bus.Device) func(ctx context.Context) error {
	// A host brings config space back too: the driver that died may have left it in any state.
	restore := bus.SaveState(dev)
	return func(ctx context.Context) error {
		if s, ok := m.(*sim.Machine); ok {
			if err := s.Reset(ctx, name); err != nil {
				return err
			}
			return restore()
		}
		if err := dev.Reset(ctx); err != nil && !errors.Is(err, bus.ErrNotSupported) {
			return err
		}
		return restore()
	}
}

// selfResetIn is a rig's selfReset.
func selfResetIn(m machine, name string) func() error {
	if s, ok := m.(*sim.Machine); ok {
		return func() error { return s.Reset(context.Background(), name) }
	}
	return nil
}
