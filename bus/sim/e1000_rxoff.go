package sim

import "encoding/binary"

// e1RxDesc is a frame on its way to memory, and what its last descriptor will say.
type e1RxDesc struct {
	first, more, fcs []byte
	tagged           bool
	tag              uint16
	queue            int
	status           uint32 // extended status and error: 82574L 7.1.4
	low              uint64 // of an extended descriptor: RSS, or packet checksum and IP identification
	csum             uint16 // of a legacy one
	ack              bool
}

// Extended status and errors. Bits 0 to 7 and 24 to 31 are also those of legacy descriptors.
const (
	e1RxIXSM  = 1 << 2
	e1RxUDPCS = 1 << 4
	e1RxTCPCS = 1 << 5
	e1RxIPCS  = 1 << 6
	e1RxIPIDV = 1 << 9
	e1RxACK   = 1 << 15
	e1RxTCPE  = 1 << 29
	e1RxIPE   = 1 << 30
)

// parsed is what is in a frame. Offsets are in the packet, from the IP header on.
type parsed struct {
	p        []byte // the packet, as long as it says
	v4, v6   bool
	ext      bool // IPv6 with extension headers
	fragment bool
	proto    uint8
	hdr      int // length of the IP header or headers
}

const (
	protoTCP = 6
	protoUDP = 17
)

// parse looks at a packet of an Ethernet type. Nothing that is in it is trusted.
func parse(etype uint16, p []byte) (x parsed) {
	switch etype {
	case 0x0800:
		return parse4(p)
	case 0x86dd:
		return parse6(p)
	}
	return x
}

func parse4(p []byte) (x parsed) {
	if len(p) < 20 || p[0]>>4 != 4 {
		return x
	}
	hdr, n := int(p[0]&15)*4, int(binary.BigEndian.Uint16(p[2:]))
	if hdr < 20 || n < hdr || n > len(p) {
		return x
	}
	return parsed{p: p[:n], v4: true, hdr: hdr, proto: p[9], fragment: binary.BigEndian.Uint16(p[6:])&0x3fff != 0}
}

func parse6(p []byte) (x parsed) {
	if len(p) < 40 || p[0]>>4 != 6 {
		return x
	}
	n := 40 + int(binary.BigEndian.Uint16(p[4:]))
	if n > len(p) {
		return x
	}
	x = parsed{p: p[:n], v6: true, hdr: 40, proto: p[6]}
	for range 8 {
		switch x.proto {
		case 0, 43, 60: // hop-by-hop, routing, destination
		case 44:
			x.fragment = true
		default:
			return x
		}
		if x.hdr+8 > n {
			break
		}
		h := x.p[x.hdr:]
		size := 8
		if x.proto != 44 {
			size += int(h[1]) * 8
		}
		if x.hdr+size > n {
			break
		}
		x.proto, x.hdr, x.ext = h[0], x.hdr+size, true
	}
	return x
}

// l4 is the TCP or UDP header and what follows, nil if it is not all there.
func (x *parsed) l4() []byte {
	p := x.p[x.hdr:]
	if x.fragment || x.proto == protoTCP && len(p) < 20 || x.proto == protoUDP && len(p) < 8 {
		return nil
	}
	if x.proto == protoTCP || x.proto == protoUDP {
		return p
	}
	return nil
}

// sum adds up 16-bit words, big-endian, into a sum of 64 bits that holds carries.
func sum(p []byte, s uint64) uint64 {
	for len(p) >= 8 {
		v := binary.BigEndian.Uint64(p)
		s += v>>32 + v&0xffffffff
		p = p[8:]
	}
	for len(p) >= 2 {
		s += uint64(binary.BigEndian.Uint16(p))
		p = p[2:]
	}
	if len(p) > 0 {
		s += uint64(p[0]) << 8
	}
	return s
}

// fold makes the 16-bit one's complement sum of it.
func fold(s uint64) uint16 {
	s = s>>32 + s&0xffffffff
	for s>>16 != 0 {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

// classify looks into a frame: checksums, hash, queue.
func (c *e1000) classify(d *e1RxDesc) {
	f := d.more
	etype := uint16(0)
	var p []byte
	if d.tagged {
		etype, p = binary.BigEndian.Uint16(f), f[2:]
	} else if etype, p = binary.BigEndian.Uint16(f[12:]), f[14:]; etype == uint16(c.r(e1VET)) {
		etype, p = binary.BigEndian.Uint16(p[2:]), p[4:]
	}
	x := parse(etype, p)
	rxcsum := c.r(e1RXCSUM)
	pcsd := c.m.pcie && rxcsum&e1CsumPCSD != 0
	if !pcsd && rxcsum&^e1CsumPCSD != 0 {
		d.csum = c.packetSum(d, int(rxcsum&0xff))
		d.low = uint64(d.csum) << 48
	}
	if !x.v4 && !x.v6 {
		d.status = c.ignore()
		return
	}
	l4 := x.l4()
	if c.m.pcie {
		c.kind(d, &x, l4)
		if !pcsd && x.v4 {
			d.status |= e1RxIPIDV
			d.low |= uint64(binary.BigEndian.Uint16(x.p[4:])) << 32
		}
		if pcsd && c.on(e1RFCTL, e1RFExten) && c.r(e1MRQC)&3 == 1 {
			c.rss(d, &x, l4)
		}
	}
	c.verify(d, &x, l4)
}

// packetSum is the packet checksum, 3.2.9: of all from PCSS on.
func (c *e1000) packetSum(d *e1RxDesc, start int) uint16 {
	a, b := d.first, d.more
	if k := min(start, len(a)); k > 0 {
		a, start = a[k:], start-k
	}
	b = b[min(start, len(b)):]
	return ^fold(sum(b, sum(a, 0)))
}

// kind is the packet type, 82574L 7.1.4.
func (c *e1000) kind(d *e1RxDesc, x *parsed, l4 []byte) {
	switch {
	case x.v6 && c.on(e1RFCTL, e1RFNoV6):
	case x.v4 && l4 == nil:
		d.status |= 1 << 16
	case x.v4:
		d.status |= 2 << 16
	case l4 == nil:
		d.status |= 5 << 16
	default:
		d.status |= 6 << 16
	}
	if l4 != nil && x.proto == protoTCP && l4[13]&0x10 != 0 {
		if !c.on(e1RFCTL, e1RFACKNoData) || len(l4) <= int(l4[12]>>4)*4 {
			d.ack = true
			d.status |= e1RxACK
		}
	}
}

// ignore says that there was nothing to verify, 3.2.3. The 82574L just says nothing.
func (c *e1000) ignore() uint32 {
	if c.m.pcie {
		return 0
	}
	return e1RxIXSM
}

// verify checks checksums, 3.2.9 and 82574L 7.1.
func (c *e1000) verify(d *e1RxDesc, x *parsed, l4 []byte) {
	rxcsum := c.r(e1RXCSUM)
	if rxcsum&(e1CsumIP|e1CsumTU) == 0 {
		d.status |= c.ignore()
		return
	}
	if x.v6 && (c.m.pcie && c.on(e1RFCTL, e1RFNoV6Sum) || !c.m.pcie && rxcsum&e1CsumV6 == 0) {
		d.status |= c.ignore()
		return
	}
	if x.v4 && rxcsum&e1CsumIP != 0 {
		d.status |= e1RxIPCS
		if fold(sum(x.p[:x.hdr], 0)) != 0xffff {
			d.status |= e1RxIPE
		}
	}
	if l4 == nil || rxcsum&e1CsumTU == 0 {
		return
	}
	if x.proto == protoUDP {
		n := int(binary.BigEndian.Uint16(l4[4:]))
		if binary.BigEndian.Uint16(l4[6:]) == 0 || n < 8 || n > len(l4) {
			return // there is none, or it cannot be
		}
		l4 = l4[:n]
		if c.m.pcie {
			d.status |= e1RxUDPCS
		}
	}
	d.status |= e1RxTCPCS
	s := uint64(x.proto) + uint64(len(l4))
	if x.v4 {
		s = sum(x.p[12:20], s)
	} else {
		s = sum(x.p[8:40], s)
	}
	if fold(sum(l4, s)) != 0xffff {
		d.status |= e1RxTCPE
	}
}

// rss chooses the queue, 82574L 7.1.
func (c *e1000) rss(d *e1RxDesc, x *parsed, l4 []byte) {
	mrqc := c.r(e1MRQC)
	tcp := l4 != nil && x.proto == protoTCP
	kind, in := uint64(0), []byte(nil)
	switch {
	case x.v4 && tcp && mrqc&(1<<16) != 0:
		kind = 1
	case x.v4 && mrqc&(1<<17) != 0:
		kind, tcp = 2, false
	case x.v6 && tcp && mrqc&(1<<18) != 0 && !(x.ext && c.on(e1RFCTL, e1RFNoV6Ex)):
		kind = 3
	case x.v6 && mrqc&(1<<19) != 0 && !(x.ext && c.on(e1RFCTL, e1RFNoV6Ex)):
		kind, tcp = 4, false
	case x.v6 && mrqc&(1<<20) != 0:
		kind, tcp = 5, false
	default:
		return
	}
	if in = x.p[12:20]; x.v6 {
		in = x.p[8:40]
	}
	h := toeplitz{key: c.reg[e1RSSRK/4:][:10]}
	h.add(in)
	if tcp {
		h.add(l4[:4])
	}
	d.queue = int(c.reg[e1RETA/4+h.sum&127/4] >> (h.sum & 3 * 8) >> 7 & 1)
	d.low = uint64(h.sum)<<32 | uint64(d.queue)<<8 | kind
}

// toeplitz is the hash of RSS, over a key of 40 bytes in little-endian registers.
type toeplitz struct {
	key []uint32
	at  int // bytes so far
	sum uint32
}

// byteAt is byte i of the key, which repeats.
func (h *toeplitz) byteAt(i int) uint32 {
	i %= 40
	return h.key[i/4] >> (i % 4 * 8) & 0xff
}

func (h *toeplitz) add(p []byte) {
	for _, b := range p {
		// The 40 bits of the key from here on.
		w := uint64(0)
		for k := range 5 {
			w = w<<8 | uint64(h.byteAt(h.at+k))
		}
		for bit := range 8 {
			if b>>(7-bit)&1 != 0 {
				h.sum ^= uint32(w >> (8 - bit))
			}
		}
		h.at++
	}
}
