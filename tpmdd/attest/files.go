package attest

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Hex is bytes that are hexadecimal in JSON.
type Hex []byte

// MarshalText writes hexadecimal digits.
func (h Hex) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, h), nil }

// UnmarshalText reads hexadecimal digits.
func (h *Hex) UnmarshalText(p []byte) error {
	b, err := hex.AppendDecode(nil, p)
	if err != nil {
		return fmt.Errorf("%.80q: want hexadecimal digits", p)
	}
	*h = b
	return nil
}

func (h Hex) String() string { return hex.EncodeToString(h) }

// Kind says what a file is, so that no file is taken for another.
type Kind string

// Kinds.
const (
	KindIdentity    Kind = "ring3 tpm identity"
	KindChallenge   Kind = "ring3 tpm challenge"
	KindExpectation Kind = "ring3 tpm expectation"
	KindQuote       Kind = "ring3 tpm quote"
	KindSealed      Kind = "ring3 tpm sealed"
)

// Identity is what an attester says of itself. TPM structures in files are as a TPM marshals them, in base64.
type Identity struct {
	Kind          Kind   `json:"kind"`
	EK            []byte `json:"ek"`                       // TPM2B_PUBLIC
	EKCertificate []byte `json:"ek_certificate,omitempty"` // DER
	AK            []byte `json:"ak"`                       // TPM2B_PUBLIC
}

// Challenge asks for a quote, and for proof that the AK and the EK are in one TPM.
type Challenge struct {
	Kind       Kind   `json:"kind"`
	Nonce      Hex    `json:"nonce"`
	Credential []byte `json:"credential"` // TPM2B_ID_OBJECT
	Encrypted  []byte `json:"encrypted"`  // TPM2B_ENCRYPTED_SECRET
}

// Expectation is what a verifier keeps of a challenge. It is secret until the quote is there.
type Expectation struct {
	Kind     Kind     `json:"kind"`
	Nonce    Hex      `json:"nonce"`
	Secret   Hex      `json:"secret"`
	Identity Identity `json:"identity"`
}

// Quote is an attester's answer.
type Quote struct {
	Kind      Kind        `json:"kind"`
	AK        []byte      `json:"ak"`        // TPM2B_PUBLIC
	Attest    []byte      `json:"attest"`    // TPMS_ATTEST: what was signed
	Signature []byte      `json:"signature"` // TPMT_SIGNATURE
	Bank      string      `json:"bank"`
	PCRs      map[int]Hex `json:"pcrs"`
	Secret    Hex         `json:"secret,omitempty"` // of a challenge
	Log       []byte      `json:"log,omitempty"`    // as binary_runtime_measurements
}

// Sealed is a secret that only this TPM gives back, and only while PCRs are as they were.
type Sealed struct {
	Kind     Kind        `json:"kind"`
	Bank     string      `json:"bank"`
	PCRs     map[int]Hex `json:"pcrs"`
	Password bool        `json:"password"`
	Parent   Hex         `json:"parent"`  // name of the storage key
	Public   []byte      `json:"public"`  // TPM2B_PUBLIC
	Private  []byte      `json:"private"` // TPM2B_PRIVATE
}

func (f *Identity) kind() (*Kind, Kind)    { return &f.Kind, KindIdentity }
func (f *Challenge) kind() (*Kind, Kind)   { return &f.Kind, KindChallenge }
func (f *Expectation) kind() (*Kind, Kind) { return &f.Kind, KindExpectation }
func (f *Quote) kind() (*Kind, Kind)       { return &f.Kind, KindQuote }
func (f *Sealed) kind() (*Kind, Kind)      { return &f.Kind, KindSealed }

// File is one of this package's files.
type File interface{ kind() (has *Kind, want Kind) }

// maxFile bounds a file: a long log, in base64.
const maxFile = 96 << 20

// Write writes a file.
func Write(w io.Writer, f File) error {
	has, want := f.kind()
	*has = want
	p, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return fmt.Errorf("writing a %s: %w", want, err)
	}
	_, err = w.Write(append(p, '\n'))
	return err
}

// Read reads a file.
func Read(r io.Reader, f File) error {
	has, want := f.kind()
	p, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	if err == nil && len(p) > maxFile {
		err = fmt.Errorf("longer than %d bytes", maxFile)
	}
	if err == nil {
		d := json.NewDecoder(bytes.NewReader(p))
		d.DisallowUnknownFields()
		if err = d.Decode(f); err == nil && d.More() {
			err = errors.New("something follows it")
		}
	}
	// What is of another kind has other fields: say the former.
	var any struct{ Kind Kind }
	if json.Unmarshal(p, &any) == nil && any.Kind != want {
		err = fmt.Errorf("its kind is %q", any.Kind)
	}
	if err != nil {
		return fmt.Errorf("reading a %s: %w", want, err)
	}
	*has = want
	return nil
}
