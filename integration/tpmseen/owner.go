package tpmseen

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1" // TPM 1.2 has nothing else
	"encoding/binary"
	"math/big"
	"testing"

	"golang.org/x/sys/unix"
)

// CreateEK makes a TPM 1.2's endorsement key (part 3, 14.1).
func CreateEK(t testing.TB) {
	t.Helper()
	ek := Unhex("00c1 00000036 00000078 0000000000000000000000000000000000000000 00000001 0003 0001 0000000c 00000800 00000002 00000000")
	if a := exchange12(t, ek); code12(a) != 0 {
		t.Fatalf("TPM_CreateEndorsementKeyPair answers %x", a)
	}
}

// exchange12 sends a command by /dev/tpm0.
func exchange12(t testing.TB, cmd []byte) []byte {
	t.Helper()
	fd, err := unix.Open("/dev/tpm0", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("/dev/tpm0: %v", err)
	}
	defer unix.Close(fd)
	if n, err := unix.Write(fd, cmd); n != len(cmd) {
		t.Fatalf("writing %x: %d, %v", cmd, n, err)
	}
	a := make([]byte, 4096)
	n, err := unix.Read(fd, a)
	if err != nil || n < 10 {
		t.Fatalf("reading the answer to %x: %d, %v", cmd, n, err)
	}
	return a[:n]
}

// code12 is an answer's result.
func code12(answer []byte) uint32 { return binary.BigEndian.Uint32(answer[6:]) }

// TakeOwnership makes an owner whose secret is 20 zeros (TPM 1.2 part 3, 6.1).
func TakeOwnership(t testing.TB) {
	t.Helper()
	pub := exchange12(t, Unhex("00c1 0000001e 0000007c 0000000000000000000000000000000000000000")) // TPM_ReadPubek
	if code12(pub) != 0 || len(pub) < 38+256 {
		t.Fatalf("TPM_ReadPubek answers %x", pub)
	}
	var secret, odd [20]byte
	key := &rsa.PublicKey{N: new(big.Int).SetBytes(pub[38 : 38+256]), E: 65537}
	body := Unhex("0000000d 0005")
	for range 2 { // the owner's secret, and the storage root key's
		c, err := rsa.EncryptOAEP(sha1.New(), rand.Reader, key, secret[:], []byte("TCPA"))
		if err != nil {
			t.Fatal(err)
		}
		body = append(binary.BigEndian.AppendUint32(body, uint32(len(c))), c...)
	}
	// TPM_KEY: a storage key of 2048 bits.
	body = append(body, Unhex("01010000 0011 00000000 01 00000001 0003 0001 0000000c 00000800 00000002 00000000 00000000 00000000 00000000")...)
	session := exchange12(t, Unhex("00c1 0000000a 0000000a")) // TPM_OIAP
	if code12(session) != 0 || len(session) < 34 {
		t.Fatalf("TPM_OIAP answers %x", session)
	}
	digest := sha1.Sum(body)
	mac := hmac.New(sha1.New, secret[:])
	mac.Write(digest[:])
	mac.Write(session[14:34])
	mac.Write(odd[:])
	mac.Write([]byte{0})
	auth := append(append(session[10:14:14], odd[:]...), 0)
	body = append(append(body, auth...), mac.Sum(nil)...)
	cmd := append(binary.BigEndian.AppendUint32(Unhex("00c2"), uint32(6+len(body))), body...)
	if a := exchange12(t, cmd); code12(a) != 0 {
		t.Fatalf("TPM_TakeOwnership answers %x", a)
	}
}
