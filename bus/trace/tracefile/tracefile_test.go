package tracefile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket/pcapgo"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/trace"
)

var sources = []Source{
	{"eth0", "1000:00:01.0", "sim:e1000e", "e1000"},
	{"eth1", "1000:00:02.0", "sim:e1000e", "e1000"},
}

// entries are one of each kind that differs in how it is kept.
func entries() []trace.Entry {
	doorbell := trace.Entry{Record: trace.Record{Seq: 7, Time: 1_500_000_000, Kind: trace.Doorbell, Region: 0, Off: 0x3818, Width: 4, Value: 32}, Device: "eth1", Address: "1000:00:02.0", DT: 900, Name: "TDT[1]"}
	publish := trace.Entry{Record: trace.Record{Seq: 8, Time: 1_500_000_000, Kind: trace.Publish, Region: 0, Off: 0x3818, Width: 16, Aux: 31, Count: 32}, Device: "eth1", Address: "1000:00:02.0", Name: "TDT[1]", Text: "0..31 (32) {addr=0x1000} ..."}
	publish.SetData([]byte{1, 2, 3})
	irq := trace.Entry{Record: trace.Record{Seq: 2, Time: 1_600_000_000, Kind: trace.IRQ, Region: trace.NoRegion, Mode: bus.MSIX, Aux: 3, Value: 1 << 63}, Device: "eth0", Address: "1000:00:01.0", Name: "MSI-X[3]"}
	lost := trace.Entry{Record: trace.Record{Seq: 90, Time: 1_600_000_001, Kind: trace.Lost, Region: trace.NoRegion, Value: 87}, Device: "eth0", Address: "1000:00:01.0", Text: "records lost: the reader was too slow"}
	return []trace.Entry{doorbell, publish, irq, lost}
}

func write(t testing.TB, w Writer, es []trace.Entry) {
	t.Helper()
	for i := range es {
		if err := w.Write(&es[i]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
}

func pcapngOf(t testing.TB, es []trace.Entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := NewPcapng(&b, sources)
	if err != nil {
		t.Fatal(err)
	}
	write(t, w, es)
	return b.Bytes()
}

// readAll reads entries until an error that is not the end.
func readAll(r io.Reader) (es []trace.Entry, err error) {
	tr := NewReader(r)
	for {
		e, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return es, nil
		}
		if err != nil {
			return es, err
		}
		es = append(es, e)
	}
}

func TestRoundTrip(t *testing.T) {
	es := entries()
	// A reader of a pipe gets what it gets.
	got, err := readAll(&slow{pcapngOf(t, es)})
	if err != nil || len(got) != len(es) {
		t.Fatalf("read %d entries, %v, want %d, nil", len(got), err, len(es))
	}
	for i := range es {
		if d := got[i].Wall().Sub(es[i].Wall()); d != 0 {
			t.Errorf("entry %d is at %v, want %v", i, got[i].Wall(), es[i].Wall())
		}
		got[i].SetWall(time.Time{})
		if got[i].String() != es[i].String() || got[i].DT != es[i].DT || !bytes.Equal(got[i].Data(), es[i].Data()) || got[i].Address != es[i].Address {
			t.Errorf("read %+v, want %+v", got[i], es[i])
		}
		if got[i] != es[i] {
			t.Errorf("read %#v, want %#v", got[i], es[i])
		}
	}
}

// slow gives a byte at a time.
type slow struct{ b []byte }

func (s *slow) Read(p []byte) (int, error) {
	if len(s.b) == 0 {
		return 0, io.EOF
	}
	p[0], s.b = s.b[0], s.b[1:]
	return 1, nil
}

// Another reader of pcapng sees what is meant for it.
func TestOthersCanRead(t *testing.T) {
	r, err := pcapgo.NewNgReader(bytes.NewReader(pcapngOf(t, entries())), pcapgo.DefaultNgReaderOptions)
	if err != nil {
		t.Fatal(err)
	}
	data, ci, err := r.ReadPacketData()
	if err != nil || ci.InterfaceIndex != 1 || !ci.Timestamp.Equal(entries()[0].Wall()) {
		t.Errorf("first packet: %+v, %v, want interface 1 at %v", ci, err, entries()[0].Wall())
	}
	if !bytes.HasSuffix(data, []byte("TDT[1]")) || data[1] != byte(trace.Doorbell) || binary.LittleEndian.Uint64(data[40:]) != 32 {
		t.Errorf("first packet: % x", data)
	}
	in, err := r.Interface(1)
	if err != nil || in.Name != "eth1" || in.Description != "1000:00:02.0 sim:e1000e e1000" || in.LinkType != linkType {
		t.Errorf("interface 1: %+v, %v", in, err)
	}
}

func TestText(t *testing.T) {
	var b bytes.Buffer
	write(t, NewText(&b, sources[1:]), entries()[:2])
	_, body, _ := strings.Cut(b.String(), "\n")
	if !strings.HasPrefix(b.String(), "# eth1: 1000:00:02.0 sim:e1000e e1000; times count from 2") {
		t.Errorf("text begins %.80q", b.String())
	}
	if want := "    1.500000000 eth1         7 doorbell bar0+0x3818/4    TDT[1]         0x20\n" +
		"    1.500000000 eth1         8 publish  bar0+0x3818/16   TDT[1]         0x0            0..31 (32) {addr=0x1000} ...\n"; body != want {
		t.Errorf("text is\n%swant\n%s", body, want)
	}
	b.Reset()
	write(t, NewJSON(&b), entries()[2:3])
	if !strings.Contains(b.String(), `"kind":"irq","name":"MSI-X[3]","region":-2,"off":0,"value":9223372036854775808,"aux":3}`) {
		t.Errorf("JSON is %s", b.String())
	}
}

func TestBadFiles(t *testing.T) {
	good := pcapngOf(t, entries())
	patch := func(at int, b ...byte) []byte {
		out := bytes.Clone(good)
		copy(out[at:], b)
		return out
	}
	packet := bytes.Index(good, []byte{6, 0, 0, 0}) // the first packet block
	for _, test := range []struct {
		what string
		b    []byte
		want string
	}{
		{"nothing", nil, "reading a trace: it is empty"},
		{"three bytes", []byte("abc"), "reading a trace: it is no pcapng file"},
		{"text", []byte("# eth0: a text trace\n"), "reading a trace: it is no pcapng file (a text trace is read with less and grep)"},
		{"half a record", good[:len(good)-9], "reading a trace: it ends in the middle of a record"},
		{"no interface", good[:binary.LittleEndian.Uint32(good[4:])], "reading a trace: a capture without any interface of link type 147: no trace of ring3's"},
		{"a huge block", patch(packet+4, 0, 0, 0, 0xf0), "reading a trace: a block of 4026531840 bytes, want a multiple of 4, and at most 1048576"},
		{"an interface that is not there", patch(packet+8, 9), "reading a trace: a packet of interface 9, and there are 2"},
		{"a packet longer than its block", patch(packet+20, 0xff, 0xff), "reading a trace: a packet of 65535 bytes in a block of 100"},
		{"another layout", patch(packet+28, 2), "reading a trace: a record of layout 2, want 1: another ring3 wrote it"},
		{"a name longer than the record", patch(packet+28+60, 0xff), "reading a trace: a record with 255 bytes of name, text and data, and there are 6"},
	} {
		if _, err := readAll(bytes.NewReader(test.b)); err == nil || err.Error() != test.want {
			t.Errorf("reading %s = %v, want %s", test.what, err, test.want)
		}
	}
}

func FuzzReader(f *testing.F) {
	f.Add(pcapngOf(f, entries()))
	f.Fuzz(func(t *testing.T, b []byte) {
		es, _ := readAll(bytes.NewReader(b))
		for i := range es {
			s := es[i].String()
			if strings.ContainsAny(s, "\n\x1b") || len(strings.Fields(s)) < 7 {
				t.Errorf("String() = %q, want one line of seven columns at least", s)
			}
			if _, err := es[i].MarshalJSON(); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestFilter(t *testing.T) {
	es := entries()
	for _, test := range []struct{ src, want string }{
		{"", "7 8 2 90"},
		{`reg == "TDT" && value > 10`, "7 90"},
		{`kind == "publish" and count >= 32`, "8 90"},
		{`kind in ["irq", "unmask"] || dt > 5*ms`, "2 90"},
		{`dt >= 900 && dt < 1*us`, "7 90"},
		{`off == 0x3818 && width == 4 && index == 1 && region == 0 && device == "eth1"`, "7 90"},
		{`bitand(value, 0x20) != 0`, "7 90"},
		{`t > 1.55 && name matches "^MSI"`, "2 90"},
		{`value < 0`, "2 90"},
		{`text contains "addr=0x1000" && aux == 31 && address endsWith ".0" && seq == 8`, "8 90"},
	} {
		f, err := ParseFilter(test.src)
		if err != nil {
			t.Errorf("ParseFilter(%q) = %v", test.src, err)
			continue
		}
		kept, err := f.Keep(entries())
		var got []string
		for i := range kept {
			for k := range es {
				if kept[i] == es[k] {
					got = append(got, strings.Fields(kept[i].String())[2])
				}
			}
		}
		if s := strings.Join(got, " "); err != nil || s != test.want {
			t.Errorf("%q keeps %s, %v, want %s", test.src, s, err, test.want)
		}
	}
}

func TestBadFilters(t *testing.T) {
	for _, test := range []struct{ src, want string }{
		{`reg = "TDT"`, `filter "reg = \"TDT\"": character 5: `},
		{`rge == "TDT"`, `filter "rge == \"TDT\"": character 1: unknown name rge`},
		{`value > "x"`, `filter "value > \"x\"": character 7: invalid operation: > (mismatched types int and string)`},
		{`value + 1`, `filter "value + 1": `},
		{`(`, `filter "(": character `},
		{strings.Repeat("x", 5000), "filter of 5000 characters, at most 4096 are taken"},
	} {
		f, err := ParseFilter(test.src)
		if f != nil || err == nil || !strings.HasPrefix(err.Error(), test.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("ParseFilter(%.20q) = %v, %v, want %s", test.src, f, err, test.want)
		}
	}
	f, err := ParseFilter("[1, 2][value] == 1")
	if err != nil {
		t.Fatal(err)
	}
	es := entries()
	if _, err := f.Match(&es[0]); err == nil || strings.Contains(err.Error(), "\n") {
		t.Errorf("Match with an index outside = %v, want one line", err)
	}
}

func FuzzFilter(f *testing.F) {
	f.Add(`reg == "TDT" && value > 10`)
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParseFilter(s)
		if err != nil {
			if p != nil || strings.Contains(err.Error(), "\n") {
				t.Errorf("ParseFilter(%q) = %v, %q, want one line alone", s, p, err)
			}
			return
		}
		e := entries()[0]
		_, _ = p.Match(&e)
	})
}
