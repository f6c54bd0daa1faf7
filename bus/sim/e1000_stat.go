package sim

import "github.com/ring3dev/ring3/bus"

// readStat reads a statistics register and clears it.
func (c *e1000) readStat(off bus.Off) uint32 {
	v := c.r(off)
	switch off {
	case e1GORC, e1GOTC, e1TOR, e1TOT:
		return v
	case e1GORC + 4, e1GOTC + 4, e1TOR + 4, e1TOT + 4:
		c.setR(off-4, 0)
	}
	c.setR(off, 0)
	return v
}

// count adds one, and sticks at all-ones, 13.7.
func (c *e1000) count(off bus.Off) {
	if p := &c.reg[off/4]; *p != ^uint32(0) {
		*p++
	}
}

// countOctets adds to a pair.
func (c *e1000) countOctets(off bus.Off, n int) {
	low, high := &c.reg[off/4], &c.reg[off/4+1]
	v := uint64(*high)<<32 | uint64(*low)
	v = max(v, v+uint64(n))
	*low, *high = uint32(v), uint32(v>>32)
}

// countSize counts a frame with check sequence by its size.
func (c *e1000) countSize(off bus.Off, n int) {
	i := 5
	switch {
	case n <= 64:
		i = 0
	case n <= 127:
		i = 1
	case n <= 255:
		i = 2
	case n <= 511:
		i = 3
	case n <= 1023:
		i = 4
	}
	c.count(off + bus.Off(4*i))
}
