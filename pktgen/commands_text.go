package pktgen

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// The commands of a device's file whose value is more than a number.

// textLen is how much of an IPv4 address is kept, mac and mode names likewise;
// text6Len of an IPv6 address.
const (
	textLen  = 31
	text6Len = 127
)

func (d *device) cmdImix(s *scanner) (string, error) {
	if d.cloneSkb > 0 {
		return "", unix.EINVAL
	}
	mix, err := s.imix()
	if err == nil || d.prof().Strict {
		d.setImix(mix)
	}
	if err == nil {
		d.fillImix()
	}
	return "", err
}

// imix reads a mix. With an error it is what stands before that.
func (s *scanner) imix() (mix []imixEntry, err error) {
	for {
		if len(mix) == maxImix {
			return mix, unix.E2BIG
		}
		size := max(s.num(digits), minSize)
		if c, more := s.next(); !more || c != ',' {
			return mix, unix.EINVAL
		}
		weight := s.num(digits)
		if weight == 0 {
			return mix, unix.EINVAL
		}
		mix = append(mix, imixEntry{size: size, weight: weight})
		if c, more := s.next(); !more || c != ' ' {
			return mix, nil
		}
	}
}

// setImix makes a mix the device's. As in the kernel, entries go on counting where those at their
// place were.
func (d *device) setImix(mix []imixEntry) {
	for i, e := range mix {
		d.imixEntries[i].size, d.imixEntries[i].weight = e.size, e.weight
	}
	d.imix = d.imixEntries[:len(mix)]
	d.dirty = true
}

// fillImix spreads the weights over the slots that a random number picks from; the last
// size gets what rounding leaves.
func (d *device) fillImix() {
	var total, sum uint64
	for _, e := range d.imix {
		total += e.weight
	}
	slot := uint64(0)
	for i, e := range d.imix {
		sum += e.weight * imixSlots / total
		if i == len(d.imix)-1 {
			sum = imixSlots
		}
		for ; slot < min(sum, imixSlots); slot++ {
			d.imixSlot[slot] = uint8(i)
		}
	}
}

func (d *device) cmdXmitMode(s *scanner) (string, error) {
	switch name := s.word(textLen); name {
	case "start_xmit":
		d.mode = startXmit
		return ok("xmit_mode=%s", name)
	case "netif_receive":
		if d.cloneSkb > 0 {
			return "", unix.EOPNOTSUPP
		}
		d.mode, d.sentOnce = netifReceive, true
		return ok("xmit_mode=%s", name)
	case "queue_xmit":
		d.mode, d.sentOnce = queueXmit, true
		return ok("xmit_mode=%s", name)
	default:
		return fmt.Sprintf("xmit_mode -:%s:- unknown\nAvailable modes: start_xmit, netif_receive\n", name), nil
	}
}

func (d *device) cmdFlag(s *scanner) (string, error) {
	name := s.word(textLen)
	f, clear := d.parseFlag(name)
	switch {
	case f == 0:
		return fmt.Sprintf("Flag -:%s:- unknown\nAvailable flags, (prepend ! to un-set flag):\n%s", name, d.flagList()), nil
	case clear && f == flagSHARED && (d.cloneSkb != 0 || d.burst > 1):
		return "", unix.EINVAL
	case clear:
		d.flags &^= f
	default:
		d.flags |= f
	}
	return ok("flags=0x%x", uint32(d.flags)&(1<<len(d.flagNames())-1))
}

func (d *device) cmdMPLS(s *scanner) (string, error) {
	var labels []uint32
	random := false
	for {
		if len(labels) == maxLabels {
			if d.prof().Strict {
				d.labels, d.dirty = nil, true
			}
			return "", unix.E2BIG
		}
		zeroLabel := d.prof().ZeroLabel
		if len(s.p) == 0 && !zeroLabel {
			return "", unix.EINVAL
		}
		v, n := s.hex(8)
		if n == 0 || v == 0 && !zeroLabel {
			labels = nil // not a label, or 0: none at all
			break
		}
		labels = append(labels, v)
		random = random || v&labelBottom != 0
		if c, more := s.next(); !more || c != ',' {
			break
		}
	}
	d.labels = labels
	if random {
		d.flags |= flagMPLS_RND
	}
	if len(labels) > 0 {
		d.vlanID, d.svlanID = tagOff, tagOff
	}
	return ok("mpls=%s", joinLabels(labels, ","))
}

func (d *device) cmdDstMAC(s *scanner) (string, error) {
	m, valid := parseMAC(s.word(textLen))
	if !valid {
		return "", unix.EINVAL
	}
	d.dstMAC = m
	copy(d.hh[0:6], m[:])
	return ok("dstmac %s", fmtMAC(m))
}

func (d *device) cmdSrcMAC(s *scanner) (string, error) {
	m, valid := parseMAC(s.word(textLen))
	if !valid {
		return "", unix.EINVAL
	}
	d.srcMAC = m
	copy(d.hh[6:12], m[:])
	return ok("srcmac %s", fmtMAC(m))
}

// setAddr keeps an address as it was written and starts the walk at it.
func setAddr(text *string, limit, cur *uint32, s *scanner) {
	if v := s.word(textLen); v != *text {
		*text, *limit, *cur = v, aton(v), aton(v)
	}
}

func (d *device) cmdDstMin(s *scanner) (string, error) {
	setAddr(&d.dstMin, &d.daddrMin, &d.daddr, s)
	return ok("dst_min=%s", d.dstMin)
}

func (d *device) cmdDstMax(s *scanner) (string, error) {
	setAddr(&d.dstMax, &d.daddrMax, &d.daddr, s)
	return ok("dst_max=%s", d.dstMax)
}

func (d *device) cmdSrcMin(s *scanner) (string, error) {
	setAddr(&d.srcMin, &d.saddrMin, &d.saddr, s)
	return ok("src_min=%s", d.srcMin)
}

func (d *device) cmdSrcMax(s *scanner) (string, error) {
	setAddr(&d.srcMax, &d.saddrMax, &d.saddr, s)
	return ok("src_max=%s", d.srcMax)
}

// setAddr6 reads an IPv6 address; one that is none leaves the address, but not IPv4.
func (d *device) setAddr6(a *[16]byte, s *scanner) string {
	d.flags |= flagIPV6
	if v, valid := pton6(s.word(text6Len)); valid {
		*a = v
	}
	return ntop6(*a)
}

func (d *device) cmdDst6(s *scanner) (string, error) {
	text := d.setAddr6(&d.in6Dst, s)
	d.daddr6 = d.in6Dst
	return ok("dst6=%s", text)
}

func (d *device) cmdDst6Min(s *scanner) (string, error) {
	text := d.setAddr6(&d.min6Dst, s)
	d.daddr6 = d.min6Dst
	return ok("dst6_min=%s", text)
}

func (d *device) cmdDst6Max(s *scanner) (string, error) {
	return ok("dst6_max=%s", d.setAddr6(&d.max6Dst, s))
}

func (d *device) cmdSrc6(s *scanner) (string, error) {
	text := d.setAddr6(&d.in6Src, s)
	d.saddr6 = d.in6Src
	return ok("src6=%s", text)
}
