package fabricd

import (
	"testing"
	"time"

	"github.com/ring3dev/ring3/rionet/rapidio"
)

func TestPace(t *testing.T) {
	var p pace
	now := time.Unix(1, 0)
	for i := range restartsAtOnce {
		if got := p.wait(now); got != 0 {
			t.Errorf("wait %d of the first at once = %v, want 0", i, got)
		}
	}
	for i := range 3 {
		if got, want := p.wait(now), time.Duration(i+1)*restartEvery; got != want {
			t.Errorf("wait %d of those beyond = %v, want %v", i, got, want)
		}
	}
	if got := p.wait(now.Add(time.Hour)); got != 0 {
		t.Errorf("wait after an hour = %v, want 0", got)
	}
}

// TestResetStorm: a node that begins anew all the time does not have the host hear of it all the time.
func TestResetStorm(t *testing.T) {
	leakless(t)
	s, c := start(t, starTopology)
	ready := make(chan struct{})
	links := make(chan Event, 1000)
	go c.Watch(t.Context(), func() { close(ready) }, func(e Event) error {
		if e.What == EventLinkDown {
			links <- e
		}
		return nil
	})
	<-ready
	p := joinAs(t, s.path, "pe1")
	begin := time.Now()
	const storms = restartsAtOnce + 4
	for range storms + 1 {
		p.open().read(rapidio.RegBaseDeviceID) // the first one needs no restart
	}
	if took, least := time.Since(begin), (storms-restartsAtOnce)*restartEvery; took < least {
		t.Errorf("%d restarts took %v, want at least %v", storms, took, least)
	}
	for range storms {
		<-links
	}
}
