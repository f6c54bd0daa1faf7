package attest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/tpmdd"
)

// TPM is a TPM 2.0 in use. It is a transport.TPM of go-tpm's.
type TPM struct {
	ctx  context.Context
	name string
	x    tpmdd.Exchanger
}

// Open uses a TPM. name is for errors. Commands end with ctx, but for those that clean up.
func Open(ctx context.Context, name string, x tpmdd.Exchanger) *TPM {
	return &TPM{ctx: ctx, name: name, x: x}
}

// Waits before a command is sent again that the TPM could not start. A driver does this too; behind a socket may
// be a TPM without one.
const (
	firstRetry = 20 * time.Millisecond
	lastRetry  = 2 * time.Second
)

// Send does one command.
func (t *TPM) Send(cmd []byte) ([]byte, error) {
	for wait := firstRetry; ; wait *= 2 {
		ans, err := t.x.Transmit(t.ctx, cmd)
		h, ok := tpmdd.ParseHeader(ans)
		// Which of the two a TPM 1.2 finds first differs. A TPM 2.0 has this tag for commands with a wrong one only.
		if err == nil && ok && h.Tag == tpmdd.TagResponse12 && (h.Code == tpmdd.RCBadTag || h.Code == tpmdd.RCBadOrdinal) {
			return nil, fmt.Errorf("it is a TPM 1.2: quotes and seals need a TPM 2.0: %w", bus.ErrNotSupported)
		}
		if err != nil || !ok || h.Code != uint32(tpm2.TPMRCRetry) || wait > lastRetry {
			return ans, err
		}
		select {
		case <-time.After(wait):
		case <-t.ctx.Done():
			return nil, t.ctx.Err()
		}
	}
}

// failed is an error of a step.
func (t *TPM) failed(step string, err error) error {
	return fmt.Errorf("%s: %s: %w", t.name, step, err)
}

// cleanTime bounds cleaning up, which goes on after an interrupt.
const cleanTime = 10 * time.Second

// flush takes a key or a session out of the TPM. It is deferred: a failure is added to err.
func (t *TPM) flush(h tpm2.TPMHandle, err *error) {
	ctx, stop := context.WithTimeout(context.WithoutCancel(t.ctx), cleanTime)
	defer stop()
	if _, e := (tpm2.FlushContext{FlushHandle: h}).Execute(Open(ctx, t.name, t.x)); e != nil {
		*err = errors.Join(*err, t.failed(fmt.Sprintf("flushing %#x", uint32(h)), e))
	}
}

// key is a key that is loaded.
type key struct {
	handle tpm2.TPMHandle
	name   tpm2.TPM2BName
	pub    *tpm2.TPMTPublic
	raw    []byte // TPM2B_PUBLIC
}

// auth uses a key that has an empty password.
func (k *key) auth() tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: k.handle, Name: k.name, Auth: tpm2.PasswordAuth(nil)}
}

// primary makes a hierarchy's key of a template. The caller flushes it.
func (t *TPM) primary(what string, hierarchy tpm2.TPMHandle, template tpm2.TPMTPublic) (*key, error) {
	step := "making the " + what
	rsp, err := tpm2.CreatePrimary{PrimaryHandle: hierarchy, InPublic: tpm2.New2B(template)}.Execute(t)
	if errors.Is(err, tpm2.TPMRCAuthFail) || errors.Is(err, tpm2.TPMRCBadAuth) {
		err = fmt.Errorf("%w: the hierarchy %#x has a password: want none", err, uint32(hierarchy))
	}
	if err != nil {
		return nil, t.failed(step, err)
	}
	k := &key{handle: rsp.ObjectHandle, name: rsp.Name, raw: tpm2.Marshal(rsp.OutPublic)}
	if k.pub, err = rsp.OutPublic.Contents(); err != nil {
		err = t.failed(step, err)
		t.flush(k.handle, &err)
		return nil, err
	}
	return k, nil
}

// has says whether the TPM has an algorithm.
func (t *TPM) has(alg tpm2.TPMAlgID) (bool, error) {
	rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapAlgs, Property: uint32(alg), PropertyCount: 1}.Execute(t)
	if err != nil {
		return false, t.failed("listing algorithms", err)
	}
	algs, err := rsp.CapabilityData.Data.Algorithms()
	if err != nil {
		return false, t.failed("listing algorithms", err)
	}
	return len(algs.AlgProperties) > 0 && algs.AlgProperties[0].Alg == alg, nil
}

// pick takes the first template if the TPM has its algorithm, or the second.
func (t *TPM) pick(a, b tpm2.TPMTPublic) (tpm2.TPMTPublic, error) {
	ok, err := t.has(a.Type)
	if err != nil || ok {
		return a, err
	}
	return b, nil
}

// ek makes the endorsement key.
func (t *TPM) ek() (*key, error) {
	template, err := t.pick(tpm2.RSAEKTemplate, tpm2.ECCEKTemplate)
	if err != nil {
		return nil, err
	}
	return t.primary("endorsement key", tpm2.TPMRHEndorsement, template)
}

// ak makes the attestation key.
func (t *TPM) ak() (*key, error) {
	template, err := t.pick(akTemplate(tpm2.TPMAlgECC), akTemplate(tpm2.TPMAlgRSA))
	if err != nil {
		return nil, err
	}
	return t.primary("attestation key", tpm2.TPMRHEndorsement, template)
}

// srk makes the storage key that secrets are sealed to.
func (t *TPM) srk() (*key, error) {
	template, err := t.pick(tpm2.ECCSRKTemplate, tpm2.RSASRKTemplate)
	if err != nil {
		return nil, err
	}
	return t.primary("storage key", tpm2.TPMRHOwner, template)
}

// akLabel makes our key another than anybody else's of the same template.
const akLabel = "ring3 attestation key"

// akTemplate is a restricted signing key.
func akTemplate(alg tpm2.TPMAlgID) tpm2.TPMTPublic {
	p := tpm2.TPMTPublic{
		Type:    alg,
		NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true, Restricted: true, SignEncrypt: true,
		},
	}
	if alg == tpm2.TPMAlgRSA {
		p.Parameters = tpm2.NewTPMUPublicParms(alg, &tpm2.TPMSRSAParms{
			Scheme: tpm2.TPMTRSAScheme{Scheme: tpm2.TPMAlgRSASSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgRSASSA, &tpm2.TPMSSigSchemeRSASSA{HashAlg: tpm2.TPMAlgSHA256})},
			KeyBits: 2048,
		})
		p.Unique = tpm2.NewTPMUPublicID(alg, &tpm2.TPM2BPublicKeyRSA{Buffer: []byte(akLabel)})
		return p
	}
	p.Parameters = tpm2.NewTPMUPublicParms(alg, &tpm2.TPMSECCParms{
		Scheme: tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgECDSA,
			Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256})},
		CurveID: tpm2.TPMECCNistP256,
	})
	p.Unique = tpm2.NewTPMUPublicID(alg, &tpm2.TPMSECCPoint{X: tpm2.TPM2BECCParameter{Buffer: []byte(akLabel)}})
	return p
}
