package tpmdd

import (
	"context"
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
)

// ReadPCR reads a register of a bank: TPM2_PCR_Read (TPM 2.0 part 3, 22.4), TPM_PCRRead (TPM 1.2 part 3, 16.2).
func ReadPCR(ctx context.Context, x Exchanger, f Family, b Bank, n uint32) ([]byte, error) {
	const what = "attempting to read a pcr value"
	if n >= PCRs {
		return nil, fmt.Errorf("%s: there is no PCR %d: %w", what, n, unix.EINVAL)
	}
	if f == TPM12 {
		p, err := Ask(ctx, x, what, pcrRead12(n))
		if err == nil && len(p) < b.Size {
			err = fmt.Errorf("%s: a digest of %d bytes, want %d: %w (%w)", what, len(p), b.Size, unix.EFAULT, bus.ErrProtocol)
		}
		if err != nil {
			return nil, err
		}
		return p[:b.Size], nil
	}
	p, err := Ask(ctx, x, what, PCRRead(b.Alg, n))
	if err != nil {
		return nil, err
	}
	// update counter, selection as asked for, one digest
	const digests = 4 + 4 + 2 + 1 + 3
	if len(p) < digests+6+b.Size || binary.BigEndian.Uint32(p[digests:]) != 1 || int(binary.BigEndian.Uint16(p[digests+4:])) != b.Size {
		return nil, fmt.Errorf("%s: %d bytes without a digest of %d: %w (%w)", what, len(p), b.Size, unix.EINVAL, bus.ErrProtocol)
	}
	return p[digests+6 : digests+6+b.Size], nil
}

// pcrRead12 is TPM_PCRRead (TPM 1.2 part 3, 16.2).
func pcrRead12(n uint32) []byte { return Command(TagRequest12, OrdPCRRead, be32(n)...) }

// PCRRead is TPM2_PCR_Read (TPM 2.0 part 3, 22.4) of register n, below PCRs, of a bank.
func PCRRead(alg uint16, n uint32) []byte {
	var sel [PCRs / 8]byte
	sel[n/8] = 1 << (n % 8)
	params := append(be32(1), be16(alg)...)
	params = append(append(params, byte(len(sel))), sel[:]...)
	return Command(TagNoSessions, CCPCRRead, params...)
}

// Digest is what a bank is extended with.
type Digest struct {
	Alg uint16 // TPM_ALG_ID
	Sum []byte
}

// handlePW is TPM_RS_PW, a password session.
const handlePW = 0x40000009

// PCRExtend is TPM2_PCR_Extend (TPM 2.0 part 3, 22.2) of register n in each bank there is a digest for. Its
// authorization is the empty password, a session without nonce, attributes and secret.
func PCRExtend(n uint32, digests ...Digest) []byte {
	params := append(be32(n, 9, handlePW), 0, 0, 0, 0, 0)
	params = append(params, be32(uint32(len(digests)))...)
	for _, d := range digests {
		params = append(append(params, be16(d.Alg)...), d.Sum...)
	}
	return Command(TagSessions, CCPCRExtend, params...)
}
