package scan

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ring3dev/ring3/rionet/rapidio"
)

// TestLeave takes a port out of service, and then away, while it has locked a switch in a scan that nobody asked for: an agent that discovers again, and a host
// that enumerates again. The lock is given up, and nothing is complained of.
func TestLeave(t *testing.T) {
	for _, c := range []struct {
		name  string
		id    int  // as a host; -1: an agent
		known bool // it has seen that the lock is its own
	}{{"agent", -1, true}, {"host", 0, true}, {"agent that locks", -1, false}, {"host that locks", 0, false}} {
		t.Run(c.name, func(t *testing.T) {
			f := newFabric(t, star(4, "standard").String())
			other := 0
			if c.id == 0 {
				other = -1
			}
			watch := join(t, f, "pe1", other, quick)
			inner, err := f.Mport("pe0")
			if err != nil {
				t.Fatal(err)
			}
			ops := &faulty{Mport: inner}
			p := joinOps(t, inner, ops, c.id, quick)
			for _, n := range map[bool][]*peer{true: {p, watch}, false: {watch, p}}[c.id == 0] {
				n.mustScan()
			}
			own, err := p.m.DestID(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			name := "" // as the other one knows it
			for _, d := range watch.bus.Devices() {
				if !d.IsSwitch() && d.DestID == own {
					name = d.Name()
				}
			}
			locked := make(chan struct{})
			var once sync.Once
			stop := func() {
				once.Do(func() {
					close(locked)
					<-p.m.Done()
					time.Sleep(50 * time.Millisecond) // on a busy machine
				})
			}
			ops.mu.Lock()
			if c.known {
				ops.lie = func(v *uint32, a access1) {
					if a.off == rapidio.RegHostLock && *v&rapidio.LockFree == uint32(own) {
						stop()
					}
				}
			} else {
				ops.did = func(a access1) {
					if a.off == rapidio.RegHostLock {
						stop()
					}
				}
			}
			ops.mu.Unlock()
			if _, err := f.Mport("pe2"); err != nil { // the host learns of it, and tells the agent
				t.Fatal(err)
			}
			select {
			case <-locked:
			case <-time.After(patience):
				t.Fatalf("it locks nothing: %s", p.log)
			}
			said := p.log.String()
			p.bus.RemoveMport(p.m)
			ops.Close()
			p.bus.Close()
			p.scan.Wait()
			if now := p.log.String(); now != said {
				t.Errorf("it said %s", now[len(said):])
			}
			if c.id < 0 { // the host finds that it has gone, and nothing to clean up after it
				until(t, "the host has noticed", func() bool { return !strings.Contains(watch.seen(), name) })
				if s := watch.log.String(); strings.Contains(s, "taking over") {
					t.Errorf("the host said %s", s)
				}
			}
			for _, d := range watch.bus.Devices() {
				if v, err := d.Read32(context.Background(), rapidio.RegHostLock); d.IsSwitch() && (err != nil || v != rapidio.LockFree) {
					t.Errorf("the lock of %s is %#x, %v, want that it is free", d.Name(), v, err)
				}
			}
		})
	}
}
