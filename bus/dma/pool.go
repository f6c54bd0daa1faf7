package dma

import (
	"fmt"

	"github.com/ring3dev/ring3/bus"
)

// BufSize is the usual size of a network buffer: one descriptor of an 82574L.
const BufSize = 2048

// Buf is a buffer in DMA memory. Data is what is in it: a slice of Mem, which is the
// whole buffer. Addr is where the device finds Mem[0].
type Buf struct {
	Data []byte   // the contents: Mem[:length] as a rule
	Mem  []byte   // all of the buffer
	Addr bus.IOVA // of Mem[0]

	// Tag is for the owner: what the content was made from (pktgen: which template).
	// It outlives Free, as the content does; 0 for a new buffer.
	Tag uint32

	// Meta is what a network device is to do with the frame in Data, or did with it. Get
	// clears its Flags, and without flags the rest has no meaning.
	Meta Meta

	refs int32
	pool *Pool
}

// Retain adds n further owners.
func (b *Buf) Retain(n int) {
	if p := b.pool; p.shared {
		p.retain(b, n)
		return
	}
	b.refs += int32(n)
}

// Free gives up one ownership; the last gives the buffer back to its pool. Freeing a
// buffer that is in its pool already does nothing (with -tags dmadebug it panics).
func (b *Buf) Free() {
	p := b.pool
	if p.shared {
		p.freeShared(b)
		return
	}
	b.refs--
	if b.refs != 0 || p.closed {
		b.notLast()
		return
	}
	debugFree(b)
	at := p.head + p.n
	if at >= len(p.free) {
		at -= len(p.free)
	}
	p.free[at] = b
	p.n++
}

// FreeAll frees each of bufs, as Free does, but for those that are nil.
func FreeAll(bufs []*Buf) {
	for len(bufs) > 0 {
		bufs = bufs[freeRun(bufs):]
	}
}

// freeRun frees the first of bufs, and those after it that are of the same pool, and returns how many.
func freeRun(bufs []*Buf) int {
	first := bufs[0]
	if first == nil {
		return 1
	}
	p := first.pool
	if p.shared {
		return p.freeRunShared(bufs)
	}
	if p.closed || first.refs < 1 {
		first.Free()
		return 1
	}
	free, at := p.free, p.head+p.n
	if at >= len(free) {
		at -= len(free)
	}
	n, i := 0, 0
	for ; i < len(bufs); i++ {
		b := bufs[i]
		if b == nil || b.pool != p || b.refs < 1 {
			break
		}
		if b.refs > 1 {
			b.refs--
			continue
		}
		b.refs = 0
		debugFree(b)
		if free[at] != b { // as it mostly is: they come back in order
			free[at] = b
		}
		if at++; at == len(free) {
			at = 0
		}
		n++
	}
	p.n += n
	return i
}

// notLast is Free where nothing goes back to the pool.
func (b *Buf) notLast() {
	if b.refs < 0 {
		b.refs = 0
		debugTwice(b)
	}
}

// Pool is a queue of equal buffers in one piece of DMA memory. They are handed out in the
// order in which they were freed, at first in the order of their addresses: a device that
// finishes in order then walks through memory in one direction, which caches foresee, and
// where the number of buffers divides that of a ring's descriptors, a descriptor names the
// same buffer each time round. A pool no larger than what is in flight keeps the working
// set small. It belongs to one goroutine, but for what Share says.
type Pool struct {
	mem  *bus.Memory
	bufs []Buf
	free []*Buf // a circular queue: n buffers from head on
	head int
	n    int
	size int

	closed bool
	shared bool // see Share
	back   returned
}

// NewPool takes n buffers of size bytes (a power of two) from d. Each is aligned to its
// size, so that none crosses a page or a 4 GiB boundary more than its size forces.
func NewPool(d bus.DMA, n, size int, dir bus.Direction) (*Pool, error) {
	if n <= 0 || size <= 0 || size&(size-1) != 0 || n > maxBytes/size {
		return nil, fmt.Errorf("making a pool of %d buffers of %d bytes: want at least one, a power of two, and %d bytes at most in all", n, size, maxBytes)
	}
	return newPool(d, n, size, size, uint64(max(size, 4096)), dir)
}

// cacheLine is the size of a cache line, and the alignment of staggered buffers.
const cacheLine = 64

// NewStaggered takes n buffers of size bytes from d, an odd number of cache lines apart
// and aligned to one. The beginnings of buffers a power of two apart fall into few
// sets of a cache, where a ring's worth of frame headers then does not fit; these spread
// over all. For devices that take buffers at any address.
func NewStaggered(d bus.DMA, n, size int, dir bus.Direction) (*Pool, error) {
	if n <= 0 || size <= 0 || size > maxBytes || n > maxBytes/(size+2*cacheLine) {
		return nil, fmt.Errorf("making a pool of %d buffers of %d bytes: want at least one of each, and %d bytes at most in all", n, size, maxBytes)
	}
	lines := (size + cacheLine - 1) / cacheLine
	return newPool(d, n, size, (lines|1)*cacheLine, 4096, dir)
}

// maxBytes is the largest pool.
const maxBytes = 1 << 30

func newPool(d bus.DMA, n, size, stride int, align uint64, dir bus.Direction) (*Pool, error) {
	mem, err := d.Alloc(bus.DMARequest{Size: n * stride, Align: align, Dir: dir})
	if err != nil {
		return nil, fmt.Errorf("making a pool of %d buffers of %d bytes: %w", n, size, err)
	}
	p := &Pool{mem: mem, bufs: make([]Buf, n), free: make([]*Buf, n), n: n, size: size}
	for i := range p.bufs {
		b := &p.bufs[i]
		b.Mem = mem.Bytes[i*stride : i*stride+size : i*stride+size]
		b.Addr = mem.IOVA + bus.IOVA(i*stride)
		b.pool = p
		p.free[i] = b
	}
	return p, nil
}

// Get takes a buffer, with one owner and empty Data, or nil if there is none. Its
// content is whatever its last owner left.
func (p *Pool) Get() *Buf {
	if p.n == 0 && !p.takeBack() {
		return nil
	}
	b := p.free[p.head]
	if p.head++; p.head == len(p.free) {
		p.head = 0
	}
	p.n--
	b.refs = 1
	b.Meta.Flags = 0
	b.Data = b.Mem[:0]
	return b
}

// GetAll takes up to len(bufs) buffers, as Get does, but for their Data, which the caller sets. It
// returns how many there were.
func (p *Pool) GetAll(bufs []*Buf) int {
	if p.n < len(bufs) {
		p.takeBack()
	}
	n := min(len(bufs), p.n)
	head, free := p.head, p.free
	for i := range bufs[:n] {
		b := free[head]
		if head++; head == len(free) {
			head = 0
		}
		b.refs = 1
		b.Meta.Flags = 0
		bufs[i] = b
	}
	p.head = head
	p.n -= n
	return n
}

// Free is how many buffers can be taken now.
func (p *Pool) Free() int {
	p.takeBack()
	return p.n
}

// Len is how many buffers there are.
func (p *Pool) Len() int { return len(p.bufs) }

// BufSize is the size of each, in bytes.
func (p *Pool) BufSize() int { return p.size }

// Close gives the memory back. No device may hold a buffer any more. It is idempotent;
// afterwards there is no buffer to Get, and freeing one does nothing.
func (p *Pool) Close() {
	p.n, p.closed = 0, true
	p.mem.Free()
}
