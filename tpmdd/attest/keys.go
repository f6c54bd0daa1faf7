package attest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// Public is a key's public part.
type Public struct {
	pub  *tpm2.TPMTPublic
	Key  crypto.PublicKey // *rsa.PublicKey or *ecdsa.PublicKey
	Name Hex              // algorithm and hash of the public part
}

// ParsePublic reads a TPM2B_PUBLIC, which must be exactly what a TPM would write: its name is a hash of that.
func ParsePublic(p []byte) (*Public, error) {
	b, err := tpm2.Unmarshal[tpm2.TPM2BPublic](p)
	if err != nil {
		return nil, fmt.Errorf("%d bytes: no TPM2B_PUBLIC: %w", len(p), err)
	}
	pub, err := b.Contents()
	if err != nil {
		return nil, fmt.Errorf("no TPMT_PUBLIC: %w", err)
	}
	if pub.NameAlg != tpm2.TPMAlgSHA256 {
		return nil, fmt.Errorf("name algorithm %#x: want SHA-256", uint16(pub.NameAlg))
	}
	if pub.Type != tpm2.TPMAlgRSA && pub.Type != tpm2.TPMAlgECC {
		return nil, fmt.Errorf("type %#x: want RSA or ECC", uint16(pub.Type))
	}
	if again := tpm2.Marshal(tpm2.New2B(*pub)); !bytes.Equal(again, p) {
		return nil, fmt.Errorf("TPM2B_PUBLIC %x: want %x", p, again)
	}
	name, err := tpm2.ObjectName(pub)
	if err != nil {
		return nil, err
	}
	k := &Public{pub: pub, Name: name.Buffer}
	if k.Key, err = publicKey(pub); err != nil {
		return nil, err
	}
	return k, nil
}

// publicKey is the key, if it is one.
func publicKey(pub *tpm2.TPMTPublic) (crypto.PublicKey, error) {
	key, err := tpm2.Pub(*pub)
	if err != nil {
		return nil, err
	}
	switch key := key.(type) {
	case *rsa.PublicKey:
		if bits := key.N.BitLen(); bits < 2048 || bits > 4096 {
			return nil, fmt.Errorf("RSA key of %d bits: want 2048 to 4096", bits)
		}
	case *ecdsa.PublicKey:
		if _, err := key.ECDH(); err != nil {
			return nil, fmt.Errorf("ECC key: %w", err)
		}
	}
	return key, nil
}

// Fingerprint is the SHA-256 of the key in DER (SubjectPublicKeyInfo).
func (k *Public) Fingerprint() (Hex, error) {
	der, err := x509.MarshalPKIXPublicKey(k.Key)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(der)
	return sum[:], nil
}

// attribute is one that a key must or must not have.
type attribute struct {
	name      string
	has, want bool
}

// wrong lists the attributes that are not as they should be.
func wrong(as []attribute) (out []string) {
	for _, a := range as {
		if a.has != a.want {
			out = append(out, fmt.Sprintf("%s is %v: want %v", a.name, a.has, a.want))
		}
	}
	return out
}

// confined are the attributes that keep a key in the TPM that made it.
func (k *Public) confined() []attribute {
	a := k.pub.ObjectAttributes
	return []attribute{
		{"fixedTPM", a.FixedTPM, true},
		{"fixedParent", a.FixedParent, true},
		{"sensitiveDataOrigin", a.SensitiveDataOrigin, true},
		{"restricted", a.Restricted, true},
	}
}

// notAK says why a key is no attestation key.
func (k *Public) notAK() []string {
	a := k.pub.ObjectAttributes
	return wrong(append(k.confined(), attribute{"sign", a.SignEncrypt, true}, attribute{"decrypt", a.Decrypt, false}))
}

// notEK says why a key is no endorsement key.
func (k *Public) notEK() []string {
	a := k.pub.ObjectAttributes
	return wrong(append(k.confined(), attribute{"decrypt", a.Decrypt, true}, attribute{"sign", a.SignEncrypt, false}, attribute{"a scheme", k.scheme(), false}))
}

// scheme says whether the key is for one scheme only, which a restricted decryption key never is.
func (k *Public) scheme() bool {
	var alg tpm2.TPMAlgID
	if p, err := k.pub.Parameters.RSADetail(); err == nil {
		alg = p.Scheme.Scheme
	} else if p, err := k.pub.Parameters.ECCDetail(); err == nil {
		alg = p.Scheme.Scheme
	}
	return alg != 0 && alg != tpm2.TPMAlgNull
}

// verify checks a TPMT_SIGNATURE over data.
func (k *Public) verify(data, signature []byte) error {
	s, err := tpm2.Unmarshal[tpm2.TPMTSignature](signature)
	if err != nil {
		return fmt.Errorf("no TPMT_SIGNATURE: %w", err)
	}
	sum := sha256.Sum256(data)
	switch key := k.Key.(type) {
	case *rsa.PublicKey:
		r, err := s.Signature.RSASSA()
		if err != nil || s.SigAlg != tpm2.TPMAlgRSASSA || r.Hash != tpm2.TPMAlgSHA256 {
			return fmt.Errorf("signature of scheme %#x by an RSA key: want RSASSA with SHA-256", uint16(s.SigAlg))
		}
		return rsa.VerifyPKCS1v15(key, crypto.SHA256, sum[:], r.Sig.Buffer)
	case *ecdsa.PublicKey:
		e, err := s.Signature.ECDSA()
		if err != nil || s.SigAlg != tpm2.TPMAlgECDSA || e.Hash != tpm2.TPMAlgSHA256 {
			return fmt.Errorf("signature of scheme %#x by an ECC key: want ECDSA with SHA-256", uint16(s.SigAlg))
		}
		if !ecdsa.Verify(key, sum[:], bigInt(e.SignatureR.Buffer), bigInt(e.SignatureS.Buffer)) {
			return errors.New("ECDSA verification error")
		}
		return nil
	}
	return fmt.Errorf("key of type %T: want RSA or ECC", k.Key)
}
