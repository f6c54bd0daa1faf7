package pktgen

import (
	"fmt"
	"net/netip"

	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/internal/frame"
)

// headerLen is the length of pktgen's own header.
const headerLen = frame.HeaderLen

// vary says which fields change from packet to packet.
type vary uint16

const (
	varySrcMAC vary = 1 << iota
	varyDstMAC
	varyLabels
	varyVID
	varySVID
	varySrcPort
	varyDstPort
	varySrc
	varyDst // or flows
	varyDst6
	varySize
	varyMix
	varyQueue
)

// template is a finished frame of one configuration and what is needed to make the
// next one of it: where things are, and the part of the checksums that never changes.
type template struct {
	id      uint32 // what a buffer's Tag says while it holds this; never 0
	bytes   []byte // the largest frame
	l3      int    // where the IP header starts
	payload int    // where the payload of UDP starts: all headers
	n       int    // length of a frame, where that does not vary
	v6      bool
	udpSum  bool
	varies  vary
	ipSum   uint32 // of the IPv4 header without identification (and, where they vary, addresses and length)
	udpBase uint32 // of the segment and pseudo header without sequence number and time; where nothing varies
	addrs6  uint32 // of both IPv6 addresses, where they do not vary
}

// frameLen is the length of a frame of a configured size.
func (t *template) frameLen(size uint32) int {
	return t.payload + max(int(int32(size))-t.payload, headerLen)
}

// load puts the template into a buffer that holds something else.
func (t *template) load(b *dma.Buf) {
	copy(b.Mem, t.bytes)
	b.Tag = t.id
}

// renew makes a buffer a packet of this template whose size does not vary. Its content and its Data outlast Free
// and Pool.GetAll.
func (t *template) renew(b *dma.Buf) {
	if b.Tag != t.id {
		t.load(b)
	}
	b.Data = b.Mem[:t.n]
}

// overhead is what stands between the Ethernet and the IP header.
func (d *device) overhead() int {
	n := 4 * len(d.labels)
	if d.vlanID != tagOff {
		n += 4
	}
	if d.svlanID != tagOff {
		n += 4
	}
	return n
}

func (d *device) headers() int {
	if d.flags&flagIPV6 != 0 {
		return 14 + d.overhead() + 40 + 8
	}
	return 14 + d.overhead() + 20 + 8
}

// tci is a tag control information.
func tci(id, cfi, prio uint16) uint16 { return id | cfi<<12 | prio<<13 }

// tags are the tags of the next packet, outermost first.
func (d *device) tags() (tags []uint16) {
	if d.vlanID == tagOff {
		return nil
	}
	if d.svlanID != tagOff {
		tags = append(tags, tci(d.svlanID, d.svlanCFI, d.svlanP))
	}
	return append(tags, tci(d.vlanID, d.vlanCFI, d.vlanP))
}

// largest is the largest size that a packet of this configuration gets.
func (d *device) largest() uint32 {
	n := max(d.minSize, d.maxSize)
	if d.minSize >= d.maxSize {
		for _, e := range d.imix {
			n = max(n, int32(min(e.size, 1<<31-1)))
		}
	}
	return uint32(max(n, 0))
}

// compile makes the template of the configuration and chooses how frames are made from
// it. It fails where the packets cannot be sent.
func (d *device) compile() error {
	t := template{id: d.thr.eng.nextTemplate(), v6: d.flags&flagIPV6 != 0, udpSum: d.flags&flagUDPCSUM != 0, payload: d.headers()}
	t.varies = d.varying()
	if d.cflows > 0 && d.flows == nil {
		d.flows = make([]flow, maxFlows)
	}
	n := t.frameLen(d.largest())
	if c := d.capture; c != nil {
		if mtu := d.nd.MTU(); c.wants > mtu {
			return fmt.Errorf("%s has frames for an MTU of %d, and %s one of %d", c.path, c.wants, d.base, mtu)
		}
		n = t.payload + headerLen // for a template that is not used
	} else if limit := d.sizeLimit(); n > limit {
		return fmt.Errorf("packets of %d bytes do not fit %s: at most %d", n, d.base, limit)
	}
	f, err := frame.Build(d.spec(make([]byte, n-t.payload)))
	if err != nil {
		return err
	}
	t.bytes, t.l3 = f.Bytes, f.L3
	t.n = min(t.frameLen(d.size), n)
	t.sums()
	d.tmpl = t
	p, err := d.port(int(d.queue) % d.ntx)
	if err != nil {
		return err
	}
	d.chunk = 1
	if d.flags&flagSHARED != 0 && d.mode != queueXmit && t.varies&varyQueue == 0 {
		most := p.ring
		if d.mode == netifReceive {
			most = maxHandUp
		}
		d.chunk = int(max(1, min(uint64(d.burst), uint64(most))))
	}
	if len(d.out) < d.chunk {
		out := make([]*dma.Buf, d.chunk)
		d.pending = out[:copy(out, d.pending)]
		d.out = out
	}
	d.dirty = false
	return nil
}

// sizeLimit is the largest frame that the device takes.
func (d *device) sizeLimit() int {
	n := d.nd.MTU() + 14
	if d.vlanID != tagOff {
		n += 4
	}
	return n
}

// spec describes the next packet, with the largest payload.
func (d *device) spec(payload []byte) frame.Spec {
	copy(payload, []byte{frame.Magic >> 24, frame.Magic >> 16 & 0xff, frame.Magic >> 8 & 0xff, frame.Magic & 0xff})
	s := frame.Spec{MPLS: d.labels, VLANs: d.tags(), TTL: 32, SrcPort: d.udpSrc, DstPort: d.udpDst,
		Payload: payload, NoUDPChecksum: d.flags&flagUDPCSUM == 0}
	copy(s.Dst[:], d.hh[0:6])
	copy(s.Src[:], d.hh[6:12])
	if d.flags&flagIPV6 != 0 {
		s.TOS = d.trafficClass
		s.SrcIP, s.DstIP = netip.AddrFrom16(d.saddr6), netip.AddrFrom16(d.daddr6)
	} else {
		s.TOS = d.tos
		s.SrcIP, s.DstIP = addr4(d.saddr), addr4(d.daddr)
	}
	return s
}

func addr4(a uint32) netip.Addr {
	return netip.AddrFrom4([4]byte{byte(a >> 24), byte(a >> 16), byte(a >> 8), byte(a)})
}

// varying tells which fields change from packet to packet.
func (d *device) varying() (v vary) {
	set := func(on bool, f vary) {
		if on {
			v |= f
		}
	}
	set(d.srcMACCount > 1, varySrcMAC)
	set(d.dstMACCount > 1, varyDstMAC)
	set(d.flags&flagMPLS_RND != 0 && len(d.labels) > 0, varyLabels)
	set(d.flags&flagVID_RND != 0 && d.vlanID != tagOff, varyVID)
	set(d.flags&flagSVID_RND != 0 && d.svlanID != tagOff, varySVID)
	set(d.udpSrcMin < d.udpSrcMax, varySrcPort)
	set(d.udpDstMin < d.udpDstMax, varyDstPort)
	if d.flags&flagIPV6 == 0 {
		set(d.saddrMin < d.saddrMax, varySrc)
		set(d.daddrMin < d.daddrMax || d.cflows > 0, varyDst)
	} else {
		set(d.min6Dst != [16]byte{}, varyDst6)
	}
	set(d.minSize < d.maxSize, varySize)
	set(d.minSize >= d.maxSize && len(d.imix) > 0, varyMix)
	set(d.flags&flagQUEUE_MAP_CPU == 0 && d.queueMin < d.queueMax && d.ntx > 1, varyQueue)
	return v
}

// sums prepares the checksums.
func (t *template) sums() {
	var ip uint64
	h := t.bytes[t.l3:]
	if !t.v6 {
		for i := 0; i < 20; i += 2 {
			constant := i != 4 && i != 10 && (t.varies == 0 || i != 2 && i < 12)
			if constant {
				ip += uint64(h[i])<<8 | uint64(h[i+1])
			}
		}
		t.ipSum = uint32(ip)
	} else if t.varies&varyDst6 == 0 {
		t.addrs6 = sum(h[8:40])
	}
	if t.varies != 0 {
		return
	}
	// Nothing varies: all of the segment but the checksum itself, sequence number and time,
	// which are 0 in the template.
	var b uint32
	if t.v6 {
		b = t.addrs6
	} else {
		b = sum(h[12:20])
	}
	udp := t.bytes[t.payload-8 : t.n]
	n := uint32(len(udp))
	b = uint32(fold(b)) + 17 + n + sum(udp[0:6]) + sum(udp[8:24])
	t.udpBase = uint32(fold(b))
}

// sum adds up the 16-bit words of b, whose length is even and small.
func sum(b []byte) (s uint32) {
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(b[i])<<8 | uint32(b[i+1])
	}
	return s
}

// fold brings a sum down to 16 bits.
func fold(s uint32) uint16 {
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	return uint16(s)
}
