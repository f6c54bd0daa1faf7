package attest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/ring3dev/ring3/tpmdd/measure"
)

// authority is who makes TPMs.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{key: key, cert: &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "maker"}, IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}}
	der := a.sign(t, a.cert, key.Public())
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *authority) sign(t *testing.T, c *x509.Certificate, key crypto.PublicKey) []byte {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, key, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// ek certifies an endorsement key, with the critical alternative name that such certificates have.
func (a *authority) ek(t *testing.T, key crypto.PublicKey) []byte {
	t.Helper()
	// a sequence of a directoryName with nothing in it
	san := []byte{0x30, 0x04, 0xa4, 0x02, 0x30, 0x00}
	return a.sign(t, &x509.Certificate{SerialNumber: big.NewInt(2), KeyUsage: x509.KeyUsageKeyEncipherment,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtraExtensions: []pkix.Extension{{Id: oidSAN, Critical: true, Value: san}}}, key)
}

func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

// store puts a certificate where a maker puts it, with room behind it.
func (mc *machine) store(t *testing.T, index tpm2.TPMHandle, der []byte) {
	t.Helper()
	der = append(der, make([]byte, 100)...)
	pub := tpm2.TPMSNVPublic{NVIndex: index, NameAlg: tpm2.TPMAlgSHA256, DataSize: uint16(len(der)),
		Attributes: tpm2.TPMANV{OwnerWrite: true, AuthRead: true, OwnerRead: true, NoDA: true, NT: tpm2.TPMNTOrdinary}}
	if _, err := (tpm2.NVDefineSpace{AuthHandle: tpm2.TPMRHOwner, PublicInfo: tpm2.New2B(pub)}).Execute(mc); err != nil {
		t.Fatal(err)
	}
	for at := 0; at < len(der); at += nvChunk {
		rsp, err := tpm2.NVReadPublic{NVIndex: index}.Execute(mc) // the name changes with the first write
		if err != nil {
			t.Fatal(err)
		}
		if _, err := (tpm2.NVWrite{AuthHandle: tpm2.TPMRHOwner, NVIndex: tpm2.NamedHandle{Handle: index, Name: rsp.NVName},
			Data: tpm2.TPM2BMaxNVBuffer{Buffer: der[at:min(at+nvChunk, len(der))]}, Offset: uint16(at)}).Execute(mc); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCertificate(t *testing.T) {
	for _, alg := range []tpm2.TPMAlgID{tpm2.TPMAlgRSA, tpm2.TPMAlgECC} {
		mc := start(t, measure.Options{}, known)
		index := tpm2.TPMHandle(nvRSACert)
		if alg == tpm2.TPMAlgECC {
			mc.x, index = without{mc.tpm, uint16(tpm2.TPMAlgRSA)}, nvECCCert
		}
		id, err := mc.Identity()
		if err != nil {
			t.Fatal(err)
		}
		ek, err := ParsePublic(id.EK)
		if err != nil {
			t.Fatal(err)
		}
		maker, other := newAuthority(t), newAuthority(t)
		mc.store(t, index, maker.ek(t, ek.Key))
		q, w := mc.attest(t)
		w.EKs, w.Roots = nil, maker.pool()
		problems(t, Verify(q, w))
		w.Roots = other.pool()
		problems(t, Verify(q, w), "signed by unknown authority")
		w.Roots = maker.pool()
		w.Expect.Identity.EKCertificate = maker.ek(t, other.key.Public())
		problems(t, Verify(q, w), "is for another key")
		w.Expect.Identity.EKCertificate = nil
		problems(t, Verify(q, w), "the TPM has no certificate for it")
		w.Expect.Identity.EKCertificate = []byte("x")
		problems(t, Verify(q, w), "its certificate: x509")
	}
}
