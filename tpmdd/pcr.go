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
		p, err := Ask(ctx, x, what, Command(TagRequest12, OrdPCRRead, be32(n)...))
		if err == nil && len(p) < b.Size {
			err = fmt.Errorf("%s: a digest of %d bytes, want %d: %w (%w)", what, len(p), b.Size, unix.EFAULT, bus.ErrProtocol)
		}
		if err != nil {
			return nil, err
		}
		return p[:b.Size], nil
	}
	var sel [3]byte
	sel[n/8] = 1 << (n % 8)
	params := append(be32(1), be16(b.Alg)...)
	params = append(append(params, byte(len(sel))), sel[:]...)
	p, err := Ask(ctx, x, what, Command(TagNoSessions, CCPCRRead, params...))
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
