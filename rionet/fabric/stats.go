package fabric

import (
	"cmp"
	"slices"
	"time"

	"github.com/ring3dev/ring3/rionet/rapidio"
)

// PortCounts are what a port counted: packets of any kind, the bytes of the messages in them, and what went wrong.
type PortCounts struct {
	TxPackets uint64 `json:"tx_packets"`
	TxBytes   uint64 `json:"tx_bytes"`
	RxPackets uint64 `json:"rx_packets"`
	RxBytes   uint64 `json:"rx_bytes"`
	Lost      uint64 `json:"lost"`    // sent, and lost on the link
	Errors    uint64 `json:"errors"`  // of a switch: could not be sent; of an endpoint: had an error response, or none
	Retries   uint64 `json:"retries"` // of an endpoint: had a retry response
}

// LinkStats is a link and what passed it. Counts are by end.
type LinkStats struct {
	Ends   [2]string     `json:"ends"`
	Up     bool          `json:"up"`
	Failed bool          `json:"failed,omitempty"` // by SetLink
	Width  int           `json:"width"`
	Rate   int64         `json:"rate,omitempty"`     // bits a second; 0: no limit
	Delay  time.Duration `json:"delay_ns,omitempty"` // nanoseconds
	Loss   float64       `json:"loss,omitempty"`
	Counts [2]PortCounts `json:"counts"`
}

// NodeStats is an endpoint.
type NodeStats struct {
	Name      string         `json:"name"`
	Index     int            `json:"index"`
	Attached  bool           `json:"attached"`
	Up        bool           `json:"up"`             // its link
	Peer      string         `json:"peer,omitempty"` // the other end of it
	DestID    rapidio.DestID `json:"destid"`         // all ones: none
	Tag       uint32         `json:"tag"`
	Mailboxes [4]bool        `json:"mailboxes"` // open
	Doorbells bool           `json:"doorbells"` // open
	WrongID   uint64         `json:"wrong_id"`  // packets for another ID that came in
	Counts    PortCounts     `json:"counts"`
}

// SwitchStats is a switch.
type SwitchStats struct {
	Name     string        `json:"name"`
	Kind     string        `json:"kind"`
	Tag      uint32        `json:"tag"`
	Unrouted uint64        `json:"unrouted"` // packets lost: no route
	Looped   uint64        `json:"looped"`   // packets lost: in a circle
	Ports    []SwitchPort  `json:"ports"`
	Routes   []SwitchRoute `json:"routes"`
}

// SwitchPort is a port of a switch.
type SwitchPort struct {
	Port   int        `json:"port"`
	Peer   string     `json:"peer,omitempty"` // the other end of its link; "": it has none
	Up     bool       `json:"up"`
	Counts PortCounts `json:"counts"`
}

// SwitchRoute is an entry of a routing table. Of a switch whose ports have tables of their own it is what the table of port 0 has.
type SwitchRoute struct {
	Dest rapidio.DestID `json:"dest"`
	Port uint8          `json:"port"`
}

// fold brings the counts of all ports up to date. The caller holds f.mu.
func (f *Fabric) fold() {
	for _, d := range f.endpoints {
		if p := d.node.Load(); p != nil {
			for t := range p.paths {
				t.fold()
			}
		}
	}
}

func (p *port) stats() PortCounts {
	c := &p.count
	return PortCounts{
		TxPackets: c.txPackets.Load(), TxBytes: c.txBytes.Load(), RxPackets: c.rxPackets.Load(), RxBytes: c.rxBytes.Load(),
		Lost: c.lost.Load(), Errors: c.errors.Load(), Retries: c.retries.Load(),
	}
}

// Links are the links that packets pass, in the order of the topology.
func (f *Fabric) Links() []LinkStats {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fold()
	out := make([]LinkStats, len(f.links))
	for i, l := range f.links {
		out[i] = LinkStats{Ends: [2]string{l.ends[0].name(), l.ends[1].name()}, Up: l.up.Load(), Failed: l.failed,
			Width: l.Width, Rate: l.Rate, Delay: l.Delay, Loss: l.Loss, Counts: [2]PortCounts{l.ends[0].stats(), l.ends[1].stats()}}
	}
	return out
}

// Nodes are the endpoints, in the order of the topology.
func (f *Fabric) Nodes() []NodeStats {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fold()
	out := make([]NodeStats, len(f.endpoints))
	for i, d := range f.endpoints {
		p := d.ports[0]
		s := NodeStats{Name: d.name, Index: i, Up: p.up(), DestID: f.ids.Any(), WrongID: d.count.target.Load(), Counts: p.stats()}
		if p.link != nil {
			s.Peer = p.peer().name()
		}
		if n := d.node.Load(); n != nil {
			// Only then: what the registers have without a node is of the last one, and reset for the next.
			s.Attached, s.Doorbells, s.DestID, s.Tag = true, n.doorbells.Load(), d.id(), d.regs.tag
			for m := range n.mbox {
				s.Mailboxes[m] = n.mbox[m].Load()&rapidio.MboxAvailable != 0
			}
		}
		out[i] = s
	}
	return out
}

// Switches are the switches with their routes, in the order of the topology.
func (f *Fabric) Switches() []SwitchStats {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fold()
	out := make([]SwitchStats, len(f.switches))
	for i, d := range f.switches {
		s := SwitchStats{Name: d.name, Kind: cmp.Or(f.topo.Switches[i].Kind, Standard), Tag: d.regs.tag,
			Unrouted: d.count.unrouted.Load(), Looped: d.count.looped.Load(), Routes: d.routeList()}
		for n, p := range d.ports {
			sp := SwitchPort{Port: n, Up: p.up(), Counts: p.stats()}
			if p.link != nil {
				sp.Peer = p.peer().name()
			}
			s.Ports = append(s.Ports, sp)
		}
		out[i] = s
	}
	return out
}

func (d *device) routeList() []SwitchRoute {
	out := []SwitchRoute{}
	for dest := range int(d.f.ids.Any()) + 1 {
		n := uint8(rapidio.InvalidRoute)
		if d.sw.tsi500 {
			if v := d.sw.nibbles[0][dest>>3] >> (4 * (dest & 7)) & 0xf; v < tsiPorts {
				n = uint8(v)
			}
		} else {
			n = d.sw.routes[dest]
		}
		if n != rapidio.InvalidRoute {
			out = append(out, SwitchRoute{rapidio.DestID(dest), n})
		}
	}
	return slices.Clip(out)
}
