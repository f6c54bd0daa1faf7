package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/ring3dev/ring3/internal/figures"
	"github.com/ring3dev/ring3/internal/instance"
	"github.com/ring3dev/ring3/internal/mirror"
	"github.com/ring3dev/ring3/internal/node"
	"github.com/ring3dev/ring3/internal/uevent"
	"github.com/ring3dev/ring3/internal/userns"
)

// service is what an instance serves: a System in this process, or a supervisor of Systems in others.
type service interface {
	Tree() *node.Dir
	Devices() []DeviceInfo
	Figures() *figures.Snapshot
	Done() <-chan struct{} // no device is left alive
	Stop()                 // what generates traffic ends, and who waits for it is woken
	Close() error
	faultsUnmade() bool // after Close: a fault was asked for, and there was none
	handlers() instance.Handlers
}

// supervisor runs an instance's drivers in workers, one a group of devices, and keeps for them what must outlive a driver: the tree that others
// have open, QEMU, the files of devices, counters.
//
// Each group is a charge with a goroutine of its own, which alone starts, ends and replaces its worker. Nobody holds a lock while a worker is asked
// something, and whoever asks has a bound: so a group that hangs holds up nobody but its own clients.
type supervisor struct {
	c       superviseConfig
	log     *slog.Logger
	events  *uevent.Ring
	tree    *mirror.Tree
	ns      *node.Dir // the shell's view
	class   *node.Dir // ns/sys/class/net, merged with the machine's
	charges []*charge // in the order of the plan
	spare   *spares
	sockets []*tpmSocket
	facts   Facts
	mute    sync.Map // what was complained of

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup
	done   chan struct{}

	closeOnce sync.Once
	closeErr  error
	unmade    bool
}

// superviseConfig says what a supervisor is made of.
type superviseConfig struct {
	Config
	// Args start a worker of this program, or of another one.
	Args []string
	Env  []string
	// Deaths is how many in a row, each within steadyTime, a group is given up after; 0: maxRow.
	Deaths int
	// Ended is told of each process that Started was told of and that is no more.
	Ended func(pid int)
	// Asked: somebody asked for supervision, so what does without part of it is worth a warning.
	Asked bool
	// Unconfined says why a device's driver cannot be contained; nil: what its backend says.
	Unconfined func(d DeviceSpec) error
}

// Bounds of a worker's life.
const (
	helloTime     = 20 * time.Second // from its start until it says hello; the machine may be loaded
	configureTime = 90 * time.Second // until its devices are in service: QEMU may have to be started
	stopTime      = 10 * time.Second // for an orderly end
	killTime      = 60 * time.Second // for the kernel to end it, and to take gigabytes back where many wait for a CPU
	quiesceTime   = 10 * time.Second // for its devices to be stopped
	syncTime      = 20 * time.Second // for its tree to be whole
	patience      = 10 * time.Second // of who uses a file or asks something meanwhile
)

// newSupervisor starts a worker for each group, all at once, or leaves nothing.
func newSupervisor(ctx context.Context, c superviseConfig) (_ *supervisor, err error) {
	s := &supervisor{c: c, log: c.Log, events: uevent.New(0), facts: thisMachine(), done: make(chan struct{})}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	s.spare = &spares{s: s}
	s.tree = mirror.NewTree(mirror.TreeOptions{Rules: s.rules(), Except: []string{userns.ViewName}, May: s.may, Leads: s.leads, Patience: patience, Log: s.log})
	s.prepareView()
	for i, g := range c.Plan.cut(iommuGroupOf) {
		ch, err := newCharge(s, i, g)
		if err != nil {
			return nil, err
		}
		s.charges = append(s.charges, ch)
		ch.tellBare()
	}
	errs := make([]error, len(s.charges))
	var wg sync.WaitGroup
	for i, ch := range s.charges {
		wg.Go(func() { errs[i] = ch.begin(ctx) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if err := s.dress(); err != nil {
		return nil, err
	}
	for _, ch := range s.charges {
		s.wg.Go(ch.run)
	}
	s.wg.Go(s.waitForAll)
	s.spare.refill()
	return s, nil
}

// waitForAll closes done when no group has a device that lives.
func (s *supervisor) waitForAll() {
	for _, ch := range s.charges {
		for {
			dead, changed := ch.dead()
			if dead {
				break
			}
			select {
			case <-changed:
			case <-s.ctx.Done():
				return
			}
		}
	}
	// One may have been started again meanwhile.
	if slices.ContainsFunc(s.charges, func(ch *charge) bool { dead, _ := ch.dead(); return !dead }) {
		s.wg.Go(s.waitForAll)
		return
	}
	close(s.done)
}

// Tree is what is exported.
func (s *supervisor) Tree() *node.Dir { return s.tree.Root() }

// Done is closed when no device is left alive.
func (s *supervisor) Done() <-chan struct{} { return s.done }

func (s *supervisor) faultsUnmade() bool { return s.unmade }

// Stop has every worker end what it generates; who waits in a file for its end is woken.
func (s *supervisor) Stop() {
	ctx, cancel := context.WithTimeout(s.ctx, stopTime)
	defer cancel()
	s.each(func(ch *charge) { ch.quiet(ctx) })
}

// each does something with all groups at once.
func (s *supervisor) each(f func(ch *charge)) {
	var wg sync.WaitGroup
	for _, ch := range s.charges {
		wg.Go(func() { f(ch) })
	}
	wg.Wait()
}

// Close ends all workers in order, then what was kept for them. It is idempotent.
func (s *supervisor) Close() error {
	s.closeOnce.Do(func() {
		for _, t := range s.sockets {
			t.unlisten()
		}
		s.cancel()
		s.wg.Wait()
		errs := make([]error, len(s.charges))
		var wg sync.WaitGroup
		for i, ch := range s.charges {
			wg.Go(func() { errs[i] = ch.close() })
		}
		wg.Wait()
		for _, ch := range s.charges {
			s.unmade = s.unmade || ch.unmade
		}
		s.spare.close()
		for _, t := range s.sockets {
			t.wait()
		}
		s.closeErr = errors.Join(errs...)
	})
	return s.closeErr
}

// chargeOf is the group that has a device; nil if none has.
func (s *supervisor) chargeOf(device string) *charge {
	for _, ch := range s.charges { // what a worker says comes after what the plan says
		if ch.Plan.find(device) != nil {
			return ch
		}
	}
	for _, ch := range s.charges {
		if ch.has(device) {
			return ch
		}
	}
	return nil
}

// supervisable says why none of a plan's drivers can run in a worker, which is what concerns the whole process; nil: they can.
func supervisable(p *Plan, passed bool) error {
	for name, file := range p.Trace.Files {
		if file == "-" {
			return fmt.Errorf("the trace of %s goes to standard error, which no worker may have", name)
		}
	}
	switch {
	case p.RT != 0:
		return errors.New("--rt wants a priority that a worker may not have")
	case p.Measure.TPM != "":
		return errors.New("--measure wants what is measured to be this program")
	case passed:
		return errors.New("--as opens the devices for this process")
	}
	return nil
}

// complainOnce says something that need not be said twice.
func (s *supervisor) complainOnce(text string) {
	if _, said := s.mute.LoadOrStore(text, true); !said {
		s.log.Warn(text)
	}
}
