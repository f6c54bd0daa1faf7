package pktgen

// nextHeaders moves every field that varies to its next value. It runs before a packet
// is built, so a sequential range starts at its second value (MAC offsets at their first).
func (d *device) nextHeaders(v vary) {
	flow := uint32(0)
	if d.cflows > 0 {
		flow = d.pickFlow()
	}
	if v&varySrcMAC != 0 {
		base := d.srcMAC
		if base == [6]byte{} && !d.prof().Strict {
			base = d.mac6
		}
		walkMAC((*[6]byte)(d.hh[6:12]), base, d.step(&d.srcMACOff, d.srcMACCount, d.flags&flagMACSRC_RND != 0))
	}
	if v&varyDstMAC != 0 {
		walkMAC((*[6]byte)(d.hh[0:6]), d.dstMAC, d.step(&d.dstMACOff, d.dstMACCount, d.flags&flagMACDST_RND != 0))
	}
	if v&(varyLabels|varyVID|varySVID) != 0 {
		d.nextTags(v)
	}
	if v&varySrcPort != 0 {
		d.udpSrc = d.nextPort(d.udpSrc, d.udpSrcMin, d.udpSrcMax, d.flags&flagUDPSRC_RND != 0)
	}
	if v&varyDstPort != 0 {
		d.udpDst = d.nextPort(d.udpDst, d.udpDstMin, d.udpDstMax, d.flags&flagUDPDST_RND != 0)
	}
	if v&varySrc != 0 {
		if d.flags&flagIPSRC_RND != 0 {
			d.saddr = d.saddrMin + d.random(d.saddrMax-d.saddrMin)
		} else {
			d.saddr = nextAddr(d.saddr, d.saddrMin, d.saddrMax)
		}
	}
	if v&varyDst != 0 {
		d.nextDst(flow)
	}
	if v&varyDst6 != 0 {
		d.nextDst6()
	}
	if v&(varySize|varyMix) != 0 {
		d.nextSize(v)
	}
	if d.cflows > 0 {
		d.flows[flow&(maxFlows-1)].count++
	}
}

// pickFlow chooses the flow of the next packet.
func (d *device) pickFlow() uint32 {
	if d.flags&flagFLOW_SEQ != 0 {
		f := &d.flows[d.curFlow&(maxFlows-1)]
		if f.count >= d.lflow {
			f.count, f.seen = 0, false
			if d.curFlow++; d.curFlow >= d.cflows {
				d.curFlow = 0
			}
		}
		return d.curFlow
	}
	d.curFlow = d.random(d.cflows)
	if f := &d.flows[d.curFlow&(maxFlows-1)]; f.count > d.lflow {
		f.count, f.seen = 0, false
	}
	return d.curFlow
}

// step is an offset below n: a random one, or the next.
func (d *device) step(off *uint32, n uint32, random bool) uint32 {
	if random {
		return d.random(n)
	}
	v := *off
	if *off++; *off >= n {
		*off = 0
	}
	return v
}

// walkMAC sets m to base plus off, carrying from the last byte into the second; the
// first stays what it is.
func walkMAC(m *[6]byte, base [6]byte, off uint32) {
	v := uint64(base[1])<<32 | uint64(base[2])<<24 | uint64(base[3])<<16 | uint64(base[4])<<8 | uint64(base[5])
	v += uint64(off)
	m[1], m[2], m[3], m[4], m[5] = byte(v>>32), byte(v>>24), byte(v>>16), byte(v>>8), byte(v)
}

// nextTags draws the labels and VLAN ids that are random.
func (d *device) nextTags(v vary) {
	if v&varyLabels != 0 {
		for i, l := range d.labels {
			if l&labelBottom != 0 {
				d.labels[i] = labelBottom | uint32(d.rng.Uint64())&labelRandBits
			}
		}
	}
	if v&varyVID != 0 {
		d.vlanID = uint16(d.random(4096))
	}
	if v&varySVID != 0 {
		d.svlanID = uint16(d.random(4096))
	}
}

// nextPort is the port after cur; the range excludes limit.
func (d *device) nextPort(cur, first, limit uint16, random bool) uint16 {
	if random {
		return first + uint16(d.random(uint32(limit-first)))
	}
	if cur++; cur >= limit {
		return first
	}
	return cur
}

// nextAddr is the address after cur; the range includes last.
func nextAddr(cur, first, last uint32) uint32 {
	if cur++; cur > last {
		return first
	}
	return cur
}

// nextDst moves the IPv4 destination, or takes it from the flow.
func (d *device) nextDst(i uint32) {
	f := (*flow)(nil)
	if d.cflows > 0 {
		f = &d.flows[i&(maxFlows-1)]
		if f.seen {
			d.daddr = f.daddr
			return
		}
	}
	if d.daddrMin < d.daddrMax {
		if d.flags&flagIPDST_RND != 0 {
			d.daddr = d.randomDst()
		} else {
			d.daddr = nextAddr(d.daddr, d.daddrMin, d.daddrMax)
		}
	}
	if f != nil {
		f.seen, f.daddr = true, d.daddr
		d.nflows++
	}
}

// dstTries bounds the search for a destination in a range that may hold none.
const dstTries = 1000

// randomDst is a random address of the range, its last excluded, that is neither loopback, multicast,
// limited broadcast nor 0.0.0.0. The rest of network 0 is as good as any (since Linux 5.3).
func (d *device) randomDst() (a uint32) {
	for range dstTries {
		a = d.daddrMin + d.random(d.daddrMax-d.daddrMin)
		if a>>24 != 127 && a>>28 != 14 && a != 0xffffffff && a != 0 {
			break
		}
	}
	return a
}

// nextDst6 draws an IPv6 destination: random bits, those of the minimum set, those that
// the maximum lacks cleared.
func (d *device) nextDst6() {
	for i := 0; i < 16; i += 8 {
		r := d.rng.Uint64()
		for j := range 8 {
			d.daddr6[i+j] = (byte(r>>(8*j)) | d.min6Dst[i+j]) & d.max6Dst[i+j]
		}
	}
}

// nextSize moves the size of the packet.
func (d *device) nextSize(v vary) {
	switch {
	case v&varyMix != 0:
		e := &d.imix[int(d.imixSlot[d.random(imixSlots)])%len(d.imix)]
		e.count++
		d.size = uint32(e.size)
	case d.flags&flagTXSIZE_RND != 0:
		d.size = uint32(d.minSize) + d.random(uint32(d.maxSize)-uint32(d.minSize))
	default:
		if d.size++; int32(d.size) > d.maxSize {
			d.size = uint32(d.minSize)
		}
	}
}

// nextQueue moves the transmit queue and returns it; the range includes its maximum.
func (d *device) nextQueue() int {
	switch {
	case d.flags&flagQUEUE_MAP_CPU != 0:
		d.queue = uint16(d.thr.cpu % d.ntx)
	case d.queueMin > d.queueMax:
	case d.flags&flagQUEUE_MAP_RND != 0:
		d.queue = d.queueMin + uint16(d.random(uint32(d.queueMax-d.queueMin)+1))
	default:
		if d.queue++; d.queue < d.queueMin || d.queue > d.queueMax {
			d.queue = d.queueMin
		}
	}
	d.queue %= uint16(d.ntx)
	return int(d.queue)
}
