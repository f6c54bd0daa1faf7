package fabric

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/ring3dev/ring3/rionet/rapidio"
)

// newFabric parses a topology and makes it.
func newFabric(t testing.TB, yaml string) *Fabric {
	t.Helper()
	topo, err := Parse("test.yaml", []byte(yaml))
	if err != nil {
		t.Fatal(err)
	}
	return New(topo, Options{})
}

// star is a switch with so many endpoints.
func star(n int, more string) string {
	s := fmt.Sprintf("switches: [{name: sw0, ports: %d}]\nendpoints:\n", n)
	for i := range n {
		s += fmt.Sprintf("- {name: pe%d}\n", i)
	}
	s += "links:\n"
	for i := range n {
		s += fmt.Sprintf("- {ends: [pe%d, 'sw0:%d'] %s}\n", i, i, more)
	}
	return s
}

// testPort is a master port in a test, whose accesses may not fail.
type testPort struct {
	*Mport
	t testing.TB
}

func attach(t testing.TB, f *Fabric, node string) testPort {
	t.Helper()
	m, err := f.Mport(node)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return testPort{m, t}
}

func (p testPort) read(dest rapidio.DestID, hop uint8, off rapidio.Off) uint32 {
	p.t.Helper()
	v, err := p.Read(context.Background(), dest, hop, off, 4)
	if err != nil {
		p.t.Fatal(err)
	}
	return v
}

func (p testPort) write(dest rapidio.DestID, hop uint8, off rapidio.Off, v uint32) {
	p.t.Helper()
	if err := p.Write(context.Background(), dest, hop, off, 4, v); err != nil {
		p.t.Fatal(err)
	}
}

func (p testPort) local(off rapidio.Off) uint32 {
	p.t.Helper()
	v, err := p.LocalRead(context.Background(), off, 4)
	if err != nil {
		p.t.Fatal(err)
	}
	return v
}

func (p testPort) setLocal(off rapidio.Off, v uint32) {
	p.t.Helper()
	if err := p.LocalWrite(context.Background(), off, 4, v); err != nil {
		p.t.Fatal(err)
	}
}

func (p testPort) setID(id rapidio.DestID) {
	p.t.Helper()
	p.setLocal(rapidio.RegBaseDeviceID, p.f.ids.Reg(id))
}

func (p testPort) outbox(entries int) rapidio.Outbox {
	p.t.Helper()
	b, err := p.OpenOutbox(0, entries)
	if err != nil {
		p.t.Fatal(err)
	}
	return b
}

func (p testPort) inbox(entries int) rapidio.Inbox {
	p.t.Helper()
	b, err := p.OpenInbox(0, entries)
	if err != nil {
		p.t.Fatal(err)
	}
	return b
}

// send sends one message and returns its status.
func send(t testing.TB, b rapidio.Outbox, dest rapidio.DestID, data []byte) rapidio.Status {
	t.Helper()
	if n := b.Add([]rapidio.Message{{Peer: dest, Data: data}}); n != 1 {
		t.Fatalf("Add of one message = %d", n)
	}
	return result1(t, b)
}

func result1(t testing.TB, b rapidio.Outbox) rapidio.Status {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := b.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	var st [1]rapidio.Status
	if n := b.Results(st[:]); n != 1 {
		t.Fatalf("Results = %d, want 1", n)
	}
	return st[0]
}

// receive takes one message that is there, or waits for it.
func receive(t testing.TB, b rapidio.Inbox) (rapidio.DestID, []byte) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := b.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	msgs := []rapidio.Message{{Data: make([]byte, rapidio.MaxMessage)}}
	if n := b.Get(msgs); n != 1 {
		t.Fatalf("Get = %d, want 1", n)
	}
	return msgs[0].Peer, msgs[0].Data
}

// starred is a star whose endpoints all have a master port, and the ID of their number, to which the switch routes.
func starred(t testing.TB, n int, more string) (*Fabric, []testPort) {
	t.Helper()
	f := newFabric(t, star(n, more))
	var ports []testPort
	for i := range n {
		p := attach(t, f, fmt.Sprintf("pe%d", i))
		p.setID(rapidio.DestID(i))
		ports = append(ports, p)
	}
	for i := range n {
		ports[0].write(0xff, 0, rapidio.RegRouteDestID, uint32(i))
		ports[0].write(0xff, 0, rapidio.RegRoutePort, uint32(i))
	}
	return f, ports
}

func TestMessage(t *testing.T) {
	_, ports := starred(t, 2, "")
	out, in := ports[0].outbox(4), ports[1].inbox(2)
	for i := range 5 {
		if st := send(t, out, 1, []byte{byte(i), 1, 2}); st != rapidio.Done {
			t.Fatalf("message %d: %v, want done", i, st)
		}
		if src, data := receive(t, in); src != 0 || len(data) != 3 || data[0] != byte(i) {
			t.Errorf("message %d came from %d as % x", i, src, data)
		}
	}
	send(t, out, 1, []byte{1})
	send(t, out, 1, []byte{2})
	if st := send(t, out, 1, []byte{3}); st != rapidio.Retry {
		t.Errorf("message to a full mailbox: %v, want retry", st)
	}
	if st := send(t, out, 0, []byte{3}); st != rapidio.Error {
		t.Errorf("message to a closed mailbox: %v, want error", st)
	}
	if st := send(t, out, 7, []byte{3}); st != rapidio.Error {
		t.Errorf("message to nobody: %v, want error", st)
	}
}
