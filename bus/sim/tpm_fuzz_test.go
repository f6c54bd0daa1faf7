package sim

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
)

// FuzzEngine sends anything as a command, in some state: the answer is whole, no longer than 4096 bytes, and the same
// each time.
func FuzzEngine(f *testing.F) {
	for _, cmd := range [][]byte{
		nil, cmd20(ccStartup, "0000"), cmd20(ccGetCapability, "00000001 80000000 000000ff"), cmd12(ord12Startup, "0001"),
		cmd12(ord12GetCapability, "00000005 00000004 00000120"), pw20(ccPCRExtend, "00000010", "00000001 000b"+zeros32),
		cmd20(ccHashSequenceStart, "0000 000b"), cmd20(ccContextSave, "80000000"), cmd20(ccContextSave, "03000000"),
		cmd20(ccContextLoad, "0000000000000001 80000001 40000007 0004 0002 0000"), cmd20(ccFlushContext, "03000000"),
		pw20(ccSequenceComplete, "80000000", "0001 63 40000007"), cmd20(ccPCRRead, "00000001 000b 03 ffffff"),
		cmd20(ccStartAuthSession, "4000000740000007 0010 00000000000000000000000000000000 0000 01 0010 000b"),
		cmd12(ord12PCRReset, "0003 000081"), cmd12(ord12GetRandom, "ffffffff"),
	} {
		f.Add(cmd, uint8(0))
	}
	f.Fuzz(func(t *testing.T, cmd []byte, locality uint8) {
		for _, tpm12 := range []bool{true, false} {
			a, b := newEngine(tpm12, false), newEngine(tpm12, false)
			for _, e := range []*engine{a, b} {
				e.PowerOn()
			}
			for _, setup := range [][]byte{
				cmd, cmd20(ccStartup, "0000"), cmd12(ord12Startup, "0001"), cmd20(ccHashSequenceStart, "0000 000b"),
				cmd20(ccStartAuthSession, "4000000740000007 0010 00000000000000000000000000000000 0000 01 0010 000b"),
				cmd, fixed(cmd), cmd,
			} {
				before := bytes.Clone(setup)
				x, y := a.Command(int(locality%5), setup), b.Command(int(locality%5), setup)
				if !bytes.Equal(x, y) {
					t.Fatalf("Command(% x) = % x and % x, want the same", setup, x, y)
				}
				if len(x) < tpmHeader || len(x) > tpmMax || int(number(x[2:6])) != len(x) {
					t.Fatalf("Command(% x) = % x, want an answer as long as it says", setup, x)
				}
				if !bytes.Equal(setup, before) {
					t.Fatalf("Command(% x) left % x", before, setup)
				}
			}
		}
	})
}

// fixed is a command with the length that it has, so that what is behind the header is looked at.
func fixed(cmd []byte) []byte {
	if len(cmd) < tpmHeader {
		return cmd
	}
	cmd = bytes.Clone(cmd)
	binary.BigEndian.PutUint32(cmd[2:], uint32(len(cmd)))
	return cmd
}

// FuzzTPMRegisters makes accesses by chance to a TPM that misbehaves or not: nothing panics, at most one locality is
// active, the line is high only where a cause is there, and at last the TPM can be used.
func FuzzTPMRegisters(f *testing.F) {
	for seed := range uint64(64) {
		f.Add(seed)
	}
	kinds := []string{"", "long", "short", "huge", "runt", "tag", "fail", "hang:2-", "expect:1-3", "noexpect", "burst0:2", "retry", "storm:1"}
	f.Fuzz(func(t *testing.T, seed uint64) {
		rnd := rand.New(rand.NewPCG(seed, 2))
		props := []string{"family=" + []string{"1.2", "2.0"}[seed%2]}
		kind := kinds[seed/2%uint64(len(kinds))]
		if kind != "" {
			props = append(props, "misbehave="+kind)
		}
		if rnd.IntN(2) == 0 {
			props = append(props, "burst=3")
		}
		m, r := tpmOn(t, "tpm-tis", props...)
		c := m.devices[0].chip.(*tis)
		for range 3000 {
			poke(m, r, rnd)
			checkTIS(t, c, kind)
		}
		if err := m.Reset(t.Context(), "tpm0"); err != nil {
			t.Fatal(err)
		}
		if kind == "" && c.o.burst == 0 {
			if got := transactTIS(t, m, r, cmd20(ccGetRandom, "0008")); len(got) != tpmHeader {
				t.Errorf("GetRandom after all = % x", got)
			}
		}
	})
}

// poke does one thing that a driver might do, as likely as not in the wrong moment.
func poke(m *Machine, r bus.Region, rnd *rand.Rand) {
	l := bus.Off(rnd.IntN(tisLocalities)) * tisLocality
	if rnd.IntN(3) > 0 {
		l = 0
	}
	switch rnd.IntN(12) {
	case 0:
		r.Write8(l+tisAccess, uint8(1<<rnd.IntN(8)))
	case 1:
		r.Write8(l+tisAccess, accessRequest)
	case 2:
		r.Write32(l+tisSts, 1<<rnd.IntN(32))
	case 3, 4:
		r.Write32(l+tisSts, []uint32{stsReady, stsGo, stsRetry}[rnd.IntN(3)])
	case 5:
		r.Write32(l+tisFIFO, rnd.Uint32()>>rnd.IntN(32))
	case 6, 7:
		for _, b := range cmd20(ccGetRandom, "0040")[:rnd.IntN(13)] {
			r.Write8(l+tisFIFO, b)
			r.Read32(l + tisSts)
		}
	case 8:
		for range rnd.IntN(30) {
			r.Read16(l + tisXFIFO)
		}
	case 9:
		r.Write32(l+tisIntEn, rnd.Uint32())
		r.Write32(l+tisIntSta, rnd.Uint32())
	case 10:
		m.Advance(time.Duration(rnd.IntN(int(2 * tpmDelay))))
	case 11:
		off := bus.Off(rnd.IntN(tisLocality*tisLocalities)) &^ 3
		r.Write32(off, rnd.Uint32())
		r.Read32(off)
	}
}

func checkTIS(t *testing.T, c *tis, kind string) {
	t.Helper()
	high := kind == "storm:1" && c.run.number == 1
	for i := range c.loc {
		x := &c.loc[i]
		high = high || x.insta != 0
		if is := x.access&accessActive != 0; is != (c.active == i) {
			t.Fatalf("ACCESS of locality %d = %#x, and %d is active", i, x.access, c.active)
		}
		if x.state == tisExecution && (!c.run.busy || c.active != i) {
			t.Fatalf("locality %d waits for a command that does not run", i)
		}
		if x.sts&stsData != 0 && c.given >= len(c.answer) {
			t.Fatalf("locality %d has dataAvail, and %d of %d bytes were given", i, c.given, len(c.answer))
		}
	}
	if d := c.s.(*device); d.high != high {
		t.Fatalf("the line is %v, want %v", d.high, high)
	}
	if c.got > tpmMax || c.got < 0 {
		t.Fatalf("%d bytes of a command", c.got)
	}
}
