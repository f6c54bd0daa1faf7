package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/aerinject"
	"github.com/ring3dev/ring3/bus/fault"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/trace"
	"github.com/ring3dev/ring3/internal/crash"
	"github.com/ring3dev/ring3/internal/uevent"
	"github.com/ring3dev/ring3/netdev"
	"github.com/ring3dev/ring3/netdev/tap"
	"github.com/ring3dev/ring3/rionet/rapidio"
	"github.com/ring3dev/ring3/tpmdd"
)

// boundDevice is a device, with its driver if it has one. One that was put into the list of a System's is not changed any more: what changes
// is a copy that takes its place.
type boundDevice struct {
	spec    DeviceSpec
	machine machine
	dev     bus.Device
	fault   *fault.Device     // what makes it fail; nil if nothing does
	inject  *aerinject.Device // what shows errors that it does not have; nil: it cannot report any
	trace   *trace.Device     // dev, once it is about to be bound
	fn      *pci.Function     // nil: it is no PCI function
	driver  *pci.Driver       // nil: it has none
	inst    pci.Instance
	net     netdev.Device     // nil if it is none
	sink    *netdev.Sink      // receives, counts and drops
	tap     *tap.Bridge       // instead of the sink: a kernel interface
	share   *netdev.Share     // of its transmit queues, between the TAP and pktgen; nil: who sends has them
	gen     *netdev.Client    // pktgen's, of share
	forward *netdev.Forwarder // or what sends its frames out of another device

	tpm      *tpmNode    // nil if it is none
	emulator *tpmMachine // what is behind a TPM of QEMU's

	rio   *rioPort       // nil if it is no master port of a RapidIO network
	netID rapidio.DestID // of such a one: the device ID that net was made for

	use     *sync.Mutex // held while its driver comes, goes, or is called for others; all copies have the same
	restore func() error
	asleep  func() error // it is suspended, and this wakes it; nil: it is not
	refused error        // why it came and got no driver; nil: it has one, or nobody looked for one yet
	ifindex int
}

// driverName is its driver's, "" without one.
func (b *boundDevice) driverName() string {
	if b.driver == nil {
		return ""
	}
	return b.driver.Name
}

// bound lists the devices in the order in which they came. Nobody changes the list.
func (s *System) bound() []*boundDevice {
	if l := s.list.Load(); l != nil {
		return *l
	}
	return nil
}

// put adds a device, or puts it in place of what has its name. Who looked at what was there before has finished when it returns.
func (s *System) put(b *boundDevice) {
	s.change(func(l []*boundDevice) []*boundDevice {
		if i := slices.IndexFunc(l, func(o *boundDevice) bool { return o.spec.Name == b.spec.Name }); i >= 0 {
			l[i] = b
			return l
		}
		return append(l, b)
	})
}

// drop takes a device out of the list.
func (s *System) drop(b *boundDevice) {
	s.change(func(l []*boundDevice) []*boundDevice {
		return slices.DeleteFunc(l, func(o *boundDevice) bool { return o.spec.Name == b.spec.Name })
	})
}

// change replaces the list by what f makes of a copy.
func (s *System) change(f func([]*boundDevice) []*boundDevice) {
	s.figuring.Lock()
	defer s.figuring.Unlock()
	l := f(slices.Clone(s.bound()))
	s.list.Store(&l)
	s.touch()
}

// boundOf is the device of that name; nil if there is none.
func (s *System) boundOf(name string) *boundDevice {
	for _, b := range s.bound() {
		if b.spec.Name == name {
			return b
		}
	}
	return nil
}

// at is the device at an address; nil if there is none.
func (s *System) at(a pci.Addr) *boundDevice {
	for _, b := range s.bound() {
		if b.fn != nil && b.fn.Addr == a {
			return b
		}
	}
	return nil
}

// prepare puts the wrappers around a device that has no driver yet.
func (s *System) prepare(b *boundDevice) error {
	if b.fn != nil && b.fn.AER != nil {
		b.inject = aerinject.Wrap(b.dev)
		b.dev = b.inject
	}
	driver, regs := servedBy(b.spec.Device, b.dev, s.drivers) // before its accesses count
	if err := s.wrapFault(b, s.drivers); err != nil {
		return err
	}
	t, err := s.tracing.wrap(b.spec.Name, b.dev, driver, regs)
	b.dev, b.trace = t, t
	if err != nil {
		return err
	}
	if b.fn != nil { // without errors to report it is known all the same
		s.injector.Add(b.fn.Addr, b.inject, rootOf(b.fn).Addr)
	}
	if b.fn != nil && !isHardware(b.spec.Backend) && b.spec.Backend != vfioUser { // of others somebody took care
		pci.EnableErrors(b.dev.Config())
	}
	return nil
}

// watch tells of a device's own death, once it is in the list.
func (s *System) watch(b *boundDevice) {
	go func() {
		<-b.dev.Done()
		// A machine that died said so itself; these are one device's own.
		own := b.fault != nil || b.spec.Backend == "vfio" || b.spec.Backend == vfioUser
		if err := b.dev.Err(); errors.Is(err, bus.ErrDMAFault) || own && errors.Is(err, bus.ErrGone) {
			s.log.Error(err.Error())
			if s.strayed != nil && errors.Is(err, bus.ErrDMAFault) {
				s.strayed(b.spec.Name, err)
			}
		}
	}()
}

// rootOf is the root port above a function, or the function on the root bus that it is.
func rootOf(f *pci.Function) *pci.Function {
	for f.Parent != nil {
		f = f.Parent
	}
	return f
}

// errNoDriver is wrapped where no driver wants a device.
var errNoDriver = errors.New("no driver")

// bind gives a device that has none its driver; drivers are those to choose from. It changes b, which nobody else has yet.
func (s *System) bind(ctx context.Context, b *boundDevice, drivers []*pci.Driver) error {
	defer crash.Report() // Probe is the driver's
	if err := awaken(ctx, b); err != nil {
		return fmt.Errorf("%s (%s): %w", b.spec.Name, b.dev.Backend(), err)
	}
	r := s.probeDriver(ctx, b, drivers)
	if errors.Is(r.Err, pci.ErrOption) {
		return usagef("%s (%s): %v", b.spec.Name, b.dev.Backend(), r.Err)
	}
	if r.Outcome != pci.Bound {
		// A device that was cut off fails in many ways, and for one reason.
		if err := b.dev.Err(); errors.Is(err, bus.ErrDMAFault) {
			r.Err = err
		}
		if r.Outcome == pci.Skipped {
			return fmt.Errorf("%s (%s): %w%w", b.spec.Name, b.dev.Backend(), r.Err, silent{errNoDriver})
		}
		return fmt.Errorf("%s (%s): %w", b.spec.Name, b.dev.Backend(), r.Err)
	}
	b.driver, b.inst = r.Driver, r.Instance
	b.net, _ = r.Instance.(netdev.Device)
	if t, ok := r.Instance.(tpmdd.Instance); ok {
		return s.startTPM(ctx, b, t.Chip())
	}
	if ops, ok := r.Instance.(rapidio.Ops); ok {
		if err := s.startRIO(ctx, b, ops); err != nil {
			return err
		}
	}
	if b.net == nil && b.driver.Name != portDriver {
		s.log.Info(fmt.Sprintf("%s %s %s: in service", b.driver.Name, b.dev.Address(), b.spec.Name))
	}
	if b.fn != nil {
		b.restore = bus.SaveState(b.dev)
	}
	return nil
}

// probeDriver finds a device's driver and has it take the device.
func (s *System) probeDriver(ctx context.Context, b *boundDevice, drivers []*pci.Driver) pci.Result {
	env := pci.Env{Name: b.spec.Name, Log: s.log, Options: b.spec.Options, Profile: s.plan.Profile, Bus: hierarchy{s}, Function: b.fn}
	return pci.Bind(ctx, s.forDriver(b), env, drivers)
}

// silent is an error that adds nothing to a text.
type silent struct{ error }

func (silent) Error() string   { return "" }
func (e silent) Unwrap() error { return e.error }

// unbind takes a device's driver away, and all that stands on it. What is left takes its place, without a driver. b.use is
// held. It waits until nobody uses the driver any more.
func (s *System) unbind(b *boundDevice) (*boundDevice, error) {
	if b.driver == nil {
		return b, nil
	}
	bare := &boundDevice{spec: b.spec, machine: b.machine, dev: b.dev, fault: b.fault, inject: b.inject, trace: b.trace, fn: b.fn, use: b.use, ifindex: b.ifindex}
	if b.asleep != nil { // its driver wants to reach it once more, and the next one
		if err := b.asleep(); err != nil && b.dev.Err() == nil {
			s.complain(fmt.Errorf("%s: waking it: %w", b.spec.Name, err))
		}
	}
	s.put(bare) // nobody finds the driver any more
	if b.net != nil {
		s.pktgen.RemoveDevice(b.spec.Name)
		s.tree.removeNet(b)
		if _, far := s.farEnd(b); far != nil {
			netdev.Unwire(b.net, far.net)
		}
	}
	err := b.stop()
	if b.tap != nil {
		err = errors.Join(err, b.tap.Release())
	}
	if b.net != nil {
		s.netGone(b.spec.Name)
	}
	s.irqs.remove(b)
	s.tree.addFunction(s, bare)
	s.uevent("unbind", bare)
	return bare, err
}

// stopTraffic closes what takes a device's frames.
func (b *boundDevice) stopTraffic() error {
	var errs []error
	if b.sink != nil {
		errs = append(errs, b.sink.Close())
	}
	if b.tap != nil {
		errs = append(errs, b.tap.Close())
	}
	if b.forward != nil {
		errs = append(errs, b.forward.Close())
	}
	return errors.Join(errs...)
}

// stop closes what stands on a device's driver, and the driver.
func (b *boundDevice) stop() error {
	err := errors.Join(b.stopTraffic(), b.closePort())
	if b.inst != nil {
		err = errors.Join(err, b.inst.Close())
	}
	if b.tap != nil {
		_ = b.tap.Close() // again: what a dead device held
	}
	return err
}

// serve gives a device that came later, or lost its driver, a driver, and puts all that stands on it into the tree. use is
// held.
func (s *System) serve(ctx context.Context, b *boundDevice, drivers []*pci.Driver) error {
	n := *b
	if err := s.bind(ctx, &n, drivers); err != nil {
		return err
	}
	if err := s.receive(&n); err != nil {
		return errors.Join(err, n.stop())
	}
	s.irqs.add(&n)
	s.put(&n)
	if w, far := s.farEnd(&n); far != nil {
		s.complain(s.wire(w))
	}
	s.tree.addFunction(s, &n)
	s.uevent("bind", &n)
	s.tree.addNet(&n)
	if !s.strict {
		s.complain(s.accountFor(&n))
	}
	s.runPort(&n)
	return nil
}

// farEnd is what a network device is wired to, and the wire; nil if nothing is there now.
func (s *System) farEnd(b *boundDevice) (Wire, *boundDevice) {
	for _, w := range s.plan.Wires {
		name := ""
		switch b.spec.Name {
		case w.A:
			name = w.B
		case w.B:
			name = w.A
		}
		if far := s.boundOf(name); far != nil && far.net != nil && b.net != nil {
			return w, far
		}
	}
	return Wire{}, nil
}

// uevent tells of a PCI function.
func (s *System) uevent(action string, b *boundDevice, env ...string) {
	if b.fn == nil {
		return
	}
	vars := ueventVars(b)
	if action == uevent.Unbind { // the kernel has forgotten the last by then
		vars = vars[:len(vars)-1]
	}
	s.events.Publish(action, pci.SysfsPath(b.fn), "pci", append(vars, env...)...)
}

func ueventVars(b *boundDevice) (vars []string) {
	if b.driver != nil {
		vars = append(vars, "DRIVER="+b.driver.Name)
	}
	id := b.fn.ID
	return append(vars, fmt.Sprintf("PCI_CLASS=%04X", id.Class), fmt.Sprintf("PCI_ID=%04X:%04X", id.Vendor, id.Device),
		fmt.Sprintf("PCI_SUBSYS_ID=%04X:%04X", id.SubVendor, id.SubDevice), "PCI_SLOT_NAME="+b.fn.Addr.String(), "MODALIAS="+pci.Modalias(id))
}

// complain logs what a device that came later does not do; nobody is there to tell.
func (s *System) complain(err error) {
	if err != nil {
		s.log.Log(context.Background(), slog.LevelWarn, err.Error())
	}
}
