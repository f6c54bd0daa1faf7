package shm

import (
	"runtime"
	"testing"

	"github.com/ring3dev/ring3/rionet/rapidio"
)

func TestDirect(t *testing.T) {
	members := []Member{{Peer: 1, Name: "pe0"}, {Peer: 3, Name: "pe2"}, {Peer: 4, Name: "pe3"}}
	p, err := NewPlan(small, rapidio.Large, members, [][2]int{{0, 1}, {2, 0}})
	if err != nil {
		t.Fatal(err)
	}
	a, b := shared(t, p.Size())
	ds, err := p.Format(a)
	if err != nil {
		t.Fatal(err)
	}
	var ns []*Node
	for i, m := range members {
		n, err := OpenNode(Mapped(b), m.Peer)
		if err != nil {
			t.Fatal(err)
		}
		begin(t, ds[i], n, NumVectors)
		ns = append(ns, n)
	}
	if len(ns[0].Direct) != 2 || len(ns[1].Direct) != 1 || ns[0].Direct[0].Peer != 3 || ns[0].Direct[1].Peer != 4 || ns[1].Direct[0].Peer != 1 {
		t.Fatal("the nodes do not have the links that were planned")
	}
	for i, k := range []int{1, 2} {
		testDirect(t, ds[0], ds[k], ns[0].Direct[i], ns[k].Direct[0])
		testDirect(t, ds[k], ds[0], ns[k].Direct[0], ns[0].Direct[i])
	}
	runtime.KeepAlive(a)
}

func testDirect(t *testing.T, from, to *Daemon, out, in *Direct) {
	t.Helper()
	if _, ok := out.Dest(); ok {
		t.Error("a link is usable before anybody said so")
	}
	from.SetDirect(to.Peer(), 0x1234, true)
	if id, ok := out.Dest(); !ok || id != 0x1234 {
		t.Errorf("Dest = %#x, %v, want 0x1234", id, ok)
	}
	p, c := out.Out[3], in.In[3]
	if n := p.Limit(); n != 0 || p.Put(&Header{}, []byte{1}) {
		t.Errorf("Limit of a closed mailbox = %d, or a message goes in", n)
	}
	in.Open(3, 2)
	if n := p.Limit(); n != 2 || !p.Put(&Header{}, []byte{1}) || !p.Put(&Header{}, []byte{2}) || p.Put(&Header{}, []byte{3}) {
		t.Errorf("Limit of a mailbox of 2 entries = %d, or it takes more or less", n)
	}
	p.Publish()
	if d, ok := c.Next(new(Header)); !ok || d[0] != 1 {
		t.Errorf("Next = % x, %v, want the first message", d, ok)
	}
	// The node goes, another comes.
	if to.Leave(); p.Limit() != 0 {
		t.Error("a node that is gone has its mailbox open")
	}
	from.SetDirect(to.Peer(), 0, false)
	c.Drop()
	in.Open(3, 2)
	if p.Limit(); !p.Put(&Header{}, []byte{4}) || p.Err() != nil {
		t.Errorf("Put after the mailbox was opened again = false (%v)", p.Err())
	}
	p.Publish()
	if d, ok := c.Next(new(Header)); !ok || d[0] != 4 {
		t.Errorf("Next = % x, %v, want the message put last", d, ok)
	}
	c.Release()
	in.Open(3, 0)
}
