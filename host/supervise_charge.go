package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/ring3dev/ring3/internal/ledger"
	"github.com/ring3dev/ring3/internal/link"
	"github.com/ring3dev/ring3/internal/mirror"
)

// States of a group, beside those of its devices.
const (
	stateRecovering = "recovering"
	stateFailed     = "failed"
)

// charge is a group of devices, whoever runs its drivers at the moment. Its fields stand under mu, but for those that never change; its worker is
// started, ended and replaced by run alone.
type charge struct {
	groupPlan
	s       *supervisor
	index   int
	part    *mirror.Part
	out     outside // what it has of the world
	orders  chan *order
	devices []string // names in the plan, for the case that no worker ever said them
	bare    error    // why its workers keep their rights, and are not replaced by themselves; nil: they do not, and are

	unmade bool // valid after close

	mu      sync.Mutex
	cur     *worker // nil: none is up
	speaker *worker // whose word counts for the group: cur, or who is to be
	stuck   *worker // it could not be killed: until it is gone there is no other
	state   string
	program *os.File        // its workers'; nil: this program
	saved   json.RawMessage // what the worker told last
	ledger  *ledger.Ledger
	book    *os.File      // the ledger's
	changed chan struct{} // closed at the next change of cur or state
	infos   []DeviceInfo  // as its worker said last
	gone    bool          // no device of it is left alive: the hardware's end, not the driver's
	deaths  deaths
}

// order is what somebody wants run to do.
type order struct {
	program *os.File // nil: the one it has. It is run's, once it has the order
	reply   chan orderDone
}

type orderDone struct {
	outage time.Duration
	err    error
}

// newCharge prepares what a group needs that outlives its workers.
func newCharge(s *supervisor, index int, g groupPlan) (_ *charge, err error) {
	ch := &charge{groupPlan: g, s: s, index: index, part: s.tree.Part(g.Name), orders: make(chan *order), changed: make(chan struct{}), state: stateRecovering}
	for _, m := range g.Plan.groups() {
		for _, d := range m {
			ch.devices = append(ch.devices, d.Name)
		}
	}
	ch.bare = s.uncontained(g)
	if err := ch.newLedger(); err != nil {
		return nil, err
	}
	if ch.out, err = newOutside(s.c.Config, g); err != nil {
		return nil, errors.Join(err, ch.book.Close(), ch.ledger.Close())
	}
	if o, ok := ch.out.(*nearOutside); ok {
		o.condemnBy(func(why error) {
			ch.mu.Lock()
			defer ch.mu.Unlock()
			if ch.cur != nil {
				ch.cur.condemn(why)
			}
		})
	}
	return ch, nil
}

// newLedger replaces the counters, as for a worker that shall not find what the one before left.
func (ch *charge) newLedger() error {
	l, f, err := ledger.Create(ch.Name)
	if err != nil {
		return fmt.Errorf("%s: %w", ch.Name, err)
	}
	ch.mu.Lock()
	defer ch.mu.Unlock()
	if ch.book != nil {
		ch.ledger.Close()
		ch.book.Close()
	}
	ch.ledger, ch.book = l, f
	return nil
}

// set changes what others wait for.
func (ch *charge) set(f func()) {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	f()
	close(ch.changed)
	ch.changed = make(chan struct{})
}

// begin starts the first worker. That its devices cannot be brought up is the user's to know; a worker that dies meanwhile is replaced.
func (ch *charge) begin(ctx context.Context) error {
	for {
		w, err := ch.bring(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil || !errors.Is(err, errDied) {
			if e := ch.end(w); e != nil {
				ch.s.log.Error(e.Error())
			}
			return ch.startError(err)
		}
		if !ch.died(w, err) {
			return exitError(1) // why was said
		}
		if !ch.sleep(ctx, ch.delay()) {
			return context.Cause(ctx)
		}
	}
}

// startError is why a group could not be brought up, as a System in this process would say it.
func (ch *charge) startError(err error) error {
	var remote *link.RemoteError
	if !errors.As(err, &remote) {
		return err
	}
	var all []error
	for line := range strings.SplitSeq(remote.Text, "\n") {
		if text, ok := strings.CutPrefix(line, usagePrefix); ok {
			all = append(all, usagef("%s", text))
		} else {
			all = append(all, errors.New(line))
		}
	}
	return errors.Join(all...)
}

// errDied is wrapped where a worker died, or had to be ended.
var errDied = errors.New("its worker died")

// bring starts a worker and has it bring the devices up. The worker that it returns with an error has to be ended.
func (ch *charge) bring(ctx context.Context) (*worker, error) {
	ch.mu.Lock()
	program := ch.program
	ch.mu.Unlock()
	w, err := ch.s.spare.take(ctx, program, ch.bare != nil)
	if err != nil && program != nil && ctx.Err() == nil {
		ch.s.log.Warn(fmt.Sprintf("%s: %s cannot be started any more, and this program takes its place: %v", ch.Name, program.Name(), plain(err)))
		ch.setProgram(nil)
		w, err = ch.s.spare.take(ctx, nil, ch.bare != nil)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: starting a worker: %w%w", ch.Name, err, silent{errDied})
	}
	return w, ch.employ(ctx, w)
}

// employ gives a worker that waits the group.
func (ch *charge) employ(ctx context.Context, w *worker) error {
	if err := w.speaks(); err != nil {
		return fmt.Errorf("%s: %w", ch.Name, err)
	}
	ch.mu.Lock()
	plan := ch.Plan
	if ch.deaths.count > 0 {
		plan.Faults = nil // they were asked for once: the worker that they hit is dead, and the next one shall live
	}
	config := workerConfig{Wire: wireVersion, Group: ch.Name, Plan: wirePlan(plan), Numbers: ch.Numbers, Facts: ch.s.facts, Saved: ch.saved}
	book := ch.book
	ch.speaker = w
	ch.mu.Unlock()
	body, err := json.Marshal(config)
	if err != nil {
		return fmt.Errorf("%s: %w", ch.Name, err)
	}
	w.adopt(ch)
	ch.part.Attach(w.conn)
	up, err := w.configure(ctx, body, book)
	if err != nil {
		return err
	}
	syncing, cancel := context.WithTimeout(ctx, syncTime)
	defer cancel()
	if err := ch.part.Sync(syncing); err != nil {
		return fmt.Errorf("%s: its tree: %w%w", ch.Name, err, silent{errDied})
	}
	ch.lost(up.Lost)
	w.since = time.Now()
	ch.set(func() {
		ch.gone = false
		ch.cur, ch.state, ch.infos, ch.deaths.version = w, stateUp, ch.bounded(up.Devices), said(up.Version)
		if ch.deaths.open {
			ch.deaths.took, ch.deaths.open = time.Since(ch.deaths.at), false
		}
	})
	return nil
}

// maxDevices bounds what a worker says of its devices.
const maxDevices = 1024

// run watches the group's worker, and replaces it, until the supervisor ends.
func (ch *charge) run() {
	for {
		w := ch.worker()
		if w == nil { // given up
			select {
			case o := <-ch.orders:
				ch.mu.Lock()
				ch.deaths.early, ch.deaths.row = 0, 0
				ch.mu.Unlock()
				ch.exchange(nil, o)
			case <-ch.s.ctx.Done():
				return
			}
			continue
		}
		o, cause := w.watch(ch.s.ctx, ch.orders)
		switch {
		case o != nil:
			ch.exchange(w, o)
		case cause == nil:
			return
		default:
			ch.recover(w, cause)
		}
	}
}

// sleep waits; false: ctx or the supervisor ended.
func (ch *charge) sleep(ctx context.Context, t time.Duration) bool {
	select {
	case <-ctx.Done():
	case <-ch.s.ctx.Done():
	case <-time.After(t):
		return ctx.Err() == nil && ch.s.ctx.Err() == nil
	}
	return false
}

// end ends a worker for good, and all that it asked for. An error is that it could not be ended: it may still have the devices, so nobody else gets them.
func (ch *charge) end(w *worker) error {
	if w == nil {
		return nil
	}
	err := w.kill()
	ch.mu.Lock()
	defer ch.mu.Unlock()
	switch {
	case err != nil:
		ch.stuck = w
	case ch.stuck == w:
		ch.stuck = nil
	}
	return err
}

// freed says whether the devices are stopped and nobody's, where the group was given up; an error is why not.
func (ch *charge) freed() error {
	ch.mu.Lock()
	stuck := ch.stuck
	ch.mu.Unlock()
	if err := ch.end(stuck); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), quiesceTime)
	defer cancel()
	if err := ch.out.Quiesce(ctx); err != nil {
		return fmt.Errorf("its devices cannot be stopped: %w", plain(err))
	}
	return nil
}

// setProgram makes a program the one that the group's workers run; nil: this one.
func (ch *charge) setProgram(program *os.File) {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	if ch.program != nil && ch.program != program {
		ch.program.Close()
	}
	ch.program = program
}

// worker is the one that is up; nil if none is.
func (ch *charge) worker() *worker {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	return ch.cur
}

// dead says whether no device of the group is left alive, and gives what is closed when that may have changed. A group that was given up is not
// dead: its devices wait for 'ring3 reload', and its files say why.
func (ch *charge) dead() (bool, <-chan struct{}) {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	return ch.gone, ch.changed
}

// await is the worker that is up, or will be within patience. An error is why there will be none.
func (ch *charge) await(ctx context.Context) (*worker, error) {
	limit := time.NewTimer(patience)
	defer limit.Stop()
	for {
		ch.mu.Lock()
		w, state, why, gave, changed := ch.cur, ch.state, ch.deaths.why, ch.deaths.gave, ch.changed
		ch.mu.Unlock()
		switch {
		case state == stateFailed:
			return nil, fmt.Errorf("%s: %s: %w", ch.Name, gave, syscall.EIO)
		case w != nil:
			return w, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-ch.s.ctx.Done():
			return nil, fmt.Errorf("%s: the instance ends: %w", ch.Name, syscall.ESHUTDOWN)
		case <-limit.C:
			return nil, fmt.Errorf("%s: recovering for %v by now: %s: %w%w", ch.Name, patience, why, syscall.EIO, silent{errDied})
		}
	}
}

// has says whether a device is the group's: of its plan, or plugged in later.
func (ch *charge) has(device string) bool {
	if ch.Plan.find(device) != nil {
		return true
	}
	ch.mu.Lock()
	defer ch.mu.Unlock()
	return slices.ContainsFunc(ch.infos, func(d DeviceInfo) bool { return d.Name == device })
}

// close ends the group's worker in order, or however it ends, and lets go of all that was kept for it. run has ended.
func (ch *charge) close() error {
	var err error
	if w := ch.worker(); w != nil {
		ctx, cancel := context.WithTimeout(context.Background(), stopTime)
		stopped, e := w.stop(ctx)
		cancel()
		switch {
		case e != nil:
			err = fmt.Errorf("%s: ending its worker: %w", ch.Name, plain(w.explain(e)))
		case stopped.Error != "":
			err = errors.New(printable(stopped.Error))
		}
		ch.unmade = stopped.Unmade
		err = errors.Join(err, ch.end(w))
	}
	ch.mu.Lock()
	stuck := ch.stuck
	ch.mu.Unlock()
	if stuck != nil {
		err = errors.Join(err, ch.end(stuck))
	}
	ch.setProgram(nil)
	ch.part.Remove()
	err = errors.Join(err, ch.out.Close(), ch.book.Close())
	return errors.Join(err, ch.ledger.Close())
}

// milliseconds is a time for people.
func milliseconds(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000)
}
