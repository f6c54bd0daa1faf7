package pci

import (
	"strings"
	"testing"
)

func TestAddr(t *testing.T) {
	for s, want := range map[string]Addr{
		"0000:00:00.0":     {},
		"1000:ff:1f.7":     {0x1000, 0xff, 0x1f, 7},
		"0001:0a:1b.3":     {1, 0x0a, 0x1b, 3},
		"10000:00:04.0":    {0x10000, 0, 4, 0},
		"ffffffff:00:04.0": {0xffffffff, 0, 4, 0},
	} {
		got, err := ParseAddr(s)
		if err != nil || got != want {
			t.Errorf("ParseAddr(%q) = %+v, %v, want %+v", s, got, err, want)
		}
		if got.String() != s {
			t.Errorf("String = %s, want %s", got, s)
		}
	}
	if got, err := ParseAddr("00AB:Cd:1F.0"); err != nil || got.String() != "00ab:cd:1f.0" {
		t.Errorf("ParseAddr of upper case = %s, %v", got, err)
	}
	for _, s := range []string{
		"", "00:04.0", "0000:00:04", "0000:00:4.0", "0000:0:04.0", "0000:00:20.0", "0000:00:04.8", "0000:00:04.10", "0000:00:04.",
		"000:00:04.0", "00000:00:04.0", "0000:00:04.0 ", " 0000:00:04.0", "0000:00:04.0\n", "+000:00:04.0", "00_0:00:04.0", "0x00:00:04.0",
		"0000:00:04:0", "0000.00.04.0", "0000:00:-4.0", "100000000:00:04.0", "0000:00:04.0:0",
	} {
		if got, err := ParseAddr(s); err == nil || got != (Addr{}) || !strings.Contains(err.Error(), "dddd:bb:dd.f") {
			t.Errorf("ParseAddr(%q) = %v, %v, want an error that says the form", s, got, err)
		}
	}
}

func TestAddrOrder(t *testing.T) {
	order := []Addr{{0, 0, 0, 0}, {0, 0, 0, 1}, {0, 0, 1, 0}, {0, 1, 0, 0}, {1, 0, 0, 0}}
	for i, a := range order {
		for j, b := range order {
			if got := a.Less(b); got != (i < j) {
				t.Errorf("%s.Less(%s) = %t, want %t", a, b, got, i < j)
			}
		}
	}
	if got := (Addr{Dev: 31, Fn: 7}).Devfn(); got != 0xff {
		t.Errorf("Devfn = %#x, want 0xff", got)
	}
}

func FuzzParseAddr(f *testing.F) {
	f.Add("0000:00:04.0")
	f.Add("10000:ff:1f.7")
	f.Fuzz(func(t *testing.T, s string) {
		a, err := ParseAddr(s)
		if err != nil {
			if a != (Addr{}) {
				t.Errorf("ParseAddr(%q) = %v and %v, want one of the two", s, a, err)
			}
			return
		}
		if a.String() != strings.ToLower(s) {
			t.Errorf("ParseAddr(%q) = %s, want the same", s, a)
		}
	})
}
