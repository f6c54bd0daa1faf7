package tpmdd

import (
	"context"
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
)

// maxRandom is how many bytes one command asks for. A TPM may give less.
const maxRandom = 128

// GetRandom is the command for n random bytes: TPM2_GetRandom (TPM 2.0 part 3, 16.1), TPM_GetRandom (TPM 1.2 part 3, 13.6).
func GetRandom(f Family, n uint16) []byte {
	if f == TPM12 {
		return Command(TagRequest12, OrdGetRandom, be32(uint32(n))...)
	}
	return Command(TagNoSessions, CCGetRandom, be16(n)...)
}

// Random reads random bytes into p, with as many commands as that takes. It returns how many; less than len(p) only with an error.
func Random(ctx context.Context, x Exchanger, f Family, p []byte) (n int, err error) {
	const what = "attempting get random"
	for n < len(p) {
		want := min(len(p)-n, maxRandom)
		head := 2 // of the answer: its length
		if f == TPM12 {
			head = 4
		}
		a, err := Ask(ctx, x, what, GetRandom(f, uint16(want)))
		if err != nil {
			return n, err
		}
		got := 0
		switch {
		case len(a) < head:
		case head == 4:
			got = int(min(binary.BigEndian.Uint32(a), maxRandom+1))
		default:
			got = int(binary.BigEndian.Uint16(a))
		}
		if got == 0 || got > want || got > len(a)-head {
			return n, fmt.Errorf("%s: %d bytes of which %d are random, want 1 to %d: %w (%w)", what, len(a), got, want, unix.EFAULT, bus.ErrProtocol)
		}
		n += copy(p[n:], a[head:head+got])
	}
	return n, nil
}
