package sim

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
)

// sendTIS claims a locality and writes a command, byte by byte, up to where it is to be started.
func sendTIS(t testing.TB, r bus.Region, l bus.Off, cmd []byte) {
	t.Helper()
	l *= tisLocality
	r.Write8(l+tisAccess, accessRequest)
	if r.Read32(l+tisSts)&stsReady == 0 {
		r.Write32(l+tisSts, stsReady)
	}
	for _, b := range cmd {
		if n := r.Read32(l+tisSts) >> stsBurst & 0xffff; n == 0 {
			t.Fatal("burst count = 0 while a command is written")
		}
		r.Write8(l+tisFIFO, b)
	}
}

// receiveTIS reads an answer as long as there is one.
func receiveTIS(r bus.Region, l bus.Off) (answer []byte) {
	l *= tisLocality
	for r.Read32(l+tisSts)&stsData != 0 {
		answer = append(answer, r.Read8(l+tisFIFO))
	}
	return answer
}

// transactTIS is a command as a driver makes it, in locality 0.
func transactTIS(t testing.TB, m *Machine, r bus.Region, cmd []byte) []byte {
	t.Helper()
	sendTIS(t, r, 0, cmd)
	r.Write32(tisSts, stsGo)
	m.Advance(tpmDelay)
	answer := receiveTIS(r, 0)
	r.Write32(tisSts, stsReady)
	r.Write8(tisAccess, accessActive)
	return answer
}

func TestTISRegisters(t *testing.T) {
	for _, c := range []struct {
		family          string
		caps, id, first uint32
	}{
		{"2.0", 0x30000697, 0x00002100, 0x04100000},
		{"1.2", 0x20000697, 0xffffffff, 0x00100000},
	} {
		_, r := tpmOn(t, "tpm-tis", "family="+c.family)
		for l := range bus.Off(tisLocalities) {
			for _, x := range []struct {
				reg  bus.Off
				want uint32
			}{
				{tisAccess, 0x81}, {tisIntEn, 0x08}, {tisVector, 5}, {tisIntSta, 0}, {tisIntfCap, c.caps},
				{tisSts, 0xffffffff}, {tisFIFO, 0xffffffff}, {tisXFIFO + 0x3c, 0xffffffff}, {tisIntfID, c.id},
				{tisDIDVID, 0x00011014}, {tisRID, 1}, {0x4, 0xffffffff}, {tisXEnd, 0xffffffff}, {0xf08, 0xffffffff},
			} {
				at := l*tisLocality + x.reg
				if got := r.Read32(at); got != x.want {
					t.Errorf("%s: Read32(%#x) = %#x, want %#x", c.family, at, got, x.want)
				}
				for i := range bus.Off(4) {
					if got, want := r.Read8(at+i), uint8(x.want>>(8*i)); got != want {
						t.Errorf("%s: Read8(%#x) = %#x, want %#x", c.family, at+i, got, want)
					}
				}
			}
		}
		r.Write8(tisAccess, accessRequest)
		if got := r.Read32(tisSts); got != c.first {
			t.Errorf("%s: STS = %#x, want %#x", c.family, got, c.first)
		}
		if got := r.Read8(tisSts + 1); got != 0xff {
			t.Errorf("%s: a byte of the burst count = %#x, want 0xff", c.family, got)
		}
		r.Write32(tisSts, stsReady)
		if got := r.Read32(tisSts); got != c.first|stsReady {
			t.Errorf("%s: STS = %#x once it is ready, want %#x", c.family, got, c.first|stsReady)
		}
		r.Write32(tisIntfID, tisIDLock)
		if got := r.Read32(3*tisLocality + tisIntfID); got != c.id|tisIDLock {
			t.Errorf("%s: INTERFACE_ID = %#x once it is locked, want %#x", c.family, got, c.id|tisIDLock)
		}
		if got := r.Read64(tisDIDVID); got != ^uint64(0) {
			t.Errorf("%s: Read64 = %#x, want all-ones: registers are of 32 bits at most", c.family, got)
		}
	}
}

// access shows ACCESS of localities 0 to 4: A active, S been seized, r asks for it, p others do.
func access(r bus.Region) string {
	var out []string
	for l := range bus.Off(tisLocalities) {
		v := r.Read8(l*tisLocality + tisAccess)
		s := "-"
		for _, b := range []struct {
			mask uint8
			name string
		}{{accessActive, "A"}, {accessSeized, "S"}, {accessRequest, "r"}, {accessPending, "p"}} {
			if v&b.mask != 0 {
				s += b.name
			}
		}
		if v&(accessValid|accessEstablished) != accessValid|accessEstablished || v&(accessSeize|1<<6) != 0 {
			s += fmt.Sprintf("!%#x", v)
		}
		out = append(out, s)
	}
	return strings.Join(out, " ")
}

// apply makes accesses: r asks, z seizes, g gives up, c clears "been seized", each with a locality.
func apply(r bus.Region, ops string) {
	for op := range strings.FieldsSeq(ops) {
		v := map[byte]uint8{'r': accessRequest, 'z': accessSeize, 'g': accessActive, 'c': accessSeized}[op[0]]
		r.Write8(bus.Off(op[1]-'0')*tisLocality+tisAccess, v)
	}
}

func TestTISAccess(t *testing.T) {
	for _, c := range []struct{ ops, want string }{
		{"", "- - - - -"},
		{"r0", "-A - - - -"},
		{"r0 r0", "-A - - - -"},
		{"r0 g0", "- - - - -"},
		{"r4", "- - - - -"}, // the locality of the hardware
		{"z4", "- - - - -"},
		{"r0 z4", "-A - - - -"},
		{"z2", "- - -A - -"}, // as good as a request, where none is active
		{"r0 r2", "-Ap -p -r -p -p"},
		{"r0 r2 r1", "-Ap -rp -rp -p -p"},
		{"r0 r2 g2", "-A - - - -"}, // the request is taken back
		{"r0 r1 r3 g0", "-p -r -p -Ap -p"},
		{"r0 r1 r3 g0 g3", "- -A - - -"},
		{"r0 r1 r3 g0 g3 g1", "- - - - -"},
		{"r1 z0", "- -A - - -"}, // a lower one cannot
		{"r1 r0 z0", "-r -Ap -p -p -p"},
		{"r1 z1", "- -A - - -"},
		{"r1 z3", "- -S - -A -"},
		{"r1 z3 c1", "- - - -A -"},
		{"r1 z3 c3", "- -S - -A -"},
		{"r1 z2 z3", "- -S -S -A -"},
		{"r1 r2 z2", "- -S -A - -"}, // the request is served
		{"r0 r1 z2", "-Sp -r -Ap -p -p"},
		{"r0 z2 g2", "-S - - - -"}, // who was seized must ask again
		{"r0 z2 r0 g2", "-AS - - - -"},
		{"r2 g0 g1 g3", "- - -A - -"}, // it is not theirs to give up
	} {
		_, r := tpmOn(t, "tpm-tis")
		if apply(r, c.ops); access(r) != c.want {
			t.Errorf("ACCESS after %q = %s, want %s", c.ops, access(r), c.want)
		}
	}
	// All at once: a seizure goes before what else is asked for, and giving up before a request.
	_, r := tpmOn(t, "tpm-tis")
	r.Write8(tisAccess, accessSeize|accessRequest|accessActive)
	if got := access(r); got != "-A - - - -" {
		t.Errorf("ACCESS = %s after seizing, and more, want locality 0 active", got)
	}
	r.Write8(tisAccess, accessActive|accessRequest)
	if got := access(r); got != "- - - - -" {
		t.Errorf("ACCESS = %s after giving up and asking at once, want none active", got)
	}
}

// Whoever is active, each other locality seizes it if it is higher, and waits for its turn otherwise; the highest
// that waits comes first.
func TestTISAccessMatrix(t *testing.T) {
	const software = tisLocalities - 1
	for a := range software {
		for b := range software {
			_, r := tpmOn(t, "tpm-tis")
			apply(r, fmt.Sprintf("r%d z%d", a, b))
			is := func(l int) bool { return r.Read8(bus.Off(l)*tisLocality)&accessActive != 0 }
			if is(b) != (b >= a) || is(a) != (b <= a) {
				t.Errorf("with %d active, seizing for %d: ACCESS = %s", a, b, access(r))
			}
			if b == a {
				continue
			}
			_, r = tpmOn(t, "tpm-tis")
			apply(r, fmt.Sprintf("r%d r%d", a, b))
			if is := r.Read8(bus.Off(a) * tisLocality); is != 0xa5 {
				t.Errorf("with %d active and %d waiting: ACCESS of %d = %#x, want 0xa5", a, b, a, is)
			}
			if is := r.Read8(bus.Off(b) * tisLocality); is != 0x83 {
				t.Errorf("with %d active and %d waiting: ACCESS of %d = %#x, want 0x83", a, b, b, is)
			}
		}
		_, r := tpmOn(t, "tpm-tis")
		apply(r, fmt.Sprintf("r%d r0 r1 r2 r3 g%d", a, a))
		for want := software - 1; want >= 0; want-- {
			if want == a {
				continue
			}
			if r.Read8(bus.Off(want)*tisLocality)&accessActive == 0 {
				t.Errorf("after %d, ACCESS = %s, want locality %d active", a, access(r), want)
			}
			apply(r, fmt.Sprintf("g%d", want))
		}
		if got := access(r); got != "- - - - -" {
			t.Errorf("after all gave it up ACCESS = %s", got)
		}
	}
}

// A command and its answer, in all widths that the FIFO has, through both of its names.
func TestTISTransmit(t *testing.T) {
	want := unhex("8001 0000000a 00000100")
	for _, width := range []int{1, 2, 4} {
		for _, fifo := range []bus.Off{tisFIFO, tisXFIFO, tisXFIFO + 0x3c} {
			m, r := tpmOn(t, "tpm-tis")
			sts := func(what string, want uint32) {
				t.Helper()
				if got := r.Read32(tisSts); got&^(0xffff<<stsBurst) != stsFamily20|want {
					t.Errorf("%d bytes at once: STS %s = %#x, want %#x beside the burst count", width, what, got, stsFamily20|want)
				}
			}
			cmd := cmd20(ccGetRandom, "0008")
			r.Write8(tisAccess, accessRequest)
			sts("at first", 0)
			r.Write32(fifo, 0) // nobody is ready for it
			r.Write32(tisSts, stsGo)
			sts("after bytes that nobody waits for", 0)
			r.Write32(tisSts, stsReady)
			sts("when ready", stsReady)
			r.Write32(tisSts, stsGo)
			for i := 0; i < len(cmd); i += width {
				switch width {
				case 1:
					r.Write8(fifo, cmd[i])
				case 2:
					r.Write16(fifo, binary.LittleEndian.Uint16(cmd[i:]))
				case 4:
					r.Write32(fifo, binary.LittleEndian.Uint32(cmd[i:]))
				}
				if i+width < len(cmd) {
					sts("inside the command", stsValid|stsExpect)
					r.Write32(tisSts, stsGo) // too early
				}
			}
			sts("after the command", stsValid)
			r.Write8(fifo, 0x55) // one too many
			r.Write32(tisSts, stsGo)
			sts("while it runs", 0)
			if got := r.Read8(fifo); got != 0xff {
				t.Errorf("FIFO while a command runs = %#x, want 0xff", got)
			}
			m.Advance(tpmDelay - 1)
			sts("just before it is done", 0)
			m.Advance(1)
			sts("when it is done", stsValid|stsData)
			for range 2 {
				if n := r.Read32(tisSts) >> stsBurst & 0xffff; int(n) != len(want) {
					t.Errorf("burst count = %d, want %d", n, len(want))
				}
				if got := readFIFO(r, fifo, width, len(want)); !bytes.Equal(got, want) {
					t.Errorf("%d bytes at once: answer = % x, want % x", width, got, want)
				}
				sts("after the answer", stsValid)
				r.Write32(tisSts, stsRetry)
				sts("after responseRetry", stsValid|stsData)
			}
			r.Write32(tisSts, stsReady)
			sts("when ready again", stsReady)
		}
	}
}

// readFIFO reads n bytes; what comes with the last access beyond them is ones.
func readFIFO(r bus.Region, fifo bus.Off, width, n int) (b []byte) {
	for len(b) < n {
		switch width {
		case 1:
			b = append(b, r.Read8(fifo))
		case 2:
			b = binary.LittleEndian.AppendUint16(b, r.Read16(fifo))
		case 4:
			b = binary.LittleEndian.AppendUint32(b, r.Read32(fifo))
		}
	}
	for _, x := range b[n:] {
		if x != 0xff {
			return nil
		}
	}
	return b[:n]
}

// Commands of lengths that are no length.
func TestTISLengths(t *testing.T) {
	for _, c := range []struct {
		length uint32
		send   int // bytes
		rc     uint32
	}{
		{0, 6, rcCommandSize}, {6, 6, rcCommandSize}, {9, 9, rcCommandSize}, {10, 10, rcCommandCode},
		{4096, 4096, rcCommandCode}, {4097, 4096, rcCommandSize}, {0xffffffff, 4096, rcCommandSize}, {0x10000 + 10, 4096, rcCommandSize},
	} {
		m, r := tpmOn(t, "tpm-tis")
		cmd := make([]byte, 4096)
		binary.BigEndian.PutUint16(cmd, tagNoSessions)
		binary.BigEndian.PutUint32(cmd[2:], c.length)
		binary.BigEndian.PutUint32(cmd[6:], 1)
		sendTIS(t, r, 0, cmd[:c.send-1])
		if got := r.Read32(tisSts) & 0xff; got != stsValid|stsExpect {
			t.Errorf("length %d: STS = %#x before the last byte, want valid and Expect", c.length, got)
		}
		r.Write8(tisFIFO, cmd[c.send-1])
		if got := r.Read32(tisSts) & 0xff; got != stsValid {
			t.Errorf("length %d: STS = %#x after %d bytes, want valid", c.length, got, c.send)
		}
		r.Write32(tisSts, stsGo)
		m.Advance(time.Second)
		if got := receiveTIS(r, 0); resultOf(got) != c.rc {
			t.Errorf("length %d: answer = % x, want %#x", c.length, got, c.rc)
		}
	}
}
