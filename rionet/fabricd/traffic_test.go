package fabricd

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/ring3dev/ring3/rionet/rapidio"
	"github.com/ring3dev/ring3/rionet/shm"
)

// pair are two numbered nodes of a star that can reach each other: IDs 5 and 6.
func pair(t testing.TB, s *Server) (a, b *peer) {
	t.Helper()
	a, b = joinAs(t, s.path, "pe0").open(), joinAs(t, s.path, "pe1").open()
	a.setID(5)
	b.setID(6)
	a.route(5, 0)
	a.route(6, 1)
	return a, b
}

func (p *peer) openMailbox(mbox uint8, entries uint32) {
	p.t.Helper()
	p.mustCall(shm.Header{Kind: shm.KindMailbox, Mbox: mbox, Value: entries})
}

// TestTraffic: messages, doorbells, port-writes and configuration accesses from one node to another.
func TestTraffic(t *testing.T) {
	leakless(t)
	s, c := start(t, starTopology)
	a, b := pair(t, s)
	if _, st := a.call(shm.Header{Kind: shm.KindMessage, Peer: 6, Mbox: 1}, []byte("early")); st != rapidio.Error {
		t.Errorf("message to a closed mailbox: %v, want error", st)
	}
	b.openMailbox(1, 4)
	for i := range 20 {
		text := fmt.Sprintf("message %d", i)
		if _, st := a.call(shm.Header{Kind: shm.KindMessage, Peer: 6, Mbox: 1}, []byte(text)); st != rapidio.Done {
			t.Fatalf("message %d: %v", i, st)
		}
		if h, data := next(t, b.node.Mbox[1]); data != text || h.Peer != 5 {
			t.Fatalf("received %q from %d, want %q from 5", data, h.Peer, text)
		}
	}
	if _, st := a.call(shm.Header{Kind: shm.KindMessage, Peer: 77, Mbox: 1}, []byte("x")); st != rapidio.Error {
		t.Errorf("message to nobody: %v, want error", st)
	}
	if _, st := a.call(shm.Header{Kind: shm.KindDoorbell, Peer: 6, Info: 9}, nil); st != rapidio.Error {
		t.Errorf("doorbell to a node that takes none: %v, want error", st)
	}
	b.mustCall(shm.Header{Kind: shm.KindDoorbells, Value: 1})
	if _, st := a.call(shm.Header{Kind: shm.KindDoorbell, Peer: 6, Info: 9}, nil); st != rapidio.Done {
		t.Errorf("doorbell: %v", st)
	}
	if h, _ := next(t, b.node.Events); h.Kind != shm.KindDoorbell || h.Info != 9 || h.Peer != 5 {
		t.Errorf("received %+v, want doorbell 9 from 5", h)
	}
	a.send(shm.Header{Kind: shm.KindPortWrite, Peer: 6}, []byte("12345678"))
	if h, data := next(t, b.node.Events); h.Kind != shm.KindPortWrite || data != "12345678" {
		t.Errorf("received %+v %q, want a port-write", h, data)
	}
	if v := a.mustCall(shm.Header{Kind: shm.KindMaint, Peer: 6, Hop: 1, Off: uint32(rapidio.RegBaseDeviceID), Width: 4}); rapidio.Small.Of(v) != 6 {
		t.Errorf("Base Device ID of the other node = %#x, want 6", v)
	}
	before := b.node.Config()
	a.mustCall(shm.Header{Kind: shm.KindMaint, Peer: 6, Hop: 1, Off: uint32(rapidio.RegComponentTag), Width: 4, Write: true, Value: 0x55})
	eventually(t, "the node to be told that its registers were written", func() bool { return b.node.Config() != before })
	st, err := c.Stats(t.Context())
	if err != nil || st.Nodes[0].Counts.TxBytes == 0 || st.Nodes[1].DestID != 6 || !st.Nodes[1].Mailboxes[1] || st.Switches[0].Unrouted == 0 {
		t.Errorf("Stats = %+v, %v", st, err)
	}
}

// TestLinks: a link that fails, and a node that leaves, are seen by those at its ends.
func TestLinks(t *testing.T) {
	leakless(t)
	s, c := start(t, starTopology)
	a, b := pair(t, s)
	b.openMailbox(0, 4)
	up := func(p *peer) bool { up, _ := p.node.Link(); return up }
	if !up(a) || !up(b) {
		t.Fatal("links are down")
	}
	if err := c.SetLink(t.Context(), "pe1", "sw0:1", false); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the node to be told that its link is down", func() bool { return !up(b) })
	if _, st := a.call(shm.Header{Kind: shm.KindMessage, Peer: 6}, []byte("x")); st != rapidio.Error {
		t.Errorf("message over a link that is down: %v, want error", st)
	}
	if err := c.SetLink(t.Context(), "sw0:1", "pe1", true); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the node to be told that its link is up", func() bool { return up(b) })
	if _, st := a.call(shm.Header{Kind: shm.KindMessage, Peer: 6}, []byte("x")); st != rapidio.Done {
		t.Errorf("message over a link that is up again: %v", st)
	}
	oneLine(t, "SetLink of a link that is not", c.SetLink(t.Context(), "pe1", "pe0", true), "no link between", os.ErrNotExist)
}

// TestRestart: a node that begins anew on the same connection (another driver in the same VM) finds nothing of what was before.
func TestRestart(t *testing.T) {
	leakless(t)
	s, _ := start(t, starTopology)
	a, b := pair(t, s)
	b.openMailbox(0, 4)
	if _, st := a.call(shm.Header{Kind: shm.KindMessage, Peer: 6}, []byte("for the first")); st != rapidio.Done {
		t.Fatalf("message: %v", st)
	}
	b.open()
	if _, st := a.call(shm.Header{Kind: shm.KindMessage, Peer: 6}, []byte("x")); st != rapidio.Error {
		t.Errorf("message to a mailbox that the one before had open: %v, want error", st)
	}
	b.setID(6)
	b.openMailbox(0, 4)
	if _, st := a.call(shm.Header{Kind: shm.KindMessage, Peer: 6}, []byte("for the second")); st != rapidio.Done {
		t.Errorf("message: %v", st)
	}
	if _, data := next(t, b.node.Mbox[0]); data != "for the second" {
		t.Errorf("received %q", data)
	}
}

// TestStall: a node that takes nothing holds its senders once, and then no more until it takes something.
func TestStall(t *testing.T) {
	leakless(t)
	s, _ := start(t, starTopology)
	a, b := pair(t, s)
	c := joinAs(t, s.path, "pe2").open()
	b.openMailbox(0, 2)
	msg := shm.Header{Kind: shm.KindMessage, Peer: 6}
	a.call(msg, []byte("1"))
	a.call(msg, []byte("2"))
	begin := time.Now()
	tag := a.send(msg, []byte("3")) // held; meanwhile others are served
	c.read(rapidio.RegDeviceID)
	var h shm.Header
	eventually(t, "an answer", func() bool { _, ok := a.node.Answers.Next(&h); return ok })
	a.node.Answers.Release()
	if d := time.Since(begin); h.Status != rapidio.Retry || h.Tag != tag || d < holdWait {
		t.Errorf("message to a full mailbox: %v after %v, want retry after %v at the least", h.Status, d, holdWait)
	}
	if v := b.read(rapidio.RegMbox) >> 24; v&uint32(rapidio.MboxFull) == 0 {
		t.Errorf("Mailbox CSR of mailbox 0 = %#x, want full", v)
	}
	begin = time.Now()
	for range 1000 {
		if _, st := a.call(msg, []byte("4")); st != rapidio.Retry {
			t.Fatalf("message to a node that stalled: %v, want retry", st)
		}
	}
	if d := time.Since(begin); d > 1000*holdWait/2 {
		t.Errorf("1000 messages to a node that stalled took %v", d)
	}
	next(t, b.node.Mbox[0])
	if _, st := a.call(msg, []byte("5")); st != rapidio.Done {
		t.Errorf("message after it took one: %v", st)
	}
	if v := b.read(rapidio.RegMbox) >> 24; v&uint32(rapidio.MboxFull) != 0 {
		t.Errorf("Mailbox CSR of mailbox 0 = %#x, want not full", v)
	}
	// Held again, for as long as it is worth: if there is room in time it arrives.
	eventually(t, "a held message to arrive", func() bool {
		tag = a.send(msg, []byte("6"))
		next(t, b.node.Mbox[0])
		eventually(t, "an answer", func() bool { _, ok := a.node.Answers.Next(&h); return ok })
		a.node.Answers.Release()
		if h.Tag != tag {
			t.Fatalf("answer to %d, want %d", h.Tag, tag)
		}
		if h.Status == rapidio.Done {
			return true
		}
		a.call(msg, []byte("filling"))
		return false
	})
}

// TestPatience: what a destination is given depends on what it took.
func TestPatience(t *testing.T) {
	n := &node{patience: make(map[mailbox]time.Duration)}
	to := mailbox{6, 0}
	limit := func() time.Duration {
		if d, ok := n.patience[to]; ok {
			return d
		}
		return holdWait
	}
	for _, e := range []struct{ took, want time.Duration }{
		{0, holdWait}, {holdWait / 2, holdWait / 2}, {holdWait / 2, holdWait / 4}, {holdWait / 8, holdWait / 8}, {holdWait / 8, holdWait / 16},
		{holdWait, holdMin}, {holdWait, holdMin}, {0, 2 * holdMin}, {holdMin / 8, 4 * holdMin}, {0, 8 * holdMin}, {0, 16 * holdMin}, {0, holdWait}, {0, holdWait},
	} {
		before := limit()
		if n.learn(to, before, e.took); limit() != e.want {
			t.Errorf("patience %v after %v = %v, want %v", before, e.took, limit(), e.want)
		}
	}
	if len(n.patience) != 0 {
		t.Errorf("patience of a good destination is kept: %v", n.patience)
	}
}

// TestBroken: a node that breaks a ring's rules is ended, and may join again.
func TestBroken(t *testing.T) {
	leakless(t)
	s, c := start(t, starTopology)
	joined := func(i int) func() bool {
		return func() bool {
			f, err := c.Show(t.Context())
			return err == nil && f.Nodes[i].Joined
		}
	}
	gone := func(i int) func() bool { return func() bool { return !joined(i)() } }
	a, b := pair(t, s)
	a.send(shm.Header{Kind: 99}, nil)
	eventually(t, "a node that sends nonsense to be ended", gone(0))
	a = joinAs(t, s.path, "pe0").open()
	a.setID(5)
	// An index that cannot be: of the sending ring, wherever that is.
	for i := 0; i+4 <= 1<<20; i += 64 {
		if binary.LittleEndian.Uint32(a.mem[i:]) == a.tag && i >= 8192 {
			binary.LittleEndian.PutUint32(a.mem[i:], 1<<30)
		}
	}
	a.kick()
	eventually(t, "a node that breaks its sending ring to be ended", gone(0))
	joinAs(t, s.path, "pe0").open().read(rapidio.RegDeviceID)
	b.read(rapidio.RegDeviceID)
}

// TestScribble: a node that writes at random into all of its memory harms itself alone: for 5 s, or 60 with RING3_LONG.
func TestScribble(t *testing.T) {
	leakless(t)
	s, _ := start(t, starTopology)
	a, b := pair(t, s)
	b.openMailbox(0, 64)
	length := 5 * time.Second
	if os.Getenv("RING3_LONG") != "" {
		length = time.Minute
	}
	if testing.Short() {
		length = time.Second
	}
	child(t, "scribble", s.path, "pe2")
	buf := make([]byte, rapidio.MaxMessage)
	rng := rand.New(rand.NewPCG(1, 2))
	for end := time.Now().Add(length); time.Now().Before(end); {
		p := buf[:1+rng.IntN(len(buf))]
		for i := range p {
			p[i] = byte(rng.Uint32())
		}
		// The scribbler may send to anybody, also to us, and fill our mailbox.
		if _, st := a.call(shm.Header{Kind: shm.KindMessage, Peer: 6}, p); st != rapidio.Done {
			if st == rapidio.Retry {
				continue
			}
			t.Fatalf("message beside a scribbler: %v", st)
		}
		for {
			h, data := next(t, b.node.Mbox[0])
			if h.Peer == 5 {
				if !bytes.Equal([]byte(data), p) {
					t.Fatalf("message of %d bytes changed on its way", len(p))
				}
				break
			}
		}
	}
}
