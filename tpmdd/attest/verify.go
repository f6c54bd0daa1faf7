package attest

import (
	"bytes"
	"crypto/subtle"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"github.com/ring3dev/ring3/tpmdd/measure"
)

func bigInt(p []byte) *big.Int { return new(big.Int).SetBytes(p) }

// Want is what a verifier knows.
type Want struct {
	// Expect is what was kept of a challenge. It binds the AK to an EK, which must be one of EKs or have a certificate
	// that leads to Roots.
	Expect *Expectation
	EKs    []Hex // fingerprints
	Roots  *x509.CertPool

	// Nonce and AK (a name) are enough where the AK was bound before. They are not used with Expect.
	Nonce Hex
	AK    Hex

	// PCR and Bank are where the log must lead. They are the verifier's choice: an attester can extend other PCRs as it likes,
	// and may have a bank of a broken algorithm. 0: measure.DefaultPCR, and measure.SHA256.
	PCR  int
	Bank measure.Bank

	// DB has what is known; nil: digests are listed and not judged.
	DB *measure.Database
}

// Entry is an entry of the log, for people.
type Entry struct {
	PCR    int    `json:"pcr"`
	Digest string `json:"digest"` // "sha256:" and hexadecimal digits
	Name   string `json:"name"`
	Data   []byte `json:"data,omitempty"`  // of a configuration
	Known  string `json:"known,omitempty"` // its name in the database
}

// Report is what came out.
type Report struct {
	OK       bool        `json:"ok"`
	Problems []string    `json:"problems"`
	EK       Hex         `json:"ek,omitempty"` // fingerprint
	AK       Hex         `json:"ak,omitempty"` // name
	Bank     string      `json:"bank"`
	PCRs     map[int]Hex `json:"pcrs"`
	Resets   uint32      `json:"resets"` // of the TPM, as it counts them
	Entries  []Entry     `json:"entries"`
}

func (r *Report) problem(what, format string, args ...any) {
	r.Problems = append(r.Problems, what+": "+fmt.Sprintf(format, args...))
}

// Verify judges a quote.
func Verify(q *Quote, w Want) *Report {
	if w.PCR == 0 {
		w.PCR = measure.DefaultPCR
	}
	if w.Bank == 0 {
		w.Bank = measure.SHA256
	}
	r := &Report{Problems: []string{}, Bank: q.Bank, PCRs: q.PCRs, Entries: []Entry{}}
	ak := r.checkAK(q)
	nonce := w.Nonce
	if w.Expect != nil {
		nonce = w.Expect.Nonce
		r.checkEK(w)
		r.checkBinding(q, w.Expect, ak)
	} else if ak != nil && !bytes.Equal(ak.Name, w.AK) {
		r.problem("ak", "its name is %s: want %s, the one known", ak.Name, orNone(w.AK))
	}
	if info := r.checkAttest(q, ak, nonce); info != nil {
		r.checkPCRs(q, info, w)
	}
	r.checkLog(q, w)
	r.OK = len(r.Problems) == 0
	return r
}

func orNone(h Hex) string {
	if len(h) == 0 {
		return "none"
	}
	return h.String()
}

// checkAK looks at the attestation key itself; nil where it is none.
func (r *Report) checkAK(q *Quote) *Public {
	ak, err := ParsePublic(q.AK)
	if err != nil {
		r.problem("ak", "%v", err)
		return nil
	}
	r.AK = ak.Name
	for _, bad := range ak.notAK() {
		r.problem("ak", "%s", bad)
	}
	return ak
}

// checkEK asks whether the endorsement key is one that the verifier knows.
func (r *Report) checkEK(w Want) {
	id := w.Expect.Identity
	ek, err := ParsePublic(id.EK)
	if err == nil {
		r.EK, err = ek.Fingerprint()
	}
	if err != nil {
		r.problem("ek", "%v", err)
		return
	}
	for _, bad := range ek.notEK() {
		r.problem("ek", "%s", bad)
	}
	if slices.ContainsFunc(w.EKs, func(f Hex) bool { return bytes.Equal(f, r.EK) }) {
		return
	}
	switch {
	case w.Roots != nil:
		if err := checkCertificate(id.EKCertificate, ek, w.Roots); err != nil {
			r.problem("ek", "fingerprint %s: %v", r.EK, err)
		}
	case len(w.EKs) > 0:
		r.problem("ek", "fingerprint %s: want %s", r.EK, w.EKs)
	default:
		r.problem("ek", "fingerprint %s: nothing says that it is a known TPM's: want a fingerprint or roots to compare with", r.EK)
	}
}

// oidSAN is the subject's alternative name. An EK's certificate has the TPM's maker and model there, and marks
// it critical; crypto/x509 does not know that form.
var oidSAN = asn1.ObjectIdentifier{2, 5, 29, 17}

func checkCertificate(der []byte, ek *Public, roots *x509.CertPool) error {
	if len(der) == 0 {
		return errors.New("the TPM has no certificate for it")
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return fmt.Errorf("its certificate: %w", err)
	}
	has, err := (&Public{Key: cert.PublicKey}).Fingerprint()
	if err != nil {
		return fmt.Errorf("its certificate: %w", err)
	}
	if want, err := ek.Fingerprint(); err != nil || !bytes.Equal(has, want) {
		return fmt.Errorf("its certificate, of %q, is for another key, of fingerprint %s", cert.Subject, has)
	}
	return verifyChain(cert, roots)
}

func verifyChain(cert *x509.Certificate, roots *x509.CertPool) error {
	cert.UnhandledCriticalExtensions = slices.DeleteFunc(cert.UnhandledCriticalExtensions, oidSAN.Equal)
	if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, Intermediates: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		return fmt.Errorf("its certificate: %w", err)
	}
	return nil
}

// checkBinding asks whether the AK is in the EK's TPM: whoever has the secret had both.
func (r *Report) checkBinding(q *Quote, e *Expectation, ak *Public) {
	if ak != nil && !bytes.Equal(q.AK, e.Identity.AK) {
		want := "an unreadable one"
		if k, err := ParsePublic(e.Identity.AK); err == nil {
			want = k.Name.String()
		}
		r.problem("ak", "its name is %s: want %s, which was challenged", ak.Name, want)
	}
	switch {
	case len(e.Secret) < MinNonce:
		r.problem("ak", "the expectation's secret has %d bytes: want at least %d", len(e.Secret), MinNonce)
	case len(q.Secret) == 0:
		r.problem("ak", "not bound to the EK: the quote does not have the challenge's secret")
	case subtle.ConstantTimeCompare(q.Secret, e.Secret) != 1:
		r.problem("ak", "not bound to the EK: the quote's secret is not the challenge's")
	}
}

// checkAttest checks what was signed, up to the PCRs; nil where it is no quote.
func (r *Report) checkAttest(q *Quote, ak *Public, nonce Hex) *tpm2.TPMSQuoteInfo {
	if ak != nil {
		if err := ak.verify(q.Attest, q.Signature); err != nil {
			r.problem("signature", "not the attestation key's: %v", err)
		}
	}
	if len(q.Attest) < 4 || binary.BigEndian.Uint32(q.Attest) != uint32(tpm2.TPMGeneratedValue) {
		r.problem("attest", "begins with %x: want %x: no TPM made it", q.Attest[:min(4, len(q.Attest))], uint32(tpm2.TPMGeneratedValue))
		return nil
	}
	a, err := tpm2.Unmarshal[tpm2.TPMSAttest](q.Attest)
	if err != nil {
		r.problem("attest", "%v", err)
		return nil
	}
	if a.Type != tpm2.TPMSTAttestQuote {
		r.problem("attest", "type %#x: want %#x, a quote", uint16(a.Type), uint16(tpm2.TPMSTAttestQuote))
		return nil
	}
	r.Resets = a.ClockInfo.ResetCount
	switch {
	case len(nonce) < MinNonce:
		r.problem("nonce", "%d bytes were asked for: want at least %d", len(nonce), MinNonce)
	case !bytes.Equal(a.ExtraData.Buffer, nonce):
		r.problem("nonce", "%x: want %s", a.ExtraData.Buffer, nonce)
	}
	info, err := a.Attested.Quote()
	if err != nil {
		r.problem("attest", "%v", err)
		return nil
	}
	return info
}

// checkPCRs compares the values stated with what was signed.
func (r *Report) checkPCRs(q *Quote, info *tpm2.TPMSQuoteInfo, w Want) {
	bank, pcrs, err := selected(info.PCRSelect)
	if err != nil {
		r.problem("pcrs", "%v", err)
		return
	}
	if bank.String() != q.Bank {
		r.problem("pcrs", "signed are those of the bank %s: the quote states %q", bank, q.Bank)
	}
	if bank != w.Bank {
		r.problem("pcrs", "signed are those of the bank %s: want %s", bank, w.Bank)
	}
	if !slices.Contains(pcrs, w.PCR) {
		r.problem("pcrs", "PCR %s:%d is not signed: want it, what is measured is in it", bank, w.PCR)
	}
	values := make(map[int]Hex)
	for _, n := range pcrs {
		if len(q.PCRs[n]) != bank.Size() {
			r.problem("pcrs", "PCR %s:%d is signed: the quote states %s: want %d bytes", bank, n, orNone(q.PCRs[n]), bank.Size())
		}
		values[n] = q.PCRs[n]
	}
	for n := range q.PCRs {
		if !slices.Contains(pcrs, n) {
			r.problem("pcrs", "PCR %s:%d is stated and not signed", bank, n)
		}
	}
	if got := digest(values); !bytes.Equal(got, info.PCRDigest.Buffer) {
		r.problem("pcrs", "the values stated have the digest %x: %x is signed", got, info.PCRDigest.Buffer)
	}
}

// checkLog replays the log, and judges what it says.
func (r *Report) checkLog(q *Quote, w Want) {
	if err := measure.CheckPCR(w.PCR); err != nil {
		r.problem("log", "%v", err)
	}
	entries, err := measure.Parse(q.Log)
	if err != nil {
		r.problem("log", "%v", err)
		return
	}
	if err := measure.CheckBootAggregate(entries, func(b measure.Bank, n int) []byte {
		if b != w.Bank || b.String() != q.Bank {
			return nil
		}
		return q.PCRs[n]
	}); err != nil {
		r.problem("log", "%v", err)
	}
	for i, e := range entries {
		if e.PCR != w.PCR {
			r.problem("log", "entry %d is of PCR %d: want %d", i, e.PCR, w.PCR)
		}
		r.checkEntry(i, e, w.DB)
	}
	// An empty one too: it gives a PCR that was never extended.
	got, err := measure.Replay(entries, w.PCR, w.Bank)
	if err != nil {
		r.problem("log", "%v", err)
	} else if !bytes.Equal(got, q.PCRs[w.PCR]) {
		r.problem("log", "replayed, it gives PCR %s:%d = %x: the quote has %s", w.Bank, w.PCR, got, orNone(q.PCRs[w.PCR]))
	}
}

func (r *Report) checkEntry(i int, e measure.Entry, db *measure.Database) {
	ev, err := e.Event()
	if err == nil {
		err = e.Check()
	}
	if err != nil {
		r.problem("log", "entry %d: %v", i, err)
		return
	}
	if _, err := measure.ParseBank(ev.Alg); err != nil {
		r.problem("log", "entry %d: %v", i, err)
		return
	}
	out := Entry{PCR: e.PCR, Digest: fmt.Sprintf("%s:%x", ev.Alg, ev.Digest), Name: ev.Name}
	if e.Template == measure.TemplateData {
		out.Data = ev.Buf
	}
	defer func() { r.Entries = append(r.Entries, out) }()
	if e.Violation() {
		r.problem("log", "entry %d is a violation: %q", i, ev.Name)
		return
	}
	if i == 0 && ev.Name == measure.BootAggregate || db == nil {
		return
	}
	known, ok := db.Lookup(ev.Digest)
	if !ok || ev.Alg != measure.SHA256.String() {
		r.problem("database", "entry %d: %q has the digest %s, which is not in %s", i, ev.Name, out.Digest, db)
		return
	}
	out.Known = known
}
