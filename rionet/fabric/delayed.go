package fabric

import (
	"time"

	"github.com/ring3dev/ring3/rionet/rapidio"
)

// sendMessage sends over links that take time or lose packets.
func (p *Port) sendMessage(tag uint32, t *path, m *rapidio.Message) rapidio.Status {
	if t.order.refuses(m.Order, m.Mbox) {
		return rapidio.Retry
	}
	pk := p.f.sched.packet(p)
	if pk == nil {
		t.order.refused(m.Order, m.Mbox, rapidio.Retry)
		return rapidio.Retry
	}
	pk.kind, pk.tag, pk.path, pk.mbox, pk.order = packetMessage, tag, t, m.Mbox, m.Order
	pk.n = copy(pk.room(len(m.Data)), m.Data)
	return p.send(pk, pk.n, pk.n)
}

func (p *Port) sendDoorbell(tag uint32, t *path, info uint16) rapidio.Status {
	pk := p.f.sched.packet(p)
	if pk == nil {
		return rapidio.Retry
	}
	pk.kind, pk.tag, pk.path, pk.info = packetDoorbell, tag, t, info
	return p.send(pk, 0, 0)
}

func (p *Port) send(pk *packet, data, size int) rapidio.Status {
	f, t := p.f, pk.path
	now := f.now()
	at, gone := f.travel(t.fwd, data, size, now)
	if gone {
		f.mu.Lock()
		f.timeout(pk, now)
		f.mu.Unlock()
		return rapidio.Pending
	}
	// A packet never overtakes an earlier one, not even when a faster way has come up.
	at = max(at, t.order.last)
	t.order.last = at
	t.order.onTheWay.Add(1)
	f.sched.add(pk, at)
	return rapidio.Pending
}

// timeout makes of a request that was lost, or whose response was, the end of its sender's patience: Error, when the Port Response
// Timeout after its sending has passed. The caller holds f.mu.
func (f *Fabric) timeout(pk *packet, sent time.Duration) {
	if pk.from == nil || pk.kind == packetPortWrite {
		f.sched.done(pk)
		return
	}
	regs := &pk.from.dev.regs
	units := uint32(timeoutUnits)
	if pk.from.dev.serial {
		units = regs.respTimeout >> 8
	}
	regs.logDetect |= logTimeout & regs.logEnable
	pk.from.dev.ports[0].count.errors.Add(1)
	pk.status, pk.value = rapidio.Error, 0
	if pk.kind == packetMaint || pk.kind == packetResponse {
		pk.kind = packetResponse
	} else {
		pk.kind = packetComplete
	}
	f.sched.add(pk, max(sent+time.Duration(units)*timeoutUnitNs, f.now()))
}

func (f *Fabric) timeoutLocked(pk *packet, sent time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.timeout(pk, sent)
}

// arrive is what happens when a packet's time has come. It runs on the scheduler's timer.
func (f *Fabric) arrive(pk *packet) {
	switch pk.kind {
	case packetMessage, packetDoorbell:
		f.arriveRequest(pk)
	case packetMaint:
		f.arriveMaint(pk)
	case packetPortWrite:
		if s, ok := pk.to.enter(); ok {
			s.PortWrite(pk.buf[:pk.n])
			pk.to.leave()
			f.sched.touch(pk.to)
		}
		f.sched.done(pk)
	case packetComplete, packetResponse:
		if s, ok := pk.from.enter(); ok {
			if pk.kind == packetComplete {
				s.Complete(pk.tag, pk.status)
			} else {
				s.Response(pk.tag, pk.value, pk.status)
			}
			pk.from.leave()
			f.sched.touch(pk.from)
		}
		f.sched.done(pk)
	}
}

// arriveRequest delivers a message or doorbell, and sends its response.
func (f *Fabric) arriveRequest(pk *packet) {
	t := pk.path
	defer t.order.onTheWay.Add(-1)
	if !alive(t.fwd) {
		t.fwd[0].out.count.lost.Add(1)
		f.timeoutLocked(pk, pk.at)
		return
	}
	var to *Port
	switch {
	case pk.kind == packetDoorbell:
		pk.status, to = t.dst.doorbell(t.src, pk.info)
	case t.order.refusesThere(pk.order, pk.mbox):
		pk.status = rapidio.Retry
	default:
		pk.msg = rapidio.Message{Peer: t.src, Mbox: pk.mbox, Data: pk.buf[:pk.n]}
		pk.status, to = t.dst.message(&pk.msg)
		t.order.refusedThere(pk.order, pk.mbox, pk.status)
	}
	if to != nil {
		f.sched.touch(to)
	}
	switch pk.status {
	case rapidio.Retry:
		pk.from.dev.ports[0].count.retries.Add(1)
	case rapidio.Error:
		pk.from.dev.ports[0].count.errors.Add(1)
	}
	at, gone := f.travel(t.rev, 0, 0, pk.at)
	if gone || !alive(t.rev) {
		f.timeoutLocked(pk, pk.at)
		return
	}
	pk.kind = packetComplete
	f.sched.add(pk, at)
}

// sendMaint sends a maintenance request over links that take time. The caller holds f.mu.
func (f *Fabric) sendMaint(p *Port, m *Maint, in *port, hops []hop) rapidio.Status {
	pk := f.sched.packet(p)
	if pk == nil {
		return rapidio.Retry
	}
	pk.kind, pk.tag, pk.maint, pk.in = packetMaint, m.Tag, *m, in
	pk.hops = append(pk.hops[:0], hops...)
	now := f.now()
	at, gone := f.travel(hops, 0, 0, now)
	if gone {
		f.timeout(pk, now)
		return rapidio.Pending
	}
	f.sched.add(pk, at)
	return rapidio.Pending
}

// sendResponse sends the response to a maintenance request over links that take time. The caller holds f.mu.
func (f *Fabric) sendResponse(p *Port, tag, v uint32, back []hop, t time.Duration) rapidio.Status {
	pk := f.sched.response(p)
	pk.kind, pk.tag = packetResponse, tag
	f.respond(pk, v, back, t)
	return rapidio.Pending
}

func (f *Fabric) respond(pk *packet, v uint32, back []hop, t time.Duration) {
	at, gone := f.travel(back, 0, 0, t)
	if gone {
		f.timeout(pk, t)
		return
	}
	pk.kind, pk.value, pk.status = packetResponse, v, rapidio.Done
	f.sched.add(pk, at)
}

// arriveMaint does a maintenance request where it arrived, and sends its response.
func (f *Fabric) arriveMaint(pk *packet) {
	p := pk.from
	f.mu.Lock()
	defer f.unlock()
	if p.gone {
		f.sched.done(pk)
		return
	}
	if !alive(pk.hops) {
		pk.hops[0].out.count.lost.Add(1)
		f.timeout(pk, pk.at)
		return
	}
	r := route{src: p.dev.id(), dest: pk.maint.Dest, hops: int(pk.maint.Hop), ftype: ftypeMaint}
	v := pk.in.dev.access(&pk.maint, pk.in, pk.in.dev != p.dev)
	back, ok := f.wayBack(p, r, pk.in)
	if !ok {
		f.timeout(pk, pk.at)
		return
	}
	f.respond(pk, v, back, pk.at)
}
