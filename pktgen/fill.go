package pktgen

import (
	"encoding/binary"

	"github.com/ring3dev/ring3/bus/dma"
)

// fill builds a packet in each buffer, the first with sequence number seq.
func (d *device) fill(bufs []*dma.Buf, seq uint32) {
	if len(bufs) == 0 {
		return
	}
	var ts uint64
	if d.flags&flagNO_TIMESTAMP == 0 {
		ts = d.stamp()
	}
	t := &d.tmpl
	switch {
	case t.varies != 0:
		for i, b := range bufs {
			d.fillVarying(b, seq+uint32(i), ts)
		}
	case t.v6:
		t.fill6(bufs, seq, ts)
	default:
		d.ipID = t.fill4(bufs, seq, d.ipID, ts)
	}
	d.built = true
}

// stamp is the time of day as packets carry it: seconds and microseconds. Where the kernel's
// clock is no counter that programs can read, each reading is a system call of some
// microseconds, so there is only one for a burst.
func (d *device) stamp() uint64 {
	now := mono()
	if now-d.wallAt > wallTime {
		d.wall, d.wallAt = wallOffset(), now
	}
	us := uint64(d.wall+now) / 1000
	return us/1e6<<32 | us%1e6
}

// fill4 is the loop for IPv4 where only sequence number, time and identification change.
// It returns the next identification.
func (t *template) fill4(bufs []*dma.Buf, seq uint32, id uint16, ts uint64) uint16 {
	tag, l3, n, ipSum := t.id, t.l3, t.n, t.ipSum
	tsum := t.udpBase + words(ts)
	for _, b := range bufs {
		if b.Tag != tag || len(b.Data) != n {
			t.renew(b)
		}
		h := (*[44]byte)(b.Data[l3 : l3+44 : l3+44])
		binary.BigEndian.PutUint16(h[4:], id)
		binary.BigEndian.PutUint16(h[10:], ^fold(ipSum+uint32(id)))
		binary.BigEndian.PutUint32(h[32:], seq)
		binary.BigEndian.PutUint64(h[36:], ts)
		if t.udpSum {
			binary.BigEndian.PutUint16(h[26:], udpCheck(tsum+seq>>16+seq&0xffff))
		}
		seq++
		id++
	}
	return id
}

// fill6 is the loop for IPv6 where only sequence number and time change.
func (t *template) fill6(bufs []*dma.Buf, seq uint32, ts uint64) {
	tag, l3, n := t.id, t.l3, t.n
	tsum := t.udpBase + words(ts)
	for _, b := range bufs {
		if b.Tag != tag || len(b.Data) != n {
			t.renew(b)
		}
		h := (*[64]byte)(b.Data[l3 : l3+64 : l3+64])
		binary.BigEndian.PutUint32(h[52:], seq)
		binary.BigEndian.PutUint64(h[56:], ts)
		if t.udpSum {
			binary.BigEndian.PutUint16(h[46:], udpCheck(tsum+seq>>16+seq&0xffff))
		}
		seq++
	}
}

// fillVarying builds one packet all of whose fields may differ from the template's.
func (d *device) fillVarying(b *dma.Buf, seq uint32, ts uint64) {
	t := &d.tmpl
	d.nextHeaders(t.varies)
	if b.Tag != t.id {
		t.load(b)
	}
	n := min(t.frameLen(d.size), len(t.bytes))
	b.Data = b.Mem[:n]
	m := b.Data
	*(*[12]byte)(m) = d.hh
	if t.varies&(varyLabels|varyVID|varySVID) != 0 {
		d.putTags(m)
	}
	udpLen := uint16(n - t.payload + 8)
	seqSum := seq>>16 + seq&0xffff + words(ts)
	if t.v6 {
		h := (*[64]byte)(m[t.l3:])
		binary.BigEndian.PutUint16(h[4:], udpLen)
		addrs := t.addrs6
		if t.varies&varyDst6 != 0 {
			*(*[16]byte)(h[24:]) = d.daddr6
			addrs = sum(h[8:40])
		}
		u := (*[24]byte)(h[40:])
		d.putUDP(u, udpLen, seq, ts)
		if t.udpSum {
			binary.BigEndian.PutUint16(u[6:], udpCheck(addrs+17+uint32(udpLen)+sum(u[0:6])+magicSum+seqSum))
		}
		return
	}
	h := (*[44]byte)(m[t.l3:])
	addrs := d.saddr>>16 + d.saddr&0xffff + d.daddr>>16 + d.daddr&0xffff
	binary.BigEndian.PutUint16(h[2:], udpLen+20)
	binary.BigEndian.PutUint16(h[4:], d.ipID)
	binary.BigEndian.PutUint16(h[10:], ^fold(t.ipSum+uint32(udpLen)+20+uint32(d.ipID)+addrs))
	binary.BigEndian.PutUint32(h[12:], d.saddr)
	binary.BigEndian.PutUint32(h[16:], d.daddr)
	d.ipID++
	u := (*[24]byte)(h[20:])
	d.putUDP(u, udpLen, seq, ts)
	if t.udpSum {
		binary.BigEndian.PutUint16(u[6:], udpCheck(addrs+17+uint32(udpLen)+sum(u[0:6])+magicSum+seqSum))
	}
}

// putUDP writes ports, length, sequence number and time.
func (d *device) putUDP(u *[24]byte, n uint16, seq uint32, ts uint64) {
	binary.BigEndian.PutUint16(u[0:], d.udpSrc)
	binary.BigEndian.PutUint16(u[2:], d.udpDst)
	binary.BigEndian.PutUint16(u[4:], n)
	binary.BigEndian.PutUint32(u[12:], seq)
	binary.BigEndian.PutUint64(u[16:], ts)
}

// putTags writes the label stack, its bottom bit only on the last, or the VLAN tags.
func (d *device) putTags(m []byte) {
	at := 14
	for i, l := range d.labels {
		l &^= labelBottom
		if i == len(d.labels)-1 {
			l |= labelBottom
		}
		binary.BigEndian.PutUint32(m[at:], l)
		at += 4
	}
	if d.vlanID == tagOff {
		return
	}
	if d.svlanID != tagOff {
		binary.BigEndian.PutUint16(m[at:], tci(d.svlanID, d.svlanCFI, d.svlanP))
		at += 4
	}
	binary.BigEndian.PutUint16(m[at:], tci(d.vlanID, d.vlanCFI, d.vlanP))
}

// magicSum is the sum of the two words of the magic number.
const magicSum = 0xbe9b + 0xe955

// words adds up the four words of v.
func words(v uint64) uint32 {
	return uint32(v>>48 + v>>32&0xffff + v>>16&0xffff + v&0xffff)
}

// udpCheck is the checksum that goes with a sum; 0 would mean that there is none.
func udpCheck(s uint32) uint16 {
	c := ^fold(s)
	if c == 0 {
		return 0xffff
	}
	return c
}
