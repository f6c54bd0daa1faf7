package sim

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"
)

// started20 is a TPM 2.0 after Startup.
func started20(t *testing.T) *engine {
	t.Helper()
	e := newEngine(false, false)
	e.PowerOn()
	if rc := resultOf(e.Command(0, cmd20(ccStartup, "0000"))); rc != 0 {
		t.Fatalf("Startup = %#x, want 0", rc)
	}
	return e
}

const zeros32 = "0000000000000000000000000000000000000000000000000000000000000000"

// Result codes, which are those of the reference implementation.
func TestEngine20Errors(t *testing.T) {
	e := newEngine(false, false)
	e.PowerOn()
	one := "00000001 000b" + zeros32
	session := "40000007 40000007 0010 00000000000000000000000000000000 "
	for _, c := range []struct {
		what string
		cmd  []byte
		rc   uint32
	}{
		{"nothing", nil, rcCommandSize},
		{"a tag", unhex("8001"), rcCommandSize},
		{"a length that is wrong", append(cmd20(ccGetRandom, "0008"), 0), rcCommandSize},
		{"GetRandom before Startup", cmd20(ccGetRandom, "0008"), 0x100},
		{"no command before Startup", cmd20(0x999, ""), 0x143},
		{"Startup of no kind", cmd20(ccStartup, "0009"), 0x1c4},
		{"Startup to a state that was not saved", cmd20(ccStartup, "0001"), 0x1c4},
		{"Startup cut short", cmd20(ccStartup, "00"), 0x1da},
		{"Startup and more", cmd20(ccStartup, "000000"), 0x95},
		{"Startup with a session", command(tagSessions, ccStartup, "00000009 40000009 0000 00 0000 0000"), 0x145},
		{"Startup", cmd20(ccStartup, "0000"), 0},
		{"Startup again", cmd20(ccStartup, "0000"), 0x100},
		{"no command", cmd20(0x999, ""), 0x143},
		{"SelfTest", cmd20(ccSelfTest, "01"), 0},
		{"SelfTest of no kind", cmd20(ccSelfTest, "02"), 0x1c4},
		{"Shutdown of no kind", cmd20(ccShutdown, "0009"), 0x1c4},
		{"GetRandom with a password", command(tagSessions, ccGetRandom, "00000009 40000009 0000 00 0000 0008"), 0x98b},
		{"PCR_Read of no algorithm", cmd20(ccPCRRead, "00000001 0099 03 010000"), 0x1c3},
		{"PCR_Read of 32 PCRs", cmd20(ccPCRRead, "00000001 000b 04 01000000"), 0x1c4},
		{"PCR_Read cut short", cmd20(ccPCRRead, "00000001 000b 03 0100"), 0x1da},
		{"PCR_Read of many banks", cmd20(ccPCRRead, "00000020"), 0x1d5},
		{"PCR_Extend without authorization", cmd20(ccPCRExtend, "00000010"+one), 0x125},
		{"PCR_Extend", pw20(ccPCRExtend, "00000010", one), 0},
		{"PCR_Extend of none", pw20(ccPCRExtend, "40000007", one), 0},
		{"PCR_Extend 24", pw20(ccPCRExtend, "00000018", one), 0x184},
		{"PCR_Extend of an object", pw20(ccPCRExtend, "80000000", one), 0x184},
		{"PCR_Extend 17", pw20(ccPCRExtend, "00000011", one), 0x907},
		{"PCR_Extend in no algorithm", pw20(ccPCRExtend, "00000010", "00000001 0099"+zeros32), 0x1c3},
		{"PCR_Extend in nine", pw20(ccPCRExtend, "00000010", "00000009 000b"+zeros32), 0x1d5},
		{"PCR_Extend cut short", pw20(ccPCRExtend, "00000010", one[:len(one)-2]), 0x1da},
		{"PCR_Extend with a password", command(tagSessions, ccPCRExtend, "00000010 0000000a 40000009 0000 00 0001 ff"+one), 0x9a2},
		{"PCR_Extend with an empty area", command(tagSessions, ccPCRExtend, "00000010 00000000"+one), 0x95},
		{"PCR_Extend with an area too long", command(tagSessions, ccPCRExtend, "00000010 00001000 40000009"), 0x95},
		{"PCR_Extend with a session of none", command(tagSessions, ccPCRExtend, "00000010 00000009 03000000 0000 00 0000"+one), 0x918},
		{"PCR_Extend with a session of no kind", command(tagSessions, ccPCRExtend, "00000010 00000009 80000000 0000 00 0000"+one), 0x984},
		{"PCR_Reset 0", pw20(ccPCRReset, "00000000", ""), 0x907},
		{"PCR_Reset of none", pw20(ccPCRReset, "40000007", ""), 0x184},
		{"FlushContext of no object", cmd20(ccFlushContext, "80000000"), 0x1cb},
		{"FlushContext of no session", cmd20(ccFlushContext, "03000000"), 0x1cb},
		{"FlushContext of a PCR", cmd20(ccFlushContext, "00000000"), 0x1c4},
		{"ContextSave of no object", cmd20(ccContextSave, "80000000"), 0x910},
		{"ContextSave of a PCR", cmd20(ccContextSave, "00000000"), 0x184},
		{"ContextSave of nothing", cmd20(ccContextSave, ""), 0x19a},
		{"ContextLoad of junk", cmd20(ccContextLoad, "0000000000000001 03000000 40000007 0002 0000"), 0x1d5},
		{"ContextLoad of what nobody signed", cmd20(ccContextLoad, "0000000000000001 03000000 40000007 0003 000100"), 0x1df},
		{"ContextLoad cut short", cmd20(ccContextLoad, "0000000000000001 03000000"), 0x1da},
		{"HashSequenceStart of no algorithm", cmd20(ccHashSequenceStart, "0000 0099"), 0x2c3},
		{"StartAuthSession with a key that is none", cmd20(ccStartAuthSession, "8000000040000007 0000 0000 01 0010 000b"), 0x910},
		{"StartAuthSession with a short nonce", cmd20(ccStartAuthSession, "4000000740000007 0001 00 0000 01 0010 000b"), 0x1d5},
		{"StartAuthSession with a salt", cmd20(ccStartAuthSession, session+"0001 00 01 0010 000b"), 0x2c4},
		{"StartAuthSession of no kind", cmd20(ccStartAuthSession, session+"0000 07 0010 000b"), 0x3c4},
		{"StartAuthSession with a cipher", cmd20(ccStartAuthSession, session+"0000 01 0006 000b"), 0x4d6},
		{"StartAuthSession of no algorithm", cmd20(ccStartAuthSession, session+"0000 01 0010 0099"), 0x5c3},
		{"GetCapability of no kind", cmd20(ccGetCapability, "00000099 00000000 00000001"), 0x1c4},
		{"GetCapability of PCRs from 1", cmd20(ccGetCapability, "00000005 00000001 00000001"), 0x2c4},
		{"GetCapability of handles of no kind", cmd20(ccGetCapability, "00000001 05000000 00000001"), 0x2cb},
	} {
		got := e.Command(0, c.cmd)
		if rc := resultOf(got); rc != c.rc {
			t.Errorf("%s: Command(% x) = %#x, want %#x", c.what, c.cmd, rc, c.rc)
		}
		if c.rc != 0 && !bytes.Equal(got, tpmAnswer(tagNoSessions, c.rc)) {
			t.Errorf("%s: answer = % x, want a header only", c.what, got)
		}
	}
	for _, tag := range []uint16{0, tagRequest12, tagAnswer12, 0x8000, 0x8003} {
		if got, want := e.Command(0, command(tag, ccStartup, "0000")), unhex("00c4 0000000a 0000001e"); !bytes.Equal(got, want) {
			t.Errorf("Command with tag %#x = % x, want % x", tag, got, want)
		}
	}
}

func TestEngine20Capabilities(t *testing.T) {
	e := started20(t)
	for _, c := range []struct{ ask, want string }{
		{"00000006 00000100 00000001", "01 00000006 00000001 00000100 322e3000"},
		{"00000006 00000105 00000001", "01 00000006 00000001 00000105 52494e33"},
		{"00000006 00000129 00000001", "01 00000006 00000001 00000129 00000011"},
		{"00000006 00000207 00000008", "00 00000006 00000001 00000207 00000003"},
		{"00000006 00000300 00000008", "00 00000006 00000000"},
		{"00000006 00000100 00000000", "01 00000006 00000000"},
		{"00000005 00000000 00000001", "00 00000005 00000004 0004 03ffffff 000b 03ffffff 000c 03ffffff 000d 03ffffff"},
		{"00000000 00000000 00000008", "00 00000000 00000004 0004 00000004 000b 00000004 000c 00000004 000d 00000004"},
		{"00000001 00000016 00000008", "00 00000001 00000002 00000016 00000017"},
		{"00000001 81000000 00000008", "00 00000001 00000000"},
		// TPMA_CC as the reference implementation has them.
		{"00000002 00000000 000000ff", "00 00000002 00000011 0240013d 0300013e 00400143 00400144 00400145 0200015c 10000161 02000162 00000165 14000176" +
			"0000017a 0000017b 0000017c 0000017e 02400182 10000186 02000189"},
		{"00000002 00000143 00000001", "01 00000002 00000001 00400143"},
	} {
		got := e.Command(0, cmd20(ccGetCapability, c.ask))
		if want := tpmAnswer(tagNoSessions, 0, unhex(c.want)...); !bytes.Equal(got, want) {
			t.Errorf("GetCapability(%s) = % x, want % x", c.ask, got, want)
		}
	}
}

func TestEngine20PCRs(t *testing.T) {
	e := started20(t)
	read := func(pcr int) string {
		t.Helper()
		sel := [3]byte{}
		sel[pcr/8] = 1 << (pcr % 8)
		got := e.Command(0, cmd20(ccPCRRead, fmt.Sprintf("00000001 000b 03 %x", sel)))
		if resultOf(got) != 0 || len(got) != tpmHeader+4+4+6+4+2+32 {
			t.Fatalf("PCR_Read %d = % x", pcr, got)
		}
		return fmt.Sprintf("%x", got[len(got)-32:])
	}
	if a, b := read(0), read(17); a != zeros32 || b != strings.Repeat("ff", 32) {
		t.Errorf("PCRs 0 and 17 = %s, %s, want zeros and ones", a, b)
	}
	digest := sha256.Sum256([]byte("x"))
	extend := pw20(ccPCRExtend, "00000010", fmt.Sprintf("00000001 000b %x", digest))
	if got, want := e.Command(0, extend), unhex("8002 00000013 00000000 00000000 0000 01 0000"); !bytes.Equal(got, want) {
		t.Errorf("PCR_Extend = % x, want % x", got, want)
	}
	want := sha256.Sum256(append(make([]byte, 32), digest[:]...))
	if got := read(16); got != fmt.Sprintf("%x", want) {
		t.Errorf("PCR 16 = %s, want %x", got, want)
	}
	// The state outlives the power, once it was saved.
	if rc := resultOf(e.Command(0, cmd20(ccShutdown, "0001"))); rc != 0 {
		t.Errorf("Shutdown = %#x", rc)
	}
	e.PowerOn()
	if rc := resultOf(e.Command(0, cmd20(ccStartup, "0001"))); rc != 0 {
		t.Errorf("Startup to the saved state = %#x, want 0", rc)
	}
	if got := read(16); got != fmt.Sprintf("%x", want) {
		t.Errorf("PCR 16 = %s after Startup, want %x", got, want)
	}
	if rc := resultOf(e.Command(0, pw20(ccPCRReset, "00000010", ""))); rc != 0 || read(16) != zeros32 {
		t.Errorf("PCR_Reset = %#x, PCR 16 = %s, want zeros", rc, read(16))
	}
	// Localities have PCRs of their own.
	if rc := resultOf(e.Command(2, pw20(ccPCRReset, "00000015", ""))); rc != 0 || read(21) != zeros32 {
		t.Errorf("PCR_Reset of 21 in locality 2 = %#x, PCR 21 = %s, want zeros", rc, read(21))
	}
	// All of them: as many as fit, and which those are.
	got := e.Command(0, cmd20(ccPCRRead, "00000002 0004 03 ffffff 000d 03 ffffff"))
	if resultOf(got) != 0 || !bytes.Equal(got[14:30], unhex("00000002 0004 03 ff0000 000d 03 000000")) || number(got[30:34]) != 8 || len(got) != 34+8*(2+20) {
		t.Errorf("PCR_Read of all = % x, want the first eight", got)
	}
}
