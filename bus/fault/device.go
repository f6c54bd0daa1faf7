package fault

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// Device is a device whose accesses are counted, and fail as planned; bus.Device. Safe for
// concurrent use.
type Device struct {
	in   bus.Device
	plan Plan
	// tearing: the plan may want to know what the device wrote.
	tearing atomic.Bool

	mu sync.Mutex // guards all below up to the blank line; nothing of in is called with it
	// brief: only accesses to spots, the places of the plan's faults, are counted by place, and none is written down.
	brief   bool
	spots   []spot
	places  places
	n       int // accesses so far, since Arm
	arming  int // how often Arm was called
	counts  map[place]int
	log     []record
	stuck   map[place][]stuckBit
	hits    []Outcome
	pieces  []*piece
	err     error // the link's death
	cfgGone bool  // config space is

	byNumber map[int][]int   // faults, by the access
	byPlace  map[where][]int // faults, by the place

	dead    atomic.Bool // err is set, and the device reaches no memory any more
	done    chan struct{}
	doneFor sync.Once

	irqMu sync.Mutex // one change of interrupts at a time
	irqs  *vectors   // what is enabled, nil for nothing; guarded by vecMu
	vecMu sync.Mutex

	closeOnce sync.Once
	closeErr  error
}

// where is the nth access of a place.
type where struct {
	place place
	nth   int
}

// spot is the place of a fault, and the register that it is in, nil for none.
type spot struct {
	place
	reg *bus.Register
}

// holds says whether an access may be one to the spot.
func (s spot) holds(at place) bool {
	if s.class != inRegion || at.class != inRegion || s.reg == nil {
		return s.place == at
	}
	_, ok := s.reg.Find(at.n, at.off)
	return ok
}

// stuckBit is a bit that reads as one value.
type stuckBit struct {
	bit uint
	one bool
}

// Outcome is what became of a fault of the plan.
type Outcome struct {
	Fault   Fault
	Reached bool   // its access came
	Access  Access // where it is reached, as it began
	Made    bool   // and could go wrong in this way
}

func (o Outcome) String() string {
	switch {
	case !o.Reached:
		return fmt.Sprintf("%s: never reached", o.Fault)
	case !o.Made:
		return fmt.Sprintf("%s: nothing done, access %d is %s", o.Fault, o.Access.N, o.Access.what())
	}
	return fmt.Sprintf("%s: done at access %d, %s", o.Fault, o.Access.N, o.Access.what())
}

// Wrap puts a plan around a device. The device belongs to the wrapper from then on, which
// closes it in Close.
func Wrap(dev bus.Device, plan Plan) *Device {
	d := &Device{
		in: dev, plan: plan, places: newPlaces(plan.Registers),
		counts: map[place]int{}, stuck: map[place][]stuckBit{},
		byNumber: map[int][]int{}, byPlace: map[where][]int{},
		done: make(chan struct{}),
	}
	d.load(plan.Faults)
	go func() {
		select {
		case <-dev.Done():
			d.finish()
		case <-d.done:
		}
	}()
	return d
}

// load makes faults the plan's. Called with mu held, or before anybody has the device.
func (d *Device) load(faults []Fault) {
	d.plan.Faults, d.hits, d.spots = faults, nil, nil
	d.byNumber, d.byPlace = map[int][]int{}, map[where][]int{}
	tearing := false
	for i, f := range faults {
		tearing = tearing || slices.Contains(tears, f.Kind)
		d.hits = append(d.hits, Outcome{Fault: f})
		if f.At.Place == "" {
			d.byNumber[f.At.Nth] = append(d.byNumber[f.At.Nth], i)
		} else if p, ok := d.places.find(f.At.Place); ok {
			w := where{p, f.At.Nth}
			d.byPlace[w] = append(d.byPlace[w], i)
			r, _ := d.places.register(p)
			d.spots = append(d.spots, spot{p, r})
		}
	}
	d.brief = d.plan.NoLog && len(d.byNumber) == 0
	d.tearing.Store(tearing)
}

// Arm gives a device that is in use other faults, and returns what became of those before. Accesses are counted anew, and the log begins
// anew. What was to last is over, but for a link that is dead: bits no longer stick, config space is there, vectors deliver. The rest of
// the plan stays. A fault whose place does not exist is never reached; see Plan.Check.
func (d *Device) Arm(faults []Fault) []Outcome {
	d.vecMu.Lock()
	if d.irqs != nil {
		for i := range d.irqs.mute {
			d.irqs.mute[i].Store(false)
		}
	}
	d.vecMu.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	before := d.hits
	d.n, d.log, d.counts, d.stuck, d.cfgGone = 0, nil, map[place]int{}, map[place][]stuckBit{}, false
	d.arming++
	d.load(slices.Clone(faults))
	d.watch() // from here on it may want to know what the device writes
	return before
}

// Unwrap is the device inside.
func (d *Device) Unwrap() bus.Device { return d.in }

// Outcomes says what became of each fault of the plan, in its order.
func (d *Device) Outcomes() []Outcome {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.hits)
}

// Accesses is how many there were.
func (d *Device) Accesses() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.n
}

// ticket is an access under way.
type ticket struct {
	n      int
	arming int // of the plan that n counts for
	brief  bool
	op     Op
	todo   []Fault // of the plan, that may be made of it
}

// step counts an access, and kills the link where that is planned.
func (d *Device) step(op Op, at place, width int, value uint64) ticket {
	d.mu.Lock()
	d.n++
	if d.brief && !slices.ContainsFunc(d.spots, func(s spot) bool { return s.holds(at) }) {
		defer d.mu.Unlock()
		return ticket{n: d.n, arming: d.arming, brief: true, op: op}
	}
	at = d.places.canonical(at)
	d.counts[at]++
	t := ticket{n: d.n, arming: d.arming, brief: d.brief, op: op}
	r := record{op: op, width: uint8(width), nth: d.counts[at], place: at, value: value}
	var todo []int
	if len(d.plan.Faults) > 0 {
		todo = d.byNumber[d.n]
		if more := d.byPlace[where{at, r.nth}]; len(more) > 0 {
			todo = slices.Concat(todo, more)
		}
	}
	var hit []Outcome
	for _, i := range todo {
		f := d.plan.Faults[i]
		t.todo = append(t.todo, f)
		o := Outcome{Fault: f, Reached: true, Access: d.access(t.n, &r), Made: d.err == nil && f.Kind.Applies(op) && (d.plan.Process || !f.Kind.ToProcess())}
		if o.Made {
			r.faults = append(r.faults, f.Kind)
			hit = append(hit, o)
		}
		d.hits[i] = o
	}
	if len(d.log) < maxLog && !d.plan.NoLog {
		d.log = append(d.log, r)
	}
	if len(hit) == 0 {
		t.todo = nil
	}
	d.mu.Unlock()
	if f := d.planned(t, Gone); f != nil {
		d.die(f.String())
	}
	if d.planned(t, ConfigGone) != nil {
		d.mu.Lock()
		d.cfgGone = true
		d.mu.Unlock()
	}
	for _, o := range hit {
		if d.plan.OnHit != nil {
			d.plan.OnHit(o.Fault, o.Access)
		}
	}
	d.strike(t)
	return t
}

// planned is the fault of a kind that is to be made of an access, nil for none.
func (d *Device) planned(t ticket, k Kind) *Fault {
	for i := range t.todo {
		if f := &t.todo[i]; f.Kind == k && k.Applies(t.op) {
			return f
		}
	}
	return nil
}

// after is what happens once an access was made. value is what the log shows.
func (d *Device) after(t ticket, value uint64) {
	if t.brief && !d.tearing.Load() && len(t.todo) == 0 {
		return
	}
	d.mu.Lock()
	if t.arming == d.arming && t.n <= len(d.log) {
		d.log[t.n-1].value = value
	}
	reset := false
	if d.err == nil {
		for i := range t.todo {
			f := &t.todo[i]
			if !f.Kind.Applies(t.op) {
				continue
			}
			switch f.Kind {
			case Garbage:
				d.garbage(f.arg())
			case DMAFlip:
				d.flipMemory(f.arg())
			case DMATorn, DMALost, DMALength:
				d.tear(f)
			case SelfReset:
				reset = true
			}
		}
	}
	d.watch()
	d.mu.Unlock()
	if !reset {
		return
	}
	do := d.plan.Reset
	if do == nil {
		do = func() error { return d.in.Reset(context.Background()) }
	}
	_ = do() // of a device without a reset of its own nothing becomes
}

// refuse is the error of a call that does not go through: denied, or the link is dead.
func (d *Device) refuse(t ticket, what string) error {
	if d.dead.Load() {
		return d.Err()
	}
	if f := d.planned(t, Deny); f != nil {
		d.after(t, 0)
		return fmt.Errorf("%s: %s: denied by fault %s: %w", d.Address(), what, f, bus.ErrBusy)
	}
	return nil
}

// die makes the link dead. From then on the device inside reaches neither memory nor
// driver.
func (d *Device) die(why string) {
	d.mu.Lock()
	if d.err != nil {
		d.mu.Unlock()
		return
	}
	d.err = fmt.Errorf("%s: the link died by fault %s: %w", d.Address(), why, bus.ErrGone)
	d.mu.Unlock()
	// The driver may free memory as soon as it knows: bus mastering goes first. The read
	// flushes the write.
	pci.SetCommand(d.in.Config(), 0, pci.CmdMaster)
	d.in.Config().Read16(pci.CfgCommand)
	d.dead.Store(true)
	d.finish()
	d.vecMu.Lock()
	defer d.vecMu.Unlock()
	if d.irqs != nil {
		d.irqs.end()
	}
}

// Kill makes the link dead now: what the fault gone does at an access.
func (d *Device) Kill() { d.die("Kill") }

// Release takes the wrapper away from around the device, which stays open: vectors end, and what the driver left behind is freed once the
// device reaches no memory any more (bus mastering off) and sends no interrupts. Whoever has the wrapper sees a dead link. It is for a device
// whose driver died or was closed, and that gets another one; what it left is in Held, asked for before.
func (d *Device) Release() error {
	d.die("Release")
	d.irqMu.Lock()
	err := d.in.DisableIRQs()
	d.dropVectors()
	d.irqMu.Unlock()
	d.mu.Lock()
	left := d.pieces
	d.pieces = nil
	d.mu.Unlock()
	for _, p := range left {
		p.free()
	}
	return err
}

// finish closes Done.
func (d *Device) finish() { d.doneFor.Do(func() { close(d.done) }) }

// Address is the device's.
func (d *Device) Address() string { return d.in.Address() }

// Backend is the device's.
func (d *Device) Backend() string { return d.in.Backend() }

// HardwareIDs are those of the device itself; bus.Platform.
func (d *Device) HardwareIDs() []string { return bus.HardwareIDs(d.in) }

// Regions are the device's.
func (d *Device) Regions() []bus.RegionInfo { return d.in.Regions() }

// Done is closed when the link died, here or inside.
func (d *Device) Done() <-chan struct{} { return d.done }

// Err says why.
func (d *Device) Err() error {
	if !d.dead.Load() {
		return d.in.Err()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.err
}

// IRQVectors are the device's, 0 after the link's death. It does not count as an access.
func (d *Device) IRQVectors(mode bus.IRQMode) int {
	if d.dead.Load() {
		return 0
	}
	return d.in.IRQVectors(mode)
}

// Reset resets the device.
func (d *Device) Reset(ctx context.Context) error {
	t := d.step(Reset, place{class: call, n: int(Reset)}, 0, 0)
	if err := d.refuse(t, "reset"); err != nil {
		return err
	}
	err := d.in.Reset(ctx)
	d.after(t, 0)
	return err
}

// SaveState is the device's; bus.StateKeeper. Neither it nor restore counts as an access. After the link's death restore fails.
func (d *Device) SaveState() (restore func() error) {
	inner := bus.SaveState(d.in)
	return func() error {
		if d.dead.Load() {
			return d.Err()
		}
		return inner()
	}
}

// RestoreIRQs is the device's; bus.IRQKeeper. It does not count as an access. After the link's death it fails.
func (d *Device) RestoreIRQs(write bool) (lost bool, err error) {
	if d.dead.Load() {
		return false, d.Err()
	}
	return bus.RestoreIRQs(d.in, write)
}

// Clock is the device's; bus.TimeKeeper. Nothing of it counts as an access.
func (d *Device) Clock() bus.Clock { return bus.ClockOf(d.in) }

// Close closes the device inside.
func (d *Device) Close() error {
	d.closeOnce.Do(func() {
		d.closeErr = d.in.Close() // closes its vectors, which ends ours
		d.finish()
		d.irqMu.Lock()
		defer d.irqMu.Unlock()
		d.dropVectors()
	})
	return d.closeErr
}
