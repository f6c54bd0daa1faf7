package sim_test

import (
	"maps"
	"slices"
	"testing"

	"github.com/ring3dev/ring3/bus"
)

// stats are all that count something here, by offset.
func (n *nic) stats() map[bus.Off]uint32 {
	m := map[bus.Off]uint32{}
	for off := bus.Off(0x4000); off < 0x4100; off += 4 {
		if v := n.r.Read32(off); v != 0 {
			m[off] = v
		}
	}
	return m
}

func TestE1000Statistics(t *testing.T) {
	on(t, twoChips, true, func(t *testing.T, a, b *nic) {
		a.up(0)
		b.up(fSECRC | fBAM | fMPE)
		a.stats()
		b.stats()
		lengths := []int{60, 60, 61, 123, 124, 251, 252, 507, 508, 1019, 1020, 1514}
		octets := uint32(0)
		for i, n := range lengths {
			f := raw(a, b, n)
			octets += uint32(n) + 4
			switch i {
			case 3:
				copy(f, "\xff\xff\xff\xff\xff\xff")
			case 4, 5:
				f[0] |= 1
			}
			a.send(f)
		}
		other := raw(a, b, 60)
		other[5] ^= 0xff
		a.send(other)
		got := b.stats()
		want := map[bus.Off]uint32{
			0x405c: 2, 0x4060: 2, 0x4064: 2, 0x4068: 2, 0x406c: 2, 0x4070: 2, // by length
			0x4074: 12, 0x4078: 1, 0x407c: 2, // good, broadcast, multicast
			0x4088: octets, 0x40c0: octets + 64, 0x40d0: 13, // good octets, all octets, all
		}
		if a.emu { // counts in the totals what it takes
			want[0x40c0], want[0x40d0] = octets, 12
			if !a.pcie { // and broadcasts as multicasts
				want[0x4078], want[0x407c] = 0, 3
			}
			maps.DeleteFunc(got, func(off bus.Off, _ uint32) bool { return sizes(off) })
			maps.DeleteFunc(want, func(off bus.Off, _ uint32) bool { return sizes(off) })
		}
		same(t, "received", got, want)
		want = map[bus.Off]uint32{
			0x4080: 13, 0x40d4: 13, 0x4090: octets + 64, 0x40c8: octets + 64,
			0x40d8: 3, 0x40dc: 2, 0x40e0: 2, 0x40e4: 2, 0x40e8: 2, 0x40ec: 2,
			0x40f0: 2, 0x40f4: 1,
		}
		got = a.stats()
		if a.emu { // some versions of its 82574L count octets without check sequences
			cut := func(off bus.Off, _ uint32) bool { return sizes(off) || a.pcie && (off == 0x4090 || off == 0x40c8) }
			maps.DeleteFunc(got, cut)
			maps.DeleteFunc(want, cut)
		}
		same(t, "sent", got, want)
		if left := len(a.stats()) + len(b.stats()); left != 0 {
			t.Errorf("%d registers are not cleared by reading", left)
		}
	})
}

// sizes are the counters by length, of which QEMU leaves out the shortest and cuts the longest.
func sizes(off bus.Off) bool { return off >= 0x405c && off <= 0x4070 || off >= 0x40d8 && off <= 0x40ec }

// same compares registers.
func same(t *testing.T, what string, got, want map[bus.Off]uint32) {
	t.Helper()
	var offs []bus.Off
	for off := range got {
		offs = append(offs, off)
	}
	for off := range want {
		if _, ok := got[off]; !ok {
			offs = append(offs, off)
		}
	}
	slices.Sort(offs)
	for _, off := range offs {
		if got[off] != want[off] {
			t.Errorf("%s: register %#x = %d, want %d", what, off, got[off], want[off])
		}
	}
}

// Causes besides those of every frame.
func TestE1000Causes(t *testing.T) {
	const rxdmt, rxt, srpd, ack, txdw, txqe = 1 << 4, 1 << 7, 1 << 16, 1 << 17, 1 << 0, 1 << 1
	on(t, twoChips, false, func(t *testing.T, a, b *nic) {
		a.up(0)
		b.up(fSECRC | 2<<8) // threshold: an eighth
		for i := range nicRing - 1 {
			a.send(raw(a, b, 60))
			want := uint32(rxt)
			if i == nicRing-1-nicRing/8-1 {
				want |= rxdmt
			}
			if v := b.r.Read32(rICR); v != want {
				t.Fatalf("ICR after frame %d = %#x, want %#x", i, v, want)
			}
		}
		if v := a.r.Read32(rICR); v != txdw|txqe {
			t.Errorf("the sender's ICR = %#x, want TXDW, TXQE", v)
		}
		b.r.Write32(rRCTL, 0)
		b.up(fSECRC)
		b.r.Read32(rICR)
		b.r.Write32(0x2c00, 100)
		a.send(raw(a, b, 95))
		if v := b.r.Read32(rICR); v != rxt|srpd {
			t.Errorf("ICR after a small frame = %#x, want RXT0, SRPD", v)
		}
		b.r.Write32(0x2c00, 0)
		for _, off := range []bool{false, true} {
			want := uint32(rxt)
			if b.pcie && !off {
				want |= ack
			}
			if b.pcie && off {
				b.r.Write32(rRFCTL, 1<<12)
			}
			a.send(packet(t, a, b, ip4(), tcp()))
			if v := b.r.Read32(rICR); v != want {
				t.Errorf("ICR after a TCP segment = %#x, want %#x", v, want)
			}
		}
	})
}
