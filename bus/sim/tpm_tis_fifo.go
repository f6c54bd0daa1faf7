package sim

import "encoding/binary"

// Commands and answers through the FIFO (TIS 1.3, 5.6.11).

// current is the number of the command that is written or runs, or else of the one that comes next.
func (t *tis) current() int {
	for i := range t.loc {
		if t.loc[i].state > tisReady {
			return t.run.number
		}
	}
	return t.run.number + 1
}

func (t *tis) readSts(l, width int) uint32 {
	if l != t.active {
		return ^uint32(0)
	}
	x := &t.loc[l]
	v := x.sts
	if t.tested {
		v |= stsTested
	}
	if !t.o.tpm12 {
		v |= stsFamily20
	}
	n := max(0, tpmMax-t.got-t.given)
	if x.sts&stsData != 0 {
		n = len(t.answer) - t.given
	}
	if t.o.burst > 0 {
		n = min(n, t.o.burst)
	}
	if t.o.bad.is("burst0", t.current()) {
		n, t.refused = 0, true
	}
	t.credit = n
	if width == 1 {
		n = min(n, 0xff) // so that 256 does not look like none to whoever reads bytes
	}
	return v | uint32(n)<<stsBurst
}

func (t *tis) writeSts(l int, v uint32) {
	x := &t.loc[l]
	if v&stsCancel != 0 && !t.o.tpm12 && x.state == tisExecution {
		t.run.cancel()
	}
	// Any two of these at once are none.
	switch v & (stsReady | stsGo | stsRetry) {
	case stsReady:
		t.ready(l)
	case stsGo:
		if x.state == tisReception && x.sts&stsExpect == 0 {
			x.state, x.sts = tisExecution, 0
			t.drive()
			t.run.start(l, t.command[:t.got])
		}
	case stsRetry:
		if x.state == tisCompletion {
			t.given = 0
			x.sts = stsValid | stsData
		}
	}
}

// ready is commandReady: the way to begin, to abort, and to be done with an answer.
func (t *tis) ready(l int) {
	switch t.loc[l].state {
	case tisReady:
		t.got = 0
		if t.refused {
			t.run.number++ // nobody could begin it, and whoever tried gives it up
			t.refused = false
		}
	case tisReception, tisExecution:
		t.prepareAbort(l)
	default:
		t.drop()
		t.enterReady(l)
	}
	t.drive()
}

func (t *tis) enterReady(l int) {
	t.loc[l].state, t.loc[l].sts = tisReady, stsReady
	t.refused = false
	t.raise(l, tisIntReady)
}

func (t *tis) writeFIFO(l, width int, v uint32) {
	if l != t.active {
		return
	}
	x := &t.loc[l]
	if x.state == tisReady {
		t.drop()
		x.state, x.sts = tisReception, stsExpect|stsValid
		if t.run.number++; t.run.is("noexpect") {
			x.sts = stsValid
		}
		t.drive()
	}
	if x.state != tisReception {
		return
	}
	for i := range width {
		if x.sts&stsExpect == 0 && !t.run.is("noexpect") {
			break
		}
		if t.o.burst > 0 {
			if t.credit == 0 {
				break // nobody said that there is room
			}
			t.credit--
		}
		if t.got < tpmMax {
			t.command[t.got] = byte(v >> (8 * i))
			t.got++
		}
		t.check(x)
	}
}

// check clears Expect once the command is whole, by its own length, or nothing more fits.
func (t *tis) check(x *tisLoc) {
	const lengthEnd = 6
	whole := t.got == tpmMax || t.got >= lengthEnd && uint64(t.got) >= uint64(binary.BigEndian.Uint32(t.command[2:]))
	if whole && !t.run.is("expect") {
		x.sts = stsValid
	}
}

func (t *tis) readFIFO(l, width int) uint64 {
	if l != t.active {
		return ^uint64(0)
	}
	v := uint64(0)
	for i := range width {
		v |= uint64(t.readByte(l)) << (8 * i)
	}
	return v
}

func (t *tis) readByte(l int) byte {
	x := &t.loc[l]
	if x.state != tisCompletion || x.sts&stsData == 0 {
		return tisNoData
	}
	if t.o.burst > 0 {
		if t.credit == 0 {
			return tisNoData
		}
		t.credit--
	}
	b := t.answer[t.given]
	if t.given++; t.given == len(t.answer) {
		x.sts = stsValid
		t.raise(l, tisIntValid)
	}
	return b
}

// completed is when the TPM is done.
func (t *tis) completed(answer []byte) {
	l := t.run.locality
	x := &t.loc[l]
	if !t.run.cancelled && t.o.tpm12 && isSelfTest(t.run.cmd, answer) {
		t.tested = true
	}
	if t.aborting {
		t.aborted()
		return
	}
	x.state, x.sts = tisCompletion, stsValid
	t.drop()
	if t.answer = answer; len(answer) > 0 {
		x.sts |= stsData
	}
	t.raise(l, tisIntData|tisIntValid)
	t.drive()
}

// isSelfTest says whether that was the command after which QEMU shows selfTestDone.
func isSelfTest(cmd, answer []byte) bool {
	return len(cmd) >= tpmHeader && len(answer) >= tpmHeader &&
		binary.BigEndian.Uint32(cmd[6:]) == ord12ContinueSelfTest && binary.BigEndian.Uint32(answer[6:]) == 0
}
