package mport

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"testing"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/rionet/rapidio"
)

// rooms are messages with room for n bytes.
func rooms(k, n int) []rapidio.Message {
	msgs := make([]rapidio.Message, k)
	for i := range msgs {
		msgs[i].Data = make([]byte, n)
	}
	return msgs
}

// results waits for n results.
func results(t testing.TB, out rapidio.Outbox, n int) []rapidio.Status {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	st := make([]rapidio.Status, n)
	for got := 0; got < n; {
		k := out.Results(st[got:])
		if got += k; k > 0 {
			continue
		}
		if err := out.Wait(ctx); err != nil {
			t.Fatalf("waiting for result %d of %d: %v", got, n, err)
		}
	}
	return st
}

// receive waits for n messages.
func receive(t testing.TB, in rapidio.Inbox, n int) []rapidio.Message {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	msgs := rooms(n, rapidio.MaxMessage)
	for got := 0; got < n; {
		k := in.Get(msgs[got:])
		if got += k; k > 0 {
			continue
		}
		if err := in.Wait(ctx); err != nil {
			t.Fatalf("waiting for message %d of %d: %v", got, n, err)
		}
	}
	return msgs
}

func statuses(t testing.TB, what string, got []rapidio.Status, want ...rapidio.Status) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s: results %v, want %v", what, got, want)
	}
}

func TestMailboxes(t *testing.T) {
	for _, topo := range []struct{ name, text string }{{"fabric", topology}, {"direct", trusting}} {
		t.Run(topo.name, func(t *testing.T) {
			inEachWay(t, func(t *testing.T, w way) {
				r := newRig(t, topo.text, w)
				out, err := r.p[0].OpenOutbox(2, 64)
				must(t, err)
				msg := func(peer rapidio.DestID, n int) rapidio.Message {
					return rapidio.Message{Peer: peer, Mbox: 2, Data: make([]byte, n)}
				}
				if n := out.Add([]rapidio.Message{msg(2, 5), msg(99, 5)}); n != 2 || out.InFlight() != 2 {
					t.Errorf("Add = %d, InFlight %d, want 2", n, out.InFlight())
				}
				statuses(t, "to a closed mailbox, and to nobody", results(t, out, 2), rapidio.Error, rapidio.Error)
				in, err := r.p[1].OpenInbox(2, 16)
				must(t, err)
				if in.Free() != 16 {
					t.Errorf("Free of an empty mailbox = %d, want 16", in.Free())
				}
				out.Add([]rapidio.Message{msg(2, 1), msg(2, 0), msg(2, rapidio.MaxMessage), msg(2, rapidio.MaxMessage+1), {Peer: 2, Mbox: 4, Data: []byte{1}}})
				statuses(t, "of 1, 0, 4096 and 4097 bytes, and for mailbox 4", results(t, out, 5), rapidio.Done, rapidio.Error, rapidio.Done, rapidio.Error, rapidio.Error)
				eventually(t, "two messages there", func() bool { return in.Free() == 14 })
				for i, m := range receive(t, in, 2) {
					if want := []int{1, rapidio.MaxMessage}[i]; len(m.Data) != want || m.Peer != 1 || m.Mbox != 2 {
						t.Errorf("message %d has %d bytes from %d for mailbox %d, want %d from 1 for 2", i, len(m.Data), m.Peer, m.Mbox, want)
					}
				}
				full(t, out, in)
				ordered(t, out, in)
				cut(t, out, in)
				claims(t, r.p[1])
				must(t, errors.Join(in.Close(), in.Close()))
				out.Add([]rapidio.Message{msg(2, 5)})
				statuses(t, "to a mailbox that was closed", results(t, out, 1), rapidio.Error)
				wantErr(t, "Wait of a closed mailbox", in.Wait(t.Context()), bus.ErrClosed)
				in, err = r.p[1].OpenInbox(2, 4)
				must(t, err)
				if in.Get(rooms(4, 10)) != 0 {
					t.Error("a mailbox that was opened again has messages")
				}
				must(t, errors.Join(out.Close(), out.Close()))
				wantErr(t, "Wait of a closed outbox", out.Wait(t.Context()), bus.ErrClosed)
			})
		})
	}
}

// full fills a mailbox of 16.
func full(t *testing.T, out rapidio.Outbox, in rapidio.Inbox) {
	t.Helper()
	msgs := make([]rapidio.Message, 17)
	for i := range msgs {
		msgs[i] = rapidio.Message{Peer: 2, Mbox: 2, Data: []byte{byte(i)}}
	}
	if n := out.Add(msgs); n != len(msgs) {
		t.Fatalf("Add = %d, want all %d", n, len(msgs))
	}
	for i, st := range results(t, out, 17) {
		if want := []rapidio.Status{rapidio.Done, rapidio.Retry}[i/16]; st != want {
			t.Errorf("message %d for a mailbox of 16: %v, want %v", i, st, want)
		}
	}
	if in.Free() != 0 {
		t.Errorf("Free of a full mailbox = %d, want 0", in.Free())
	}
	for i, m := range receive(t, in, 16) {
		if len(m.Data) != 1 || m.Data[0] != byte(i) {
			t.Errorf("message %d = % x, want its number", i, m.Data)
		}
	}
}

// ordered has what is behind a refused message refused, until one says that it is the first again, whatever room there is meanwhile.
func ordered(t *testing.T, out rapidio.Outbox, in rapidio.Inbox) {
	t.Helper()
	send := func(what string, first, n int, o rapidio.Order, want ...rapidio.Status) {
		t.Helper()
		msgs := make([]rapidio.Message, n)
		for i := range msgs {
			msgs[i] = rapidio.Message{Peer: 2, Mbox: 2, Order: o, Data: []byte{byte(first + i)}}
			if o == rapidio.Again {
				o = rapidio.Behind
			}
		}
		if k := out.Add(msgs); k != n {
			t.Fatalf("%s: Add = %d, want %d", what, k, n)
		}
		statuses(t, what, results(t, out, n), want...)
	}
	done := func(n int) []rapidio.Status { return slices.Repeat([]rapidio.Status{rapidio.Done}, n) }
	retry := func(n int) []rapidio.Status { return slices.Repeat([]rapidio.Status{rapidio.Retry}, n) }
	send("18 to a mailbox of 16", 0, 18, rapidio.Behind, append(done(16), retry(2)...)...)
	next := byte(0)
	take := func(n int) {
		t.Helper()
		for _, m := range receive(t, in, n) {
			if m.Data[0] != next {
				t.Errorf("message %d, want %d", m.Data[0], next)
			}
			next++
		}
	}
	take(2)
	eventually(t, "room for two", func() bool { return in.Free() == 2 })
	send("behind the refused", 99, 1, rapidio.Behind, retry(1)...)
	send("three again", 16, 3, rapidio.Again, append(done(2), retry(1)...)...)
	take(16)
	send("behind the refused, with all room", 99, 20, rapidio.Behind, retry(20)...)
	send("again", 18, 3, rapidio.Again, done(3)...)
	send("one behind", 21, 1, rapidio.Behind, done(1)...)
	take(4)
}

func cut(t *testing.T, out rapidio.Outbox, in rapidio.Inbox) {
	t.Helper()
	out.Add([]rapidio.Message{{Peer: 2, Mbox: 2, Data: []byte("0123456789")}})
	results(t, out, 1)
	msgs := rooms(1, 4)
	must(t, in.Wait(t.Context()))
	if n := in.Get(msgs); n != 1 || string(msgs[0].Data) != "0123" || in.Cut() != 1 {
		t.Errorf("Get with room for 4 of 10 bytes = %d, %q, Cut %d", n, msgs[0].Data, in.Cut())
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	wantErr(t, "Wait with a ctx that ended", in.Wait(over), context.Canceled)
}

func claims(t *testing.T, p *Port) {
	t.Helper()
	_, err := p.OpenInbox(2, 4)
	wantErr(t, "OpenInbox of an open one", err, rapidio.ErrClaimed)
	for _, x := range []struct{ mbox, entries int }{{-1, 4}, {4, 4}, {0, 0}, {0, 1}, {0, 3}, {0, 2048}} {
		_, err := p.OpenInbox(x.mbox, x.entries)
		wantErr(t, fmt.Sprintf("OpenInbox(%d, %d)", x.mbox, x.entries), err, rapidio.ErrRange)
		_, err = p.OpenOutbox(x.mbox, x.entries)
		wantErr(t, fmt.Sprintf("OpenOutbox(%d, %d)", x.mbox, x.entries), err, rapidio.ErrRange)
	}
	o, err := p.OpenOutbox(1, 1024)
	must(t, err)
	_, err = p.OpenOutbox(1, 4)
	wantErr(t, "OpenOutbox of an open one", err, rapidio.ErrClaimed)
	must(t, o.Close())
}

// A stream of messages of all lengths, sent again where there was no room, from two senders: all arrive, each sender's in order.
func TestStream(t *testing.T) {
	for _, topo := range []struct{ name, text string }{{"fabric", topology}, {"direct", trusting}} {
		t.Run(topo.name, func(t *testing.T) {
			inEachWay(t, func(t *testing.T, w way) {
				r := newRig(t, topo.text, w)
				in, err := r.p[1].OpenInbox(0, 32)
				must(t, err)
				const each = 3000
				done := make(chan error, 2)
				for _, i := range []int{0, 2} {
					go func() { done <- stream(t, r.p[i], each) }()
				}
				next := map[rapidio.DestID]uint32{}
				for range 2 * each / 50 {
					for _, m := range receive(t, in, 50) {
						got := binary.LittleEndian.Uint32(m.Data)
						if want := next[m.Peer]; got != want || len(m.Data) != length(got) || m.Data[len(m.Data)-1] != byte(len(m.Data)) && len(m.Data) > 4 {
							t.Fatalf("message %d of %d bytes from %d, want %d of %d", got, len(m.Data), m.Peer, want, length(want))
						}
						next[m.Peer]++
					}
				}
				for range 2 {
					must(t, <-done)
				}
			})
		})
	}
}

// length is that of a message with a number.
func length(n uint32) int { return 4 + int(n*37)%(rapidio.MaxMessage-3) }

// stream sends n messages to 2. After the first Retry of a burst it sends that and all after it again, but for those that were taken.
func stream(t testing.TB, p *Port, n uint32) error {
	out, err := p.OpenOutbox(0, 16)
	if err != nil {
		return err
	}
	defer out.Close()
	for next := uint32(0); next < n; {
		var msgs []rapidio.Message
		for k := next; k < min(next+1, n); k++ { // one at a time: a burst with a Retry within would lose the order
			d := make([]byte, length(k))
			d[len(d)-1] = byte(len(d))
			binary.LittleEndian.PutUint32(d, k)
			msgs = append(msgs, rapidio.Message{Peer: 2, Data: d})
		}
		for k := 0; k < len(msgs); {
			k += out.Add(msgs[k:])
		}
		for _, st := range results(t, out, len(msgs)) {
			if st == rapidio.Retry {
				break
			}
			if st != rapidio.Done {
				return fmt.Errorf("message %d: %v", next, st)
			}
			next++
		}
	}
	return nil
}

// More than fits: Add takes what there is room for, and Wait waits for more.
func TestBackpressure(t *testing.T) {
	inEachWay(t, func(t *testing.T, w way) {
		r := newRig(t, topology, w)
		out, err := r.p[0].OpenOutbox(0, 1024)
		must(t, err)
		msgs := make([]rapidio.Message, 5000)
		for i := range msgs {
			msgs[i] = rapidio.Message{Peer: 99, Data: make([]byte, 64)}
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		st := make([]rapidio.Status, 100)
		sent, got := 0, 0
		for got < len(msgs) {
			n := out.Add(msgs[sent:])
			k := out.Results(st)
			sent, got = sent+n, got+k
			if out.InFlight() != sent-got {
				t.Fatalf("InFlight = %d with %d sent and %d results", out.InFlight(), sent, got)
			}
			if n+k == 0 {
				if err := out.Wait(ctx); err != nil {
					t.Fatalf("%d sent, %d results: Wait = %v", sent, got, err)
				}
			}
		}
		// Nothing to wait for.
		must(t, out.Wait(ctx))
	})
}

// Messages of a direct link do not go through the daemon, and when the peer goes they do not go at all.
func TestDirect(t *testing.T) {
	bustest.NoLeaks(t)
	r := newRig(t, trusting, ways[0])
	in, err := r.p[1].OpenInbox(0, 16)
	must(t, err)
	out, err := r.p[0].OpenOutbox(0, 16)
	must(t, err)
	eventually(t, "the direct link in use", func() bool { _, ok := r.p[0].node.Direct[0].Dest(); return ok })
	st := make([]rapidio.Status, 1)
	for i := range 100 {
		out.Add([]rapidio.Message{{Peer: 2, Data: []byte{byte(i)}}})
		if n := out.Results(st); n != 1 || st[0] != rapidio.Done {
			t.Fatalf("Results at once = %d, %v, want done: nobody else is asked", n, st)
		}
		if m := receive(t, in, 1)[0]; m.Peer != 1 || m.Data[0] != byte(i) {
			t.Fatalf("message %d = % x from %d", i, m.Data, m.Peer)
		}
	}
	must(t, r.p[1].Close())
	out.Add([]rapidio.Message{{Peer: 2, Data: []byte{1}}})
	statuses(t, "to a node whose port is closed", results(t, out, 1), rapidio.Error)
	_ = r.p[1].dev.Close()
	out.Add([]rapidio.Message{{Peer: 2, Data: []byte{1}}})
	statuses(t, "to a node that left", results(t, out, 1), rapidio.Error)
	// It comes back, and all is as it was.
	eventually(t, "the daemon to notice", func() bool { _, ok := r.p[0].node.Direct[0].Dest(); return !ok })
	r.p[1] = join(t, r.path, "pe1", ways[0])
	r.number(t, 1)
	in, err = r.p[1].OpenInbox(0, 16)
	must(t, err)
	eventually(t, "the direct link in use again", func() bool { _, ok := r.p[0].node.Direct[0].Dest(); return ok })
	out.Add([]rapidio.Message{{Peer: 2, Data: []byte{7}}})
	if n := out.Results(st); n != 1 || st[0] != rapidio.Done {
		t.Errorf("Results at once = %d, %v, want done", n, st)
	}
	if m := receive(t, in, 1)[0]; m.Data[0] != 7 {
		t.Errorf("message = % x, want 7", m.Data)
	}
}

func TestAllocs(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	for _, topo := range []struct{ name, text string }{{"fabric", topology}, {"direct", trusting}} {
		t.Run(topo.name, func(t *testing.T) {
			r := newRig(t, topo.text, ways[0])
			in, err := r.p[1].OpenInbox(0, 256)
			must(t, err)
			out, err := r.p[0].OpenOutbox(0, 64)
			must(t, err)
			msgs, got, st := rooms(32, 1000), rooms(32, rapidio.MaxMessage), make([]rapidio.Status, 32)
			for i := range msgs {
				msgs[i].Peer = 2
			}
			if n := testing.AllocsPerRun(200, func() {
				sent, have := 0, 0
				for sent < len(msgs) || have < len(msgs) {
					sent += out.Add(msgs[sent:])
					for i := range got {
						got[i].Data = got[i].Data[:cap(got[i].Data)]
					}
					have += in.Get(got[:len(msgs)-have])
					out.Results(st)
					runtime.Gosched()
				}
			}); n > 0.5 {
				t.Errorf("a burst allocates %v times, want 0", n)
			}
		})
	}
}
