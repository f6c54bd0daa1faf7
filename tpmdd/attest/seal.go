package attest

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/google/go-tpm/tpm2"
	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/tpmdd/measure"
)

// Lengths of what is sealed and of its password.
const (
	MaxSecret   = 128 // MAX_SYM_DATA
	MaxPassword = 32  // a SHA-256: that is an authorization value's limit
)

// salted are the options of a session whose key only the TPM that holds k can find, with AES-128 over a parameter.
func salted(k *key, parameter tpm2.AuthOption) []tpm2.AuthOption {
	return []tpm2.AuthOption{tpm2.Salted(k.handle, *k.pub), parameter}
}

// Seal seals a secret to the present values of PCRs and to a password, nil for none.
func (t *TPM) Seal(secret, password []byte, bank measure.Bank, pcrs []int) (_ *Sealed, err error) {
	if len(secret) == 0 || len(secret) > MaxSecret {
		return nil, t.failed("sealing", fmt.Errorf("secret of %d bytes: want 1 to %d", len(secret), MaxSecret))
	}
	if len(password) > MaxPassword {
		return nil, t.failed("sealing", fmt.Errorf("password of %d bytes: want at most %d", len(password), MaxPassword))
	}
	values, err := t.ReadPCRs(bank, pcrs)
	if err != nil {
		return nil, err
	}
	template, err := sealTemplate(values, bank, len(password) > 0)
	if err != nil {
		return nil, t.failed("sealing", err)
	}
	srk, err := t.srk()
	if err != nil {
		return nil, err
	}
	defer t.flush(srk.handle, &err)
	s, _, err := tpm2.HMACSession(t, tpm2.TPMAlgSHA256, 16, salted(srk, tpm2.AESEncryption(128, tpm2.EncryptIn))...)
	if err != nil {
		return nil, t.failed("sealing: starting a session", err)
	}
	defer t.flush(s.Handle(), &err)
	rsp, err := tpm2.Create{
		ParentHandle: tpm2.AuthHandle{Handle: srk.handle, Name: srk.name, Auth: s},
		InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
			UserAuth: tpm2.TPM2BAuth{Buffer: password},
			Data:     tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: secret}),
		}},
		InPublic: tpm2.New2B(*template),
	}.Execute(t)
	if err != nil {
		return nil, t.failed("sealing", err)
	}
	return &Sealed{Kind: KindSealed, Bank: bank.String(), PCRs: values, Password: len(password) > 0, Parent: srk.name.Buffer,
		Public: tpm2.Marshal(rsp.OutPublic), Private: tpm2.Marshal(rsp.OutPrivate)}, nil
}

// sealTemplate is an object that only its policy opens. Where there is a password, guesses count for the lockout.
func sealTemplate(values map[int]Hex, bank measure.Bank, password bool) (*tpm2.TPMTPublic, error) {
	policy, err := tpm2.NewPolicyCalculator(tpm2.TPMAlgSHA256)
	if err != nil {
		return nil, err
	}
	pcrs := slices.Sorted(maps.Keys(values))
	if err := (tpm2.PolicyPCR{PcrDigest: tpm2.TPM2BDigest{Buffer: digest(values)}, Pcrs: selection(bank, pcrs)}).Update(policy); err != nil {
		return nil, err
	}
	if password {
		if err := (tpm2.PolicyAuthValue{}).Update(policy); err != nil {
			return nil, err
		}
	}
	return &tpm2.TPMTPublic{
		Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, NoDA: !password},
		AuthPolicy:       tpm2.TPM2BDigest{Buffer: policy.Hash().Digest},
	}, nil
}

// Unseal gives a secret back.
func (t *TPM) Unseal(f *Sealed, password []byte) (_ []byte, err error) {
	bank, pcrs, err := t.checkSealed(f, password)
	if err != nil {
		return nil, err
	}
	srk, err := t.srk()
	if err != nil {
		return nil, err
	}
	defer t.flush(srk.handle, &err)
	if !bytes.Equal(srk.name.Buffer, f.Parent) {
		return nil, t.failed("unsealing", fmt.Errorf("this TPM's storage key is %x: want %s: it was sealed by another TPM, or this one was cleared: %w", srk.name.Buffer, f.Parent, unix.EPERM))
	}
	private, err := tpm2.Unmarshal[tpm2.TPM2BPrivate](f.Private)
	if err != nil {
		return nil, t.failed("unsealing", err)
	}
	public, err := tpm2.Unmarshal[tpm2.TPM2BPublic](f.Public)
	if err != nil {
		return nil, t.failed("unsealing", err)
	}
	obj, err := tpm2.Load{ParentHandle: srk.auth(), InPrivate: *private, InPublic: *public}.Execute(t)
	if err != nil {
		return nil, t.failed("unsealing: loading the sealed object", err)
	}
	defer t.flush(obj.ObjectHandle, &err)
	opts := append(salted(srk, tpm2.AESEncryption(128, tpm2.EncryptOut)), tpm2.Auth(password))
	s, err := t.policy(func(h tpm2.TPMISHPolicy, _ tpm2.TPM2BNonce) error {
		_, err := tpm2.PolicyPCR{PolicySession: h, Pcrs: selection(bank, pcrs)}.Execute(t)
		if err == nil && f.Password {
			_, err = tpm2.PolicyAuthValue{PolicySession: h}.Execute(t)
		}
		return err
	}, opts...)
	if err != nil {
		return nil, t.failed("unsealing", err)
	}
	defer t.flush(s.Handle(), &err)
	rsp, err := tpm2.Unseal{ItemHandle: tpm2.AuthHandle{Handle: obj.ObjectHandle, Name: obj.Name, Auth: s}}.Execute(t)
	if err != nil {
		return nil, t.failed("unsealing", refusal(err))
	}
	return rsp.OutData.Buffer, nil
}

// refusal says what an error of TPM2_Unseal means.
func refusal(err error) error {
	switch {
	case errors.Is(err, tpm2.TPMRCAuthFail), errors.Is(err, tpm2.TPMRCBadAuth):
		return fmt.Errorf("wrong password: %w (%w)", unix.EPERM, err)
	case errors.Is(err, tpm2.TPMRCLockout):
		return fmt.Errorf("too many wrong passwords, the TPM accepts none for a while: %w (%w)", unix.EPERM, err)
	case errors.Is(err, tpm2.TPMRCPolicyFail), errors.Is(err, tpm2.TPMRCPCRChanged):
		return fmt.Errorf("the PCRs are not those that it was sealed to: %w (%w)", unix.EPERM, err)
	}
	return err
}

// checkSealed finds what can be said before the TPM refuses without reasons: which PCR changed, that a password lacks.
func (t *TPM) checkSealed(f *Sealed, password []byte) (measure.Bank, []int, error) {
	bank, err := measure.ParseBank(f.Bank)
	if err != nil {
		return 0, nil, t.failed("unsealing", err)
	}
	if f.Password != (len(password) > 0) {
		return 0, nil, t.failed("unsealing", fmt.Errorf("password given: %v: want %v: %w", len(password) > 0, f.Password, unix.EPERM))
	}
	pcrs := slices.Sorted(maps.Keys(f.PCRs))
	values, err := t.ReadPCRs(bank, pcrs)
	if err != nil {
		return 0, nil, err
	}
	var changed []string
	for _, n := range pcrs {
		if !bytes.Equal(values[n], f.PCRs[n]) {
			changed = append(changed, fmt.Sprintf("PCR %s:%d is %s, sealed to %s", bank, n, values[n], f.PCRs[n]))
		}
	}
	if len(changed) > 0 {
		return 0, nil, t.failed("unsealing", fmt.Errorf("%s: %w", strings.Join(changed, ", "), unix.EPERM))
	}
	return bank, pcrs, nil
}
