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

// Spec says what a UDP frame looks like.
type Spec struct {
	Dst, Src         [6]byte
	MPLS             []uint32   // label stack entries, outermost first, all four bytes of each as they stand
	VLANs            []uint16   // 802.1Q tag control informations, outermost first; not together with MPLS
	SrcIP, DstIP     netip.Addr // both IPv4, or both IPv6
	TOS              uint8      // TOS of IPv4, traffic class of IPv6
	TTL              uint8      // TTL of IPv4, hop limit of IPv6
	ID               uint16     // identification of IPv4
	SrcPort, DstPort uint16
	Payload          []byte // what UDP carries
	NoUDPChecksum    bool   // the UDP checksum stays 0
}

// Frame is a built frame, without its frame check sequence and without padding.
type Frame struct {
	Bytes   []byte
	L3      int // where the IP header starts
	L4      int // where the UDP header starts
	Payload int // where the payload of UDP starts
}

// Build makes the frame of a Spec, with right lengths and checksums.
func Build(s Spec) (Frame, error) {
	if len(s.MPLS) > 0 && len(s.VLANs) > 0 {
		return Frame{}, errors.New("building a frame: MPLS and VLAN tags together")
	}
	if s.SrcIP.Is4() != s.DstIP.Is4() || !s.SrcIP.IsValid() || !s.DstIP.IsValid() {
		return Frame{}, fmt.Errorf("building a frame: source %v and destination %v are not of one IP version", s.SrcIP, s.DstIP)
	}
	ls := s.link()
	l3 := 14 + 4*len(s.MPLS) + 4*len(s.VLANs)
	udp := &layers.UDP{SrcPort: layers.UDPPort(s.SrcPort), DstPort: layers.UDPPort(s.DstPort)}
	l4 := l3
	if s.SrcIP.Is4() {
		ip := &layers.IPv4{Version: 4, IHL: 5, TOS: s.TOS, Id: s.ID, TTL: s.TTL, Protocol: layers.IPProtocolUDP,
			SrcIP: s.SrcIP.AsSlice(), DstIP: s.DstIP.AsSlice()}
		if err := udp.SetNetworkLayerForChecksum(ip); err != nil {
			return Frame{}, fmt.Errorf("building a frame: %w", err)
		}
		ls, l4 = append(ls, ip), l3+20
	} else {
		ip := &layers.IPv6{Version: 6, TrafficClass: s.TOS, HopLimit: s.TTL, NextHeader: layers.IPProtocolUDP,
			SrcIP: s.SrcIP.AsSlice(), DstIP: s.DstIP.AsSlice()}
		if err := udp.SetNetworkLayerForChecksum(ip); err != nil {
			return Frame{}, fmt.Errorf("building a frame: %w", err)
		}
		ls, l4 = append(ls, ip), l3+40
	}
	n := l4 + 8 + len(s.Payload)
	if n-l3 > 0xffff {
		return Frame{}, fmt.Errorf("building a frame: an IP packet of %d bytes, want at most 65535", n-l3)
	}
	ls = append(ls, udp, gopacket.Payload(s.Payload))
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ls...); err != nil {
		return Frame{}, fmt.Errorf("building a frame: %w", err)
	}
	b := buf.Bytes()
	if len(b) < n {
		return Frame{}, fmt.Errorf("building a frame: %d bytes, want %d", len(b), n)
	}
	b = b[:n:n] // short frames were padded
	switch {
	case s.NoUDPChecksum:
		b[l4+6], b[l4+7] = 0, 0
	case b[l4+6] == 0 && b[l4+7] == 0:
		b[l4+6], b[l4+7] = 0xff, 0xff // RFC 768: 0 means none
	}
	return Frame{Bytes: b, L3: l3, L4: l4, Payload: l4 + 8}, nil
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
	p := Packet{Len: len(b)}
	g := gopacket.NewPacket(b, layers.LayerTypeEthernet, gopacket.DecodeOptions{NoCopy: true})
	l3 := 14
	for _, l := range g.Layers() {
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
			p.SrcPort, p.DstPort = uint16(l.SrcPort), uint16(l.DstPort)
			p.UDPChecksum = l.Checksum
			p.UDPLen = int(l.Length)
			p.Payload = l.Payload
			seg := append(append([]byte(nil), l.Contents...), l.Payload...)
			p.UDPChecksumOK = l.Checksum != 0 && Sum(append(pseudo(p.SrcIP, p.DstIP, p.UDPLen), seg...)) == 0
		}
	}
	if e := g.ErrorLayer(); e != nil {
		return p, fmt.Errorf("decoding a frame of %d bytes: %w", len(b), e.Error())
	}
	if p.UDPLen == 0 {
		return p, fmt.Errorf("decoding a frame of %d bytes: ethertype %#04x carries no UDP", len(b), p.EtherType)
	}
	p.L3 = l3
	p.generator()
	return p, nil
}

// Pcap reads a capture file in the classic format, as QEMU's filter-dump writes it.
type Pcap struct{ r *pcapgo.Reader }

// maxRecord bounds a record, so that a broken file cannot ask for all memory.
const maxRecord = 256 << 10

// NewPcap reads the file's header. It fails where the file is no capture of Ethernet frames.
func NewPcap(r io.Reader) (*Pcap, error) {
	p, err := pcapgo.NewReader(r)
	if err != nil {
		return nil, fmt.Errorf("reading a capture's header: %w", err)
	}
	if t := p.LinkType(); t != layers.LinkTypeEthernet {
		return nil, fmt.Errorf("reading a capture's header: link type %d, want %d (Ethernet)", t, layers.LinkTypeEthernet)
	}
	p.SetSnaplen(maxRecord)
	return &Pcap{p}, nil
}

// Next returns the next frame and when it was captured: io.EOF after the last one, and
// io.ErrUnexpectedEOF (wrapped) where the last record is cut short.
func (p *Pcap) Next() ([]byte, time.Time, error) {
	b, ci, err := p.r.ReadPacketData()
	switch {
	case err == io.EOF && ci.CaptureLength > 0:
		err = io.ErrUnexpectedEOF // the record's header was there
	case err == io.EOF:
		return nil, time.Time{}, io.EOF
	}
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("reading a capture's record: %w", err)
	}
	return b, ci.Timestamp, nil
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
