package attest

import (
	"bytes"
	"crypto/rand"
	"encoding/asn1"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/tpmdd/measure"
)

// Lengths of a nonce, and of a challenge's secret.
const (
	MinNonce  = 16
	MaxNonce  = 32
	secretLen = 32
)

// Identity makes the keys and reads the EK's certificate, if there is one.
func (t *TPM) Identity() (_ *Identity, err error) {
	ek, err := t.ek()
	if err != nil {
		return nil, err
	}
	defer t.flush(ek.handle, &err)
	ak, err := t.ak()
	if err != nil {
		return nil, err
	}
	defer t.flush(ak.handle, &err)
	cert, err := t.certificate(ek.pub.Type)
	if err != nil {
		return nil, err
	}
	return &Identity{Kind: KindIdentity, EK: ek.raw, EKCertificate: cert, AK: ak.raw}, nil
}

// NV indices of the EK's certificates (EK Credential Profile 2.5, 2.2.1.4).
const (
	nvRSACert = 0x01c00002
	nvECCCert = 0x01c0000a
	nvChunk   = 512 // bytes a read: any TPM gives that many
)

// certificate reads the certificate of the EK; nil where the TPM has none.
func (t *TPM) certificate(alg tpm2.TPMAlgID) ([]byte, error) {
	index := tpm2.TPMHandle(nvRSACert)
	if alg == tpm2.TPMAlgECC {
		index = nvECCCert
	}
	step := fmt.Sprintf("reading the EK's certificate, NV %#x", uint32(index))
	pub, err := tpm2.NVReadPublic{NVIndex: index}.Execute(t)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return nil, nil
	}
	if err != nil {
		return nil, t.failed(step, err)
	}
	c, err := pub.NVPublic.Contents()
	if err != nil {
		return nil, t.failed(step, err)
	}
	at := tpm2.NamedHandle{Handle: index, Name: pub.NVName}
	var p []byte
	for len(p) < int(c.DataSize) {
		n := min(nvChunk, int(c.DataSize)-len(p))
		rsp, err := tpm2.NVRead{AuthHandle: tpm2.AuthHandle{Handle: index, Name: pub.NVName, Auth: tpm2.PasswordAuth(nil)},
			NVIndex: at, Size: uint16(n), Offset: uint16(len(p))}.Execute(t)
		if err != nil {
			return nil, t.failed(step, err)
		}
		if len(rsp.Data.Buffer) != n {
			return nil, t.failed(step, fmt.Errorf("%d bytes at %d: want %d: %w", len(rsp.Data.Buffer), len(p), n, bus.ErrProtocol))
		}
		p = append(p, rsp.Data.Buffer...)
	}
	// The space may be larger than what is in it.
	var cert asn1.RawValue
	if _, err := asn1.Unmarshal(p, &cert); err != nil {
		return nil, t.failed(step, err)
	}
	return cert.FullBytes, nil
}

// NewChallenge makes the verifier's question for an attester that says it is id, and what to keep for Verify.
func NewChallenge(id Identity) (*Challenge, *Expectation, error) {
	ek, ak, err := id.keys()
	if err != nil {
		return nil, nil, fmt.Errorf("challenge: %w", err)
	}
	enc, err := tpm2.ImportEncapsulationKey(ek.pub)
	if err != nil {
		return nil, nil, fmt.Errorf("challenge: endorsement key: %w", err)
	}
	nonce, secret := make([]byte, MaxNonce), make([]byte, secretLen)
	_, _ = rand.Read(nonce) // never fails: crypto/rand
	_, _ = rand.Read(secret)
	blob, encrypted, err := tpm2.CreateCredential(rand.Reader, enc, ak.Name, secret)
	if err != nil {
		return nil, nil, fmt.Errorf("challenge: encrypting to the endorsement key: %w", err)
	}
	c := &Challenge{Kind: KindChallenge, Nonce: nonce, Credential: tpm2.Marshal(tpm2.TPM2BIDObject{Buffer: blob}),
		Encrypted: tpm2.Marshal(tpm2.TPM2BEncryptedSecret{Buffer: encrypted})}
	return c, &Expectation{Kind: KindExpectation, Nonce: nonce, Secret: secret, Identity: id}, nil
}

// keys reads both keys, of which the EK must be one that can be encrypted to.
func (id Identity) keys() (ek, ak *Public, err error) {
	if ek, err = ParsePublic(id.EK); err != nil {
		return nil, nil, fmt.Errorf("endorsement key: %w", err)
	}
	if bad := ek.notEK(); len(bad) > 0 {
		return nil, nil, fmt.Errorf("endorsement key: %s", bad[0])
	}
	if ak, err = ParsePublic(id.AK); err != nil {
		return nil, nil, fmt.Errorf("attestation key: %w", err)
	}
	return ek, ak, nil
}

// QuoteOptions say what is quoted.
type QuoteOptions struct {
	Nonce     []byte     // MinNonce to MaxNonce bytes; not with a challenge
	Challenge *Challenge // has a nonce of its own
	Bank      measure.Bank
	PCRs      []int // which, beside those that the log is about
	// Log reads the measurement list, in either form; nil for none.
	Log func() ([]byte, error)
}

// quoteTries is how often a quote is made again because a measurement came in between.
const quoteTries = 3

// Quote answers a challenge or a nonce.
func (t *TPM) Quote(o QuoteOptions) (_ *Quote, err error) {
	nonce := o.Nonce
	if o.Challenge != nil {
		nonce = o.Challenge.Nonce
	}
	if len(nonce) < MinNonce || len(nonce) > MaxNonce {
		return nil, t.failed("quote", fmt.Errorf("nonce of %d bytes: want %d to %d", len(nonce), MinNonce, MaxNonce))
	}
	ak, err := t.ak()
	if err != nil {
		return nil, err
	}
	defer t.flush(ak.handle, &err)
	q := &Quote{Kind: KindQuote, AK: ak.raw, Bank: o.Bank.String()}
	if o.Challenge != nil {
		if q.Secret, err = t.activate(ak, o.Challenge); err != nil {
			return nil, err
		}
	}
	for range quoteTries {
		consistent, err := t.fill(q, ak, nonce, o)
		if err != nil {
			return nil, err
		}
		if consistent {
			break
		}
	}
	// A quote that its log does not explain is given all the same: that is for the verifier to see.
	return q, nil
}

// fill quotes once. It says whether PCRs and log fit each other.
func (t *TPM) fill(q *Quote, ak *key, nonce []byte, o QuoteOptions) (bool, error) {
	pcrs := slices.Clone(o.PCRs)
	var entries []measure.Entry
	if o.Log != nil {
		log, err := o.Log()
		if err != nil {
			return false, fmt.Errorf("quote: reading the measurement list: %w", err)
		}
		if entries, err = measure.Parse(log); err != nil {
			return false, fmt.Errorf("quote: %w", err)
		}
		q.Log = measure.Binary(entries)
		pcrs = append(pcrs, logPCRs(entries)...)
	}
	slices.Sort(pcrs)
	pcrs = slices.Compact(pcrs)
	var err error
	if q.PCRs, err = t.ReadPCRs(o.Bank, pcrs); err != nil {
		return false, err
	}
	rsp, err := tpm2.Quote{SignHandle: ak.auth(), QualifyingData: tpm2.TPM2BData{Buffer: nonce}, PCRSelect: selection(o.Bank, pcrs)}.Execute(t)
	if err != nil {
		return false, t.failed("quote", err)
	}
	q.Attest, q.Signature = rsp.Quoted.Bytes(), tpm2.Marshal(rsp.Signature)
	a, err := rsp.Quoted.Contents()
	if err != nil {
		return false, t.failed("quote", err)
	}
	info, err := a.Attested.Quote()
	if err != nil {
		return false, t.failed("quote", err)
	}
	ok := bytes.Equal(info.PCRDigest.Buffer, digest(q.PCRs))
	for _, n := range logPCRs(entries) {
		v, err := measure.Replay(entries, n, o.Bank)
		ok = ok && err == nil && bytes.Equal(v, q.PCRs[n])
	}
	return ok, nil
}

// logPCRs are those that a list is about.
func logPCRs(entries []measure.Entry) []int {
	set := make(map[int]bool)
	for _, e := range entries {
		set[e.PCR] = true
	}
	return slices.Sorted(maps.Keys(set))
}

// activate finds the secret of a challenge, which takes both keys.
func (t *TPM) activate(ak *key, c *Challenge) (_ Hex, err error) {
	const step = "activating the credential"
	blob, err := tpm2.Unmarshal[tpm2.TPM2BIDObject](c.Credential)
	if err != nil {
		return nil, t.failed(step, err)
	}
	secret, err := tpm2.Unmarshal[tpm2.TPM2BEncryptedSecret](c.Encrypted)
	if err != nil {
		return nil, t.failed(step, err)
	}
	ek, err := t.ek()
	if err != nil {
		return nil, err
	}
	defer t.flush(ek.handle, &err)
	// The EK's policy is knowing the endorsement hierarchy's password.
	s, err := t.policy(func(h tpm2.TPMISHPolicy, nonce tpm2.TPM2BNonce) error {
		_, err := tpm2.PolicySecret{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)},
			PolicySession: h, NonceTPM: nonce}.Execute(t)
		return err
	})
	if err != nil {
		return nil, t.failed(step, err)
	}
	defer t.flush(s.Handle(), &err)
	rsp, err := tpm2.ActivateCredential{ActivateHandle: ak.auth(), KeyHandle: tpm2.AuthHandle{Handle: ek.handle, Name: ek.name, Auth: s},
		CredentialBlob: *blob, Secret: *secret}.Execute(t)
	if err != nil {
		return nil, t.failed(step+": it is not for this TPM's keys", err)
	}
	return rsp.CertInfo.Buffer, nil
}

// policy starts a policy session and satisfies it with steps. The caller flushes it.
func (t *TPM) policy(steps func(h tpm2.TPMISHPolicy, nonce tpm2.TPM2BNonce) error, opts ...tpm2.AuthOption) (tpm2.Session, error) {
	s, _, err := tpm2.PolicySession(t, tpm2.TPMAlgSHA256, 16, opts...)
	if err != nil {
		return nil, fmt.Errorf("starting a session: %w", err)
	}
	if err = steps(s.Handle(), s.NonceTPM()); err != nil {
		t.flush(s.Handle(), &err)
		return nil, err
	}
	return s, nil
}
