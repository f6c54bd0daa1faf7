package attest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/ring3dev/ring3/tpmdd/measure"
)

// FuzzFiles reads each kind of file, and does with it what a verifier does.
func FuzzFiles(f *testing.F) {
	for _, v := range []File{&Identity{EK: []byte{1}}, &Challenge{}, &Expectation{}, &Quote{PCRs: map[int]Hex{1: {2}}}, &Sealed{}} {
		var b bytes.Buffer
		if err := Write(&b, v); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		var id Identity
		if Read(bytes.NewReader(p), &id) == nil {
			if c, e, err := NewChallenge(id); (c == nil) != (err != nil) || (e == nil) != (err != nil) {
				t.Fatalf("NewChallenge = %v, %v, %v", c, e, err)
			}
		}
		var q Quote
		if Read(bytes.NewReader(p), &q) == nil {
			Verify(&q, Want{Expect: &Expectation{}})
		}
		_ = Read(bytes.NewReader(p), new(Challenge))
		_ = Read(bytes.NewReader(p), new(Expectation))
		_ = Read(bytes.NewReader(p), new(Sealed))
	})
}

// FuzzStructures gives Verify and NewChallenge any bytes where TPM structures should be.
func FuzzStructures(f *testing.F) {
	// Templates with keys in them: what is no key goes no further.
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		f.Fatal(err)
	}
	eccKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	real := func(p tpm2.TPMTPublic) []byte {
		if p.Type == tpm2.TPMAlgRSA {
			p.Unique = tpm2.NewTPMUPublicID(p.Type, &tpm2.TPM2BPublicKeyRSA{Buffer: rsaKey.N.Bytes()})
		} else {
			p.Unique = tpm2.NewTPMUPublicID(p.Type, &tpm2.TPMSECCPoint{X: tpm2.TPM2BECCParameter{Buffer: eccKey.X.Bytes()}, Y: tpm2.TPM2BECCParameter{Buffer: eccKey.Y.Bytes()}})
		}
		return tpm2.Marshal(tpm2.New2B(p))
	}
	attest := tpm2.Marshal(tpm2.TPMSAttest{Magic: tpm2.TPMGeneratedValue, Type: tpm2.TPMSTAttestQuote,
		Attested: tpm2.NewTPMUAttest(tpm2.TPMSTAttestQuote, &tpm2.TPMSQuoteInfo{PCRSelect: selection(measure.SHA256, allPCRs)})})
	sig := tpm2.Marshal(tpm2.TPMTSignature{SigAlg: tpm2.TPMAlgECDSA, Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgECDSA,
		&tpm2.TPMSSignatureECC{Hash: tpm2.TPMAlgSHA256, SignatureR: tpm2.TPM2BECCParameter{Buffer: []byte{1}}, SignatureS: tpm2.TPM2BECCParameter{Buffer: []byte{1}}})})
	f.Add(real(tpm2.RSAEKTemplate), real(akTemplate(tpm2.TPMAlgECC)), attest, sig, []byte{})
	f.Add(real(tpm2.ECCEKTemplate), real(akTemplate(tpm2.TPMAlgRSA)), attest, sig, []byte{})
	f.Fuzz(func(t *testing.T, ek, ak, attest, sig, log []byte) {
		id := Identity{EK: ek, AK: ak}
		if c, _, err := NewChallenge(id); (c == nil) != (err != nil) {
			t.Fatalf("NewChallenge = %v, %v", c, err)
		}
		q := &Quote{AK: ak, Attest: attest, Signature: sig, Bank: "sha256", Log: log}
		r := Verify(q, Want{Expect: &Expectation{Identity: id}})
		if r.OK || len(r.Problems) == 0 {
			t.Fatalf("Verify = %+v, want problems", r)
		}
	})
}

// TestEKWithScheme: a storage key has none.
func TestEKWithScheme(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p := tpm2.RSAEKTemplate
	p.Unique = tpm2.NewTPMUPublicID(p.Type, &tpm2.TPM2BPublicKeyRSA{Buffer: key.N.Bytes()})
	p.Parameters = tpm2.NewTPMUPublicParms(p.Type, &tpm2.TPMSRSAParms{
		Symmetric: tpm2.TPMTSymDefObject{Algorithm: tpm2.TPMAlgAES, KeyBits: tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, tpm2.TPMKeyBits(128)),
			Mode: tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB)},
		Scheme: tpm2.TPMTRSAScheme{Scheme: tpm2.TPMAlgOAEP,
			Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgOAEP, &tpm2.TPMSEncSchemeOAEP{HashAlg: tpm2.TPMAlgSHA3512})},
		KeyBits: 2048,
	})
	id := Identity{EK: tpm2.Marshal(tpm2.New2B(p)), AK: tpm2.Marshal(tpm2.New2B(p))}
	if _, _, err := NewChallenge(id); err == nil || !strings.Contains(err.Error(), "a scheme is true") {
		t.Errorf("NewChallenge = %v, want an error about the scheme", err)
	}
}
