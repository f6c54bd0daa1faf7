package fabricd

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/rionet/fabric"
	"github.com/ring3dev/ring3/rionet/rapidio"
	"github.com/ring3dev/ring3/rionet/shm"
)

// TestSlowLinks: on links that take time and lose packets each message has one result, and those that arrive do so in order.
func TestSlowLinks(t *testing.T) {
	leakless(t)
	s, _ := start(t, `
switches: [{name: sw0, ports: 4}]
endpoints: [{name: pe0}, {name: pe1}]
links: [{ends: [pe0, "sw0:0"], delay: 200us, rate: 1G}, {ends: [pe1, "sw0:1"], loss: 0.05}]
`)
	a, b := joinAs(t, s.path, "pe0").open(), joinAs(t, s.path, "pe1").open()
	a.setID(5)
	b.setID(6)
	// Accesses over a lossy link may need to be repeated.
	again := func(h shm.Header) {
		eventually(t, "an access over a lossy link", func() bool { _, st := a.call(h, nil); return st == rapidio.Done })
	}
	for dest, port := range map[rapidio.DestID]uint32{5: 0, 6: 1} {
		again(shm.Header{Kind: shm.KindMaint, Peer: 0xff, Off: uint32(rapidio.RegRouteDestID), Width: 4, Write: true, Value: uint32(dest)})
		again(shm.Header{Kind: shm.KindMaint, Peer: 0xff, Off: uint32(rapidio.RegRoutePort), Width: 4, Write: true, Value: port})
	}
	b.openMailbox(0, 1024)
	const n = 500
	first := a.tag + 1
	for i := range n {
		a.send(shm.Header{Kind: shm.KindMessage, Peer: 6}, []byte(fmt.Sprintf("%06d", i)))
	}
	results := make(map[uint32]rapidio.Status)
	var h shm.Header
	eventually(t, "results of all messages", func() bool {
		for {
			if _, ok := a.node.Answers.Next(&h); !ok {
				break
			}
			for k := range uint32(h.Len) {
				if old, ok := results[h.Tag+k]; ok {
					t.Fatalf("two results of message %d: %v and %v", h.Tag+k-first, old, h.Status)
				}
				results[h.Tag+k] = h.Status
			}
		}
		a.node.Answers.Release()
		return len(results) >= n
	})
	last, got := "", 0
	for {
		data, ok := b.node.Mbox[0].Next(&h)
		if !ok {
			break
		}
		if string(data) <= last {
			t.Fatalf("message %s came after %s", data, last)
		}
		last = string(data)
		got++
	}
	done := 0
	for tag, st := range results {
		if tag < first || tag >= first+n || st != rapidio.Done && st != rapidio.Error {
			t.Errorf("result of message %d: %v", tag-first, st)
		}
		if st == rapidio.Done {
			done++
		}
	}
	// What has a good response arrived; of those that arrived some responses were lost.
	if done > got || done < n/2 || done == n {
		t.Errorf("%d of %d messages are done, and %d arrived", done, n, got)
	}
}

// TestChurn: nodes come and go, in the middle of what they and others send, while the daemon is asked things; and then it ends.
func TestChurn(t *testing.T) {
	leakless(t)
	s, c := start(t, trustTopology)
	rounds := 15
	if testing.Short() {
		rounds = 3
	}
	var wg sync.WaitGroup
	for i, name := range []string{"pe0", "pe1", "pe2", "pe3"} {
		wg.Go(func() {
			for r := range rounds {
				ctx, cancel := context.WithTimeout(context.Background(), patience)
				conn, _, err := Join(ctx, s.path, Request{Node: name, Windows: Sizes{4096}})
				cancel()
				if err != nil {
					t.Errorf("%s, round %d: %v", name, r, err)
					return
				}
				p := handshake(outsider{t}, conn).open()
				p.setID(rapidio.DestID(i))
				p.mustCall(shm.Header{Kind: shm.KindMailbox, Value: 4})
				p.route(rapidio.DestID(i), uint8(i))
				for k := range 300 {
					h := shm.Header{Kind: shm.KindMessage, Peer: rapidio.DestID(k % 4)}
					if !p.node.Tx.Put(&h, make([]byte, 100)) {
						break
					}
				}
				if p.node.Tx.Publish() {
					p.kick()
				}
				if r%2 == 0 {
					if _, err := c.Show(context.Background()); err != nil {
						t.Error(err)
					}
				}
				p.close()
			}
		})
	}
	wg.Wait()
	w, err := c.Windows(t.Context())
	for end := time.Now().Add(patience); err == nil && len(w) > 0 && time.Now().Before(end); {
		w, err = c.Windows(t.Context())
	}
	if err != nil || len(w) != 0 {
		t.Errorf("Windows = %v, %v", w, err)
	}
}

// outsider is a test as seen by its other goroutines, which may not end it.
type outsider struct{ testing.TB }

func (o outsider) Cleanup(func())            {}
func (o outsider) Fatal(args ...any)         { panic(fmt.Sprint(args...)) }
func (o outsider) Fatalf(f string, a ...any) { panic(fmt.Sprintf(f, a...)) }
func (o outsider) Context() context.Context  { return context.Background() }

// TestServe: it serves until its context ends, and says when it is ready.
func TestServe(t *testing.T) {
	leakless(t)
	path := filepath.Join(t.TempDir(), "sock")
	topo, err := fabric.Parse("t", []byte(starTopology))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ready, res := make(chan struct{}), make(chan error, 1)
	go func() {
		res <- Serve(ctx, Config{Topology: topo, Socket: path, Ready: func() { close(ready) }})
	}()
	<-ready
	if _, err := Dial(t.Context(), path); err != nil {
		t.Error(err)
	}
	if err := Serve(t.Context(), Config{Topology: topo, Socket: path}); !errors.Is(err, bus.ErrBusy) {
		t.Errorf("a second Serve = %v, want %v", err, bus.ErrBusy)
	}
	if err := Serve(t.Context(), Config{Topology: &fabric.Topology{}, Socket: path}); err == nil {
		t.Error("Serve of nothing = nil")
	}
	cancel()
	if err := <-res; err != nil {
		t.Errorf("Serve = %v", err)
	}
}
