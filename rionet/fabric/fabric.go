package fabric

import (
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/rionet/rapidio"
)

// Fabric is a model of endpoints, switches and links. It is safe for concurrent use.
type Fabric struct {
	topo  *Topology
	opts  Options
	ids   rapidio.IDSize
	start time.Time

	endpoints []*device
	switches  []*device
	links     []*link
	byName    map[string]*device

	// gen counts what may change the way of a packet: routes, links, IDs. Whoever keeps a path looks at it.
	gen atomic.Uint64
	// sched is what happens later, on links with a delay, a rate or loss.
	sched scheduler

	mu       sync.Mutex // guards all registers but those that are atomic, and:
	notes    []note     // what nodes are to be told, once mu is free
	draining bool       // somebody tells them
	hops     []hop      // room for a walk
	back     []hop      // and for its response's
}

// Options are what a Fabric may be given.
type Options struct {
	Log *slog.Logger // nil discards
	// LinkChanged is told, in order, of links that went up or down, by their ends as in the topology. It may use the Fabric, and
	// must not wait. nil: nobody wants to know.
	LinkChanged func(ends [2]string, up bool)
}

// New makes the model of a topology, with all endpoints unplugged. A topology that Check refuses makes it panic; Parse returns none.
func New(t *Topology, o Options) *Fabric {
	if err := t.Check(); err != nil {
		panic(err)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	f := &Fabric{topo: t, ids: t.idSize(), opts: o, start: time.Now(), byName: make(map[string]*device)}
	f.gen.Store(1)
	f.sched.init(f)
	for i, s := range t.Switches {
		d := newSwitch(f, i, s)
		f.switches = append(f.switches, d)
		f.byName[s.Name] = d
	}
	for i, e := range t.Endpoints {
		d := newEndpoint(f, i, e)
		f.endpoints = append(f.endpoints, d)
		f.byName[e.Name] = d
	}
	for i, l := range t.Links {
		if !l.Trust {
			f.links = append(f.links, newLink(f, i, l))
		}
	}
	for _, l := range f.links {
		l.update(f)
	}
	f.takeNotes()
	for _, d := range f.switches {
		for _, p := range d.ports {
			p.detect = 0 // what is up from the beginning is no event
		}
	}
	return f
}

// Topology is what the fabric was made from. Nobody may change it.
func (f *Fabric) Topology() *Topology { return f.topo }

// IDs is the width of the fabric's device IDs.
func (f *Fabric) IDs() rapidio.IDSize { return f.ids }

// Attach plugs a node into an endpoint, whose registers are then as after a reset, and whose link comes up. s may be called before
// Attach returns.
func (f *Fabric) Attach(node string, s Sink) (*Port, error) {
	d := f.byName[node]
	if d == nil || d.sw != nil {
		return nil, fmt.Errorf("fabric: no endpoint %q; there are %s", clip(node), f.someNames())
	}
	p := &Port{f: f, dev: d, sink: s}
	p.many, _ = s.(BurstSink)
	f.mu.Lock()
	defer f.unlock()
	if d.node.Load() != nil {
		return nil, fmt.Errorf("fabric: %s has a node already: %w", node, bus.ErrBusy)
	}
	d.reset()
	d.node.Store(p)
	f.linkChanged(d.ports[0])
	return p, nil
}

func (f *Fabric) someNames() string {
	var names []string
	for i, e := range f.endpoints {
		if i == 4 && len(f.endpoints) > 5 {
			names = append(names, fmt.Sprintf("%d more", len(f.endpoints)-i))
			break
		}
		names = append(names, e.name)
	}
	return strings.Join(names, ", ")
}

// SetLink lets a link fail, or mends it. Its ends are named as in the topology, in either order; a switch may stand without its port
// where no doubt is possible.
func (f *Fabric) SetLink(a, b string, up bool) error {
	l, err := f.findLink(a, b)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.unlock()
	l.failed = !up
	l.update(f)
	return nil
}

func (f *Fabric) findLink(a, b string) (*link, error) {
	is := func(p *port, name string) bool { return p.name() == name || p.dev.name == name }
	var found *link
	for _, l := range f.links {
		x, y := l.ends[0], l.ends[1]
		if !(is(x, a) && is(y, b)) && !(is(x, b) && is(y, a)) {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("fabric: several links between %s and %s; name the ports, as in %s", a, b, x.name())
		}
		found = l
	}
	if found == nil {
		return nil, fmt.Errorf("fabric: no link between %q and %q", clip(a), clip(b))
	}
	return found, nil
}

// linkChanged brings the link at a port up to date with what its ends are.
func (f *Fabric) linkChanged(p *port) {
	if p.link != nil {
		p.link.update(f)
	}
}
