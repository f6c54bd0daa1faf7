package pktgen

// How a thread waits for room in a ring. It sleeps, as a rule: the device may be a model that needs the CPU, or
// the other half of this one, itself. But a nap takes some 20 us more than was asked for, 40 in a
// VM, and a fast device with a short ring has nothing to do meanwhile. So a nap after which the device was found to have sent
// everything was too long, and the next waits are spent looking; a look that lasts longer than such a
// nap would was in vain, and the next waits are naps again.

const (
	spinTurns = 4      // turns before the thread waits at all
	minNap    = 20_000 // ns
	maxNap    = 200_000
	maxLook   = 100_000 // ns
)

// waiter is how a thread waits.
type waiter struct {
	looks   bool  // rather than naps
	napped  bool  // no ring was looked into since
	cost    int64 // of a nap above what it was to take, ns, an average
	since   int64 // when the queues were found full
	counted int64 // until when it was counted as idle
}

// backOff waits because every queue is full.
func (t *thread) backOff() {
	if t.stall++; t.stall <= spinTurns {
		return
	}
	w := &t.wait
	now := mono()
	if t.stall == spinTurns+1 {
		w.since, w.counted = now, now
	}
	if w.looks {
		t.idle(w.counted)
		w.counted = now
		if now-w.since < min(minNap+w.cost, maxLook) {
			return
		}
		w.looks, t.stall = false, spinTurns+1
	}
	want := min(minNap*int64(t.stall-spinTurns), maxNap)
	nap(want)
	w.cost += (mono() - now - want - w.cost) / 8
	w.napped = true
	t.idle(now)
}

// reaped is told how many frames were in flight when a turn looked into a ring that was full.
func (t *thread) reaped(flight int) {
	if w := &t.wait; w.napped {
		w.napped = false
		w.looks = flight == 0 && t.eng.rt == nil // a real-time thread would keep others from the CPU
	}
}
