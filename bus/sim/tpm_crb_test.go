package sim

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/ring3dev/ring3/bus"
)

// startCRB claims the locality, and writes and starts a command.
func startCRB(r bus.Region, cmd []byte) {
	r.Write32(crbLocCtrl, locRequest)
	r.Write32(crbCtrlReq, crbReady)
	r.Write32(crbCancel, 0)
	for i, b := range cmd {
		r.Write8(crbBuffer+bus.Off(i), b)
	}
	r.Write32(crbStart, crbInvoke)
}

// receiveCRB reads an answer, at most as much as the buffer holds.
func receiveCRB(r bus.Region) []byte {
	var b []byte
	for i := range bus.Off(8) {
		b = append(b, r.Read8(crbBuffer+i))
	}
	n := min(bus.Off(binary.BigEndian.Uint32(b[2:])), crbBufferLen)
	for i := bus.Off(8); i < n; i++ {
		b = append(b, r.Read8(crbBuffer+i))
	}
	return b
}

// transactCRB is a command as a driver makes it.
func transactCRB(t testing.TB, m *Machine, r bus.Region, cmd []byte) []byte {
	t.Helper()
	startCRB(r, cmd)
	m.Advance(tpmDelay)
	if v := r.Read32(crbStart); v != 0 {
		t.Errorf("CTRL_START = %#x when the command is done, want 0", v)
	}
	answer := receiveCRB(r)
	r.Write32(crbCtrlReq, crbGoIdle)
	r.Write32(crbLocCtrl, locRelinquish)
	return answer
}

func TestCRBRegisters(t *testing.T) {
	_, r := tpmOn(t, "tpm-crb")
	check := func(what string, want map[bus.Off]uint32) {
		t.Helper()
		for off := bus.Off(0); off < crbBuffer; off += 4 {
			if got := r.Read32(off); got != want[off] {
				t.Errorf("%s: Read32(%#x) = %#x, want %#x", what, off, got, want[off])
			}
			for i := range bus.Off(4) {
				if got, want := r.Read8(off+i), uint8(want[off]>>(8*i)); got != want {
					t.Errorf("%s: Read8(%#x) = %#x, want %#x", what, off+i, got, want)
				}
			}
		}
	}
	first := map[bus.Off]uint32{
		0x00: 0x81, 0x30: 0x00025811, 0x34: 0x1014, 0x44: 2,
		0x58: 0xf80, 0x5c: 0xfed40080, 0x64: 0xf80, 0x68: 0xfed40080,
	}
	check("at first", first)
	if got := r.Read64(0x30); got != 0x1014_00025811 {
		t.Errorf("Read64(0x30) = %#x, want both halves", got)
	}
	if got := r.Read64(0x68); got != 0xfed40080 {
		t.Errorf("Read64(0x68) = %#x, want 0xfed40080", got)
	}
	for off := bus.Off(0); off < crbBuffer; off += 8 {
		if off != crbLocCtrl && off != crbCtrlReq {
			r.Write64(off, ^uint64(0))
		}
	}
	check("after writes to what is read-only", first)
	r.Write32(crbLocCtrl, locRequest)
	first[0x00], first[0x0c] = 0x83, 1
	check("with the locality", first)
	r.Write8(crbCtrlReq, crbReady)
	first[0x44] = 0
	check("when ready", first)
	r.Write32(crbCtrlReq, crbReady|crbGoIdle) // one at a time
	check("after both at once", first)
	r.Write64(crbCtrlReq, crbGoIdle)
	r.Write32(crbLocCtrl, locRelinquish)
	first[0x00], first[0x0c], first[0x44] = 0x81, 0, 2
	check("when idle", first)
}

func TestCRBBuffer(t *testing.T) {
	_, r := tpmOn(t, "tpm-crb")
	r.Write64(crbBuffer, 0x0807060504030201)
	r.Write32(crbBuffer+8, 0x0c0b0a09)
	r.Write16(crbBuffer+12, 0x0e0d)
	r.Write8(crbBuffer+14, 0x0f)
	r.Write64(0xff8, 0x1122334455667788)
	for i := range bus.Off(15) {
		if got := r.Read8(crbBuffer + i); got != uint8(i+1) {
			t.Errorf("Read8 of byte %d = %#x, want %#x", i, got, i+1)
		}
	}
	if a, b, c := r.Read16(crbBuffer), r.Read32(crbBuffer+4), r.Read64(crbBuffer+8); a != 0x0201 || b != 0x08070605 || c != 0x000f0e0d0c0b0a09 {
		t.Errorf("the buffer reads %#x, %#x, %#x", a, b, c)
	}
	if got := r.Read64(0xff8); got != 0x1122334455667788 {
		t.Errorf("the end of the buffer reads %#x", got)
	}
}

func TestCRBSequence(t *testing.T) {
	m, r := tpmOn(t, "tpm-crb")
	// Without the locality nothing starts, and the command stays.
	cmd := cmd20(ccGetRandom, "0008")
	for i, b := range cmd {
		r.Write8(crbBuffer+bus.Off(i), b)
	}
	r.Write32(crbStart, crbInvoke)
	if v := r.Read32(crbStart); v != 0 {
		t.Errorf("CTRL_START = %#x without the locality, want 0", v)
	}
	m.Advance(tpmDelay)
	if got := receiveCRB(r); !bytes.Equal(got, cmd) {
		t.Errorf("the buffer = % x, want the command", got)
	}
	startCRB(r, cmd)
	if v := r.Read32(crbStart); v != crbInvoke {
		t.Errorf("CTRL_START = %#x while the command runs, want 1", v)
	}
	// What is written while it runs is nothing to the command.
	r.Write32(crbStart, crbInvoke)
	r.Write64(crbBuffer, 0)
	m.Advance(tpmDelay)
	if got := receiveCRB(r); resultOf(got) != rcInitialize {
		t.Errorf("answer = % x, want %#x", got, rcInitialize)
	}
	if v := r.Read32(crbStart); v != 0 {
		t.Errorf("CTRL_START = %#x when the command is done, want 0", v)
	}
	startCRB(r, cmd20(ccStartup, "0000"))
	r.Write32(crbCancel, 1)
	m.Advance(tpmCancelTime)
	if got := receiveCRB(r); resultOf(got) != rcCanceled {
		t.Errorf("answer = % x after cancelling, want %#x", got, rcCanceled)
	}
	// A length that is none.
	for _, n := range []uint32{0, 9, 0xf81, 0xffffffff} {
		bad := cmd20(ccStartup, "0000")
		binary.BigEndian.PutUint32(bad[2:], n)
		if rc := resultOf(transactCRB(t, m, r, bad)); rc != rcCommandSize {
			t.Errorf("length %d: answer = %#x, want %#x", n, rc, rcCommandSize)
		}
	}
	if rc := resultOf(transactCRB(t, m, r, cmd20(ccStartup, "0000"))); rc != 0 {
		t.Errorf("Startup = %#x, want 0: it was cancelled before", rc)
	}
}
