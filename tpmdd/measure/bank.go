package measure

import (
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"fmt"
	"hash"
)

// Bank is a set of PCRs of one hash algorithm, by its TPM_ALG_ID. TPM 1.2 has one, SHA1.
type Bank uint16

// Banks (TCG Algorithm Registry 1.32, table 3).
const (
	SHA1   Bank = 0x0004
	SHA256 Bank = 0x000b
	SHA384 Bank = 0x000c
	SHA512 Bank = 0x000d
)

// algorithms are those a TPM may have a bank of. Those without new get a padded SHA-1.
var algorithms = []struct {
	bank Bank
	name string
	size int
	new  func() hash.Hash
}{
	{SHA1, "sha1", sha1.Size, sha1.New},
	{SHA256, "sha256", sha256.Size, sha256.New},
	{SHA384, "sha384", sha512.Size384, sha512.New384},
	{SHA512, "sha512", sha512.Size, sha512.New},
	{0x0012, "sm3", 32, nil},
	{0x0027, "sha3-256", 32, nil},
	{0x0028, "sha3-384", 48, nil},
	{0x0029, "sha3-512", 64, nil},
}

// Banks are the banks whose algorithm is known and computed here.
func Banks() []Bank { return []Bank{SHA1, SHA256, SHA384, SHA512} }

// ParseBank finds a bank by the name that the kernel gives it.
func ParseBank(s string) (Bank, error) {
	for _, a := range algorithms {
		if a.name == s && a.new != nil {
			return a.bank, nil
		}
	}
	return 0, fmt.Errorf("bank %q: want sha1, sha256, sha384 or sha512", s)
}

// String is the kernel's name of the algorithm.
func (b Bank) String() string {
	for _, a := range algorithms {
		if a.bank == b {
			return a.name
		}
	}
	return fmt.Sprintf("alg-%#04x", uint16(b))
}

// Size is the length of the bank's digests; 0 for one that is not known.
func (b Bank) Size() int {
	for _, a := range algorithms {
		if a.bank == b {
			return a.size
		}
	}
	return 0
}

// newHash is nil for an algorithm that is not computed here.
func (b Bank) newHash() hash.Hash {
	for _, a := range algorithms {
		if a.bank == b && a.new != nil {
			return a.new()
		}
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
