package sim_test

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"slices"
	"testing"

	"github.com/google/gopacket/layers"
)

// Legacy descriptors: a checksum at an offset, a check sequence of the software's own, padding.
func TestE1000Legacy(t *testing.T) {
	on(t, twoChips, false, func(t *testing.T, a, b *nic) {
		a.up(0)
		b.up(fSECRC)
		want := packet(t, a, b, ip4(), tcp(), text(77))
		f := slices.Clone(want)
		pseudo(f, 14, 34, 16, true)
		a.used = 0
		const insert = 1 << 26
		a.tx(0, [2]uint64{a.put(f), uint64(len(f)) | 50<<16 | tEOP | tIFCS | insert | 34<<40})
		if g := b.one(); !bytes.Equal(g.f, want) {
			t.Errorf("a checksum that was put in: %x, want %x", g.f, want)
		}
		f = raw(a, b, 80)
		for _, bad := range []byte{0, 1} {
			x := binary.LittleEndian.AppendUint32(slices.Clone(f), crc32.ChecksumIEEE(f))
			x[20] ^= bad
			a.tx(0, [2]uint64{a.put(x), uint64(len(x)) | tEOP})
			if got := len(b.rx(0, nicBuf)); got != 1-int(bad) {
				t.Errorf("%d frames with a check sequence of the software's, %d bits of it wrong, arrived", got, bad)
			}
		}
		short := raw(a, b, 20)
		for _, psp := range []uint32{1 << 3, 0} {
			a.r.Write32(rTCTL, 1<<1|psp)
			a.tx(0, [2]uint64{a.put(short), 20 | tEOP | tIFCS})
			g := b.rx(0, nicBuf)
			if psp == 0 && len(g) != 0 {
				t.Error("a fragment arrived")
			}
			if psp != 0 && (len(g) != 1 || !bytes.Equal(g[0].f, append(slices.Clone(short), make([]byte, 40)...))) {
				t.Errorf("a short frame arrived as %v", g)
			}
		}
		// Two queues, each with half a frame while the other sends.
		if !a.pcie {
			return
		}
		a.r.Write32(rTCTL, 1<<1|1<<3)
		f, other := raw(a, b, 300), raw(a, b, 400)
		at, at2 := a.put(f), a.put(other)
		a.tx(0, [2]uint64{at, 100 | tIFCS})
		a.tx(1, [2]uint64{at2, 150 | tIFCS})
		a.tx(0, [2]uint64{at + 100, 200 | tEOP | tIFCS})
		a.tx(1, [2]uint64{at2 + 150, 250 | tEOP | tIFCS})
		if g := b.rx(0, nicBuf); len(g) != 2 || !bytes.Equal(g[0].f, f) || !bytes.Equal(g[1].f, other) {
			t.Errorf("two frames in halves arrived as %d, or with other bytes", len(g))
		}
	})
}

// What no driver should do, and what nobody should send.
func TestE1000Odd(t *testing.T) {
	on(t, twoChips, false, func(t *testing.T, a, b *nic) {
		a.up(0)
		b.up(fSECRC)
		// A null descriptor is used up, without a byte.
		put64(b.rings.Bytes, 0)
		f := raw(a, b, 60)
		a.send(f)
		if g := b.rx(0, nicBuf); len(g) != 1 || g[0].descs != 2 || !bytes.Equal(g[0].f, f) {
			t.Errorf("a frame after a null descriptor: %+v", g)
		}
		// Descriptors of no kind, of no memory, and contexts that make no sense send nothing.
		before := a.r.Read32(rGPTC)
		a.used = 0
		at := a.put(f)
		for _, d := range [][][2]uint64{
			{{at, 60 | tDEXT | 5<<20 | tEOP | tIFCS}},
			{{1 << 40, 60 | tEOP | tIFCS}},
			{{1 << 40, 60 | tEOP}},
			{{at, 5 | tEOP | tIFCS}},
			{ctx(14, 34, 16, 1000, 0, 100, 1<<2), {at, 500 | tData | tTSE | tEOP | tIFCS}},
			{ctx(14, 34, 16, 1000, 54, 1, 1<<2), {at, 500 | tData | tTSE | tEOP | tIFCS}},
			{ctx(14, 34, 16, 1000, 200, 1000, 1<<2), {at, 100 | tData | tTSE | tEOP | tIFCS}},
			{ctx(14, 34, 16, 1000, 54, 1000, 1<<2), {1 << 40, 100 | tData | tTSE | tEOP | tIFCS}},
		} {
			a.tx(0, d...)
		}
		if v := a.r.Read32(rGPTC); before != 1 || v != 0 {
			t.Errorf("%d frames were sent, want none", v)
		}
		// Heads and tails that are none of the ring's do nothing.
		head := a.r.Read32(rTX + 0x10)
		a.r.Write32(rTX+0x18, nicRing)
		a.r.Write32(rTX+0x18, 0xffff)
		if v := a.r.Read32(rTX + 0x10); v != head {
			t.Errorf("TDH = %d, want %d", v, head)
		}
		a.r.Write32(rTX+0x18, head)
		// All offsets outside of the frame: it goes as it is.
		a.tx(0, [2]uint64{0xffff | 0xff<<8 | 0xff<<32 | 0xff<<40, tDEXT}, [2]uint64{at, 60 | tData | tEOP | tIFCS | tIXSM | tTXSM})
		if g := b.one(); !bytes.Equal(g.f, f) {
			t.Errorf("with checksums nowhere: %x, want %x", g.f, f)
		}
	})
}

// Packets that are not what they say. Only the first is verified.
func TestE1000Parsing(t *testing.T) {
	const tcpcs = 1 << 5
	on(t, twoChips, false, func(t *testing.T, a, b *nic) {
		a.up(0)
		b.r.Write32(rRXCSUM, 1<<9|1<<10)
		b.up(fSECRC)
		good := packet(t, a, b, ip6(), tcp(), text(60))
		// with puts extension headers in.
		with := func(first byte, ext ...byte) []byte {
			f := slices.Concat(good[:54], ext, good[54:])
			f[20] = first
			binary.BigEndian.PutUint16(f[18:], binary.BigEndian.Uint16(f[18:])+uint16(len(ext)))
			return f
		}
		change := func(f []byte, at int, v byte) []byte {
			f = slices.Clone(f)
			f[at] = v
			return f
		}
		v4 := packet(t, a, b, ip4(), tcp(), text(60))
		udp4 := ip4()
		udp4.Protocol = layers.IPProtocolUDP
		udp := packet(t, a, b, udp4, &layers.UDP{SrcPort: 1, DstPort: 2}, text(60))
		for _, c := range []struct {
			name string
			f    []byte
			want uint64
		}{
			{"hop-by-hop", with(0, 6, 0, 1, 4, 0, 0, 0, 0), tcpcs},
			{"destination of 16 bytes", with(60, 6, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), tcpcs},
			{"fragment", with(44, 6, 0, 0, 1, 0, 0, 0, 1), 0},
			{"a header longer than the packet", with(0, 6, 255, 1, 4, 0, 0, 0, 0), 0},
			{"headers without end", with(0, bytes.Repeat([]byte{0, 0, 1, 4, 0, 0, 0, 0}, 9)...), 0},
			{"IPv6 longer than the frame", change(good, 18, 0x40), 0},
			{"IPv6 too short for TCP", change(good, 19, 10), 0},
			{"IPv6 of version 4", change(good, 14, 0x40), 0},
			{"IPv4 longer than the frame", change(v4, 16, 0x40), 0},
			{"IPv4 too short", change(v4, 17, 10), 0},
			{"IPv4 with a short header", change(v4, 14, 0x44), 0},
			{"IPv4 with a long header", change(v4, 17, 40), tcpcs},
			{"UDP longer than its packet", change(udp, 38, 0x40), 0},
			{"UDP too short", change(udp, 39, 3), 0},
		} {
			a.send(c.f)
			if g := b.one(); g.high>>32&tcpcs != c.want || !bytes.Equal(g.f, c.f) {
				t.Errorf("%s: status %#x, want %#x", c.name, g.high>>32&0xff, c.want)
			}
		}
	})
}
