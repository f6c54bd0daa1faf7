package frame

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"
)

// Spec says what a UDP frame looks like, or with a TCP a TCP frame.
type Spec struct {
	Dst, Src         [6]byte
	MPLS             []uint32   // label stack entries, outermost first, all four bytes of each as they stand
	VLANs            []uint16   // 802.1Q tag control informations, outermost first; not together with MPLS
	SrcIP, DstIP     netip.Addr // both IPv4, or both IPv6
	TOS              uint8      // TOS of IPv4, traffic class of IPv6
	TTL              uint8      // TTL of IPv4, hop limit of IPv6
	ID               uint16     // identification of IPv4
	SrcPort, DstPort uint16
	Payload          []byte // what UDP or TCP carries
	NoUDPChecksum    bool   // the UDP checksum stays 0
}

// Frame is a built frame, without its frame check sequence and without padding.
type Frame struct {
	Bytes   []byte
	L3      int // where the IP header starts
	L4      int // where the UDP or TCP header starts
	Payload int // where the payload starts
}

// Build makes the frame of a Spec, with right lengths and checksums.
func Build(s Spec) (Frame, error) {
	f, err := build(s, layers.IPProtocolUDP, &layers.UDP{SrcPort: layers.UDPPort(s.SrcPort), DstPort: layers.UDPPort(s.DstPort)}, 8)
	if err != nil {
		return Frame{}, err
	}
	switch b := f.Bytes[f.L4:]; {
	case s.NoUDPChecksum:
		b[6], b[7] = 0, 0
	case b[6] == 0 && b[7] == 0:
		b[6], b[7] = 0xff, 0xff // RFC 768: 0 means none
	}
	return f, nil
}

// TCP is what a TCP frame has beside what a Spec says of it.
type TCP struct {
	Seq, Ack   uint32
	Flags      uint8 // as they stand in the header: FIN, SYN, RST, PSH, ACK, URG, ECE, CWR
	Window     uint16
	Timestamps bool // 12 bytes of options, as most connections have them
	ChecksumOK bool // DecodeTCP: it is right
}

// Flags of TCP.
const (
	FIN uint8 = 1 << 0
	PSH uint8 = 1 << 3
	ACK uint8 = 1 << 4
)

// BuildTCP makes a TCP frame, with right lengths and checksums. Of the Spec, NoUDPChecksum
// means nothing.
func BuildTCP(s Spec, t TCP) (Frame, error) {
	l := &layers.TCP{SrcPort: layers.TCPPort(s.SrcPort), DstPort: layers.TCPPort(s.DstPort), Seq: t.Seq, Ack: t.Ack, Window: t.Window}
	for i, f := range []*bool{&l.FIN, &l.SYN, &l.RST, &l.PSH, &l.ACK, &l.URG, &l.ECE, &l.CWR} {
		*f = t.Flags>>i&1 != 0
	}
	n := 20
	if t.Timestamps {
		n += 12
		nop := layers.TCPOption{OptionType: layers.TCPOptionKindNop}
		l.Options = []layers.TCPOption{nop, nop, {OptionType: layers.TCPOptionKindTimestamps, OptionLength: 10, OptionData: make([]byte, 8)}}
	}
	return build(s, layers.IPProtocolTCP, l, n)
}

// transport is a layer whose checksum covers IP's addresses.
type transport interface {
	gopacket.SerializableLayer
	SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
}

// build makes the frame around a transport layer with a header of n bytes.
func build(s Spec, proto layers.IPProtocol, l transport, hdr int) (Frame, error) {
	if len(s.MPLS) > 0 && len(s.VLANs) > 0 {
		return Frame{}, errors.New("building a frame: MPLS and VLAN tags together")
	}
	if s.SrcIP.Is4() != s.DstIP.Is4() || !s.SrcIP.IsValid() || !s.DstIP.IsValid() {
		return Frame{}, fmt.Errorf("building a frame: source %v and destination %v are not of one IP version", s.SrcIP, s.DstIP)
	}
	ls := s.link()
	l3 := 14 + 4*len(s.MPLS) + 4*len(s.VLANs)
	l4 := l3
	if s.SrcIP.Is4() {
		ip := &layers.IPv4{Version: 4, IHL: 5, TOS: s.TOS, Id: s.ID, TTL: s.TTL, Protocol: proto,
			SrcIP: s.SrcIP.AsSlice(), DstIP: s.DstIP.AsSlice()}
		if err := l.SetNetworkLayerForChecksum(ip); err != nil {
			return Frame{}, fmt.Errorf("building a frame: %w", err)
		}
		ls, l4 = append(ls, ip), l3+20
	} else {
		ip := &layers.IPv6{Version: 6, TrafficClass: s.TOS, HopLimit: s.TTL, NextHeader: proto,
			SrcIP: s.SrcIP.AsSlice(), DstIP: s.DstIP.AsSlice()}
		if err := l.SetNetworkLayerForChecksum(ip); err != nil {
			return Frame{}, fmt.Errorf("building a frame: %w", err)
		}
		ls, l4 = append(ls, ip), l3+40
	}
	n := l4 + hdr + len(s.Payload)
	if n-l3 > 0xffff {
		return Frame{}, fmt.Errorf("building a frame: an IP packet of %d bytes, want at most 65535", n-l3)
	}
	ls = append(ls, l, gopacket.Payload(s.Payload))
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ls...); err != nil {
		return Frame{}, fmt.Errorf("building a frame: %w", err)
	}
	b := buf.Bytes()
	if len(b) < n {
		return Frame{}, fmt.Errorf("building a frame: %d bytes, want %d", len(b), n)
	}
	return Frame{Bytes: b[:n:n], L3: l3, L4: l4, Payload: l4 + hdr}, nil // short frames were padded
}

// link makes the layers below IP.
func (s *Spec) link() []gopacket.SerializableLayer {
	l3 := layers.EthernetTypeIPv4
	if s.SrcIP.Is6() {
		l3 = layers.EthernetTypeIPv6
	}
	eth := &layers.Ethernet{DstMAC: net.HardwareAddr(s.Dst[:]), SrcMAC: net.HardwareAddr(s.Src[:]), EthernetType: l3}
	ls := []gopacket.SerializableLayer{eth}
	for i, e := range s.MPLS {
		eth.EthernetType = layers.EthernetTypeMPLSUnicast
		ls = append(ls, &layers.MPLS{Label: e >> 12, TrafficClass: uint8(e >> 9 & 7), StackBottom: i == len(s.MPLS)-1, TTL: uint8(e)})
	}
	for i, tci := range s.VLANs {
		eth.EthernetType = layers.EthernetTypeDot1Q
		next := l3
		if i < len(s.VLANs)-1 {
			next = layers.EthernetTypeDot1Q
		}
		ls = append(ls, &layers.Dot1Q{Priority: uint8(tci >> 13), DropEligible: tci>>12&1 != 0, VLANIdentifier: tci & 0xfff, Type: next})
	}
	return ls
}

// Decode takes a UDP frame apart. It fails where the frame is not one.
func Decode(b []byte) (Packet, error) {
	p, _, err := decode(b)
	if err != nil {
		return p, err
	}
	if p.UDPLen == 0 {
		return p, fmt.Errorf("decoding a frame of %d bytes: ethertype %#04x carries no UDP", len(b), p.EtherType)
	}
	p.generator()
	return p, nil
}

// DecodeTCP takes a TCP frame apart. It fails where the frame is not one. What is UDP's of the Packet
// stays 0.
func DecodeTCP(b []byte) (Packet, TCP, error) {
	p, t, err := decode(b)
	if err != nil {
		return p, TCP{}, err
	}
	if t == nil {
		return p, TCP{}, fmt.Errorf("decoding a frame of %d bytes: ethertype %#04x carries no TCP", len(b), p.EtherType)
	}
	return p, *t, nil
}

// decode takes a frame apart; the TCP is nil where there is none.
func decode(b []byte) (Packet, *TCP, error) {
	var tcp *TCP
	p := Packet{Len: len(b)}
	// Whatever the ports say that the payload is, it is not looked at: layers below UDP or TCP, and errors there,
	// are gopacket's guess.
	transport := false
	g := gopacket.NewPacket(b, layers.LayerTypeEthernet, gopacket.DecodeOptions{NoCopy: true})
	l3 := 14
	for _, l := range g.Layers() {
		if transport {
			break
		}
		switch l := l.(type) {
		case *layers.Ethernet:
			copy(p.Dst[:], l.DstMAC)
			copy(p.Src[:], l.SrcMAC)
			p.EtherType = uint16(l.EthernetType)
		case *layers.Dot1Q:
			p.VLANs = append(p.VLANs, binary.BigEndian.Uint16(l.Contents))
			p.EtherType = uint16(l.Type)
			l3 += 4
		case *layers.MPLS:
			p.MPLS = append(p.MPLS, binary.BigEndian.Uint32(l.Contents))
			l3 += 4
		case *layers.IPv4:
			p.TOS, p.TTL, p.ID, p.IPLen = l.TOS, l.TTL, l.Id, int(l.Length)
			p.SrcIP, _ = netip.AddrFromSlice(l.SrcIP.To4())
			p.DstIP, _ = netip.AddrFromSlice(l.DstIP.To4())
			p.IPChecksumOK = Sum(l.Contents) == 0
		case *layers.IPv6:
			p.TOS, p.TTL, p.IPLen = l.TrafficClass, l.HopLimit, int(l.Length)+40
			p.SrcIP, _ = netip.AddrFromSlice(l.SrcIP)
			p.DstIP, _ = netip.AddrFromSlice(l.DstIP)
			p.IPChecksumOK = true // it has none
		case *layers.UDP:
			transport = true
			p.SrcPort, p.DstPort = uint16(l.SrcPort), uint16(l.DstPort)
			p.UDPChecksum = l.Checksum
			p.UDPLen = int(l.Length)
			p.Payload = l.Payload
			seg := append(append([]byte(nil), l.Contents...), l.Payload...)
			p.UDPChecksumOK = l.Checksum != 0 && Sum(append(pseudo(p.SrcIP, p.DstIP, 17, p.UDPLen), seg...)) == 0
		case *layers.TCP:
			if len(l.Contents) < 20 { // one that is cut off is listed, too
				continue
			}
			transport = true
			p.SrcPort, p.DstPort = uint16(l.SrcPort), uint16(l.DstPort)
			p.Payload = l.Payload
			seg := append(append([]byte(nil), l.Contents...), l.Payload...)
			tcp = &TCP{Seq: l.Seq, Ack: l.Ack, Window: l.Window, Flags: l.Contents[13], Timestamps: len(l.Contents) == 32,
				ChecksumOK: Sum(append(pseudo(p.SrcIP, p.DstIP, 6, len(seg)), seg...)) == 0}
		}
	}
	if e := g.ErrorLayer(); e != nil && !transport {
		return p, nil, fmt.Errorf("decoding a frame of %d bytes: %w", len(b), e.Error())
	}
	p.L3 = l3
	return p, tcp, nil
}

// PcapWriter writes a capture file in the classic format. The first error sticks, and ends the
// capture.
type PcapWriter struct {
	buf *bufio.Writer
	w   *pcapgo.Writer
	err error
}

// NewPcapWriter writes the file's header.
func NewPcapWriter(w io.Writer) (*PcapWriter, error) {
	b := bufio.NewWriter(w)
	p := &PcapWriter{buf: b, w: pcapgo.NewWriter(b)}
	if err := p.w.WriteFileHeader(65535, layers.LinkTypeEthernet); err != nil {
		return nil, err
	}
	return p, b.Flush()
}

// AppendPcap writes more frames to a capture that has a header.
func AppendPcap(w io.Writer) *PcapWriter {
	b := bufio.NewWriter(w)
	return &PcapWriter{buf: b, w: pcapgo.NewWriter(b)}
}

// Write writes one frame, whole: a reader of the file sees it from then on. Only the call that
// meets an error returns it; those after it do nothing.
func (p *PcapWriter) Write(frame []byte, at time.Time) error {
	if p.err != nil {
		return nil
	}
	p.err = p.w.WritePacket(gopacket.CaptureInfo{Timestamp: at, CaptureLength: len(frame), Length: len(frame)}, frame)
	if p.err == nil {
		p.err = p.buf.Flush()
	}
	return p.err
}
