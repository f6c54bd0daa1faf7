package frame

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"
)

// Pcap reads a capture file in the classic format, as QEMU's filter-dump writes it.
type Pcap struct {
	r     *bufio.Reader
	order binary.ByteOrder
	nano  bool
}

// maxRecord bounds a record, so that a broken file cannot ask for all memory.
const maxRecord = 256 << 10

// NewPcap reads the file's header. It fails where the file is no capture of Ethernet frames.
func NewPcap(r io.Reader) (*Pcap, error) {
	p := &Pcap{r: bufio.NewReader(r)}
	var h [24]byte
	if _, err := io.ReadFull(p.r, h[:]); err != nil {
		return nil, fmt.Errorf("reading a capture's header: %w", err)
	}
	switch m := binary.LittleEndian.Uint32(h[:]); m {
	case 0xa1b2c3d4, 0xa1b23c4d:
		p.order, p.nano = binary.LittleEndian, m == 0xa1b23c4d
	case 0xd4c3b2a1, 0x4d3cb2a1:
		p.order, p.nano = binary.BigEndian, m == 0x4d3cb2a1
	default:
		return nil, fmt.Errorf("reading a capture's header: magic %#08x, want 0xa1b2c3d4", m)
	}
	if t := p.order.Uint32(h[20:]); t != 1 {
		return nil, fmt.Errorf("reading a capture's header: link type %d, want 1 (Ethernet)", t)
	}
	return p, nil
}

// Next returns the next frame and when it was captured: io.EOF after the last one, and
// io.ErrUnexpectedEOF (wrapped) where the last record is cut short.
func (p *Pcap) Next() ([]byte, time.Time, error) {
	var h [16]byte
	if _, err := io.ReadFull(p.r, h[:]); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, time.Time{}, io.EOF
		}
		return nil, time.Time{}, fmt.Errorf("reading a capture's record: %w", err)
	}
	frac := int64(p.order.Uint32(h[4:]))
	if !p.nano {
		frac *= 1000
	}
	n := p.order.Uint32(h[8:])
	if n > maxRecord {
		return nil, time.Time{}, fmt.Errorf("reading a capture's record: %d bytes, want at most %d", n, maxRecord)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(p.r, b); err != nil {
		return nil, time.Time{}, fmt.Errorf("reading a capture's record: %w", io.ErrUnexpectedEOF)
	}
	return b, time.Unix(int64(p.order.Uint32(h[:])), frac), nil
}
