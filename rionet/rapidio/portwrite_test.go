package rapidio

import (
	"bytes"
	"fmt"
	"slices"
	"testing"
)

func TestParsePortWrite(t *testing.T) {
	p := []byte{0, 0, 0, 5, 0x80, 0, 0, 1, 0x12, 0x34, 0x56, 3, 0x40, 0, 0, 0, 0xff}
	got := ParsePortWrite(p)
	if got.Tag != 5 || got.Detect != 0x80000001 || got.Port != 3 || got.Impl != 0x123456 || got.LogDetect != 0x40000000 || got.Len != 17 || got.Raw[16] != 0xff {
		t.Errorf("ParsePortWrite(% x) = %+v", p, got)
	}
	if b := got.Bytes(); !bytes.Equal(b, p[:16]) {
		t.Errorf("Bytes() = % x, want % x", b, p[:16])
	}
	if got := ParsePortWrite(p[:4]); got.Tag != 5 || got.Detect != 0 || got.Len != 4 {
		t.Errorf("ParsePortWrite of 4 bytes = %+v, want the tag alone", got)
	}
	if want := "port-write of tag 0x00000005: port 3, detect 0x80000001, implementation 0x123456, logical 0x40000000"; got.String() != want {
		t.Errorf("String() = %q, want %q", got.String(), want)
	}
}

func FuzzParsePortWrite(f *testing.F) {
	f.Add([]byte{0, 0, 0, 5, 0x80, 0, 0, 1, 0x12, 0x34, 0x56, 3, 0x40, 0, 0, 0})
	f.Fuzz(func(t *testing.T, p []byte) {
		pw := ParsePortWrite(p)
		if pw.Len != min(len(p), MaxPortWrite) || !bytes.Equal(pw.Raw[:pw.Len], p[:pw.Len]) {
			t.Fatalf("ParsePortWrite(% x) has %d bytes, % x", p, pw.Len, pw.Raw)
		}
		if !bytes.Equal(pw.Bytes(), pw.Raw[:pwLen]) {
			t.Fatalf("ParsePortWrite(% x).Bytes() = % x", p, pw.Bytes())
		}
	})
}

func TestPortWrites(t *testing.T) {
	r := newRig(t, Small, 3)
	var got []string
	note := func(who string) func(PortWrite) {
		return func(pw PortWrite) { got = append(got, fmt.Sprint(who, " ", pw.Tag)) }
	}
	d := r.device("00:e:0002")
	first := d.OnPortWrite(note("device"))
	d.OnPortWrite(note("device again"))
	r.device("00:s:0000").OnPortWrite(note("switch"))
	all := r.m.OnPortWrite(note("port"))
	send := func(tag uint32) {
		p := PortWrite{Tag: tag}.Bytes()
		r.f.ports[0].tell(func(e Events) { e.PortWrite(p); clear(p) })
	}
	check := func(want ...string) {
		t.Helper()
		if !slices.Equal(got, want) {
			t.Errorf("handlers = %q, want %q", got, want)
		}
		got = nil
	}
	send(2)
	check("device 2", "device again 2", "port 2")
	send(0)
	check("switch 0", "port 0")
	for range 3 {
		send(99)
	}
	check("port 99", "port 99", "port 99")
	first()
	first()
	all()
	send(2)
	check("device again 2")
	d.Net.RemoveDevice(d)
	send(2)
	check()
	for _, n := range []int{0, 3, 5, 68, 1000} {
		r.m.portWrite(make([]byte, n))
	}
	if s := r.m.Stats(); s.PortWrites != 12 || s.StrayPortWrites != 4 || s.BadPortWrites != 5 {
		t.Errorf("Stats() = %+v, want 12 port-writes, 4 stray, 5 bad", s)
	}
	if n := r.log.count("port-write of component tag"); n != 2 {
		t.Errorf("%d lines of unknown tags, want 2", n)
	}
	for tag := range uint32(1000) {
		send(1000 + tag)
	}
	if n := r.log.count("port-write of component tag"); n != tagsLogged {
		t.Errorf("%d lines of unknown tags, want no more than %d", n, tagsLogged)
	}
	if n := len(r.scan.pws); n != 1007 {
		t.Errorf("the enumerator was told of %d port-writes, want 1007", n)
	}
}
