package fabric

import (
	"sync/atomic"
	"testing"

	"github.com/ring3dev/ring3/rionet/rapidio"
)

// stuckSink is a node whose first port-write keeps who tells it.
type stuckSink struct {
	quietSink
	stuck, free chan struct{}
	writes      atomic.Int32
	links       atomic.Int32
	up          atomic.Bool
}

func (s *stuckSink) PortWrite([]byte) {
	if s.writes.Add(1) == 1 {
		close(s.stuck)
		<-s.free
	}
}

func (s *stuckSink) Link(up bool) {
	s.links.Add(1)
	s.up.Store(up)
}

// TestNotesBounded: while a node keeps whoever tells it, others may go on as they like, and it costs no memory.
func TestNotesBounded(t *testing.T) {
	const many = 10000
	topo, err := Parse("test.yaml", []byte(star(3, "")))
	if err != nil {
		t.Fatal(err)
	}
	last, events := false, 0
	f := New(topo, Options{LinkChanged: func(ends [2]string, up bool) {
		if ends[0] == "pe0" {
			last = up
			events++
		}
	}})
	s := &stuckSink{stuck: make(chan struct{}), free: make(chan struct{})}
	if _, err := f.Attach("pe0", s); err != nil {
		t.Fatal(err)
	}
	host, other := attach(t, f, "pe1"), attach(t, f, "pe2")
	host.write(0xff, 0, rapidio.RegRouteDestID, 0)
	host.write(0xff, 0, rapidio.RegRoutePort, 0)

	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = host.PortWrite(t.Context(), 0, []byte{1, 2, 3, 4})
	}()
	<-s.stuck
	linksBefore, eventsBefore := s.links.Load(), events
	for range many {
		if err := other.PortWrite(t.Context(), 0, []byte{1, 2, 3, 4}); err != nil {
			t.Fatal(err)
		}
		for _, up := range []bool{false, true} {
			if err := f.SetLink("pe0", "sw0:0", up); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := f.SetLink("pe0", "sw0:0", false); err != nil {
		t.Fatal(err)
	}
	f.mu.Lock()
	n := len(f.notes)
	f.mu.Unlock()
	if n > 4*maxNotes {
		t.Errorf("notes that wait = %d, want at most %d", n, 4*maxNotes)
	}
	close(s.free)
	<-done
	if got := s.writes.Load(); got < 2 || got > maxNotes+1 {
		t.Errorf("port-writes that the node got = %d, want 2 to %d", got, maxNotes+1)
	}
	if s.up.Load() || last {
		t.Errorf("the link as the node was told last, and others = %v, %v, want down", s.up.Load(), last)
	}
	if got := s.links.Load() - linksBefore; got != maxNotes {
		t.Errorf("how often the node was told of its link = %d, want %d", got, maxNotes)
	}
	if got := events - eventsBefore; got != maxNotes {
		t.Errorf("how often others were told of the link = %d, want %d", got, maxNotes)
	}
}
