package shm

import (
	"bytes"
	"context"
	"errors"
	"math/bits"
	"strings"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/rionet/rapidio"
)

var small = Layout{Tx: 16, Mbox: 16, Events: 8, Direct: 8}

// pairOf is a region, formatted, with its daemon and its node, which did not begin yet.
func pairOf(t testing.TB, l Layout, of func(testing.TB, []byte) Memory) (d *Daemon, n *Node, a []byte) {
	t.Helper()
	p, err := NewPlan(l, rapidio.Small, []Member{{Peer: 7, Index: 6, Name: "pe6"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	a, b := shared(t, p.Size())
	ds, err := p.Format(a)
	if err != nil {
		t.Fatal(err)
	}
	n, err = OpenNode(of(t, b), 7)
	if err != nil {
		t.Fatal(err)
	}
	return ds[0], n, a
}

// begin resets a node, whose daemon does what it must.
func begin(t testing.TB, d *Daemon, n *Node, vectors int) {
	t.Helper()
	kicked := 0
	err := n.Reset(t.Context(), vectors, func() {
		kicked++
		var h Header
		if _, ok := d.NextTx(&h); !ok || h.Kind != KindReset {
			return // it was done
		}
		d.Reset()
	})
	if err != nil || kicked == 0 {
		t.Fatalf("Reset = %v after %d kicks", err, kicked)
	}
}

func TestPlan(t *testing.T) {
	one := []Member{{Peer: 1, Name: "pe0"}}
	for _, x := range []struct {
		name    string
		l       Layout
		members []Member
		links   [][2]int
	}{
		{"nobody", Layout{}, nil, nil},
		{"peer 0, which is the daemon", Layout{}, []Member{{Name: "pe0"}}, nil},
		{"a long name", Layout{}, []Member{{Peer: 1, Name: strings.Repeat("x", 65)}}, nil},
		{"a link to itself", Layout{}, one, [][2]int{{0, 0}}},
		{"a link to nobody", Layout{}, one, [][2]int{{0, 1}}},
		{"no power of two", Layout{Mbox: 3}, one, nil},
		{"too many entries", Layout{Mbox: 2048}, one, nil},
		{"too many members", Layout{}, make([]Member, maxMembers+1), nil},
	} {
		if p, err := NewPlan(x.l, rapidio.Small, x.members, x.links); err == nil || p != nil && !errors.Is(err, bus.ErrNotSupported) && !errors.Is(err, bus.ErrProtocol) {
			t.Errorf("NewPlan of %s = %v, want an error", x.name, err)
		}
	}
	p, err := NewPlan(Layout{}, rapidio.Small, one, nil)
	if err != nil {
		t.Fatal(err)
	}
	if s := p.Size(); bits.OnesCount(uint(s)) != 1 || s != 32<<20 {
		t.Errorf("Size = %d, want 32 MiB: a BAR", s)
	}
	if _, err := p.Format(make([]byte, 4096)); err == nil {
		t.Error("Format of too little memory = nil")
	}
}

func TestNode(t *testing.T) {
	for _, m := range memories {
		t.Run(m.name, func(t *testing.T) {
			d, n, _ := pairOf(t, small, m.of)
			if n.Name != "pe6" || n.Index != 6 || n.IDs != rapidio.Small || n.MaxEntries() != 16 || d.MaxEntries() != 16 || d.Peer() != 7 {
				t.Fatalf("node = %+v, want what was planned", n)
			}
			begin(t, d, n, NumVectors)
			testSending(t, d, n)
			testAnswers(t, d, n)
			testMailbox(t, d, n)
			testEvents(t, d, n)
			// Another process begins, and finds nothing of this one.
			n.Tx.Put(&Header{Kind: KindDoorbell}, nil)
			n.Tx.Publish()
			d.PutDoorbell(1, 1)
			d.PutResult(1, rapidio.Done)
			d.SetMailbox(0, 4)
			d.PutMessage(0, 1, []byte{1})
			begin(t, d, n, NumVectors)
			if _, ok := d.NextTx(new(Header)); ok || n.Events.Ready() || n.Answers.Ready() || n.Mbox[0].Ready() || d.Flush() != 0 {
				t.Error("something is left after Reset")
			}
			if s := d.PutMessage(0, 1, []byte{1}); s != rapidio.Error {
				t.Errorf("PutMessage after Reset = %v, want error: the mailbox is closed", s)
			}
		})
	}
}

func testSending(t *testing.T, d *Daemon, n *Node) {
	t.Helper()
	h := Header{Kind: KindMessage, Mbox: 2, Peer: 9, Tag: 77}
	n.Tx.Put(&h, []byte("hello"))
	n.Tx.Put(&Header{Kind: KindMaint, Hop: 3, Width: 4, Write: true, Off: 0x68, Value: 5, Tag: 78}, nil)
	if d.ArmTx() {
		t.Error("ArmTx sees what was not published")
	}
	if !n.Tx.Publish() {
		t.Error("Publish does not wake a daemon that sleeps")
	}
	var got Header
	data, ok := d.NextTx(&got)
	if !ok || got.Kind != KindMessage || got.Mbox != 2 || got.Peer != 9 || got.Tag != 77 || string(data) != "hello" {
		t.Errorf("NextTx = %+v %q %v, want the message", got, data, ok)
	}
	if data, ok = d.NextTx(&got); !ok || got.Kind != KindMaint || got.Hop != 3 || !got.Write || len(data) != 0 {
		t.Errorf("NextTx = %+v %q %v, want the access", got, data, ok)
	}
	if _, ok = d.NextTx(&got); ok {
		t.Error("NextTx gives a third record")
	}
	// Room: the node waits for it, and is woken.
	for n.Tx.Put(&Header{Kind: KindDoorbell}, nil) {
	}
	n.Tx.Publish()
	if n.Tx.WantRoom() {
		t.Error("WantRoom of a full ring = true")
	}
	if d.ReleaseTx(); d.Flush() != 1<<VecAnswers {
		t.Error("a release does not wake who waits for room")
	}
	for _, ok := d.NextTx(&got); ok; _, ok = d.NextTx(&got) {
	}
	d.ReleaseTx()
	if v := d.Flush(); v != 0 {
		t.Errorf("Flush = %#x, want nobody woken twice", v)
	}
}

func testAnswers(t *testing.T, d *Daemon, n *Node) {
	t.Helper()
	if n.Answers.Arm() {
		t.Fatal("there is an answer")
	}
	for i := range uint32(10) {
		d.PutResult(100+i, rapidio.Done)
	}
	d.PutResult(110, rapidio.Retry)
	d.PutResult(200, rapidio.Retry)
	d.PutResponse(5, 0xabc, rapidio.Error)
	if v := d.Flush(); v != 1<<VecAnswers {
		t.Errorf("Flush = %#x, want the answers' vector", v)
	}
	want := []Header{
		{Kind: KindResponse, Tag: 5, Value: 0xabc, Status: rapidio.Error},
		{Kind: KindResult, Tag: 100, Len: 10, Status: rapidio.Done},
		{Kind: KindResult, Tag: 110, Len: 1, Status: rapidio.Retry},
		{Kind: KindResult, Tag: 200, Len: 1, Status: rapidio.Retry},
	}
	for i := 0; ; i++ {
		var h Header
		_, ok := n.Answers.Next(&h)
		if !ok {
			if i != len(want) {
				t.Errorf("%d answers, want %d", i, len(want))
			}
			break
		}
		h.slot = 0
		found := false
		for _, w := range want {
			found = found || w == h
		}
		if !found {
			t.Errorf("answer %+v, want one of %+v", h, want)
		}
	}
	n.Answers.Release()
}

func testMailbox(t *testing.T, d *Daemon, n *Node) {
	t.Helper()
	put := func(b byte) rapidio.Status { return d.PutMessage(1, 3, []byte{b}) }
	if s := put(0); s != rapidio.Error {
		t.Errorf("PutMessage to a closed mailbox = %v, want error", s)
	}
	d.SetMailbox(1, 4)
	for i := range byte(4) {
		if f := d.Free(1); f != 4-int(i) {
			t.Errorf("Free = %d, want %d", f, 4-i)
		}
		if s := put(i); s != rapidio.Done {
			t.Errorf("PutMessage %d = %v, want done", i, s)
		}
	}
	if s := put(4); s != rapidio.Retry {
		t.Errorf("PutMessage to a full mailbox = %v, want retry", s)
	}
	d.Flush()
	for i := range byte(4) {
		var h Header
		data, ok := n.Mbox[1].Next(&h)
		if !ok || h.Peer != 3 || !bytes.Equal(data, []byte{i}) {
			t.Errorf("message %d = %+v % x %v", i, h, data, ok)
		}
	}
	if s := put(4); s != rapidio.Retry {
		t.Errorf("PutMessage before Release = %v, want retry", s)
	}
	n.Mbox[1].Release()
	if s := put(5); s != rapidio.Done {
		t.Errorf("PutMessage after Release = %v, want done", s)
	}
	// What a closed mailbox had is dropped.
	d.SetMailbox(1, 0)
	n.Mbox[1].Drop()
	d.SetMailbox(1, 4)
	d.Flush()
	if n.Mbox[1].Ready() || d.Free(1) != 4 {
		t.Error("a mailbox that was opened again has a message")
	}
	for _, bad := range [][]byte{nil, make([]byte, rapidio.MaxMessage+1)} {
		if s := d.PutMessage(1, 3, bad); s != rapidio.Error {
			t.Errorf("PutMessage of %d bytes = %v, want error", len(bad), s)
		}
	}
	if s := d.PutMessage(4, 3, []byte{1}); s != rapidio.Error {
		t.Errorf("PutMessage to mailbox 4 = %v, want error", s)
	}
	testBurst(t, d, n)
	d.SetMailbox(1, 0)
}

// testBurst delivers several messages at once to mailbox 1, which is open with 4 entries.
func testBurst(t *testing.T, d *Daemon, n *Node) {
	t.Helper()
	put := func(want int, status rapidio.Status, data ...[]byte) {
		t.Helper()
		if k, s := d.PutMessages(1, 3, data); k != want || s != status {
			t.Errorf("PutMessages of %d = %d, %v, want %d, %v", len(data), k, s, want, status)
		}
	}
	long := make([]byte, rapidio.MaxMessage+1)
	put(2, rapidio.Done, []byte{0}, []byte{1, 1}, nil, []byte{9})
	put(1, rapidio.Error, nil, []byte{9})
	put(1, rapidio.Error, long)
	put(2, rapidio.Done, []byte{2}, []byte{3}, []byte{9})
	put(1, rapidio.Retry, []byte{9}, []byte{9})
	d.Flush()
	for i := range byte(4) {
		var h Header
		if data, ok := n.Mbox[1].Next(&h); !ok || h.Peer != 3 || len(data) == 0 || data[0] != i {
			t.Errorf("message %d of a burst = %+v % x %v", i, h, data, ok)
		}
	}
	n.Mbox[1].Release()
	if k, s := d.PutMessages(4, 3, [][]byte{{1}, {2}}); k != 2 || s != rapidio.Error {
		t.Errorf("PutMessages to mailbox 4 = %d, %v, want 2, error", k, s)
	}
}

func testEvents(t *testing.T, d *Daemon, n *Node) {
	t.Helper()
	if n.Events.Arm() {
		t.Fatal("there is an event")
	}
	d.PutDoorbell(4, 0x1000)
	d.PutPortWrite([]byte("0123456789abcdef"))
	if v := d.Flush(); v != 1<<VecEvents {
		t.Errorf("Flush = %#x, want the events' vector", v)
	}
	var h Header
	if _, ok := n.Events.Next(&h); !ok || h.Kind != KindDoorbell || h.Peer != 4 || h.Info != 0x1000 {
		t.Errorf("event = %+v %v, want the doorbell", h, ok)
	}
	if p, ok := n.Events.Next(&h); !ok || h.Kind != KindPortWrite || string(p) != "0123456789abcdef" {
		t.Errorf("event = %+v %q %v, want the port-write", h, p, ok)
	}
	for range 8 {
		d.PutDoorbell(4, 1)
	}
	if s := d.PutDoorbell(4, 1); s != rapidio.Retry {
		t.Errorf("PutDoorbell with no room = %v, want retry", s)
	}
	if s := d.PutPortWrite([]byte("0123")); s != rapidio.Retry {
		t.Errorf("PutPortWrite with no room = %v, want retry", s)
	}
	d.Flush()
	for n.Events.Ready() {
		n.Events.Next(&h)
	}
	n.Events.Release()
	// States, which wake whether or not anybody sleeps.
	up, count := n.Link()
	conf := n.Config()
	if up || !d.SetLink(true) || d.SetLink(true) {
		t.Error("a link that was never set is up, or is set twice")
	}
	d.ConfigWritten()
	if v := d.Flush(); v != 1<<VecEvents {
		t.Errorf("Flush after SetLink = %#x, want vector 0", v)
	}
	if u, c := n.Link(); !u || c == count || n.Config() != conf+1 {
		t.Errorf("Link = %v, %d, Config = %d, want it up and both counted", u, c, n.Config())
	}
	d.SetLink(false)
	d.Flush()
}

// A node that serves fewer vectors is woken at 0 for the rest.
func TestFewVectors(t *testing.T) {
	for n, want := range map[int]uint32{1: 1, 2: 1 | 1<<VecMbox, 6: 1 << VecAnswers, 0: 1 << VecAnswers} {
		d, node, _ := pairOf(t, small, memories[0].of)
		begin(t, d, node, n)
		node.Answers.Arm()
		node.Mbox[0].Arm()
		d.PutResult(1, rapidio.Done)
		if n == 2 {
			d.SetMailbox(0, 2)
			d.PutMessage(0, 1, []byte{1})
		}
		if v := d.Flush(); v != want {
			t.Errorf("Flush for a node of %d vectors = %#x, want %#x", n, v, want)
		}
	}
}

// A node that takes no answers sends nothing more, until it does.
func TestStalled(t *testing.T) {
	d, n, _ := pairOf(t, small, memories[0].of)
	begin(t, d, n, NumVectors)
	sent := uint32(0)
	for range answers {
		for n.Tx.Put(&Header{Kind: KindLocal, Tag: sent}, nil) {
			sent++
		}
		n.Tx.Publish()
		var h Header
		for _, ok := d.NextTx(&h); ok; _, ok = d.NextTx(&h) {
			d.PutResponse(h.Tag, 0, rapidio.Done)
		}
		d.ReleaseTx()
		d.Flush()
	}
	if d.Lost() != 0 || d.Err() != nil {
		t.Fatalf("%d answers lost (%v), want the node stalled before", d.Lost(), d.Err())
	}
	if d.ArmTx() {
		t.Error("ArmTx of a stalled node says there is more")
	}
	var h Header
	got := uint32(0)
	for _, ok := n.Answers.Next(&h); ok; _, ok = n.Answers.Next(&h) {
		if h.Tag != got {
			t.Fatalf("answer %d has tag %d", got, h.Tag)
		}
		got++
	}
	if !n.Answers.Release() {
		t.Error("Release of answers does not wake the daemon that waits for room")
	}
	if _, ok := d.NextTx(&h); !ok || h.Tag != got {
		t.Errorf("NextTx = %+v, %v, want request %d", h, ok, got)
	}
}

func TestOpenNodeRefuses(t *testing.T) {
	for _, x := range []struct {
		name string
		at   int // of the memory; the region begins at pageSize
		v    uint32
		want error
	}{
		{"no magic", dirMagic, 1, ErrNoFabric},
		{"another version", dirVersion, 9, ErrNoFabric},
		{"no region", dirFirst, 1, ErrNoFabric},
		{"a region outside", dirFirst + 4, 1 << 30, ErrNoFabric},
		{"a region not on a page", dirFirst + 4, 64, ErrNoFabric},
		{"no region there", dirFirst + 4, 2 * pageSize, ErrNoFabric},
		{"IDs of 9 bits", pageSize + hdrIDs, 9, bus.ErrProtocol},
		{"a long name", pageSize + hdrName, 65, bus.ErrProtocol},
		{"a ring outside", pageSize + hdrRings, 1 << 31, bus.ErrProtocol},
		{"a ring of 3", pageSize + hdrRings + 4, 3, bus.ErrProtocol},
		{"a ring of too many", pageSize + hdrRings + 4, 1 << 31, bus.ErrProtocol},
		{"a ring of large records", pageSize + hdrRings + 8, 8192, bus.ErrProtocol},
		{"a ring not on a line", pageSize + hdrRings, 8, bus.ErrProtocol},
		{"a direct link to nobody", pageSize + hdrDirect, 1, bus.ErrProtocol},
	} {
		p, err := NewPlan(small, rapidio.Small, []Member{{Peer: 7}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		a, b := shared(t, p.Size())
		if _, err := p.Format(a); err != nil {
			t.Fatal(err)
		}
		Mapped(a).Store32(x.at, x.v)
		if n, err := OpenNode(Mapped(b), 7); !errors.Is(err, x.want) {
			t.Errorf("OpenNode of memory with %s = %v, %v, want %v", x.name, n, err, x.want)
		}
	}
	if _, err := OpenNode(Mapped(make([]byte, 64)), 7); !errors.Is(err, ErrNoFabric) {
		t.Errorf("OpenNode of 64 bytes = %v, want ErrNoFabric", err)
	}
	// A daemon that is not there.
	_, n, _ := pairOf(t, small, memories[0].of)
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := n.Reset(ctx, 1, func() {}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Reset without a daemon = %v, want the time-out", err)
	}
}
