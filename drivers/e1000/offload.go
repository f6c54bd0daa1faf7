package e1000

import (
	"encoding/binary"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/netdev"
)

// Limits of what is segmented.
const (
	maxData   = 8 << 10                       // bytes a data descriptor, of at most 16288, 3.3.3
	maxGSO    = headerLen + 2*tagLen + 0xffff // an IP packet with its frame header
	minMSS    = 48                            // less makes hundreds of segments of one frame
	maxTSOHdr = int(ctxHdrlen >> 40)          // the field's width
	ethIPv4   = 0x0800
	ethIPv6   = 0x86dd
	ethVLAN   = 0x8100
	ethQinQ   = 0x88a8
	protoTCP  = 6
	tcpSumAt  = 16 // in a TCP header
	udpSumAt  = 6
)

// txPlan is how a frame with Meta is put into the ring.
type txPlan struct {
	ctx    txContext
	want   bool  // ctx is wanted
	cmd    txCmd // of its data or legacy descriptors, without length
	off, n int   // the frame in its buffer
	chunk  int   // bytes a descriptor
	descs  int   // descriptors, the context's included
	segs   int   // frames on the wire, at most
	spare  int   // of segs, those that are not sent where the device cuts as it should
	octets int   // bytes on the wire
}

// offloads sends the frames at the front of bufs that want something of the device, up to the first
// that does not, as far as ring and credit (in frames on the wire) allow, and at most about a
// group of descriptors, the last of which reports for all. It returns how many frames it took,
// and how many go over the wire at most.
func (q *txQueue) offloads(bufs []*dma.Buf, credit int) (took, sent int) {
	first := q.c.tail
	for took < len(bufs) && q.c.tail-first < reportEvery {
		b := bufs[took]
		if b.Meta.Flags == 0 {
			break
		}
		p, ok := q.plan(b)
		if !ok {
			q.errors++
			b.Free()
			took++
			continue
		}
		if p.descs > q.c.room() || min(p.segs, q.maxSegs) > credit-sent {
			break
		}
		q.put(b, &p)
		took++
		sent += p.segs
		q.spare += uint64(p.spare)
		q.octets += uint64(p.octets)
	}
	if q.c.tail != first {
		reportTx(q.ring, q.c.at(q.c.tail-1), q.report)
		q.last[q.c.at(first)] = q.c.tail
	}
	return took, sent
}

// plan decides how a frame is sent. It says no where the frame asks for what is off or what the
// hardware cannot do, or where its Meta does not fit its bytes: Meta may come from another
// program, and a wrong offset must not reach the device.
func (q *txQueue) plan(b *dma.Buf) (p txPlan, ok bool) {
	p.off, p.n = cap(b.Mem)-cap(b.Data), len(b.Data)
	if p.n < minFrame || p.off < 0 || p.off+p.n > len(b.Mem) {
		return p, false
	}
	p.cmd, p.descs, p.segs, p.chunk = txEOP|txIFCS, 1, 1, maxData
	limit := q.limit
	if b.Meta.Flags&dma.VLAN != 0 {
		if q.features&netdev.TxVLAN == 0 {
			return p, false
		}
		p.cmd |= txVLE | put(txVLAN, txCmd(b.Meta.VLAN))
		limit -= tagLen
	}
	switch flags := b.Meta.Flags; {
	case flags&(dma.GSO4|dma.GSO6) != 0:
		ok = p.segment(q, b, limit)
	case p.n > limit:
		return p, false
	case flags&dma.NeedsCsum != 0:
		ok = p.checksum(q, b)
	default:
		ok = true
	}
	if !ok || p.n >= minWire {
		p.octets = max(p.octets, p.n)
		return p, ok
	}
	if p.off+minWire > len(b.Mem) {
		return p, false
	}
	clear(b.Mem[p.off+p.n : p.off+minWire]) // see txQueue.pad
	p.n, p.octets = minWire, minWire
	return p, true
}

// checksum plans a frame whose TCP or UDP checksum is wanted. Frames that are padded are
// summed here: QEMU's 82574L takes the padding for data. So is what is neither TCP nor UDP.
func (p *txPlan) checksum(q *txQueue, b *dma.Buf) bool {
	start, at := int(b.Meta.CsumStart), int(b.Meta.CsumStart)+int(b.Meta.CsumOffset)
	if q.features&netdev.TxCsum == 0 || start < headerLen || start >= p.n || at+2 > p.n {
		return false
	}
	if o := b.Meta.CsumOffset; p.n < minWire || at > 0xff || o != tcpSumAt && o != udpSumAt {
		binary.BigEndian.PutUint16(b.Data[at:], ^sum(0, b.Data[start:]))
		if b.Meta.CsumOffset == udpSumAt && b.Data[at] == 0 && b.Data[at+1] == 0 {
			b.Data[at], b.Data[at+1] = 0xff, 0xff // 0 means none
		}
		// The frame may have to wait for room, or be sent again: to sum it twice would undo it.
		b.Meta.Flags &^= dma.NeedsCsum | dma.GSO4 | dma.GSO6
		return true
	}
	p.cmd |= txDEXT | txData | txTXSM
	p.chunk = max(maxData, p.n) // one descriptor: the frame fits the MTU
	p.needs(q, txContext{sums: put(ctxTUCSS, uint64(start)) | put(ctxTUCSO, uint64(at)), cmd: txDEXT})
	return true
}

// needs adds a context descriptor, where it is not the one that the hardware has.
func (p *txPlan) needs(q *txQueue, c txContext) {
	p.ctx, p.want = c, c != q.context
	if p.want {
		p.descs++
	}
}

// segment plans a frame that the device cuts into segments, of at most limit bytes each, and
// prepares its headers: no lengths, no IPv4 checksum, in the TCP checksum's place the
// sum of the pseudo header without its length, 3.5.
func (p *txPlan) segment(q *txQueue, b *dma.Buf, limit int) bool {
	m, f := &b.Meta, b.Data
	v4 := m.Flags&dma.GSO4 != 0
	want := netdev.TxTSO6
	if v4 {
		want = netdev.TxTSO4
	}
	l3, l4, hdr := tcpHeaders(f, v4)
	mss := int(m.GSOSize)
	switch {
	case q.features&want == 0, m.Flags&dma.NeedsCsum == 0, m.Flags&(dma.GSO4|dma.GSO6) == dma.GSO4|dma.GSO6,
		hdr == 0, hdr > maxTSOHdr, int(m.HdrLen) < hdr, int(m.CsumStart) != l4, m.CsumOffset != tcpSumAt,
		mss < minMSS, hdr+mss > limit, p.n <= hdr, p.n > maxGSO:
		return false
	}
	payload := p.n - hdr
	if payload <= mss {
		return p.checksum(q, b) // one segment: the headers are right as they are
	}
	c := txContext{sums: put(ctxIPCSS, uint64(l3)) | put(ctxTUCSS, uint64(l4)) | put(ctxTUCSO, uint64(l4+tcpSumAt))}
	c.cmd = txDEXT | txTSE | ctxTCP | put(ctxPaylen, txCmd(payload)) | put(ctxHdrlen, txCmd(hdr)) | put(ctxMSS, txCmd(mss))
	p.cmd |= txDEXT | txData | txTSE | txTXSM
	if v4 {
		c.sums |= put(ctxIPCSO, uint64(l3+10)) | put(ctxIPCSE, uint64(l4-1))
		c.cmd |= ctxIPv4
		p.cmd |= txIXSM
		clear(f[l3+2 : l3+4])
		clear(f[l3+10 : l3+12])
		binary.BigEndian.PutUint16(f[l4+tcpSumAt:], sum(protoTCP, f[l3+12:l3+20]))
	} else {
		clear(f[l3+4 : l3+6])
		binary.BigEndian.PutUint16(f[l4+tcpSumAt:], sum(protoTCP, f[l3+8:l3+40]))
	}
	if !q.nic.chip.pcie {
		p.chunk = min(p.chunk, 4*mss) // what the 8254x's transmitter makes room for at a time
	}
	p.ctx, p.want = c, true
	p.descs = 1 + (p.n+p.chunk-1)/p.chunk
	// QEMU's 82540EM sends an empty segment after a last one that is full.
	p.segs = payload/mss + 1
	if q.nic.chip.fragments {
		p.segs = (p.n-l4)/(mss&^7) + 1
	}
	p.spare = p.segs - (payload+mss-1)/mss
	p.octets = p.n + (payload-1)/mss*hdr
	return p.descs <= int(q.c.mask)
}

// tcpHeaders finds the headers of a TCP frame over the IP version wanted: where IP and TCP begin,
// and where the data. All are 0 where it is no such frame.
func tcpHeaders(f []byte, v4 bool) (l3, l4, hdr int) {
	l3 = headerLen
	kind := binary.BigEndian.Uint16(f[12:14])
	for range 2 {
		if kind != ethVLAN && kind != ethQinQ || len(f) < l3+tagLen {
			break
		}
		kind = binary.BigEndian.Uint16(f[l3+2:])
		l3 += tagLen
	}
	if len(f) < l3+20 {
		return 0, 0, 0
	}
	ip := f[l3:]
	switch {
	case v4 && kind == ethIPv4 && ip[0]>>4 == 4 && ip[9] == protoTCP && ip[0]&0xf >= 5:
		l4 = l3 + int(ip[0]&0xf)*4
	case !v4 && kind == ethIPv6 && ip[0]>>4 == 6 && ip[6] == protoTCP:
		l4 = l3 + 40
	default:
		return 0, 0, 0
	}
	if len(f) < l4+20 {
		return 0, 0, 0
	}
	hdr = l4 + int(f[l4+12]>>4)*4
	if hdr < l4+20 || len(f) < hdr {
		return 0, 0, 0
	}
	return l3, l4, hdr
}

// put writes the descriptors of a plan; there is room for them. The last one has the buffer.
func (q *txQueue) put(b *dma.Buf, p *txPlan) {
	tail := q.c.tail
	if p.want {
		i := q.c.at(tail)
		putContext(q.ring, i, p.ctx)
		q.slots[i] = nil
		if q.cacheContext {
			q.context = p.ctx
		}
		tail++
	}
	addr := b.Addr + bus.IOVA(p.off)
	for left := p.n; left > 0; tail++ {
		k := min(left, p.chunk)
		left -= k
		cmd := p.cmd | txCmd(k)
		i := q.c.at(tail)
		q.slots[i] = nil
		if left > 0 {
			cmd &^= txEOP
		} else {
			q.slots[i] = b
		}
		putTx(q.ring, i, addr, cmd)
		addr += bus.IOVA(k)
	}
	q.c.tail = tail
}

// sum adds the big-endian 16-bit words of b to start, in one's complement.
func sum(start uint32, b []byte) uint16 {
	s := uint64(start)
	for ; len(b) >= 4; b = b[4:] {
		s += uint64(binary.BigEndian.Uint32(b))
	}
	if len(b) >= 2 {
		s += uint64(binary.BigEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) > 0 {
		s += uint64(b[0]) << 8
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}
