package fabricd

import (
	"os"
	"time"

	"github.com/ring3dev/ring3/rionet/fabric"
	"github.com/ring3dev/ring3/rionet/rapidio"
)

// Fabric is a fabric, as its daemon shows it.
type Fabric struct {
	PID     int            `json:"pid"` // of the daemon
	Socket  string         `json:"socket"`
	Started time.Time      `json:"started"`
	IDs     rapidio.IDSize `json:"ids"`
	Nodes   []Node         `json:"nodes"` // the endpoints, in the order of the topology, as what follows

	Switches []fabric.SwitchStats `json:"switches"`
	Links    []fabric.LinkStats   `json:"links"`
	Trusts   [][2]string          `json:"trusts"` // endpoints that share memory
}

// Node is an endpoint, and who joined as it.
type Node struct {
	fabric.NodeStats
	Joined bool      `json:"joined"`
	PID    int       `json:"pid,omitempty"`  // 0: unknown
	QEMU   bool      `json:"qemu,omitempty"` // by the endpoint's own socket
	Since  time.Time `json:"since,omitzero"`
}

// Stats are the counters of a fabric.
type Stats struct {
	Nodes    []Node               `json:"nodes"`
	Switches []fabric.SwitchStats `json:"switches"` // without their routes
	Links    []fabric.LinkStats   `json:"links"`
}

func (s *Server) show() *Fabric {
	f := &Fabric{PID: os.Getpid(), Socket: s.path, Started: s.started, IDs: idSize(s.topo), Nodes: s.listNodes(),
		Switches: s.fab.Switches(), Links: s.fab.Links(), Trusts: [][2]string{}}
	for _, t := range s.topo.Trusts() {
		f.Trusts = append(f.Trusts, [2]string{s.topo.Endpoints[t[0]].Name, s.topo.Endpoints[t[1]].Name})
	}
	return f
}

func (s *Server) listNodes() []Node {
	all := s.fab.Nodes()
	out := make([]Node, len(all))
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range all {
		out[i].NodeStats = all[i]
		if n := s.nodes[i]; n != nil && !n.ended() {
			out[i].Joined, out[i].PID, out[i].QEMU, out[i].Since = true, n.pid, n.qemu, n.since
		}
	}
	return out
}

func (s *Server) stats() *Stats {
	st := &Stats{Nodes: s.listNodes(), Switches: s.fab.Switches(), Links: s.fab.Links()}
	for i := range st.Switches {
		st.Switches[i].Routes = nil
	}
	return st
}

// listWindows lists the memory windows of the nodes that are there.
func (s *Server) listWindows() []Window {
	out := []Window{}
	now := s.fab.Nodes() // workers learn of new IDs later
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.nodes {
		if n == nil || n.ended() || !n.ready.Load() {
			continue
		}
		for _, w := range n.wins {
			x := w.Window
			x.DestID = now[n.index].DestID
			out = append(out, x)
		}
	}
	return out
}

// setLink makes a link work or fail.
func (s *Server) setLink(a, b string, up bool) error {
	if err := s.fab.SetLink(a, b, up); err != nil {
		return &Error{Code: codeUnknown, Msg: err.Error()}
	}
	s.log.Info("fabric: link set by a client", "from", a, "to", b, "up", up)
	return nil
}

// linkChanged tells of a link that went up or down, for whatever reason: fabric.Options.LinkChanged.
func (s *Server) linkChanged(ends [2]string, up bool) {
	what := EventLinkDown
	if up {
		what = EventLinkUp
	}
	s.tell(Event{What: what, Ends: ends[:]})
}
