package rm_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"math/big"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/tpmdd"
	"github.com/ring3dev/ring3/tpmdd/rm"
	"github.com/ring3dev/ring3/tpmdd/swtpmtest"
)

// direct is a TPM, or a space of it, as go-tpm wants it.
type direct struct{ tpmdd.Exchanger }

func (d direct) Send(cmd []byte) ([]byte, error) { return d.Transmit(context.Background(), cmd) }

func start(t testing.TB) (*swtpmtest.TPM, *rm.Manager) {
	t.Helper()
	tpm := swtpmtest.Start(t, tpmdd.TPM20)
	m, err := rm.New(t.Context(), tpm, nil)
	if err != nil {
		t.Fatal(err)
	}
	return tpm, m
}

func open(t testing.TB, m *rm.Manager) direct {
	t.Helper()
	s := m.Open()
	t.Cleanup(func() { s.Close() })
	return direct{s}
}

// primary makes a signing key that nobody else has: unique goes into it.
func primary(x direct, unique uint64) (*tpm2.CreatePrimaryResponse, error) {
	public := signTemplate
	public.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: binary.BigEndian.AppendUint64(make([]byte, 24), unique)},
		Y: tpm2.TPM2BECCParameter{Buffer: make([]byte, 32)},
	})
	return tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(public)}.Execute(x)
}

// publicKey is the key as crypto/ecdsa has it.
func publicKey(p tpm2.TPM2BPublic) (*ecdsa.PublicKey, error) {
	c, err := p.Contents()
	if err != nil {
		return nil, err
	}
	point, err := c.Unique.ECC()
	if err != nil {
		return nil, err
	}
	return &ecdsa.PublicKey{Curve: elliptic.P256(), X: new(big.Int).SetBytes(point.X.Buffer), Y: new(big.Int).SetBytes(point.Y.Buffer)}, nil
}

// sign has the TPM sign, and checks the signature.
func sign(x direct, h tpm2.TPMHandle, name tpm2.TPM2BName, key *ecdsa.PublicKey, session tpm2.Session, what uint64) error {
	digest := sha256.Sum256(binary.BigEndian.AppendUint64(nil, what))
	rsp, err := tpm2.Sign{
		KeyHandle:  tpm2.AuthHandle{Handle: h, Name: name, Auth: session},
		Digest:     tpm2.TPM2BDigest{Buffer: digest[:]},
		Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck},
	}.Execute(x)
	if err != nil {
		return err
	}
	sig, err := rsp.Signature.Signature.ECDSA()
	if err != nil {
		return err
	}
	if !ecdsa.Verify(key, digest[:], new(big.Int).SetBytes(sig.SignatureR.Buffer), new(big.Int).SetBytes(sig.SignatureS.Buffer)) {
		return errors.New("another's key has signed, or signed something else")
	}
	return nil
}

// left lists the handles of a kind that the TPM has.
func left(t testing.TB, x direct, kind uint32) []tpm2.TPMHandle {
	t.Helper()
	rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: kind, PropertyCount: 100}.Execute(x)
	if err != nil {
		t.Fatal(err)
	}
	list, err := rsp.CapabilityData.Data.Handles()
	if err != nil {
		t.Fatal(err)
	}
	return list.Handle
}

func wantEmpty(t testing.TB, tpm *swtpmtest.TPM) {
	t.Helper()
	for what, kind := range map[string]uint32{"transient": 0x80000000, "loaded sessions": 0x02000000, "saved sessions": 0x03000000} {
		if got := left(t, direct{tpm}, kind); len(got) != 0 {
			t.Errorf("%s in the TPM = %#x, want none", what, got)
		}
	}
}

func TestThreeSpaces(t *testing.T) {
	tpm, m := start(t)
	type object struct {
		x   direct
		rsp *tpm2.CreatePrimaryResponse
		key *ecdsa.PublicKey
	}
	var all []object
	spaces := []direct{open(t, m), open(t, m), open(t, m)}
	for i := range 3 {
		for j, x := range spaces {
			rsp, err := primary(x, uint64(10*i+j))
			if err != nil {
				t.Fatalf("object %d of space %d: %v", i, j, err)
			}
			if want := tpm2.TPMHandle(0x80ffffff - i); rsp.ObjectHandle != want {
				t.Errorf("object %d of space %d is 0x%x, want 0x%x", i, j, rsp.ObjectHandle, want)
			}
			key, err := publicKey(rsp.OutPublic)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, object{x, rsp, key})
		}
	}
	for i, o := range all {
		if err := sign(o.x, o.rsp.ObjectHandle, o.rsp.Name, o.key, tpm2.PasswordAuth(nil), uint64(i)); err != nil {
			t.Errorf("object %d: %v", i, err)
		}
	}
	for _, x := range spaces {
		if got := left(t, x, 0x80000000); len(got) != 3 || got[0] < 0x80fffffd || got[2] < 0x80fffffd {
			t.Errorf("GetCapability(transient) = %#x, want the three virtual ones", got)
		}
	}
	wantEmpty(t, tpm)

	// The TPM has no room for a fourth, says so itself, and nothing is lost.
	_, err := primary(spaces[0], 99)
	if !errors.Is(err, tpm2.TPMRCObjectMemory) {
		t.Errorf("fourth object: %v, want TPM_RC_OBJECT_MEMORY", err)
	}
	if _, err := (tpm2.FlushContext{FlushHandle: all[3].rsp.ObjectHandle}).Execute(all[3].x); err != nil {
		t.Errorf("FlushContext = %v", err)
	}
	_, err = tpm2.ReadPublic{ObjectHandle: all[3].rsp.ObjectHandle}.Execute(all[3].x)
	if !errors.Is(err, unix.EINVAL) {
		t.Errorf("ReadPublic of what was flushed = %v, want EINVAL", err)
	}
	if rsp, err := (tpm2.ReadPublic{ObjectHandle: all[6].rsp.ObjectHandle}).Execute(all[6].x); err != nil || string(rsp.Name.Buffer) != string(all[6].rsp.Name.Buffer) {
		t.Errorf("ReadPublic of what was not = %v, %v", rsp, err)
	}
}

// A child, loaded below its parent: two handles of different kinds in one command.
func TestParentAndChild(t *testing.T) {
	tpm, m := start(t)
	x := open(t, m)
	parent, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(x)
	if err != nil {
		t.Fatal(err)
	}
	auth := tpm2.AuthHandle{Handle: parent.ObjectHandle, Name: parent.Name, Auth: tpm2.HMAC(tpm2.TPMAlgSHA256, 16, tpm2.AESEncryption(128, tpm2.EncryptOut))}
	made, err := tpm2.Create{ParentHandle: auth, InPublic: tpm2.New2B(signTemplate)}.Execute(x)
	if err != nil {
		t.Fatal(err)
	}
	child, err := tpm2.Load{ParentHandle: auth, InPrivate: made.OutPrivate, InPublic: made.OutPublic}.Execute(x)
	if err != nil {
		t.Fatal(err)
	}
	if child.ObjectHandle != 0x80fffffe {
		t.Errorf("Load = 0x%x, want 0x80fffffe", child.ObjectHandle)
	}
	key, err := publicKey(made.OutPublic)
	if err != nil {
		t.Fatal(err)
	}
	if err := sign(x, child.ObjectHandle, child.Name, key, tpm2.PasswordAuth(nil), 1); err != nil {
		t.Error(err)
	}
	wantEmpty(t, tpm)
}

// A policy session lives through other programs' commands, ends with its last use, and with its space.
func TestPolicySession(t *testing.T) {
	tpm, m := start(t)
	x, other := open(t, m), open(t, m)
	policy := func(x direct) (tpm2.Session, func() error) {
		s, end, err := tpm2.PolicySession(x, tpm2.TPMAlgSHA256, 16)
		if err != nil {
			t.Fatal(err)
		}
		return s, end
	}
	s, end := policy(x)
	step := func(f func() error) {
		t.Helper()
		if err := f(); err != nil {
			t.Error(err)
		}
		if _, err := primary(other, 1); err != nil {
			t.Errorf("another program: %v", err)
		} else if _, err := (tpm2.FlushContext{FlushHandle: tpm2.TPMHandle(0x80ffffff)}).Execute(other); err != nil {
			t.Error(err)
		}
	}
	for _, cc := range []tpm2.TPMCC{tpm2.TPMCCSign, tpm2.TPMCCSign} {
		step(func() error {
			_, err := tpm2.PolicyCommandCode{PolicySession: s.Handle(), Code: cc}.Execute(x)
			return err
		})
	}
	step(func() error {
		_, err := tpm2.PolicyGetDigest{PolicySession: s.Handle()}.Execute(x)
		return err
	})
	step(end)
	if err := end(); err == nil {
		t.Error("flushing the session again = nil, want an error")
	}
	wantEmpty(t, tpm)

	// Used without continueSession it ends by itself.
	_, err := tpm2.GetRandom{BytesRequested: 4}.Execute(x, tpm2.HMAC(tpm2.TPMAlgSHA256, 16, tpm2.AESEncryption(128, tpm2.EncryptOut)))
	if err != nil {
		t.Error(err)
	}
	wantEmpty(t, tpm)

	// More than a space's slots: the fourth is refused, and the space has none then.
	own := m.Open()
	for range 3 {
		policy(direct{own})
	}
	if got := left(t, direct{tpm}, 0x03000000); len(got) != 3 {
		t.Errorf("saved sessions = %#x, want three", got)
	}
	own.Close()
	wantEmpty(t, tpm)
}

// What a program saves itself it may load again.
func TestContextSave(t *testing.T) {
	tpm, m := start(t)
	x := open(t, m)
	rsp, err := primary(x, 5)
	if err != nil {
		t.Fatal(err)
	}
	saved, err := tpm2.ContextSave{SaveHandle: rsp.ObjectHandle}.Execute(x)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (tpm2.FlushContext{FlushHandle: rsp.ObjectHandle}).Execute(x); err != nil {
		t.Fatal(err)
	}
	loaded, err := tpm2.ContextLoad{Context: saved.Context}.Execute(x)
	if err != nil || loaded.LoadedHandle != rsp.ObjectHandle {
		t.Fatalf("ContextLoad = %v, %v, want 0x%x", loaded, err, rsp.ObjectHandle)
	}
	s, _, err := tpm2.PolicySession(x, tpm2.TPMAlgSHA256, 16)
	if err != nil {
		t.Fatal(err)
	}
	if saved, err = (tpm2.ContextSave{SaveHandle: s.Handle()}).Execute(x); err != nil {
		t.Fatal(err)
	}
	if _, err := (tpm2.PolicyGetDigest{PolicySession: s.Handle()}).Execute(x); err == nil {
		t.Error("PolicyGetDigest with a saved session = nil, want an error")
	}
	if _, err := (tpm2.ContextLoad{Context: saved.Context}).Execute(x); err != nil {
		t.Fatal(err)
	}
	if _, err := (tpm2.PolicyGetDigest{PolicySession: s.Handle()}).Execute(x); err != nil {
		t.Errorf("PolicyGetDigest after loading = %v", err)
	}
	x.Exchanger.(*rm.Space).Close()
	wantEmpty(t, tpm)
}

// TestSixtyFour has 64 programs each make a key of its own and sign with it, over a session of its own, at once.
func TestSixtyFour(t *testing.T) {
	tpm, m := start(t)
	long := 4 * time.Second
	if os.Getenv("RING3_LONG") != "" {
		long = time.Minute
	}
	end := time.Now().Add(long)
	var wg sync.WaitGroup
	var signed, rounds atomic.Int64
	for i := range uint64(64) {
		wg.Go(func() {
			for n := uint64(0); n == 0 || time.Now().Before(end); n++ {
				s := m.Open()
				if err := program(direct{s}, i<<32|n, end, &signed); err != nil {
					t.Errorf("program %d: %v", i, err)
				}
				if err := s.Close(); err != nil {
					t.Errorf("Close() = %v", err)
				}
				rounds.Add(1)
			}
		})
	}
	wg.Wait()
	t.Logf("%d signatures, %d spaces", signed.Load(), rounds.Load())
	wantEmpty(t, tpm)
}

// program makes a key, signs a few times with it, now and then in a session, and leaves without tidying up.
func program(x direct, id uint64, end time.Time, signed *atomic.Int64) error {
	rsp, err := primary(x, id)
	if err != nil {
		return err
	}
	key, err := publicKey(rsp.OutPublic)
	if err != nil {
		return err
	}
	pub, err := tpm2.ReadPublic{ObjectHandle: rsp.ObjectHandle}.Execute(x)
	if err != nil {
		return err
	}
	if string(pub.Name.Buffer) != string(rsp.Name.Buffer) {
		return errors.New("ReadPublic gives another's key")
	}
	session := tpm2.Session(tpm2.PasswordAuth(nil))
	if id%2 == 0 {
		// Never closed: it stays open until the space is closed.
		if session, _, err = tpm2.HMACSession(x, tpm2.TPMAlgSHA256, 16); err != nil {
			return err
		}
	}
	for n := range uint64(8) {
		if err := sign(x, rsp.ObjectHandle, rsp.Name, key, session, id*8+n); err != nil {
			return err
		}
		signed.Add(1)
		if n > 0 && time.Now().After(end) {
			break
		}
	}
	return nil
}
