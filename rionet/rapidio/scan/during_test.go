package scan

import (
	"fmt"
	"testing"

	"github.com/ring3dev/ring3/rionet/fabric"
	"github.com/ring3dev/ring3/rionet/rapidio"
)

// TestDuring has a node come, or go, before the host's access k of its first round, for every k: the host learns of it, although switches tell
// only from when they know whom.
func TestDuring(t *testing.T) {
	for _, comes := range []bool{true, false} {
		t.Run(fmt.Sprintf("comes=%v", comes), func(t *testing.T) {
			for k := 1; during(t, comes, k); k++ {
			}
		})
	}
}

// linkless is a port that says nothing of its own link, which would make the host look again.
type linkless struct{ *faulty }

func (l linkless) Start(e rapidio.Events) { l.faulty.Start(noLink{e}) }

type noLink struct{ rapidio.Events }

func (noLink) Link(bool) {}

// during says whether the round had so many accesses.
func during(t *testing.T, comes bool, k int) (was bool) {
	f := newFabric(t, star(3, "standard").String())
	attach := func(name string) *fabric.Mport {
		m, err := f.Mport(name)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { m.Close() })
		return m
	}
	attach("pe1")
	var other *fabric.Mport
	want := "1 2"
	if !comes {
		other, want = attach("pe2"), "1"
	}
	inner := attach("pe0")
	ops := &faulty{Mport: inner}
	host := joinOps(t, inner, linkless{ops}, 0, quick)
	ops.set(func(n int) error {
		if n != k {
			return nil
		}
		was = true
		if other != nil {
			return other.Close()
		}
		_, err := f.Mport("pe2")
		return err
	})
	host.mustScan()
	ops.set(nil)
	if was {
		eventually(t, fmt.Sprintf("what the host knows after a change before access %d", k), host.endpoints, want)
	}
	host.close()
	return was
}
