package pktgen

import "math/bits"

// histogram counts latencies, in ns: one bucket for each below 32, and 32 of equal width for each power of two above.
type histogram [buckets]uint64

const (
	subBits    = 5
	subBuckets = 1 << subBits
	maxBits    = 36
	maxLatency = 1 << maxBits // ns: 68.7 s
	buckets    = (maxBits - subBits + 1) * subBuckets
)

// bucket is where a latency below maxLatency counts.
func bucket(ns uint64) int {
	shift := max(bits.Len64(ns)-1-subBits, 0)
	return shift*subBuckets + int(ns>>shift)
}

// lower is the least that counts in bucket i, and where the next begins.
func lower(i int) uint64 {
	if i < 2*subBuckets {
		return uint64(i)
	}
	shift := i/subBuckets - 1
	return uint64(i-shift*subBuckets) << shift
}

// add counts a latency, and tells in which bucket.
func (h *histogram) add(ns uint64) int {
	i := bucket(ns) % buckets
	h[i]++
	return i
}

// quantile is the latency that q of n are not above: the middle of its bucket.
func (h *histogram) quantile(q float64, s *span) uint64 {
	// The rank is rounded up: of 10, the median is the fifth.
	rank := uint64(q * float64(s.n))
	if float64(rank) < q*float64(s.n) {
		rank++
	}
	rank = max(rank, 1)
	var n uint64
	for i, c := range h {
		if n += c; n >= rank {
			return min(max((lower(i)+lower(i+1))/2, s.min), s.max)
		}
	}
	return s.max
}

// power is how many latencies there are from a power of two up to the next.
type power struct{ from, n uint64 }

// powers are those that are not empty.
func (h *histogram) powers() (ps []power) {
	for i, c := range h {
		if c == 0 {
			continue
		}
		from := uint64(0)
		if v := lower(i); v > 0 {
			from = 1 << (bits.Len64(v) - 1)
		}
		if len(ps) == 0 || ps[len(ps)-1].from != from {
			ps = append(ps, power{from: from})
		}
		ps[len(ps)-1].n += c
	}
	return ps
}
