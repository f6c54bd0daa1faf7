package pktgen

import (
	"encoding/binary"
	"math/bits"

	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/internal/frame"
)

// verdict is what a frame is to a receiver.
type verdict uint8

const (
	rxOther   verdict = iota // without pktgen's magic number in its place
	rxGood                   // pktgen's, and as it was sent as far as that was looked at
	rxSum                    // a checksum is wrong
	rxHeader                 // an IP header as pktgen sends none
	rxLength                 // its length fields and its length do not go together
	rxPayload                // there is something behind pktgen's header
	verdicts
)

// parsed is what is accounted of a good frame.
type parsed struct {
	key   flowKey
	seq   uint32
	stamp uint64 // microseconds since 1970; 0: it has none
	size  int

	// From the table of flows:
	flow  int32
	hash  uint64
	fresh bool // the flow was not there before
}

// What a frame's headers look like.
const (
	etherLen   = 14
	etherIPv4  = 0x0800
	etherIPv6  = 0x86dd
	etherVLAN  = 0x8100
	etherQinQ  = 0x88a8 // what other switches make of the outer tag
	etherMPLS  = 0x8847
	ip4Len     = 20
	ip6Len     = 40
	udpLen     = 8
	protoUDP   = 17
	tagPresent = 1 << 12 // of a tag in a flowKey, beside its VLAN id
	tagBits    = 13
	moreTags   = 1<<(2*tagBits) - 1 // the two innermost tags of a flowKey
)

// Generated tells whether a received frame is pktgen's, whole or not.
func Generated(b *dma.Buf) bool {
	var p parsed
	return parse(&p, b.Data, &b.Meta, 0) != rxOther
}

// parse looks at a frame, of which nothing is believed. verify is up to which length it is looked at behind
// pktgen's header. p holds something where the verdict is rxGood.
func parse(p *parsed, b []byte, m *dma.Meta, verify int) verdict {
	if len(b) < etherLen {
		return rxOther
	}
	tags := uint64(0)
	if m.Flags&dma.VLAN != 0 {
		tags = tagPresent | uint64(m.VLAN)&0xfff
	}
	p.size = len(b)
	switch binary.BigEndian.Uint16(b[12:]) {
	case etherIPv4:
		return parse4(p, b, etherLen, tags, m, verify)
	case etherIPv6:
		return parse6(p, b, etherLen, tags, m, verify)
	case etherVLAN, etherQinQ, etherMPLS:
		l3, version, tags := untag(b, tags)
		switch version {
		case 4:
			return parse4(p, b, l3, tags, m, verify)
		case 6:
			return parse6(p, b, l3, tags, m, verify)
		}
	}
	return rxOther
}

// untag finds the IP header, and its version, behind VLAN tags and labels; the version is 0 where there is none.
func untag(b []byte, tags uint64) (l3 int, version byte, _ uint64) {
	at := 12
	for range 3 { // two tags, and what is behind them
		if len(b) < at+4 {
			return 0, 0, 0
		}
		switch binary.BigEndian.Uint16(b[at:]) {
		case etherIPv4:
			return at + 2, 4, tags
		case etherIPv6:
			return at + 2, 6, tags
		case etherVLAN, etherQinQ:
			id := uint64(binary.BigEndian.Uint16(b[at+2:])) & 0xfff
			tags = (tags<<tagBits | tagPresent | id) & moreTags
			at += 4
		case etherMPLS:
			l3, version := unlabel(b, at+2)
			return l3, version, tags
		default:
			return 0, 0, 0
		}
	}
	return 0, 0, 0
}

// unlabel finds what is below a stack of labels. It does not say what it is: its first four bits do.
func unlabel(b []byte, at int) (l3 int, version byte) {
	for range maxLabels {
		if len(b) < at+5 {
			return 0, 0
		}
		bottom := b[at+2] & 1
		if at += 4; bottom != 0 {
			return at, b[at] >> 4
		}
	}
	return 0, 0
}

// parse4 looks at a frame whose IPv4 header is to be at l3.
func parse4(p *parsed, b []byte, l3 int, tags uint64, m *dma.Meta, verify int) verdict {
	const magicAt = ip4Len + udpLen
	if len(b) < l3+magicAt+4 || binary.BigEndian.Uint32(b[l3+magicAt:]) != frame.Magic {
		return rxOther
	}
	if len(b) < l3+magicAt+headerLen {
		return rxLength
	}
	h := (*[magicAt + headerLen]byte)(b[l3:])
	if !sums4(h) {
		return rxSum
	}
	// Don't Fragment is allowed: who forwards may set it.
	if h[0] != 0x45 || h[9] != protoUDP || binary.BigEndian.Uint16(h[6:])&0x3fff != 0 {
		return rxHeader
	}
	n := int(binary.BigEndian.Uint16(h[2:]))
	if n < len(h) || n > len(b)-l3 || int(binary.BigEndian.Uint16(h[24:])) != n-ip4Len {
		return rxLength
	}
	if len(b) <= verify {
		if v := verifyPayload(b[l3+12:l3+ip4Len], b[l3+ip4Len:l3+n], m); v != rxGood {
			return v
		}
	}
	p.key = flowKey{
		a: uint64(binary.BigEndian.Uint32(h[12:]))<<32 | uint64(binary.BigEndian.Uint32(h[16:])),
		e: uint64(binary.BigEndian.Uint32(h[20:]))<<portShift | tags,
	}
	p.generator((*[headerLen]byte)(h[magicAt:]))
	return rxGood
}

// parse6 looks at a frame whose IPv6 header is to be at l3.
func parse6(p *parsed, b []byte, l3 int, tags uint64, m *dma.Meta, verify int) verdict {
	const magicAt = ip6Len + udpLen
	if len(b) < l3+magicAt+4 || binary.BigEndian.Uint32(b[l3+magicAt:]) != frame.Magic {
		return rxOther
	}
	if len(b) < l3+magicAt+headerLen {
		return rxLength
	}
	h := (*[magicAt + headerLen]byte)(b[l3:])
	if h[0]>>4 != 6 || h[6] != protoUDP {
		return rxHeader
	}
	n := int(binary.BigEndian.Uint16(h[4:]))
	if n < udpLen+headerLen || n > len(b)-l3-ip6Len || int(binary.BigEndian.Uint16(h[44:])) != n {
		return rxLength
	}
	if len(b) <= verify {
		if v := verifyPayload(b[l3+8:l3+ip6Len], b[l3+ip6Len:l3+ip6Len+n], m); v != rxGood {
			return v
		}
	}
	p.key = flowKey{
		a: binary.BigEndian.Uint64(h[8:]), b: binary.BigEndian.Uint64(h[16:]),
		c: binary.BigEndian.Uint64(h[24:]), d: binary.BigEndian.Uint64(h[32:]),
		e: uint64(binary.BigEndian.Uint32(h[40:]))<<portShift | keyIPv6 | tags,
	}
	p.generator((*[headerLen]byte)(h[magicAt:]))
	return rxGood
}

// generator reads pktgen's header.
func (p *parsed) generator(g *[headerLen]byte) {
	p.seq = binary.BigEndian.Uint32(g[4:])
	p.stamp = uint64(binary.BigEndian.Uint32(g[8:]))*1e6 + uint64(binary.BigEndian.Uint32(g[12:]))
}

// sums4 tells whether the checksum of an IPv4 header without options is right. The sum of words is the same in
// either byte order (RFC 1071).
func sums4(h *[ip4Len + udpLen + headerLen]byte) bool {
	s := uint64(binary.LittleEndian.Uint32(h[0:])) + uint64(binary.LittleEndian.Uint32(h[4:])) + uint64(binary.LittleEndian.Uint32(h[8:])) +
		uint64(binary.LittleEndian.Uint32(h[12:])) + uint64(binary.LittleEndian.Uint32(h[16:]))
	return fold64(s) == 0xffff
}

// verifyPayload looks at a UDP segment that is pktgen's: at its checksum, if it has one that the device did not verify, and
// whether all of the payload behind pktgen's header is 0, as it is sent. addrs are both IP addresses.
func verifyPayload(addrs, udp []byte, m *dma.Meta) verdict {
	if (udp[6] != 0 || udp[7] != 0) && m.Flags&dma.CsumGood == 0 {
		pseudo := uint64(protoUDP)<<8 + uint64(bits.ReverseBytes16(uint16(len(udp))))
		if fold64(pseudo+uint64(wordSum(addrs))+uint64(wordSum(udp))) != 0xffff {
			return rxSum
		}
	}
	if !zero(udp[udpLen+headerLen:]) {
		return rxPayload
	}
	return rxGood
}

// wordSum adds up the 16-bit words of b, in little-endian order, to one word; an odd byte counts as if a 0 followed.
func wordSum(b []byte) uint16 {
	var s, carry uint64
	for ; len(b) >= 8; b = b[8:] {
		s, carry = bits.Add64(s, binary.LittleEndian.Uint64(b), carry)
	}
	var last [8]byte
	copy(last[:], b)
	s, carry = bits.Add64(s, binary.LittleEndian.Uint64(last[:]), carry)
	return fold64(s>>32 + s&0xffffffff + carry)
}

// fold64 brings a sum down to 16 bits.
func fold64(s uint64) uint16 {
	s = s>>32 + s&0xffffffff
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	return uint16(s>>16 + s)
}

// zero tells whether all of b is 0.
func zero(b []byte) bool {
	var v uint64
	for ; len(b) >= 8; b = b[8:] {
		v |= binary.LittleEndian.Uint64(b)
	}
	for _, c := range b {
		v |= uint64(c)
	}
	return v == 0
}
