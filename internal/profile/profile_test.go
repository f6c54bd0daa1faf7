package profile

import (
	"strings"
	"testing"
)

func TestFind(t *testing.T) {
	for _, c := range []struct{ name, want string }{{"", "6.12 (pktgen as of 6.15)"}, {"6.12", "6.12 (pktgen as of 6.15)"}, {"6.1", "6.1"}} {
		p, err := Find(c.name)
		if err != nil || p.String() != c.want {
			t.Errorf("Find(%q) = %v, %v, want %s", c.name, p, err, c.want)
		}
	}
	for _, name := range []string{"6", "6.15", "6.1 ", "latest"} {
		if p, err := Find(name); err == nil || p != nil || !strings.HasSuffix(err.Error(), "there are 6.12, 6.1") {
			t.Errorf("Find(%q) = %v, %v, want an error that lists the profiles", name, p, err)
		}
	}
	if n := Names(); n[0] != Default {
		t.Errorf("Names() = %v, want %s first", n, Default)
	}
}

// The numbers are those of the kernels: 0000:00:04.0's fourth vector, and a function of ring3's domain.
func TestHWIRQ(t *testing.T) {
	for _, c := range []struct {
		profile string
		domain  uint32
		bdf     uint16
		n       int
		want    uint64
	}{
		{"6.12", 0, 0x20, 3, 3}, {"6.1", 0, 0x20, 3, 65539}, {"6.1", 0, 0x20, 0, 65536},
		{"6.12", 0x1000, 0x18, 1, 1}, {"6.1", 0x1000, 0x18, 1, 0x1000<<27 + 0x18<<11 + 1},
	} {
		p, err := Find(c.profile)
		if err != nil {
			t.Fatal(err)
		}
		if got := p.HWIRQ(c.domain, c.bdf, c.n); got != c.want {
			t.Errorf("%s: HWIRQ(%#x, %#x, %d) = %d, want %d", c.profile, c.domain, c.bdf, c.n, got, c.want)
		}
	}
}
