package tap

import (
	"bytes"
	"encoding/binary"

	"github.com/ring3dev/ring3/bus/dma"
)

// What is read of IP and TCP headers (RFC 791, 8200, 9293).
const (
	typeIPv4 = 0x0800
	typeIPv6 = 0x86dd
	protoTCP = 6

	ipv4Len    = 20 // without options
	ipv6Len    = 40
	maxIP      = 0xffff
	fragMask   = 0x3fff // more fragments, and the fragment's offset
	dontFrag   = 0x4000
	tcpSeq     = 4
	tcpAck     = 8
	tcpFlags   = 13
	tcpWindow  = 14
	tcpOptions = 20

	flagPSH = 0x08
	flagACK = 0x10
)

// segment is where the parts of a TCP frame are. The payload is frame[payload:end]; padding
// of a short frame comes after it.
type segment struct {
	v6           bool
	tcp, payload int
	end          int
	seq          uint32
	flags        byte
}

// parse finds the parts of a TCP frame over IPv4 without options, not a fragment, or over
// IPv6 without extension headers. Every other frame is none.
func parse(f []byte) (s segment, ok bool) {
	if len(f) < etherLen+ipv4Len+minTCP {
		return s, false
	}
	switch binary.BigEndian.Uint16(f[macsLen:]) {
	case typeIPv4:
		if f[14] != 0x45 || f[23] != protoTCP || binary.BigEndian.Uint16(f[20:])&fragMask != 0 {
			return s, false
		}
		s.tcp = etherLen + ipv4Len
		s.end = etherLen + int(binary.BigEndian.Uint16(f[16:]))
	case typeIPv6:
		if len(f) < etherLen+ipv6Len+minTCP || f[14]>>4 != 6 || f[20] != protoTCP {
			return s, false
		}
		s.v6 = true
		s.tcp = etherLen + ipv6Len
		s.end = s.tcp + int(binary.BigEndian.Uint16(f[18:]))
	default:
		return s, false
	}
	if s.end > len(f) || s.tcp+minTCP > s.end {
		return s, false
	}
	s.payload = s.tcp + int(f[s.tcp+tcpDataOff]>>4)*4
	if s.payload < s.tcp+minTCP || s.payload > s.end {
		return s, false
	}
	s.seq = binary.BigEndian.Uint32(f[s.tcp+tcpSeq:])
	s.flags = f[s.tcp+tcpFlags]
	return s, true
}

// len is the length of the payload.
func (s *segment) len() int { return s.end - s.payload }

// plain says whether a segment is nothing but data, so that it can be joined to others.
func (s *segment) plain() bool { return s.len() > 0 && s.flags&^flagPSH == flagACK }

// pseudo is the sum of the pseudo header for n bytes of TCP.
func (s *segment) pseudo(f []byte, n int) uint64 {
	addrs := f[26:34]
	if s.v6 {
		addrs = f[22:54]
	}
	return sum(addrs, uint64(n)+protoTCP)
}

// verified says whether the checksums of a frame are right: the device has said so, or they
// are looked at here.
func (s *segment) verified(b *dma.Buf) bool {
	if b.Meta.Flags&dma.CsumGood != 0 {
		return true
	}
	f := b.Data
	if !s.v6 && fold(sum(f[etherLen:s.tcp], 0)) != 0xffff {
		return false
	}
	return fold(sum(f[s.tcp:s.end], s.pseudo(f, s.end-s.tcp))) == 0xffff
}

// sameFlow says whether two frames are of one TCP connection and direction. Of segments of
// one IP version.
func sameFlow(f, g []byte, s *segment) bool {
	t := s.tcp
	if s.v6 {
		return bytes.Equal(f[:etherLen], g[:etherLen]) && bytes.Equal(f[22:t+4], g[22:t+4])
	}
	return bytes.Equal(f[:etherLen], g[:etherLen]) && bytes.Equal(f[26:t+4], g[26:t+4])
}

// maxGroup is how many segments are joined at most; a frame of 64 KiB has 45 of the usual
// size.
const maxGroup = 64

// group is segments of one flow that follow each other, to be given to the kernel as one
// frame. first describes the first, whose headers stand for all.
type group struct {
	bufs  [maxGroup]*dma.Buf
	ends  [maxGroup]int // of their payloads, as they were checked: a device may write to frames later
	n     int
	first segment
	mss   int    // the first's payload; only the last may have less
	size  int    // all payloads
	next  uint32 // the sequence number that comes next
	push  bool   // the last had PSH set
	id    uint16 // the IPv4 identification that comes next
}

// start begins a group with a frame.
func (g *group) start(b *dma.Buf, s segment) {
	g.bufs[0], g.ends[0], g.n, g.first = b, s.end, 1, s
	g.mss, g.size = s.len(), s.len()
	g.next = s.seq + uint32(g.size)
	g.push = s.flags&flagPSH != 0
	if !s.v6 {
		g.id = binary.BigEndian.Uint16(b.Data[18:]) + 1
	}
}

// full says whether nothing can follow: the last segment was short, asked to be pushed, or
// there is no room.
func (g *group) full() bool {
	return g.push || g.n == maxGroup || g.size != g.n*g.mss || g.first.payload-etherLen+g.size+g.mss > maxIP
}

// add joins a frame of the group's flow, if it follows on what is there and differs in
// nothing that the headers of the first could not say for it.
func (g *group) add(b *dma.Buf, s segment) bool {
	f, h, t := b.Data, g.bufs[0].Data, s.tcp
	if s.seq != g.next || s.len() > g.mss || s.payload != g.first.payload || s.payload-etherLen+g.size+s.len() > maxIP {
		return false
	}
	if s.v6 {
		// Version, traffic class and flow label; hop limit.
		if !bytes.Equal(f[14:18], h[14:18]) || f[21] != h[21] {
			return false
		}
	} else {
		// Service, fragment flags and time to live; without DF the identifications count up.
		if f[15] != h[15] || !bytes.Equal(f[20:23], h[20:23]) ||
			binary.BigEndian.Uint16(f[20:])&dontFrag == 0 && binary.BigEndian.Uint16(f[18:]) != g.id {
			return false
		}
	}
	if !bytes.Equal(f[t+tcpAck:t+tcpAck+4], h[t+tcpAck:t+tcpAck+4]) || !bytes.Equal(f[t+tcpWindow:t+tcpWindow+2], h[t+tcpWindow:t+tcpWindow+2]) ||
		!bytes.Equal(f[t+tcpOptions:s.payload], h[t+tcpOptions:s.payload]) {
		return false
	}
	g.bufs[g.n], g.ends[g.n] = b, s.end
	g.n++
	g.size += s.len()
	g.next += uint32(s.len())
	g.push = s.flags&flagPSH != 0
	g.id++
	return true
}

// seal makes the first frame's headers those of the whole, and h the header before it: the
// kernel takes the TCP checksum as verified, and could cut the frame up again.
func (g *group) seal(h []byte) {
	f, s := g.bufs[0].Data, &g.first
	tcpLen := s.payload - s.tcp + g.size
	kind := byte(gsoTCP6)
	if s.v6 {
		binary.BigEndian.PutUint16(f[18:], uint16(tcpLen))
	} else {
		kind = gsoTCP4
		binary.BigEndian.PutUint16(f[16:], uint16(ipv4Len+tcpLen))
		binary.BigEndian.PutUint16(f[24:], 0)
		binary.BigEndian.PutUint16(f[24:], ^fold(sum(f[etherLen:s.tcp], 0)))
	}
	if g.push {
		f[s.tcp+tcpFlags] |= flagPSH
	}
	binary.BigEndian.PutUint16(f[s.tcp+tcpCsumOff:], fold(s.pseudo(f, tcpLen)))
	h[hdrFlags], h[hdrGSOType] = flagNeedsCsum, kind
	binary.LittleEndian.PutUint16(h[hdrHdrLen:], uint16(s.payload))
	binary.LittleEndian.PutUint16(h[hdrGSOSize:], uint16(g.mss))
	binary.LittleEndian.PutUint16(h[hdrCsumStart:], uint16(s.tcp))
	binary.LittleEndian.PutUint16(h[hdrCsumOffset:], tcpCsumOff)
}
