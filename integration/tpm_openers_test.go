package integration

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"
)

// tpmKey is a key in a TPM that nobody else has.
type tpmKey struct {
	tpm    transport.TPM
	handle tpm2.TPMHandle
	name   tpm2.TPM2BName
	public *ecdsa.PublicKey
}

// newTPMKey makes one: a primary key of ECC, with something random in its template.
func newTPMKey(x transport.TPM) (*tpmKey, error) {
	unique := make([]byte, 32)
	_, _ = rand.Read(unique)
	rsp, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.TPMTPublic{
		Type:    tpm2.TPMAlgECC,
		NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, SignEncrypt: true,
		},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Scheme: tpm2.TPMTECCScheme{
				Scheme:  tpm2.TPMAlgECDSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256}),
			},
			CurveID: tpm2.TPMECCNistP256,
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: unique},
			Y: tpm2.TPM2BECCParameter{Buffer: make([]byte, 32)},
		}),
	})}.Execute(x)
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	public, err := rsp.OutPublic.Contents()
	if err != nil {
		return nil, err
	}
	point, err := public.Unique.ECC()
	if err != nil {
		return nil, err
	}
	return &tpmKey{x, rsp.ObjectHandle, rsp.Name, &ecdsa.PublicKey{
		Curve: elliptic.P256(), X: new(big.Int).SetBytes(point.X.Buffer), Y: new(big.Int).SetBytes(point.Y.Buffer),
	}}, nil
}

// sign has the TPM sign something random, and checks that the answer is to that, and with that key.
func (k *tpmKey) sign(auth tpm2.Session) error {
	digest := make([]byte, 32)
	_, _ = rand.Read(digest)
	rsp, err := tpm2.Sign{
		KeyHandle:  tpm2.AuthHandle{Handle: k.handle, Name: k.name, Auth: auth},
		Digest:     tpm2.TPM2BDigest{Buffer: digest},
		Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck},
	}.Execute(k.tpm)
	if err != nil {
		return fmt.Errorf("signing: %w", err)
	}
	sig, err := rsp.Signature.Signature.ECDSA()
	if err != nil {
		return err
	}
	if !ecdsa.Verify(k.public, digest, new(big.Int).SetBytes(sig.SignatureR.Buffer), new(big.Int).SetBytes(sig.SignatureS.Buffer)) {
		return errors.New("another's key has signed, or signed something else")
	}
	return nil
}

func (k *tpmKey) flush() error {
	_, err := tpm2.FlushContext{FlushHandle: k.handle}.Execute(k.tpm)
	return err
}

// Openers: programs that all have the TPM at once.
const (
	openerPrograms = 8
	openersEach    = 8
	insideOpener   = "RING3_TPM_OPENER" // set in such a program: for how long without pauses
	openersTime    = time.Minute        // with and without
	openersPause   = 4 * time.Second    // between two signatures, once that is over: a fifth of what the TPM can
)

// TestTPMOpeners has 64 openers use /dev/tpmrm0 at once for a minute, from several programs, each with a key of its own and some
// with sessions. They leave the machine to the tests beside this one but for the first seconds, or with RING3_LONG not at all. Nobody sees an answer of another's, and nothing is left in the TPM, though half of them end without a word.
func TestTPMOpeners(t *testing.T) {
	t.Parallel()
	needTools(t)
	rush := 5 * time.Second
	if os.Getenv("RING3_LONG") != "" {
		rush = openersTime
	}
	dir := tpmDir(t)
	env := append(tpmEnv(dir), insideOpener+"="+rush.String(), insideTap+"="+ring3)
	up := startRing3(t, nil, tpmEnv(dir), "up", "tpm0=qemu:tpm-crb")
	var programs sync.WaitGroup
	for range openerPrograms {
		programs.Go(func() {
			cmd := exec.Command(ring3, "shell", "--", "/proc/self/exe", "-test.run=^TestTPMOpenerInside$", "-test.v")
			cmd.Args[3], _ = os.Executable()
			cmd.Env = env
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("a program with %d openers: %v\n%s", openersEach, err, out)
			} else if testing.Verbose() {
				t.Logf("%s", out)
			}
		})
	}
	programs.Wait()
	checkNothingInTPM(t, filepath.Join(dir, "ring3", "r0", "tree", "dev", "tpm0.sock"))
	up.stop(t)
}

// TestTPMOpenerInside is one program of TestTPMOpeners.
func TestTPMOpenerInside(t *testing.T) {
	rush, err := time.ParseDuration(os.Getenv(insideOpener))
	if err != nil {
		t.Skip("part of TestTPMOpeners")
	}
	var signed atomic.Int64
	var openers sync.WaitGroup
	for n := range openersEach {
		openers.Go(func() {
			if err := opener(n, rush, &signed); err != nil {
				t.Errorf("opener %d: %v", n, err)
			}
		})
	}
	openers.Wait()
	t.Logf("%d signatures", signed.Load())
}

// opener has the resource manager for itself and signs, without pauses for as long as rush. Every second one signs with sessions, and every second of
// these ends without tidying up.
func opener(n int, rush time.Duration, signed *atomic.Int64) error {
	f, err := os.OpenFile("/dev/tpmrm0", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	x := transport.FromReadWriter(f)
	key, err := newTPMKey(x)
	if err != nil {
		return err
	}
	auth, endSession := tpm2.PasswordAuth(nil), func() error { return nil }
	if n%2 == 1 {
		if auth, endSession, err = tpm2.HMACSession(x, tpm2.TPMAlgSHA256, 16); err != nil {
			return fmt.Errorf("starting a session: %w", err)
		}
	}
	begin := time.Now()
	for did := 0; did == 0 || time.Since(begin) < openersTime; did++ { // once at least, however slow the machine
		if did > 0 && time.Since(begin) > rush {
			time.Sleep(openersPause)
		}
		if err := key.sign(auth); err != nil {
			return err
		}
		signed.Add(1)
	}
	if n%4 >= 2 {
		return nil
	}
	return errors.Join(endSession(), key.flush())
}

// checkNothingInTPM wants no objects and no sessions in the TPM behind a socket; what is being closed has a moment for it.
func checkNothingInTPM(t *testing.T, socket string) {
	t.Helper()
	x, err := linuxudstpm.Open(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	for what, kind := range map[string]uint32{"objects": 0x80000000, "loaded sessions": 0x02000000, "saved sessions": 0x03000000} {
		for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: kind, PropertyCount: 100}.Execute(x)
			if err != nil {
				t.Fatal(err)
			}
			list, err := rsp.CapabilityData.Data.Handles()
			if err == nil && len(list.Handle) == 0 {
				break
			}
			if time.Now().After(deadline) {
				t.Errorf("%s in the TPM: %#x, %v, want none", what, list, err)
				break
			}
		}
	}
}

// TestTPMSockets has go-tpm use the sockets: tpm0's with a connection for each command, tpmrm0's with one for all.
func TestTPMSockets(t *testing.T) {
	t.Parallel()
	needTools(t)
	dir := tpmDir(t)
	up := startRing3(t, nil, tpmEnv(dir), "up", "--mount", filepath.Join(dir, "tree"), "tpm7=qemu:tpm-tis")
	tpm, rm := filepath.Join(dir, "tree", "dev", "tpm7.sock"), filepath.Join(dir, "tree", "dev", "tpmrm7.sock")
	x, err := linuxudstpm.Open(tpm)
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	tpmScenario(t, x)
	checkNothingInTPM(t, tpm)

	conn, err := net.Dial("unix", rm)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if h := tpmScenario(t, transport.FromReadWriter(conn)); h != 0x80ffffff {
		t.Errorf("a key in the resource manager has the handle %#x, want 0x80ffffff", h)
	}
	// A key that is left behind goes with its connection, and is nobody else's before.
	key, err := newTPMKey(transport.FromReadWriter(conn))
	if err != nil {
		t.Fatal(err)
	}
	other, err := net.Dial("unix", rm)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	theirs := *key
	theirs.tpm = transport.FromReadWriter(other)
	if err := theirs.sign(tpm2.PasswordAuth(nil)); err == nil {
		t.Error("another connection signs with this one's key")
	}
	conn.Close()
	checkNothingInTPM(t, tpm)
	// That a command was refused is told, and nothing else.
	const told = "ring3: tpm: a command from a connection err=\"tpmrm: no object 0x80ffffff here: invalid argument\"\n"
	up.ended = true
	_ = up.cmd.Process.Signal(os.Interrupt)
	if err := up.cmd.Wait(); err != nil || up.stderr.String() != told {
		t.Errorf("ring3 up ended with %v and said %q, want %q", err, up.stderr, told)
	}
}

// tpmScenario makes a key, signs with it and flushes it. It returns the key's handle.
func tpmScenario(t *testing.T, x transport.TPM) tpm2.TPMHandle {
	t.Helper()
	key, err := newTPMKey(x)
	for range 3 {
		if err == nil {
			err = key.sign(tpm2.PasswordAuth(nil))
		}
	}
	if err == nil {
		err = key.flush()
	}
	if err != nil {
		t.Fatal(err)
	}
	return key.handle
}
