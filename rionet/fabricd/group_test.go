package fabricd

import (
	"bytes"
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/rionet/fabric"
	"github.com/ring3dev/ring3/rionet/rapidio"
	"github.com/ring3dev/ring3/rionet/shm"
)

const trustTopology = `
switches: [{name: sw0, ports: 4}]
endpoints: [{name: pe0}, {name: pe1}, {name: pe2}, {name: pe3}]
links: [[pe0, "sw0:0"], [pe1, "sw0:1"], [pe2, "sw0:2"], [pe3, "sw0:3"], {ends: [pe0, pe1], trust: true}, {ends: [pe2, pe1], trust: true}]
`

// TestGroups: who shares a memory with whom.
func TestGroups(t *testing.T) {
	topo, err := fabric.Parse("t", []byte(`
endpoints: [{name: a}, {name: b}, {name: c}, {name: d}, {name: e}, {name: f}]
links:
  - {ends: [b, a], trust: true}
  - {ends: [c, d], trust: true}
  - {ends: [d, a], trust: true}
  - {ends: [e, f], trust: true}
`))
	if err != nil {
		t.Fatal(err)
	}
	of, err := groups(topo, rapidio.Small)
	if err != nil {
		t.Fatal(err)
	}
	if of[0] != of[1] || of[0] != of[2] || of[0] != of[3] || of[4] != of[5] || of[0] == of[4] {
		t.Errorf("groups are %v", of)
	}
	if len(of[0].members) != 4 || len(of[0].links) != 3 || len(of[0].nodes) != 4 || len(of[4].members) != 2 || len(of[4].links) != 1 {
		t.Errorf("groups are %+v and %+v", of[0], of[4])
	}
	for _, l := range of[0].links {
		a, b := of[0].members[l[0]].Name, of[0].members[l[1]].Name
		if p := min(a, b) + max(a, b); p != "ab" && p != "cd" && p != "ad" {
			t.Errorf("link of %s and %s", a, b)
		}
	}
}

// TestTrust: nodes that trust each other share a memory, learn of each other, and send messages without the daemon.
func TestTrust(t *testing.T) {
	leakless(t)
	s, _ := start(t, trustTopology)
	a := joinAs(t, s.path, "pe0").open()
	if len(a.peers) != 0 {
		t.Errorf("the first of a group was told of %v", a.peers)
	}
	b := joinAs(t, s.path, "pe1").open()
	if len(b.peers[1]) != shm.NumVectors || len(b.peers) != 1 {
		t.Errorf("the second of a group was told of %v, want %d vectors of node 1", b.peers, shm.NumVectors)
	}
	for range shm.NumVectors {
		if v, fd, err := a.recv(); v != 2 || fd < 0 || err != nil {
			t.Fatalf("the first was told %d, %d, %v, want node 2 with an eventfd", v, fd, err)
		}
	}
	if c := joinAs(t, s.path, "pe2"); len(c.peers[2]) != shm.NumVectors || len(c.peers) != 1 {
		t.Errorf("the third of a group was told of %v, want node 2, which trusts it, alone", c.peers)
	}
	if d := joinAs(t, s.path, "pe3").open(); len(d.peers) != 0 || len(d.node.Direct) != 0 {
		t.Errorf("who trusts nobody was told of %v, and has %d direct links", d.peers, len(d.node.Direct))
	}
	to, from := a.node.Direct[0], b.node.Direct[0]
	if len(a.node.Direct) != 1 || to.Peer != 2 || from.Peer != 1 {
		t.Fatalf("direct links to %d and %d", to.Peer, from.Peer)
	}
	if _, ok := to.Dest(); ok {
		t.Error("a direct link is usable before its ends have IDs")
	}
	a.setID(5)
	b.setID(6)
	eventually(t, "the direct link to be usable", func() bool { id, ok := to.Dest(); return ok && id == 6 })
	from.Open(2, 8)
	if n := to.Out[2].Limit(); n != 8 {
		t.Errorf("a direct mailbox takes %d messages, want 8", n)
	}
	from.In[2].Arm()
	if !to.Out[2].Put(&shm.Header{Kind: shm.KindMessage, Peer: 6, Mbox: 2}, []byte("straight")) || !to.Out[2].Publish() {
		t.Fatal("no message by the direct link")
	}
	// It rings the other's vector itself.
	signal(a.fds[len(a.fds)-shm.NumVectors+2]) // of those that it received last
	fds := []unix.PollFd{{Fd: int32(b.own[2]), Events: unix.POLLIN}}
	if k, err := unix.Poll(fds, int(patience.Milliseconds())); k != 1 || err != nil {
		t.Errorf("the other was not signalled: %d, %v", k, err)
	}
	if _, data := next(t, from.In[2]); data != "straight" {
		t.Errorf("received %q", data)
	}
	// One goes, and comes back while the memory is still in use, which it left in a mess.
	region := 0
	for at := 0x10; at < 4096; at += 8 { // the directory
		if binary.LittleEndian.Uint32(b.mem[at:]) == uint32(b.id) {
			region = int(binary.LittleEndian.Uint32(b.mem[at+4:]))
		}
	}
	for _, page := range []int{0, region} {
		copy(b.mem[page:page+4096], bytes.Repeat([]byte{0xa5}, 4096))
	}
	b.close()
	if v, fd, err := a.recv(); v != 2 || fd >= 0 || err != nil {
		t.Errorf("after it left: %d, %d, %v, want its ID", v, fd, err)
	}
	eventually(t, "the direct link to be of no use", func() bool { _, ok := to.Dest(); return !ok })
	eventually(t, "the direct mailbox of a node that is gone to take no messages", func() bool { return to.Out[2].Limit() == 0 })
	b = joinAs(t, s.path, "pe1").open()
	b.setID(7)
	eventually(t, "the direct link to be usable again", func() bool { id, ok := to.Dest(); return ok && id == 7 })
}
