package rapidio

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/ring3dev/ring3/bus"
)

func TestMailboxClaims(t *testing.T) {
	r := newRig(t, Small, 2)
	for _, c := range [][2]int{{-1, 8}, {4, 8}, {0, 0}, {0, 1}, {0, 3}, {0, 2048}, {0, -8}} {
		if o, err := r.m.RequestOutbMbox("x", c[0], c[1]); o != nil || !errors.Is(err, ErrRange) {
			t.Errorf("RequestOutbMbox(%d, %d entries) = %v, want ErrRange", c[0], c[1], err)
		}
		if i, err := r.m.RequestInbMbox("x", c[0], c[1]); i != nil || !errors.Is(err, ErrRange) {
			t.Errorf("RequestInbMbox(%d, %d entries) = %v, want ErrRange", c[0], c[1], err)
		}
	}
	out, err := r.m.RequestOutbMbox("first", 0, 2)
	if err != nil {
		t.Fatal(err)
	}
	in, err := r.m.RequestInbMbox("first", 0, 1024)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.m.RequestOutbMbox("second", 0, 2); !errors.Is(err, ErrClaimed) || err.Error() != "rapidio0: claiming outbound mailbox 0 for second: it is first's: claimed already: busy" {
		t.Errorf("RequestOutbMbox of what is taken = %v", err)
	}
	if _, err := r.m.RequestInbMboxFunc("second", 0, 2, func(Inbox) {}); !errors.Is(err, ErrClaimed) {
		t.Errorf("RequestInbMboxFunc of what is taken = %v, want ErrClaimed", err)
	}
	for range 2 { // the second Close is nobody else's
		if err := errors.Join(out.Close(), in.Close()); err != nil {
			t.Error(err)
		}
		if _, err := r.m.RequestOutbMbox("third", 0, 2); err != nil && !errors.Is(err, ErrClaimed) {
			t.Errorf("RequestOutbMbox after Close = %v", err)
		}
	}
	if _, err := r.m.RequestOutbMbox("fourth", 0, 2); !errors.Is(err, ErrClaimed) {
		t.Errorf("a second Close gave up what was claimed since: %v, want ErrClaimed", err)
	}
	// What cannot be opened is not claimed.
	r.f.ports[0].die()
	for range 2 {
		if _, err := r.m.RequestInbMbox("x", 3, 2); !errors.Is(err, bus.ErrGone) {
			t.Errorf("RequestInbMbox of a dead port = %v, want ErrGone", err)
		}
	}
}

// Messages by callbacks: the sender is kicked, the receiver called.
func TestMailboxFuncs(t *testing.T) {
	r := newRig(t, Small, 2)
	peer := r.add(1, -1)
	const n = 100
	var mu sync.Mutex
	var got []string
	room := make([]byte, MaxMessage)
	stop, err := peer.RequestInbMboxFunc("receiver", 2, 128, func(i Inbox) {
		for {
			msgs := []Message{{Data: room}}
			if i.Get(msgs) == 0 {
				return
			}
			mu.Lock()
			got = append(got, fmt.Sprintf("%d %s", msgs[0].Peer, msgs[0].Data))
			mu.Unlock()
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	var queue []string
	done := 0
	kick, end, err := r.m.RequestOutbMboxFunc("sender", 2, 4, func(o Outbox) {
		mu.Lock()
		defer mu.Unlock()
		var st [4]Status
		for {
			for _, s := range st[:o.Results(st[:])] {
				if s == Done {
					done++
				}
			}
			if len(queue) == 0 || o.Add([]Message{{Peer: 1, Mbox: 2, Data: []byte(queue[0])}}) == 0 {
				return
			}
			queue = queue[1:]
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for i := range n {
		mu.Lock()
		queue = append(queue, fmt.Sprint(i))
		mu.Unlock()
		want = append(want, fmt.Sprintf("0 %d", i))
		kick()
	}
	eventually(t, "all messages arrived", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(got) == n && done == n
	})
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	end()
	end()
	kick() // of a mailbox that is closed: nothing
	if o, err := r.m.RequestOutbMbox("other", 2, 4); err != nil {
		t.Errorf("RequestOutbMbox after the release = %v", err)
	} else if err := o.Close(); err != nil {
		t.Error(err)
	}
	// A port that goes takes its callbacks along.
	r.b.RemoveMport(peer)
	if r.f.ports[1].inboxes[2].Load() != nil {
		t.Error("the mailbox is still open after its port went out of service")
	}
	if _, err := peer.RequestInbMbox("late", 0, 2); !errors.Is(err, bus.ErrClosed) {
		t.Errorf("RequestInbMbox of a port out of service = %v, want ErrClosed", err)
	}
	if _, err := peer.RequestInbDoorbell("late", 0, 2, func(DestID, uint16) {}); !errors.Is(err, bus.ErrClosed) {
		t.Errorf("RequestInbDoorbell of a port out of service = %v, want ErrClosed", err)
	}
}

// A receiver that lets itself go.
func TestMailboxReleaseInside(t *testing.T) {
	r := newRig(t, Small, 2)
	peer := r.add(1, -1)
	var stop func()
	ready, called := make(chan struct{}), make(chan struct{})
	stop, err := peer.RequestInbMboxFunc("receiver", 0, 2, func(Inbox) { <-ready; stop(); close(called) })
	if err != nil {
		t.Fatal(err)
	}
	close(ready)
	out, err := r.m.RequestOutbMbox("sender", 0, 2)
	if err != nil {
		t.Fatal(err)
	}
	if n := out.Add([]Message{{Peer: 1, Data: []byte("x")}}); n != 1 {
		t.Fatalf("Add() = %d, want 1", n)
	}
	<-called
	stop()
	if in, err := peer.RequestInbMbox("next", 0, 2); err != nil {
		t.Errorf("RequestInbMbox after the release = %v", err)
	} else if err := errors.Join(in.Close(), out.Close()); err != nil {
		t.Error(err)
	}
}
