package frame

import (
	"bufio"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"
)

// Pcap reads a capture file, in the classic format, as QEMU's filter-dump writes it, also compressed by gzip, or
// in pcapng.
type Pcap struct{ r gopacket.PacketDataSource }

// maxRecord bounds a record, so that a broken file cannot ask for all memory.
const maxRecord = 256 << 10

// NewPcap reads the file's header. It fails where the file is no capture of Ethernet frames.
func NewPcap(r io.Reader) (*Pcap, error) {
	b := bufio.NewReader(r)
	if magic, err := b.Peek(2); err == nil && magic[0] == 0x1f && magic[1] == 0x8b {
		z, err := gzip.NewReader(b)
		if err != nil {
			return nil, fmt.Errorf("reading a capture's header: %w", unexpected(err))
		}
		b = bufio.NewReader(z)
	}
	if magic, err := b.Peek(4); err == nil && binary.BigEndian.Uint32(magic) == ngSection {
		return newPcapng(b)
	}
	if head, _ := b.Peek(pcapHeader); len(head) == pcapHeader {
		if order := pcapOrder(head); order != nil { // pcapgo looks at 8 bits of this, and says what else is wrong
			if err := ethernet(order.Uint32(head[20:])); err != nil {
				return nil, fmt.Errorf("reading a capture's header: %w", err)
			}
		}
	}
	p, err := pcapgo.NewReader(b)
	if err != nil {
		return nil, fmt.Errorf("reading a capture's header: %w", unexpected(err))
	}
	p.SetSnaplen(maxRecord)
	return &Pcap{p}, nil
}

// pcapHeader is the length of the file's header in the classic format (draft-ietf-opsawg-pcap, section 4).
const pcapHeader = 24

// pcapOrder is the order of bytes that a header's magic number says; nil where it is none.
func pcapOrder(head []byte) binary.ByteOrder {
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		if m := order.Uint32(head); m == 0xa1b2c3d4 || m == 0xa1b23c4d {
			return order
		}
	}
	return nil
}

// ethernet refuses all other link types, and frames with a frame check sequence, whose length stands in
// the upper bits.
func ethernet(t uint32) error {
	switch {
	case t&0xffff != uint32(layers.LinkTypeEthernet):
		return fmt.Errorf("link type %d, want %d (Ethernet)", t&0xffff, layers.LinkTypeEthernet)
	case t>>16 != 0:
		return fmt.Errorf("link type %#x: frames with frame check sequences, want none", t)
	}
	return nil
}

// unexpected is the error of a file that ends where it should not.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Next returns the next frame and when it was captured: io.EOF after the last one, and
// io.ErrUnexpectedEOF (wrapped) where the last record is cut short.
func (p *Pcap) Next() ([]byte, time.Time, error) {
	b, _, at, err := p.next()
	return b, at, err
}

// NextWhole is Next that fails where the capture has but a part of a frame.
func (p *Pcap) NextWhole() ([]byte, time.Time, error) {
	b, length, at, err := p.next()
	if err == nil && length != len(b) {
		return nil, at, fmt.Errorf("the capture has %d bytes of its %d", len(b), length)
	}
	return b, at, err
}

func (p *Pcap) next() ([]byte, int, time.Time, error) {
	b, ci, err := p.r.ReadPacketData()
	switch {
	case err == io.EOF && ci.CaptureLength > 0:
		err = io.ErrUnexpectedEOF // the record's header was there
	case err == io.EOF:
		return nil, 0, time.Time{}, io.EOF
	}
	if err != nil {
		return nil, 0, time.Time{}, fmt.Errorf("reading a capture's record: %w", err)
	}
	return b, ci.Length, ci.Timestamp, nil
}

// Types of pcapng's blocks (draft-ietf-opsawg-pcapng, section 4).
const (
	ngSection   = 0x0a0d0d0a
	ngInterface = 1
	ngPacket    = 2 // obsolete
	ngSimple    = 3
	ngEnhanced  = 6
	ngByteOrder = 0x1a2b3c4d

	ngHead  = 8 // type and length
	ngFrame = 12
	// maxBlock bounds a block: a record with its options.
	maxBlock = maxRecord + 64<<10
)

func newPcapng(b *bufio.Reader) (*Pcap, error) {
	var p *pcapgo.NgReader
	err := guarded(func() (err error) {
		p, err = pcapgo.NewNgReader(&ngBlocks{r: b}, pcapgo.NgReaderOptions{ErrorOnMismatchingLinkType: true})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading a capture's header: %w", unexpected(err))
	}
	return &Pcap{ngPackets{p}}, nil
}

// ngPackets reads packets.
type ngPackets struct{ r *pcapgo.NgReader }

func (p ngPackets) ReadPacketData() (b []byte, ci gopacket.CaptureInfo, err error) {
	err = guarded(func() (err error) {
		b, ci, err = p.r.ReadPacketData()
		return err
	})
	return b, ci, err
}

// guarded makes an error of a panic: pcapgo 1.1.19 has some for options that are too short, or a resolution
// of no clock's.
func guarded(f func() error) (err error) {
	defer func() {
		if x := recover(); x != nil {
			err = fmt.Errorf("its blocks cannot be read: %v", x)
		}
	}()
	return f()
}

// ngBlocks passes on a file whose blocks are as long as they say: pcapgo believes them.
type ngBlocks struct {
	r     *bufio.Reader
	order binary.ByteOrder
	left  int // of the block
}

func (n *ngBlocks) Read(p []byte) (int, error) {
	if n.left == 0 {
		if err := n.begin(); err != nil {
			return 0, err
		}
	}
	k, err := n.r.Read(p[:min(len(p), n.left)])
	n.left -= k
	if err != nil && n.left != 0 {
		err = unexpected(err)
	}
	return k, err
}

// begin looks at the next block's head.
func (n *ngBlocks) begin() error {
	head, err := n.r.Peek(ngHead)
	if err != nil {
		if len(head) > 0 {
			return unexpected(err)
		}
		return err
	}
	if binary.LittleEndian.Uint32(head) == ngSection { // a palindrome
		if head, err = n.r.Peek(ngHead + 4); err != nil {
			return unexpected(err)
		}
		switch {
		case binary.LittleEndian.Uint32(head[8:]) == ngByteOrder:
			n.order = binary.LittleEndian
		case binary.BigEndian.Uint32(head[8:]) == ngByteOrder:
			n.order = binary.BigEndian
		default:
			return fmt.Errorf("a section with byte-order magic %#x", head[8:])
		}
	}
	if n.order == nil {
		return errors.New("it does not begin with a section")
	}
	kind, length := n.order.Uint32(head), n.order.Uint32(head[4:])
	if length < ngFrame || length%4 != 0 || length > maxBlock {
		return fmt.Errorf("a block of type %#x says it has %d bytes", kind, length)
	}
	if kind == ngInterface {
		if head, err = n.r.Peek(ngHead + 2); err != nil {
			return unexpected(err)
		}
		if err := ethernet(uint32(n.order.Uint16(head[ngHead:]))); err != nil {
			return err
		}
	}
	at, fixed := 0, uint32(0) // where the captured length is, and what is not data
	switch kind {
	case ngPacket, ngEnhanced:
		at, fixed = 20, 32
	case ngSimple:
		at, fixed = 8, 16
	}
	if at != 0 {
		if length < fixed {
			return fmt.Errorf("a block of type %#x has %d bytes, want at least %d", kind, length, fixed)
		}
		if head, err = n.r.Peek(at + 4); err != nil {
			return unexpected(err)
		}
		if captured := n.order.Uint32(head[at:]); captured > length-fixed {
			return fmt.Errorf("a packet of %d bytes in a block of %d", captured, length)
		}
	}
	n.left = int(length)
	return nil
}
