package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/aerinject"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/drivers/portbus"
	"github.com/ring3dev/ring3/internal/ledger"
	"github.com/ring3dev/ring3/internal/node"
	"github.com/ring3dev/ring3/internal/profile"
	"github.com/ring3dev/ring3/internal/rt"
	"github.com/ring3dev/ring3/internal/uevent"
	"github.com/ring3dev/ring3/netdev"
	"github.com/ring3dev/ring3/pktgen"
	"github.com/ring3dev/ring3/tpmdd/measure"
	"github.com/ring3dev/ring3/vfio"
)

// Config says what a System is made of.
type Config struct {
	Plan    Plan
	Drivers []*pci.Driver
	// Services are the drivers of the services of PCI Express ports.
	Services []*portbus.ServiceDriver
	Log      *slog.Logger // nil discards
	Stderr   io.Writer    // where a trace to "-" goes
	Keep     string       // where ring3 shell puts the kernel's own /proc and /sys
	// Dir is a private folder for sockets, and for the state of a TPM that is not kept; empty: there are no
	// sockets, and the state is in a folder of its own.
	Dir string
	// Started is told of each process (QEMU) that must not outlive this one.
	Started func(pid int, what string)
	// Files are files of devices that were opened by who may: by the device's name in Plan, then
	// as its backend names them.
	Files map[string]map[string]*os.File

	// What follows is for a System that is one of several, each in a process of its own.

	// Outside opens what this process may not; nil: it opens by itself.
	Outside Outside
	// Numbers are where it begins to count.
	Numbers Numbers
	// Facts are what is known of the machine; the zero value: it looks.
	Facts Facts
	// Saved is what a System in its place told Changed last, as JSON; empty: it is the first.
	Saved json.RawMessage
	// Changed is told what the next System in its place needs, each time that it is something else: before the answer to what changed it. nil:
	// nobody wants to know.
	Changed func(Saved)
	// Ledger has counters that outlive it; nil: none do.
	Ledger *ledger.Ledger
	// Watched: somebody looks after this process, and replaces it. So a fault may end it, and it says when it does not get on.
	Watched bool
	// Violate is what the kind violate of a fault does, where Watched; nil: nothing.
	Violate func()
	// Strayed is told of a device that an IOMMU cut off, and why, where Watched; nil: nobody is. It must not wait.
	Strayed func(device string, why error)
}

// System is a set of devices in service, with what stands on them. Close it.
type System struct {
	log       *slog.Logger
	events    *uevent.Ring
	plan      Plan
	machines  []machine
	spaces    map[int]*vfio.Space // by IOMMU group
	outside   Outside             // nil: it opens by itself
	facts     Facts
	numbers   numbering // of devices; guarded by specs
	saver     saver
	captures  []*capture
	tracing   tracing
	list      atomic.Pointer[[]*boundDevice] // see bound
	drivers   []*pci.Driver                  // with the port driver; their IDs are guarded by scan
	ports     *portbus.Bus
	injector  *aerinject.Injector
	scan      scanLock   // held while devices come and go
	specs     sync.Mutex // guards plan.Devices, which grows as devices are plugged in, overrides and numbers
	ctx       context.Context
	cancel    context.CancelFunc  // ends what the System does by itself
	overrides map[pci.Addr]string // driver_override; guarded by specs
	added     []addedID           // new_id; changed with scan and specs held
	noprobe   atomic.Bool         // drivers_autoprobe is 0
	rio       rioBus
	lo        *loopback // nil where a device has that name
	pktgen    *pktgen.Engine
	receivers []receiver // account for pktgen's frames; guarded by figuring
	rt        *rt.Policy // nil: threads are ordinary
	irqs      *irqTable
	lines     *irqLines // for its watchdog; nil: there is none
	tree      *tree
	strict    bool              // pktgen is as strict as its kernel: nothing accounts for frames
	measurer  *measure.Measurer // nil: nothing is measured

	serving bool // devices are served, and have no drivers
	watched bool // faults may end this process
	violate func()
	strayed func(device string, why error)

	done chan struct{} // closed when the last machine died

	// figuring is held by who reads figures, and by who takes devices away. It comes after scan and
	// the use of devices, and before all other locks.
	figuring sync.RWMutex
	closed   bool // guarded by figuring

	closeOnce sync.Once
	closeErr  error
	unmade    bool // a fault was asked for, and there was none; set by Close
}

// NewSystem brings everything up, or nothing: on error all is released. The error names
// the device, the step and what to do.
func NewSystem(ctx context.Context, c Config) (*System, error) {
	s := newSystem(c)
	err := s.start(ctx, c)
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// newSystem is a System without devices.
func newSystem(c Config) *System {
	s := &System{log: c.Log, plan: c.Plan, done: make(chan struct{}), events: uevent.New(0), overrides: map[pci.Addr]string{}, scan: make(scanLock, 1),
		outside: c.Outside, facts: c.Facts, numbers: newNumbering(c.Numbers)}
	if s.facts == (Facts{}) {
		s.facts = thisMachine()
	}
	s.saver.changed, s.saver.wake = c.Changed, make(chan struct{}, 1)
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.injector = aerinject.NewInjector(aerinject.Options{Log: s.log, Label: s.label, Hardware: s.detectError, Service: s.servesErrors})
	for _, d := range c.Drivers {
		own := *d // its IDs may change
		s.drivers = append(s.drivers, &own)
	}
	return s
}

func (s *System) start(ctx context.Context, c Config) error {
	saved := s.inherit(c.Saved)
	prof, err := profile.Find(s.plan.Profile)
	if err != nil {
		return usagef("%v", err)
	}
	if err := s.realTime(); err != nil {
		return err
	}
	s.tracing.ledger = c.Ledger
	if err := s.tracing.open(ctx, s.plan.Trace, s.log, c.Stderr, s.outside); err != nil {
		return err
	}
	if s.irqs, err = newIRQTable(prof, s.facts, c.Numbers.FirstIRQ); err != nil {
		return err
	}
	s.irqs.inherit(saved)
	if c.Watched {
		s.lines = new(irqLines)
	}
	s.watched, s.violate, s.strayed = c.Watched, c.Violate, c.Strayed
	if s.ports, err = portbus.New(c.Services...); err != nil {
		return err
	}
	s.drivers = append(s.drivers, s.ports.PortDriver())
	s.inheritIDs(saved)
	// Nothing comes or goes until everything is up.
	if err := s.scan.lock(ctx); err != nil {
		return err
	}
	locked := true
	defer func() {
		if locked {
			s.scan.unlock()
		}
	}()
	if err := s.startMachines(ctx, c, saved != nil); err != nil {
		return err
	}
	if err := s.startDevices(ctx, saved); err != nil {
		return err
	}
	s.specs.Lock()
	s.numbers.begun(&c.Plan)
	s.specs.Unlock()
	if !c.Numbers.NoLo {
		if s.lo, err = newLoopback(ctx, &s.plan, s.outside); err != nil {
			return err
		}
	}
	if s.pktgen, err = pktgen.New(pktgen.Config{Lookup: s.lookup, Receiver: s.receiver, Log: s.log, Profile: prof.Name, RT: s.rt, Open: s.openReplay(), Ledger: c.Ledger, Linger: lingerOf(c), Changed: s.touch}); err != nil {
		return err
	}
	if s.strict = prof.Pktgen.Strict; !s.strict {
		if err := s.account(); err != nil {
			return err
		}
	}
	if err := s.newTree(c.Keep, c.Dir); err != nil {
		return err
	}
	for _, c := range s.captures {
		if err := c.keep(ctx); err != nil {
			return err
		}
	}
	if err := s.startPorts(ctx, saved); err != nil {
		return err
	}
	locked = false
	s.scan.unlock()
	s.replay(ctx, saved)
	s.beginSaving()
	go func() {
		for _, m := range s.machines {
			<-m.Done()
		}
		close(s.done)
	}()
	return nil
}

// lingerTime is how long a run of pktgen's in a worker goes on without its device. Where all devices are dead the supervisor ends the worker before,
// and the next one goes on with the run.
const lingerTime = 10 * time.Second

func lingerOf(c Config) time.Duration {
	if c.Watched {
		return lingerTime
	}
	return 0
}

// startDevices gives the devices that the plan has their drivers, and what stands on them.
func (s *System) startDevices(ctx context.Context, saved *Saved) error {
	for _, b := range s.bindOrder() {
		if err := s.measureDevice(ctx, b); err != nil {
			return fmt.Errorf("%s: %w", b.spec.Name, err)
		}
		if err := s.prepare(b); err != nil {
			return err
		}
		s.uevent("add", b)
		n := *b
		drivers, none := s.heirs(saved, b)
		if none {
			s.watch(b)
			continue
		}
		err := s.bind(ctx, &n, drivers)
		switch {
		case errors.Is(err, errNoDriver) && b.fn != nil && (b.fn.Header == pci.HeaderBridge || b.fn.Parent != nil):
			s.log.Warn(err.Error()) // what is behind a bridge works without; and what is below a port may come at any time
			s.watch(b)
			continue
		case err != nil:
			return errors.Join(err, n.stop())
		}
		s.irqs.add(&n)
		s.put(&n)
		s.watch(&n)
		s.uevent("bind", &n)
	}
	for _, w := range s.plan.Wires {
		if saved != nil && !(s.served(w.A) && s.served(w.B)) {
			continue // as it was; who gets a driver later is wired then
		}
		if err := s.wire(w); err != nil {
			return err
		}
	}
	for _, b := range s.bound() {
		if far := s.boundOf(s.plan.forwardOf(b.spec.Name)); saved != nil && (b.driver == nil || far != nil && far.driver == nil) {
			continue
		}
		n := *b
		if err := s.receive(&n); err != nil {
			return err
		}
		s.put(&n)
	}
	return nil
}

// served says whether a device has a driver.
func (s *System) served(name string) bool {
	b := s.boundOf(name)
	return b != nil && b.driver != nil
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

// lookup finds a network device for pktgen.
func (s *System) lookup(name string) (netdev.Device, error) {
	if b := s.boundOf(name); b != nil && b.net != nil {
		if err := b.busy(); err != nil {
			return nil, fmt.Errorf("pktgen: %w", err)
		}
		return b.sender(), nil
	}
	if s.lo != nil && name == loopbackName {
		return s.lo, nil
	}
	return nil, fmt.Errorf("pktgen: no device is named %s: %w", name, unix.ENODEV)
}

// faultsUnmade says, after Close, whether a fault was asked for and there was none.
func (s *System) faultsUnmade() bool { return s.unmade }

// Close takes everything down in the order it came up, reversed. It is idempotent.
func (s *System) Close() error {
	s.closeOnce.Do(func() {
		var errs []error
		dead := s.Err() != nil
		if s.pktgen != nil {
			s.pktgen.Close()
		}
		// Nothing comes or goes any more.
		s.cancel()
		s.scan.shut()
		for _, b := range s.bound() {
			if b.rio != nil {
				b.rio.halt()
			}
		}
		// Who asked for figures may not have waited for them. A device answers in time, or is gone.
		s.figuring.Lock()
		s.closed = true
		s.figuring.Unlock()
		bound := s.bound()
		for _, b := range bound {
			errs = append(errs, b.stopTraffic())
		}
		for _, b := range slices.Backward(bound) {
			s.unmade = !b.tellFaults(s.log) || s.unmade
			b.tpm.unlisten()
			errs = append(errs, b.closePort())
			if b.inst != nil {
				errs = append(errs, b.inst.Close())
			}
			// Again: what a dead device held.
			if b.tap != nil {
				_ = b.tap.Close()
			}
			for _, o := range bound {
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
		s.rio.close()
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
		errs = append(errs, s.rt.Close(), s.lo.close())
		for _, err := range errs {
			// That a device died was said when it did; what follows from that is no news.
			if err != nil && !dead && !errors.Is(err, bus.ErrGone) {
				s.closeErr = errors.Join(s.closeErr, err)
			}
		}
	})
	return s.closeErr
}
