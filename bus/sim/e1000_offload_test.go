package sim_test

import (
	"bytes"
	"encoding/binary"
	"net"
	"slices"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/ring3dev/ring3/bus"
)

// ctx is a context descriptor for frames with n bytes before the IP header.
func ctx(ip, tcp, tuOff, paylen, hdr, mss int, flags uint64) [2]uint64 {
	return [2]uint64{
		uint64(ip) | uint64(ip+10)<<8 | uint64(tcp-1)<<16 | uint64(tcp)<<32 | uint64(tcp+tuOff)<<40,
		uint64(paylen) | flags<<24 | tDEXT | uint64(hdr)<<40 | uint64(mss)<<48,
	}
}

func ip4() *layers.IPv4 {
	return &layers.IPv4{Id: 0xfffe, Protocol: layers.IPProtocolTCP, SrcIP: net.IP{10, 0, 0, 1}, DstIP: net.IP{10, 0, 0, 2}}
}

func ip6() *layers.IPv6 {
	return &layers.IPv6{NextHeader: layers.IPProtocolTCP, SrcIP: net.ParseIP("fd00::1"), DstIP: net.ParseIP("fd00::2")}
}

func tcp() *layers.TCP {
	return &layers.TCP{SrcPort: 1000, DstPort: 2000, Seq: 0xfffffff0, Ack: 7, ACK: true, PSH: true, FIN: true, Window: 9}
}

func text(n int) gopacket.Payload {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i*13 + i>>8)
	}
	return p
}

// pseudo puts the sum of the pseudo header where the checksum will be, as the SDM asks: with the
// length, or for segmentation without.
func pseudo(f []byte, ip, l4, off int, length bool) {
	s := uint32(f[ip+9])
	addrs := f[ip+12 : ip+20]
	if f[ip]>>4 == 6 {
		s, addrs = uint32(f[ip+6]), f[ip+8:ip+40]
	}
	if length {
		s += uint32(len(f) - l4)
	}
	for i := 0; i < len(addrs); i += 2 {
		s += uint32(binary.BigEndian.Uint16(addrs[i:]))
	}
	for s>>16 != 0 {
		s = s>>16 + s&0xffff
	}
	binary.BigEndian.PutUint16(f[l4+off:], uint16(s))
}

// A frame whose checksums are put in arrives as one that software made.
func TestE1000TxChecksum(t *testing.T) {
	on(t, twoChips, true, func(t *testing.T, a, b *nic) {
		a.up(0)
		b.up(fSECRC)
		udp4 := ip4()
		udp4.Protocol = layers.IPProtocolUDP
		udp6 := ip6()
		udp6.NextHeader = layers.IPProtocolUDP
		udp := &layers.UDP{SrcPort: 5, DstPort: 6}
		for _, c := range []struct {
			name        string
			f           []byte
			ip, l4, off int
		}{
			{"TCP over IPv4", packet(t, a, b, ip4(), tcp(), text(777)), 14, 34, 16},
			{"UDP over IPv4", packet(t, a, b, udp4, udp, text(778)), 14, 34, 6},
			{"TCP over IPv6", packet(t, a, b, ip6(), tcp(), text(776)), 14, 54, 16},
			{"UDP over IPv6", packet(t, a, b, udp6, udp, text(99)), 14, 54, 6},
		} {
			f := slices.Clone(c.f)
			pseudo(f, c.ip, c.l4, c.off, true)
			flags, opts := uint64(1<<0), uint64(tTXSM)
			if c.off == 6 {
				flags = 0
			}
			if f[c.ip]>>4 == 4 {
				f[c.ip+10], f[c.ip+11] = 0, 0
				flags, opts = flags|1<<1, opts|tIXSM
			}
			a.used = 0
			at := a.put(f)
			a.tx(0, ctx(c.ip, c.l4, c.off, 0, 0, 0, flags),
				// in two pieces
				[2]uint64{at, 100 | tData | tIFCS | opts}, [2]uint64{at + 100, uint64(len(f)-100) | tData | tEOP | tIFCS | opts})
			if g := b.one(); !bytes.Equal(g.f, c.f) {
				t.Errorf("%s: arrived as\n%x, want\n%x", c.name, g.f, c.f)
			}
		}
	})
}

// What is segmented arrives as segments that software would have made.
//
// QEMU 7.2's e1000e does not segment between two of its own: it cuts IPv4 into fragments and
// spoils IPv6. Its e1000 counts wrong in IPv6. Both send an empty segment after a last one that is
// full.
func TestE1000Segments(t *testing.T) {
	on(t, twoChips, true, func(t *testing.T, a, b *nic) {
		if a.emu && a.pcie {
			t.Skip("QEMU's model does not segment")
		}
		a.up(0)
		b.up(fSECRC)
		if !a.emu {
			b.r.Write32(rCTRL, b.r.Read32(rCTRL)|fVME)
			a.r.Write32(rCTRL, a.r.Read32(rCTRL)|fVME)
		}
		const mss = 1000
		for _, v6 := range []bool{false, true} {
			for _, n := range []int{500, mss, mss + 1, 4 * mss, 10*mss + 123} {
				ip, ipLen := gopacket.SerializableLayer(ip4()), 20
				if v6 {
					ip, ipLen = ip6(), 40
				}
				if a.emu && (v6 || n%mss == 0) {
					continue
				}
				f := packet(t, a, b, ip, tcp(), text(n))
				hdr := 14 + ipLen + 20
				pseudo(f, 14, 14+ipLen, 16, false)
				flags := uint64(1<<0 | 1<<2)
				opts := uint64(tData | tTSE | tIFCS | tTXSM)
				if !v6 {
					f[16], f[17], f[24], f[25] = 0, 0, 0, 0
					flags, opts = flags|1<<1, opts|tIXSM
				} else {
					f[18], f[19] = 0, 0
				}
				if !a.emu {
					opts |= tVLE | 5<<61 | 42<<48
				}
				a.used = 0
				at := a.put(f)
				descs := [][2]uint64{ctx(14, 14+ipLen, 16, n, hdr, mss, flags), {at, uint64(hdr) | opts}}
				for off := hdr; off < len(f); off += 4000 {
					k := min(4000, len(f)-off)
					descs = append(descs, [2]uint64{at + uint64(off), uint64(k) | opts})
				}
				descs[len(descs)-1][1] |= tEOP
				a.tx(0, descs...)
				frames := b.rx(0, nicBuf)
				if want := (n + mss - 1) / mss; len(frames) != want {
					t.Fatalf("IPv6 %t, %d bytes: %d segments, want %d", v6, n, len(frames), want)
				}
				for i, g := range frames {
					var wantIP gopacket.SerializableLayer = ip6()
					x := tcp()
					x.Seq += uint32(i * mss)
					x.PSH, x.FIN = i == len(frames)-1, i == len(frames)-1
					if !v6 {
						y := ip4()
						y.Id += uint16(i)
						wantIP = y
					}
					want := packet(t, a, b, wantIP, x, gopacket.Payload(text(n)[i*mss:min(n, (i+1)*mss)]))
					want = want[:max(len(g.f), 56)] // padding, less a tag
					if !bytes.Equal(g.f, want) {
						t.Errorf("IPv6 %t, %d bytes: segment %d arrived as\n%x, want\n%x", v6, n, i, g.f[:min(80, len(g.f))], want[:min(80, len(want))])
					}
					if tag := g.high >> 48; !a.emu && (tag != 5<<13|42 || g.high>>32&8 == 0) {
						t.Errorf("segment %d: tag %#x, want priority 5, VLAN 42", i, tag)
					}
				}
				if b.rxNext[0] > nicRing/2 {
					b.r.Write32(rRCTL, 0)
					b.up(fSECRC)
				}
			}
		}
	})
}

func TestE1000VLAN(t *testing.T) {
	on(t, twoChips, true, func(t *testing.T, a, b *nic) {
		a.up(0)
		b.up(fSECRC)
		a.r.Write32(rCTRL, a.r.Read32(rCTRL)|fVME)
		f := raw(a, b, 100)
		tagged := slices.Concat(f[:12], []byte{0x81, 0, 0x60, 7}, f[12:])
		a.used = 0
		a.tx(0, [2]uint64{a.put(f), uint64(len(f)) | tEOP | tIFCS | tVLE | 0x6007<<48})
		if g := b.one(); !bytes.Equal(g.f, tagged) {
			t.Errorf("a tag was inserted: %x, want %x", g.f[:20], tagged[:20])
		}
		b.r.Write32(rCTRL, b.r.Read32(rCTRL)|fVME)
		a.send(tagged)
		g := b.one()
		if !bytes.Equal(g.f, f) || g.high>>32&8 == 0 {
			t.Errorf("a tag was stripped: %x, status %#x, want %x, VP", g.f[:20], g.high>>32, f[:20])
		}
		if g.high>>48 != 0x6007 && !(a.emu && a.pcie) { // QEMU's e1000e forgets it in legacy descriptors
			t.Errorf("special = %#x, want 0x6007", g.high>>48)
		}
	})
}

// Checksums of what arrives: good, bad, none, of what is no IP.
func TestE1000RxChecksum(t *testing.T) {
	const ipcs, tcpcs, tcpe, ipe = 1 << 6, 1 << 5, 1 << 29, 1 << 30
	on(t, allChips, true, func(t *testing.T, a, b *nic) {
		if a.emu && !a.pcie {
			t.Skip("QEMU's model verifies nothing")
		}
		a.up(0)
		for _, ext := range []bool{false, true} {
			if ext && !a.pcie {
				continue
			}
			b.r.Write32(rRCTL, 0)
			if a.pcie {
				v := uint32(0)
				if ext {
					v = 1 << 15
				}
				b.r.Write32(rRFCTL, v)
			}
			b.r.Write32(rRXCSUM, 1<<8|1<<9|1<<10)
			b.up(fSECRC)
			udp4 := ip4()
			udp4.Protocol = layers.IPProtocolUDP
			udp := &layers.UDP{SrcPort: 5, DstPort: 6}
			for _, c := range []struct {
				name string
				f    []byte
				bad  int // a byte that is changed
				want uint32
			}{
				{"TCP over IPv4", packet(t, a, b, ip4(), tcp(), text(777)), 0, ipcs | tcpcs},
				{"bad TCP over IPv4", packet(t, a, b, ip4(), tcp(), text(777)), 300, ipcs | tcpcs | tcpe},
				{"bad IPv4", packet(t, a, b, ip4(), tcp(), text(777)), 18, ipcs | tcpcs | ipe},
				{"UDP over IPv4", packet(t, a, b, udp4, udp, text(31)), 0, ipcs | tcpcs},
				{"short UDP", packet(t, a, b, udp4, udp, text(1)), 0, ipcs | tcpcs},
				{"TCP over IPv6", packet(t, a, b, ip6(), tcp(), text(776)), 0, tcpcs},
				{"bad TCP over IPv6", packet(t, a, b, ip6(), tcp(), text(776)), 200, tcpcs | tcpe},
				{"no IP", raw(a, b, 100), 0, 0},
			} {
				if c.bad > 0 {
					c.f[c.bad] ^= 0x40
				}
				a.send(c.f)
				g := b.one()
				v := uint32(g.high>>32&0xff | g.high>>40<<24)
				if ext {
					v = uint32(g.high)
				}
				if got := v & (ipcs | tcpcs | tcpe | ipe); got != c.want {
					t.Errorf("extended %t: %s: status %#x, want %#x", ext, c.name, got, c.want)
				}
				if len(g.f) != len(c.f) {
					t.Errorf("%s: %d bytes, want %d", c.name, len(g.f), len(c.f))
				}
			}
		}
	})
}

// The vectors are those that Microsoft publishes for RSS.
func TestE1000RSS(t *testing.T) {
	key := []byte{
		0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0, 0xca, 0x2b, 0xcb,
		0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
	}
	on(t, newChip, true, func(t *testing.T, a, b *nic) {
		a.up(0)
		for i := range 10 {
			b.r.Write32(rRSSRK+4*bus.Off(i), binary.LittleEndian.Uint32(key[4*i:]))
		}
		for i := range 32 {
			b.r.Write32(rRETA+4*bus.Off(i), 0x80008000) // odd entries: queue 1
		}
		b.r.Write32(rRXCSUM, 1<<13)
		b.r.Write32(rRFCTL, 1<<15)
		b.r.Write32(rMRQC, 1|1<<16|1<<17|1<<18|1<<20)
		b.up(fSECRC)
		for _, c := range []struct {
			src, dst string
			sp, dp   layers.TCPPort
			hash     uint32
			kind     uint32
		}{
			{"66.9.149.187", "161.142.100.80", 2794, 1766, 0x51ccc178, 1},
			{"199.92.111.2", "65.69.140.83", 14230, 4739, 0xc626b0ea, 1},
			{"66.9.149.187", "161.142.100.80", 0, 0, 0x323e8fc2, 2},
			{"3ffe:2501:200:1fff::7", "3ffe:2501:200:3::1", 2794, 1766, 0x40207d3d, 3},
			{"3ffe:2501:200:1fff::7", "3ffe:2501:200:3::1", 0, 0, 0x2cc18cd5, 5},
		} {
			var l gopacket.SerializableLayer
			x := tcp()
			x.SrcPort, x.DstPort = c.sp, c.dp
			top := []gopacket.SerializableLayer{x, text(10)}
			if s := net.ParseIP(c.src); s.To4() != nil {
				y := ip4()
				y.SrcIP, y.DstIP = s.To4(), net.ParseIP(c.dst).To4()
				if l = y; c.sp == 0 {
					y.Protocol, top = layers.IPProtocolGRE, top[1:]
				}
			} else {
				y := ip6()
				y.SrcIP, y.DstIP = s, net.ParseIP(c.dst)
				if l = y; c.sp == 0 {
					y.NextHeader, top = layers.IPProtocolGRE, top[1:]
				}
			}
			a.send(packet(t, a, b, append([]gopacket.SerializableLayer{l}, top...)...))
			q := int(c.hash & 1)
			g := b.rx(q, nicBuf)
			if len(g) != 1 || len(b.rx(1-q, nicBuf)) != 0 {
				t.Fatalf("%s: %d frames in queue %d, want 1", c.src, len(g), q)
			}
			if h, mrq := uint32(g[0].low>>32), uint32(g[0].low); h != c.hash || mrq != c.kind|uint32(q)<<8 {
				t.Errorf("%s: hash %#x, type and queue %#x, want %#x, %#x", c.src, h, mrq, c.hash, c.kind|uint32(q)<<8)
			}
		}
		// Both transmit queues, too.
		a.used = 0
		f := raw(a, b, 70)
		a.tx(1, [2]uint64{a.put(f), 70 | tEOP | tIFCS})
		if g := b.one(); !bytes.Equal(g.f, f) {
			t.Errorf("from queue 1: %x, want %x", g.f, f)
		}
	})
}
