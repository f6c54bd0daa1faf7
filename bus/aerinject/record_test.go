package aerinject

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus/pci"
)

var sample = Record{Domain: 0x1000, Bus: 1, Dev: 2, Fn: 3, Error: pci.AERError{Uncorrectable: 4, Correctable: 5, Header: [4]uint32{6, 7, 8, 9}}}

func TestParseRecord(t *testing.T) {
	whole := AppendRecord(nil, sample)
	if len(whole) != 32 {
		t.Fatalf("AppendRecord gives %d bytes, want 32", len(whole))
	}
	for n := range 40 {
		got, err := ParseRecord(append(slices.Clone(whole), make([]byte, 8)...)[:n])
		want := sample
		if n < 30 {
			want.Domain = 0 // 0x1000 is in its second byte
		}
		if n < 28 || n > 32 {
			if !errors.Is(err, unix.EINVAL) || got != (Record{}) {
				t.Errorf("ParseRecord(%d bytes) = %v, %v, want EINVAL", n, got, err)
			}
		} else if err != nil || got != want {
			t.Errorf("ParseRecord(%d bytes) = %+v, %v, want %+v", n, got, err, want)
		}
	}
	if got, want := (Record{Dev: 0xff, Fn: 0xff}).Addr(), (pci.Addr{Dev: 31, Fn: 7}); got != want {
		t.Errorf("Addr() = %v, want %v", got, want)
	}
}

func TestParseText(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"", "[]"},
		{"# nothing\n\n", "[]"},
		{"AER\nPCI_ID 0000:04:00.1\nCOR_STATUS BAD_TLP\nHEADER_LOG 0 1 2 3\n", "[0000:04:00.1 0/40 [0 1 2 3]]"},
		{"aer pci_id 1000:1f:1F.7 uncor_status comp_time 0x10 010", "[1000:1f:1f.7 4018/0 [0 0 0 0]]"},
		{"AER DOMAIN 4096 BUS 1 DEV 2 FN 3 COR_STATUS RCVR REP_ROLL", "[1000:01:02.3 0/101 [0 0 0 0]]"},
		{"AER\nBUS 0x1\nDEV 2\nFN 3\nUNCOR_STATUS\nAER PCI_ID 01:00.0 COR_STATUS 0xffffffff # end", "[0000:01:02.3 0/0 [0 0 0 0] 0000:01:00.0 0/ffffffff [0 0 0 0]]"},
		{"COR_STATUS RCVR", "line 1: \"COR_STATUS\" before the first AER: invalid argument"},
		{"AER", "line 1: this AER names no function (PCI_ID, or BUS, DEV, FN): invalid argument"},
		{"\nAER\nCOR_STATUS 1\nAER BUS 1 DEV 1 FN 1", "line 2: this AER names no function (PCI_ID, or BUS, DEV, FN): invalid argument"},
		{"AER\nPCI_ID\n", "line 2: PCI_ID without its address: invalid argument"},
		{"AER\nPCI_ID 1:2.3\n", "line 2: \"1:2.3\" after PCI_ID, want [DDDD:]BB:DD.F: invalid argument"},
		{"AER PCI_ID 01:00.0\nCOR_STATUS RCVR\nCOR_STATUS COMP_TIME", "line 3: \"COMP_TIME\", want AER, PCI_ID, DOMAIN, BUS, COR_STATUS, UNCOR_STATUS or HEADER_LOG: invalid argument"},
		{"AER PCI_ID 01:00.0 COR_STATUS 0x100000000", "line 1: \"0X100000000\", want a number up to 0xffffffff: invalid argument"},
		{"AER PCI_ID 01:00.0 HEADER_LOG 1 2\n3", "line 1: HEADER_LOG without its number: invalid argument"},
		{"AER PCI_ID 01:00.0 HEADER_LOG 1 2\n3 x", "line 2: \"X\" after HEADER_LOG, want a number up to 0xffffffff: invalid argument"},
		{"AER BUS 256 DEV 1 FN 1", "line 1: \"256\" after BUS, want a number up to 0xff: invalid argument"},
		{"AER BUS 1 FN 1", "line 1: \"FN\", want DEV: invalid argument"},
		{"AER DOMAIN 1 DEV 1", "line 1: \"DEV\", want BUS after DOMAIN: invalid argument"},
		{strings.Repeat(" ", maxText+1), "reading errors to inject: more than 1048576 bytes: invalid argument"},
	} {
		recs, err := ParseText(strings.NewReader(c.text))
		var s []string
		for _, r := range recs {
			s = append(s, fmt.Sprintf("%s %x/%x %x", r.Addr(), r.Error.Uncorrectable, r.Error.Correctable, r.Error.Header))
		}
		got := fmt.Sprint(s)
		if err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("ParseText(%.60q) = %s, want %s", c.text, got, c.want)
		}
	}
}

func TestNode(t *testing.T) {
	var got []Record
	refuse := error(nil)
	n := Node(func(_ context.Context, r Record) error {
		got = append(got, r)
		return refuse
	})
	if n.Mode != 0o600 {
		t.Errorf("mode %o, want 600", n.Mode)
	}
	s, err := n.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	whole := AppendRecord(nil, sample)
	for _, c := range []struct {
		p      []byte
		refuse error
		n      int
		err    error
	}{{whole, nil, 32, nil}, {whole[:28], nil, 28, nil}, {whole[:27], nil, 0, unix.EINVAL}, {append(whole, 0), nil, 0, unix.EINVAL}, {whole, unix.ENODEV, 0, unix.ENODEV}} {
		refuse = c.refuse
		if n, err := s.Write(t.Context(), c.p, 0); n != c.n || !errors.Is(err, c.err) {
			t.Errorf("Write(%d bytes) = %d, %v, want %d, %v", len(c.p), n, err, c.n, c.err)
		}
	}
	if len(got) != 3 || got[0] != sample {
		t.Errorf("injected %+v, want 3 times %+v", got, sample)
	}
	if n, err := s.Read(t.Context(), make([]byte, 8), 0); n != 0 || !errors.Is(err, unix.EINVAL) {
		t.Errorf("Read = %d, %v, want EINVAL", n, err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func FuzzParseRecord(f *testing.F) {
	f.Add(AppendRecord(nil, sample))
	f.Add([]byte("short"))
	f.Fuzz(func(t *testing.T, p []byte) {
		r, err := ParseRecord(p)
		if (err == nil) != (len(p) >= 28 && len(p) <= 32) || err != nil && r != (Record{}) {
			t.Fatalf("ParseRecord(%x) = %v, %v", p, r, err)
		}
		if err == nil && len(p) == 32 {
			p[3] = 0
			if got := AppendRecord(nil, r); !bytes.Equal(got, p) {
				t.Fatalf("AppendRecord(ParseRecord(%x)) = %x", p, got)
			}
		}
	})
}

func FuzzParseText(f *testing.F) {
	f.Add("AER\nPCI_ID 0000:04:00.1\nCOR_STATUS BAD_TLP\nUNCOR_STATUS ECRC\nHEADER_LOG 0 1 2 3\n")
	f.Add("aer domain 1 bus 0x1 dev 2 fn 07 # x")
	f.Fuzz(func(t *testing.T, s string) {
		recs, err := ParseText(strings.NewReader(s))
		if err != nil && (recs != nil || strings.Contains(err.Error(), "\n")) {
			t.Fatalf("ParseText(%q) = %v, %q", s, recs, err)
		}
		for _, r := range recs {
			if r.Dev > 31 || r.Fn > 7 {
				t.Fatalf("ParseText(%q) = %+v", s, r)
			}
			if got, err := ParseRecord(AppendRecord(nil, r)); err != nil || got != r {
				t.Fatalf("ParseRecord(AppendRecord(%+v)) = %+v, %v", r, got, err)
			}
		}
	})
}
