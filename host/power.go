package host

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// Operations of the control socket that put devices to sleep and wake them.
const (
	opSuspend = "suspend"
	opResume  = "resume"
)

// d3Time is how long a function may take from D3hot to D0 (PCI Bus Power Management 1.2, 5.4.1).
const d3Time = 10 * time.Millisecond

// family is a device and all behind it, parents first.
func (s *System) family(name string) ([]*boundDevice, error) {
	b := s.boundOf(name)
	if b == nil {
		return nil, fmt.Errorf("no device is named %s: %w", name, syscall.ENODEV)
	}
	out := []*boundDevice{b}
	if b.fn != nil {
		out = append(out, s.below(b.fn.Addr)...)
	}
	return out, nil
}

// suspend puts a device to sleep and before it, leaves first, all behind it. Where one cannot, those that sleep already are woken.
func (s *System) suspend(ctx context.Context, name string) error {
	if err := s.scan.lock(ctx); err != nil {
		return err
	}
	defer s.scan.unlock()
	all, err := s.family(name)
	if err != nil {
		return err
	}
	if all[0].asleep != nil {
		return fmt.Errorf("%s is suspended already", name)
	}
	for i, b := range slices.Backward(all) {
		if b.asleep != nil {
			continue
		}
		if err := s.sleep(ctx, b); err != nil {
			err = fmt.Errorf("suspending %s: %w", b.spec.Name, err)
			for _, done := range all[i+1:] {
				err = errors.Join(err, s.wake(ctx, s.boundOf(done.spec.Name)))
			}
			return err
		}
	}
	return nil
}

// resume wakes a device, the ports above it before, and then all behind it, parents first.
func (s *System) resume(ctx context.Context, name string) error {
	if err := s.scan.lock(ctx); err != nil {
		return err
	}
	defer s.scan.unlock()
	all, err := s.family(name)
	if err != nil {
		return err
	}
	if all[0].asleep == nil {
		return fmt.Errorf("%s is not suspended", name)
	}
	for f := all[0].fn; f != nil && f.Parent != nil; f = f.Parent {
		if up := s.at(f.Parent.Addr); up != nil && up.asleep != nil {
			return fmt.Errorf("%s is behind %s, which is suspended: resume that: %w", name, up.spec.Name, syscall.EBUSY)
		}
	}
	var errs []error
	for _, b := range all {
		errs = append(errs, s.wake(ctx, b))
	}
	return errors.Join(errs...)
}

// sleep suspends one device: its driver, then the function. scan is held.
func (s *System) sleep(ctx context.Context, b *boundDevice) error {
	b.use.Lock()
	defer b.use.Unlock()
	if b.rio != nil { // in the fabric's memory messages would pile up, and its peers would take it to be gone
		return fmt.Errorf("a node of a RapidIO fabric cannot be suspended, only unplugged: %w", bus.ErrNotSupported)
	}
	h, ok := b.inst.(bus.PowerHandler)
	if b.inst != nil && !ok {
		return fmt.Errorf("the driver %s cannot suspend it: %w", b.driver.Name, bus.ErrNotSupported)
	}
	if h != nil {
		if err := h.Suspend(ctx); err != nil {
			return err
		}
	}
	n := *b
	n.asleep = s.lower(b)
	s.put(&n)
	return nil
}

// lower puts an endpoint into D3hot, where it can, and returns what brings it back. A port stays in D0, since what is behind it would be
// lost.
func (s *System) lower(b *boundDevice) (raise func() error) {
	nothing := func() error { return nil }
	if b.fn == nil || b.fn.Header != pci.HeaderDevice {
		return nothing
	}
	c := b.dev.Config()
	at, ok := pci.FindPowerControl(c)
	if !ok {
		return nothing
	}
	restore := bus.SaveState(b.dev)
	ctl := c.Read16(at)
	// Who is able to may wake the system; status bits are cleared by ones.
	enable := uint16(0)
	if c.Read16(at-pci.PMCtl+pci.PMCap)>>11&0x1f != 0 {
		enable = pci.PMCtlPMEEn
	}
	c.Write16(at, ctl&^pci.PMCtlState|3|enable|pci.PMCtlPMESta)
	return func() error { return toD0(context.Background(), b, at, ctl, restore) }
}

// toD0 brings a function to D0, unable to wake anybody, and its state back; at is its power control register, ctl what that said.
func toD0(ctx context.Context, b *boundDevice, at bus.Off, ctl uint16, restore func() error) error {
	b.dev.Config().Write16(at, ctl&^(pci.PMCtlState|pci.PMCtlPMEEn)|pci.PMCtlPMESta)
	if err := bus.Sleep(ctx, bus.ClockOf(b.dev), d3Time); err != nil {
		return err
	}
	return restore()
}

// wake resumes one device, if it sleeps. scan is held.
func (s *System) wake(ctx context.Context, b *boundDevice) error {
	if b == nil || b.asleep == nil {
		return nil
	}
	b.use.Lock()
	defer b.use.Unlock()
	err := b.asleep()
	if h, ok := b.inst.(bus.PowerHandler); ok && err == nil {
		err = h.Resume(ctx)
	}
	if err != nil {
		return fmt.Errorf("resuming %s: %w", b.spec.Name, err) // it can be tried again
	}
	n := *b
	n.asleep = nil
	s.put(&n)
	return nil
}

// awaken brings a function that was left asleep to D0, before a driver looks at it.
func awaken(ctx context.Context, b *boundDevice) error {
	if b.fn == nil || isHardware(b.spec.Backend) { // there it is the kernel's to do
		return nil
	}
	c := b.dev.Config()
	at, ok := pci.FindPowerControl(c)
	if !ok {
		return nil
	}
	v := c.Read16(at)
	if v == 0xffff || v&pci.PMCtlState == 0 {
		return nil
	}
	return toD0(ctx, b, at, v, bus.SaveState(b.dev))
}

// Wake resumes a device that asked for it by a power management event, ports above it before; pci.Waker.
func (h hierarchy) Wake(ctx context.Context, a pci.Addr) error {
	s := h.s
	if err := s.scan.lock(ctx); err != nil {
		return err
	}
	defer s.scan.unlock()
	b := s.at(a)
	if b == nil {
		return nil
	}
	path := []*boundDevice{b}
	for f := b.fn; f.Parent != nil; f = f.Parent {
		path = append(path, s.at(f.Parent.Addr))
	}
	for _, b := range slices.Backward(path) {
		if err := s.wake(ctx, b); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) powerCmd(op, short, long string) *cobra.Command {
	c := &cobra.Command{
		Use:     op + " NAME",
		Short:   short,
		Long:    long,
		Example: "  ring3 " + op + " rp0",
		Args:    usageArgs(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, words []string) error {
			return a.call(c.Context(), op, plugArgs{Device: words[0]}, nil)
		},
	}
	a.instanceFlag(c, "the instance")
	return c
}

func (a *app) suspendCmd() *cobra.Command {
	return a.powerCmd(opSuspend, "Put a device to sleep, and all behind it",
		`Put a device to sleep, and before it all behind it, leaves first: each driver stops, and what is no port goes to D3hot, from
where it may wake itself by a power management event.`)
}

func (a *app) resumeCmd() *cobra.Command {
	return a.powerCmd(opResume, "Wake a device, and all behind it", "Wake a device and then all behind it, ports first. What was configured is as it was.")
}
