package sim

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
)

// Answers that are wrong, on both interfaces: with the command that was named, and no other.
func TestTPMMisbehave(t *testing.T) {
	random := cmd20(ccGetRandom, "0008")
	const good = tpmHeader + 2 + 8
	for _, c := range []struct {
		kind       string
		tag        uint16
		length, n  int // as the header says, and really
		rc         uint32
		shownByCRB int // bytes, where its buffer is too small
	}{
		{"long", tagNoSessions, good + 4, good, 0, 0},
		{"short", tagNoSessions, good, good + 4, 0, 0},
		{"huge", tagNoSessions, 5000, 5000, 0, int(crbBufferLen)},
		{"runt", tagNoSessions, 6, 6, ^uint32(0), 0},
		{"tag", badTag, good, good, 0, 0},
		{"fail", tagAnswer12, tpmHeader, tpmHeader, tpmFail12, 0},
		{"retry", tagNoSessions, tpmHeader, tpmHeader, rcRetry, 0},
		{"testing", tagNoSessions, tpmHeader, tpmHeader, rcTesting, 0},
	} {
		m, r := tpmOn(t, "tpm-tis", "misbehave="+c.kind+":2-3")
		for n, cmd := range [][]byte{cmd20(ccStartup, "0000"), random, random, random} {
			got := transactTIS(t, m, r, cmd)
			if n == 0 || n == 3 {
				if rc := resultOf(got); rc != 0 || int(number(got[2:6])) != len(got) {
					t.Errorf("%s: command %d: answer = % x, want a good one", c.kind, n+1, got)
				}
				continue
			}
			if len(got) != c.n || binary.BigEndian.Uint16(got) != c.tag || int(number(got[2:6])) != c.length || resultOf(got) != c.rc {
				t.Errorf("%s: command %d: answer of %d bytes = % x, want %+v", c.kind, n+1, len(got), got[:min(len(got), 30)], c)
			}
		}
		m, r = tpmOn(t, "tpm-crb", "misbehave="+c.kind+":2")
		transactCRB(t, m, r, cmd20(ccStartup, "0000"))
		got := transactCRB(t, m, r, random)
		want := c.length
		if c.shownByCRB != 0 {
			want = c.shownByCRB
		}
		if len(got) != max(want, 8) || binary.BigEndian.Uint16(got) != c.tag || int(number(got[2:6])) != c.length {
			t.Errorf("%s: CRB's answer of %d bytes = % x, want %+v", c.kind, len(got), got[:min(len(got), 30)], c)
		}
		if got = transactCRB(t, m, r, random); len(got) != good || resultOf(got) != 0 {
			t.Errorf("%s: CRB's next answer = % x, want a good one", c.kind, got)
		}
	}
}

// TPM 1.2 says in its own words that it is to be asked again.
func TestTPMMisbehave12(t *testing.T) {
	for kind, want := range map[string]uint32{"retry": rc12Retry, "testing": rc12DoingSelfTest} {
		m, r := tpmOn(t, "tpm-tis", "family=1.2", "misbehave="+kind+":1")
		startup := cmd12(ord12Startup, "0001")
		if got := transactTIS(t, m, r, startup); resultOf(got) != want || binary.BigEndian.Uint16(got) != tagAnswer12 {
			t.Errorf("%s: answer = % x, want %#x", kind, got, want)
		}
		if rc := resultOf(transactTIS(t, m, r, startup)); rc != 0 {
			t.Errorf("%s: then Startup = %#x, want 0", kind, rc)
		}
	}
}

// A command that does not end, until it is aborted, or not even then.
func TestTPMHang(t *testing.T) {
	for _, kind := range []string{"hang", "wedge"} {
		m, r := tpmOn(t, "tpm-tis", "misbehave="+kind+":1")
		startup := cmd20(ccStartup, "0000")
		sendTIS(t, r, 0, startup)
		r.Write32(tisSts, stsGo)
		m.Advance(time.Hour)
		if got := r.Read32(tisSts) & 0xff; got != 0 {
			t.Errorf("%s: STS = %#x after an hour, want 0", kind, got)
		}
		r.Write32(tisSts, stsReady)
		m.Advance(time.Hour)
		if got := r.Read32(tisSts)&stsReady != 0; got != (kind == "hang") {
			t.Errorf("%s: commandReady = %v after an abort", kind, got)
		}
		if kind == "hang" {
			if rc := resultOf(transactTIS(t, m, r, startup)); rc != 0 {
				t.Errorf("Startup after a command that hung = %#x, want 0", rc)
			}
		}
		m, r = tpmOn(t, "tpm-crb", "misbehave="+kind+":1")
		startCRB(r, startup)
		m.Advance(time.Hour)
		r.Write32(crbCancel, crbInvoke)
		m.Advance(time.Hour)
		if got := r.Read32(crbStart) == 0; got != (kind == "hang") {
			t.Errorf("%s: CRB's command ended: %v after it was cancelled", kind, got)
		}
	}
}

// Registers that are wrong.
func TestTISMisbehave(t *testing.T) {
	startup := cmd20(ccStartup, "0000")
	low := func(r bus.Region) uint32 { return r.Read32(tisSts) & 0xff }
	good := func(what string, m *Machine, r bus.Region) {
		t.Helper()
		if rc := resultOf(transactTIS(t, m, r, startup)); rc != 0 {
			t.Errorf("Startup after %s = %#x, want 0", what, rc)
		}
	}
	m, r := tpmOn(t, "tpm-tis", "misbehave=expect:1")
	sendTIS(t, r, 0, startup)
	r.Write32(tisSts, stsGo)
	m.Advance(time.Hour)
	if got := low(r); got != stsValid|stsExpect {
		t.Errorf("expect: STS = %#x after the command, want Expect still", got)
	}
	r.Write32(tisSts, stsReady)
	good("expect", m, r)

	m, r = tpmOn(t, "tpm-tis", "misbehave=noexpect:1")
	sendTIS(t, r, 0, startup[:1])
	if got := low(r); got != stsValid {
		t.Errorf("noexpect: STS = %#x inside the command, want no Expect", got)
	}
	r.Write32(tisSts, stsReady)
	good("noexpect", m, r)

	m, r = tpmOn(t, "tpm-tis", "misbehave=burst0:1")
	apply(r, "r0")
	r.Write32(tisSts, stsReady)
	for range 2 {
		if got := r.Read32(tisSts); got != stsFamily20|stsReady {
			t.Errorf("burst0: STS = %#x, want no burst count", got)
		}
	}
	r.Write32(tisSts, stsReady) // whoever waited gives it up
	good("burst0", m, r)

	_, r = tpmOn(t, "tpm-tis", "misbehave=locality")
	if apply(r, "r0"); access(r) != "- - - - -" {
		t.Errorf("locality: ACCESS = %s, want none active", access(r))
	}

	_, r = tpmOn(t, "tpm-crb", "misbehave=locality+fatal")
	if r.Write32(crbLocCtrl, locRequest); r.Read32(crbLocState) != 0x81 {
		t.Errorf("locality: LOC_STATE = %#x, want 0x81", r.Read32(crbLocState))
	}
	m, r = tpmOn(t, "tpm-crb", "misbehave=fatal:1")
	startCRB(r, startup)
	m.Advance(tpmDelay)
	if got := r.Read32(crbCtrlSts); got != crbError {
		t.Errorf("fatal: CTRL_STS = %#x, want the error bit", got)
	}
}

// A storm has no cause, and nothing ends it but the next command.
func TestTISStorm(t *testing.T) {
	m, r := tpmOn(t, "tpm-tis", "misbehave=storm:2")
	q := enabled(t, m.devices[0], bus.INTx, 1)[0]
	startup := cmd20(ccStartup, "0000")
	transactTIS(t, m, r, startup)
	if n := fired(t, q); n != 0 {
		t.Errorf("fired %d times before the storm, want 0", n)
	}
	transactTIS(t, m, r, startup)
	apply(r, "r0")
	for range 100 {
		if n := fired(t, q); n != 1 {
			t.Fatalf("fired %d times after Unmask in a storm, want 1", n)
		}
		if got := r.Read32(tisIntSta); got != 0 {
			t.Fatalf("INT_STATUS = %#x, want no cause", got)
		}
		r.Write32(tisIntSta, tisIntAll)
		q.Unmask()
	}
	transactTIS(t, m, r, startup)
	fired(t, q)
	if q.Unmask(); fired(t, q) != 0 {
		t.Error("fired after the storm")
	}
}
