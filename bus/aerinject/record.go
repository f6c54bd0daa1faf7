package aerinject

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus/pci"
)

// Record is one error and the function that is to have it.
type Record struct {
	Domain       uint32
	Bus, Dev, Fn uint8
	Error        pci.AERError
}

// Sizes of a record as the tool aer-inject writes it, in the machine's byte order. The domain came later, and may be
// missing or cut.
const (
	recordUnc    = 4 // after bus, device, function and a byte of padding
	recordCor    = 8
	recordHeader = 12
	recordDomain = 28
	recordSize   = 32
)

// Addr is the function's address. Of device and function it takes the bits that there are, as the kernel does.
func (r Record) Addr() pci.Addr {
	return pci.Addr{Domain: r.Domain, Bus: r.Bus, Dev: r.Dev & 0x1f, Fn: r.Fn & 7}
}

// ParseRecord reads what one write to /dev/aer_inject holds. It fails with EINVAL where the length is wrong; what is in
// it is only judged by Inject.
func ParseRecord(p []byte) (Record, error) {
	if len(p) < recordDomain || len(p) > recordSize {
		return Record{}, fmt.Errorf("aer_inject: record of %d bytes, want %d to %d: %w", len(p), recordDomain, recordSize, unix.EINVAL)
	}
	var b [recordSize]byte
	copy(b[:], p)
	word := func(at int) uint32 { return binary.NativeEndian.Uint32(b[at:]) }
	r := Record{Domain: word(recordDomain), Bus: b[0], Dev: b[1], Fn: b[2]}
	r.Error.Uncorrectable, r.Error.Correctable = word(recordUnc), word(recordCor)
	for i := range r.Error.Header {
		r.Error.Header[i] = word(recordHeader + 4*i)
	}
	return r, nil
}

// AppendRecord appends a record as the tool writes it.
func AppendRecord(p []byte, r Record) []byte {
	p = append(p, r.Bus, r.Dev, r.Fn, 0)
	p = binary.NativeEndian.AppendUint32(p, r.Error.Uncorrectable)
	p = binary.NativeEndian.AppendUint32(p, r.Error.Correctable)
	for _, h := range r.Error.Header {
		p = binary.NativeEndian.AppendUint32(p, h)
	}
	return binary.NativeEndian.AppendUint32(p, r.Domain)
}
