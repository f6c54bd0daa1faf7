package netdevtest

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"runtime"
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
