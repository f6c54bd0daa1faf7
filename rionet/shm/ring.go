package shm

import (
	"encoding/binary"
	"fmt"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/dma"
)

// A ring is a control block, then records, then room for data: as many slots as there are records, which the producer
// gives to records as it likes. It takes what came free last, so that little memory is touched while little is under way.
const (
	ctlTail  = 0   // records published; the producer writes
	ctlHead  = 128 // records released; the consumer writes
	ctlWake  = 256 // 1: the consumer sleeps; it writes 1, either writes 0
	ctlLimit = 260 // of a direct ring: how many records its consumer takes, 0: none; the consumer writes
	ctlRoom  = 384 // 1: the producer waits for room; it writes 1, either writes 0
	ctlSize  = 512

	line    = 64
	maxRing = 1 << 15 // records: a slot's number has 16 bits, and 0xffff is none
)

// ErrBroken is what a ring fails with whose other end broke the rules. It is for good: until the ring is made anew.
var ErrBroken = fmt.Errorf("shared ring: %w", bus.ErrProtocol)

// geometry is where a ring is and how large.
type geometry struct {
	off  int // of the control block
	n    int // records, a power of two
	slot int // bytes of data that a record may have
}

// stride is from one slot to the next. Slots a page apart would fight for the same lines of the cache.
func (g geometry) stride() int {
	s := (g.slot + line - 1) &^ (line - 1)
	if s > 0 && s%4096 == 0 {
		s += line
	}
	return s
}

func (g geometry) size() int { return ctlSize + g.n*(descSize+g.stride()) }
func (g geometry) desc() int { return g.off + ctlSize }

// check says whether a ring is one that lies inside size bytes.
func (g geometry) check(size int) error {
	if g.n < 2 || g.n > maxRing || g.n&(g.n-1) != 0 || g.slot < 0 || g.slot > 1<<16-1 || g.off < 0 || g.off%line != 0 || g.off > size || g.size() > size-g.off {
		return fmt.Errorf("a ring of %d records of %d bytes at %#x of %#x: %w", g.n, g.slot, g.off, size, bus.ErrProtocol)
	}
	return nil
}

// end is what both ends of a ring have.
type end struct {
	geometry
	mem    Memory
	b      []byte // the memory from the control block on; nil: it is not mapped
	mask   uint32
	gap    int // stride
	err    error
	stage  []byte // where it is not mapped: what of the records is to be written, or was read
	staged uint32 // the record that stage begins with
}

func newEnd(mem Memory, g geometry) (end, error) {
	if err := g.check(mem.Size()); err != nil {
		return end{}, err
	}
	e := end{geometry: g, mem: mem, mask: uint32(g.n - 1), gap: g.stride()}
	if b := mem.Bytes(); b != nil {
		e.b = b[g.off : g.off+g.size() : g.off+g.size()]
	} else {
		e.stage = make([]byte, 0, g.n*descSize)
	}
	return e, nil
}

func (e *end) load(word int) uint32 {
	if e.b != nil {
		return dma.Load32(e.b, word)
	}
	return e.mem.Load32(e.off + word)
}

func (e *end) store(word int, v uint32) {
	if e.b != nil {
		dma.Store32(e.b, word, v)
		return
	}
	e.mem.Store32(e.off+word, v)
}

// publish is a store, and then a look at whether the other end waits.
func (e *end) publish(word int, v uint32, waits int) bool {
	e.store(word, v)
	if e.b == nil {
		e.mem.Fence()
	}
	if e.load(waits) == 0 {
		return false
	}
	e.store(waits, 0)
	return true
}

// put and get are a record's own words.
func putRecord(p []byte, h *Header) {
	p = p[:descSize]
	a, b, c, d := h.words()
	binary.LittleEndian.PutUint64(p, a)
	binary.LittleEndian.PutUint64(p[8:], b)
	binary.LittleEndian.PutUint64(p[16:], c)
	binary.LittleEndian.PutUint64(p[24:], d)
}

// broken remembers what the other end did.
func (e *end) broken(format string, args ...any) {
	if e.err == nil {
		e.err = fmt.Errorf("%w: %s", ErrBroken, fmt.Sprintf(format, args...))
	}
}

// Err is why the ring does not work any more; nil while it does.
func (e *end) Err() error { return e.err }
