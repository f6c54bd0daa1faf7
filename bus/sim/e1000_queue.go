package sim

import "github.com/ring3dev/ring3/bus"

// e1Queue is the registers of a queue.
type e1Queue struct {
	base bus.IOVA
	size uint32 // descriptors
	head uint32
	tail uint32
}

func (c *e1000) queue(first bus.Off, q int) e1Queue {
	r := c.reg[first/4+bus.Off(q)*e1Queue2/4:][:8]
	return e1Queue{
		base: bus.IOVA(r[e1QBAH/4])<<32 | bus.IOVA(r[e1QBAL/4]),
		size: r[e1QLEN/4] / 16, head: r[e1QH/4], tail: r[e1QT/4],
	}
}

// free is how many descriptors are the chip's. Where head or tail is none of the ring's, none is.
func (q *e1Queue) free() uint32 {
	switch {
	case q.head >= q.size || q.tail >= q.size:
		return 0
	case q.tail >= q.head:
		return q.tail - q.head
	}
	return q.size - q.head + q.tail
}
