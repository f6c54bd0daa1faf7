package integration

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"
)

// onWire looks at every frame of a capture: lengths and checksums are right, whoever put them
// in, and no frame is longer than the MTU allows.
func onWire(t *testing.T, file string, longest int) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := pcapgo.NewReader(bufio.NewReaderSize(f, 1<<20))
	if err != nil {
		t.Fatal(err)
	}
	n := map[string]int{}
	most := 0
	for i := 1; ; i++ {
		b, _, err := r.ReadPacketData()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("frame %d: %v", i, err)
		}
		kind, err := frameOK(b, longest)
		if err != nil {
			t.Fatalf("frame %d of %d bytes, %s: %v\n%x", i, len(b), kind, err, b[:min(len(b), 100)])
		}
		n[kind]++
		most = max(most, len(b))
	}
	t.Logf("on the wire: %v, the longest has %d bytes", n, most)
	if most != longest {
		t.Errorf("the longest frame has %d bytes, want %d", most, longest)
	}
	for _, want := range []string{"ARP", "ICMPv4", "ICMPv6", "TCP/IPv4", "TCP/IPv6"} {
		if n[want] == 0 && (haveIPv6() || !strings.HasSuffix(want, "v6")) && (want[:2] != "IC" || havePing()) {
			t.Errorf("no frame of %s on the wire: %v", want, n)
		}
	}
}

// frameOK checks one frame.
func frameOK(b []byte, longest int) (kind string, err error) {
	if len(b) > longest {
		return "any", fmt.Errorf("longer than %d bytes", longest)
	}
	g := gopacket.NewPacket(b, layers.LayerTypeEthernet, gopacket.DecodeOptions{NoCopy: true})
	if e := g.ErrorLayer(); e != nil {
		return "any", e.Error()
	}
	var src, dst []byte
	ip, l3 := "", 14
	var upper gopacket.Layer
	var body []byte
	for _, l := range g.Layers() {
		switch l := l.(type) {
		case *layers.ARP:
			return "ARP", nil
		case *layers.Dot1Q:
			l3 += 4
			if l.VLANIdentifier != 77 {
				return "VLAN", fmt.Errorf("tag %d", l.VLANIdentifier)
			}
		case *layers.IPv4:
			if internetSum(l.Contents) != 0xffff {
				return "IPv4", errors.New("wrong header checksum")
			}
			if l.Flags&layers.IPv4MoreFragments != 0 || l.FragOffset != 0 {
				return "fragment", nil
			}
			if want := l3 + int(l.Length); len(b) < want || len(b) > max(want, 60) {
				return "IPv4", fmt.Errorf("a frame of %d bytes for an IP length of %d", len(b), l.Length)
			}
			ip, src, dst, body = "IPv4", l.SrcIP.To4(), l.DstIP.To4(), l.Payload
		case *layers.IPv6:
			if want := l3 + 40 + int(l.Length); len(b) < want || len(b) > max(want, 60) {
				return "IPv6", fmt.Errorf("a frame of %d bytes for a payload length of %d", len(b), l.Length)
			}
			ip, src, dst, body = "IPv6", l.SrcIP.To16(), l.DstIP.To16(), l.Payload
		case *layers.TCP, *layers.UDP, *layers.ICMPv6:
			upper = l
		case *layers.ICMPv4:
			if internetSum(body) != 0xffff {
				return "ICMPv4", errors.New("wrong checksum")
			}
			return "ICMPv4", nil
		}
	}
	proto := byte(0)
	switch upper.(type) {
	case *layers.TCP:
		kind, proto = "TCP/"+ip, 6
	case *layers.UDP:
		kind, proto = "UDP/"+ip, 17
	case *layers.ICMPv6:
		kind, proto, body = "ICMPv6", 58, append(bytes.Clone(upper.LayerContents()), upper.LayerPayload()...)
	default:
		return "other", nil
	}
	pseudo := append(append(bytes.Clone(src), dst...), byte(len(body)>>24), byte(len(body)>>16), byte(len(body)>>8), byte(len(body)), 0, 0, 0, proto)
	if internetSum(append(pseudo, body...)) != 0xffff {
		return kind, errors.New("wrong checksum")
	}
	return kind, nil
}

// internetSum is RFC 1071's, 0xffff where b contains its own, right, checksum.
func internetSum(b []byte) uint16 {
	var s uint32
	for i := 0; i < len(b); i += 2 {
		w := uint32(b[i]) << 8
		if i+1 < len(b) {
			w |= uint32(b[i+1])
		}
		s += w
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}
