package pktgen

import (
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"

	"github.com/ring3dev/ring3/bus/dma"
)

// Rx accounts for the frames of pktgen's that arrive at a network device: what became of them on the way, and how
// long they took. Its file is NAME.rx in [Engine.Dir], see docs/abi/pktgen.md. It is safe for concurrent use; the
// receive queues of a device share it, a burst at a time.
//
// # What counts
//
// A frame is pktgen's if its magic number stands where pktgen puts it: behind Ethernet, up to two VLAN tags or a stack of labels, an
// IP header without options and UDP. All others are counted and left alone. A frame whose IPv4 checksum or length fields are wrong, or whose IP
// header is none that pktgen sends, is corrupted. So is one of up to "verify" bytes (the default is all that is in the first cache
// lines) with a wrong UDP checksum, or anything but zeros behind pktgen's header. What a corrupted frame says is not
// believed: its number is missing.
//
// # Runs
//
// pktgen's header has a number, from 1 on, but not who sent it; and a sender may vary nearly everything else from frame to
// frame, while two senders (eth0@0, eth0@1) may send alike. So numbers decide. What one sender sent in one
// run is here a run too: the number that it expects next, and which of the 8128 or more before that came. A frame belongs
// to the run that expects it, first of all to that which its flow was in the last time; else to the nearest that it may
// belong to:
//
//   - Numbers and timestamps grow together: a frame that was built later has the larger number. So a number that was there before is a
//     duplicate only if its timestamp is not newer, and the sender's next run, or another sender, otherwise.
//   - A duplicate has the headers of what it doubles. In a flow that was not there before is none.
//   - A gap is no larger than 8128 numbers, or what a sender can send (150 packets a microsecond) since the last frame.
//   - A run that has been silent for 100 ms, and 16 times as long as it used to be, comes after the others; one that had frames of other flows
//     only, while the frame's flow has runs to itself, comes last.
//
// What fits none begins a run. At most 64 are followed; the one that was silent longest makes room. Where senders send
// the same headers one's frame may be taken for the other's, which does not change what was lost in all; two frames with one number in one
// microsecond are one frame twice. Without timestamps (NO_TIMESTAMP) all equal frames are: let such senders have different
// ports. Then a run also begins where a number comes again after 10 ms of silence.
//
// # Lost, duplicated, reordered
//
// Numbers up to the largest that came are expected. Those that did not come are lost; if one comes later it is reordered (RFC 4737: it has a smaller
// number than one before it), and lost no more. That is exact for frames that are late by up to 8128 numbers. What was lost behind the last frame
// that came cannot be seen, nor what was lost before the first, unless its number is below 8128: then its
// run began at 1. A frame that came before is a duplicate (RFC 5560).
//
// With clone_skb, and with bursts under profile 6.1, a packet is sent many times with one number, and the next has a number that counts
// them all. So the copies of a packet take the numbers up to the next packet's: they are clones, and what they do not fill was lost; copies
// beyond that are duplicates. Where packets came once each until now (a run looks at its last eight steps or so) copies are duplicates at once: of
// packets that are sent once, one may be doubled on the way and the next lost. So a clone_skb that is set while a device
// runs is noticed after some packets. The copies of the packet built last are not decided: they are clones if those of the packets before were, or if there
// is none before.
//
// Frames of several receive queues are counted in the order in which their bursts are, which may be another than that of
// their arrival.
//
// # Latency
//
// It is the time from the frame's timestamp to when its burst was received, by the time of day on both ends: one reading of the clock a burst,
// there and here. A timestamp is cut to microseconds, so it is up to one too long, and a sender's burst is built before its first frame
// is sent. What would be negative or longer than 68 s comes from a clock that is not in step and is counted apart.
// The histogram has 32 buckets for each power of two, so percentiles are within 1.6 %; min, mean and max are exact.
//
// # Cost
//
// Nothing is allocated for a frame; some 700 KiB are when the first one of pktgen's comes. Reading the file copies what it shows under the
// lock, which may hold a burst up for some 100 us where there are thousands of flows.
type Rx struct {
	eng  *Engine
	name string // of the network device

	active atomic.Bool

	mu     sync.Mutex
	verify int    // length of the longest frame that is looked at whole
	result string // of the last command
	seen   [verdicts]uint64
	state  *rxState // nil: no frame of pktgen's yet
	keep   *rxKept  // nil: what is received is not kept
}

// defaultVerify is how long a frame is whose payload may be looked at for nothing: two cache lines.
const defaultVerify = 128

// maxRuns is how many runs are followed.
const (
	maxRuns = 64
	noRun   = -1
)

// rxState is what there is once a frame of pktgen's came.
type rxState struct {
	bytes          uint64
	started, ended int64 // arrival of the first and the last frame, ns
	begun          uint64
	live           int    // of runs, those in use
	past           totals // of runs that made room
	noStamp        uint64
	badStamp       uint64
	latency        span

	wall, wallAt int64 // as in device

	restarts, gap uint64 // processes that went on with this, and numbers that did not come because of that

	histogram histogram
	counted   uint32 // which rows of subBuckets of it changed since they were kept
	runs      [maxRuns]run
	table     flowTable
	windows   [maxRuns]window
}

// totals are the sums of runs.
type totals struct {
	frames, lost, doubled, reordered, clones uint64
}

func (t *totals) add(x *run) {
	clones, doubled := x.pending()
	t.frames += x.frames
	t.lost += x.lost()
	t.doubled += x.doubled + doubled
	t.reordered += x.reordered
	t.clones += x.clones + clones
}

func newRx(e *Engine, name string) *Rx {
	r := &Rx{eng: e, name: name, verify: defaultVerify}
	r.active.Store(true)
	return r
}

func newRxState() *rxState {
	s := &rxState{counted: math.MaxUint32}
	s.table.seed = rand.Uint64()
	s.table.last = otherFlow
	for i := range s.runs {
		s.runs[i].w = &s.windows[i]
	}
	return s
}

// ahead is how many frames before their turn headers are asked for: another CPU wrote them.
const ahead = 8

// prefetch asks for the headers of frames.
func prefetch(frames []*dma.Buf) {
	for _, b := range frames {
		if len(b.Data) > 0 {
			dma.Prefetch(&b.Data[0])
		}
	}
}

// # Restarts
//
// With Config.Ledger the account goes on in the next process: it is kept a millisecond after a frame came at the latest, and whenever it is
// read. What came after that and before the process was killed was received by nobody: it counts as lost, so that what was received
// and what was lost are what was sent. The file says how often that was, and how many numbers were missing then. What was on its way before and comes late,
// after the restart, counts as a duplicate.

// Take accounts for the frames of one receive burst. It neither keeps nor changes them.
func (r *Rx) Take(frames []*dma.Buf) {
	if !r.active.Load() || len(frames) == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	var p parsed
	var wall int64 // now, by the time of day
	var now int64
	prefetch(frames[:min(ahead, len(frames))])
	for i, b := range frames {
		if i+ahead < len(frames) {
			prefetch(frames[i+ahead:][:1])
		}
		v := parse(&p, b.Data, &b.Meta, r.verify)
		r.seen[v]++
		if v != rxGood {
			continue
		}
		if now == 0 {
			now, wall = r.clock()
		}
		r.state.account(&p, now, wall)
	}
	r.keepSoon(now)
}

// clock reads the clock for a burst with frames of pktgen's.
func (r *Rx) clock() (now, wall int64) {
	if r.state == nil {
		r.state = newRxState()
	}
	s := r.state
	now = mono()
	if now-s.wallAt > wallTime || s.wallAt == 0 {
		s.wall, s.wallAt = wallOffset(), now
	}
	if s.started == 0 {
		s.started = now
	}
	s.ended = now
	return now, now + s.wall
}

// account books one good frame.
func (s *rxState) account(p *parsed, now, wall int64) {
	f := s.table.find(p)
	f.frames++
	f.bytes += uint64(p.size)
	s.bytes += uint64(p.size)

	x := &s.runs[f.run]
	switch {
	case x.alive && p.seq == x.next:
		s.doubled(x.forward(p))
	case x.alive && x.isCopy(p):
		x.again()
	default:
		x = s.elsewhere(p, f, now)
	}
	if x.frames++; x.frames == 1 {
		s.begun++
	}
	x.last = now
	if x.flow != p.flow {
		s.join(x, f, p.flow)
	}

	if p.stamp == 0 {
		s.noStamp++
		return
	}
	took := uint64(wall) - p.stamp*1000
	if took >= maxLatency { // negative ones too
		s.badStamp++
		return
	}
	s.latency.add(took)
	f.latency.add(took)
	s.counted |= 1 << (s.histogram.add(took) / subBuckets)
}

// elsewhere books a frame that is not what its flow's run expects, and returns the run that it belongs to.
func (s *rxState) elsewhere(p *parsed, f *rxFlow, now int64) *run {
	best, least := int32(noRun), uint64(costNever)
	for i := range s.runs[:s.live] {
		x := &s.runs[i]
		if c := x.cost(p, f, now); c < least || c == least && c != costNever && int32(i) == f.run {
			best, least = int32(i), c
		}
	}
	if best == noRun {
		f.run = s.newRun(p, now)
		return &s.runs[f.run]
	}
	f.run = best
	x := &s.runs[best]
	switch {
	case x.isCopy(p):
		x.again()
	case int32(p.seq-x.newest) > 0:
		s.doubled(x.forward(p))
	case x.behind(p.seq):
		f.reordered++
	default:
		f.doubled++
	}
	return x
}

// newRun begins a run where none is, or where the one was that has been silent for longest.
func (s *rxState) newRun(p *parsed, now int64) int32 {
	at := s.live
	if at < maxRuns {
		s.live++
	} else {
		at = 0
		for i := range s.runs {
			if s.runs[i].last < s.runs[at].last {
				at = i
			}
		}
		x := &s.runs[at]
		s.past.add(x)
		if x.flow != noFlow && !x.mixed {
			s.table.flows[x.flow].lost += x.lost()
		}
	}
	s.runs[at].start(p, now)
	return int32(at)
}

// doubled books n copies as duplicates in their flow.
func (s *rxState) doubled(n uint32, flow int32) {
	if n != 0 && flow != noFlow {
		s.table.flows[flow].doubled += uint64(n)
	}
}

// join notes that a run has frames of a flow.
func (s *rxState) join(x *run, f *rxFlow, i int32) {
	if x.flow == noFlow {
		x.flow = i
		return
	}
	x.mixed, f.mixed = true, true
	s.table.flows[x.flow].mixed = true
}

// clear begins all counters anew. Where runs are in their sequences is kept, so that the next frame is not the
// first of a new one.
func (r *Rx) clear() {
	r.seen = [verdicts]uint64{}
	old := r.state
	if old == nil {
		return
	}
	old.table.clear()
	for i := range old.runs {
		old.runs[i].clear()
	}
	if k := r.keep; k != nil {
		for i, was := range k.resumed { // what is missing when these go on is the restart's all the same
			was.lost, was.begun = 0, old.runs[i].begun
			k.resumed[i] = was
		}
	}
	old.bytes, old.started, old.ended, old.begun = 0, 0, 0, 0
	old.restarts, old.gap = 0, 0
	old.past, old.noStamp, old.badStamp, old.latency = totals{}, 0, 0, span{}
	old.histogram, old.counted = histogram{}, math.MaxUint32
}
