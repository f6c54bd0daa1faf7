package attest

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/tpmdd"
	"github.com/ring3dev/ring3/tpmdd/measure"
)

// recorder remembers all that crosses it, and may end a context at some command.
type recorder struct {
	tpmdd.Exchanger
	seen   [][]byte
	count  int
	cancel context.CancelFunc
	at     int
}

func (b *recorder) Transmit(ctx context.Context, cmd []byte) ([]byte, error) {
	b.count++
	if b.cancel != nil && b.count == b.at {
		b.cancel()
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	ans, err := b.Exchanger.Transmit(ctx, cmd)
	b.seen = append(b.seen, slices.Clone(cmd), slices.Clone(ans))
	return ans, err
}

func TestSeal(t *testing.T) {
	for _, alg := range []tpm2.TPMAlgID{0, tpm2.TPMAlgECC} { // with the storage key's usual type, and the other
		for _, password := range []string{"", "guess me"} {
			mc := start(t, measure.Options{}, known)
			b := &recorder{Exchanger: without{mc.tpm, uint16(alg)}}
			mc.x = b
			secret := bytes.Repeat([]byte("0123456789abcdef"), MaxSecret/16)
			f, err := mc.Seal(secret, []byte(password), measure.SHA256, []int{7, 10})
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if got, err := mc.Unseal(f, []byte(password)); err != nil || !bytes.Equal(got, secret) {
					t.Errorf("Unseal = %q, %v, want %q", got, err, secret)
				}
			}
			for _, p := range b.seen {
				if bytes.Contains(p, secret[:16]) || password != "" && bytes.Contains(p, []byte(password)) {
					t.Errorf("the secret or its password crossed the bus: %q", p)
				}
			}
			// Anything more that is started closes it.
			if err := mc.driver(t, "another", "another"); err != nil {
				t.Fatal(err)
			}
			_, err = mc.Unseal(f, []byte(password))
			if !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "PCR sha256:10 is ") || strings.Contains(err.Error(), "sha256:7") {
				t.Errorf("Unseal after a change = %v, want %v about PCR sha256:10", err, unix.EPERM)
			}
			// A file that says otherwise does not help: the TPM decides.
			now, err := mc.ReadPCRs(measure.SHA256, []int{7, 10})
			if err != nil {
				t.Fatal(err)
			}
			f.PCRs = now
			if got, err := mc.Unseal(f, []byte(password)); !errors.Is(err, unix.EPERM) || !errors.Is(err, tpm2.TPMRCPolicyFail) {
				t.Errorf("Unseal with other PCRs in the file = %q, %v, want %v", got, err, unix.EPERM)
			}
		}
	}
}

func TestSealLimits(t *testing.T) {
	mc := start(t, measure.Options{})
	for _, c := range []struct {
		secret, password int
		pcrs             []int
	}{{0, 0, []int{10}}, {MaxSecret + 1, 0, []int{10}}, {1, MaxPassword + 1, []int{10}}, {1, 0, nil}, {1, 0, []int{24}}} {
		if f, err := mc.Seal(make([]byte, c.secret), make([]byte, c.password), measure.SHA256, c.pcrs); err == nil {
			t.Errorf("Seal(%d bytes, password of %d, PCRs %v) = %v, want an error", c.secret, c.password, c.pcrs, f)
		}
	}
}

func TestWrongPassword(t *testing.T) {
	mc := start(t, measure.Options{})
	f, err := mc.Seal([]byte("x"), []byte("right"), measure.SHA256, []int{10})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := mc.Unseal(f, []byte("wrong")); !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "wrong password") {
		t.Errorf("Unseal with a wrong password = %v", err)
	}
	if _, err := mc.Unseal(f, nil); !errors.Is(err, unix.EPERM) {
		t.Errorf("Unseal without the password = %v", err)
	}
	f.Password = false
	if _, err := mc.Unseal(f, nil); !errors.Is(err, unix.EPERM) {
		t.Errorf("Unseal with a file that says there is none = %v", err)
	}
}

func TestUnsealElsewhere(t *testing.T) {
	mc, other := start(t, measure.Options{}), start(t, measure.Options{})
	f, err := mc.Seal([]byte("x"), nil, measure.SHA256, []int{10})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Unseal(f, nil); !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "another TPM") {
		t.Errorf("Unseal by another TPM = %v", err)
	}
	f.Private[10] ^= 1
	if _, err := mc.Unseal(f, nil); err == nil {
		t.Error("Unseal of an altered file: no error")
	}
}

// TestLockedIsSealedOff: what was sealed before a lock cannot be had after it.
func TestLockedIsSealedOff(t *testing.T) {
	mc := start(t, measure.Options{DB: database(t, known), Policy: measure.PolicyLock}, known)
	f, err := mc.Seal([]byte("x"), nil, measure.SHA256, []int{10})
	if err != nil {
		t.Fatal(err)
	}
	if err := mc.driver(t, "changed", "changed"); !errors.Is(err, unix.EPERM) {
		t.Fatalf("a changed driver: %v, want %v", err, unix.EPERM)
	}
	if _, err := mc.Unseal(f, nil); !errors.Is(err, unix.EPERM) {
		t.Errorf("Unseal after a lock = %v, want %v", err, unix.EPERM)
	}
}

// TestInterruptedLeavesNothing ends the context at each command in turn.
func TestInterruptedLeavesNothing(t *testing.T) {
	mc := start(t, measure.Options{}, known)
	id, err := mc.Identity()
	if err != nil {
		t.Fatal(err)
	}
	ch, _, err := NewChallenge(*id)
	if err != nil {
		t.Fatal(err)
	}
	f, err := mc.Seal([]byte("x"), []byte("p"), measure.SHA256, []int{10})
	if err != nil {
		t.Fatal(err)
	}
	for name, do := range map[string]func(*TPM) error{
		"identity": func(tpm *TPM) error { _, err := tpm.Identity(); return err },
		"quote": func(tpm *TPM) error {
			_, err := tpm.Quote(QuoteOptions{Challenge: ch, Bank: measure.SHA256, PCRs: []int{10}, Log: mc.log})
			return err
		},
		"seal": func(tpm *TPM) error {
			_, err := tpm.Seal([]byte("x"), []byte("p"), measure.SHA256, []int{10})
			return err
		},
		"unseal": func(tpm *TPM) error { _, err := tpm.Unseal(f, []byte("p")); return err },
	} {
		for at := 1; ; at++ {
			ctx, cancel := context.WithCancel(t.Context())
			b := &recorder{Exchanger: mc.tpm, cancel: cancel, at: at}
			err := do(Open(ctx, "tpm0", b))
			cancel()
			mc.checkEmpty(t)
			if b.count < at || err == nil { // it was over before, or only cleaning up was left
				break
			}
			if !errors.Is(err, context.Canceled) {
				t.Errorf("%s, ended at command %d: %v, want %v", name, at, err, context.Canceled)
			}
		}
	}
}
