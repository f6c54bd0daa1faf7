package measure

import (
	"crypto"
	_ "crypto/sha1" // these three are what computed has
	_ "crypto/sha256"
	_ "crypto/sha512"
	"fmt"
	"hash"

	"github.com/ring3dev/ring3/tpmdd"
)

// Bank is a set of PCRs of one hash algorithm, by its TPM_ALG_ID. TPM 1.2 has one, SHA1.
type Bank uint16

// Banks whose algorithm is computed here; any other gets a padded SHA-1 (TCG Algorithm Registry 1.32, table 3).
const (
	SHA1   Bank = 0x0004
	SHA256 Bank = 0x000b
	SHA384 Bank = 0x000c
	SHA512 Bank = 0x000d
)

var computed = map[Bank]crypto.Hash{SHA1: crypto.SHA1, SHA256: crypto.SHA256, SHA384: crypto.SHA384, SHA512: crypto.SHA512}

// ParseBank finds a bank by the name that the kernel gives it.
func ParseBank(s string) (Bank, error) {
	for b := range computed {
		if b.String() == s {
			return b, nil
		}
	}
	return 0, fmt.Errorf("bank %q: want sha1, sha256, sha384 or sha512", s)
}

// String is the kernel's name of the algorithm.
func (b Bank) String() string {
	if t, _ := tpmdd.FindBank(uint16(b)); t.Name != "" {
		return t.Name
	}
	return fmt.Sprintf("alg-%#04x", uint16(b))
}

// Size is the length of the bank's digests; 0 for one that is not known.
func (b Bank) Size() int {
	t, _ := tpmdd.FindBank(uint16(b))
	return t.Size
}

// newHash is nil for an algorithm that is not computed here.
func (b Bank) newHash() hash.Hash {
	if h, ok := computed[b]; ok {
		return h.New()
	}
	return nil
}

// Sum hashes its arguments, one after the other. It panics where the algorithm is not computed here.
func (b Bank) Sum(parts ...[]byte) []byte {
	h := b.newHash()
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(nil)
}
