package tap

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/dma"
)

// tcp says what a TCP frame is to be.
type tcp struct {
	v6      bool
	flow    uint16 // the source port
	seq     uint32
	ack     uint32
	window  uint16
	id      uint16
	ttl     uint8
	tos     uint8
	frag    bool // DF clear
	push    bool
	fin     bool
	noACK   bool
	opts    []layers.TCPOption
	payload []byte
	pad     int // bytes of Ethernet padding
	badTCP  bool
	badIP   bool
}

// bytes builds the frame with right lengths and checksums, but for what is to be bad.
func (s tcp) bytes(t testing.TB) []byte {
	t.Helper()
	eth := &layers.Ethernet{SrcMAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, DstMAC: net.HardwareAddr{2, 0, 0, 0, 0, 2}, EthernetType: layers.EthernetTypeIPv4}
	l4 := &layers.TCP{SrcPort: layers.TCPPort(s.flow), DstPort: 80, Seq: s.seq, Ack: s.ack, Window: s.window, ACK: !s.noACK, PSH: s.push, FIN: s.fin, Options: s.opts}
	var ip gopacket.SerializableLayer
	if s.v6 {
		eth.EthernetType = layers.EthernetTypeIPv6
		v := &layers.IPv6{Version: 6, TrafficClass: s.tos, HopLimit: 64 - s.ttl, NextHeader: layers.IPProtocolTCP, SrcIP: net.ParseIP("fd00::1"), DstIP: net.ParseIP("fd00::2")}
		_ = l4.SetNetworkLayerForChecksum(v)
		ip = v
	} else {
		v := &layers.IPv4{Version: 4, IHL: 5, TOS: s.tos, TTL: 64 - s.ttl, Id: s.id, Protocol: layers.IPProtocolTCP, SrcIP: net.IP{10, 0, 0, 1}, DstIP: net.IP{10, 0, 0, 2}, Flags: layers.IPv4DontFragment}
		if s.frag {
			v.Flags = 0
		}
		_ = l4.SetNetworkLayerForChecksum(v)
		ip = v
	}
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, eth, ip, l4, gopacket.Payload(s.payload)); err != nil {
		t.Fatal(err)
	}
	// The serializer pads, too; what is wanted is exact.
	n := etherLen + ipv4Len + l4Len(l4) + len(s.payload)
	if s.v6 {
		n += ipv6Len - ipv4Len
	}
	b := append(bytes.Clone(buf.Bytes()[:n]), make([]byte, s.pad)...)
	if s.badTCP {
		b[n-1] ^= 0x40
	}
	if s.badIP {
		b[8+14] ^= 0x01
	}
	return b
}

func l4Len(l *layers.TCP) int { return int(l.DataOffset) * 4 }

// stamp is the options of most connections: two NOPs and a timestamp.
func stamp(v byte) []layers.TCPOption {
	return []layers.TCPOption{{OptionType: layers.TCPOptionKindNop}, {OptionType: layers.TCPOptionKindNop},
		{OptionType: layers.TCPOptionKindTimestamps, OptionLength: 10, OptionData: []byte{0, 0, 0, v, 0, 0, 0, 1}}}
}

// heap is DMA memory for buffers that no device sees.
type heap struct{}

func (heap) Alloc(r bus.DMARequest) (*bus.Memory, error) {
	return bus.NewMemory(make([]byte, r.Size), 1<<20, func() {}), nil
}

func (heap) Map([]byte, bus.DMARequest) (*bus.Memory, error) { return nil, bus.ErrNotSupported }

// funnel is a receiver whose writes can be read: the interface is a socket that keeps
// messages apart.
type funnel struct {
	*receiver
	pool *dma.Pool
	fd   int
}

func newFunnel(t testing.TB, c Config) *funnel {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	file0 := os.NewFile(uintptr(fds[0]), "tap")
	t.Cleanup(func() { file0.Close(); unix.Close(fds[1]) })
	_ = unix.SetsockoptInt(fds[0], unix.SOL_SOCKET, unix.SO_SNDBUF, 4<<20)
	raw, err := file0.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	pool, err := dma.NewStaggered(heap{}, maxGroup, 16<<10, bus.FromDevice)
	if err != nil {
		t.Fatal(err)
	}
	b := &Bridge{dev: newCard("x0", 1), tap: &Tap{name: "x", queues: []*file{{file0, raw}}}, cfg: c}
	return &funnel{newReceiver(b, 0), pool, fds[1]}
}

// poll gives the frames to the receiver as one poll, and returns what the kernel would
// have been given, headers included.
func (f *funnel) poll(t testing.TB, meta dma.Meta, frames ...[]byte) [][]byte {
	t.Helper()
	var bufs []*dma.Buf
	for _, b := range frames {
		d := f.pool.Get()
		d.Data = append(d.Data, b...)
		d.Meta = meta
		bufs = append(bufs, d)
	}
	f.take(bufs)
	if f.pool.Free() != f.pool.Len() {
		t.Errorf("%d buffers were not freed", f.pool.Len()-f.pool.Free())
	}
	return f.written(t)
}

func (f *funnel) written(t testing.TB) (out [][]byte) {
	t.Helper()
	for {
		b := make([]byte, 70000)
		n, err := unix.Read(f.fd, b)
		if err == unix.EAGAIN {
			return out
		}
		if err != nil || n < headerLen {
			t.Fatalf("reading what was written: %d, %v", n, err)
		}
		out = append(out, b[:n])
	}
}

// segments cuts a frame up as a device or the kernel does it, and puts the checksums in.
func segments(t testing.TB, written []byte) [][]byte {
	t.Helper()
	frame := written[headerLen:]
	m, ok := decodeHeader(written[:headerLen], frame)
	if !ok {
		t.Fatalf("the header %x of a frame of %d bytes makes no sense", written[:headerLen], len(frame))
	}
	return cut(frame, m)
}

// cut does to a frame what its Meta asks for. It keeps nothing of frame.
func cut(frame []byte, m dma.Meta) (out [][]byte) {
	if m.Flags&(dma.GSO4|dma.GSO6) == 0 {
		f := bytes.Clone(frame)
		if m.Flags&dma.NeedsCsum != 0 {
			checksum(f, &m)
		}
		return [][]byte{f}
	}
	t := int(m.CsumStart)
	seq, id := binary.BigEndian.Uint32(frame[t+tcpSeq:]), binary.BigEndian.Uint16(frame[18:])
	for at, i := int(m.HdrLen), uint16(0); at < len(frame); i++ {
		n := min(int(m.GSOSize), len(frame)-at)
		f := append(bytes.Clone(frame[:m.HdrLen]), frame[at:at+n]...)
		binary.BigEndian.PutUint32(f[t+tcpSeq:], seq+uint32(at-int(m.HdrLen)))
		if at+n < len(frame) {
			f[t+tcpFlags] &^= flagPSH | 1
		}
		if m.Flags&dma.GSO4 != 0 {
			binary.BigEndian.PutUint16(f[16:], uint16(len(f)-etherLen))
			binary.BigEndian.PutUint16(f[18:], id+i)
			binary.BigEndian.PutUint16(f[24:], 0)
			binary.BigEndian.PutUint16(f[24:], ^fold(sum(f[etherLen:34], 0)))
		} else {
			binary.BigEndian.PutUint16(f[18:], uint16(len(f)-t))
		}
		s := segment{v6: m.Flags&dma.GSO6 != 0}
		f[t+tcpCsumOff], f[t+tcpCsumOff+1] = 0, 0
		binary.BigEndian.PutUint16(f[t+tcpCsumOff:], ^fold(sum(f[t:], s.pseudo(f, len(f)-t))))
		out = append(out, f)
		at += n
	}
	return out
}

// pattern is n bytes that differ from those at other places.
func pattern(n, at int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte((at + i) * 7 >> 2)
	}
	return b
}

// stream is n segments of size bytes of one flow.
func stream(t testing.TB, base tcp, n, size int) (out [][]byte) {
	for i := range n {
		s := base
		s.seq += uint32(i * size)
		s.id += uint16(i)
		s.payload = pattern(size, i*size)
		out = append(out, s.bytes(t))
	}
	return out
}

func TestJoin(t *testing.T) {
	base := tcp{flow: 1000, seq: 0xffffff00, ack: 5, window: 77, id: 0xfffe, opts: stamp(1)}
	for _, v6 := range []bool{false, true} {
		base.v6 = v6
		hdr := 14 + 20 + 32
		if v6 {
			hdr += 20
		}
		with := func(i int, change func(s *tcp)) [][]byte {
			fs := stream(t, base, 4, 1000)
			s := base
			s.seq, s.id, s.payload = base.seq+uint32(i*1000), base.id+uint16(i), pattern(1000, i*1000)
			change(&s)
			fs[i] = s.bytes(t)
			return fs
		}
		for _, c := range []struct {
			name   string
			frames [][]byte
			want   []int // frames joined in each write
		}{
			{"four", stream(t, base, 4, 1000), []int{4}},
			{"one", stream(t, base, 1, 1000), []int{1}},
			{"64 KiB and more", stream(t, base, 64, 1448), []int{45, 19}},
			{"short ones", stream(t, base, 64, 3), []int{64}},
			{"jumbo", stream(t, base, 10, 8948), []int{7, 3}},
			{"short in the middle", with(1, func(s *tcp) { s.payload = s.payload[:999] }), []int{2, 2}},
			{"long in the middle", with(1, func(s *tcp) { s.payload = pattern(1001, 0) }), []int{1, 1, 2}},
			{"pushed", with(1, func(s *tcp) { s.push = true }), []int{2, 2}},
			{"pushed first", with(0, func(s *tcp) { s.push = true }), []int{1, 3}},
			{"FIN last", with(3, func(s *tcp) { s.fin = true }), []int{3, 1}},
			{"FIN in the middle", with(1, func(s *tcp) { s.fin = true }), []int{1, 1, 2}},
			{"no ACK", with(1, func(s *tcp) { s.noACK = true }), []int{1, 1, 2}},
			{"empty", with(1, func(s *tcp) { s.payload = nil }), []int{1, 1, 2}},
			{"hole", with(1, func(s *tcp) { s.seq++ }), []int{1, 1, 2}},
			{"other acknowledgement", with(2, func(s *tcp) { s.ack++ }), []int{2, 1, 1}},
			{"other window", with(2, func(s *tcp) { s.window++ }), []int{2, 1, 1}},
			{"other time stamp", with(2, func(s *tcp) { s.opts = stamp(2) }), []int{2, 1, 1}},
			{"no options", with(2, func(s *tcp) { s.opts = nil }), []int{2, 1, 1}},
			{"other TTL", with(2, func(s *tcp) { s.ttl++ }), []int{2, 1, 1}},
			{"other TOS", with(2, func(s *tcp) { s.tos = 4 }), []int{2, 1, 1}},
			{"bad TCP checksum", with(2, func(s *tcp) { s.badTCP = true }), []int{2, 1, 1}},
			{"padded", with(3, func(s *tcp) { s.payload, s.pad = s.payload[:2], 9 }), []int{4}},
			{"padded first", with(0, func(s *tcp) { s.payload, s.pad, s.seq = pattern(2, 0), 9, s.seq+998 }), []int{1, 3}},
		} {
			t.Run(fmt.Sprintf("%s v6=%t", c.name, v6), func(t *testing.T) {
				f := newFunnel(t, Config{})
				out := f.poll(t, dma.Meta{}, c.frames...)
				var got []int
				rest := c.frames
				for _, w := range out {
					segs := segments(t, w)
					got = append(got, len(segs))
					if len(segs) > 1 && binary.LittleEndian.Uint16(w[hdrHdrLen:]) != uint16(hdr) {
						t.Errorf("hdr_len = %d, want %d", binary.LittleEndian.Uint16(w[hdrHdrLen:]), hdr)
					}
					for _, s := range segs {
						if len(rest) == 0 || !bytes.Equal(s, rest[0][:min(len(s), len(rest[0]))]) || len(segs) == 1 && len(s) != len(rest[0]) {
							t.Fatalf("the segment is not the next frame that was received:\n%x", s)
						}
						rest = rest[1:]
					}
				}
				if fmt.Sprint(got) != fmt.Sprint(c.want) || len(rest) != 0 {
					t.Errorf("%d frames were joined as %v with %d left, want %v", len(c.frames), got, len(rest), c.want)
				}
			})
		}
	}
}

// TestJoinIPv4 has what only IPv4 has.
func TestJoinIPv4(t *testing.T) {
	f := newFunnel(t, Config{})
	base := tcp{flow: 1, id: 0xfffe, frag: true}
	if out := f.poll(t, dma.Meta{}, stream(t, base, 4, 500)...); len(out) != 1 {
		t.Errorf("without DF, with identifications that count up: %d writes, want 1", len(out))
	}
	fs := stream(t, base, 4, 500)
	s := base
	s.seq, s.payload, s.id = 500, pattern(500, 500), 9
	fs[1] = s.bytes(t)
	if out := f.poll(t, dma.Meta{}, fs...); len(out) != 3 {
		t.Errorf("without DF, with another identification: %d writes, want 3", len(out))
	}
	fs = stream(t, tcp{flow: 1}, 4, 500)
	fs[1][14+8]++ // the header's checksum is wrong now
	if out := f.poll(t, dma.Meta{}, fs...); len(out) != 3 {
		t.Errorf("a wrong IPv4 checksum: %d writes, want 3", len(out))
	}
	for _, change := range []func(b []byte){
		func(b []byte) { b[14] = 0x46 },                                   // options
		func(b []byte) { b[20] |= 0x20 },                                  // more fragments
		func(b []byte) { b[21] = 1 },                                      // a later fragment
		func(b []byte) { b[23] = 17 },                                     // UDP
		func(b []byte) { binary.BigEndian.PutUint16(b[16:], 0xffff) },     // longer than the frame
		func(b []byte) { binary.BigEndian.PutUint16(b[16:], 30) },         // shorter than its headers
		func(b []byte) { b[34+tcpDataOff] = 0x40 },                        // a TCP header too short
		func(b []byte) { b[34+tcpDataOff] = 0xf0; b[17] = 60; b[16] = 0 }, // and too long
		func(b []byte) { b[12], b[13] = 0x81, 0 },                         // a tag in the frame
	} {
		fs := stream(t, tcp{flow: 1}, 3, 500)
		for _, b := range fs {
			change(b)
		}
		if out := f.poll(t, dma.Meta{}, fs...); len(out) != 3 {
			t.Errorf("%x: %d writes, want 3", fs[0][:40], len(out))
		}
	}
}

// TestFlows: flows that are mixed stay whole and in order, also where there are more than are
// joined at a time.
func TestFlows(t *testing.T) {
	for _, n := range []int{2, flows, flows + 3} {
		f := newFunnel(t, Config{})
		var frames [][]byte
		for i := range 4 {
			for k := range n {
				frames = append(frames, tcp{flow: uint16(k), seq: uint32(i * 1000), id: uint16(i), v6: k%2 == 1, payload: pattern(1000, i*1000)}.bytes(t))
			}
		}
		next := map[uint16]uint32{}
		writes := f.poll(t, dma.Meta{}, frames...)
		for _, w := range writes {
			for _, s := range segments(t, w) {
				at := 34
				if s[12] == 0x86 {
					at = 54
				}
				port, seq := binary.BigEndian.Uint16(s[at:]), binary.BigEndian.Uint32(s[at+4:])
				if seq != next[port] {
					t.Errorf("%d flows: flow %d continues at %d, want %d", n, port, seq, next[port])
				}
				next[port] = seq + 1000
			}
		}
		if n <= flows && len(writes) != n {
			t.Errorf("%d flows: %d writes, want one each", n, len(writes))
		}
		if len(next) != n || next[0] != 4000 {
			t.Errorf("%d flows: arrived %v, want all to 4000", n, next)
		}
	}
}

// TestRandom: whatever comes, cutting up what was written gives each flow's bytes in order.
func TestRandom(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	f := newFunnel(t, Config{})
	for range 300 {
		var frames [][]byte
		want := map[uint16][]byte{}
		seq := map[uint16]uint32{}
		for range 1 + rnd.IntN(64) {
			k := uint16(rnd.IntN(10))
			s := tcp{flow: k, v6: k%2 == 1, seq: seq[k], id: uint16(seq[k]), frag: rnd.IntN(9) == 0, push: rnd.IntN(9) == 0, fin: rnd.IntN(20) == 0,
				ack: uint32(rnd.IntN(20)) / 19, window: uint16(rnd.IntN(20)) / 19, payload: pattern([]int{0, 5, 700, 700, 700, 700}[rnd.IntN(6)], rnd.IntN(1000)), pad: rnd.IntN(10) / 8 * 6}
			seq[k] += uint32(len(s.payload))
			want[k] = append(want[k], s.payload...)
			frames = append(frames, s.bytes(t))
		}
		got := map[uint16][]byte{}
		for _, w := range f.poll(t, dma.Meta{}, frames...) {
			for _, b := range segments(t, w) {
				s, ok := parse(b)
				if !ok || !s.verified(&dma.Buf{Data: b}) {
					t.Fatalf("a frame that came out is not right: %x", b)
				}
				k := binary.BigEndian.Uint16(b[s.tcp:])
				got[k] = append(got[k], b[s.payload:s.end]...)
			}
		}
		for k := range want {
			if !bytes.Equal(got[k], want[k]) {
				t.Fatalf("flow %d: %d bytes that differ from the %d that were sent", k, len(got[k]), len(want[k]))
			}
		}
	}
}

// TestScribble: a device that goes on writing to frames it has delivered gets garbage through, and
// nothing else.
func TestScribble(t *testing.T) {
	f := newFunnel(t, Config{})
	var bufs []*dma.Buf
	for _, b := range stream(t, tcp{flow: 1}, 3, 100) {
		buf := f.pool.Get()
		buf.Data = buf.Mem[:copy(buf.Mem, b)]
		bufs = append(bufs, buf)
	}
	for _, b := range bufs {
		if !f.gather(b) {
			t.Fatal("a segment was not joined")
		}
	}
	for i := range bufs[1].Data {
		bufs[1].Data[i] = 0xff
	}
	binary.BigEndian.PutUint16(bufs[2].Data[16:], 0xffff) // the IP packet's length
	want := headerLen + len(bufs[0].Data) + 200
	f.take(nil)
	if out := f.written(t); len(out) != 1 || len(out[0]) != want {
		t.Errorf("%d writes, want one of %d bytes", len(out), want)
	}
}

// TestSingle has frames that are not joined.
func TestSingle(t *testing.T) {
	frames := stream(t, tcp{flow: 1}, 3, 100)
	for _, c := range []struct {
		name   string
		cfg    Config
		meta   dma.Meta
		writes int
		header []byte
		frame  []byte
	}{
		{"GRO off", Config{NoGRO: true}, dma.Meta{Flags: dma.CsumGood}, 3, header(flagDataValid, 0, 0, 0, 0, 0), frames[0]},
		{"offloads off", Config{NoOffload: true}, dma.Meta{Flags: dma.CsumGood}, 3, make([]byte, headerLen), frames[0]},
		{"not verified", Config{NoGRO: true}, dma.Meta{}, 3, make([]byte, headerLen), frames[0]},
		{"stripped tag", Config{}, dma.Meta{Flags: dma.VLAN | dma.CsumGood, VLAN: 0x2abc}, 3, header(flagDataValid, 0, 0, 0, 0, 0),
			append(append(bytes.Clone(frames[0][:12]), 0x81, 0, 0x2a, 0xbc), frames[0][12:]...)},
	} {
		f := newFunnel(t, c.cfg)
		out := f.poll(t, c.meta, frames...)
		if len(out) != c.writes || !bytes.Equal(out[0][:headerLen], c.header) || !bytes.Equal(out[0][headerLen:], c.frame) {
			t.Errorf("%s: %d writes, the first %x, want %d, %x %x", c.name, len(out), out[0], c.writes, c.header, c.frame)
		}
	}
	f := newFunnel(t, Config{})
	if out := f.poll(t, dma.Meta{Flags: dma.VLAN}, []byte{1}, nil); len(out) != 2 || len(out[0]) != headerLen+1 {
		t.Errorf("frames of 1 and 0 bytes: %x", out)
	}
}

func FuzzTake(f *testing.F) {
	f.Add(tcp{flow: 1, payload: []byte("x")}.bytes(f), tcp{flow: 1, seq: 1, payload: []byte("y")}.bytes(f), byte(0))
	f.Add(tcp{v6: true, flow: 1, payload: []byte("x")}.bytes(f), tcp{v6: true, flow: 1, seq: 1, payload: []byte("y")}.bytes(f), byte(dma.CsumGood))
	f.Fuzz(func(t *testing.T, a, b []byte, flags byte) {
		if len(a) > 16<<10 || len(b) > 16<<10 {
			return
		}
		fun := newFunnel(t, Config{})
		for _, w := range fun.poll(t, dma.Meta{Flags: dma.MetaFlags(flags) & (dma.CsumGood | dma.VLAN)}, a, b, a, b) {
			if _, ok := decodeHeader(w[:headerLen], w[headerLen:]); !ok {
				t.Errorf("the header %x makes no sense", w[:headerLen])
			}
		}
	})
}

func TestTakeAllocs(t *testing.T) {
	f := newFunnel(t, Config{})
	frames := stream(t, tcp{flow: 1}, 32, 1000)
	bufs := make([]*dma.Buf, len(frames))
	sink := make([]byte, 70000)
	n := testing.AllocsPerRun(100, func() {
		for i, b := range frames {
			bufs[i] = f.pool.Get()
			bufs[i].Data = append(bufs[i].Data, b...)
		}
		f.take(bufs)
		if _, err := unix.Read(f.fd, sink); err != nil {
			t.Fatal(err)
		}
	})
	if n != 0 {
		t.Errorf("take of 32 frames allocates %v times, want 0", n)
	}
}

func BenchmarkJoin(b *testing.B) {
	f := newFunnel(b, Config{})
	frames := stream(b, tcp{flow: 1, opts: stamp(1)}, 44, 1448)
	bufs := make([]*dma.Buf, len(frames))
	sink := make([]byte, 70000)
	for b.Loop() {
		for i, fr := range frames {
			bufs[i] = f.pool.Get()
			bufs[i].Data = append(bufs[i].Data, fr...)
		}
		f.take(bufs)
		if _, err := unix.Read(f.fd, sink); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/44, "ns/frame")
}
