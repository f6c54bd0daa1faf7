package e1000

// maxQueues is how many queues of each kind a chip has at most.
const maxQueues = 2

// Ring sizes, in descriptors. The hardware takes multiples of 8 (RDLEN and TDLEN count
// 128 bytes); a power of two makes an index a masked counter.
const (
	minRing     = 64
	maxRing     = 4096
	defaultRing = 1024
)

func validRing(n int) bool { return n >= minRing && n <= maxRing && n&(n-1) == 0 }

// counters are the positions in a ring as counters that never wrap back: head is the
// next descriptor that the device finishes, tail the next that the driver fills. A ring
// of size descriptors holds size-1, since head == tail means empty to the hardware.
type counters struct {
	head, tail uint64
	mask       uint64 // size-1
	passed     uint64 // head+1 where the device was seen to be past it without having said that it is done with it; else 0
}

func (c *counters) used() int          { return int(c.tail - c.head) }
func (c *counters) room() int          { return int(c.mask) - c.used() }
func (c *counters) at(n uint64) uint32 { return uint32(n & c.mask) }

// freeAhead is how many descriptors the device still has where its head register
// reads rdh and posted descriptors were given to it in all.
func freeAhead(posted uint64, rdh uint32, mask uint64) int {
	return int((posted - uint64(rdh)) & mask)
}

// refillChunk is how many descriptors are given back with one tail write.
func refillChunk(size int) int { return min(32, size/8) }

// reportEvery is the distance of transmit descriptors that report their status. It
// divides every ring size.
const reportEvery = 32
