package e1000

// A queue whose device has done its part, or has been given work, and where nothing happens: for who watches over drivers. They read memory
// that the device shares, and no register.

// Waits is the oldest descriptor that the device has and has not done; netdev.Progress.
func (q *txQueue) Waits() (turn uint64, waits, known bool) {
	if !q.mu.TryLock() {
		return 0, false, false
	}
	defer q.mu.Unlock()
	if q.closed || q.aborted || q.nic.dead.Load() || q.nic.stopped() || !q.nic.Link().Up || q.c.used() == 0 {
		return 0, false, true
	}
	return q.c.head, !doneTx(q.ring, q.c.at(q.last[q.c.at(q.c.head)]-1)), true
}

// Waits is the oldest frame that was received and nobody has taken; netdev.Progress.
func (q *rxQueue) Waits() (turn uint64, waits, known bool) {
	if !q.mu.TryLock() {
		return 0, false, false
	}
	defer q.mu.Unlock()
	if q.closed || q.nic.dead.Load() || q.nic.stopped() {
		return 0, false, true
	}
	return q.c.head, q.c.used() > 0 && q.stat(q.at(q.c.head))&rxDD != 0, true
}
