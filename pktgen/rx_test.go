package pktgen

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/internal/frame"
)

// rxBench is the receiver of eth1.
type rxBench struct {
	*bench
	r *Rx
	// base is the timestamp of number 0 in us; 0: frames have none.
	base uint64
}

func newRxBench(t testing.TB) *rxBench {
	t.Helper()
	b := newBench(t, []int{0}, newSink("eth0"), newSink("eth1"))
	r, err := b.e.AddRx("eth1")
	if err != nil {
		t.Fatal(err)
	}
	return &rxBench{bench: b, r: r, base: uint64(time.Now().Add(-time.Second).UnixMicro())}
}

// spec is what frames look like where a test does not say otherwise.
func spec() frame.Spec {
	return frame.Spec{
		Dst: [6]byte{0x52, 0x54, 0, 0x12, 0x34, 0x57}, Src: [6]byte{0x52, 0x54, 0, 0x12, 0x34, 0x56}, TTL: 32,
		SrcIP: addr("10.0.0.1"), DstIP: addr("10.0.0.2"), SrcPort: 9, DstPort: 9, NoUDPChecksum: true,
	}
}

// packet builds a frame with pktgen's header and n bytes of payload.
func packet(t testing.TB, s frame.Spec, seq uint32, us uint64, n int) []byte {
	t.Helper()
	s.Payload = make([]byte, n)
	binary.BigEndian.PutUint32(s.Payload, frame.Magic)
	binary.BigEndian.PutUint32(s.Payload[4:], seq)
	binary.BigEndian.PutUint32(s.Payload[8:], uint32(us/1e6))
	binary.BigEndian.PutUint32(s.Payload[12:], uint32(us%1e6))
	f, err := frame.Build(s)
	if err != nil {
		t.Fatal(err)
	}
	return f.Bytes
}

// feed gives frames to the receiver in one burst: however slow the machine is, there is no pause between them.
func (b *rxBench) feed(frames ...[]byte) {
	bufs := make([]*dma.Buf, len(frames))
	for i, f := range frames {
		bufs[i] = &dma.Buf{Data: f}
	}
	b.r.Take(bufs)
}

// stamp is the timestamp of a number.
func (b *rxBench) stamp(seq uint32) uint64 {
	if b.base == 0 {
		return 0
	}
	return b.base + uint64(int32(seq)) // number 0 comes after 4294967295
}

// send feeds frames of these numbers.
func (b *rxBench) send(s frame.Spec, seqs ...uint32) {
	b.t.Helper()
	var frames [][]byte
	for _, n := range seqs {
		frames = append(frames, packet(b.t, s, n, b.stamp(n), 18))
	}
	b.feed(frames...)
}

// numbers reads "1-3 7 9x2": 1, 2, 3, 7, 9, 9.
func numbers(t testing.TB, text string) (seqs []uint32) {
	t.Helper()
	number := func(s string) uint64 {
		v, err := strconv.ParseUint(s, 10, 32)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	for _, f := range strings.Fields(text) {
		from, to, isRange := strings.Cut(f, "-")
		one, times, isTimes := strings.Cut(f, "x")
		switch {
		case isRange:
			for n := number(from); n <= number(to); n++ {
				seqs = append(seqs, uint32(n))
			}
		case isTimes:
			for range number(times) {
				seqs = append(seqs, uint32(number(one)))
			}
		default:
			seqs = append(seqs, uint32(number(f)))
		}
	}
	return seqs
}

// value is a number of the receiver's file, the first of that name.
func (b *rxBench) value(name string) string {
	b.t.Helper()
	text := b.read("eth1.rx")
	m := regexp.MustCompile(`[ \n]` + regexp.QuoteMeta(name) + `: (\S+)`).FindStringSubmatch(text)
	if m == nil {
		b.t.Fatalf("no %s in\n%s", name, text)
	}
	return m[1]
}

// wants compares numbers of the file with "lost 1 duplicated 0".
func (b *rxBench) wants(what, want string) {
	b.t.Helper()
	var got []string
	f := strings.Fields(want)
	for i := 0; i < len(f); i += 2 {
		got = append(got, f[i], b.value(f[i]))
	}
	if g := strings.Join(got, " "); g != strings.Join(f, " ") {
		b.t.Errorf("%s: %s, want %s\n%s", what, g, want, b.read("eth1.rx"))
	}
}

func TestReceiveNumbers(t *testing.T) {
	for _, c := range []struct{ seqs, want string }{
		{"1-5000", "received 5000 lost 0 duplicated 0 reordered 0 clones 0 runs 1 flows 1"},
		{"1-10 12-20 30-40", "received 30 lost 10 duplicated 0 reordered 0 clones 0 runs 1"},
		{"1-10 10 11", "lost 0 duplicated 1 reordered 0 clones 0"},
		{"1-10 10", "lost 0 duplicated 1 clones 0"},
		{"1-10 5 11", "lost 0 duplicated 1 reordered 0 clones 0 runs 1"},
		{"1-10 11x4 12-20", "lost 0 duplicated 3 clones 0 runs 1"},
		{"1-10 11 11 13-20 12", "lost 0 duplicated 1 reordered 1 clones 0 runs 1"},
		{"1-10 11x3 14-20", "lost 2 duplicated 2 clones 0 runs 1"},
		{"1-10 11x4 15x4 19x4 23-30", "lost 3 duplicated 3 clones 6 runs 1"}, // clone_skb was set meanwhile
		{"1-10 11x9 20x9 29", "lost 0 duplicated 0 clones 16 runs 1"},
		{"1 3 2 4", "lost 0 duplicated 0 reordered 1"},
		{"2 1 3", "lost 0 duplicated 0 reordered 1 runs 1"},
		{"5 4 3 2 1 6", "lost 0 reordered 4 runs 1"},
		{"1-100 102-8000 101", "lost 0 reordered 1 duplicated 0 runs 1"},
		{"1-100 102-8000 101 101 50", "lost 0 reordered 1 duplicated 2 runs 1"},
		{"1-10 8000 11", "lost 7988 reordered 1 duplicated 0 runs 1"},
		// What came first tells of those before, where there is a second.
		{"3-10", "lost 2 runs 1"},
		{"700", "lost 0 runs 1"},
		{"700 701", "lost 699 runs 1"},
		{"700-703 5 6 5", "lost 697 reordered 2 duplicated 1 runs 1"},
		{"8127-8129", "lost 8126"},
		{"9000-9003", "lost 0 runs 1"},
		{"9000-9003 8999 8990 8999", "lost 0 reordered 2 duplicated 1 runs 1"},
		{"4294967290-4294967295 0-5", "received 12 lost 0 duplicated 0 reordered 0 runs 1"},
		{"4294967290-4294967293 1-3 4294967295 0", "lost 1 reordered 2 runs 1"},
		// Packets that are sent several times.
		{"1x5", "lost 0 duplicated 0 clones 4"},
		{"1x3 4x3 7x3", "received 9 lost 0 duplicated 0 reordered 0 clones 6 runs 1"},
		{"1x3 4x2 7x3", "lost 1 duplicated 0 clones 5 runs 1"},
		{"1x2 4x3 7x3", "lost 1 duplicated 0 clones 5 runs 1"},
		{"1x3 4x4 7x3", "lost 0 duplicated 1 clones 6 runs 1"},
		{"1x3 4x2 7x3 4", "lost 0 reordered 1 duplicated 0 runs 1"},
		{"1x3 4x2 7x3 4 4", "lost 0 reordered 1 duplicated 1 runs 1"},
		{"1x3 7x3 4x3 10", "lost 0 reordered 3 duplicated 0 runs 1"},
		{"1x10000 10001x10000 20001", "lost 0 duplicated 0 reordered 0 clones 19998 runs 1"},
		{"1x1000 1001x900 2001x1000 1001x50", "lost 50 reordered 50 duplicated 0 runs 1"},
	} {
		for _, timed := range []bool{true, false} {
			b := newRxBench(t)
			if !timed {
				b.base = 0
			}
			b.send(spec(), numbers(t, c.seqs)...)
			b.wants(c.seqs, c.want)
		}
	}
}

// A sender that begins again begins a run, however short the last one was.
func TestReceiveAgain(t *testing.T) {
	for _, count := range []uint32{1, 2, 100, 1000, 20000} {
		b := newRxBench(t)
		var seqs []uint32
		for n := range count {
			seqs = append(seqs, n+1)
		}
		for range 3 {
			b.send(spec(), seqs...)
			b.base += uint64(count) + 1000
		}
		b.wants(fmt.Sprint("three runs of ", count), fmt.Sprintf("received %d lost 0 duplicated 0 reordered 0 clones 0 runs 3 flows 1", 3*count))
	}
	// Without timestamps it takes a pause.
	b := newRxBench(t)
	b.base = 0
	b.send(spec(), numbers(t, "1-100")...)
	time.Sleep(2 * pauseTime * time.Microsecond)
	b.send(spec(), numbers(t, "1-100")...)
	b.wants("no timestamps", "received 200 lost 0 duplicated 0 runs 2")
	// Of more runs than are followed the sums remain.
	b = newRxBench(t)
	for range 3 * maxRuns {
		b.send(spec(), numbers(t, "1-5 7-9")...)
		b.base += 1000
	}
	b.wants("many runs", fmt.Sprintf("received %d lost %d runs %d", 3*maxRuns*8, 3*maxRuns, 3*maxRuns))
	if got := strings.Count(b.read("eth1.rx"), "     seq: "); got != shownRuns {
		t.Errorf("%d runs are shown, want %d", got, shownRuns)
	}
	if got := strings.Count(b.read("eth1.rx"), fmt.Sprintf("lost: %d ", 3*maxRuns)); got != 2 {
		t.Errorf("lost of the only flow is not that of all runs:\n%s", b.read("eth1.rx"))
	}
}

func TestReceiveClear(t *testing.T) {
	for _, c := range []struct{ before, after, want string }{
		{"1-500 502-600", "601-700", "received 100 lost 0 duplicated 0 reordered 0 runs 1 flows 1"},
		{"1-500 502-600", "501 601-700", "received 101 lost 0 duplicated 0 reordered 1 runs 1"},
		{"1-500 502-600", "600 601-700", "received 101 lost 0 duplicated 1 runs 1"},
		{"1-500", "503-510", "received 8 lost 2 runs 1"},
		{"1x700", "1x300 1001x1000 2001", "received 1301 lost 0 duplicated 0 reordered 0 clones 1299 runs 1"},
		{"1-10 11x2", "12-20", "received 9 lost 0 duplicated 0 clones 0 runs 1"},
		{"1-10 11x2", "", "received 0 lost 0 duplicated 0 clones 0 runs 0 flows 0 other 0 bytes 0 samples 0"},
		{"", "3-4", "received 2 lost 2 runs 1"},
	} {
		b := newRxBench(t)
		b.send(spec(), numbers(t, c.before)...)
		b.ok("eth1.rx", "clear_counters")
		b.send(spec(), numbers(t, c.after)...)
		b.wants(c.before+", clear_counters, "+c.after, c.want)
	}
}

func TestReceiveFlows(t *testing.T) {
	b := newRxBench(t)
	var frames [][]byte
	for i := range uint32(300) {
		s := spec()
		s.SrcPort = uint16(1000 + i%3)
		if i%3 == 2 {
			s.SrcIP, s.DstIP = addr("fd00::1"), addr("fd00::2")
		}
		s.VLANs = [][]uint16{nil, {3<<13 | 77}, {22, 77}}[i%3]
		seq := i + 1
		if i == 150 {
			seq = 149 // the same flow's, 3 before, is 148
		}
		frames = append(frames, packet(t, s, seq, b.stamp(seq), 18))
	}
	b.feed(frames...)
	b.feed(frames[299], frames[297])
	b.wants("ranges", "received 302 lost 1 duplicated 3 reordered 0 runs 1 flows 3")
	text := b.read("eth1.rx")
	for _, want := range []string{
		"     src: 10.0.0.1:1000  dst: 10.0.0.2:9  received: 101  bytes: 6060  lost: -  duplicated: 2  reordered: 0  min_us: ",
		"     src: 10.0.0.1:1001  dst: 10.0.0.2:9  vlan: 77  received: 100  bytes: 6400  lost: -  duplicated: 0  reordered: 0  min_us: ",
		"     src: [fd00::1]:1002  dst: [fd00::2]:9  vlan: 22,77  received: 101  bytes: 8888  lost: -  duplicated: 1  reordered: 0  min_us: ",
	} {
		if !strings.Contains(text, "\n"+want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	// More flows than there is room for: the rest is summed up, and all numbers hold.
	b = newRxBench(t)
	const many = maxRxFlows + 1000
	for i := range uint32(many) {
		s := spec()
		s.SrcIP = netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})
		b.send(s, i+1)
	}
	b.wants("many flows", fmt.Sprintf("received %d lost 0 duplicated 0 reordered 0 runs 1 flows %d", many, maxRxFlows))
	text = b.read("eth1.rx")
	if got := strings.Count(text, "     src: "); got != shownFlows {
		t.Errorf("%d flows are shown, want %d", got, shownFlows)
	}
	if want := fmt.Sprintf("\n     others:  received: %d  bytes: %d  lost: -", many-maxRxFlows, 60*(many-maxRxFlows)); !strings.Contains(text, want) {
		t.Errorf("no %q in\n%s", want, text)
	}
}

// No frame costs an allocation, whatever it is.
func TestReceiveAllocatesNothing(t *testing.T) {
	b := newRxBench(t)
	bufs := make([]*dma.Buf, 64)
	seq := uint32(0)
	for _, c := range []struct {
		name string
		next func(i int) []byte
	}{
		{"in order", func(int) []byte { seq++; return packet(t, spec(), seq, b.stamp(seq), 18) }},
		{"two by two", func(i int) []byte {
			seq += uint32(i&1) * 2
			return packet(t, spec(), seq-uint32(i&1), b.stamp(seq), 18)
		}},
		{"flows", func(i int) []byte {
			s := spec()
			s.SrcPort = uint16(i)
			seq++
			return packet(t, s, seq, b.stamp(seq), 18)
		}},
		{"runs", func(i int) []byte { b.base += 10; return packet(t, spec(), 1, b.stamp(1), 18) }},
		{"others", func(int) []byte { return make([]byte, 60) }},
	} {
		if n := testing.AllocsPerRun(10, func() { b.r.Take(bufs[:0]) }); n != 0 {
			t.Errorf("nothing: %v allocations", n)
		}
		for i := range bufs {
			bufs[i] = &dma.Buf{Data: c.next(i)}
		}
		b.r.Take(bufs) // the first one of all may
		if n := testing.AllocsPerRun(10, func() { b.r.Take(bufs) }); n != 0 {
			t.Errorf("%s: %v allocations a burst", c.name, n)
		}
	}
}
