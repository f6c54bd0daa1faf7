package pktgen

import (
	"math"

	"github.com/ring3dev/ring3/bus/dma"
)

// begin sets the device up for a run. The thread calls it.
func (d *device) begin() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.setUp()
	copy(d.hh[0:6], d.dstMAC[:])
	if d.srcMAC == [6]byte{} {
		copy(d.hh[6:12], d.mac6[:])
	}
	if d.minSize == 0 {
		d.minSize = int32(d.headers() - d.overhead() + headerLen) // without tags, as in the kernel
	}
	d.maxSize = max(d.maxSize, d.minSize)
	d.size = uint32(d.minSize)
	if d.flags&flagIPV6 == 0 {
		d.saddrMin, d.saddrMax = 0, 0 // a device has no address to take,
		if d.nd.Info().Loopback {
			d.saddrMin, d.saddrMax = loopbackAddr, loopbackAddr // but for lo
		}
		if d.srcMin != "" {
			d.saddrMin, d.saddrMax = aton(d.srcMin), aton(d.srcMax)
		}
		d.daddrMin, d.daddrMax = aton(d.dstMin), aton(d.dstMax)
	}
	d.dstMACOff, d.srcMACOff = 0, 0
	d.saddr, d.daddr = d.saddrMin, d.daddrMin
	d.udpDst, d.udpSrc = d.udpDstMin, d.udpSrcMin
	d.nflows = 0
	d.replay = replay{}
	d.clearCounters()
	d.started = d.nextTx
	d.restarts, d.uncertain, d.linkBy = 0, 0, 0
	d.epoch = d.thr.eng.epoch.Load()
	d.running.Store(true)
	d.keepAll()
}

// setUp is what a run begins with that nobody sees.
func (d *device) setUp() {
	d.dropPackets()
	info := d.nd.Info()
	d.ntx = min(max(info.TxQueues, 1), math.MaxUint16)
	d.queueMin = min(d.queueMin, uint16(d.ntx-1))
	d.queueMax = min(d.queueMax, uint16(d.ntx-1))
	d.mac6 = d.mac()
	d.pace = nil
	if !d.prof().Strict {
		d.pace = new(pace)
	}
	d.nextTx, d.goneAt = mono(), 0
	d.wall, d.wallAt = wallOffset(), d.nextTx
	d.result = "Starting"
	d.failure = ""
	d.built, d.dirty, d.paced, d.resume = false, true, false, false
}

// loopbackAddr is 127.0.0.1, the address of lo.
const loopbackAddr = 127<<24 | 1

// dropPackets gives back what was built and not sent.
func (d *device) dropPackets() {
	if len(d.pending) == 0 && d.master == nil {
		return
	}
	p := d.ports[d.queueOf]
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, b := range d.pending {
		b.Free()
	}
	d.pending = nil
	if d.master != nil {
		d.master.Free()
		d.master = nil
	}
}

// end finishes a run: it waits for the frames in flight, stops the clock and writes the
// result. The thread calls it.
func (d *device) end() {
	from := mono()
	d.mu.Lock()
	d.dropPackets()
	ports := append([]*port(nil), d.ports...)
	d.mu.Unlock()
	d.drain(ports)
	d.mu.Lock()
	d.stopped = mono()
	d.idle += d.stopped - from
	d.result = d.summary()
	if d.failure != "" {
		d.result = "ERROR: " + d.failure
	}
	d.running.Store(false)
	d.keepAll()
	d.mu.Unlock()
	d.thr.eng.note()
}

// leave ends the thread's part in a run that goes on in another process: what is in flight is sent. The thread calls it.
func (d *device) leave() {
	d.mu.Lock()
	d.dropPackets()
	ports := append([]*port(nil), d.ports...)
	d.mu.Unlock()
	d.drain(ports)
	d.mu.Lock()
	d.keepAll()
	d.mu.Unlock()
}

// drain waits until the device has sent what its ports were given.
func (d *device) drain(ports []*port) {
	if d.gone() {
		return
	}
	for _, p := range ports {
		if p != nil {
			p.drain(d.nd.Link().Up)
		}
	}
}

// gone tells whether the network device went away.
func (d *device) gone() bool {
	select {
	case <-d.nd.Done():
		return true
	default:
		return false
	}
}

// lingers tells whether the run of a device that is gone does not end for that yet.
func (d *device) lingers(now int64) bool {
	if d.goneAt == 0 {
		d.goneAt = now
	}
	return now-d.goneAt < int64(d.thr.eng.linger)
}

// progress is what came of one turn of a device.
type progress uint8

const (
	sent     progress = iota // something was sent
	waiting                  // nothing is due before a time
	full                     // the queue has no room
	finished                 // the run is over
)

const (
	turn  = 64            // packets a device sends before another has its turn
	never = math.MaxInt64 // a time
	// stoppedTime is how long a device waits before it looks again whether the network device, which was stopped for a while
	// (it recovers from an error, or is suspended), goes on. A kernel's interface has no carrier then, and the run
	// would end.
	stoppedTime = 1_000_000 // ns
	// minDepth is how many frames may be in flight, though the ring holds more: so many that
	// the device never runs out of them, so few that their buffers stay in the caches.
	minDepth = 768
)

// turn sends one burst, or several small ones. due is when to come back, for waiting.
func (d *device) turn() (_ progress, due int64) {
	if d.gone() {
		if now := mono(); d.lingers(now) {
			return waiting, now + stoppedTime
		}
		return finished, 0
	}
	if l := d.nd.Link(); l.Stopped {
		return waiting, mono() + stoppedTime
	} else if !l.Up {
		if mono() < d.linkBy {
			return waiting, mono() + stoppedTime
		}
		return finished, 0
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dirty {
		if err := d.compile(); err != nil {
			d.failure = err.Error()
			return finished, 0
		}
	}
	if d.delay == neverDelay {
		d.nextTx = mono() // what was not sent meanwhile is not made up for
		return waiting, never
	}
	if d.paced {
		d.paced, d.nextTx = false, mono()
	}
	switch {
	case len(d.pending) > 0:
	case d.timed():
		due, now := d.due(), mono()
		if now < due {
			return waiting, due
		}
		d.sentAt(now, due)
	case d.delay != 0 && (d.sentOnce || !d.prof().Strict):
		now := mono()
		if now < d.nextTx {
			return waiting, d.nextTx
		}
		d.sentAt(now, d.nextTx)
		d.nextTx = addTime(d.nextTx, d.interval())
	}
	if len(d.pending) == 0 && d.master == nil {
		d.queueOf = d.nextQueue()
	}
	p, err := d.port(d.queueOf)
	if err != nil {
		d.failure = err.Error()
		return finished, 0
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if d.pool, err = d.buffers(p); err != nil {
		d.failure = err.Error()
		return finished, 0
	}
	return d.transmit(p), 0
}

// transmit is a turn with all locks held.
func (d *device) transmit(p *port) progress {
	defer d.keepTurn()
	switch d.mode {
	case netifReceive:
		return d.handUp(p)
	case queueXmit:
		return d.enqueue(p)
	}
	return d.send(p)
}

// alone tells whether bursts stand for themselves: each has its time, or its queue.
func (d *device) alone() bool {
	return d.delay != 0 || d.timed() || d.tmpl.varies&varyQueue != 0
}

// interval is the delay to the next packet: whole nanoseconds, whose average is exact.
func (d *device) interval() uint64 {
	n := d.delay
	if d.behind += d.exact.rem; d.exact.den != 0 && d.behind >= d.exact.den {
		d.behind -= d.exact.den
		n++
	}
	return n
}

// addTime adds without leaving the range of times.
func addTime(t int64, d uint64) int64 {
	if d > uint64(never-t) {
		return never
	}
	return t + int64(d)
}

// send is a turn of start_xmit, with all locks held.
func (d *device) send(p *port) progress {
	depth := min(p.ring, d.pool.Len(), max(minDepth, 2*d.chunk))
	for left := turn; ; {
		if need := d.worthwhile(depth); depth-p.flight < need {
			p.flight = p.q.Reap()
			d.thr.reaped(p.flight)
			if depth-p.flight < need {
				return full
			}
		}
		d.refill()
		want := len(d.pending)
		if want == 0 && d.left() > 0 {
			p.flight = p.q.Reap() // every buffer is in flight, or another device's
			d.thr.reaped(p.flight)
			return full
		}
		n := 0
		if want > 0 {
			d.intend(want)
			n = min(max(p.q.Burst(d.pending), 0), want)
		}
		p.flight += n
		d.pending = d.pending[n:]
		d.sentOnce = d.sentOnce || n > 0
		d.done(n)
		d.settle(n, want)
		left -= n
		switch {
		case d.enough():
			return finished
		case n == 0:
			d.thr.wait.napped = false // it waits for the far end, not for the ring
			return full
		case n < want || left <= 0 || d.alone():
			return sent
		}
	}
}

// done counts n packets, which were the first of pending.
func (d *device) done(n int) {
	d.sofar += uint64(n)
	d.seq += uint32(n)
	d.replayed(n)
	if len(d.pending) == 0 && d.master != nil && d.clones <= 0 {
		d.master.Free()
		d.master = nil
	}
}

// enough tells whether the run has sent its packets. A kernel finishes its last burst.
func (d *device) enough() bool {
	return d.count != 0 && d.sofar >= d.count && (!d.prof().Strict || len(d.pending) == 0)
}

// worthwhile is how much room there must be for another doorbell: a burst, or half the
// depth, so that doorbells stay few; what is left, at the end of a run.
func (d *device) worthwhile(depth int) int {
	n := max(1, min(d.chunk, depth/2))
	if d.prof().Strict && d.copies() {
		return n // bursts are whole
	}
	if left := d.left() + uint64(len(d.pending)); left < uint64(n) {
		n = int(left)
	}
	return n
}

// left is how many packets there are still to build.
func (d *device) left() uint64 {
	if d.count == 0 {
		return math.MaxUint64 - uint64(len(d.pending))
	}
	done := d.sofar + uint64(len(d.pending))
	if done >= d.count {
		return 0
	}
	return d.count - done
}

// refill makes pending a burst again. A remainder is only added to where the packets
// are independent of each other and of time.
func (d *device) refill() {
	have := len(d.pending)
	if d.copies() {
		if have == 0 {
			d.refillClones()
		}
		return
	}
	if have > 0 && (d.alone() || have >= d.chunk || d.master != nil) {
		return
	}
	if d.master != nil {
		d.master.Free() // clone_skb was switched off
		d.master = nil
	}
	want := min(uint64(d.chunk), uint64(have)+d.left())
	copy(d.out, d.pending)
	k := have + d.pool.GetAll(d.out[have:want])
	if d.capture != nil {
		got := k
		k = have + d.fillCapture(d.out[have:got])
		dma.FreeAll(d.out[k:got]) // not due yet
	} else {
		d.fill(d.out[have:k], d.seq+uint32(have))
	}
	d.pending = d.out[:k]
}

// copies tells whether a burst is copies of one packet.
func (d *device) copies() bool {
	return d.capture == nil && d.flags&flagSHARED != 0 && (d.cloneSkb >= 1 || d.prof().Strict && d.chunk > 1)
}

// refillClones makes pending a burst of one packet, a new one after clone_skb bursts.
func (d *device) refillClones() {
	if d.master == nil {
		b := d.pool.Get()
		if b == nil {
			return
		}
		one := [1]*dma.Buf{b}
		d.fill(one[:], d.seq)
		d.master, d.clones = b, max(d.cloneSkb, 1)
	}
	d.clones--
	n := d.chunk
	if !d.prof().Strict {
		n = int(min(uint64(n), d.left()))
	}
	d.master.Retain(n)
	for i := range d.out[:n] {
		d.out[i] = d.master
	}
	d.pending = d.out[:n]
}
