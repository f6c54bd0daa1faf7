package rejoin

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/rionet/fabric"
	"github.com/ring3dev/ring3/rionet/rapidio"
)

// pair is a fabric of two endpoints, which have the IDs 0 and 1.
func pair(t *testing.T, ids string) *fabric.Fabric {
	t.Helper()
	topo, err := fabric.Parse("pair", []byte("ids: "+ids+"\nendpoints: [{name: a}, {name: b}]\nlinks: [[a, b]]\n"))
	if err != nil {
		t.Fatal(err)
	}
	return fabric.New(topo, fabric.Options{})
}

// ops is a master port in a fabric.
func ops(t *testing.T, f *fabric.Fabric, node string) *fabric.Mport {
	t.Helper()
	m, err := f.Mport(node)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// number gives a port its ID, as a host would.
func number(t *testing.T, o rapidio.Ops, id rapidio.DestID) {
	t.Helper()
	if err := o.LocalWrite(t.Context(), rapidio.RegBaseDeviceID, 4, o.Info().IDs.Reg(id)); err != nil {
		t.Fatal(err)
	}
}

// told are Events that are noted.
type told struct {
	mu    sync.Mutex
	links []bool
	bells []uint16
}

func (e *told) Doorbell(_ rapidio.DestID, info uint16) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.bells = append(e.bells, info)
}

func (e *told) Link(up bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.links = append(e.links, up)
}

func (e *told) PortWrite([]byte) {}
func (e *told) ConfigWritten()   {}

func (e *told) last(n int) []bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.links[max(0, len(e.links)-n):])
}

func (e *told) rang() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.bells)
}

// nobody hears nothing.
type nobody struct{}

func (nobody) Doorbell(rapidio.DestID, uint16) {}
func (nobody) PortWrite([]byte)                {}
func (nobody) ConfigWritten()                  {}
func (nobody) Link(bool)                       {}

// await waits for something that others do.
func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waiting until %s: it took more than 20s", what)
		}
	}
}

// send sends one message and returns its result.
func send(t *testing.T, out rapidio.Outbox, to rapidio.DestID, data string) rapidio.Status {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if n := out.Add([]rapidio.Message{{Peer: to, Data: []byte(data)}}); n != 1 {
		t.Fatalf("Add(%q) = %d, want 1", data, n)
	}
	var st [1]rapidio.Status
	for out.Results(st[:]) == 0 {
		if err := out.Wait(ctx); err != nil {
			t.Fatalf("Wait for the result of %q = %v", data, err)
		}
	}
	return st[0]
}

func TestRejoin(t *testing.T) {
	f := pair(t, "8")
	a := ops(t, f, "a")
	p, e := New(a, nil), &told{}
	p.Start(e)
	b := ops(t, f, "b")
	b.Start(nobody{})
	number(t, p, 0)
	number(t, b, 1)
	if err := p.OpenDoorbells(true); err != nil {
		t.Fatal(err)
	}
	in, err := p.OpenInbox(0, 16)
	if err != nil {
		t.Fatal(err)
	}
	out, err := p.OpenOutbox(0, 16)
	if err != nil {
		t.Fatal(err)
	}
	bin, err := b.OpenInbox(0, 16)
	if err != nil {
		t.Fatal(err)
	}
	if st := send(t, out, 1, "one"); st != rapidio.Done {
		t.Errorf("a message to b is %v, want %v", st, rapidio.Done)
	}

	// Somebody waits for messages while the fabric dies and comes back.
	got := make(chan error, 1)
	go func() { got <- in.Wait(t.Context()) }()
	_ = bin.Close()
	a.Close()
	p.Lose()
	if _, err := p.LocalRead(t.Context(), rapidio.RegBaseDeviceID, 4); !errors.Is(err, bus.ErrGone) {
		t.Errorf("LocalRead without a fabric = %v, want %v", err, bus.ErrGone)
	}
	if err := p.Doorbell(t.Context(), 1, 1); !errors.Is(err, bus.ErrGone) {
		t.Errorf("Doorbell without a fabric = %v, want %v", err, bus.ErrGone)
	}
	if st := send(t, out, 1, "lost"); st != rapidio.Error {
		t.Errorf("a message without a fabric is %v, want %v", st, rapidio.Error)
	}
	if n := out.Add(make([]rapidio.Message, 20)); n != 16 || out.InFlight() != 16 {
		t.Errorf("Add of 20 to a box of 16 without a fabric = %d, in flight %d, want 16, 16", n, out.InFlight())
	}
	if l := e.last(1); !slices.Equal(l, []bool{false}) {
		t.Errorf("told of links %v, want down last", l)
	}
	select {
	case <-p.Done():
		t.Errorf("the port is done: %v", p.Err())
	case err := <-got:
		t.Errorf("Wait for a message ended: %v", err)
	default:
	}

	f = pair(t, "8")
	b = ops(t, f, "b")
	b.Start(nobody{})
	if err := p.Join(ops(t, f, "a")); err != nil {
		t.Fatal(err)
	}
	await(t, "the link is up", func() bool { return slices.Equal(e.last(2), []bool{false, true}) })
	if v, err := p.LocalRead(t.Context(), rapidio.RegBaseDeviceID, 4); err != nil || rapidio.Small.Of(v) != rapidio.Small.Any() {
		t.Errorf("the ID after a new start = %#x, %v, want none", v, err)
	}
	number(t, p, 0)
	number(t, b, 1)
	if bin, err = b.OpenInbox(0, 16); err != nil {
		t.Fatal(err)
	}
	st := make([]rapidio.Status, 32)
	if n := out.Results(st); n != 16 || st[0] != rapidio.Error || st[15] != rapidio.Error {
		t.Errorf("Results of what was lost = %d, %v, want 16 errors", n, st[:n])
	}
	if st := send(t, out, 1, "two"); st != rapidio.Done {
		t.Errorf("a message after a new start is %v, want %v", st, rapidio.Done)
	}
	m := []rapidio.Message{{Data: make([]byte, 8)}}
	if n := bin.Get(m); n != 1 || string(m[0].Data) != "two" {
		t.Errorf("b got %d, %q, want 1, %q", n, m[0].Data, "two")
	}
	// Doorbells are let in as before, and who waited is woken.
	if err := b.Doorbell(t.Context(), 0, 7); err != nil {
		t.Errorf("Doorbell after a new start = %v", err)
	}
	await(t, "the doorbell rang", func() bool { return e.rang() == 1 })
	bout, err := b.OpenOutbox(0, 16)
	if err != nil {
		t.Fatal(err)
	}
	await(t, "the inbox is open", func() bool { return send(t, bout, 0, "hello") == rapidio.Done })
	if err := <-got; err != nil {
		t.Errorf("Wait for a message = %v", err)
	}
	m[0].Data = m[0].Data[:8]
	if n := in.Get(m); n != 1 || string(m[0].Data) != "hello" {
		t.Errorf("a got %d, %q, want 1, %q", n, m[0].Data, "hello")
	}
}

func TestJoinRefused(t *testing.T) {
	f := pair(t, "8")
	p := New(ops(t, f, "a"), nil)
	p.Start(&told{})
	p.Lose()
	if err := p.Join(ops(t, pair(t, "16"), "a")); !errors.Is(err, bus.ErrNotSupported) {
		t.Errorf("Join with other IDs = %v, want %v", err, bus.ErrNotSupported)
	}
	if err := p.Join(ops(t, pair(t, "8"), "a")); err != nil {
		t.Errorf("Join = %v", err)
	}
}

func TestClosed(t *testing.T) {
	notified := make(chan struct{}, 16)
	p := New(ops(t, pair(t, "8"), "a"), func() { notified <- struct{}{} })
	p.Start(nobody{})
	in, err := p.OpenInbox(0, 16)
	if err != nil {
		t.Fatal(err)
	}
	p.Lose()
	<-notified
	got := make(chan error, 1)
	go func() { got <- in.Wait(context.Background()) }()
	why := errors.New("a reason")
	p.Fail(why)
	if err := <-got; !errors.Is(err, why) {
		t.Errorf("Wait for a message of a port that failed = %v, want %v", err, why)
	}
	<-p.Done()
	if err := p.Close(); err != nil || !errors.Is(p.Err(), why) {
		t.Errorf("Close = %v, Err = %v, want the reason that was given first", err, p.Err())
	}
	if err := p.Join(ops(t, pair(t, "8"), "a")); !errors.Is(err, why) {
		t.Errorf("Join of a closed port = %v, want %v", err, why)
	}
	if _, err := p.OpenOutbox(0, 16); !errors.Is(err, why) {
		t.Errorf("OpenOutbox of a closed port = %v, want %v", err, why)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := in.Wait(ctx); err == nil {
		t.Error("Wait of a closed port = nil")
	}
}

// TestAllocs sends and receives without allocating.
func TestAllocs(t *testing.T) {
	f := pair(t, "8")
	p := New(ops(t, f, "a"), nil)
	p.Start(nobody{})
	b := ops(t, f, "b")
	b.Start(nobody{})
	number(t, p, 0)
	number(t, b, 1)
	out, err := p.OpenOutbox(0, 16)
	if err != nil {
		t.Fatal(err)
	}
	in, err := b.OpenInbox(0, 16)
	if err != nil {
		t.Fatal(err)
	}
	msgs, into := []rapidio.Message{{Peer: 1, Data: make([]byte, 64)}}, []rapidio.Message{{Data: make([]byte, 64)}}
	st := make([]rapidio.Status, 1)
	n := testing.AllocsPerRun(100, func() {
		out.Add(msgs)
		out.Results(st)
		into[0].Data = into[0].Data[:64]
		in.Get(into)
	})
	if n != 0 {
		t.Errorf("a message costs %v allocations, want 0", n)
	}
}
