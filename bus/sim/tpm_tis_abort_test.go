package sim

import (
	"errors"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
)

// commandReady ends what is under way, in every state, and a command that was aborted had no effect.
func TestTISAbort(t *testing.T) {
	for _, delay := range []string{"0s", "1ms"} {
		m, r := tpmOn(t, "tpm-tis", "delay="+delay)
		startup := cmd20(ccStartup, "0000")
		ready := func(what string) {
			t.Helper()
			r.Write32(tisSts, stsReady)
			m.Advance(tpmCancelTime)
			if got := r.Read32(tisSts); got != 0x04100040 {
				t.Errorf("%s: STS = %#x after commandReady %s, want 0x04100040", delay, got, what)
			}
		}
		sendTIS(t, r, 0, startup[:7])
		ready("inside a command")
		sendTIS(t, r, 0, startup)
		ready("after a command")
		if delay != "0s" {
			sendTIS(t, r, 0, startup)
			r.Write32(tisSts, stsGo)
			m.Advance(tpmDelay - tpmCancelTime - 1)
			r.Write32(tisSts, stsReady)
			if got := r.Read32(tisSts) & 0xff; got != 0 {
				t.Errorf("STS = %#x just after an abort, want 0: the TPM takes a moment", got)
			}
			ready("while it runs")
			if rc := resultOf(transactTIS(t, m, r, cmd20(ccGetRandom, "0008"))); rc != rcInitialize {
				t.Errorf("GetRandom after an aborted Startup = %#x, want %#x", rc, rcInitialize)
			}
		}
		sendTIS(t, r, 0, startup)
		r.Write32(tisSts, stsGo)
		m.Advance(tpmDelay)
		r.Read16(tisFIFO)
		ready("inside an answer")
		if rc := resultOf(transactTIS(t, m, r, startup)); rc != rcInitialize {
			t.Errorf("%s: a second Startup = %#x, want %#x", delay, rc, rcInitialize)
		}
	}
}

// commandCancel gives an answer that says so; TPM 1.2 has no such bit.
func TestTISCancel(t *testing.T) {
	for family, want := range map[string]uint32{"2.0": rcCanceled, "1.2": rc12BadOrdinal} {
		m, r := tpmOn(t, "tpm-tis", "family="+family)
		cmd := cmd20(ccStartup, "0000")
		if family == "1.2" {
			cmd = cmd12(0x999, "")
		}
		sendTIS(t, r, 0, cmd)
		r.Write32(tisSts, stsCancel) // nothing runs
		r.Write32(tisSts, stsGo)
		r.Write32(tisSts, stsCancel)
		m.Advance(tpmCancelTime)
		if done := r.Read32(tisSts)&stsData != 0; done != (family == "2.0") {
			t.Errorf("%s: dataAvail = %v after commandCancel", family, done)
		}
		m.Advance(tpmDelay)
		if rc := resultOf(receiveTIS(r, 0)); rc != want {
			t.Errorf("%s: answer = %#x, want %#x", family, rc, want)
		}
	}
}

// A locality that is left or seized while something is under way.
func TestTISLeave(t *testing.T) {
	m, r := tpmOn(t, "tpm-tis")
	cmd := cmd20(ccStartup, "0000")
	run := func() {
		sendTIS(t, r, 0, cmd)
		r.Write32(tisSts, stsGo)
	}
	run()
	apply(r, "z2")
	if got := access(r); got != "-A - - - -" {
		t.Errorf("ACCESS = %s while the command is aborted, want locality 0 active", got)
	}
	m.Advance(tpmCancelTime)
	if got := access(r); got != "-S - -A - -" {
		t.Errorf("ACCESS = %s, want locality 2 active", got)
	}
	if rc := resultOf(transactL2(t, m, r)); rc != rcInitialize {
		t.Errorf("GetRandom in locality 2 = %#x, want %#x: Startup was aborted", rc, rcInitialize)
	}
	apply(r, "g2 c0 r0")
	if got := r.Read32(tisSts) & 0xff; got != 0 {
		t.Errorf("STS of locality 0, which was seized = %#x, want 0", got)
	}
	// A lower seizure gives way to a higher one, and to an abort by whom it seizes.
	run()
	apply(r, "z1")
	r.Write32(tisSts, stsReady)
	apply(r, "z3 z2 z3")
	m.Advance(tpmCancelTime)
	if got := access(r); got != "-S - - -A -" {
		t.Errorf("ACCESS = %s after two seizures, want locality 3 active", got)
	}
	// Giving up aborts, whether or not somebody waits.
	apply(r, "g3 c0 r0")
	run()
	apply(r, "g0")
	m.Advance(tpmCancelTime)
	if got := access(r); got != "- - - - -" {
		t.Errorf("ACCESS = %s, want none active", got)
	}
	// An answer waits for its locality, unless another took the buffer.
	run()
	m.Advance(tpmDelay)
	apply(r, "g0 r0")
	if got := r.Read32(tisSts) & 0xff; got != stsValid|stsData {
		t.Errorf("STS = %#x when the locality is back, want its answer", got)
	}
	apply(r, "g0 r2")
	transactL2(t, m, r)
	apply(r, "g2 r0")
	if got := r.Read32(tisSts) & 0xff; got != 0 {
		t.Errorf("STS = %#x after another locality's command, want 0", got)
	}
	if got := r.Read8(tisFIFO); got != 0xff {
		t.Errorf("FIFO = %#x, want nothing of what another locality was answered", got)
	}
}

func transactL2(t *testing.T, m *Machine, r bus.Region) []byte {
	t.Helper()
	sendTIS(t, r, 2, cmd20(ccGetRandom, "0008"))
	r.Write32(2*tisLocality+tisSts, stsGo)
	m.Advance(tpmDelay)
	return receiveTIS(r, 2)
}

// Each cause, when only that is enabled, and what acknowledges it.
func TestTISInterrupts(t *testing.T) {
	start := func(t *testing.T, m *Machine, r bus.Region) {
		sendTIS(t, r, 0, cmd20(ccGetRandom, "0008"))
		r.Write32(tisSts, stsGo)
		m.Advance(tpmDelay)
	}
	for _, c := range []struct {
		name  string
		cause uint32
		do    func(*testing.T, *Machine, bus.Region)
	}{
		{"locality", tisIntLocality, func(_ *testing.T, _ *Machine, r bus.Region) { apply(r, "r2 g0 r0 g2") }},
		{"ready", tisIntReady, func(_ *testing.T, _ *Machine, r bus.Region) { r.Write32(tisSts, stsReady) }},
		{"ready after abort", tisIntReady, func(t *testing.T, m *Machine, r bus.Region) {
			sendTIS(t, r, 0, cmd20(ccGetRandom, "0008"))
			r.Write32(tisIntSta, tisIntReady)
			r.Write32(tisSts, stsReady)
		}},
		{"data", tisIntData, start},
		{"valid", tisIntValid, start},
		{"last byte", tisIntValid, func(t *testing.T, m *Machine, r bus.Region) {
			start(t, m, r)
			r.Write32(tisIntSta, tisIntValid)
			receiveTIS(r, 0)
		}},
	} {
		for _, on := range []uint32{tisIntGlobal | c.cause, tisIntGlobal | tisIntAll&^c.cause, c.cause} {
			m, r := tpmOn(t, "tpm-tis")
			q := enabled(t, m.devices[0], bus.INTx, 1)[0]
			apply(r, "r0")
			r.Write32(tisIntEn, on)
			c.do(t, m, r)
			want := bit(on == tisIntGlobal|c.cause, c.cause)
			if got := r.Read32(tisIntSta) & c.cause; got != want {
				t.Errorf("%s, enabled %#x: INT_STATUS = %#x, want %#x", c.name, on, got, want)
			}
			if on != tisIntGlobal|c.cause {
				continue
			}
			if n := fired(t, q); n != 1 {
				t.Errorf("%s: fired %d times, want once: it is masked then", c.name, n)
			}
			q.Unmask()
			if n := fired(t, q); n != 1 {
				t.Errorf("%s: fired %d times after Unmask, want 1: nobody acknowledged", c.name, n)
			}
			r.Write32(tisIntSta, c.cause)
			q.Unmask()
			if n, v := fired(t, q), r.Read32(tisIntSta); n != 0 || v != 0 {
				t.Errorf("%s: fired %d times after it was acknowledged, INT_STATUS = %#x, want 0, 0", c.name, n, v)
			}
		}
	}
}

// Interrupt registers are those of the active locality, and have the bits that there are.
func TestTISInterruptRegisters(t *testing.T) {
	_, r := tpmOn(t, "tpm-tis")
	r.Write32(tisIntEn, 0xffffffff)
	if got := r.Read32(tisIntEn); got != 0x08 {
		t.Errorf("INT_ENABLE = %#x, written without the locality, want 0x08", got)
	}
	apply(r, "r0")
	r.Write32(tisIntEn, 0xffffffff)
	if got := r.Read32(tisIntEn); got != 0x8000009f {
		t.Errorf("INT_ENABLE = %#x, want 0x8000009f", got)
	}
	r.Write8(tisIntEn+3, 0)
	if got := r.Read32(tisIntEn); got != 0x9f {
		t.Errorf("INT_ENABLE = %#x after a byte of it was cleared, want 0x9f", got)
	}
	r.Write8(tisIntEn+3, 0x80)
	r.Write32(tisSts, stsReady)
	apply(r, "z1")
	r.Write32(tisIntSta, tisIntReady)
	if got := r.Read32(tisIntSta); got != tisIntReady {
		t.Errorf("INT_STATUS = %#x, written without the locality, want %#x", got, tisIntReady)
	}
}

func TestTISNoInterrupt(t *testing.T) {
	m, r := tpmOn(t, "tpm-tis", "irq=off")
	d := m.devices[0]
	if n := d.IRQVectors(bus.INTx); n != 1 {
		t.Errorf("IRQVectors(INTx) = %d with irq=off, want 1", n)
	}
	q := enabled(t, d, bus.INTx, 1)[0]
	apply(r, "r0")
	r.Write32(tisIntEn, tisIntGlobal|tisIntAll)
	r.Write32(tisSts, stsReady)
	if n, v := fired(t, q), r.Read32(tisIntSta); n != 0 || v != tisIntReady {
		t.Errorf("fired %d times, INT_STATUS = %#x, want 0 and %#x", n, v, tisIntReady)
	}
	if _, err := d.EnableIRQs(bus.MSI, 1); !errors.Is(err, bus.ErrNotSupported) {
		t.Errorf("EnableIRQs(MSI) = %v, want ErrNotSupported", err)
	}
}

// With a FIFO of few bytes no more go through than were announced.
func TestTISBurst(t *testing.T) {
	m, r := tpmOn(t, "tpm-tis", "burst=3", "delay=5ms")
	cmd := cmd20(ccStartup, "0000")
	apply(r, "r0")
	r.Write32(tisSts, stsReady)
	for i := 0; i < len(cmd); i += 3 {
		if n := r.Read32(tisSts) >> stsBurst & 0xffff; n != 3 {
			t.Fatalf("burst count = %d, want 3", n)
		}
		for _, b := range cmd[i:min(i+3, len(cmd))] {
			r.Write8(tisFIFO, b)
		}
		if i+3 < len(cmd) {
			r.Write8(tisFIFO, 0xee) // lost
		}
	}
	r.Write32(tisSts, stsGo)
	m.Advance(5*time.Millisecond - 1)
	if got := r.Read32(tisSts); got&(stsValid|stsData) != 0 {
		t.Errorf("STS = %#x before 5 ms passed, want no answer", got)
	}
	m.Advance(1)
	var answer []byte
	for {
		v := r.Read32(tisSts)
		n := int(v >> stsBurst & 0xffff)
		if v&stsData == 0 {
			break
		}
		if n > 3 {
			t.Fatalf("burst count of an answer = %d, want 3 at most", n)
		}
		for range n {
			answer = append(answer, r.Read8(tisFIFO))
		}
		if got := r.Read8(tisFIFO); got != 0xff {
			t.Errorf("FIFO = %#x beyond the burst, want 0xff", got)
		}
	}
	if len(answer) != tpmHeader || resultOf(answer) != 0 {
		t.Errorf("answer = % x, want success", answer)
	}
}
