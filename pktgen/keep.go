package pktgen

import (
	"encoding/binary"
	"math"

	"github.com/ring3dev/ring3/internal/ledger"
)

// How far a device's run is, kept in a ledger, which outlives this process. Before each burst stands there up to which packet it
// may be sent, and after it how far it was: a process that is killed between leaves a burst that counts as sent, since some of it may
// have been. So a sequence number is never sent twice. The rest of a run's state follows now and then.

// kept is what a ledger has of a device. Its methods do nothing where there is none.
type kept struct {
	sofar  *ledger.Counter // packets, as in the file
	intent *ledger.Counter // what that may be already
	pair   ledger.Pair     // the rest, see stateWords
	turns  uint8
	words  [stateLen]uint64
}

// restEvery is how many turns pass until the rest of a device's state is kept, where nothing varies.
const restEvery = 16

// stateLen is how many words a state has.
const (
	stateFixed = 28
	stateLen   = stateFixed + 2*maxImix
)

// keeper is what the ledger has of a device of a name; nil where there is no ledger.
func (e *Engine) keeper(name string) (*kept, error) {
	if e.ledger == nil {
		return nil, nil
	}
	k := &kept{}
	var err error
	if k.sofar, err = e.ledger.Counter("pktgen/" + name + "/sofar"); err != nil {
		return nil, err
	}
	if k.intent, err = e.ledger.Counter("pktgen/" + name + "/intent"); err != nil {
		return nil, err
	}
	a, _, err := e.ledger.Area("pktgen/"+name, ledger.PairWords(stateLen))
	if err != nil {
		return nil, err
	}
	k.pair = ledger.NewPair(a, 0, stateLen)
	return k, nil
}

// intend says that n packets may be sent from now on.
func (d *device) intend(n int) {
	if k := d.keep; k != nil && n > 0 {
		k.intent.Store(d.sofar + uint64(n))
	}
}

// settle says that those which count now were sent, of want.
func (d *device) settle(n, want int) {
	if k := d.keep; k != nil {
		k.sofar.Store(d.sofar)
		if n < want {
			k.intent.Store(d.sofar)
		}
	}
}

// keepTurn keeps the rest of the state, if it is time.
func (d *device) keepTurn() {
	if k := d.keep; k != nil {
		if k.turns++; d.tmpl.varies != 0 || k.turns >= restEvery {
			d.keepRest()
		}
	}
}

// keepAll keeps everything; where numbers became smaller too. Called with mu held.
func (d *device) keepAll() {
	if k := d.keep; k != nil {
		k.intent.Store(0)
		k.sofar.Store(d.sofar)
		d.keepRest()
	}
}

func (d *device) keepRest() {
	k := d.keep
	k.turns = 0
	d.stateWords(&k.words)
	k.pair.Store(k.words[:])
}

// Bits of a state's word of switches.
const (
	stateRunning = 1 << iota
	stateBuilt
	stateSentOnce
)

// stateWords is where a device stands, as words: as the ledger and Saved have it.
func (d *device) stateWords(w *[stateLen]uint64) {
	on := uint64(0)
	for i, b := range []bool{d.running.Load() || d.resume, d.built, d.sentOnce} {
		if b {
			on |= 1 << i
		}
	}
	le := binary.LittleEndian.Uint64
	*w = [stateLen]uint64{
		d.sofar, uint64(d.seq - uint32(d.sofar)), d.errors, on, d.epoch, uint64(d.started), uint64(d.stopped), uint64(d.idle),
		uint64(d.ipID) | uint64(d.queue)<<16 | uint64(d.size)<<32,
		two(d.dstMACOff, d.srcMACOff), two(d.saddr, d.daddr), two(d.saddrMin, d.saddrMax), two(d.daddrMin, d.daddrMax),
		le(d.saddr6[:]), le(d.saddr6[8:]), le(d.daddr6[:]), le(d.daddr6[8:]),
		uint64(d.udpDst) | uint64(d.udpSrc)<<16, two(d.nflows, d.curFlow),
		le(d.hh[:]), uint64(binary.LittleEndian.Uint32(d.hh[8:])), d.behind,
		math.Float64bits(d.roundOfTail()), uint64(d.replay.tail), d.replay.bytes,
		d.restarts, d.uncertain,
	}
	for i := range maxImix {
		w[stateFixed+i], w[stateFixed+maxImix+i] = d.imixEntries[i].count, d.imixBase[i]
	}
}

func two(low, high uint32) uint64 { return uint64(low) | uint64(high)<<32 }

func halves(v uint64) (low, high uint32) { return uint32(v), uint32(v >> 32) }

// setState is the reverse of stateWords. It does not say that the device runs: it returns whether it did. No number makes it fail: what
// indexes something is bounded here, or where it is used.
func (d *device) setState(w *[stateLen]uint64) (ran bool) {
	put := binary.LittleEndian.PutUint64
	d.sofar, d.errors, d.epoch = w[0], w[2], w[4]
	d.seq = uint32(w[1]) + uint32(d.sofar)
	ran, d.built, d.sentOnce = w[3]&stateRunning != 0, w[3]&stateBuilt != 0, w[3]&stateSentOnce != 0
	d.started, d.stopped, d.idle = int64(w[5]), int64(w[6]), int64(w[7])
	d.ipID, d.queue, d.size = uint16(w[8]), uint16(w[8]>>16), uint32(w[8]>>32)
	d.dstMACOff, d.srcMACOff = halves(w[9])
	d.saddr, d.daddr = halves(w[10])
	d.saddrMin, d.saddrMax = halves(w[11])
	d.daddrMin, d.daddrMax = halves(w[12])
	put(d.saddr6[:], w[13])
	put(d.saddr6[8:], w[14])
	put(d.daddr6[:], w[15])
	put(d.daddr6[8:], w[16])
	d.udpDst, d.udpSrc = uint16(w[17]), uint16(w[17]>>16)
	d.nflows, d.curFlow = halves(w[18])
	put(d.hh[:], w[19])
	binary.LittleEndian.PutUint32(d.hh[8:], uint32(w[20]))
	d.behind = w[21]
	d.replay = replay{begun: math.Float64frombits(w[22]), bytes: w[24]}
	if d.capture != nil {
		d.replay.tail = int(w[23] % uint64(len(d.capture.frames)))
	}
	d.restarts, d.uncertain = w[25], w[26]
	for i := range maxImix {
		d.imixEntries[i].count, d.imixBase[i] = w[stateFixed+i], w[stateFixed+maxImix+i]
	}
	return ran
}

// takeOver takes over what a process before this one kept of the device. found: there was something; ran: the device was running.
func (d *device) takeOver() (found, ran bool) {
	k := d.keep
	if k == nil || !k.pair.Load(k.words[:]) {
		return false, false
	}
	ran = d.setState(&k.words)
	// How far it was beyond that.
	then, sure := d.sofar, k.sofar.Load()
	sofar := max(sure, k.intent.Load())
	if sofar < then {
		return true, ran // counters were cleared, and that is as far as it came
	}
	n := sofar - then
	d.sofar, d.seq, d.ipID = sofar, d.seq+uint32(n), d.ipID+uint16(n)
	if ran {
		d.restarts++
		d.uncertain += sofar - sure
	}
	d.skip(n)
	return true, ran
}

// roundOfTail is when the round of a capture began that is being sent; others may have been built already.
func (d *device) roundOfTail() float64 {
	begun := d.replay.begun
	if c := d.capture; c != nil {
		begun -= float64((d.replay.tail+len(d.pending))/len(c.frames)) * float64(c.round)
	}
	return begun
}

// skip passes over frames of a capture that were sent.
func (d *device) skip(n uint64) {
	c, r := d.capture, &d.replay
	if c == nil {
		return
	}
	length := uint64(len(c.frames))
	rounds := n / length
	r.bytes += rounds * c.bytes
	for range n % length {
		r.bytes += uint64(len(c.frames[r.tail]))
		if r.tail++; r.tail == len(c.frames) {
			r.tail = 0
			rounds++
		}
	}
	r.begun += float64(rounds) * float64(c.round)
	r.next = r.tail
}
