package rejoin

import (
	"context"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ring3dev/ring3/rionet/fabric"
	"github.com/ring3dev/ring3/rionet/rapidio"
)

// slow is Ops of a fabric that has no time for opening boxes, so many times.
type slow struct {
	*fabric.Mport
	failures atomic.Int32
}

func (s *slow) OpenInbox(mbox, entries int) (rapidio.Inbox, error) {
	if s.failures.Add(-1) >= 0 {
		return nil, rapidio.ErrNoReply
	}
	return s.Mport.OpenInbox(mbox, entries)
}

func (s *slow) OpenOutbox(mbox, entries int) (rapidio.Outbox, error) {
	if s.failures.Add(-1) >= 0 {
		return nil, rapidio.ErrNoReply
	}
	return s.Mport.OpenOutbox(mbox, entries)
}

// A box that could not be opened in a new fabric, the first times, is opened later: in the same one.
func TestOpenedLater(t *testing.T) {
	f := pair(t, "8")
	first := ops(t, f, "a")
	p := New(first, nil)
	p.Start(&told{})
	in, err := p.OpenInbox(0, 16)
	if err != nil {
		t.Fatal(err)
	}
	out, err := p.OpenOutbox(0, 16)
	if err != nil {
		t.Fatal(err)
	}
	first.Close()
	p.Lose()

	f = pair(t, "8")
	s := &slow{Mport: ops(t, f, "a")}
	s.failures.Store(4)
	if err := p.Join(s); err != nil {
		t.Fatal(err)
	}
	b := ops(t, f, "b")
	b.Start(nobody{})
	number(t, p, 0)
	number(t, b, 1)
	bin, err := b.OpenInbox(0, 16)
	if err != nil {
		t.Fatal(err)
	}
	bout, err := b.OpenOutbox(0, 16)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	got := make(chan error, 1)
	go func() { got <- in.Wait(ctx) }()
	await(t, "the outbox is open", func() bool { return send(t, out, 1, "out") == rapidio.Done })
	m := []rapidio.Message{{Data: make([]byte, 8)}}
	if n := bin.Get(m); n != 1 || string(m[0].Data) != "out" {
		t.Errorf("b got %d, %q, want 1, %q", n, m[0].Data, "out")
	}
	await(t, "the inbox is open", func() bool { return send(t, bout, 0, "in") == rapidio.Done })
	if err := <-got; err != nil {
		t.Fatalf("Wait for a message = %v", err)
	}
	m[0].Data = m[0].Data[:8]
	if n := in.Get(m); n != 1 || string(m[0].Data) != "in" {
		t.Errorf("a got %d, %q, want 1, %q", n, m[0].Data, "in")
	}
}

// A link that is down when its port joins again is told to be up once it is, and not before.
func TestJoinWithoutLink(t *testing.T) {
	f := pair(t, "8")
	first, e := ops(t, f, "a"), &told{}
	p := New(first, nil)
	p.Start(e)
	b := ops(t, f, "b")
	await(t, "the link is up", func() bool { return linkUp(p) })
	first.Close()
	b.Close()
	p.Lose()
	f = pair(t, "8")
	if err := p.Join(ops(t, f, "a")); err != nil { // b is not there: nothing is at the other end
		t.Fatal(err)
	}
	if l := e.last(1); !slices.Equal(l, []bool{false}) {
		t.Errorf("told of links %v, want down last", l)
	}
	ops(t, f, "b")
	await(t, "the link is told to be up", func() bool { return slices.Equal(e.last(2), []bool{false, true}) })
}
