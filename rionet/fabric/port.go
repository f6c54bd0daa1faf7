package fabric

import (
	"sync"
	"sync/atomic"

	"github.com/ring3dev/ring3/rionet/rapidio"
)

// Port is an endpoint with a node attached. Its methods are for one goroutine at a time, and not for calls from the node's own Sink
// methods.
type Port struct {
	f    *Fabric
	dev  *device
	sink Sink
	many BurstSink // the same; nil: it takes one message at a time

	// life is held, shared, by who calls sink: after Detach nobody does.
	life   sync.RWMutex
	closed bool

	mbox      [rapidio.MaxMboxes]atomic.Uint32 // each one's byte of the Mailbox CSR
	doorbells atomic.Bool
	inFlight  atomic.Int32 // its packets that the scheduler holds

	// guarded by Fabric.mu
	gone   bool
	queued [noteKinds]queued // of what it is to be told
	paths  map[*path]struct{}

	// Of the node's goroutine.
	pages []*[256]*cell
	dirty []*cell // to be flushed
	msg   rapidio.Message
}

// cell is what a port keeps of a device ID that it reached once.
type cell struct {
	path  *path // nil: none now
	order order
	to    *Port // was given something since the last Flush
}

// maxInFlight is how many packets of a port may be on links with delays.
const maxInFlight = 4096

// Name is the endpoint's name.
func (p *Port) Name() string { return p.dev.name }

// Index is the endpoint's place in the topology.
func (p *Port) Index() int { return p.dev.index }

// enter gives the sink to who calls it, until leave.
func (p *Port) enter() (Sink, bool) {
	p.life.RLock()
	if p.closed {
		p.life.RUnlock()
		return nil, false
	}
	return p.sink, true
}

func (p *Port) leave() { p.life.RUnlock() }

// Detach unplugs the node: the link goes down, and once Detach returns nobody calls the node's Sink any more.
func (p *Port) Detach() {
	p.Flush()
	p.f.mu.Lock()
	if p.gone {
		p.f.mu.Unlock()
		return
	}
	p.gone = true
	for t := range p.paths {
		t.fold()
	}
	p.paths = nil
	p.dev.node.Store(nil)
	p.f.gen.Add(1)
	p.f.linkChanged(p.dev.ports[0])
	p.f.unlock()
	p.life.Lock()
	p.closed = true
	p.life.Unlock()
}

// SetMailbox says how a mailbox of the node is, for the Mailbox CSR and for senders: to one that is not open they get Error.
func (p *Port) SetMailbox(mbox uint8, open, full bool) {
	var v uint32
	if open {
		v = rapidio.MboxAvailable
	}
	if open && full {
		v |= rapidio.MboxFull
	}
	p.mbox[mbox&(rapidio.MaxMboxes-1)].Store(v)
}

// SetDoorbells says whether the node takes doorbells. While it does not, their senders get Error.
func (p *Port) SetDoorbells(open bool) { p.doorbells.Store(open) }

// way is the path to a device ID; nil: there is none.
func (p *Port) way(dest rapidio.DestID, ftype uint8) (*cell, *path) {
	var c *cell
	page := int(dest >> 8)
	if page < len(p.pages) && p.pages[page] != nil {
		c = p.pages[page][dest&0xff]
	}
	if c != nil && c.path != nil && c.path.gen == p.f.gen.Load() {
		return c, c.path
	}
	return p.find(c, dest, ftype)
}

func (p *Port) find(c *cell, dest rapidio.DestID, ftype uint8) (*cell, *path) {
	if dest > p.f.ids.Any() {
		return nil, nil
	}
	p.f.mu.Lock()
	defer p.f.unlock()
	if p.gone {
		return nil, nil
	}
	t := p.f.findPath(p, dest, ftype)
	if c != nil && c.path != nil {
		c.path.fold()
		delete(p.paths, c.path)
		c.path = nil
	}
	if t == nil {
		return nil, nil
	}
	if c == nil {
		c = p.newCell(dest)
	}
	t.order = &c.order
	c.path = t
	if p.paths == nil {
		p.paths = make(map[*path]struct{})
	}
	p.paths[t] = struct{}{}
	return c, t
}

func (p *Port) newCell(dest rapidio.DestID) *cell {
	if p.pages == nil {
		p.pages = make([]*[256]*cell, int(p.f.ids.Any())>>8+1)
	}
	page := p.pages[dest>>8]
	if page == nil {
		page = new([256]*cell)
		p.pages[dest>>8] = page
	}
	c := new(cell)
	page[dest&0xff] = c
	return c
}

// Message sends a message. Pending: Sink.Complete follows, with the tag. The data is copied before it returns.
func (p *Port) Message(tag uint32, m *rapidio.Message) rapidio.Status {
	if len(m.Data) == 0 || len(m.Data) > rapidio.MaxMessage || m.Mbox >= rapidio.MaxMboxes || !p.dev.mailboxes {
		return rapidio.Error
	}
	c, t := p.way(m.Peer, ftypeMessage)
	if t == nil {
		return rapidio.Error
	}
	if !t.ideal || t.order.onTheWay.Load() != 0 {
		return p.sendMessage(tag, t, m)
	}
	if t.order.refuses(m.Order, m.Mbox) {
		return p.sent(c, t, nil, rapidio.Retry, 1, len(m.Data))
	}
	p.msg = rapidio.Message{Peer: t.src, Mbox: m.Mbox, Data: m.Data}
	s, to := t.dst.message(&p.msg)
	p.msg.Data = nil
	t.order.refused(m.Order, m.Mbox, s)
	return p.sent(c, t, to, s, 1, len(m.Data))
}

// Messages sends several to one mailbox, with a tag each. The first n of them, at least one, have the status that it returns. The first has
// the order o, and the others are Behind it, unless it is Alone: then they are too.
func (p *Port) Messages(tags []uint32, dest rapidio.DestID, mbox uint8, o rapidio.Order, data [][]byte) (n int, s rapidio.Status) {
	m := rapidio.Message{Peer: dest, Mbox: mbox, Order: o, Data: data[0]}
	if len(m.Data) == 0 || len(m.Data) > rapidio.MaxMessage || mbox >= rapidio.MaxMboxes || !p.dev.mailboxes {
		return 1, rapidio.Error
	}
	c, t := p.way(dest, ftypeMessage)
	if t == nil {
		return 1, rapidio.Error
	}
	if !t.ideal || t.order.onTheWay.Load() != 0 {
		p.msg = m
		s = p.sendMessage(tags[0], t, &p.msg)
		p.msg.Data = nil
		return 1, s
	}
	if t.order.refuses(o, mbox) {
		return 1, p.sent(c, t, nil, rapidio.Retry, 1, len(data[0]))
	}
	n, s, to := t.dst.messages(&p.msg, t.src, mbox, data)
	t.order.refused(o, mbox, s)
	bytes := 0
	for _, d := range data[:n] {
		bytes += len(d)
	}
	return n, p.sent(c, t, to, s, n, bytes)
}

// Refuses tells whether messages to a mailbox that are Behind others are refused, because one of those was: until one that is Again.
func (p *Port) Refuses(dest rapidio.DestID, mbox uint8) bool {
	page := int(dest >> 8)
	if page >= len(p.pages) || p.pages[page] == nil || p.pages[page][dest&0xff] == nil {
		return false
	}
	return p.pages[page][dest&0xff].order.refuses(rapidio.Behind, mbox&(rapidio.MaxMboxes-1))
}

// Doorbell sends a doorbell. Pending: Sink.Complete follows, with the tag.
func (p *Port) Doorbell(tag uint32, dest rapidio.DestID, info uint16) rapidio.Status {
	c, t := p.way(dest, ftypeDoorbell)
	if t == nil {
		return rapidio.Error
	}
	if !t.ideal || t.order.onTheWay.Load() != 0 {
		return p.sendDoorbell(tag, t, info)
	}
	s, to := t.dst.doorbell(t.src, info)
	return p.sent(c, t, to, s, 1, 0)
}

// sent counts packets that arrived at once, all with one response, and remembers whom to flush.
func (p *Port) sent(c *cell, t *path, to *Port, s rapidio.Status, packets, bytes int) rapidio.Status {
	t.packets.Add(uint64(packets))
	t.bytes.Add(uint64(bytes))
	switch s {
	case rapidio.Done:
		if c.to != to {
			if c.to == nil {
				p.dirty = append(p.dirty, c)
			} else {
				c.to.flush() // the node was changed since
			}
			c.to = to
		}
	case rapidio.Retry:
		t.retries.Add(uint64(packets))
	default:
		t.errors.Add(uint64(packets))
	}
	return s
}

// Flush ends a burst: the nodes that got something of it at once are told (Sink.Flush).
func (p *Port) Flush() {
	for i, c := range p.dirty {
		c.to.flush()
		c.to, p.dirty[i] = nil, nil
	}
	p.dirty = p.dirty[:0]
}

func (p *Port) flush() {
	if s, ok := p.enter(); ok {
		s.Flush()
		p.leave()
	}
}

// message delivers a message to an endpoint, if somebody is there.
func (d *device) message(m *rapidio.Message) (rapidio.Status, *Port) {
	n := d.node.Load()
	if n == nil || n.mbox[m.Mbox].Load()&rapidio.MboxAvailable == 0 || !d.mailboxes {
		return rapidio.Error, nil
	}
	s, ok := n.enter()
	if !ok {
		return rapidio.Error, nil
	}
	st := s.Message(m)
	n.leave()
	return answer(st), n
}

// messages delivers several; the first n have the status. m is the caller's, for a node that takes one at a time.
func (d *device) messages(m *rapidio.Message, src rapidio.DestID, mbox uint8, data [][]byte) (n int, s rapidio.Status, to *Port) {
	to = d.node.Load()
	if to == nil || to.many == nil {
		*m = rapidio.Message{Peer: src, Mbox: mbox, Data: data[0]}
		s, to = d.message(m)
		m.Data = nil
		return 1, s, to
	}
	if to.mbox[mbox].Load()&rapidio.MboxAvailable == 0 || !d.mailboxes {
		return 1, rapidio.Error, nil
	}
	if _, ok := to.enter(); !ok {
		return 1, rapidio.Error, nil
	}
	n, s = to.many.Messages(src, mbox, data)
	to.leave()
	return min(max(n, 1), len(data)), answer(s), to
}

func (d *device) doorbell(src rapidio.DestID, info uint16) (rapidio.Status, *Port) {
	n := d.node.Load()
	if n == nil || !n.doorbells.Load() {
		return rapidio.Error, nil
	}
	s, ok := n.enter()
	if !ok {
		return rapidio.Error, nil
	}
	st := s.Doorbell(src, info)
	n.leave()
	return answer(st), n
}

// answer is the response that a node's status makes.
func answer(s rapidio.Status) rapidio.Status {
	if s == rapidio.Done || s == rapidio.Retry {
		return s
	}
	return rapidio.Error
}

// PortWrite sends a port-write, of 4 to MaxPortWrite bytes in words, to the endpoint that dest leads to. Nobody answers.
func (p *Port) PortWrite(dest rapidio.DestID, data []byte) {
	if n := len(data); n < 4 || n > rapidio.MaxPortWrite || n%4 != 0 || dest > p.f.ids.Any() {
		return
	}
	p.f.mu.Lock()
	defer p.f.unlock()
	if !p.gone {
		p.f.portWrite(p, p.dev.ports[0], route{src: p.dev.id(), dest: dest, hops: -1, ftype: ftypeMaint, portWrite: true}, data)
	}
}

// Maint does a maintenance transaction. Pending: Sink.Response follows, with its tag.
func (p *Port) Maint(m *Maint) (uint32, rapidio.Status) {
	if !m.valid() || m.Dest > p.f.ids.Any() && !m.Local {
		return 0, rapidio.Error
	}
	f := p.f
	f.mu.Lock()
	defer f.unlock()
	if p.gone {
		return 0, rapidio.Error
	}
	if m.Local {
		return p.dev.access(m, p.dev.ports[0], false), rapidio.Done
	}
	r := route{src: p.dev.id(), dest: m.Dest, hops: int(m.Hop), ftype: ftypeMaint}
	in, hops, l := f.walk(p.dev.ports[0], r, f.hops[:0])
	f.hops = hops
	if l.why != failNone {
		p.failed(l, r)
		return 0, rapidio.Error
	}
	if !ideal(hops) {
		return 0, f.sendMaint(p, m, in, hops)
	}
	f.travel(hops, 0, 0, 0)
	v := in.dev.access(m, in, in.dev != p.dev)
	back, ok := f.wayBack(p, r, in)
	if !ok {
		return 0, rapidio.Error
	}
	if !ideal(back) {
		return 0, f.sendResponse(p, m.Tag, v, back, f.now())
	}
	f.travel(back, 0, 0, 0)
	return v, rapidio.Done
}

// wayBack is the way of a response to the request r of a node, from the port that took it. It leaves through that port, whatever a
// switch's own table has; the switches after it route it by its destination. The caller holds f.mu.
func (f *Fabric) wayBack(p *Port, r route, in *port) ([]hop, bool) {
	r = route{src: r.dest, dest: r.src, hops: -1, ftype: ftypeMaint}
	end, back, l := f.walk(in, r, f.back[:0])
	f.back = back
	if l.why == failNone && end.dev != p.dev {
		l = lost{failTarget, end}
	}
	if l.why != failNone {
		p.failed(l, r)
		return nil, false
	}
	return back, true
}
