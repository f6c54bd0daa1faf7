package pktgen

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/internal/frame"
)

// parseable are frames of every kind that pktgen sends.
func parseable(t testing.TB) map[string][]byte {
	with := func(f func(*frame.Spec)) frame.Spec {
		s := spec()
		f(&s)
		return s
	}
	six := func(s *frame.Spec) { s.SrcIP, s.DstIP = addr("fd00::1"), addr("fd00::2") }
	fs := map[string][]byte{}
	for name, s := range map[string]frame.Spec{
		"IPv4":      spec(),
		"sum":       with(func(s *frame.Spec) { s.NoUDPChecksum = false }),
		"IPv6":      with(six),
		"IPv6 sum":  with(func(s *frame.Spec) { six(s); s.NoUDPChecksum = false }),
		"VLAN":      with(func(s *frame.Spec) { s.VLANs = []uint16{5<<13 | 1<<12 | 4095} }),
		"VLANs":     with(func(s *frame.Spec) { s.VLANs = []uint16{1, 2} }),
		"VLANs, v6": with(func(s *frame.Spec) { six(s); s.VLANs = []uint16{0, 4095} }),
		"MPLS":      with(func(s *frame.Spec) { s.MPLS = []uint32{0x00010020, 0x00020120} }),
		"MPLS, v6":  with(func(s *frame.Spec) { six(s); s.MPLS = []uint32{0x00010120} }),
		"16 labels": with(func(s *frame.Spec) { s.MPLS = append(slices.Repeat([]uint32{0x00010020}, 15), 0x00020120) }),
		"tos":       with(func(s *frame.Spec) { s.TOS, s.TTL, s.ID = 0xb8, 1, 0xffff }),
	} {
		fs[name] = packet(t, s, 7, 1234567890_000005, 18)
	}
	for _, n := range []int{16, 17, 23, 86, 87} {
		fs[fmt.Sprint("payload ", n)] = packet(t, with(func(s *frame.Spec) { s.NoUDPChecksum = false }), 7, 1234567890_000005, n)
	}
	return fs
}

func TestParse(t *testing.T) {
	for name, f := range parseable(t) {
		want, err := frame.Decode(f)
		if err != nil {
			t.Fatal(err)
		}
		var p parsed
		if v := parse(&p, f, &dma.Meta{}, maxVerify); v != rxGood {
			t.Errorf("%s: verdict %d, want %d", name, v, rxGood)
		}
		src, dst, vlans := p.key.addrs()
		if p.seq != 7 || p.stamp != 1234567890_000005 || p.size != len(f) || src.Addr() != want.SrcIP || dst.Addr() != want.DstIP ||
			src.Port() != want.SrcPort || dst.Port() != want.DstPort {
			t.Errorf("%s: seq %d, stamp %d, size %d, %v > %v", name, p.seq, p.stamp, p.size, src, dst)
		}
		for i := range want.VLANs {
			want.VLANs[i] &= 0xfff
		}
		if !slices.Equal(vlans, want.VLANs) {
			t.Errorf("%s: VLANs %v, want %v", name, vlans, want.VLANs)
		}
		// With padding, and cut off anywhere.
		if v := parse(&p, append(slices.Clone(f), make([]byte, 20)...), &dma.Meta{}, maxVerify); v != rxGood {
			t.Errorf("%s, padded: verdict %d, want %d", name, v, rxGood)
		}
		for n := range len(f) {
			v := parse(&p, f[:n:n], &dma.Meta{}, maxVerify)
			magic := want.L3 + 28
			if want.SrcIP.Is6() {
				magic += 20
			}
			if n < magic+4 && v != rxOther || n >= magic+4 && v != rxLength {
				t.Errorf("%s, %d of %d bytes: verdict %d", name, n, len(f), v)
			}
		}
		// A bit that falls over is found wherever there is a checksum, or zeros.
		if want.UDPChecksum == 0 {
			continue
		}
		for bit := 8 * want.L3; bit < 8*len(f); bit++ {
			g := slices.Clone(f)
			g[bit/8] ^= 1 << (bit % 8)
			v := parse(&p, g, &dma.Meta{}, maxVerify)
			sum := bit/8 == len(f)-len(want.Payload)-2 || bit/8 == len(f)-len(want.Payload)-1
			six := want.SrcIP.Is6() && bit/8 < want.L3+8 // no checksum covers class, label and hop limit
			if v == rxGood && !sum && !six {
				t.Errorf("%s, bit %d of byte %d: verdict %d", name, bit%8, bit/8, v)
			}
		}
	}
}

// The device may have taken the tag, and may have verified the checksum.
func TestParseMeta(t *testing.T) {
	s := spec()
	s.NoUDPChecksum, s.VLANs = false, []uint16{77}
	f := packet(t, s, 7, 0, 18)
	var p parsed
	for want, flags := range map[string]dma.MetaFlags{"[77]": 0, "[22 77]": dma.VLAN} {
		if v := parse(&p, f, &dma.Meta{Flags: flags, VLAN: 7<<13 | 22}, maxVerify); v != rxGood {
			t.Errorf("verdict %d, want %d", v, rxGood)
		}
		if _, _, vlans := p.key.addrs(); fmt.Sprint(vlans) != want {
			t.Errorf("VLANs %v, want %s", vlans, want)
		}
	}
	f[len(f)-19]++ // the checksum's last byte
	for flags, want := range map[dma.MetaFlags]verdict{0: rxSum, dma.CsumGood: rxGood} {
		if v := parse(&p, f, &dma.Meta{Flags: flags}, maxVerify); v != want {
			t.Errorf("a wrong UDP checksum, flags %#x: verdict %d, want %d", flags, v, want)
		}
	}
}

func TestReceiveCorrupted(t *testing.T) {
	long := func(s frame.Spec, seq uint32) []byte { return packet(t, s, seq, 1e15+uint64(seq), 400) }
	short := func(s frame.Spec, seq uint32) []byte { return packet(t, s, seq, 1e15+uint64(seq), 18) }
	summed, six := spec(), spec()
	summed.NoUDPChecksum = false
	six.SrcIP, six.DstIP = addr("fd00::1"), addr("fd00::2")
	resum := func(f []byte) {
		f[24], f[25] = 0, 0
		binary.BigEndian.PutUint16(f[24:], frame.Sum(f[14:34]))
	}
	for _, c := range []struct {
		name   string
		spec   frame.Spec
		make   func(frame.Spec, uint32) []byte
		spoil  func(f []byte) []byte
		verify string
		want   string
	}{
		{"IPv4 checksum", spec(), short, func(f []byte) []byte { f[24] ^= 1; return f }, "", "checksum 1"},
		{"an address", spec(), short, func(f []byte) []byte { f[33] ^= 0x80; return f }, "", "checksum 1"},
		{"UDP checksum", summed, short, func(f []byte) []byte { f[49] ^= 1; return f }, "", "checksum 1"},
		{"UDP checksum, not looked at", summed, short, func(f []byte) []byte { f[41] ^= 1; return f }, "0", "checksum 0"},
		{"UDP checksum, long", summed, long, func(f []byte) []byte { f[41] ^= 1; return f }, "", "checksum 0"},
		{"UDP checksum, long, verified", summed, long, func(f []byte) []byte { f[41] ^= 1; return f }, "1514", "checksum 1"},
		{"payload", spec(), short, func(f []byte) []byte { f[59] = 1; return f }, "", "payload 1"},
		{"payload, long", spec(), long, func(f []byte) []byte { f[400] = 1; return f }, "", "payload 0"},
		{"payload, long, verified", spec(), long, func(f []byte) []byte { f[400] = 1; return f }, "65535", "payload 1"},
		{"length", spec(), short, func(f []byte) []byte { f[17]++; resum(f); return f }, "", "length 1"},
		{"length, UDP", spec(), short, func(f []byte) []byte { f[39]--; return f }, "", "length 1"},
		{"length, UDP, IPv6", six, short, func(f []byte) []byte { f[59]--; return f }, "", "length 1"},
		{"length, IPv6", six, short, func(f []byte) []byte { f[18] = 0xff; return f }, "", "length 1"},
		{"cut off", spec(), short, func(f []byte) []byte { return f[:50] }, "", "length 1"},
		{"options", spec(), short, func(f []byte) []byte { f[14] = 0x46; resum(f); return f }, "", "header 1"},
		{"a fragment", spec(), short, func(f []byte) []byte { f[20] = 0x20; resum(f); return f }, "", "header 1"},
		{"TCP", spec(), short, func(f []byte) []byte { f[23] = 6; resum(f); return f }, "", "header 1"},
		{"TCP, IPv6", six, short, func(f []byte) []byte { f[20] = 6; return f }, "", "header 1"},
		{"magic", spec(), short, func(f []byte) []byte { f[42] ^= 1; return f }, "", "other 1"},
		{"ethertype", spec(), short, func(f []byte) []byte { f[12] ^= 1; return f }, "", "other 1"},
	} {
		b := newRxBench(t)
		if c.verify != "" {
			b.ok("eth1.rx", "verify "+c.verify)
		}
		b.feed(c.make(c.spec, 1), c.spoil(c.make(c.spec, 2)), c.make(c.spec, 3))
		f := strings.Fields(c.want)
		corrupted, lost := 1, 1
		if f[0] == "other" {
			corrupted = 0
		}
		if f[1] == "0" {
			corrupted, lost = 0, 0
		}
		b.wants(c.name, fmt.Sprintf("received %d lost %d corrupted %d %s duplicated 0", 3-lost, lost, corrupted, c.want))
	}
}

// Sums of any length are those of the plain definition.
func TestWordSum(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for n := range 200 {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		if n%3 == 0 {
			b = bytes.Repeat([]byte{0xff}, n)
		}
		// In the other byte order, and complemented.
		want := ^frame.Sum(b)
		got := wordSum(b)
		if got = got>>8 | got<<8; got != want && !(got == 0xffff && want == 0) && !(got == 0 && want == 0xffff) {
			t.Fatalf("sum of %d bytes = %#x, want %#x", n, got, want)
		}
	}
}

func TestHistogram(t *testing.T) {
	for i := range buckets {
		lo, hi := lower(i), lower(i+1)
		if lo >= hi || bucket(lo) != i || bucket(hi-1) != i || float64(hi-1-lo) > float64(lo)/subBuckets {
			t.Fatalf("bucket %d from %d to %d: they count in %d and %d", i, lo, hi, bucket(lo), bucket(hi-1))
		}
	}
	if lower(buckets) != maxLatency {
		t.Errorf("the last bucket ends at %d, want %d", lower(buckets), maxLatency)
	}
	var h histogram
	var s span
	rng := rand.New(rand.NewPCG(1, 1))
	var all []uint64
	for range 100_000 {
		v := uint64(rng.ExpFloat64() * 20_000)
		all = append(all, v)
		h.add(v)
		s.add(v)
	}
	slices.Sort(all)
	for _, q := range []float64{0, 0.5, 0.9, 0.99, 0.999, 1} {
		want := float64(all[min(int(q*float64(len(all))), len(all)-1)])
		if got := float64(h.quantile(q, &s)); got < want*0.98-1 || got > want*1.02+1 {
			t.Errorf("quantile %v = %v, want %v", q, got, want)
		}
	}
	n := uint64(0)
	for i, p := range h.powers() {
		if n += p.n; i > 0 && p.from&(p.from-1) != 0 {
			t.Errorf("a bucket from %d", p.from)
		}
	}
	if n != s.n || s.n != 100_000 || s.min != all[0] || s.max != all[len(all)-1] {
		t.Errorf("%d in all, %+v", n, s)
	}
}

func TestReceiveLatency(t *testing.T) {
	b := newRxBench(t)
	now := uint64(time.Now().UnixMicro())
	for i, us := range []uint64{now - 1000, now - 3000, now - 70_000_000, now + 10_000_000, 0, 1 << 61} {
		b.feed(packet(t, spec(), uint32(i+1), us, 18))
	}
	b.wants("latency", "samples 2 no_timestamp 1 bad_timestamp 3 received 6")
	var least, most float64
	fmt.Sscan(b.value("min_us"), &least)
	fmt.Sscan(b.value("max_us"), &most)
	if least < 1000 || least > 1e6 || most < 3000 || most > 1e6 || b.value("p50_us") == "0.000" {
		t.Errorf("latency:\n%s", b.read("eth1.rx"))
	}
}

// FuzzReceive takes any bytes for frames: none harms, and the counters go together.
func FuzzReceive(f *testing.F) {
	for _, p := range parseable(f) {
		f.Add(append([]byte{byte(len(p))}, p...), uint8(0))
		f.Add(append(append([]byte{byte(len(p))}, p...), append([]byte{byte(len(p))}, p...)...), uint8(1))
	}
	f.Fuzz(func(t *testing.T, data []byte, flags uint8) {
		r := newRx(&Engine{prof: profile612(t)}, "eth0")
		r.verify = maxVerify
		frames := 0
		for len(data) > 0 {
			n := min(int(data[0]), len(data)-1)
			r.Take([]*dma.Buf{{Data: data[1 : 1+n : 1+n], Meta: dma.Meta{Flags: dma.MetaFlags(flags), VLAN: uint16(n) * 257}}})
			data = data[1+n:]
			frames++
		}
		r.checkSums(t, frames)
	})
}

// FuzzReceiveNumbers lets any numbers and times come, in any order.
func FuzzReceiveNumbers(f *testing.F) {
	f.Add([]byte("\x01\x00\x00\x01\x00\x00\x01\x40\x00\xff\x00\x00"))
	f.Add(bytes.Repeat([]byte("\x00\x10\x01\x81\x22\x03"), 40))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := newRx(&Engine{prof: profile612(t)}, "eth0")
		seq, us, frames := uint32(0), uint64(1e15), 0
		packet := packet(t, spec(), 0, 0, 18)
		for ; len(data) >= 3; data = data[3:] {
			step := int32(int8(data[0]))
			if data[2]&1 != 0 {
				step <<= data[2] >> 3
			}
			seq += uint32(step)
			us += uint64(int64(int8(data[1])))
			copy(packet[34:36], data[2:]) // not the checksum: there is none
			packet[34] = data[2] & 6
			binary.BigEndian.PutUint32(packet[46:], seq)
			binary.BigEndian.PutUint64(packet[50:], us/1e6<<32|us%1e6)
			if data[1] == 0x80 {
				clear(packet[50:58])
			}
			r.Take([]*dma.Buf{{Data: packet}})
			if frames++; data[2] == 0xff {
				r.mu.Lock()
				r.clear()
				r.mu.Unlock()
				frames = 0
			}
		}
		r.checkSums(t, frames)
	})
}

// checkSums compares counters that must go together.
func (r *Rx) checkSums(t *testing.T, frames int) {
	t.Helper()
	v := r.view()
	sum := uint64(0)
	for _, n := range v.seen {
		sum += n
	}
	var runs, flows uint64
	for i := range v.runs {
		x := &v.runs[i]
		runs += x.frames
		if x.distinct > x.span+x.lead || x.lost() > 1<<33*uint64(frames+1) || x.distinct+x.doubled+uint64(x.copies-x.old) != x.frames {
			t.Errorf("run %+v", x)
		}
	}
	for i := range v.flows {
		flows += v.flows[i].frames
	}
	if sum != uint64(frames) || v.sum.frames != v.seen[rxGood] || flows != v.seen[rxGood] || v.sum.frames < runs || v.sum.frames < v.sum.doubled+v.sum.clones {
		t.Errorf("%d frames: %v, runs %d, flows %d, %+v", frames, v.seen, runs, flows, v.sum)
	}
	var w bytes.Buffer
	if err := r.show(&w); err != nil {
		t.Error(err)
	}
}
