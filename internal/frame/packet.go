package frame

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"
)

// Magic is the first word of what pktgen puts into UDP.
const Magic = 0xbe9be955

// HeaderLen is the length of pktgen's header: magic, sequence number, seconds, microseconds, each a big-endian word.
const HeaderLen = 16

// Packet is a decoded UDP frame.
type Packet struct {
	Len           int // of the frame, in bytes, with padding
	Dst, Src      [6]byte
	EtherType     uint16 // the innermost
	MPLS          []uint32
	VLANs         []uint16 // tag control informations
	L3            int      // where the IP header starts
	IPLen         int      // of the IP packet, header included
	SrcIP, DstIP  netip.Addr
	TOS, TTL      uint8
	ID            uint16
	IPChecksumOK  bool
	UDPLen        int
	SrcPort       uint16
	DstPort       uint16
	UDPChecksum   uint16 // 0: none
	UDPChecksumOK bool   // there is one and it is right
	Payload       []byte // of UDP or TCP, without padding

	Pktgen    bool // the payload starts with pktgen's header:
	Seq       uint32
	Sec, Usec uint32
}

func (p *Packet) generator() {
	if len(p.Payload) < HeaderLen || binary.BigEndian.Uint32(p.Payload) != Magic {
		return
	}
	p.Pktgen = true
	p.Seq = binary.BigEndian.Uint32(p.Payload[4:])
	p.Sec = binary.BigEndian.Uint32(p.Payload[8:])
	p.Usec = binary.BigEndian.Uint32(p.Payload[12:])
}

// Time is when the generator built the packet; the zero time if it does not say.
func (p Packet) Time() time.Time {
	if p.Sec == 0 && p.Usec == 0 {
		return time.Time{}
	}
	return time.Unix(int64(p.Sec), int64(p.Usec)*1000)
}

// String is one line for people.
func (p Packet) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s > %s", net.HardwareAddr(p.Src[:]), net.HardwareAddr(p.Dst[:]))
	for _, l := range p.MPLS {
		fmt.Fprintf(&b, " mpls %08x", l)
	}
	for _, v := range p.VLANs {
		fmt.Fprintf(&b, " vlan %d", v&0xfff)
	}
	fmt.Fprintf(&b, " %s > %s udp %d bytes", netip.AddrPortFrom(p.SrcIP, p.SrcPort), netip.AddrPortFrom(p.DstIP, p.DstPort), p.Len)
	if p.Pktgen {
		fmt.Fprintf(&b, " seq %d", p.Seq)
		if t := p.Time(); !t.IsZero() {
			fmt.Fprintf(&b, " at %s", t.UTC().Format("15:04:05.000000"))
		}
	}
	return b.String()
}

// Sum is the Internet checksum (RFC 1071) of b: 0 where b contains its own, right, checksum.
func Sum(b []byte) uint16 {
	var s uint64
	for ; len(b) >= 2; b = b[2:] {
		s += uint64(binary.BigEndian.Uint16(b))
	}
	if len(b) > 0 {
		s += uint64(b[0]) << 8
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return ^uint16(s)
}

// pseudo is the header that the UDP or TCP checksum covers beside the segment.
func pseudo(src, dst netip.Addr, proto byte, n int) []byte {
	b := append(src.AsSlice(), dst.AsSlice()...)
	return binary.BigEndian.AppendUint32(append(b, 0, 0, 0, proto), uint32(n))
}
