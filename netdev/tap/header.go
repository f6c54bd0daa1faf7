package tap

import (
	"encoding/binary"
	"math/bits"

	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/netdev"
)

// headerLen is the length of the header before each frame: virtio 1.2, 5.1.6, without
// num_buffers. After it and the Ethernet header the IP header is aligned to 8 bytes.
const headerLen = 10

// Fields of the header, little-endian, virtio 1.2, 5.1.6.
const (
	hdrFlags      = 0 // 8 bits
	hdrGSOType    = 1 // 8 bits
	hdrHdrLen     = 2 // 16 bits each from here
	hdrGSOSize    = 4
	hdrCsumStart  = 6
	hdrCsumOffset = 8
)

// Values of flags and gso_type.
const (
	flagNeedsCsum = 1
	flagDataValid = 2

	gsoNone = 0
	gsoTCP4 = 1
	gsoTCP6 = 4
)

// Offsets and lengths in frames.
const (
	etherLen   = 14 // of the Ethernet header
	macsLen    = 12 // of its two addresses
	tagLen     = 4  // of a VLAN tag
	minTCP     = 20 // shortest TCP header
	tcpDataOff = 12 // the header's length in 32-bit words, in the upper 4 bits
	tcpCsumOff = 16
)

// decodeHeader reads what the kernel asks for frame, which stands behind the header h. It
// says whether that makes sense. The kernel's hdr_len is only a hint, how much of the frame
// lay in one piece, so the length of the headers is read from the TCP header.
func decodeHeader(h, frame []byte) (m dma.Meta, ok bool) {
	_ = h[headerLen-1]
	flags, gso := h[hdrFlags], h[hdrGSOType]
	if flags&flagNeedsCsum == 0 {
		return m, gso == gsoNone
	}
	m.Flags = dma.NeedsCsum
	m.CsumStart = binary.LittleEndian.Uint16(h[hdrCsumStart:])
	m.CsumOffset = binary.LittleEndian.Uint16(h[hdrCsumOffset:])
	start := int(m.CsumStart)
	if start < etherLen || start+int(m.CsumOffset)+2 > len(frame) {
		return m, false
	}
	switch gso {
	case gsoNone:
		return m, true
	case gsoTCP4:
		m.Flags |= dma.GSO4
	case gsoTCP6:
		m.Flags |= dma.GSO6
	default:
		return m, false
	}
	m.GSOSize = binary.LittleEndian.Uint16(h[hdrGSOSize:])
	if m.GSOSize == 0 || start+minTCP > len(frame) {
		return m, false
	}
	n := int(frame[start+tcpDataOff]>>4) * 4
	if n < minTCP || start+n > len(frame) {
		return m, false
	}
	m.HdrLen = uint16(start + n)
	return m, true
}

// needs are the features that a device must have on for a frame with these flags.
func needs(f dma.MetaFlags) netdev.Feature {
	var n netdev.Feature
	if f&dma.NeedsCsum != 0 {
		n |= netdev.TxCsum
	}
	if f&dma.GSO4 != 0 {
		n |= netdev.TxTSO4
	}
	if f&dma.GSO6 != 0 {
		n |= netdev.TxTSO6
	}
	return n
}

// checksum does in software what NeedsCsum asks a device for. The frame passed
// decodeHeader.
func checksum(frame []byte, m *dma.Meta) {
	at := int(m.CsumStart) + int(m.CsumOffset)
	v := ^fold(sum(frame[m.CsumStart:], 0))
	if v == 0 {
		v = 0xffff // UDP's 0 means none; to TCP both are the same
	}
	binary.BigEndian.PutUint16(frame[at:], v)
	m.Flags &^= dma.NeedsCsum
}

// sum adds the 16-bit words of b, big-endian, an odd last byte as the upper half of one, in
// one's complement (RFC 1071). acc is an earlier sum, of an even number of bytes.
func sum(b []byte, acc uint64) uint64 {
	var carry uint64
	for len(b) >= 32 {
		acc, carry = bits.Add64(acc, binary.BigEndian.Uint64(b), carry)
		acc, carry = bits.Add64(acc, binary.BigEndian.Uint64(b[8:]), carry)
		acc, carry = bits.Add64(acc, binary.BigEndian.Uint64(b[16:]), carry)
		acc, carry = bits.Add64(acc, binary.BigEndian.Uint64(b[24:]), carry)
		b = b[32:]
	}
	for len(b) >= 8 {
		acc, carry = bits.Add64(acc, binary.BigEndian.Uint64(b), carry)
		b = b[8:]
	}
	acc, carry = bits.Add64(acc, 0, carry)
	acc += carry
	var rest uint64
	for len(b) >= 2 {
		rest += uint64(binary.BigEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) == 1 {
		rest += uint64(b[0]) << 8
	}
	acc, carry = bits.Add64(acc, rest, 0)
	return acc + carry
}

// fold brings a sum down to 16 bits.
func fold(acc uint64) uint16 {
	acc = acc>>32 + acc&0xffffffff
	acc = acc>>32 + acc&0xffffffff
	acc = acc>>16 + acc&0xffff
	acc = acc>>16 + acc&0xffff
	return uint16(acc>>16 + acc&0xffff)
}
