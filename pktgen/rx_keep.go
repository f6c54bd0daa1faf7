package pktgen

import (
	"math"
	"math/bits"
	"time"

	"github.com/ring3dev/ring3/internal/ledger"
)

// What a receiver has accounted for, kept in a ledger, which outlives this process. All that belongs together is changed there in one step, a
// while after it changed here: so what is there is how things were at one moment.

// keepAfter is how long a change waits for others; with many flows, which take longer to look through, more. Who takes frames keeps them as they come: a
// timer, which costs a goroutine that wants the lock, is for the last ones, and waits keepTail.
const (
	keepAfter     = time.Millisecond
	keepTail      = 4 * keepAfter
	keepFlowsUnit = 512
)

// Words of a receiver's area.
const (
	rxValid     = 0 // there is a state
	rxTotalsLen = 40
	rxRunLen    = 15
	rxFlowLen   = 15
	rxHistAt    = rxTotalsLen
	rxRunsAt    = rxHistAt + buckets
	rxFlowsAt   = rxRunsAt + maxRuns*rxRunLen
	rxWords     = rxFlowsAt + (maxRxFlows+1)*rxFlowLen
	rxChanges   = rxWords // all of it
)

// rxKept is what a ledger has of a receiver.
type rxKept struct {
	j     *ledger.Journal
	timer *time.Timer
	// Guarded by the receiver's mu: whether the timer runs, whether something changed since all was kept, when that was, and the end.
	armed, changed bool
	at             int64
	done           bool
	// resumed are the numbers that runs expected when this process took over, while nothing came since.
	resumed map[int32]resumedRun
	// tookOver is when this process took over from another, while no frame of pktgen's came since; 0: it did not.
	tookOver int64
}

// resumedRun is where a run was, or one that has begun since: what is missing before its first frame a process before this one may have sent.
type resumedRun struct {
	next  uint32
	lost  uint64
	begun int64 // a run of another time is another one
	anew  bool
}

// keepIn has the account kept in l, if there is one, and goes on with what is there.
func (r *Rx) keepIn(l *ledger.Ledger) error {
	if l == nil {
		return nil
	}
	a, fresh, err := l.Area("pktgen/"+r.name+rxSuffix, ledger.JournalWords(rxWords, rxChanges))
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	k := &rxKept{j: ledger.NewJournal(a, rxWords, rxChanges)}
	k.timer = time.AfterFunc(math.MaxInt64, r.keepNow)
	r.keep = k
	if fresh {
		return nil
	}
	k.tookOver = mono()
	if k.j.Load(rxValid) != 0 {
		r.restore(k)
	}
	return nil
}

// close ends keeping, with what there is now.
func (r *Rx) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if k := r.keep; k != nil && !k.done {
		r.keepAll()
		k.done = true
		k.timer.Stop()
	}
}

// keepSoon is called when something changed, with mu held; now is the time, or 0 where nobody knows.
func (r *Rx) keepSoon(now int64) {
	k := r.keep
	if k == nil || k.done {
		return
	}
	if k.tookOver != 0 && now != 0 {
		if now-k.tookOver < int64(joinTime) {
			r.findBegun()
		}
		k.tookOver = 0
	}
	if len(k.resumed) > 0 {
		r.findGaps()
	}
	after := keepAfter
	if r.state != nil {
		after *= time.Duration(1 + r.state.table.n/keepFlowsUnit)
	}
	k.changed = true
	if now != 0 && now-k.at >= int64(after) {
		k.at = now
		r.keepAll()
	}
	if k.changed && !k.armed {
		k.armed = true
		k.timer.Reset(after / keepAfter * keepTail)
	}
}

func (r *Rx) keepNow() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if k := r.keep; !k.done {
		k.armed = false
		if k.changed {
			r.keepAll()
		}
	}
}

// keepAll keeps everything that changed. Called with mu held.
func (r *Rx) keepAll() {
	k := r.keep
	if k == nil || k.done {
		return
	}
	var w [rxTotalsLen]uint64
	w[rxValid] = 1
	copy(w[1:], r.seen[:])
	if s := r.state; s != nil {
		s.words(&w)
		for rows := s.counted; rows != 0; rows &= rows - 1 {
			at := bits.TrailingZeros32(rows) * subBuckets
			k.update(rxHistAt+at, s.histogram[at:at+subBuckets])
		}
		s.counted = 0
		for i := range s.runs[:s.live] {
			v := s.runs[i].words()
			k.update(rxRunsAt+i*rxRunLen, v[:])
		}
		for i := range s.table.flows[:s.table.n] {
			v := s.table.flows[i].words()
			k.update(rxFlowsAt+i*rxFlowLen, v[:])
		}
		v := s.table.flows[otherFlow].words()
		k.update(rxFlowsAt+otherFlow*rxFlowLen, v[:])
	}
	k.update(0, w[:])
	k.j.Commit()
	k.changed = false
}

func (k *rxKept) update(at int, words []uint64) {
	for i, v := range words {
		k.j.Update(at+i, v)
	}
}

// words are the totals.
func (s *rxState) words(w *[rxTotalsLen]uint64) {
	const at = 1 + int(verdicts)
	copy(w[at:], []uint64{
		s.bytes, uint64(s.started), uint64(s.ended), s.begun, uint64(s.live),
		s.past.frames, s.past.lost, s.past.doubled, s.past.reordered, s.past.clones,
		s.noStamp, s.badStamp, s.latency.n, s.latency.sum, s.latency.min, s.latency.max,
		s.table.seed, uint64(s.table.last), uint64(s.table.n), s.restarts, s.gap, 1,
	})
}

// setWords is the reverse. It tells whether there was a state at all.
func (s *rxState) setWords(w *[rxTotalsLen]uint64) bool {
	v := w[1+int(verdicts):]
	s.bytes, s.started, s.ended, s.begun, s.live = v[0], int64(v[1]), int64(v[2]), v[3], int(min(v[4], maxRuns))
	s.past = totals{v[5], v[6], v[7], v[8], v[9]}
	s.noStamp, s.badStamp = v[10], v[11]
	s.latency = span{v[12], v[13], v[14], v[15]}
	s.table.seed, s.table.last, s.table.n = v[16], flowIndex(uint32(v[17]), otherFlow), int(min(v[18], maxRxFlows))
	s.restarts, s.gap = v[19], v[20]
	return v[21] != 0
}

// flowIndex is the number of a flow, or else what stands for none.
func flowIndex(v uint32, none int32) int32 {
	if v <= maxRxFlows {
		return int32(v)
	}
	return none
}

func (x *run) words() [rxRunLen]uint64 {
	bits := uint64(x.old) | uint64(uint8(x.score))<<32
	if x.alive {
		bits |= 1 << 40
	}
	if x.mixed {
		bits |= 1 << 41
	}
	return [rxRunLen]uint64{
		two(x.next, x.newest), x.stamp, x.hash, two(uint32(x.at), x.copies), bits, two(x.base, uint32(x.flow)), uint64(x.begun), uint64(x.last),
		x.frames, x.lead, x.span, x.distinct, x.clones, x.doubled, x.reordered,
	}
}

func (x *run) setWords(v []uint64) {
	x.next, x.newest = halves(v[0])
	x.stamp, x.hash = v[1], v[2]
	at, copies := halves(v[3])
	x.at, x.copies, x.old = flowIndex(at, noFlow), copies, uint32(v[4])
	x.score, x.alive, x.mixed = min(max(int8(v[4]>>32), -maxScore), maxScore), v[4]>>40&1 != 0, v[4]>>41&1 != 0
	base, flow := halves(v[5])
	x.base, x.flow = base, flowIndex(flow, noFlow)
	x.begun, x.last = int64(v[6]), int64(v[7])
	x.frames, x.lead, x.span, x.distinct, x.clones, x.doubled, x.reordered = v[8], v[9], v[10], v[11], v[12], v[13], v[14]
	// Which of the last numbers came is not kept: all did.
	for i := range x.w.got {
		x.w.got[i] = math.MaxUint64
	}
}

func (f *rxFlow) words() [rxFlowLen]uint64 {
	bits := uint64(uint32(f.run))
	if f.mixed {
		bits |= 1 << 32
	}
	return [rxFlowLen]uint64{
		f.key.a, f.key.b, f.key.c, f.key.d, f.key.e, f.frames, f.bytes, f.reordered, f.doubled, f.lost,
		f.latency.n, f.latency.sum, f.latency.min, f.latency.max, bits,
	}
}

func (f *rxFlow) setWords(v []uint64, seed uint64) {
	*f = rxFlow{
		key: flowKey{v[0], v[1], v[2], v[3], v[4]}, frames: v[5], bytes: v[6], reordered: v[7], doubled: v[8], lost: v[9],
		latency: span{v[10], v[11], v[12], v[13]}, run: int32(min(uint32(v[14]), maxRuns-1)), mixed: v[14]>>32&1 != 0,
	}
	f.hash = f.key.hash(seed)
}

// restore goes on with what a process before this one kept. Called with mu held, before anybody has the receiver.
func (r *Rx) restore(k *rxKept) {
	var w [rxTotalsLen]uint64
	k.load(0, w[:])
	copy(r.seen[:], w[1:])
	s := newRxState()
	if !s.setWords(&w) {
		return
	}
	r.state = s
	for i := range s.histogram {
		s.histogram[i] = k.j.Load(rxHistAt + i)
	}
	k.resumed = make(map[int32]resumedRun)
	for i := range s.runs[:s.live] {
		x := &s.runs[i]
		var v [rxRunLen]uint64
		k.load(rxRunsAt+i*rxRunLen, v[:])
		x.setWords(v[:])
		k.resumed[int32(i)] = resumedRun{next: x.next, lost: x.lost(), begun: x.begun}
	}
	t := &s.table
	n := t.n
	for t.n = 0; t.n < n; t.n++ {
		var v [rxFlowLen]uint64
		k.load(rxFlowsAt+t.n*rxFlowLen, v[:])
		t.flows[t.n].setWords(v[:], t.seed)
		t.place(uint16(t.n))
	}
	var v [rxFlowLen]uint64
	k.load(rxFlowsAt+otherFlow*rxFlowLen, v[:])
	t.flows[otherFlow].setWords(v[:], t.seed)
	s.restarts++
}

func (k *rxKept) load(at int, words []uint64) {
	for i := range words {
		words[i] = k.j.Load(at + i)
	}
}

// place puts a flow where it is found; one that finds no place is not found any more.
func (t *flowTable) place(i uint16) {
	at := t.flows[i].hash
	for range maxProbes {
		if slot := &t.slots[at%flowSlots]; *slot == 0 {
			*slot = i + 1
			return
		}
		at++
	}
}

// findBegun adds the runs that began with the first burst after a restart to those that went on: whoever sent what came before these may have died before any of it was
// received.
func (r *Rx) findBegun() {
	k := r.keep
	if k.resumed == nil {
		k.resumed = make(map[int32]resumedRun)
	}
	for i := range r.state.runs[:r.state.live] {
		begun := r.state.runs[i].begun
		if was, old := k.resumed[int32(i)]; !old || was.begun != begun {
			k.resumed[int32(i)] = resumedRun{begun: begun, anew: true}
		}
	}
}

// findGaps books what was missing in runs when they went on after a restart.
func (r *Rx) findGaps() {
	s := r.state
	for i, was := range r.keep.resumed {
		x := &s.runs[i]
		same, gap := x.alive && x.begun == was.begun, uint64(0)
		switch {
		case same && was.anew && x.frames == 1, same && !was.anew && x.next == was.next: // a single frame tells nothing of those before it
			continue
		case same && was.anew:
			gap = x.lead
		case same && x.lost() > was.lost:
			gap = x.lost() - was.lost
		}
		if gap > 0 {
			s.gap += gap
			s.restarts = max(s.restarts, 1) // where there was no account to go on with, this is how it shows
		}
		delete(r.keep.resumed, i)
	}
}

func (r *Rx) save() savedRx {
	r.mu.Lock()
	defer r.mu.Unlock()
	return savedRx{Name: r.name, Active: r.active.Load(), Verify: r.verify, Result: r.result}
}

// set is the reverse.
func (r *Rx) set(s savedRx) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.active.Store(s.Active)
	r.verify, r.result = min(max(s.Verify, 0), maxVerify), s.Result
}
