package sim

import (
	"bytes"
	"crypto/sha1"
	"testing"
)

func TestEngine12(t *testing.T) {
	e := newEngine(true, false)
	e.PowerOn()
	zeros := "0000000000000000000000000000000000000000"
	for _, c := range []struct {
		what   string
		cmd    []byte
		rc     uint32
		params string // of the answer; "?": not compared
	}{
		{"a command of TPM 2.0", cmd20(ccStartup, "0000"), badTagCode, ""},
		{"nothing", nil, badTagCode, ""},
		{"a header only", cmd12(ord12Startup, "")[:8], rc12BadParamSize, ""},
		{"a length that is wrong", append(cmd12(ord12Startup, "0001"), 0), rc12BadParamSize, ""},
		{"a command before Startup", cmd12(ord12PCRRead, "00000000"), rc12InvalidPostInit, ""},
		{"Startup of no kind", cmd12(ord12Startup, "0009"), rc12BadParameter, ""},
		{"Startup to a state that was not saved", cmd12(ord12Startup, "0002"), tpmFail12, ""},
		{"Startup", cmd12(ord12Startup, "0001"), 0, ""},
		{"Startup again", cmd12(ord12Startup, "0001"), rc12InvalidPostInit, ""},
		{"SelfTestFull", cmd12(ord12SelfTestFull, ""), 0, ""},
		{"ContinueSelfTest", cmd12(ord12ContinueSelfTest, ""), 0, ""},
		{"ContinueSelfTest and more", cmd12(ord12ContinueSelfTest, "00"), rc12BadParamSize, ""},
		{"GetTestResult", cmd12(ord12GetTestResult, ""), 0, "00000000"},
		{"no command", cmd12(0x7fffffff, ""), rc12BadOrdinal, ""},
		{"PCRRead", cmd12(ord12PCRRead, "00000000"), 0, zeros},
		{"PCRRead 17", cmd12(ord12PCRRead, "00000011"), 0, "ffffffffffffffffffffffffffffffffffffffff"},
		{"PCRRead 24", cmd12(ord12PCRRead, "00000018"), rc12BadIndex, ""},
		{"Extend", cmd12(ord12Extend, "00000010"+zeros), 0, "b80de5d138758541c5f05265ad144ab9fa86d1db"}, // SHA-1 of 40 zeros
		{"Extend 24", cmd12(ord12Extend, "00000018"+zeros), rc12BadIndex, ""},
		{"PCRRead 16", cmd12(ord12PCRRead, "00000010"), 0, "b80de5d138758541c5f05265ad144ab9fa86d1db"},
		{"PCR_Reset 16 and 23", cmd12(ord12PCRReset, "0003 000081"), 0, ""},
		{"PCRRead 16 after that", cmd12(ord12PCRRead, "00000010"), 0, zeros},
		{"PCR_Reset 0", cmd12(ord12PCRReset, "0003 010000"), rc12NotResetable, ""},
		{"PCR_Reset of none", cmd12(ord12PCRReset, "0000"), rc12InvalidPCRInfo, ""},
		{"PCR_Reset of none of 24", cmd12(ord12PCRReset, "0003 000000"), rc12InvalidPCRInfo, ""},
		{"PCR_Reset of four bytes", cmd12(ord12PCRReset, "0004 00000000"), rc12InvalidPCRInfo, ""},
		{"PCR_Reset cut short", cmd12(ord12PCRReset, "0003 00"), rc12BadParamSize, ""},
		{"version", cmd12(ord12GetCapability, "00000006 00000000"), 0, "00000004 01010000"},
		{"version info", cmd12(ord12GetCapability, "0000001a 00000000"), 0, "0000000f 0030 01020001 0002 03 52494e33 0000"},
		{"permanent flags", cmd12(ord12GetCapability, "00000004 00000004 00000108"), 0, "00000016 001f 0001000100000101000000000000000000000000"},
		{"volatile flags", cmd12(ord12GetCapability, "00000004 00000004 00000109"), 0, "00000007 0020 0000000000"},
		{"flags of no kind", cmd12(ord12GetCapability, "00000004 00000004 00000110"), rc12BadMode, ""},
		{"PCRs", cmd12(ord12GetCapability, "00000005 00000004 00000101"), 0, "00000004 00000018"},
		{"manufacturer", cmd12(ord12GetCapability, "00000005 00000004 00000103"), 0, "00000004 52494e33"},
		{"owner", cmd12(ord12GetCapability, "00000005 00000004 00000111"), 0, "00000001 00"},
		{"timeouts", cmd12(ord12GetCapability, "00000005 00000004 00000115"), 0, "00000010 000f4240 000f4240 000f4240 000f4240"},
		{"durations", cmd12(ord12GetCapability, "00000005 00000004 00000120"), 0, "0000000c 0007a120 000f4240 001e8480"},
		{"input buffer", cmd12(ord12GetCapability, "00000005 00000004 00000124"), 0, "00000004 00001000"},
		{"a property of none", cmd12(ord12GetCapability, "00000005 00000004 00000999"), rc12BadMode, ""},
		{"a property cut short", cmd12(ord12GetCapability, "00000005 00000002 0101"), rc12BadMode, ""},
		{"a property that is not all there", cmd12(ord12GetCapability, "00000005 00000004 0101"), rc12BadParamSize, ""},
		{"a huge property", cmd12(ord12GetCapability, "00000005 ffffffff 0101"), rc12BadParamSize, ""},
		{"an ordinal", cmd12(ord12GetCapability, "00000001 00000004 00000099"), 0, "00000001 01"},
		{"no ordinal", cmd12(ord12GetCapability, "00000001 00000004 00000001"), 0, "00000001 00"},
		{"GetRandom", cmd12(ord12GetRandom, "00000004"), 0, "?"},
		{"SaveState", cmd12(ord12SaveState, ""), 0, ""},
	} {
		got := e.Command(0, c.cmd)
		if want := tpmAnswer(tagAnswer12, c.rc, unhex(params(c.params, got))...); !bytes.Equal(got, want) {
			t.Errorf("%s: Command(% x) = % x, want % x", c.what, c.cmd, got, want)
		}
	}
}

// params is what is wanted, or, where anything is, what is there.
func params(want string, got []byte) string {
	if want == "?" && len(got) >= tpmHeader {
		const digits = "0123456789abcdef"
		want = ""
		for _, b := range got[tpmHeader:] {
			want += string([]byte{digits[b>>4], digits[b&15]})
		}
	}
	return want
}

// A state that was saved is there after the power was off, once, and unless a PCR was extended since.
func TestEngine12Save(t *testing.T) {
	e := newEngine(true, false)
	do := func(ord uint32, params string) []byte { return e.Command(0, cmd12(ord, params)) }
	e.PowerOn()
	do(ord12Startup, "0001")
	sum := do(ord12Extend, "00000001"+"0000000000000000000000000000000000000001")
	do(ord12SaveState, "")
	e.PowerOn()
	if rc := resultOf(do(ord12Startup, "0002")); rc != 0 {
		t.Errorf("Startup to the saved state = %#x, want 0", rc)
	}
	if got := do(ord12PCRRead, "00000001"); !bytes.Equal(got, sum) {
		t.Errorf("PCRRead = % x, want % x as before", got, sum)
	}
	do(ord12SaveState, "")
	do(ord12Extend, "00000001"+"0000000000000000000000000000000000000001")
	e.PowerOn()
	if rc := resultOf(do(ord12Startup, "0002")); rc != tpmFail12 {
		t.Errorf("Startup to a state that is out of date = %#x, want %#x", rc, tpmFail12)
	}
	if rc := resultOf(do(ord12Startup, "0003")); rc != 0 {
		t.Errorf("Startup, deactivated = %#x, want 0", rc)
	}
	if got := do(ord12GetCapability, "00000004 00000004 00000109"); got[tpmHeader+6] != 1 {
		t.Errorf("volatile flags = % x, want deactivated", got)
	}
}

func TestEngine12Pubek(t *testing.T) {
	nonce := make([]byte, sha1.Size)
	nonce[3] = 7
	e := newEngine(true, false)
	e.PowerOn()
	e.Command(0, cmd12(ord12Startup, "0001"))
	got := e.Command(0, tpmAnswer(tagRequest12, ord12ReadPubek, nonce...))
	if len(got) != tpmHeader+28+256+sha1.Size || resultOf(got) != 0 {
		t.Fatalf("ReadPubek = %d bytes, % x, want a key of 256 bytes", len(got), got)
	}
	key, sum := got[tpmHeader:len(got)-sha1.Size], got[len(got)-sha1.Size:]
	if want := unhex("00000001 0003 0001 0000000c 00000800 00000002 00000000 00000100"); !bytes.HasPrefix(key, want) {
		t.Errorf("the key begins % x, want % x", key[:len(want)], want)
	}
	if want := sha1.Sum(append(bytes.Clone(key), nonce...)); !bytes.Equal(sum, want[:]) {
		t.Errorf("checksum = % x, want % x", sum, want)
	}
	e = newEngine(true, true)
	e.PowerOn()
	e.Command(0, cmd12(ord12Startup, "0001"))
	if rc := resultOf(e.Command(0, tpmAnswer(tagRequest12, ord12ReadPubek, nonce...))); rc != rc12NoEndorsement {
		t.Errorf("ReadPubek without a key = %#x, want %#x", rc, rc12NoEndorsement)
	}
}

// Numbers are the same in each run, and none comes twice.
func TestEngineRandom(t *testing.T) {
	a, b := newEngine(true, false), newEngine(false, false)
	for _, e := range []*engine{a, b} {
		e.PowerOn()
	}
	a.Command(0, cmd12(ord12Startup, "0001"))
	b.Command(0, cmd20(ccStartup, "0000"))
	var x, y []byte
	for range 10 {
		x = append(x, a.Command(0, cmd12(ord12GetRandom, "00000020"))[tpmHeader+4:]...)
		y = append(y, b.Command(0, cmd20(ccGetRandom, "0020"))[tpmHeader+2:]...)
	}
	if !bytes.Equal(x, y) {
		t.Errorf("two TPMs give % x and % x, want the same", x, y)
	}
	if bytes.Equal(x[:32], x[32:64]) {
		t.Errorf("the same number twice: % x", x[:32])
	}
	if n := len(a.Command(0, cmd12(ord12GetRandom, "ffffffff"))); n != tpmMax {
		t.Errorf("GetRandom of all that there is = %d bytes, want %d", n, tpmMax)
	}
	if n := len(b.Command(0, cmd20(ccGetRandom, "ffff"))); n != tpmHeader+2+maxDigest {
		t.Errorf("GetRandom of all that there is = %d bytes, want %d", n, tpmHeader+2+maxDigest)
	}
}
