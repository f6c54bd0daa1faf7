package fabricd

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/rionet/fabric"
	"github.com/ring3dev/ring3/rionet/rapidio"
	"github.com/ring3dev/ring3/rionet/shm"
)

// group is the endpoints whose nodes share one memory: those that trust links join, or a single one. Their memory is there while one of
// them has a node; who comes back before that begins anew in its part of it.
type group struct {
	ids     rapidio.IDSize
	members []shm.Member
	links   [][2]int // of members

	mu      sync.Mutex
	present int     // guarded by mu, as what follows
	nodes   []*node // by member; nil: gone
	plan    *shm.Plan
	fd      int
	mem     []byte
	daemons []*shm.Daemon
}

// announceWait is how long a node may take to make room for the news that another came or went.
const announceWait = time.Second

// groups finds who shares a memory with whom, by endpoint.
func groups(t *fabric.Topology, ids rapidio.IDSize) ([]*group, error) {
	of := make([]*group, len(t.Endpoints)) // by endpoint
	for i, e := range t.Endpoints {
		of[i] = &group{ids: ids, members: []shm.Member{{Peer: i + 1, Index: i, Name: e.Name}}, fd: -1}
	}
	for _, l := range t.Trusts() {
		a, b := of[l[0]], of[l[1]]
		if a == b {
			continue
		}
		a.members = append(a.members, b.members...)
		for _, m := range b.members {
			of[m.Index] = a
		}
	}
	for _, l := range t.Trusts() {
		g := of[l[0]]
		g.links = append(g.links, [2]int{g.member(l[0]), g.member(l[1])})
	}
	for i, g := range of {
		if g.nodes = make([]*node, len(g.members)); len(g.links) > 0 && g.members[0].Index == i {
			// Here rather than when somebody joins: the topology is wrong.
			if err := g.lay(); err != nil {
				return nil, fmt.Errorf("trust links of %s: %w", g.members[0].Name, err)
			}
		}
	}
	return of, nil
}

func (g *group) member(endpoint int) int {
	return slices.IndexFunc(g.members, func(m shm.Member) bool { return m.Index == endpoint })
}

func (g *group) lay() error {
	plan, err := shm.NewPlan(shm.Layout{}, g.ids, g.members, g.links)
	g.plan = plan
	return err
}

// enter gives a node its part of the memory.
func (g *group) enter(n *node) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.present == 0 {
		if err := g.make(); err != nil {
			return err
		}
	}
	g.present++
	n.d = g.daemons[g.member(n.index)]
	return nil
}

// make makes the memory.
func (g *group) make() error {
	if g.plan == nil {
		if err := g.lay(); err != nil {
			return err
		}
	}
	fd, mem, err := sharedMemory("ring3-fabric-"+g.members[0].Name, g.plan.Size())
	if err != nil {
		return err
	}
	g.fd, g.mem = fd, mem
	if g.daemons, err = g.plan.Format(mem); err != nil {
		g.drop()
	}
	return err
}

// drop gives the memory back.
func (g *group) drop() {
	unix.Close(g.fd)
	_ = unix.Munmap(g.mem)
	g.fd, g.mem, g.daemons = -1, nil, nil
}

// introduce does the handshake with a node that entered, and tells it and those that trust it of each other.
func (g *group) introduce(n *node) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	msgs := []ivmsg{{ivVersion, -1}, {int64(n.index + 1), -1}, {ivShmem, g.fd}, {ivDaemon, n.wakeFD}}
	friends := g.friends(n)
	for _, f := range friends {
		msgs = append(msgs, f.vectors()...)
	}
	if err := sendIV(n.conn, sendWait, append(msgs, n.vectors()...)...); err != nil {
		return err
	}
	for _, f := range friends {
		g.announce(f, n.vectors()...)
	}
	g.nodes[g.member(n.index)] = n
	return nil
}

// announce tells a node of another. One that does not listen is no node any more. mu is held.
func (g *group) announce(to *node, msgs ...ivmsg) {
	if err := sendIV(to.conn, announceWait, msgs...); err != nil {
		to.expel(fmt.Sprintf("it does not take news of those it trusts: %v", err))
	}
}

// friends are the nodes that n shares direct links with, and are there. mu is held.
func (g *group) friends(n *node) []*node {
	var out []*node
	me := g.member(n.index)
	for _, l := range g.links {
		for side, m := range l {
			if m == me && g.nodes[l[1-side]] != nil {
				out = append(out, g.nodes[l[1-side]])
			}
		}
	}
	return out
}

// leave takes a node out, whom nobody calls any more.
func (g *group) leave(n *node) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if me := g.member(n.index); g.nodes[me] == n {
		g.nodes[me] = nil
		for _, f := range g.friends(n) {
			g.announce(f, ivmsg{int64(n.index + 1), -1})
		}
		g.direct()
	}
	// For the next, whatever this one did to it.
	n.d.SetLink(false)
	n.d.Reset()
	g.plan.Mend(g.member(n.index), g.mem)
	if g.present--; g.present == 0 {
		g.drop()
	}
}

// renumber tells of the device IDs of nodes that changed.
func (g *group) renumber() {
	if len(g.links) == 0 {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.present > 0 {
		g.direct()
	}
}

// direct says which direct links are of use: those between two nodes with device IDs. mu is held.
func (g *group) direct() {
	for _, l := range g.links {
		a, b := g.nodes[l[0]], g.nodes[l[1]]
		up := a != nil && b != nil && a.destID() != g.ids.Any() && b.destID() != g.ids.Any()
		for side, m := range l {
			other := l[1-side]
			id := g.ids.Any()
			if o := g.nodes[other]; o != nil {
				id = o.destID()
			}
			g.daemons[m].SetDirect(g.members[other].Peer, id, up)
		}
	}
}
