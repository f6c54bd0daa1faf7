package tap

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/ring3dev/ring3/bus/dma"
)

// naive is RFC 1071 as it stands there.
func naive(b []byte) uint16 {
	var s uint32
	for i := 0; i < len(b); i += 2 {
		w := uint32(b[i]) << 8
		if i+1 < len(b) {
			w |= uint32(b[i+1])
		}
		s += w
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

// same compares one's complement sums, where 0 and 0xffff are the same.
func same(a, b uint16) bool { return a == b || a^b == 0xffff && (a == 0 || b == 0) }

func TestSum(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for n := range 300 {
		b := make([]byte, n)
		for i := range b {
			if b[i] = byte(rnd.Uint32()); n%3 == 0 {
				b[i] = 0xff // carries everywhere
			}
		}
		if got, want := fold(sum(b, 0)), naive(b); !same(got, want) {
			t.Errorf("fold(sum(%d bytes)) = %#x, want %#x", n, got, want)
		}
		if got, want := fold(sum(b, ^uint64(0))), naive(b); !same(got, want) {
			t.Errorf("fold(sum(%d bytes, -1)) = %#x, want %#x", n, got, want)
		}
	}
}

func FuzzSum(f *testing.F) {
	f.Add([]byte{1, 2, 3}, uint16(9))
	f.Fuzz(func(t *testing.T, b []byte, acc uint16) {
		if got, want := fold(sum(b, uint64(acc))), naive(append([]byte{byte(acc >> 8), byte(acc)}, b...)); !same(got, want) {
			t.Errorf("fold(sum(%x, %#x)) = %#x, want %#x", b, acc, got, want)
		}
	})
}

// header makes the bytes before a frame.
func header(flags, gso byte, hdrLen, size, start, off uint16) []byte {
	h := []byte{flags, gso}
	for _, v := range []uint16{hdrLen, size, start, off} {
		h = binary.LittleEndian.AppendUint16(h, v)
	}
	return h
}

func TestDecodeHeader(t *testing.T) {
	frame := make([]byte, 14+20+32+100)
	frame[34+tcpDataOff] = 8 << 4
	short := bytes.Clone(frame)
	short[34+tcpDataOff] = 4 << 4
	long := bytes.Clone(frame)
	long[34+tcpDataOff] = 15 << 4
	for _, c := range []struct {
		name  string
		h     []byte
		frame []byte
		want  dma.Meta
		ok    bool
	}{
		{"nothing", header(0, 0, 1, 2, 3, 4), frame, dma.Meta{}, true},
		{"verified", header(flagDataValid, 0, 0, 0, 0, 0), frame, dma.Meta{}, true},
		{"checksum", header(1, 0, 66, 0, 34, 16), frame, dma.Meta{Flags: dma.NeedsCsum, CsumStart: 34, CsumOffset: 16}, true},
		{"TSO4", header(1, 1, 166, 50, 34, 16), frame, dma.Meta{Flags: dma.NeedsCsum | dma.GSO4, CsumStart: 34, CsumOffset: 16, HdrLen: 66, GSOSize: 50}, true},
		{"TSO6", header(1, 4, 66, 50, 34, 16), frame, dma.Meta{Flags: dma.NeedsCsum | dma.GSO6, CsumStart: 34, CsumOffset: 16, HdrLen: 66, GSOSize: 50}, true},
		{"TSO without checksum", header(0, 1, 66, 50, 34, 16), frame, dma.Meta{}, false},
		{"UDP", header(1, 3, 66, 50, 34, 16), frame, dma.Meta{}, false},
		{"size 0", header(1, 1, 66, 0, 34, 16), frame, dma.Meta{}, false},
		{"start in the Ethernet header", header(1, 0, 66, 0, 13, 16), frame, dma.Meta{}, false},
		{"checksum behind the end", header(1, 0, 66, 0, 34, 131), frame, dma.Meta{}, false},
		{"checksum at the end", header(1, 0, 66, 0, 34, 130), frame, dma.Meta{Flags: dma.NeedsCsum, CsumStart: 34, CsumOffset: 130}, true},
		{"start behind the end", header(1, 0, 66, 0, 0xffff, 0xffff), frame, dma.Meta{}, false},
		{"TCP header too short", header(1, 1, 66, 50, 34, 16), short, dma.Meta{}, false},
		{"TCP header too long", header(1, 1, 66, 50, 34, 16), long[:14+20+50], dma.Meta{}, false},
		{"TCP header cut off", header(1, 1, 66, 50, 34, 16), frame[:53], dma.Meta{}, false},
	} {
		got, ok := decodeHeader(c.h, c.frame)
		if ok != c.ok || ok && got != c.want {
			t.Errorf("%s: decodeHeader(%x) = %+v, %t, want %+v, %t", c.name, c.h, got, ok, c.want, c.ok)
		}
	}
}

func FuzzDecodeHeader(f *testing.F) {
	f.Add(header(1, 1, 66, 50, 34, 16), make([]byte, 100))
	f.Add(header(1, 0, 66, 50, 34, 16), make([]byte, 100))
	f.Fuzz(func(t *testing.T, h, frame []byte) {
		if len(h) < headerLen {
			return
		}
		m, ok := decodeHeader(h, frame)
		if !ok || m.Flags&dma.NeedsCsum == 0 {
			return
		}
		if int(m.HdrLen) > len(frame) {
			t.Errorf("decodeHeader(%x, %d bytes): headers of %d bytes", h, len(frame), m.HdrLen)
		}
		checksum(frame, &m) // must not reach beyond the frame
		if m.Flags&dma.NeedsCsum != 0 {
			t.Errorf("checksum left NeedsCsum set")
		}
	})
}

func BenchmarkSum(b *testing.B) {
	f := make([]byte, 1500)
	b.SetBytes(int64(len(f)))
	for b.Loop() {
		fold(sum(f, 0))
	}
}
