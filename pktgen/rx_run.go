package pktgen

import "math/bits"

// run is what one run of one sender looks like from here: which numbers came. Its counters, but for
// what is needed to go on, begin anew with clear_counters.
type run struct {
	w *window

	next   uint32 // the number expected
	newest uint32 // that of the packet built last
	stamp  uint64 // of newest
	hash   uint64 // of newest's flow
	at     int32  // newest's flow; noFlow
	copies uint32 // of newest, that came
	old    uint32 // of them, those before clear_counters
	score  int8   // evidence that each packet is sent once; less than 0: clones
	base   uint32 // numbers before it do not count as expected
	alive  bool

	flow  int32 // that of the first frame; noFlow
	mixed bool  // there were others

	begun, last int64 // arrival of the first and the last frame, ns
	frames      uint64
	lead        uint64 // numbers before the first frame
	span        uint64 // numbers from the first frame on
	distinct    uint64 // of both, those that came
	clones      uint64
	doubled     uint64
	reordered   uint64
}

const noFlow = -1

// The window of a run: which of the last numbers came.
const (
	windowWords = 128
	windowLen   = (windowWords - 1) * 64 // numbers, at least
	wordNumbers = 1<<26 - 1              // a number's word, of a number of 32 bits
)

type window struct {
	got    [windowWords]uint64 // it came
	copies [windowWords]uint64 // as a copy of the packet with the last number before it that is none
}

// reach makes room for numbers up to to, when next was the one expected.
func (w *window) reach(next, to uint32) {
	last := to >> 6
	n := min((last-(next-1)>>6)&wordNumbers, windowWords)
	for i := range n {
		at := (last - i) % windowWords
		w.got[at], w.copies[at] = 0, 0
	}
}

func (w *window) set(n uint32) { w.got[n>>6%windowWords] |= 1 << (n & 63) }

func (w *window) setCopy(n uint32) { w.copies[n>>6%windowWords] |= 1 << (n & 63) }

func (w *window) has(n uint32) bool { return w.got[n>>6%windowWords]>>(n&63)&1 != 0 }

// vacant finds the first number behind n, and before limit, that is no copy or did not come.
func (w *window) vacant(n, limit uint32) uint32 {
	for n++; int32(n-limit) < 0; n = (n | 63) + 1 {
		at := n >> 6 % windowWords
		if free := ^(w.got[at] & w.copies[at]) >> (n & 63); free != 0 {
			n += uint32(bits.TrailingZeros64(free))
			break
		}
	}
	if int32(n-limit) > 0 {
		return limit
	}
	return n
}

// start begins a run with its first frame. Numbers begin at 1: what is missing before a small one was lost.
func (x *run) start(p *parsed, now int64) {
	*x.w = window{}
	*x = run{w: x.w, next: p.seq, newest: p.seq - 1, base: p.seq, alive: true, flow: noFlow, at: noFlow, begun: now}
	if n := p.seq - 1; n < windowLen {
		x.lead, x.base = uint64(n), 1
	}
	x.forward(p)
	x.score = 0
}

// lost is how many numbers did not come. A single frame tells nothing of those before it.
func (x *run) lost() uint64 {
	n := x.span - x.distinct
	if x.frames > 1 {
		n += x.lead
	}
	return n
}

// pending are the newest packet's copies: clones where packets are sent more than once, as far as is known.
func (x *run) pending() (clones, doubled uint64) {
	if x.score > 0 {
		return 0, uint64(x.copies - x.old)
	}
	return uint64(x.copies - x.old), 0
}

// isCopy tells whether a frame is the newest packet once more.
func (x *run) isCopy(p *parsed) bool {
	return p.seq == x.newest && p.stamp == x.stamp && p.hash == x.hash
}

// forward books the next packet, or one after it. It returns how many copies of the packet before, and of which flow, were
// duplicates.
func (x *run) forward(p *parsed) (doubled uint32, flow int32) {
	room := p.seq - x.newest - 1
	if room|x.copies == 0 { // as it mostly is
		if x.score < maxScore {
			x.score++
		}
		if p.seq&63 == 0 {
			x.w.reach(p.seq, p.seq)
		}
		x.span++
	} else {
		x.w.reach(x.newest+1, p.seq)
		doubled = x.settle(room, p.seq)
	}
	x.distinct++
	flow = x.at
	x.newest, x.next = p.seq, p.seq+1
	x.stamp, x.hash, x.at = p.stamp, p.hash, p.flow
	x.w.set(p.seq)
	return doubled, flow
}

// maxScore is how sure a run can be that each packet is sent once, or that it is not.
const maxScore = 8

// settle books the numbers between the newest packet and the next, seq: as many as the newest had copies were theirs, if packets are sent more than
// once. A packet with copies after which numbers are missing says so, the more the more there are; one that the
// next number follows says that they are not.
func (x *run) settle(room, seq uint32) (doubled uint32) {
	switch {
	case room == 0:
		x.score = min(x.score+1, maxScore)
	case x.copies > 0:
		x.score = int8(max(int(x.score)-2*int(min(x.copies, maxScore)), -maxScore))
	}
	clones := uint32(0)
	if x.score <= 0 {
		clones = min(x.copies, room)
	}
	for n := range clones {
		if at := x.newest + 1 + n; seq-at < windowLen {
			x.w.set(at)
			x.w.setCopy(at)
		}
	}
	doubled = x.copies - clones
	// Those before clear_counters do not count any more.
	was := min(x.old, clones)
	doubled -= x.old - was
	x.clones += uint64(clones - was)
	x.distinct += uint64(clones - was)
	x.span += uint64(room-was) + 1
	x.doubled += uint64(doubled)
	x.copies, x.old = 0, 0
	return doubled
}

// again books a copy of the newest packet. What it was shows when the next packet comes.
func (x *run) again() {
	x.copies++
	if x.score <= 0 {
		x.next++
	}
}

// behind books a frame with a number before the newest packet's: a late one, or a duplicate (false).
func (x *run) behind(seq uint32) (late bool) {
	n, ok := x.missing(seq)
	if !ok {
		x.doubled++
		return false
	}
	x.w.set(n)
	if n != seq {
		x.w.setCopy(n)
	}
	if int32(n-x.base) < 0 {
		x.span++
	}
	x.distinct++
	x.reordered++
	return true
}

// missing finds the number that a late frame brings: its own, or one of its copies'.
func (x *run) missing(seq uint32) (n uint32, ok bool) {
	if !x.w.has(seq) {
		return seq, true
	}
	if x.score > 0 {
		return 0, false
	}
	n = x.w.vacant(seq, x.newest)
	return n, n != x.newest && !x.w.has(n)
}

// clear begins the counters anew, and keeps the place in the sequence.
func (x *run) clear() {
	*x = run{
		w: x.w, next: x.next, newest: x.newest, stamp: x.stamp, hash: x.hash, copies: x.copies, old: x.copies, score: x.score,
		base: x.next, alive: x.alive, flow: noFlow, at: noFlow, begun: x.last, last: x.last,
	}
}

// What a frame costs as the next one of a run: the evidence against it. See Rx.
const (
	costCopy    = 1
	costNear    = 16      // and 2 for each number between
	costDormant = 1 << 20 // the run seemed to be over
	costDouble  = 1 << 21 // it came before
	costFar     = 1 << 22
	costForeign = 1 << 23 // its flow and the run have nothing to do with each other so far
	costNever   = 1<<63 - 1
)

const (
	stepBack  = 100_000 // us that a sender's clock may go back
	quietTime = 100_000 // us without a frame, beside 16 times what is usual, after which a run may be over
	pauseTime = 10_000  // us without a frame after which one without a timestamp begins a run rather than being a duplicate
	maxRate   = 150     // packets that a sender makes in a us: 100 Gb/s of the smallest frames
)

// cost is how badly a frame fits as part of the run. f is its flow.
func (x *run) cost(p *parsed, f *rxFlow, now int64) uint64 {
	c := x.costNumber(p, now)
	if c != costNever && !p.fresh && (x.flow != p.flow && (!x.mixed || !f.mixed) || x.mixed && !f.mixed) {
		c += costForeign
	}
	return c
}

// costNumber is cost by number and time alone.
func (x *run) costNumber(p *parsed, now int64) uint64 {
	timed := p.stamp != 0 && x.stamp != 0
	quiet := (now - x.last) / 1000 // us since the newest packet, or the last frame
	if timed {
		quiet = int64(p.stamp - x.stamp)
	}
	dormant := uint64(0)
	if quiet > quietTime+16*x.interval() {
		dormant = costDormant
	}
	ahead := int32(p.seq - x.next)
	switch {
	case ahead == 0:
		return dormant
	case x.isCopy(p):
		return dormant + costCopy
	case ahead > 0 || int32(p.seq-x.newest) > 0:
		return x.costAhead(max(ahead, 0), quiet, dormant, timed)
	case p.seq == x.newest:
		return costNever // the same number again, and it is not the same packet
	}
	// What is built later has the larger number.
	if back := uint64(x.next - p.seq); back <= windowLen && (!timed || quiet <= 0) && (timed || quiet < pauseTime) {
		if _, ok := x.missing(p.seq); ok {
			return dormant + costNear + 2*back
		}
		if !p.fresh { // as it would be, had it come
			return costDouble + back
		}
	}
	return costNever
}

// costAhead is cost for a number so far ahead.
func (x *run) costAhead(ahead int32, quiet int64, dormant uint64, timed bool) uint64 {
	switch {
	case timed && quiet < -stepBack:
		return costNever
	case dormant == 0 && ahead <= windowLen:
		return costNear + 2*uint64(ahead)
	case uint64(ahead) <= windowLen+maxRate*uint64(max(quiet, 0)):
		return costFar + uint64(ahead)
	}
	return costNever
}

// interval is the usual time between two frames, us.
func (x *run) interval() int64 {
	if x.frames < 2 {
		return 0
	}
	return (x.last - x.begun) / int64(x.frames-1) / 1000
}
