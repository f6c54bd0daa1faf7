package sim_test

import (
	"fmt"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/ring3dev/ring3/bus"
)

// TestE1000Extended compares what the 82574L's extended descriptors say of all kinds of packets with
// what QEMU's say, bit by bit; but for the packet checksum, which QEMU leaves out, and the
// first fragment of a TCP segment, which QEMU says is one.
func TestE1000Extended(t *testing.T) {
	if testing.Short() {
		t.Skip("starts QEMU")
	}
	t.Parallel()
	var have [2]map[string]string
	for i, backend := range []string{"sim", "qemu"} {
		a, b := pairOf(t, backend, "e1000e")
		have[i] = extended(t, a, b)
	}
	for what, s := range have[0] {
		if q := have[1][what]; s != q {
			t.Errorf("%s: %s, QEMU says %s", what, s, q)
		}
	}
}

func extended(t *testing.T, a, b *nic) map[string]string {
	udp4, frag, icmp := ip4(), ip4(), ip4()
	udp4.Protocol, icmp.Protocol = layers.IPProtocolUDP, layers.IPProtocolICMPv4
	frag.Flags = layers.IPv4MoreFragments
	udp6 := ip6()
	udp6.NextHeader = layers.IPProtocolUDP
	udp := &layers.UDP{SrcPort: 5, DstPort: 6}
	syn := tcp()
	syn.ACK = false
	tag := func(kind layers.EthernetType) *layers.Dot1Q { return &layers.Dot1Q{VLANIdentifier: 77, Type: kind} }
	noSum := packet(t, a, b, udp4, udp, text(30))
	noSum[40], noSum[41] = 0, 0
	frames := map[string][]byte{
		"TCP4": packet(t, a, b, ip4(), tcp(), text(100)), "TCP4 SYN": packet(t, a, b, ip4(), syn),
		"TCP4 ACK": packet(t, a, b, ip4(), tcp()), "UDP4": packet(t, a, b, udp4, udp, text(50)), "UDP4 no sum": noSum,
		"ICMP4": packet(t, a, b, icmp, text(50)), "fragment": packet(t, a, b, frag, text(50)),
		"TCP6": packet(t, a, b, ip6(), tcp(), text(100)), "UDP6": packet(t, a, b, udp6, udp, text(10)),
		"raw": raw(a, b, 200), "VLAN TCP4": packet(t, a, b, tag(layers.EthernetTypeIPv4), ip4(), tcp(), text(10)),
		"VLAN TCP6": packet(t, a, b, tag(layers.EthernetTypeIPv6), ip6(), tcp(), gopacket.Payload(text(10))),
	}
	said := map[string]string{}
	for _, mode := range []struct {
		name                string
		rxcsum, mrqc, rfctl uint32
		vme                 bool
	}{
		{"plain", 0, 0, 0, false}, {"checksums", 3 << 8, 0, 0, false}, {"checksums, VME", 3 << 8, 0, 0, true},
		{"hash", 3<<8 | 1<<13, 1 | 0x1f<<16, 0, true}, {"hash of addresses", 1 << 13, 1 | 1<<17 | 1<<20, 0, false},
		{"hash of TCP6 only", 1 << 13, 1 | 1<<18, 0, false}, {"no IPv6", 3 << 8, 0, 1<<10 | 1<<11, false},
		{"no RSS", 1 << 13, 0, 0, false},
	} {
		b.r.Write32(rRCTL, 0)
		b.r.Write32(rRFCTL, 1<<15|mode.rfctl)
		b.r.Write32(rRXCSUM, mode.rxcsum)
		b.r.Write32(rMRQC, mode.mrqc)
		for i := range bus.Off(10) {
			b.r.Write32(rRSSRK+4*i, 0x12345678*uint32(i+1)+0x9abcdef)
		}
		for i := range bus.Off(32) {
			b.r.Write32(rRETA+4*i, 0x80008000)
		}
		ctrl := b.r.Read32(rCTRL) &^ fVME
		if mode.vme {
			ctrl |= fVME
		}
		b.r.Write32(rCTRL, ctrl)
		a.up(0)
		b.up(fSECRC)
		for name, f := range frames {
			a.send(f)
			for q := range 2 {
				for _, g := range b.rx(q, nicBuf) {
					if mode.rxcsum&(1<<13) == 0 {
						g.low &^= 0xffff << 48
					}
					if name == "fragment" {
						g.high &^= 0xf8000
					}
					said[mode.name+": "+name] += fmt.Sprintf("queue %d: %d bytes, status %#x tag %#x mrq %#x hash %#x", q, len(g.f), uint32(g.high), g.high>>48, uint32(g.low), g.low>>32)
				}
			}
		}
	}
	return said
}
