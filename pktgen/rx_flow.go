package pktgen

import (
	"cmp"
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// flowKey is what frames of one flow have in common: addresses, ports, VLAN ids.
type flowKey struct {
	a, b, c, d uint64 // IPv6: source and destination. IPv4: both in a
	e          uint64 // source and destination port, keyIPv6, and up to two tags (tagPresent | id)
}

const (
	keyIPv6   = 1 << 26
	portShift = 27
)

// hash spreads keys; what it makes of them depends on seed, so that nobody who sends can know which flows meet.
func (k *flowKey) hash(seed uint64) uint64 {
	hi, lo := bits.Mul64(k.a^seed, k.e^0x9e3779b97f4a7c15)
	h := hi ^ lo
	if k.e&keyIPv6 != 0 {
		hi, lo = bits.Mul64(k.b^h, k.c^0xe7037ed1a0b428db)
		h = hi ^ lo
		hi, lo = bits.Mul64(k.d^h, 0x8ebc6af09c88c6e3)
		h = hi ^ lo
	}
	return h
}

// addrs are the addresses, ports and VLAN ids, outermost first, of a key.
func (k *flowKey) addrs() (src, dst netip.AddrPort, vlans []uint16) {
	sport, dport := uint16(k.e>>(portShift+16)), uint16(k.e>>portShift)
	if k.e&keyIPv6 != 0 {
		var s, d [16]byte
		binary.BigEndian.PutUint64(s[:], k.a)
		binary.BigEndian.PutUint64(s[8:], k.b)
		binary.BigEndian.PutUint64(d[:], k.c)
		binary.BigEndian.PutUint64(d[8:], k.d)
		src, dst = netip.AddrPortFrom(netip.AddrFrom16(s), sport), netip.AddrPortFrom(netip.AddrFrom16(d), dport)
	} else {
		src, dst = netip.AddrPortFrom(addr4(uint32(k.a>>32)), sport), netip.AddrPortFrom(addr4(uint32(k.a)), dport)
	}
	for _, t := range []uint64{k.e >> tagBits, k.e} {
		if t&tagPresent != 0 {
			vlans = append(vlans, uint16(t&0xfff))
		}
	}
	return src, dst, vlans
}

// rxFlow is what was received of one flow.
type rxFlow struct {
	key  flowKey
	hash uint64

	frames, bytes      uint64
	reordered, doubled uint64
	lost               uint64 // of its runs that made room
	latency            span
	run                int32 // that the last frame belonged to
	mixed              bool  // its runs have frames of other flows too: what is lost cannot be told apart
}

// span is the latency of some frames, in ns.
type span struct{ n, sum, min, max uint64 }

func (s *span) add(ns uint64) {
	if s.n++; s.n == 1 || ns < s.min {
		s.min = ns
	}
	s.max = max(s.max, ns)
	s.sum += ns
}

const (
	maxRxFlows = 4096
	flowSlots  = 2 * maxRxFlows
	maxProbes  = 64 // of slots, before a flow counts as one of the others
	otherFlow  = maxRxFlows
)

// flowTable finds flows: open addressing with a bounded search. The last entry counts what
// finds no place.
type flowTable struct {
	seed  uint64
	last  int32 // the flow of the last frame
	n     int
	slots [flowSlots]uint16 // 1 + the number of a flow; 0: none
	flows [maxRxFlows + 1]rxFlow
}

// find finds the flow of a frame and says so in p.
func (t *flowTable) find(p *parsed) *rxFlow {
	if f := &t.flows[t.last]; f.key == p.key && int(t.last) < t.n {
		p.flow, p.hash, p.fresh = t.last, f.hash, false
		return f
	}
	p.hash = p.key.hash(t.seed)
	p.flow, p.fresh = t.search(p)
	t.last = p.flow
	return &t.flows[p.flow]
}

// search finds or makes the flow of a frame.
func (t *flowTable) search(p *parsed) (i int32, fresh bool) {
	at := p.hash
	for range maxProbes {
		slot := &t.slots[at%flowSlots]
		if *slot == 0 {
			if t.n == maxRxFlows {
				break
			}
			i = int32(t.n)
			t.flows[i] = rxFlow{key: p.key, hash: p.hash, run: t.flows[t.last].run}
			t.n++
			*slot = uint16(t.n)
			return i, true
		}
		if f := &t.flows[*slot-1]; f.hash == p.hash && f.key == p.key {
			return int32(*slot) - 1, false
		}
		at++
	}
	return otherFlow, false
}

// clear forgets all flows. The run of the last frame stays the first guess for the next.
func (t *flowTable) clear() {
	run := t.flows[t.last].run
	clear(t.flows[:t.n])
	clear(t.slots[:])
	t.n, t.last = 0, otherFlow
	t.flows[otherFlow] = rxFlow{run: run}
}

// byFrames orders flows for people: those with most frames first.
func byFrames(a, b *rxFlow) int {
	return cmp.Or(cmp.Compare(b.frames, a.frames), cmp.Compare(a.key.a, b.key.a), cmp.Compare(a.key.b, b.key.b),
		cmp.Compare(a.key.c, b.key.c), cmp.Compare(a.key.d, b.key.d), cmp.Compare(a.key.e, b.key.e))
}
