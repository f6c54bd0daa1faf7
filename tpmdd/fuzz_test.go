package tpmdd

import (
	"context"
	"testing"
)

// says is a TPM that answers everything with the same bytes.
type says []byte

func (s says) Transmit(context.Context, []byte) ([]byte, error) { return s, nil }

// FuzzAnswers reads whatever a TPM may answer to ring3's own commands: a value that was checked, or an error.
func FuzzAnswers(f *testing.F) {
	ok := func(p ...byte) []byte { return Command(TagNoSessions, 0, p...) }
	f.Add(ok())
	f.Add(ok(0, 0, 0, 0, 5, 0, 0, 0, 2, 0, 4, 3, 0, 0, 0, 0, 0x0b, 3, 0xff, 0xff, 0xff))
	f.Add(ok(0, 4, 1, 2, 3, 4))
	f.Add(ok(append([]byte{0, 0, 0, 1, 0, 0, 0, 1, 0, 0x0b, 3, 1, 0, 0, 0, 0, 0, 1, 0, 32}, make([]byte, 32)...)...))
	f.Add([]byte{0x80, 1, 0, 0})
	f.Fuzz(func(t *testing.T, p []byte) {
		ctx := t.Context()
		x := says(p)
		if b, err := banks(ctx, x); err == nil {
			for _, bank := range b {
				if bank.Size == 0 {
					t.Errorf("banks() = %+v, want sizes", b)
				}
			}
		}
		for _, family := range []Family{TPM12, TPM20} {
			bank := hashes[family-1]
			if d, err := ReadPCR(ctx, x, family, bank, 10); err == nil && len(d) != bank.Size {
				t.Errorf("ReadPCR() = %d bytes, want %d", len(d), bank.Size)
			}
			buf := make([]byte, 40)
			if n, err := Random(ctx, x, family, buf); n < 0 || n > len(buf) || err == nil && n != len(buf) {
				t.Errorf("Random() = %d, %v, want %d or an error", n, err, len(buf))
			}
		}
		if c, err := Capability12(ctx, x, "asking", 6, GetCapability12(Cap12VersionInfo)); err == nil && len(c) < 6 {
			t.Errorf("Capability12() = %d bytes, want 6 or more", len(c))
		}
	})
}
