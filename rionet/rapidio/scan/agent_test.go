package scan

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/rionet/rapidio"
)

// agentTrial is the small tree, enumerated, with an agent at pe3 whose accesses can fail.
func agentTrial(t *testing.T) (agent *peer, ops *faulty) {
	t.Helper()
	f := newFabric(t, smallTree().String())
	host := join(t, f, "pe0", 0, quick)
	join(t, f, "pe1", -1, quick)
	join(t, f, "pe2", -1, quick)
	inner, err := f.Mport("pe3")
	if err != nil {
		t.Fatal(err)
	}
	ops = &faulty{Mport: inner}
	agent = joinOps(t, inner, ops, -1, quick)
	host.mustScan()
	return agent, ops
}

// TestAgentFaults lets access k of a discovery fail, now and then: the next one that meets no faults gives the whole net, and no lock stays.
func TestAgentFaults(t *testing.T) {
	agent, ops := agentTrial(t)
	ops.set(nil)
	agent.mustScan()
	total := ops.count()
	t.Logf("discovery takes %d accesses", total)
	before := agent.bus.Devices()
	if len(before) != 6 {
		t.Fatalf("devices = %s, want 3 switches and 3 endpoints", agent.seen())
	}
	for k := 1; k <= total; k += 37 {
		ops.set(func(n int) error { return when(n >= k && n < k+tries, rapidio.ErrNoReply) })
		_ = agent.tryScan()
		ops.set(nil)
		agent.mustScan()
		if got := len(agent.bus.Devices()); got != 6 {
			t.Fatalf("access %d: %s\n%s", k, agent.seen(), agent.log)
		}
	}
	unlocked(t, agent)
}

// TestAgentDies ends an agent while it has a switch's lock: a host is hindered only until it finds the agent gone, or replaced.
func TestAgentDies(t *testing.T) {
	f := newFabric(t, star(3, "standard").String())
	ctx := context.Background()
	host := join(t, f, "pe0", 0, quick)
	inner, err := f.Mport("pe2")
	if err != nil {
		t.Fatal(err)
	}
	host.mustScan()
	for _, replaced := range []bool{true, false} {
		old := byID(host, 1)
		if err := inner.Write(ctx, 0xff, 0, rapidio.RegHostLock, 4, 1); err != nil {
			t.Fatal(err)
		}
		inner.Close()
		if replaced {
			if inner, err = f.Mport("pe2"); err != nil {
				t.Fatal(err)
			}
			until(t, "the host knowing the new device", func() bool { d := byID(host, 1); return d != nil && d != old })
		}
	}
	eventually(t, "devices that the host knows", host.seen, "00:s:0002")
	unlocked(t, host)
	if !strings.Contains(host.log.String(), "taking over the lock of 0x1") {
		t.Errorf("log:\n%s", host.log)
	}
	host.close()
}

// TestAgentWaits has an agent find a switch locked for too long: it does not take over, but says who is in its way.
func TestAgentWaits(t *testing.T) {
	f := newFabric(t, star(3, "standard").String())
	o, ctx := quick, context.Background()
	o.LockTimeout = 20 * time.Millisecond
	a := join(t, f, "pe1", -1, o)
	m, err := f.Mport("pe2")
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	host := join(t, f, "pe0", 0, quick)
	host.mustScan()
	if err := m.Write(ctx, 0xff, 0, rapidio.RegHostLock, 4, 0x77); err != nil {
		t.Fatal(err)
	}
	if err := a.tryScan(); !errors.Is(err, bus.ErrTimeout) || !strings.Contains(err.Error(), "0x77 holds the lock of a switch") {
		t.Errorf("Scan by an agent, of a switch that stays locked = %v", err)
	}
}

// TestRandom gives hosts and agents what makes no sense: whatever registers say, a scan ends, and then the net can be found.
func TestRandom(t *testing.T) {
	for seed := range uint64(10) {
		rng := rand.New(rand.NewPCG(seed, 9))
		f := newFabric(t, smallTree().String())
		host := join(t, f, "pe0", 0, quick)
		node, id := "pe3", -1
		if seed%2 == 0 {
			node, id = "pe3", 4
		}
		inner, err := f.Mport(node)
		if err != nil {
			t.Fatal(err)
		}
		ops := &faulty{Mport: inner, lie: func(v *uint32, a access1) {
			if rng.IntN(4) != 0 {
				return
			}
			switch rng.IntN(4) {
			case 0:
				*v ^= 1 << rng.IntN(32)
			case 1:
				*v = rng.Uint32()
			case 2:
				*v = 0
			case 3:
				*v = 0xffffffff
			}
		}}
		o := quick
		o.LockTimeout, o.DiscoverTimeout = 10*time.Millisecond, 50*time.Millisecond
		wild := joinOps(t, inner, ops, id, o)
		host.mustScan()
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		if err := wild.bus.Scan(ctx, -1); ctx.Err() != nil {
			t.Fatalf("seed %d: Scan still goes on after %v: %v", seed, patience, err)
		}
		cancel()
		wild.close()
		host.close()
		for _, n := range f.Nodes() {
			if n.Attached {
				t.Errorf("seed %d: %s is attached still", seed, n.Name)
			}
		}
		again := join(t, f, "pe0", 0, o)
		again.mustScan()
		if got, want := fmt.Sprint(len(again.bus.Devices())), "3"; got != want {
			t.Errorf("seed %d: a host sees %s devices afterwards, want %s: %s\n%s", seed, got, want, again.seen(), again.log)
		}
		again.close()
	}
}

// TestDeadPort has a port that ends while it is scanned.
func TestDeadPort(t *testing.T) {
	for k := 1; k < 400; k += 37 {
		f := newFabric(t, smallTree().String())
		inner, err := f.Mport("pe0")
		if err != nil {
			t.Fatal(err)
		}
		ops := &faulty{Mport: inner, fail: func(n int) error {
			if n == k {
				inner.Close()
			}
			return nil
		}}
		host := joinOps(t, inner, ops, 0, quick)
		if err := host.tryScan(); ops.count() >= k && !errors.Is(err, bus.ErrClosed) && !errors.Is(err, bus.ErrGone) {
			t.Errorf("Scan of a port that ends with access %d = %v", k, err)
		}
		host.close()
	}
}

// TestFabricGone has a fabric that goes, and comes back: a port says so by an event, and fails everything meanwhile.
func TestFabricGone(t *testing.T) {
	f := newFabric(t, smallTree().String())
	host, fail := -1, fmt.Errorf("the fabric: %w", bus.ErrGone)
	for _, node := range []string{"pe0", "pe3"} {
		inner, err := f.Mport(node)
		if err != nil {
			t.Fatal(err)
		}
		host++
		ops := &faulty{Mport: inner}
		p := joinOps(t, inner, ops, -host, quick)
		p.mustScan()
		known := p.seen()
		ops.set(func(int) error { return fail })
		p.scan.Link(p.m, false)
		eventually(t, "devices without a fabric", p.seen, "")
		ops.set(nil)
		p.scan.Link(p.m, true)
		eventually(t, "number of devices with a fabric", func() string { return fmt.Sprint(len(strings.Fields(p.seen()))) }, fmt.Sprint(len(strings.Fields(known))))
	}
}

// TestCancel ends a scan by its context: it releases its locks.
func TestCancel(t *testing.T) {
	f := newFabric(t, smallTree().String())
	inner, err := f.Mport("pe0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ops := &faulty{Mport: inner, fail: func(n int) error {
		if n == 60 {
			cancel()
		}
		return nil
	}}
	host := joinOps(t, inner, ops, 0, quick)
	if err := host.bus.Scan(ctx, -1); !errors.Is(err, context.Canceled) {
		t.Errorf("Scan = %v, want %v", err, context.Canceled)
	}
	for hop := range uint8(2) {
		if v, err := inner.Read(context.Background(), 0xff, hop, rapidio.RegHostLock, 4); err == nil && v != rapidio.LockFree {
			t.Errorf("lock at hop %d = %#x", hop, v)
		}
	}
	host.mustScan()
	unlocked(t, host)
}
