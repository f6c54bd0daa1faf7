package frame

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"
)

func header(seq, sec, usec uint32, n int) []byte {
	b := make([]byte, n)
	for i, v := range []uint32{Magic, seq, sec, usec} {
		binary.BigEndian.PutUint32(b[4*i:], v)
	}
	return b
}

func specs() map[string]Spec {
	v4 := Spec{Dst: [6]byte{1, 2, 3, 4, 5, 6}, Src: [6]byte{6, 5, 4, 3, 2, 1},
		SrcIP: netip.MustParseAddr("10.0.0.1"), DstIP: netip.MustParseAddr("10.0.0.2"),
		TOS: 0x28, TTL: 32, ID: 77, SrcPort: 9, DstPort: 10, Payload: header(5, 6, 7, 16)}
	v6 := v4
	v6.SrcIP, v6.DstIP, v6.ID = netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2"), 0
	vlan, qinq, mpls, odd, none := v4, v6, v4, v4, v6
	vlan.VLANs = []uint16{3<<13 | 1<<12 | 77}
	qinq.VLANs = []uint16{22, 77}
	mpls.MPLS = []uint32{0x00010000, 0x00020140}
	odd.Payload = append(header(5, 6, 7, 16), 1, 2, 3)
	none.NoUDPChecksum = true
	return map[string]Spec{"v4": v4, "v6": v6, "vlan": vlan, "qinq v6": qinq, "mpls": mpls, "odd": odd, "no checksum": none}
}

func TestBuildDecode(t *testing.T) {
	for name, s := range specs() {
		f, err := Build(s)
		if err != nil {
			t.Errorf("%s: Build: %v", name, err)
			continue
		}
		p, err := Decode(f.Bytes)
		if err != nil {
			t.Errorf("%s: Decode: %v", name, err)
			continue
		}
		if p.Dst != s.Dst || p.Src != s.Src || p.SrcIP != s.SrcIP || p.DstIP != s.DstIP || p.TOS != s.TOS || p.TTL != s.TTL ||
			p.ID != s.ID || p.SrcPort != s.SrcPort || p.DstPort != s.DstPort || !slices.Equal(p.VLANs, s.VLANs) {
			t.Errorf("%s: Decode(Build(s)) = %+v, want the fields of %+v", name, p, s)
		}
		if !slices.Equal(p.MPLS, s.MPLS) {
			t.Errorf("%s: MPLS = %x, want %x", name, p.MPLS, s.MPLS)
		}
		if !bytes.Equal(p.Payload, s.Payload) || !p.Pktgen || p.Seq != 5 || p.Sec != 6 || p.Usec != 7 {
			t.Errorf("%s: payload = %x (pktgen %v), want %x", name, p.Payload, p.Pktgen, s.Payload)
		}
		if !p.IPChecksumOK || p.UDPChecksumOK == s.NoUDPChecksum || s.NoUDPChecksum && p.UDPChecksum != 0 {
			t.Errorf("%s: checksums: IP ok %v, UDP %#x ok %v", name, p.IPChecksumOK, p.UDPChecksum, p.UDPChecksumOK)
		}
		if p.L3 != f.L3 || f.Payload != f.L4+8 || len(f.Bytes) != f.Payload+len(s.Payload) {
			t.Errorf("%s: offsets %d %d %d of %d bytes, decoded L3 %d", name, f.L3, f.L4, f.Payload, len(f.Bytes), p.L3)
		}
	}
}

func TestBuildRefuses(t *testing.T) {
	s := specs()["v4"]
	both, mixed, long := s, s, s
	both.MPLS, both.VLANs = []uint32{1}, []uint16{1}
	mixed.DstIP = netip.MustParseAddr("::1")
	long.Payload = make([]byte, 1<<16)
	for name, s := range map[string]Spec{"tags": both, "versions": mixed, "length": long, "no addresses": {}} {
		if f, err := Build(s); err == nil {
			t.Errorf("%s: Build = %d bytes, want an error", name, len(f.Bytes))
		}
	}
}

func TestPcap(t *testing.T) {
	var f bytes.Buffer
	for _, v := range []uint32{0xa1b2c3d4, 4<<16 | 2, 0, 0, 65536, 1} {
		_ = binary.Write(&f, binary.LittleEndian, v)
	}
	for _, v := range []uint32{10, 20, 3, 3} {
		_ = binary.Write(&f, binary.LittleEndian, v)
	}
	f.WriteString("abc")
	whole := f.Bytes()
	p, err := NewPcap(bytes.NewReader(whole))
	if err != nil {
		t.Fatal(err)
	}
	b, at, err := p.Next()
	if err != nil || string(b) != "abc" || at.Unix() != 10 || at.Nanosecond() != 20000 {
		t.Errorf("Next() = %q, %v, %v", b, at, err)
	}
	if _, _, err := p.Next(); err != io.EOF {
		t.Errorf("Next() after the last = %v, want EOF", err)
	}
	p, _ = NewPcap(bytes.NewReader(whole[:len(whole)-1]))
	if _, _, err := p.Next(); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("Next() of a cut record = %v, want %v", err, io.ErrUnexpectedEOF)
	}
}

func FuzzDecode(f *testing.F) {
	for _, s := range specs() {
		b, err := Build(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := Decode(b)
		if err == nil && p.UDPLen == 0 {
			t.Errorf("Decode(%x) = %+v without an error", b, p)
		}
		_ = p.String()
	})
}

// failAfter fails once n bytes were written.
type failAfter struct {
	bytes.Buffer
	n int
}

func (f *failAfter) Write(p []byte) (int, error) {
	if f.Len()+len(p) > f.n {
		return 0, syscall.ENOSPC
	}
	return f.Buffer.Write(p)
}

func TestPcapWriter(t *testing.T) {
	f := &failAfter{n: 24 + 2*(16+60)}
	w, err := NewPcapWriter(f)
	if err != nil {
		t.Fatal(err)
	}
	at := time.Unix(1000, 5000)
	one, two := bytes.Repeat([]byte{1}, 60), bytes.Repeat([]byte{2}, 60)
	for i, c := range []struct {
		frame []byte
		err   error
	}{{one, nil}, {two, nil}, {one, syscall.ENOSPC}, {one, nil}} {
		if err := w.Write(c.frame, at); err != c.err {
			t.Errorf("Write %d = %v, want %v", i, err, c.err)
		}
	}
	p, err := NewPcap(&f.Buffer)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range [][]byte{one, two} {
		got, when, err := p.Next()
		if err != nil || !bytes.Equal(got, want) || !when.Equal(at) {
			t.Errorf("Next = %x at %v, %v, want %x at %v", got, when, err, want, at)
		}
	}
}

// FuzzPcap reads any file: it ends, and asks for no more memory than a record may have.
func FuzzPcap(f *testing.F) {
	var classic, ng bytes.Buffer
	w, err := NewPcapWriter(&classic)
	if err != nil {
		f.Fatal(err)
	}
	n, err := pcapgo.NewNgWriter(&ng, layers.LinkTypeEthernet)
	if err != nil {
		f.Fatal(err)
	}
	for i := range 3 {
		b := make([]byte, 60+i)
		_ = w.Write(b, time.Unix(1, 0))
		_ = n.WritePacket(gopacket.CaptureInfo{Timestamp: time.Unix(1, 0), CaptureLength: len(b), Length: len(b)}, b)
	}
	if err := n.Flush(); err != nil {
		f.Fatal(err)
	}
	f.Add(classic.Bytes())
	f.Add(ng.Bytes())
	f.Add(ng.Bytes()[:ng.Len()-7])
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := NewPcap(bytes.NewReader(b))
		if err != nil {
			return
		}
		for range len(b) + 1 { // a record has a header
			frame, _, err := p.NextWhole()
			if err != nil {
				return
			}
			if len(frame) > maxRecord {
				t.Fatalf("a frame of %d bytes", len(frame))
			}
		}
		t.Errorf("%d bytes have more than that many frames", len(b))
	})
}

// A port does not say what UDP carries: no payload is taken for a protocol's, whose mistakes would be the frame's, or
// for a tunnelled packet.
func TestAnyPort(t *testing.T) {
	s := specs()["v4"]
	for port := range 1 << 16 {
		s.SrcPort, s.DstPort = uint16(port), ^uint16(port)
		f, err := Build(s)
		if err != nil {
			t.Fatal(err)
		}
		p, err := Decode(f.Bytes)
		if err != nil || p.SrcPort != s.SrcPort || p.DstPort != s.DstPort || p.Dst != s.Dst || p.SrcIP != s.SrcIP || !p.UDPChecksumOK || !bytes.Equal(p.Payload, s.Payload) {
			t.Fatalf("ports %d and %d: %v, %v", s.SrcPort, s.DstPort, p, err)
		}
	}
}
