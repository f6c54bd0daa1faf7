package tracefile

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/trace"
)

// Blocks of pcapng (draft-ietf-opsawg-pcapng, 4).
const (
	blockSection   = 0x0a0d0d0a
	blockInterface = 1
	blockPacket    = 6 // enhanced
	orderMagic     = 0x1a2b3c4d
	optEnd         = 0
	optName        = 2 // if_name
	optDescription = 3 // if_description
)

// What a file may ask of its reader.
const (
	maxBlock      = 1 << 20
	maxInterfaces = 1 << 12
)

// Reader reads a pcapng trace, also one that is still being written to a pipe. Packets of other
// link types are skipped. It takes what it reads for hostile. It belongs to one goroutine.
type Reader struct {
	r       *bufio.Reader
	order   binary.ByteOrder
	sources []source
	buf     []byte
	ours    bool // there was an interface of our link type
	begun   bool // there was a section
}

// source is an interface of the file.
type source struct {
	Source
	ours bool
}

// NewReader reads r, from its beginning.
func NewReader(r io.Reader) *Reader {
	return &Reader{r: bufio.NewReaderSize(r, 64<<10), order: binary.LittleEndian}
}

// Next is the next entry; io.EOF at the end. Any other error is the file's.
func (r *Reader) Next() (trace.Entry, error) {
	for {
		typ, body, err := r.block()
		if err != nil {
			return trace.Entry{}, err
		}
		switch typ {
		case blockSection:
			r.sources = nil
		case blockInterface:
			err = r.addInterface(body)
		case blockPacket:
			var e trace.Entry
			var ok bool
			if e, ok, err = r.packet(body); ok {
				return e, nil
			}
		}
		if err != nil {
			return trace.Entry{}, fmt.Errorf("reading a trace: %w", err)
		}
	}
}

// Buffered says whether there is more without waiting for the file.
func (r *Reader) Buffered() bool { return r.r.Buffered() > 0 }

// block reads a block's type and body. At the end of a file that is no trace it says so.
func (r *Reader) block() (typ uint32, body []byte, err error) {
	var h [12]byte
	if _, err := io.ReadFull(r.r, h[:8]); err != nil {
		switch {
		case errors.Is(err, io.EOF) && r.ours:
			return 0, nil, io.EOF
		case errors.Is(err, io.EOF) && !r.begun:
			return 0, nil, errors.New("reading a trace: it is empty")
		case errors.Is(err, io.EOF):
			return 0, nil, fmt.Errorf("reading a trace: a capture without any interface of link type %d: no trace of ring3's", linkType)
		case errors.Is(err, io.ErrUnexpectedEOF) && !r.begun:
			return 0, nil, errors.New("reading a trace: it is no pcapng file")
		}
		return 0, nil, fmt.Errorf("reading a trace: %w", cutShort(err))
	}
	typ = r.order.Uint32(h[:])
	if typ == blockSection { // the same in both orders
		if _, err := io.ReadFull(r.r, h[8:]); err != nil {
			return 0, nil, fmt.Errorf("reading a trace: %w", cutShort(err))
		}
		switch uint32(orderMagic) {
		case binary.LittleEndian.Uint32(h[8:]):
			r.order = binary.LittleEndian
		case binary.BigEndian.Uint32(h[8:]):
			r.order = binary.BigEndian
		default:
			return 0, nil, errors.New("reading a trace: it is no pcapng file")
		}
		r.begun = true
	}
	if !r.begun {
		return 0, nil, errors.New("reading a trace: it is no pcapng file (a text trace is read with less and grep)")
	}
	n := int64(r.order.Uint32(h[4:8])) - 8
	if typ == blockSection {
		n -= 4
	}
	if n < 4 || n > maxBlock || n&3 != 0 {
		return 0, nil, fmt.Errorf("reading a trace: a block of %d bytes, want a multiple of 4, and at most %d", n+8, maxBlock)
	}
	if cap(r.buf) < int(n) {
		r.buf = make([]byte, n)
	}
	body = r.buf[:n]
	if _, err := io.ReadFull(r.r, body); err != nil {
		return 0, nil, fmt.Errorf("reading a trace: %w", cutShort(err))
	}
	return typ, body[:n-4], nil // the length stands once more at the end
}

// cutShort says what an end in the middle means.
func cutShort(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("it ends in the middle of a record")
	}
	return err
}

// addInterface reads an interface description block.
func (r *Reader) addInterface(b []byte) error {
	if len(b) < 8 || len(r.sources) == maxInterfaces {
		return fmt.Errorf("interface %d: %d bytes of description, want 8, and at most %d interfaces", len(r.sources), len(b), maxInterfaces)
	}
	s := source{ours: r.order.Uint16(b) == linkType}
	r.ours = r.ours || s.ours
	for b = b[8:]; len(b) >= 4; {
		code, n := r.order.Uint16(b), int(r.order.Uint16(b[2:]))
		b = b[4:]
		if code == optEnd || n > len(b) {
			break
		}
		switch code {
		case optName:
			s.Name = string(b[:n])
		case optDescription:
			s.Address, _, _ = strings.Cut(string(b[:n]), " ")
		}
		b = b[min((n+3)&^3, len(b)):]
	}
	s.Name = oneWord(s.Name)
	r.sources = append(r.sources, s)
	return nil
}

// oneWord keeps a device's name, which is a column of text, what `ring3 up` takes for one.
func oneWord(s string) string {
	s = strings.Map(func(c rune) rune {
		if c <= ' ' || c >= 0x7f {
			return '_'
		}
		return c
	}, s)
	if s == "" {
		return "_"
	}
	return s
}

// packet reads an enhanced packet block; ok: it is an entry.
func (r *Reader) packet(b []byte) (e trace.Entry, ok bool, err error) {
	if len(b) < 20 {
		return e, false, fmt.Errorf("a packet block of %d bytes, want 20 at least", len(b))
	}
	i, n := r.order.Uint32(b), r.order.Uint32(b[12:])
	if uint64(i) >= uint64(len(r.sources)) {
		return e, false, fmt.Errorf("a packet of interface %d, and there are %d", i, len(r.sources))
	}
	if uint64(n) > uint64(len(b)-20) {
		return e, false, fmt.Errorf("a packet of %d bytes in a block of %d", n, len(b))
	}
	s := &r.sources[i]
	if !s.ours {
		return e, false, nil
	}
	e, err = parseEntry(b[20:][:n])
	e.Device, e.Address = s.Name, s.Address
	at := time.Unix(0, int64(uint64(r.order.Uint32(b[4:]))<<32|uint64(r.order.Uint32(b[8:]))))
	e.SetWall(at)
	return e, err == nil, err
}

// parseEntry is the reverse of appendEntry, for bytes that anybody wrote.
func parseEntry(b []byte) (e trace.Entry, err error) {
	if len(b) < header {
		return e, fmt.Errorf("a record of %d bytes, want %d at least", len(b), header)
	}
	if b[0] != layout {
		return e, fmt.Errorf("a record of layout %d, want %d: another ring3 wrote it", b[0], layout)
	}
	le := binary.LittleEndian
	name, text, data := int(le.Uint16(b[60:])), int(le.Uint16(b[62:])), int(le.Uint16(b[64:]))
	rest := b[header:]
	if name+text+data > len(rest) {
		return e, fmt.Errorf("a record with %d bytes of name, text and data, and there are %d", name+text+data, len(rest))
	}
	e.Kind, e.Op, e.Width, e.Region, e.Mode = trace.Kind(b[1]), trace.Op(b[2]), b[3], int8(b[4]), bus.IRQMode(b[5])
	e.Seq, e.Time, e.DT = le.Uint64(b[8:]), int64(le.Uint64(b[16:])), int64(le.Uint64(b[24:]))
	e.Off, e.Value, e.Aux, e.Count = bus.Off(le.Uint64(b[32:])), le.Uint64(b[40:]), le.Uint64(b[48:]), le.Uint32(b[56:])
	if e.Time < 0 || e.DT < 0 {
		return e, fmt.Errorf("a record at %d ns, %d after the one before: want both to be positive", e.Time, e.DT)
	}
	if name > 0 {
		e.Name = oneWord(string(rest[:name]))
	}
	e.Text = trace.Clean(string(rest[name : name+text]))
	e.SetData(rest[name+text : name+text+data])
	return e, nil
}
