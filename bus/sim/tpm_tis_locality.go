package sim

// Who may use the FIFO (TIS 1.3, 5.4): one locality is active, others ask for it, and a higher one may seize it.

func (t *tis) readAccess(l int) uint32 {
	v := uint32(t.loc[l].access&^accessSeize) | accessValid | accessEstablished
	for i := range t.loc {
		if i != l && t.loc[i].access&accessRequest != 0 {
			v |= accessPending
		}
	}
	return v
}

func (t *tis) writeAccess(l int, v uint8) {
	if v&accessSeized != 0 {
		t.loc[l].access &^= accessSeized
	}
	if v&accessSeize != 0 {
		t.seize(l) // which goes before all else that was asked for at once
		return
	}
	switch {
	case v&accessActive != 0 && l == t.active:
		t.prepareAbort(t.waiting())
	case v&accessActive != 0:
		t.loc[l].access &^= accessRequest
	}
	if v&(accessRequest|accessActive) != accessRequest || l == t.active || t.o.bad.is("locality", t.current()) {
		return
	}
	if t.active == noLocality {
		t.activate(l)
	} else {
		t.loc[l].access |= accessRequest
	}
}

// waiting is the highest locality that asked for the FIFO, if one did.
func (t *tis) waiting() int {
	for i := tisLocalities - 1; i >= 0; i-- {
		if t.loc[i].access&accessRequest != 0 {
			return i
		}
	}
	return noLocality
}

// seize takes the FIFO from a lower locality, or where none is active.
func (t *tis) seize(l int) {
	if t.active >= l || t.loc[l].access&accessSeize != 0 {
		return
	}
	for i := l + 1; i < tisLocalities; i++ {
		if t.loc[i].access&accessSeize != 0 {
			return // one that is higher still is about to
		}
	}
	for i := range l {
		t.loc[i].access &^= accessSeize
	}
	t.loc[l].access |= accessSeize
	t.prepareAbort(l)
}

// activate makes a locality the active one, or none.
func (t *tis) activate(l int) {
	old := t.active
	if old == l {
		return
	}
	seized := l != noLocality && t.loc[l].access&accessSeize != 0
	if old != noLocality {
		x := &t.loc[old]
		x.access &^= accessActive
		if seized {
			x.access |= accessSeized
		} else {
			x.access &^= accessRequest
		}
	}
	t.active, t.credit = l, 0
	if l != noLocality {
		t.loc[l].access |= accessActive
		t.loc[l].access &^= accessRequest | accessSeize
		t.raise(l, tisIntLocality)
	}
}

// prepareAbort ends what is under way before locality to is active, or none: at once, or when the TPM let go of the
// command that runs. QEMU lets go of the locality at once where none follows, and the command goes on.
func (t *tis) prepareAbort(to int) {
	if t.aborting && to == t.active {
		return // somebody else is to have it then, and no less
	}
	t.aborting, t.next = true, to
	if t.run.busy {
		t.run.cancel()
		return
	}
	t.aborted()
}

// aborted is when nothing runs any more.
func (t *tis) aborted() {
	t.aborting = false
	if t.active == t.next {
		t.drop()
		t.enterReady(t.active)
	} else if t.active != noLocality && t.loc[t.active].state > tisReady && (t.next != noLocality || t.loc[t.active].state == tisExecution) {
		// Its command is gone. QEMU keeps the state, and lets the locality read what others left in the buffer.
		t.drop()
		t.loc[t.active].state, t.loc[t.active].sts = tisIdle, 0
	}
	t.activate(t.next)
	t.drive()
}

// drop forgets what is in the buffer, which is one for all: whose it was begins anew.
func (t *tis) drop() {
	t.got, t.given, t.answer = 0, 0, nil
	for i := range t.loc {
		if x := &t.loc[i]; i != t.active && x.state > tisReady {
			x.state, x.sts = tisIdle, 0
		}
	}
}
