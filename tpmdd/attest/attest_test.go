package attest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/ring3dev/ring3/tpmdd"
	"github.com/ring3dev/ring3/tpmdd/measure"
	"github.com/ring3dev/ring3/tpmdd/swtpmtest"
)

var allPCRs = []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10}

// machine is an attester that measured something.
type machine struct {
	*TPM
	tpm *swtpmtest.TPM
	m   *measure.Measurer
}

// known is the database of the tests.
const known = "a driver"

func database(t *testing.T, contents ...string) *measure.Database {
	t.Helper()
	var s strings.Builder
	for _, c := range contents {
		e := measure.Known(measure.SHA256.Sum([]byte(c)), "known "+c)
		fmt.Fprintln(&s, e)
	}
	db, err := measure.ReadDatabase(strings.NewReader(s.String()), "known.txt")
	if err != nil {
		t.Fatal(err)
	}
	return db
}

// start measures contents, as driver binaries, on a fresh TPM.
func start(t *testing.T, o measure.Options, contents ...string) *machine {
	t.Helper()
	tpm := swtpmtest.Start(t, tpmdd.TPM20)
	o.Chip, o.Family = tpm, tpmdd.TPM20
	m, err := measure.New(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	mc := &machine{TPM: Open(t.Context(), "tpm0", tpm), tpm: tpm, m: m}
	for i, c := range contents {
		if err := mc.driver(t, fmt.Sprintf("driver%d", i), c); err != nil && o.Policy == measure.PolicyLog {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { mc.checkEmpty(t) })
	return mc
}

// driver measures a file of that content.
func (mc *machine) driver(t *testing.T, name, content string) error {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	return mc.m.File(t.Context(), "/usr/bin/"+name, f)
}

// checkEmpty finds what was left in the TPM.
func (mc *machine) checkEmpty(t *testing.T) {
	t.Helper()
	tpm := Open(context.Background(), "tpm0", mc.tpm)
	for _, first := range []uint32{0x80000000, 0x02000000, 0x03000000} {
		rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: first, PropertyCount: 8}.Execute(tpm)
		if err != nil {
			t.Errorf("listing handles: %v", err)
			continue
		}
		if h, err := rsp.CapabilityData.Data.Handles(); err != nil || len(h.Handle) > 0 {
			t.Errorf("left in the TPM: %x (%v)", h, err)
		}
	}
}

// attest is the whole exchange.
func (mc *machine) attest(t *testing.T) (*Quote, Want) {
	t.Helper()
	id, err := mc.Identity()
	if err != nil {
		t.Fatal(err)
	}
	ch, ex, err := NewChallenge(*id)
	if err != nil {
		t.Fatal(err)
	}
	q, err := mc.Quote(QuoteOptions{Challenge: ch, Bank: measure.SHA256, PCRs: allPCRs, Log: mc.log})
	if err != nil {
		t.Fatal(err)
	}
	ek, err := ParsePublic(id.EK)
	if err != nil {
		t.Fatal(err)
	}
	f, err := ek.Fingerprint()
	if err != nil {
		t.Fatal(err)
	}
	return q, Want{Expect: ex, EKs: []Hex{f}, DB: database(t, known, "mtu=9000")}
}

func (mc *machine) log() ([]byte, error) { return mc.m.Log().Binary(), nil }

// problems wants a report with one problem for each of want, which are parts of them, and no others.
func problems(t *testing.T, r *Report, want ...string) {
	t.Helper()
	if r.OK != (len(r.Problems) == 0) {
		t.Errorf("OK = %v with %d problems", r.OK, len(r.Problems))
	}
	for _, p := range r.Problems {
		if strings.Contains(p, "\n") || !slices.ContainsFunc(want, func(w string) bool { return strings.Contains(p, w) }) {
			t.Errorf("problem %q: want none but %q", p, want)
		}
	}
	for _, w := range want {
		if !slices.ContainsFunc(r.Problems, func(p string) bool { return strings.Contains(p, w) }) {
			t.Errorf("problems %q: want one with %q", r.Problems, w)
		}
	}
}

func TestAttest(t *testing.T) {
	mc := start(t, measure.Options{}, known)
	if err := mc.m.Data(t.Context(), "config:eth0", []byte("mtu=9000")); err != nil {
		t.Fatal(err)
	}
	q, w := mc.attest(t)
	r := Verify(q, w)
	problems(t, r)
	if got := len(r.Entries); got != 3 {
		t.Fatalf("entries = %d, want 3", got)
	}
	if e := r.Entries[1]; e.Name != "/usr/bin/driver0" || e.Known != "known "+known {
		t.Errorf("entry = %+v", e)
	}
	if e := r.Entries[2]; string(e.Data) != "mtu=9000" {
		t.Errorf("entry = %+v", e)
	}
	// From now on a nonce is enough.
	nonce := bytes.Repeat([]byte{7}, 20)
	q, err := mc.Quote(QuoteOptions{Nonce: nonce, Bank: measure.SHA256, PCRs: allPCRs, Log: mc.log})
	if err != nil {
		t.Fatal(err)
	}
	problems(t, Verify(q, Want{Nonce: nonce, AK: r.AK, DB: w.DB}))
	problems(t, Verify(q, Want{Nonce: nonce, AK: bytes.Repeat([]byte{1}, 34)}), "ak: its name is")
	problems(t, Verify(q, Want{Nonce: nonce}), "ak: its name is")
	problems(t, Verify(q, Want{AK: r.AK}), "nonce: 0 bytes")
	// What the verifier wants of the PCR.
	other := Want{Nonce: nonce, AK: r.AK, PCR: 11}
	problems(t, Verify(q, other), "pcrs: PCR sha256:11 is not signed", "of PCR 10: want 11", "log: replayed, it gives PCR sha256:11")
	other.PCR = 16
	problems(t, Verify(q, other), "log: PCR 16: want 10 to 15: any program", "pcrs: PCR sha256:16 is not signed", "of PCR 10: want 16", "log: replayed")
}

// TestOtherBanks quotes what the sha1 and sha384 banks hold: each is extended with its own digests.
func TestOtherBanks(t *testing.T) {
	mc := start(t, measure.Options{}, known)
	for _, b := range []measure.Bank{measure.SHA1, measure.SHA384, measure.SHA512} {
		nonce := bytes.Repeat([]byte{7}, MinNonce)
		q, err := mc.Quote(QuoteOptions{Nonce: nonce, Bank: b, PCRs: []int{10}, Log: mc.log})
		if err != nil {
			t.Logf("bank %s: %v", b, err) // not every TPM has it
			continue
		}
		ak, err := ParsePublic(q.AK)
		if err != nil {
			t.Fatal(err)
		}
		const boot = "log: boot_aggregate: it is over PCRs 0 to 9 of the bank sha256"
		problems(t, Verify(q, Want{Nonce: nonce, AK: ak.Name, Bank: b}), boot)
		problems(t, Verify(q, Want{Nonce: nonce, AK: ak.Name}), boot, fmt.Sprintf("pcrs: signed are those of the bank %s: want sha256", b), "log: replayed")
	}
}

// TestAnotherPCR measures into PCR 11, which the verifier knows, or not.
func TestAnotherPCR(t *testing.T) {
	mc := start(t, measure.Options{PCR: 11}, known)
	q, w := mc.attest(t)
	problems(t, Verify(q, w), "log: entry 0 is of PCR 11: want 10", "log: entry 1 is of PCR 11: want 10")
	w.PCR = 11
	problems(t, Verify(q, w))
}

func TestChallengeOfAnotherTPM(t *testing.T) {
	mc, other := start(t, measure.Options{}), start(t, measure.Options{})
	id, err := other.Identity()
	if err != nil {
		t.Fatal(err)
	}
	mine, err := mc.Identity()
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []Identity{*id, {EK: id.EK, AK: mine.AK}, {EK: mine.EK, AK: id.AK}} {
		ch, _, err := NewChallenge(id)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := mc.Quote(QuoteOptions{Challenge: ch, Bank: measure.SHA256, PCRs: allPCRs}); err == nil || !strings.Contains(err.Error(), "not for this TPM's keys") {
			t.Errorf("Quote = %v, want an error: the challenge is another TPM's", err)
		}
	}
	if _, _, err := NewChallenge(Identity{EK: id.AK, AK: id.AK}); err == nil {
		t.Error("NewChallenge with a signing key as EK: no error")
	}
}

// without hides an algorithm from GetCapability.
type without struct {
	tpmdd.Exchanger
	alg uint16
}

func (w without) Transmit(ctx context.Context, cmd []byte) ([]byte, error) {
	ask := tpmdd.Command(tpmdd.TagNoSessions, uint32(tpm2.TPMCCGetCapability), 0, 0, 0, 0, 0, 0, byte(w.alg>>8), byte(w.alg), 0, 0, 0, 1)
	if bytes.Equal(cmd, ask) {
		return tpmdd.Command(tpmdd.TagNoSessions, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), nil
	}
	return w.Exchanger.Transmit(ctx, cmd)
}

// TestOtherKeys is a TPM without RSA, and one without ECC.
func TestOtherKeys(t *testing.T) {
	for _, alg := range []tpm2.TPMAlgID{tpm2.TPMAlgRSA, tpm2.TPMAlgECC} {
		mc := start(t, measure.Options{}, known)
		mc.x = without{mc.tpm, uint16(alg)}
		q, w := mc.attest(t)
		problems(t, Verify(q, w))
		for _, p := range [][]byte{w.Expect.Identity.EK, q.AK} {
			k, err := ParsePublic(p)
			if err != nil {
				t.Fatal(err)
			}
			if k.pub.Type == alg {
				t.Errorf("a key of the type %#x, which the TPM does not have", uint16(alg))
			}
		}
	}
}

// TestNonces are refused before the TPM is asked.
func TestNonces(t *testing.T) {
	mc := start(t, measure.Options{})
	for _, n := range []int{0, MinNonce - 1, MaxNonce + 1} {
		if _, err := mc.Quote(QuoteOptions{Nonce: make([]byte, n), Bank: measure.SHA256, PCRs: allPCRs}); err == nil {
			t.Errorf("Quote with a nonce of %d bytes: no error", n)
		}
	}
}

// TestQuoteIsMadeAgain when something is measured between reading the log and the quote.
func TestQuoteIsMadeAgain(t *testing.T) {
	mc := start(t, measure.Options{}, known)
	nonce, first := make([]byte, MinNonce), true
	q, err := mc.Quote(QuoteOptions{Nonce: nonce, Bank: measure.SHA256, PCRs: allPCRs, Log: func() ([]byte, error) {
		log, err := mc.log()
		if first {
			first = false
			err = errors.Join(err, mc.m.Data(t.Context(), "late", []byte("mtu=9000")))
		}
		return log, err
	}})
	if err != nil {
		t.Fatal(err)
	}
	ak, err := ParsePublic(q.AK)
	if err != nil {
		t.Fatal(err)
	}
	r := Verify(q, Want{Nonce: nonce, AK: ak.Name})
	problems(t, r)
	if len(r.Entries) != 3 {
		t.Errorf("entries = %d, want 3", len(r.Entries))
	}
}

func TestFiles(t *testing.T) {
	mc := start(t, measure.Options{}, known)
	q, w := mc.attest(t)
	var b bytes.Buffer
	if err := Write(&b, q); err != nil {
		t.Fatal(err)
	}
	var again Quote
	if err := Read(bytes.NewReader(b.Bytes()), &again); err != nil {
		t.Fatal(err)
	}
	problems(t, Verify(&again, w))
	if err := Read(bytes.NewReader(b.Bytes()), new(Sealed)); err == nil || !strings.Contains(err.Error(), `its kind is "ring3 tpm quote"`) {
		t.Errorf("Read of a quote as sealed = %v", err)
	}
	for _, s := range []string{"", "{}", `{"kind":"ring3 tpm quote","x":1}`, b.String() + b.String(), `{"kind":"ring3 tpm quote","secret":"xy"}`} {
		if err := Read(strings.NewReader(s), new(Quote)); err == nil {
			t.Errorf("Read(%.40q): no error", s)
		}
	}
	if _, err := json.Marshal(Verify(q, w)); err != nil {
		t.Error(err)
	}
}

func TestParsePCRs(t *testing.T) {
	for s, want := range map[string]string{"0": "[0]", "0-2,16": "[0 1 2 16]", "3,1,1-2": "[1 2 3]", "23": "[23]"} {
		if got, err := ParsePCRs(s); err != nil || fmt.Sprint(got) != want {
			t.Errorf("ParsePCRs(%q) = %v, %v, want %s", s, got, err, want)
		}
	}
	for _, s := range []string{"", "24", "-1", "2-1", "a", "1,", "0-24"} {
		if got, err := ParsePCRs(s); err == nil {
			t.Errorf("ParsePCRs(%q) = %v, want an error", s, got)
		}
	}
}
