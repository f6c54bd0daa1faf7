package netdevtest

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/internal/frame"
	"github.com/ring3dev/ring3/netdev"
)

// Offsets of the checksums in UDP and TCP headers.
const (
	udpSumAt = 6
	tcpSumAt = 16
)

// spec is a frame from A to B.
func (r *rig) spec(v6 bool, payload int, vlans ...uint16) frame.Spec {
	s := frame.Spec{
		Dst: [6]byte(r.pair.B.MAC()), Src: [6]byte(r.pair.A.MAC()), VLANs: vlans, TTL: 64, ID: 0x1000, SrcPort: 2794, DstPort: 1766,
		SrcIP: netip.MustParseAddr("66.9.149.187"), DstIP: netip.MustParseAddr("161.142.100.80"), Payload: make([]byte, payload),
	}
	if v6 {
		s.SrcIP, s.DstIP = netip.MustParseAddr("3ffe:2501:200:1fff::7"), netip.MustParseAddr("3ffe:2501:200:3::1")
	}
	for i := range s.Payload {
		s.Payload[i] = byte(i*7) ^ byte(i>>8)
	}
	return s
}

// offloader returns both ends' features; it skips the test where there are none.
func (r *rig) offloader(t *testing.T) (a, b netdev.Offloader) {
	t.Helper()
	a, okA := r.pair.A.(netdev.Offloader)
	b, okB := r.pair.B.(netdev.Offloader)
	if !okA || !okB {
		t.Skip("the devices do nothing to frames")
	}
	return a, b
}

// with switches features on at a device until the test ends; it skips the test where the device
// does not have them.
func with(t *testing.T, d netdev.Offloader, f netdev.Feature) {
	t.Helper()
	available, on := d.Features()
	if available&f != f {
		t.Skipf("no %s", f&^available)
	}
	set(t, d, on|f)
	t.Cleanup(func() { set(t, d, on) })
}

func set(t *testing.T, d netdev.Offloader, f netdev.Feature) {
	t.Helper()
	if err := d.SetFeatures(context.Background(), f); err != nil {
		t.Fatalf("SetFeatures(%s) = %v", f, err)
	}
	if _, on := d.Features(); on != f {
		t.Errorf("Features after SetFeatures(%s) = %s", f, on)
	}
}

// receiveAny calls f for each of n frames, whatever queue they land in.
func receiveAny(t testing.TB, d netdev.Device, n int, f func(q int, b *dma.Buf)) {
	t.Helper()
	var bufs [8]*dma.Buf
	for end := time.Now().Add(patience); n > 0; {
		idle := true
		for q := range d.Info().RxQueues {
			k := d.Rx(q).Burst(bufs[:min(n, len(bufs))])
			for _, b := range bufs[:k] {
				f(q, b)
				b.Free()
				idle = false
			}
			n -= k
		}
		if idle {
			if time.Now().After(end) {
				t.Fatalf("%d frames did not arrive within %s", n, patience)
			}
			runtime.Gosched()
		}
	}
}

// send1 sends one frame with Meta.
func (r *rig) send1(t testing.TB, pool *dma.Pool, f []byte, m dma.Meta) {
	t.Helper()
	q := r.pair.A.Tx(0)
	b := get(t, q, pool)
	b.Data = b.Mem[:len(f)]
	copy(b.Data, f)
	b.Meta = m
	sendAll(t, q, []*dma.Buf{b})
}

// same compares a received frame with the one that was wanted, padded.
func same(t testing.TB, what string, got, want []byte) {
	t.Helper()
	want = append([]byte(nil), want...)
	for len(want) < minFrame && len(want) < len(got) {
		want = append(want, 0)
	}
	if bytes.Equal(got, want) {
		return
	}
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			t.Fatalf("%s: byte %d of %d is %#x, want %#x (of %d)", what, i, len(got), got[i], want[i], len(want))
		}
	}
	t.Fatalf("%s: %d bytes, want %d", what, len(got), len(want))
}

// partial makes of a frame's checksum what a sender leaves there for the device: the sum
// of the pseudo header.
func partial(f []byte, s frame.Spec, l4, at int, proto byte) {
	p := append(s.SrcIP.AsSlice(), s.DstIP.AsSlice()...)
	p = binary.BigEndian.AppendUint32(append(p, 0, 0, 0, proto), uint32(len(f)-l4))
	binary.BigEndian.PutUint16(f[l4+at:], ^frame.Sum(p))
}

// checksums lets the sender's device put checksums in, and the receiver's verify them.
func (r *rig) checksums(t *testing.T) {
	a, b := r.offloader(t)
	with(t, a, netdev.TxCsum)
	with(t, b, netdev.RxCsum)
	for _, tcp := range []bool{false, true} {
		for _, v6 := range []bool{false, true} {
			for _, vlans := range [][]uint16{nil, {77}} {
				for _, n := range []int{0, 1, 5, 6, 17, 18, 19, 100, 555, 1400} {
					t.Run(fmt.Sprintf("tcp=%t,v6=%t,vlans=%d,%d", tcp, v6, len(vlans), n), func(t *testing.T) {
						r.checksum(t, r.spec(v6, n, vlans...), tcp)
					})
				}
			}
		}
	}
	drain(t, r.pair.A)
}

func (r *rig) checksum(t *testing.T, s frame.Spec, tcp bool) {
	f, err := frame.Build(s)
	at, proto := udpSumAt, byte(17)
	if tcp {
		at, proto = tcpSumAt, 6
		f, err = frame.BuildTCP(s, frame.TCP{Seq: 0x12345678, Ack: 9, Flags: frame.ACK, Window: 100})
	}
	if err != nil {
		t.Fatal(err)
	}
	raw := append([]byte(nil), f.Bytes...)
	partial(raw, s, f.L4, at, proto)
	r.send1(t, r.pool, raw, dma.Meta{Flags: dma.NeedsCsum, CsumStart: uint16(f.L4), CsumOffset: uint16(at)})
	receiveAny(t, r.pair.B, 1, func(_ int, b *dma.Buf) {
		same(t, "summed by the device", b.Data, f.Bytes)
		// Models need not look behind tags.
		if b.Meta.Flags&dma.CsumGood == 0 && r.pair.NoCsumGood == "" && len(s.VLANs) == 0 {
			t.Error("a right checksum is not CsumGood")
		}
	})
	r.send1(t, r.pool, f.Bytes, dma.Meta{})
	receiveAny(t, r.pair.B, 1, func(_ int, b *dma.Buf) { same(t, "summed by the sender", b.Data, f.Bytes) })
	f.Bytes[f.L4+at+1] ^= 0x5a
	r.send1(t, r.pool, f.Bytes, dma.Meta{})
	receiveAny(t, r.pair.B, 1, func(_ int, b *dma.Buf) {
		same(t, "with a wrong checksum", b.Data, f.Bytes)
		if b.Meta.Flags&dma.CsumGood != 0 {
			t.Error("a wrong checksum is CsumGood")
		}
	})
}

// segments lets the device cut large frames.
func (r *rig) segments(t *testing.T) {
	a, _ := r.offloader(t)
	if r.pair.NoTSO != "" {
		t.Skip(r.pair.NoTSO)
	}
	pool, err := netdev.NewTxPool(r.pair.A.Tx(0), 4, netdev.MaxGSO)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	for _, v6 := range []bool{false, true} {
		for _, vlans := range [][]uint16{nil, {77}} {
			for _, c := range []struct{ mss, payload int }{
				{1460, 100}, {1460, 1460}, {1460, 1461}, {1448, 10 * 1448}, {1448, 10*1448 + 7}, {536, 2 * 536}, {536, 5000}, {1400, 20000}, {1440, 65535 - 60},
				{100, 300}, {1460, 16384}, {1460, 8192 * 3},
			} {
				t.Run(fmt.Sprintf("v6=%t,vlans=%d,%d by %d", v6, len(vlans), c.payload, c.mss), func(t *testing.T) {
					f := netdev.TxTSO4
					if v6 {
						f = netdev.TxTSO6
						c.mss -= 20
					}
					with(t, a, f|netdev.TxCsum)
					r.segment(t, pool, r.spec(v6, c.payload-32, vlans...), c.mss-12)
				})
			}
		}
	}
	drain(t, r.pair.A)
}

func (r *rig) segment(t *testing.T, pool *dma.Pool, s frame.Spec, mss int) {
	want := frame.TCP{Seq: 0xfffffff0, Ack: 5, Flags: frame.FIN | frame.PSH | frame.ACK, Window: 77, Timestamps: true, ChecksumOK: true}
	f, err := frame.BuildTCP(s, want)
	if err != nil {
		t.Fatal(err)
	}
	m := dma.Meta{Flags: dma.NeedsCsum | dma.GSO4, CsumStart: uint16(f.L4), CsumOffset: tcpSumAt, HdrLen: uint16(f.Payload), GSOSize: uint16(mss)}
	if s.SrcIP.Is6() {
		m.Flags ^= dma.GSO4 | dma.GSO6
	}
	partial(f.Bytes, s, f.L4, tcpSumAt, 6)
	r.send1(t, pool, f.Bytes, m)
	rest := s.Payload
	count := (len(rest) + mss - 1) / mss
	frames := count
	if r.pair.EmptySegments && len(rest)%mss == 0 && count > 1 {
		frames++
	}
	i := 0
	receiveAny(t, r.pair.B, frames, func(_ int, b *dma.Buf) {
		p, got, err := frame.DecodeTCP(b.Data)
		if err != nil {
			t.Fatalf("segment %d: %v", i, err)
		}
		w := want
		w.Seq += uint32(i * mss)
		if i < count-1 {
			w.Flags &^= frame.FIN | frame.PSH
		}
		k := min(mss, len(rest))
		if got != w || !bytes.Equal(p.Payload, rest[:k]) || !p.IPChecksumOK || p.SrcIP != s.SrcIP || p.DstIP != s.DstIP || p.SrcPort != s.SrcPort {
			t.Errorf("segment %d of %d: %+v, %d bytes, IP %v: want %+v, %d", i, count, got, len(p.Payload), p.IPChecksumOK, w, k)
		}
		if s.SrcIP.Is4() && p.ID != s.ID+uint16(i) {
			t.Errorf("segment %d has ID %#x, want %#x", i, p.ID, s.ID+uint16(i))
		}
		if len(p.VLANs) != len(s.VLANs) {
			t.Errorf("segment %d has tags %v, want %v", i, p.VLANs, s.VLANs)
		}
		rest = rest[k:]
		i++
	})
}

// vlan lets the devices insert and strip tags.
func (r *rig) vlan(t *testing.T) {
	a, b := r.offloader(t)
	const tci = 5<<13 | 1<<12 | 0xabc
	with(t, a, netdev.TxVLAN|netdev.RxVLAN)
	tagged, plain := r.spec(false, 1000, tci), r.spec(false, 1000)
	long, short := r.spec(false, 1500-28), r.spec(false, 0)
	f := func(s frame.Spec) []byte {
		x, err := frame.Build(s)
		if err != nil {
			t.Fatal(err)
		}
		return x.Bytes
	}
	meta := dma.Meta{Flags: dma.VLAN, VLAN: tci}
	r.send1(t, r.pool, f(plain), meta)
	receiveAny(t, r.pair.B, 1, func(_ int, b *dma.Buf) { same(t, "tag inserted", b.Data, f(tagged)) })
	r.send1(t, r.pool, f(long), meta)
	receiveAny(t, r.pair.B, 1, func(_ int, b *dma.Buf) {
		if len(b.Data) != 1518 {
			t.Errorf("the longest frame with a tag has %d bytes, want 1518", len(b.Data))
		}
	})
	with(t, b, netdev.TxVLAN|netdev.RxVLAN)
	for _, c := range []struct {
		what string
		f    []byte
		m    dma.Meta
		want []byte
	}{
		{"inserted and stripped", f(plain), meta, f(plain)}, {"stripped", f(tagged), dma.Meta{}, f(plain)}, {"longest", f(long), meta, f(long)},
		{"short", f(short), meta, f(short)},
	} {
		r.send1(t, r.pool, c.f, c.m)
		receiveAny(t, r.pair.B, 1, func(_ int, b *dma.Buf) {
			same(t, c.what, b.Data, c.want)
			if b.Meta.Flags&dma.VLAN == 0 || b.Meta.VLAN != tci {
				t.Errorf("%s: Meta = %+v, want the tag %#x", c.what, b.Meta, tci)
			}
		})
	}
	r.send1(t, r.pool, f(plain), dma.Meta{})
	receiveAny(t, r.pair.B, 1, func(_ int, b *dma.Buf) {
		same(t, "without a tag", b.Data, f(plain))
		if b.Meta.Flags&dma.VLAN != 0 {
			t.Errorf("without a tag: Meta = %+v", b.Meta)
		}
	})
	// A segmented frame has the tag on each segment.
	if _, on := a.Features(); on&netdev.TxTSO4 != 0 && r.pair.NoTSO == "" {
		x, err := frame.BuildTCP(plain, frame.TCP{Flags: frame.ACK})
		if err != nil {
			t.Fatal(err)
		}
		m := dma.Meta{Flags: dma.VLAN | dma.GSO4 | dma.NeedsCsum, VLAN: tci, CsumStart: uint16(x.L4), CsumOffset: tcpSumAt, HdrLen: uint16(x.Payload), GSOSize: 300}
		r.send1(t, r.pool, x.Bytes, m)
		receiveAny(t, r.pair.B, 4, func(_ int, b *dma.Buf) {
			_, got, err := frame.DecodeTCP(b.Data)
			if err != nil || !got.ChecksumOK || b.Meta.Flags&dma.VLAN == 0 || b.Meta.VLAN != tci {
				t.Errorf("segment with a tag: %+v, %v, Meta = %+v", got, err, b.Meta)
			}
		})
	}
	drain(t, r.pair.A)
}

// badMeta asks for what cannot be: it is counted and freed, and nothing is sent.
func (r *rig) badMeta(t *testing.T) {
	a, _ := r.offloader(t)
	available, on := a.Features()
	if available&netdev.TxCsum == 0 {
		t.Skip("no checksums")
	}
	tcp, err := frame.BuildTCP(r.spec(false, 500), frame.TCP{Flags: frame.ACK})
	if err != nil {
		t.Fatal(err)
	}
	six, err := frame.BuildTCP(r.spec(true, 500), frame.TCP{Flags: frame.ACK})
	if err != nil {
		t.Fatal(err)
	}
	good := dma.Meta{Flags: dma.NeedsCsum | dma.GSO4, CsumStart: 34, CsumOffset: 16, HdrLen: 54, GSOSize: 200}
	edit := func(f func(*dma.Meta)) dma.Meta { m := good; f(&m); return m }
	cut := func(f []byte, at int, v byte) []byte {
		f = append([]byte(nil), f...)
		f[at] = v
		return f
	}
	type bad struct {
		what string
		f    []byte
		m    dma.Meta
	}
	cases := []bad{
		{"no checksum", tcp.Bytes, edit(func(m *dma.Meta) { m.Flags = dma.GSO4 })},
		{"both versions", tcp.Bytes, edit(func(m *dma.Meta) { m.Flags |= dma.GSO6 })},
		{"no segment size", tcp.Bytes, edit(func(m *dma.Meta) { m.GSOSize = 0 })},
		{"segments larger than the MTU", tcp.Bytes, edit(func(m *dma.Meta) { m.GSOSize = 0xffff })},
		{"headers cut short", tcp.Bytes, edit(func(m *dma.Meta) { m.HdrLen = 53 })},
		{"sum starts elsewhere", tcp.Bytes, edit(func(m *dma.Meta) { m.CsumStart = 35 })},
		{"sum ends elsewhere", tcp.Bytes, edit(func(m *dma.Meta) { m.CsumOffset = 17 })},
		{"IPv6 as IPv4", six.Bytes, good},
		{"IPv4 as IPv6", tcp.Bytes, edit(func(m *dma.Meta) { m.Flags ^= dma.GSO4 | dma.GSO6 })},
		{"UDP", cut(tcp.Bytes, 23, 17), good},
		{"IP header too short", cut(tcp.Bytes, 14, 0x44), good},
		{"IP header too long", cut(tcp.Bytes, 14, 0x4f), good},
		{"TCP header too short", cut(tcp.Bytes, 46, 0x40), good},
		{"headers only", tcp.Bytes[:54], good},
		{"half a header", tcp.Bytes[:40], good},
		{"an Ethernet header", tcp.Bytes[:14], good},
		{"sum beyond the end", tcp.Bytes, dma.Meta{Flags: dma.NeedsCsum, CsumStart: 34, CsumOffset: uint16(len(tcp.Bytes) - 35)}},
		{"sum starts beyond the end", tcp.Bytes, dma.Meta{Flags: dma.NeedsCsum, CsumStart: 0xffff, CsumOffset: 0xffff}},
		{"sum of the Ethernet header", tcp.Bytes, dma.Meta{Flags: dma.NeedsCsum, CsumStart: 0, CsumOffset: 6}},
		{"nothing", nil, dma.Meta{Flags: dma.NeedsCsum}},
	}
	try := func(what string, f []byte, m dma.Meta) {
		drain(t, r.pair.A)
		free, errs := r.pool.Free(), r.pair.A.Stats().TxErrors
		r.send1(t, r.pool, f, m)
		drain(t, r.pair.A)
		if got := r.pair.A.Stats().TxErrors - errs; got != 1 || r.pool.Free() != free {
			t.Errorf("%s: %d errors, %d buffers free: want 1, %d", what, got, r.pool.Free(), free)
		}
		silence(t, r.pair.B)
	}
	for _, c := range cases {
		try(c.what, c.f, c.m)
	}
	set(t, a, on&^(netdev.TxCsum|netdev.TxTSO4|netdev.TxTSO6|netdev.TxVLAN|netdev.RxVLAN))
	defer set(t, a, on)
	try("segmentation off", tcp.Bytes, good)
	try("checksums off", tcp.Bytes, dma.Meta{Flags: dma.NeedsCsum, CsumStart: 34, CsumOffset: 16})
	try("tags off", tcp.Bytes, dma.Meta{Flags: dma.VLAN, VLAN: 1})
}

// queues sends flows from every transmit queue at once: each flow arrives in order, whole, and
// in one queue of the far end.
func (r *rig) queues(t *testing.T) {
	a, b := r.pair.A, r.pair.B
	txs, rxs := a.Info().TxQueues, b.Info().RxQueues
	if txs == 1 && rxs == 1 {
		t.Skip("one queue")
	}
	const flows, each = 16, 200 // of a transmit queue
	r.sinkAll(t)
	var wg sync.WaitGroup
	for q := range txs {
		pool, err := a.Tx(q).NewPool(r.ring)
		if err != nil {
			t.Fatal(err)
		}
		defer pool.Close()
		var templates [flows][]byte
		for i := range templates {
			s := r.spec(i%4 == 3, 64)
			s.SrcPort = uint16(1000 + q*flows + i)
			f, err := frame.BuildTCP(s, frame.TCP{Flags: frame.ACK})
			if err != nil {
				t.Fatal(err)
			}
			f.Bytes[len(f.Bytes)-1] = byte(q*flows + i)
			templates[i] = f.Bytes
		}
		wg.Go(func() {
			for n := range flows * each {
				x := get(t, a.Tx(q), pool)
				f := templates[n%flows]
				x.Data = x.Mem[:len(f)]
				copy(x.Data, f)
				binary.BigEndian.PutUint32(x.Data[len(f)-5:], uint32(n/flows))
				sendAll(t, a.Tx(q), []*dma.Buf{x})
			}
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			if err := a.Tx(q).Drain(ctx); err != nil {
				t.Errorf("Drain of queue %d = %v", q, err)
			}
		})
	}
	where, next := make(map[byte]int), make([]uint32, txs*flows)
	hashes := make(map[byte]uint32)
	receiveAny(t, b, txs*flows*each, func(q int, x *dma.Buf) {
		f := x.Data
		id := f[len(f)-1]
		if int(id) >= len(next) {
			t.Fatalf("a frame of flow %d", id)
		}
		if n := binary.BigEndian.Uint32(f[len(f)-5:]); n != next[id] {
			t.Fatalf("flow %d: frame %d in queue %d, want %d", id, n, q, next[id])
		}
		if next[id]++; next[id] == 1 {
			where[id], hashes[id] = q, x.Meta.Hash
		}
		if where[id] != q || hashes[id] != x.Meta.Hash {
			t.Errorf("flow %d: queue %d, hash %#x, then %d, %#x", id, where[id], hashes[id], q, x.Meta.Hash)
		}
	})
	wg.Wait()
	used := make(map[int]int)
	for id, q := range where {
		used[q]++
		if o, ok := b.(netdev.Offloader); ok {
			if _, on := o.Features(); on&netdev.RxHash != 0 && hashes[id] == 0 {
				t.Errorf("flow %d has no hash", id)
			}
		}
	}
	if len(used) != rxs {
		t.Errorf("flows by queue: %v, want all %d queues used", used, rxs)
	}
	for q := range txs {
		a.Tx(q).Reap()
	}
}

// sinkAll lets receivers sleep on every queue while few frames come, some for each.
func (r *rig) sinkAll(t *testing.T) {
	t.Helper()
	a, b := r.pair.A, r.pair.B
	sink, err := netdev.NewSink(b)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := sink.Close(); err != nil {
			t.Errorf("Sink.Close = %v", err)
		}
	}()
	for i := range 50 {
		s := r.spec(false, 64)
		s.SrcPort = uint16(i)
		f, err := frame.BuildTCP(s, frame.TCP{Flags: frame.ACK})
		if err != nil {
			t.Fatal(err)
		}
		r.send1(t, r.pool, f.Bytes, dma.Meta{})
		for end := time.Now().Add(patience); sink.Frames() <= uint64(i); time.Sleep(50 * time.Microsecond) {
			if time.Now().After(end) {
				t.Fatalf("frame %d was not received within %s", i, patience)
			}
		}
	}
	drain(t, a)
}
