package e1000

import (
	"context"
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/netdev"
)

var (
	_ netdev.Coalescer = (*nic)(nil)
	_ netdev.NAPIUser  = (*nic)(nil)
)

// TestLatency walks the classes with traffic that each should know.
func TestLatency(t *testing.T) {
	for _, c := range []struct {
		from           latency
		frames, octets uint64
		want           latency
	}{
		{latencyLow, 0, 0, latencyLow},
		{latencyLowest, 1, 60, latencyLowest}, {latencyLowest, 2, 3000, latencyLow}, {latencyLowest, 64, 64 * 60, latencyLowest}, {latencyLowest, 4, 36000, latencyBulk},
		{latencyLow, 1, 60, latencyLowest}, {latencyLow, 2, 600, latencyLow}, {latencyLow, 5, 5 * 1500, latencyLow}, {latencyLow, 8, 12000, latencyBulk},
		{latencyLow, 20, 30000, latencyBulk}, {latencyLow, 200, 12000, latencyLowest}, {latencyLow, 1, 4000, latencyBulk},
		{latencyBulk, 64, 96000, latencyLow}, {latencyBulk, 20, 30000, latencyBulk}, {latencyBulk, 2, 3000, latencyLow},
	} {
		if got := c.from.next(c.frames, c.octets); got != c.want {
			t.Errorf("class %d after %d frames of %d bytes = %d, want %d", c.from, c.frames, c.octets, got, c.want)
		}
	}
}

// throttle is what the registers of a mode say, in interrupts a second; 0: no limit.
func throttleOf(m *model, vectors int) []int {
	m.mu.Lock()
	defer m.mu.Unlock()
	at := []bus.Off{regITR}
	if m.mode == bus.MSIX {
		at = nil
		for v := range vectors {
			at = append(at, regEITR(v))
		}
	}
	var out []int
	for _, off := range at {
		v := int(m.reg[off/4])
		if v > 0 {
			v = int(time.Second / (time.Duration(v) * itrUnit))
		}
		out = append(out, v)
	}
	return out
}

// near says whether two rates differ by what 256 ns make.
func near(a, b int) bool { return a == b || a > b*95/100 && a < b*105/100 }

func TestITROption(t *testing.T) {
	for name, id := range chips {
		for value, want := range map[string]int{"": 0, "0": 0, "100": 100, "8000": 8000, "100000": 100000, "1": 20000, "3": 20000, "adaptive": 20000} {
			m := newModel(id)
			o := map[string]string{}
			if value != "" {
				o["itr"] = value
			}
			n := probeModel(t, m, o)
			for v, got := range throttleOf(m, 3) {
				if want := want; m.mode == bus.MSIX && v == 2 {
					if want = 0; got != want {
						t.Errorf("%s with itr=%s: the link's vector is limited to %d", name, value, got)
					}
				} else if !near(got, want) {
					t.Errorf("%s with itr=%s: vector %d at %d a second, want %d", name, value, v, got, want)
				}
			}
			n.Close()
		}
	}
}

// TestAdaptive: small requests are answered at once, bulk is gathered; the limit rises by steps and falls at
// once.
func TestAdaptive(t *testing.T) {
	m := newModel(device82574)
	n := probeModel(t, m, map[string]string{"itr": "1"})
	var frames, octets uint64
	step := func(f, size uint64) int {
		frames, octets = frames+f, octets+f*size
		n.adapt(0, frames, octets)
		return throttleOf(m, 1)[0]
	}
	for _, want := range []int{37500, 55000, 70000, 70000} {
		if got := step(1, 60); !near(got, want) {
			t.Errorf("after a small frame: %d a second, want %d", got, want)
		}
	}
	step(4, 1500)
	if got := step(20, 1500); !near(got, 4000) {
		t.Errorf("after bulk: %d a second, want 4000", got)
	}
	if got := n.Coalesce(); !got.Adaptive || got.RxUsecs != 250 {
		t.Errorf("Coalesce = %+v, want adaptive, 250 us", got)
	}
	if err := n.SetCoalesce(context.Background(), netdev.Coalesce{Adaptive: true}); err != nil || n.throttleRate() != "1" {
		t.Errorf("SetCoalesce(adaptive) = %v, rate %s, want 1", err, n.throttleRate())
	}
	// Conservative: the lowest class is not used.
	n.setITR(itrConservative, 0)
	for range 10 {
		if got := step(1, 60); !near(got, 20000) {
			t.Errorf("conservative, after a small frame: %d a second, want 20000", got)
		}
	}
	// A slow link always counts as bulk.
	n.link.Store(uint32(statusLU | statusFD))
	if got := step(1, 60); !near(got, 4000) {
		t.Errorf("at 10 Mb/s: %d a second, want 4000", got)
	}
}

// TestSharedVector: one vector serves the slowest class of all queues.
func TestSharedVector(t *testing.T) {
	m := newModel(device82540)
	n := probeModel(t, m, map[string]string{"itr": "1"})
	n.adapt(0, 1, 60)
	n.adapt(1, 1, 60)
	if got := throttleOf(m, 1)[0]; !near(got, 37500) {
		t.Errorf("both queues small: %d a second, want 37500", got)
	}
	n.adapt(1, 5, 6060)
	n.adapt(1, 25, 36060)
	if got := throttleOf(m, 1)[0]; !near(got, 4000) {
		t.Errorf("transmit in bulk: %d a second, want 4000", got)
	}
}

func TestCoalesce(t *testing.T) {
	m := newModel(device82574)
	n := probeModel(t, m, nil)
	ctx := context.Background()
	for _, c := range []struct{ usecs, rate int }{{0, 0}, {10, 100000}, {125, 8000}, {7000, 142}, {10000, 100}} {
		if err := n.SetCoalesce(ctx, netdev.Coalesce{RxUsecs: c.usecs}); err != nil {
			t.Errorf("SetCoalesce(%d us) = %v", c.usecs, err)
		}
		if got := n.Coalesce(); got != (netdev.Coalesce{RxUsecs: c.usecs}) {
			t.Errorf("Coalesce = %+v, want %d us", got, c.usecs)
		}
		if got := throttleOf(m, 1)[0]; !near(got, c.rate) {
			t.Errorf("%d us make %d a second, want %d", c.usecs, got, c.rate)
		}
	}
	for _, usecs := range []int{-1, 1, 9, 10001} {
		if err := n.SetCoalesce(ctx, netdev.Coalesce{RxUsecs: usecs}); !errors.Is(err, unix.EINVAL) {
			t.Errorf("SetCoalesce(%d us) = %v, want EINVAL", usecs, err)
		}
	}
	if got := n.Coalesce().RxUsecs; got != 10000 {
		t.Errorf("a wrong value changed the interval to %d us", got)
	}
}

func TestNAPIOption(t *testing.T) {
	n := probeModel(t, newModel(device82574), map[string]string{"weight": "16"})
	if got := n.rx[0].NAPI(); got != (netdev.NAPI{Weight: 16}) {
		t.Errorf("NAPI = %+v, want weight 16", got)
	}
	for _, p := range []netdev.NAPI{{Weight: 65}, {Weight: -1}, {DeferHardIRQs: -1}, {GROFlushTimeout: -1}, {DeferHardIRQs: 1 << 31}} {
		if err := n.SetNAPI(p); !errors.Is(err, unix.ERANGE) {
			t.Errorf("SetNAPI(%+v) = %v, want ERANGE", p, err)
		}
	}
	if got := n.NAPI(); got.Weight != 16 {
		t.Errorf("a wrong value changed the settings to %+v", got)
	}
}
