package host

import (
	"strings"
	"testing"

	"github.com/ring3dev/ring3/bus/pci"
)

// What a port keeps for cards to come is what hotplug_mem says, on sim too.
func TestHotplugMem(t *testing.T) {
	for _, c := range []struct {
		option string
		want   uint64
		err    string
	}{
		{"", pci.DefaultReserve.Mem, ""}, {",hotplug_mem=64M", 64 << 20, ""},
		{",hotplug_mem=x", 0, "hotplug_mem=x: want 1M to 64G"}, {",hotplug_mem=1K", 0, "hotplug_mem=1K: want 1M to 64G"},
	} {
		plan, err := ParsePlan([]string{"rp0=sim:root-port" + c.option}, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		s, err := NewSystem(t.Context(), Config{Plan: plan})
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("NewSystem(%q) = %v, want an error with %q", c.option, err, c.err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if got := s.boundOf("rp0").fn.Windows; got.Mem.Size != c.want {
			t.Errorf("window of rp0%s = %#x bytes, want %#x", c.option, got.Mem.Size, c.want)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}
