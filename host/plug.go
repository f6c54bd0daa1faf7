package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/qemu"
	"github.com/ring3dev/ring3/bus/sim"
	"github.com/ring3dev/ring3/internal/instance"
)

// Operations of the control socket that put devices into slots and take them out.
const (
	opPlug   = "plug"
	opUnplug = "unplug"
)

// plugTime is how long a device may take to come into service, and a device to go: somebody presses a button and has 5 s to
// think better of it, then the slot is powered off.
const (
	plugTime   = 10 * time.Second
	unplugTime = 15 * time.Second
	plugStep   = 5 * time.Millisecond
	quietTime  = 3 * time.Second // until a slot has done with the card before
	leaveTime  = time.Second     // between the slot's power going off, and the machine saying that the device left
)

type plugArgs struct {
	Device string `json:"device"` // a specification, or of unplug a name
	Now    bool   `json:"now,omitempty"`
	NoWait bool   `json:"no_wait,omitempty"`
}

// plug puts a device into the slot of a port, and waits until it is in service, or nothing is done about it.
func (s *System) plug(ctx context.Context, a plugArgs) (*DeviceInfo, error) {
	d, err := ParseDevice(a.Device)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, syscall.EINVAL)
	}
	port := s.boundOf(d.under())
	s.await(ctx, leaveTime, func() bool { return !s.leaving(d) })
	switch {
	case d.under() == "":
		return nil, fmt.Errorf("device %s: want under=PORT: devices are plugged into the slots of ports: %w", d.Name, syscall.EINVAL)
	case fabricOf(d).path != "":
		return nil, fmt.Errorf("device %s: a node of a fabric is there from the start: %w", d.Name, bus.ErrNotSupported)
	case port == nil:
		return nil, fmt.Errorf("device %s: under=%s: no device is named so: %w", d.Name, d.under(), syscall.ENODEV)
	case port.spec.Backend != d.Backend:
		return nil, fmt.Errorf("device %s: under=%s: that is on the backend %s, and this on %s: %w", d.Name, d.under(), port.spec.Backend, d.Backend, syscall.EINVAL)
	case s.boundOf(d.Name) != nil || s.specOf(d.Name) != nil:
		return nil, errNamed(d)
	case port.asleep != nil && !a.NoWait: // it would be noticed only then
		return nil, fmt.Errorf("device %s: under=%s: that is suspended: resume it: %w", d.Name, d.under(), syscall.EBUSY)
	}
	if !s.occupied(d.under()) {
		s.await(ctx, quietTime, func() bool { return slotQuiet(port) })
	}
	if !s.addSpec(d) { // somebody else was faster
		return nil, errNamed(d)
	}
	if err := s.plugInto(ctx, port.machine, d); err != nil {
		s.dropSpec(d.Name)
		return nil, err
	}
	if a.NoWait {
		return nil, nil
	}
	came := func() bool { b := s.boundOf(d.Name); return b != nil && (b.driver != nil || b.refused != nil) }
	lost := func() bool {
		return port.machine.Err() != nil || s.boundOf(d.under()) == nil || s.specOf(d.Name) == nil
	}
	if !s.await(ctx, plugTime, func() bool { return came() || lost() }) || !came() {
		switch {
		case ctx.Err() != nil:
			return nil, fmt.Errorf("device %s: waiting until it is in service: %w", d.Name, context.Cause(ctx))
		case port.machine.Err() != nil:
			return nil, fmt.Errorf("device %s: %w", d.Name, port.machine.Err())
		case lost():
			return nil, fmt.Errorf("device %s: it went, or its port %s did: %w", d.Name, d.under(), bus.ErrGone)
		}
		return nil, fmt.Errorf("device %s: it is in the slot of %s, which nobody powered on within %v: does pciehp serve that port?", d.Name, d.under(), plugTime)
	}
	if err := s.shown(ctx); err != nil {
		return nil, fmt.Errorf("device %s: waiting until it is shown: %w", d.Name, err)
	}
	if b := s.boundOf(d.Name); b != nil && b.driver == nil && b.refused != nil {
		return nil, fmt.Errorf("device %s is in its slot, without a driver: %w", d.Name, b.refused)
	}
	for _, info := range s.Devices() {
		if info.Name == d.Name {
			return &info, nil
		}
	}
	return nil, fmt.Errorf("device %s: it went as it came: %w", d.Name, bus.ErrGone)
}

// shown waits until the tree shows what is there: who finds a device, or takes it away, holds scan until it does.
func (s *System) shown(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	if err := s.scan.lock(ctx); err != nil {
		return err
	}
	s.scan.unlock()
	return nil
}

func (s *System) plugInto(ctx context.Context, m machine, d DeviceSpec) error {
	switch m := m.(type) {
	case *qemu.Machine:
		return m.Plug(ctx, s.qemuSpec(d))
	case *sim.Machine:
		return m.Plug(ctx, s.simSpec(d))
	}
	return fmt.Errorf("device %s: nothing can be plugged in on the backend %s: %w", d.Name, d.Backend, bus.ErrNotSupported)
}

// slotQuiet says whether a slot has done with the card before: its power indicator is out. Whoever plugs a card in presses the button too,
// and while a slot is powered off that press would be one for the next card, 5 s before it is switched off again.
func slotQuiet(port *boundDevice) bool {
	c := port.dev.Config()
	e, ok := pci.FindExpress(c)
	if !ok || c.Read32(e.At+pci.ExpSltCap)&pci.SltCapPowerLED == 0 {
		return true
	}
	return c.Read16(e.At+pci.ExpSltCtl)&pci.SltCtlPowerLED == pci.LEDOff<<8
}

// await polls, since what it waits for is done by others in steps of their own.
func (s *System) await(ctx context.Context, t time.Duration, done func() bool) bool {
	end := time.Now().Add(t)
	for !done() {
		select {
		case <-ctx.Done():
			return false
		case <-s.ctx.Done():
			return false
		case <-time.After(plugStep):
		}
		if time.Now().After(end) {
			return done()
		}
	}
	return true
}

// leaving says whether what has a device's name or slot may just have left it, and its machine not have said so yet.
func (s *System) leaving(d DeviceSpec) bool {
	s.specs.Lock()
	defer s.specs.Unlock()
	return slices.ContainsFunc(s.plan.Devices, func(o DeviceSpec) bool {
		return (o.Name == d.Name || o.under() != "" && o.under() == d.under()) && s.boundOf(o.Name) == nil
	})
}

// occupied says whether something stands under a port.
func (s *System) occupied(port string) bool {
	s.specs.Lock()
	defer s.specs.Unlock()
	return slices.ContainsFunc(s.plan.Devices, func(d DeviceSpec) bool { return d.under() == port })
}

func errNamed(d DeviceSpec) error {
	return fmt.Errorf("device %s: there is one of that name: %w", d.Name, syscall.EEXIST)
}

// addSpec takes a device's name, unless it is taken.
func (s *System) addSpec(d DeviceSpec) bool {
	s.specs.Lock()
	defer s.specs.Unlock()
	if s.plan.find(d.Name) != nil {
		return false
	}
	s.plan.Devices = append(slices.Clone(s.plan.Devices), d)
	s.touch()
	return true
}

// dropSpec forgets a device that is no more, and all that stood under it: their names are free.
func (s *System) dropSpec(name string) {
	s.specs.Lock()
	defer s.specs.Unlock()
	gone := map[string]bool{name: true}
	s.plan.Devices = slices.DeleteFunc(slices.Clone(s.plan.Devices), func(d DeviceSpec) bool {
		if gone[d.under()] { // what is under a port comes after it
			gone[d.Name] = true
		}
		return gone[d.Name]
	})
	for name := range gone {
		s.numbers.forget(name)
	}
	s.touch()
}

// ejected is called by a machine when a device left its slot. Whoever made it leave may hold locks, so what takes one is left to another
// goroutine.
func (s *System) ejected(name string) {
	s.dropSpec(name)
	go s.takeAway(name)
}

// takeAway takes a device that is gone out of service, if nobody did.
func (s *System) takeAway(name string) {
	if s.scan.lock(s.ctx) != nil {
		return
	}
	defer s.scan.unlock()
	if b := s.boundOf(name); b != nil && b.fn != nil && b.dev.Err() != nil {
		s.complain(s.removeBelow(b.fn.Addr))
		s.complain(s.remove(b))
		s.exportModules()
	}
}

// unplug presses the button of a device's slot, and waits until the device has left it.
func (s *System) unplug(ctx context.Context, a plugArgs) error {
	b := s.boundOf(a.Device)
	if b == nil && s.specOf(a.Device) == nil {
		return fmt.Errorf("no device is named %s: %w", a.Device, syscall.ENODEV)
	}
	var m hotMachine
	if b != nil {
		m, _ = b.machine.(hotMachine)
	} else { // in its slot, and not in service
		for _, x := range s.machines {
			if h, ok := x.(hotMachine); ok && s.carries(h, a.Device) {
				m = h
			}
		}
	}
	if m == nil {
		return fmt.Errorf("device %s: nothing can be taken out on its backend: %w", a.Device, bus.ErrNotSupported)
	}
	if up := s.portOf(a.Device); up != nil && up.asleep != nil && !a.NoWait {
		return fmt.Errorf("device %s: it is behind %s, which is suspended: resume that: %w", a.Device, up.spec.Name, syscall.EBUSY)
	}
	if up := s.portOf(a.Device); up != nil && !a.Now && !powered(up) {
		return fmt.Errorf("device %s: the slot of %s has no power controller: a card leaves it only when it is pulled out (--now): %w", a.Device, up.spec.Name, bus.ErrNotSupported)
	}
	eject := m.Eject
	if a.Now {
		x, ok := m.(interface{ Unplug(name string) error })
		if !ok {
			return fmt.Errorf("device %s: it cannot be pulled out of QEMU; writing 0 to the file power of its slot takes 1 s: %w", a.Device, bus.ErrNotSupported)
		}
		if spec := s.specOf(a.Device); spec != nil && spec.under() == "" {
			return fmt.Errorf("device %s: pulling it out: it stands under no port: %w", a.Device, bus.ErrNotSupported)
		}
		eject = x.Unplug
	}
	if err := eject(a.Device); err != nil {
		return err
	}
	if a.Now {
		s.dropSpec(a.Device) // the machine tells of those only that software let go of
		if !a.NoWait && !s.await(ctx, quietTime, func() bool { return s.boundOf(a.Device) == nil }) {
			s.takeAway(a.Device) // no service saw to it
		}
	}
	if a.NoWait {
		return nil
	}
	if s.await(ctx, unplugTime, func() bool { return s.boundOf(a.Device) == nil && s.specOf(a.Device) == nil }) {
		if err := s.shown(ctx); err != nil {
			return fmt.Errorf("device %s: waiting until it is shown no more: %w", a.Device, err)
		}
		return nil
	}
	if a.Now {
		return fmt.Errorf("device %s: it was pulled out, and nobody took its driver away within %v: does pciehp serve that port?", a.Device, unplugTime)
	}
	return fmt.Errorf("device %s: the button of its slot was pressed, and it is still there after %v: does pciehp serve that port?", a.Device, unplugTime)
}

// powered says whether the slot of a port can be switched off.
func powered(port *boundDevice) bool {
	c := port.dev.Config()
	e, ok := pci.FindExpress(c)
	return ok && e.Slot && c.Read32(e.At+pci.ExpSltCap)&pci.SltCapPower != 0
}

// portOf is the port that a device stands under; nil if there is none.
func (s *System) portOf(name string) *boundDevice {
	if spec := s.specOf(name); spec != nil {
		return s.boundOf(spec.under())
	}
	return nil
}

// carries says whether a machine has a device in one of its slots.
func (s *System) carries(m hotMachine, name string) bool {
	port := s.portOf(name)
	return port != nil && port.machine == machine(m)
}

// plugHandlers are the operations above.
func (s *System) plugHandlers(h instance.Handlers) {
	with := func(f func(context.Context, plugArgs) (any, error)) instance.Handler {
		return func(ctx context.Context, raw json.RawMessage, _ func(any) error) (any, error) {
			var a plugArgs
			if err := json.Unmarshal(raw, &a); err != nil {
				return nil, fmt.Errorf("arguments: %v: %w", err, syscall.EINVAL)
			}
			return f(ctx, a)
		}
	}
	h[opPlug] = with(func(ctx context.Context, a plugArgs) (any, error) { return s.plug(ctx, a) })
	h[opUnplug] = with(func(ctx context.Context, a plugArgs) (any, error) { return nil, s.unplug(ctx, a) })
	h[opSuspend] = with(func(ctx context.Context, a plugArgs) (any, error) { return nil, s.suspend(ctx, a.Device) })
	h[opResume] = with(func(ctx context.Context, a plugArgs) (any, error) { return nil, s.resume(ctx, a.Device) })
}

func (a *app) plugCmd() *cobra.Command {
	var args plugArgs
	c := &cobra.Command{
		Use:   "plug DEVICE",
		Short: "Put a device into the slot of a running instance's port",
		Long: `Put a device into the empty slot of a port of a running instance, and wait until it is in service. The
option under= names the port. The port's hot-plug service does what it would for a card: it powers the slot on, waits for
the link, and has the device looked for.`,
		Example: "  ring3 plug eth2=qemu:e1000e,under=rp2",
		Args:    usageArgs(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, words []string) error {
			d, err := ParseDevice(words[0])
			if err == nil && d.under() == "" {
				err = usagef("device %s: want under=PORT: devices are plugged into the slots of ports", d.Name)
			}
			if err != nil {
				return err
			}
			args.Device = words[0]
			var info *DeviceInfo
			if err := a.call(c.Context(), opPlug, args, &info); err != nil || info == nil {
				return err
			}
			if a.json {
				return a.printJSON(info)
			}
			fmt.Fprintln(a.stdout, info.line())
			return nil
		},
	}
	c.Flags().BoolVar(&args.NoWait, "no-wait", false, "do not wait until it is in service")
	a.instanceFlag(c, "the instance")
	return c
}

func (a *app) unplugCmd() *cobra.Command {
	var args plugArgs
	c := &cobra.Command{
		Use:   "unplug NAME",
		Short: "Take a device out of its slot",
		Long: `Press the attention button of a device's slot, and wait until the device has left it: its driver is taken
away, the slot is powered off, its light goes out. There are 5 s to press the button again, as on a real machine; writing 0
to the slot's file power does it in 1 s. With --now the device is pulled out without a word, on the backend sim.`,
		Example: "  ring3 unplug eth2",
		Args:    usageArgs(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, words []string) error {
			args.Device = words[0]
			return a.call(c.Context(), opUnplug, args, nil)
		},
	}
	c.Flags().BoolVar(&args.Now, "now", false, "pull it out (surprise removal)")
	c.Flags().BoolVar(&args.NoWait, "no-wait", false, "press the button and leave")
	a.instanceFlag(c, "the instance")
	return c
}

// call is one operation of the instance that the user means.
func (a *app) call(ctx context.Context, op string, args, result any) error {
	i, cl, err := a.dial()
	if err != nil {
		return err
	}
	defer cl.Close()
	if err := cl.Call(ctx, op, args, result); err != nil {
		if ctx.Err() != nil {
			return errors.Join(fmt.Errorf("%s: interrupted", op), exitError(interrupted))
		}
		return fmt.Errorf("%s: %s: %s", op, i.Name, strings.TrimPrefix(err.Error(), op+": "))
	}
	return nil
}
