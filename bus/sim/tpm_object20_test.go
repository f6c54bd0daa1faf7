package sim

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"testing"
)

// Objects: three of them, flushed and loaded again as often as one likes.
func TestEngine20Objects(t *testing.T) {
	e := started20(t)
	do := func(want uint32, cmd []byte) []byte {
		t.Helper()
		got := e.Command(0, cmd)
		if rc := resultOf(got); rc != want {
			t.Fatalf("Command(% x) = %#x, want %#x", cmd, rc, want)
		}
		return got[tpmHeader:]
	}
	list := func(want string) {
		t.Helper()
		got := do(0, cmd20(ccGetCapability, "00000001 80000000 000000ff"))[9:]
		if !bytes.Equal(got, unhex(want)) {
			t.Errorf("transient handles = % x, want %s", got, want)
		}
	}
	start := cmd20(ccHashSequenceStart, "0000 000b")
	for i := range uint32(3) {
		if h := number(do(0, start)); h != firstObject+i {
			t.Errorf("HashSequenceStart = %#x, want %#x", h, firstObject+i)
		}
	}
	do(rcObjectMemory, start)
	list("80000000 80000001 80000002")
	do(0, pw20(ccSequenceUpdate, "80000001", "0002 6162"))
	saved := do(0, cmd20(ccContextSave, "80000001"))
	list("80000000 80000001 80000002") // saving changes nothing
	do(rcObjectMemory, cmd20(ccContextLoad, fmt.Sprintf("%x", saved)))
	do(0, cmd20(ccFlushContext, "80000001"))
	do(0, cmd20(ccFlushContext, "80000000"))
	list("80000002")
	do(0x910, pw20(ccSequenceUpdate, "80000001", "0002 6162"))
	want := sha256.Sum256([]byte("abc"))
	for range 2 {
		if h := number(do(0, cmd20(ccContextLoad, fmt.Sprintf("%x", saved)))); h != firstObject {
			t.Errorf("ContextLoad = %#x, want the first free handle", h)
		}
		got := do(0, pw20(ccSequenceComplete, "80000000", "0001 63 40000007"))
		if !bytes.Equal(got[6:38], want[:]) {
			t.Errorf("SequenceComplete = % x, want %x in it", got, want)
		}
	}
	list("80000002")
	bad := bytes.Clone(saved)
	bad[len(bad)-1] ^= 1
	do(0x1df, cmd20(ccContextLoad, fmt.Sprintf("%x", bad)))
	// Contexts of before the power was off are no more.
	e.PowerOn()
	do(0, cmd20(ccStartup, "0000"))
	list("")
	do(0x1df, cmd20(ccContextLoad, fmt.Sprintf("%x", saved)))
}

// Sessions: three loaded, 64 in all, each saved and loaded in turn.
func TestEngine20Sessions(t *testing.T) {
	e := started20(t)
	do := func(want uint32, cmd []byte) []byte {
		t.Helper()
		got := e.Command(0, cmd)
		if rc := resultOf(got); rc != want {
			t.Fatalf("Command(% x) = %#x, want %#x", cmd, rc, want)
		}
		return got[tpmHeader:]
	}
	list := func(kind, want string) {
		t.Helper()
		got := do(0, cmd20(ccGetCapability, "00000001"+kind+"000000 000000ff"))[9:]
		if !bytes.Equal(got, unhex(want)) {
			t.Errorf("handles of kind %s = % x, want %s", kind, got, want)
		}
	}
	start := func(kind string) []byte {
		return cmd20(ccStartAuthSession, "40000007 40000007 0010 00000000000000000000000000000000 0000"+kind+"0010 000b")
	}
	if got := do(0, start("01")); number(got[:4]) != 0x03000000 || len(got) != 4+2+16 {
		t.Errorf("StartAuthSession = % x, want handle 0x03000000 and a nonce of 16 bytes", got)
	}
	do(0, start("00"))
	do(0, start("03"))
	do(rcSessionMemory, start("01"))
	list("02", "03000000 02000001 03000002")
	do(0, cmd20(ccPolicyGetDigest, "03000000"))
	do(0x184, cmd20(ccPolicyGetDigest, "02000001"))
	old := do(0, cmd20(ccContextSave, "03000000"))
	list("02", "02000001 03000002")
	list("03", "02000000")
	do(0x910, cmd20(ccPolicyGetDigest, "03000000"))
	if h := number(do(0, cmd20(ccContextLoad, fmt.Sprintf("%x", old)))[:4]); h != 0x03000000 {
		t.Errorf("ContextLoad = %#x, want the handle as before", h)
	}
	do(0x1cb, cmd20(ccContextLoad, fmt.Sprintf("%x", old))) // it is loaded
	do(0, cmd20(ccContextSave, "03000000"))
	do(0x1cb, cmd20(ccContextLoad, fmt.Sprintf("%x", old))) // there is a newer one
	do(0, cmd20(ccFlushContext, "03000000"))                // saved, and gone all the same
	do(0x1cb, cmd20(ccFlushContext, "03000000"))
	list("03", "")
	// A session may come with a command that needs no authorization, but authorizes nothing.
	if got, want := do(0, command(tagSessions, ccGetRandom, "00000009 02000001 0000 01 0000 0002")), 4+4+5; len(got) != want {
		t.Errorf("GetRandom with a session = % x, want %d bytes", got, want)
	}
	do(0x98e, command(tagSessions, ccPCRReset, "00000010 00000009 02000001 0000 01 0000"))
	n := 2
	for ; n < maxSessions; n++ {
		h := do(0, start("01"))[:4]
		do(0, cmd20(ccContextSave, fmt.Sprintf("%x", h)))
	}
	do(0, cmd20(ccContextSave, "02000001"))
	do(rcSessionHandles, start("01"))
}

// An answer never is longer than the TPM says.
func TestEngine20LongestAnswer(t *testing.T) {
	e := started20(t)
	for _, cmd := range [][]byte{
		cmd20(ccGetCapability, "00000002 00000000 ffffffff"), cmd20(ccGetCapability, "00000006 00000000 ffffffff"),
		cmd20(ccPCRRead, "00000004 000d03ffffff 000d03ffffff 000d03ffffff 000d03ffffff"),
	} {
		if got := e.Command(0, cmd); resultOf(got) != 0 || len(got) > tpmMax {
			t.Errorf("Command(% x) = %d bytes, % x", cmd, len(got), got[:20])
		}
	}
}
