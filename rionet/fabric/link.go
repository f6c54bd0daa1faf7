package fabric

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// link is what stands between two ports.
type link struct {
	Link
	ends [2]*port
	// ideal links have no delay, rate or loss: a packet is at the other end at once.
	ideal bool

	failed bool   // by SetLink; guarded by Fabric.mu
	queued queued // of what Options.LinkChanged is to be told; guarded by Fabric.mu
	up     atomic.Bool

	mu   sync.Mutex
	busy [2]time.Duration // until when a packet leaves each end
	rng  [2]*rand.Rand    // for loss, from each end
}

// port is one end of a link, or a port of a switch that has none.
type port struct {
	dev  *device
	n    int
	link *link // nil: none
	side int   // which end of link

	// guarded by Fabric.mu
	control  uint32 // what software sets of Port n Control
	errs     uint32 // what is latched of Port n Error and Status
	detect   uint32 // Port n Error Detect
	rateEn   uint32 // Port n Error Rate Enable
	linkReq  uint32
	linkResp uint32
	resets   int // link requests for a reset in a row

	count counts
}

// counts are what a port counts: packets of any kind, and the bytes of the messages in them. tx is what it sent over its link, rx
// what arrived.
type counts struct {
	txPackets, txBytes atomic.Uint64
	rxPackets, rxBytes atomic.Uint64
	lost               atomic.Uint64 // by the link, after this port sent it
	errors             atomic.Uint64 // that this port was to send, and could not
	retries            atomic.Uint64 // retry responses to this endpoint
}

func newLink(f *Fabric, i int, t Link) *link {
	l := &link{Link: t, ideal: t.Rate == 0 && t.Delay == 0 && t.Loss == 0}
	if l.Width == 0 {
		l.Width = 1
	}
	for s, end := range t.Ends {
		name, n, _ := splitEnd(end)
		p := f.byName[name].ports[n]
		p.link, p.side = l, s
		l.ends[s] = p
		// The same topology loses the same packets.
		l.rng[s] = rand.New(rand.NewPCG(uint64(i), uint64(s)))
	}
	return l
}

func (p *port) name() string {
	if p.dev.sw == nil {
		return p.dev.name
	}
	return fmt.Sprintf("%s:%d", p.dev.name, p.n)
}

// peer is the port at the other end; nil: none.
func (p *port) peer() *port {
	if p.link == nil {
		return nil
	}
	return p.link.ends[1-p.side]
}

func (p *port) up() bool { return p.link != nil && p.link.up.Load() }

// update brings a link up or down, as its ends are alive, and tells of it. The caller holds f.mu.
func (l *link) update(f *Fabric) {
	up := !l.failed
	for _, p := range l.ends {
		if p.control&ctlDisable != 0 || p.dev.sw == nil && p.dev.node.Load() == nil {
			up = false
		}
	}
	if up == l.up.Load() {
		return
	}
	l.up.Store(up)
	f.gen.Add(1)
	f.opts.Log.Debug("fabric: link", "from", l.ends[0].name(), "to", l.ends[1].name(), "up", up)
	if f.opts.LinkChanged != nil {
		f.tell(note{link: l, up: up})
	}
	for _, p := range l.ends {
		if n := p.dev.node.Load(); n != nil {
			f.tell(note{port: n, kind: noteLink, up: up})
		}
	}
	for _, p := range l.ends {
		if p.dev.sw != nil && p.rateEn&detectLink != 0 {
			p.detect |= detectLink
			f.sendEvent(p.dev, p)
		}
	}
}

// headerBytes is what a packet has besides its data, and a segment of a message too.
const headerBytes = 20

// wireBytes is the size of a packet with n bytes of data: a message goes in segments of 256.
func wireBytes(n int) int { return n + headerBytes*max(1, (n+255)/256) }

// pass moves a packet of so many bytes over the link from one of its ends, at time t; it returns when it arrives.
func (l *link) pass(from int, t time.Duration, bytes int) (arrives time.Duration, lost bool) {
	if l.ideal {
		return t, false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.Rate > 0 {
		t = max(t, l.busy[from]) + time.Duration(float64(bytes*8)/float64(l.Rate)*float64(time.Second))
		l.busy[from] = t
	}
	if l.Loss > 0 {
		lost = l.rng[from].Float64() < l.Loss
	}
	return t + l.Delay, lost
}
