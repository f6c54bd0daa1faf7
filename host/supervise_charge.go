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

// When a driver is given up: it died so often, each time within deathTime of the one before, and before its devices had worked for workedTime.
const (
	maxDeaths  = 5
	deathTime  = 30 * time.Second
	workedTime = time.Second
	// distrust is how many such deaths there are before the next worker is not told what the one before had saved, which may be what kills them.
	distrust = 3

	firstDelay = 50 * time.Millisecond // before the second attempt, doubling from there
	lastDelay  = 5 * time.Second
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

	unmade bool // valid after close

	mu      sync.Mutex
	cur     *worker // nil: none is up
	state   string
	path    string          // of the binary of its workers; "": this program
	saved   json.RawMessage // what the worker told last
	ledger  *ledger.Ledger
	book    *os.File      // the ledger's
	changed chan struct{} // closed at the next change of cur or state
	infos   []DeviceInfo  // as its worker said last
	gone    bool          // no device of it is left alive: the hardware's end, not the driver's
	deaths  deaths
}

// deaths is what happened to a group's workers.
type deaths struct {
	count   int           // so far
	last    string        // cause of the last
	gave    string        // why there is no other worker, where the group was given up
	at      time.Time     // of the last
	took    time.Duration // from the last until the devices were in service again; 0: they are not, yet
	report  string        // file; "": none could be written
	early   int           // in a row, of which none had worked
	version string        // of the program that serves the group now
	outage  time.Duration // of the last exchange ('ring3 reload')
}

// order is what somebody wants run to do.
type order struct {
	path  string // of the binary; "": the one it has
	reply chan orderDone
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
	if err := ch.newLedger(); err != nil {
		return nil, err
	}
	if ch.out, err = newOutside(s.c.Config, g); err != nil {
		ch.book.Close()
		return nil, err
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
			ch.end(w)
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
		if text, ok := strings.CutPrefix(line, usageMark); ok {
			all = append(all, usagef("%s", text))
		} else {
			all = append(all, errors.New(line))
		}
	}
	return errors.Join(all...)
}

// usageMark begins a worker's answer that is the user's mistake: exit status 2.
const usageMark = "usage: "

// errDied is wrapped where a worker died, or had to be ended.
var errDied = errors.New("its worker died")

// bring starts a worker and has it bring the devices up. The worker that it returns with an error has to be ended.
func (ch *charge) bring(ctx context.Context) (*worker, error) {
	ch.mu.Lock()
	path := ch.path
	ch.mu.Unlock()
	w, err := ch.s.spare.take(ctx, path)
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
	if ch.deaths.count > 0 { // what --fault wants was the first one's; again it would kill them all
		config.Plan.Faults = nil
	}
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
	for _, lost := range up.Lost {
		ch.s.log.Warn(lost)
	}
	w.since = time.Now()
	ch.set(func() {
		ch.gone = false
		ch.cur, ch.state, ch.infos, ch.deaths.version = w, stateUp, ch.bounded(up.Devices), up.Version
		if ch.deaths.count > 0 && ch.deaths.took == 0 {
			ch.deaths.took = time.Since(ch.deaths.at)
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
				ch.deaths.early = 0
				ch.mu.Unlock()
				ch.exchange(nil, o)
			case <-ch.s.ctx.Done():
				return
			}
			continue
		}
		cause, o := w.watch(ch.s.ctx, ch.orders)
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

// recover replaces a worker that died of cause, as often as that is of use. Once that is over, another one is started in advance, for the next death:
// not before, since it would take time from the one that is waited for.
func (ch *charge) recover(w *worker, cause error) {
	defer ch.s.spare.refill()
	for {
		if !ch.died(w, cause) {
			return
		}
		if !ch.sleep(ch.s.ctx, ch.delay()) {
			return
		}
		if w, cause = ch.bring(ch.s.ctx); cause == nil {
			ch.mu.Lock()
			took, n := ch.deaths.took, ch.deaths.count
			ch.mu.Unlock()
			ch.s.log.Warn(fmt.Sprintf("%s: in service again after %s (death %d)", ch.Name, milliseconds(took), n))
			return
		}
		if ch.s.ctx.Err() != nil {
			ch.end(w)
			return
		}
	}
}

// died takes note of a worker's death, ends it, and stops its devices. It says whether another one is to be tried.
func (ch *charge) died(w *worker, cause error) bool {
	at := time.Now()
	worked := w != nil && !w.since.IsZero() && at.Sub(w.since) >= workedTime
	if w != nil {
		w.ask()
	}
	ch.part.Detach(cause)
	ch.set(func() {
		d := &ch.deaths
		switch {
		case worked || at.Sub(d.at) > deathTime:
			d.early = 1
		default:
			d.early++
		}
		d.count, d.last, d.at, d.took = d.count+1, cause.Error(), at, 0
		ch.cur, ch.state = nil, stateRecovering
		if d.early > distrust && ch.saved != nil {
			ch.saved = nil
		}
	})
	ch.end(w)
	last := cause
	if w != nil {
		last = w.explain(cause)
	}
	quiesce, cancel := context.WithTimeout(context.Background(), quiesceTime)
	defer cancel()
	hardware := ch.out.Quiesce(quiesce)
	ch.set(func() { ch.deaths.last = last.Error() })
	ch.report(w, last, hardware)
	ch.s.log.Error(fmt.Sprintf("%s: %v", ch.Name, last))
	ch.mu.Lock()
	early := ch.deaths.early
	ch.mu.Unlock()
	switch {
	case hardware != nil:
		ch.give(fmt.Errorf("its devices cannot be stopped: %w", hardware))
	case early >= maxDeaths:
		ch.give(fmt.Errorf("it died %d times before its devices had worked for %v; 'ring3 reload' tries again: %w", early, workedTime, last))
	case early == distrust+1:
		if err := ch.newLedger(); err != nil {
			ch.give(err)
			return false
		}
		ch.s.log.Warn(fmt.Sprintf("%s: it dies again and again: it starts without what was configured", ch.Name))
		return true
	default:
		return true
	}
	return false
}

// give gives the group up.
func (ch *charge) give(err error) {
	err = fmt.Errorf("%s: given up: %w", ch.Name, err)
	ch.part.Fail(err)
	ch.set(func() { ch.state, ch.deaths.gave = stateFailed, strings.TrimPrefix(err.Error(), ch.Name+": ") })
	ch.s.log.Error(err.Error())
}

// delay is how long to wait before the next attempt: not at all, and then longer each time.
func (ch *charge) delay() time.Duration {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	n := ch.deaths.early - 2
	if n < 0 {
		return 0
	}
	return min(firstDelay<<min(n, 16), lastDelay)
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

// end ends a worker for good, and all that it asked for.
func (ch *charge) end(w *worker) {
	if w == nil {
		return
	}
	if err := w.kill(); err != nil {
		ch.s.log.Error(fmt.Sprintf("%s: %v", ch.Name, err))
	}
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
		w, state, last, gave, changed := ch.cur, ch.state, ch.deaths.last, ch.deaths.gave, ch.changed
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
			return nil, fmt.Errorf("%s: recovering for %v by now: %s: %w", ch.Name, patience, last, syscall.EIO)
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
			err = fmt.Errorf("%s: ending its worker: %w", ch.Name, w.explain(e))
		case stopped.Error != "":
			err = errors.New(stopped.Error)
		}
		ch.unmade = stopped.Unmade
		ch.end(w)
	}
	ch.part.Remove()
	err = errors.Join(err, ch.out.Close(), ch.book.Close())
	return errors.Join(err, ch.ledger.Close())
}

// milliseconds is a time for people.
func milliseconds(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000)
}
