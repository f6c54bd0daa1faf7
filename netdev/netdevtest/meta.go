package netdevtest

import (
	"testing"

	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/internal/frame"
	"github.com/ring3dev/ring3/netdev"
)

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
	r.taggedSegments(t, a, plain, tci)
	drain(t, r.pair.A)
}

// taggedSegments: a segmented frame has the tag on each segment.
func (r *rig) taggedSegments(t *testing.T, a netdev.Offloader, plain frame.Spec, tci uint16) {
	t.Helper()
	if _, on := a.Features(); on&netdev.TxTSO4 == 0 || r.pair.NoTSO != "" {
		return
	}
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

// badMeta asks for what cannot be: it is counted and freed, and nothing is sent.
func (r *rig) badMeta(t *testing.T) {
	a, _ := r.offloader(t)
	available, on := a.Features()
	if available&netdev.TxCsum == 0 {
		t.Skip("no checksums")
	}
	good, cases := r.badFrames(t)
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
	try("segmentation off", good.f, good.m)
	try("checksums off", good.f, dma.Meta{Flags: dma.NeedsCsum, CsumStart: 34, CsumOffset: 16})
	try("tags off", good.f, dma.Meta{Flags: dma.VLAN, VLAN: 1})
}

// badFrame is a frame that asks for something.
type badFrame struct {
	what string
	f    []byte
	m    dma.Meta
}

// badFrames makes frames that ask for what cannot be, and the one that they were made from.
func (r *rig) badFrames(t *testing.T) (good badFrame, cases []badFrame) {
	t.Helper()
	tcp, err := frame.BuildTCP(r.spec(false, 500), frame.TCP{Flags: frame.ACK})
	if err != nil {
		t.Fatal(err)
	}
	six, err := frame.BuildTCP(r.spec(true, 500), frame.TCP{Flags: frame.ACK})
	if err != nil {
		t.Fatal(err)
	}
	good = badFrame{"good", tcp.Bytes, dma.Meta{Flags: dma.NeedsCsum | dma.GSO4, CsumStart: 34, CsumOffset: 16, HdrLen: 54, GSOSize: 200}}
	edit := func(f func(*dma.Meta)) dma.Meta { m := good.m; f(&m); return m }
	cut := func(f []byte, at int, v byte) []byte {
		f = append([]byte(nil), f...)
		f[at] = v
		return f
	}
	cases = []badFrame{
		{"no checksum", tcp.Bytes, edit(func(m *dma.Meta) { m.Flags = dma.GSO4 })},
		{"both versions", tcp.Bytes, edit(func(m *dma.Meta) { m.Flags |= dma.GSO6 })},
		{"no segment size", tcp.Bytes, edit(func(m *dma.Meta) { m.GSOSize = 0 })},
		{"segments larger than the MTU", tcp.Bytes, edit(func(m *dma.Meta) { m.GSOSize = 0xffff })},
		{"headers cut short", tcp.Bytes, edit(func(m *dma.Meta) { m.HdrLen = 53 })},
		{"sum starts elsewhere", tcp.Bytes, edit(func(m *dma.Meta) { m.CsumStart = 35 })},
		{"sum ends elsewhere", tcp.Bytes, edit(func(m *dma.Meta) { m.CsumOffset = 17 })},
		{"IPv6 as IPv4", six.Bytes, good.m},
		{"IPv4 as IPv6", tcp.Bytes, edit(func(m *dma.Meta) { m.Flags ^= dma.GSO4 | dma.GSO6 })},
		{"UDP", cut(tcp.Bytes, 23, 17), good.m},
		{"IP header too short", cut(tcp.Bytes, 14, 0x44), good.m},
		{"IP header too long", cut(tcp.Bytes, 14, 0x4f), good.m},
		{"TCP header too short", cut(tcp.Bytes, 46, 0x40), good.m},
		{"headers only", tcp.Bytes[:54], good.m},
		{"half a header", tcp.Bytes[:40], good.m},
		{"an Ethernet header", tcp.Bytes[:14], good.m},
		{"sum beyond the end", tcp.Bytes, dma.Meta{Flags: dma.NeedsCsum, CsumStart: 34, CsumOffset: uint16(len(tcp.Bytes) - 35)}},
		{"sum starts beyond the end", tcp.Bytes, dma.Meta{Flags: dma.NeedsCsum, CsumStart: 0xffff, CsumOffset: 0xffff}},
		{"sum of the Ethernet header", tcp.Bytes, dma.Meta{Flags: dma.NeedsCsum, CsumStart: 0, CsumOffset: 6}},
		{"nothing", nil, dma.Meta{Flags: dma.NeedsCsum}},
	}
	return good, cases
}
