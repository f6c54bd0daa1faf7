package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/fault"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/trace"
	"github.com/ring3dev/ring3/internal/crash"
	"github.com/ring3dev/ring3/internal/node"
	"github.com/ring3dev/ring3/internal/profile"
	"github.com/ring3dev/ring3/internal/rt"
	"github.com/ring3dev/ring3/internal/uevent"
	"github.com/ring3dev/ring3/netdev"
	"github.com/ring3dev/ring3/netdev/tap"
	"github.com/ring3dev/ring3/pktgen"
	"github.com/ring3dev/ring3/tpmdd"
	"github.com/ring3dev/ring3/tpmdd/measure"
	"github.com/ring3dev/ring3/vfio"
)

// Config says what a System is made of.
type Config struct {
	Plan    Plan
	Drivers []*pci.Driver
	Log     *slog.Logger // nil discards
	Stderr  io.Writer    // where a trace to "-" goes
	Keep    string       // where ring3 shell puts the kernel's own /proc and /sys
	// Dir is a private folder for sockets, and for the state of a TPM that is not kept; empty: there are no
	// sockets, and the state is in a folder of its own.
	Dir string
	// Started is told of each process (QEMU) that must not outlive this one.
	Started func(pid int, what string)
	// Files are files of devices that were opened by who may: by the device's name in Plan, then
	// as its backend names them.
	Files map[string]map[string]*os.File
}

// System is a set of devices in service, with what stands on them. Close it.
type System struct {
	log       *slog.Logger
	events    *uevent.Ring
	plan      Plan
	machines  []machine
	spaces    map[int]*vfio.Space // by IOMMU group
	nics      int                 // network devices so far
	tpms      int                 // TPMs so far
	captures  []*capture
	tracing   tracing
	bound     []*boundDevice
	lo        *loopback // nil where a device has that name
	pktgen    *pktgen.Engine
	receivers []*pktgen.Rx // account for pktgen's frames
	rt        *rt.Policy   // nil: threads are ordinary
	irqs      *irqTable
	tree      *tree
	measurer  *measure.Measurer // nil: nothing is measured

	serving bool // devices are served, and have no drivers

	done chan struct{} // closed when the last machine died

	// figuring is held by who reads figures, and by Close before it takes devices away. It comes before all other locks.
	figuring sync.RWMutex
	closed   bool // guarded by figuring

	closeOnce sync.Once
	closeErr  error
	unmade    bool // a fault was asked for, and there was none; set by Close
}

// boundDevice is a device with its driver.
type boundDevice struct {
	spec    DeviceSpec
	dev     bus.Device
	fault   *fault.Device // what makes it fail; nil if nothing does
	trace   *trace.Device // dev, once it is about to be bound
	fn      *pci.Function // nil: it is no PCI function
	driver  *pci.Driver
	inst    pci.Instance
	net     netdev.Device     // nil if it is none
	sink    *netdev.Sink      // receives, counts and drops
	tap     *tap.Bridge       // instead of the sink: a kernel interface
	forward *netdev.Forwarder // or what sends its frames out of another device

	tpm      *tpmNode    // nil if it is none
	emulator *tpmMachine // what is behind a TPM of QEMU's
}

// NewSystem brings everything up, or nothing: on error all is released. The error names
// the device, the step and what to do.
func NewSystem(ctx context.Context, c Config) (*System, error) {
	s := &System{log: c.Log, events: uevent.New(0), plan: c.Plan, done: make(chan struct{})}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	err := s.start(ctx, c)
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *System) start(ctx context.Context, c Config) error {
	prof, err := profile.Find(s.plan.Profile)
	if err != nil {
		return usagef("%v", err)
	}
	if err := s.realTime(); err != nil {
		return err
	}
	if err := s.tracing.open(s.plan.Trace, s.log, c.Stderr); err != nil {
		return err
	}
	if err := s.startMachines(ctx, c); err != nil {
		return err
	}
	for _, b := range s.bindOrder() {
		if err := s.measureDevice(ctx, b); err != nil {
			return fmt.Errorf("%s: %w", b.spec.Name, err)
		}
		if err := s.bind(ctx, b, c.Drivers); err != nil {
			return err
		}
	}
	for _, w := range s.plan.Wires {
		if err := s.wire(w); err != nil {
			return err
		}
	}
	for _, b := range s.bound {
		if err := s.receive(b); err != nil {
			return err
		}
	}
	s.lo = newLoopback(&s.plan)
	if s.pktgen, err = pktgen.New(pktgen.Config{Lookup: s.lookup, Receiver: s.receiver, Log: s.log, Profile: prof.Name, RT: s.rt}); err != nil {
		return err
	}
	if !prof.Pktgen.Strict {
		if err := s.account(); err != nil {
			return err
		}
	}
	if s.irqs, err = newIRQTable(s.bound, prof); err != nil {
		return err
	}
	if s.tree, err = newTree(s, c.Keep, c.Dir); err != nil {
		return err
	}
	for _, c := range s.captures {
		if err := c.keep(); err != nil {
			return err
		}
	}
	go func() {
		for _, m := range s.machines {
			<-m.Done()
		}
		close(s.done)
	}()
	return nil
}

// Done is closed when no device is left alive; Err then says why.
func (s *System) Done() <-chan struct{} { return s.done }

// Err is why the first of the machines died; nil while all live.
func (s *System) Err() error {
	for _, m := range s.machines {
		if err := m.Err(); err != nil {
			return err
		}
	}
	return nil
}

// Tree is what is exported: proc, sys and dev, and what the shell needs beside them.
func (s *System) Tree() *node.Dir { return s.tree.root }

// Stop ends what generates traffic, and wakes whoever waits for its end.
func (s *System) Stop() { s.pktgen.Close() }

// bind gives a device its driver.
func (s *System) bind(ctx context.Context, b *boundDevice, drivers []*pci.Driver) error {
	driver, regs := servedBy(b.spec.Device, b.dev, drivers) // before its accesses count
	if err := s.wrapFault(b, drivers); err != nil {
		return err
	}
	t, err := s.tracing.wrap(b.spec.Name, b.dev, driver, regs)
	b.dev, b.trace = t, t
	if err != nil {
		return err
	}
	defer crash.Report() // Probe is the driver's
	r := pci.Bind(ctx, s.forDriver(b.dev), pci.Env{Name: b.spec.Name, Log: s.log, Options: b.spec.Options}, drivers)
	if errors.Is(r.Err, pci.ErrOption) {
		return usagef("%s (%s): %v", b.spec.Name, b.dev.Backend(), r.Err)
	}
	if r.Outcome != pci.Bound {
		// A device that was cut off fails in many ways, and for one reason.
		if err := b.dev.Err(); errors.Is(err, bus.ErrDMAFault) {
			r.Err = err
		}
		return fmt.Errorf("%s (%s): %w", b.spec.Name, b.dev.Backend(), r.Err)
	}
	go func() {
		<-b.dev.Done()
		// A machine that died said so itself; these are one device's own.
		own := b.fault != nil || b.spec.Backend == "vfio" || b.spec.Backend == vfioUser
		if err := b.dev.Err(); errors.Is(err, bus.ErrDMAFault) || own && errors.Is(err, bus.ErrGone) {
			s.log.Error(err.Error())
		}
	}()
	b.driver, b.inst = r.Driver, r.Instance
	b.net, _ = r.Instance.(netdev.Device)
	if t, ok := r.Instance.(tpmdd.Instance); ok {
		return s.startTPM(ctx, b, t.Chip())
	}
	if b.net == nil {
		s.log.Info(fmt.Sprintf("%s %s %s: in service", b.driver.Name, b.dev.Address(), b.spec.Name))
	}
	return nil
}

func (s *System) wire(w Wire) error {
	if w.Lossy {
		return nil
	}
	var ends [2]netdev.Device
	for i, n := range []string{w.A, w.B} {
		b := s.boundOf(n)
		if b == nil || b.net == nil {
			return fmt.Errorf("wire %s: %s is no network device", w, n)
		}
		ends[i] = b.net
	}
	return netdev.Wire(ends[0], ends[1])
}

// boundOf is the device of that name; nil if there is none.
func (s *System) boundOf(name string) *boundDevice {
	for _, b := range s.bound {
		if b.spec.Name == name {
			return b
		}
	}
	return nil
}

// lookup finds a network device for pktgen.
func (s *System) lookup(name string) (netdev.Device, error) {
	if b := s.boundOf(name); b != nil && b.net != nil {
		if err := b.busy(); err != nil {
			return nil, fmt.Errorf("pktgen: %w", err)
		}
		return b.net, nil
	}
	if s.lo != nil && name == loopbackName {
		return s.lo, nil
	}
	return nil, fmt.Errorf("pktgen: no device is named %s: %w", name, unix.ENODEV)
}

// Close takes everything down in the order it came up, reversed. It is idempotent.
func (s *System) Close() error {
	s.closeOnce.Do(func() {
		var errs []error
		dead := s.Err() != nil
		if s.pktgen != nil {
			s.pktgen.Close()
		}
		// Who asked for figures may not have waited for them. A device answers in time, or is gone.
		s.figuring.Lock()
		s.closed = true
		s.figuring.Unlock()
		for _, b := range s.bound {
			if b.sink != nil {
				errs = append(errs, b.sink.Close())
			}
			if b.tap != nil {
				errs = append(errs, b.tap.Close())
			}
			if b.forward != nil {
				errs = append(errs, b.forward.Close())
			}
		}
		for i := len(s.bound) - 1; i >= 0; i-- {
			b := s.bound[i]
			s.unmade = !b.tellFaults(s.log) || s.unmade
			b.tpm.unlisten()
			if b.inst != nil {
				errs = append(errs, b.inst.Close())
			}
			// Again: what a dead device held.
			if b.tap != nil {
				_ = b.tap.Close()
			}
			for _, o := range s.bound {
				if o.forward != nil && o.forward.To() == b.net {
					_ = o.forward.Close()
				}
			}
			if s.pktgen != nil {
				s.pktgen.Close()
			}
			if b.dev != nil {
				errs = append(errs, b.dev.Close())
			}
			b.tpm.wait() // for commands, which end with the device if with nothing else
		}
		for _, m := range s.machines {
			errs = append(errs, m.Close())
		}
		for _, space := range s.spaces {
			errs = append(errs, space.Close())
		}
		errs = append(errs, s.tracing.close())
		for _, c := range s.captures {
			errs = append(errs, c.close())
		}
		errs = append(errs, s.rt.Close())
		for _, err := range errs {
			// That a device died was said when it did; what follows from that is no news.
			if err != nil && !dead && !errors.Is(err, bus.ErrGone) {
				s.closeErr = errors.Join(s.closeErr, err)
			}
		}
	})
	return s.closeErr
}
