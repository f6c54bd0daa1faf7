package fabric

import (
	"encoding/binary"
	"slices"
	"sync/atomic"
	"time"

	"github.com/ring3dev/ring3/rionet/rapidio"
)

// hop is one link of a way: the port that sends and the one that receives.
type hop struct{ out, in *port }

// failure is why a packet reaches nobody.
type failure uint8

const (
	failNone   failure = iota
	failDead           // a port on its way cannot send or receive
	failRoute          // a switch has no route
	failLoop           // it passed too many switches
	failTarget         // the endpoint that it reaches has another ID
)

// maxLife is how many switches a packet passes at the most.
const maxLife = 256

// ftypes, for the control capture register.
const (
	ftypeMaint    = 8
	ftypeDoorbell = 10
	ftypeMessage  = 11
	ftypeResponse = 13
)

// route is what the switches need to know of a packet.
type route struct {
	src, dest rapidio.DestID
	hops      int // of a maintenance request: which switch takes it; negative: none does
	ftype     uint8
	portWrite bool
}

// lost is a packet that reached nobody: where, and at which port there.
type lost struct {
	why failure
	at  *port
}

// sends tells whether a packet may leave through a port (part 6, 6.6.10): of one whose output is off only maintenance may.
func (p *port) sends(ftype uint8) bool {
	return p.up() && p.control&rapidio.PortLockout == 0 && (ftype == ftypeMaint || p.control&rapidio.PortOutputEn != 0)
}

func (p *port) receives(ftype uint8) bool {
	return p.control&rapidio.PortLockout == 0 && (ftype == ftypeMaint || p.control&rapidio.PortInputEn != 0)
}

// walk follows a packet that leaves through a port to the port where it is taken, and appends its way to hops. The caller holds f.mu.
func (f *Fabric) walk(out *port, r route, hops []hop) (in *port, way []hop, l lost) {
	for range maxLife + 1 {
		if !out.sends(r.ftype) {
			return nil, hops, lost{failDead, out}
		}
		in := out.peer()
		if !in.receives(r.ftype) {
			return nil, hops, lost{failDead, in}
		}
		hops = append(hops, hop{out, in})
		if in.dev.sw == nil || r.hops == 0 {
			return in, hops, lost{}
		}
		r.hops--
		next, ok := in.dev.route(in.n, r.dest)
		if !ok {
			return nil, hops, lost{failRoute, in}
		}
		out = next
	}
	return nil, hops, lost{failLoop, hops[len(hops)-1].in}
}

// report counts a lost packet where it was lost, sets the error registers there, and lets a switch tell of it. The caller holds f.mu.
func (f *Fabric) report(l lost, r route) {
	d := l.at.dev
	bit := logTarget
	switch l.why {
	case failDead:
		l.at.count.errors.Add(1)
		if d.sw != nil {
			l.at.errs |= statOutDropped
		}
		return // the link's going was told of
	case failRoute:
		d.count.unrouted.Add(1)
	case failLoop:
		d.count.looped.Add(1)
		bit = logLoop
	case failTarget:
		d.count.target.Add(1)
	}
	if r.portWrite {
		return // telling of those that are lost would make more
	}
	regs := &d.regs
	if regs.logEnable&bit == 0 || regs.logDetect&bit != 0 {
		return // told of already, and not cleared since
	}
	regs.logDetect |= bit
	regs.capID = uint32(r.dest)<<16 | uint32(r.src)
	regs.capControl = uint32(r.ftype) << 28
	if d.sw != nil {
		f.sendEvent(d, l.at)
	}
}

// failed reports a lost packet of a node, and counts it for the node too. The caller holds f.mu.
func (p *Port) failed(l lost, r route) {
	p.f.report(l, r)
	if own := p.dev.ports[0]; l.at != own {
		own.count.errors.Add(1)
	}
}

// eventBytes is the length of a port-write of error management (part 8, 2.4).
const eventBytes = 16

// sendEvent lets a switch send a port-write about one of its ports. The caller holds f.mu.
func (f *Fabric) sendEvent(d *device, about *port) {
	if !d.regs.pwTold {
		return
	}
	about.errs |= rapidio.PortWritePend
	var data [eventBytes]byte
	binary.BigEndian.PutUint32(data[0:], d.regs.tag)
	binary.BigEndian.PutUint32(data[4:], about.detect)
	binary.BigEndian.PutUint32(data[8:], uint32(about.n))
	binary.BigEndian.PutUint32(data[12:], d.regs.logDetect)
	r := route{dest: rapidio.DestID(d.regs.pwTarget >> 16), hops: -1, ftype: ftypeMaint, portWrite: true}
	out, ok := d.route(about.n, r.dest)
	if !ok {
		f.report(lost{failRoute, about}, r)
		return
	}
	f.portWrite(nil, out, r, data[:])
}

// portWrite sends a port-write out of a port; who may be nil. The caller holds f.mu.
func (f *Fabric) portWrite(who *Port, out *port, r route, data []byte) {
	in, hops, l := f.walk(out, r, f.back[:0])
	f.back = hops
	if l.why != failNone {
		f.report(l, r)
		return
	}
	node := in.dev.node.Load()
	if node == nil {
		return
	}
	now, sent := time.Duration(0), time.Duration(0)
	if !ideal(hops) {
		now = f.now()
		sent = now
	}
	at, gone := f.travel(hops, 0, len(data), now)
	if gone {
		return
	}
	if at > sent {
		if pk := f.sched.packet(who); pk != nil {
			pk.kind, pk.to, pk.n = packetPortWrite, node, copy(pk.room(len(data)), data)
			f.sched.add(pk, at)
		}
		return
	}
	n := note{port: node, kind: notePortWrite}
	n.n = copy(n.data[:], data)
	f.tell(n)
}

// now is the time of the model.
func (f *Fabric) now() time.Duration { return time.Since(f.start) }

// ideal tells whether nothing on a way takes time or loses anything.
func ideal(hops []hop) bool {
	for _, h := range hops {
		if !h.out.link.ideal {
			return false
		}
	}
	return true
}

// travel counts a packet on its way, and says when it arrives that leaves at t. data is the bytes of a message in it, size those of the
// whole packet without its header.
func (f *Fabric) travel(hops []hop, data, size int, t time.Duration) (arrives time.Duration, gone bool) {
	for _, h := range hops {
		c := &h.out.count
		c.txPackets.Add(1)
		c.txBytes.Add(uint64(data))
		if t, gone = h.out.link.pass(h.out.side, t, wireBytes(size)); gone {
			c.lost.Add(1)
			return t, true
		}
		h.in.count.rxPackets.Add(1)
		h.in.count.rxBytes.Add(uint64(data))
	}
	return t, false
}

// path is the way from a node to the endpoint with a device ID, and back, as it was at some generation. It belongs to the node's
// goroutine, but for the counts.
type path struct {
	gen       uint64
	src, dest rapidio.DestID
	dst       *device
	fwd, rev  []hop
	ideal     bool
	order     *order

	// What passed since, on a way without delays, is counted here and not at each port: senders do not meet at a switch's counters.
	packets, bytes, retries, errors atomic.Uint64
}

// order keeps what one node sends to one device ID in order, also when the way between them changes.
type order struct {
	onTheWay atomic.Int32  // packets that have not arrived
	last     time.Duration // when the last one arrives; of the sender's goroutine

	// Mailboxes, by bit, that refuse what is Behind (rapidio.Order): at the sender, of its goroutine, and at the end of a way with delays. What
	// was refused at the one is never cleared by one that passed the other before.
	refusing uint8
	there    atomic.Uint32
}

// refuses tells whether a message is refused at its sender, because one before it was. One that is Again ends that.
func (o *order) refuses(r rapidio.Order, mbox uint8) bool {
	if o.there.Load() != 0 && o.onTheWay.Load() == 0 { // nothing arrives now
		o.refusing |= uint8(o.there.Swap(0))
	}
	bit := uint8(1) << mbox
	switch r {
	case rapidio.Behind:
		return o.refusing&bit != 0
	case rapidio.Again:
		o.refusing &^= bit
	}
	return false
}

// refused remembers that a message was.
func (o *order) refused(r rapidio.Order, mbox uint8, s rapidio.Status) {
	if s == rapidio.Retry && (r == rapidio.Behind || r == rapidio.Again) {
		o.refusing |= 1 << mbox
	}
}

// refusesThere is refuses, and refusedThere refused, at the end of a way with delays.
func (o *order) refusesThere(r rapidio.Order, mbox uint8) bool {
	bit := uint32(1) << mbox
	switch r {
	case rapidio.Behind:
		return o.there.Load()&bit != 0
	case rapidio.Again:
		o.there.And(^bit)
	}
	return false
}

func (o *order) refusedThere(r rapidio.Order, mbox uint8, s rapidio.Status) {
	if s == rapidio.Retry && (r == rapidio.Behind || r == rapidio.Again) {
		o.there.Or(1 << mbox)
	}
}

// alive tells whether a way exists still that a packet is on.
func alive(hops []hop) bool {
	for _, h := range hops {
		if !h.out.up() {
			return false
		}
	}
	return true
}

// findPath makes the path of a node to a device ID; nil: there is none, which is reported. The caller holds f.mu.
func (f *Fabric) findPath(p *Port, dest rapidio.DestID, ftype uint8) *path {
	r := route{src: p.dev.id(), dest: dest, hops: -1, ftype: ftype}
	in, hops, l := f.walk(p.dev.ports[0], r, f.hops[:0])
	f.hops = hops
	if l.why == failNone && in.dev.id() != dest {
		l = lost{failTarget, in}
	}
	if l.why != failNone {
		p.failed(l, r)
		return nil
	}
	dst := in.dev
	r = route{src: dest, dest: r.src, hops: -1, ftype: ftypeResponse}
	in, back, l := f.walk(in, r, f.back[:0])
	f.back = back
	if l.why == failNone && in.dev != p.dev {
		l = lost{failTarget, in}
	}
	if l.why != failNone {
		p.failed(l, r)
		return nil
	}
	return &path{gen: f.gen.Load(), src: r.dest, dest: dest, dst: dst, fwd: slices.Clone(hops), rev: slices.Clone(back),
		ideal: ideal(hops) && ideal(back)}
}

// fold adds what a path counted to the ports on it. The caller holds f.mu.
func (t *path) fold() {
	n, bytes := t.packets.Swap(0), t.bytes.Swap(0)
	if n == 0 {
		return
	}
	for _, h := range t.fwd {
		h.out.count.txPackets.Add(n)
		h.out.count.txBytes.Add(bytes)
		h.in.count.rxPackets.Add(n)
		h.in.count.rxBytes.Add(bytes)
	}
	for _, h := range t.rev {
		h.out.count.txPackets.Add(n)
		h.in.count.rxPackets.Add(n)
	}
	t.rev[len(t.rev)-1].in.count.retries.Add(t.retries.Swap(0))
	t.rev[len(t.rev)-1].in.count.errors.Add(t.errors.Swap(0))
}
