package vfiouser

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/internal/ioctl"
	"github.com/ring3dev/ring3/internal/iova"
)

// heap is the client's DMA memory; bus.DMA and bus.Placer. It is memfds, handed out in pieces of
// whole pages, each of which the server is told of when it is allocated and again when it is freed.
type heap struct {
	d *Device

	mu     sync.Mutex // not held while the server is asked: its commands need it
	pool   *iova.Pool // nil until the first request
	page   uint64
	chunks []*chunk
	pieces []piece // sorted: what the server may ask to be read or written
	closed bool
}

// chunk is one memfd.
type chunk struct {
	file *os.File
	b    []byte
	free iova.Spans // offsets
	used int        // pieces
}

// piece is memory at an address.
type piece struct {
	base, end uint64
	dir       bus.Direction
	b         []byte
	mem       bus.WindowMemory // where b is nil
}

// chunkSize is how large a memfd is at least. It takes memory only where it was touched.
const chunkSize = 64 << 20

// addresses are what devices are given: below and above what a PC has between its memory and
// 4 GiB, and no higher than IOMMUs of 39 bits reach.
var addresses = iova.Spans{{Base: 1 << 20, End: 0xb0000000}, {Base: 1 << 32, End: 1 << 39}}

func newHeap(d *Device) *heap { return &heap{d: d} }

// who begins an error.
func (h *heap) who(step string) string { return h.d.o.Address + ": " + step }

// Alloc is bus.DMA's.
func (h *heap) Alloc(q bus.DMARequest) (*bus.Memory, error) {
	if err := h.check("allocating", q); err != nil {
		return nil, err
	}
	c, at, err := h.take(q)
	if err != nil {
		return nil, err
	}
	size := iova.Whole(q.Size, h.page)
	b := c.b[at : at+uint64(q.Size) : at+size]
	v, err := h.place("allocating", q, piece{dir: q.Dir, b: b}, c.file, int64(at))
	if err != nil {
		h.give(c, at, size)
		return nil, err
	}
	return bus.NewMemory(b, bus.IOVA(v.Base), func() {
		h.unplace(v, size)
		h.give(c, at, size)
	}), nil
}

// Map is bus.DMA's. The caller's memory cannot be passed, so the server reads and writes it by
// messages.
func (h *heap) Map(b []byte, q bus.DMARequest) (*bus.Memory, error) {
	if q.Size == 0 {
		q.Size = len(b)
	}
	if err := h.check("mapping", q); err != nil {
		return nil, err
	}
	if q.Size > len(b) {
		return nil, fmt.Errorf("%s DMA memory: %d bytes of a slice of %d: %w", h.who("mapping"), q.Size, len(b), bus.ErrNotSupported)
	}
	if at := ioctl.Address(b); at&(pageSize-1) != 0 {
		return nil, fmt.Errorf("%s DMA memory: the slice is at %#x, want whole pages: %w", h.who("mapping"), at, bus.ErrNotSupported)
	}
	b = b[:q.Size:q.Size]
	v, err := h.place("mapping", q, piece{dir: q.Dir, b: b}, nil, 0)
	if err != nil {
		return nil, err
	}
	size := iova.Whole(q.Size, h.page)
	return bus.NewMemory(b, bus.IOVA(v.Base), func() { h.unplace(v, size) }), nil
}

// check refuses what cannot be, and makes the pool once the server's pages are known.
func (h *heap) check(step string, q bus.DMARequest) error {
	if err := h.d.Err(); err != nil {
		return fmt.Errorf("%s DMA memory: %w", step, err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.pool == nil {
		h.page = max(h.d.server.page(), pageSize)
		h.pool = iova.NewPool(h.page, addresses)
	}
	return iova.Check(h.who(step), q)
}

// take finds memory for a request, at an offset of a chunk.
func (h *heap) take(q bus.DMARequest) (*chunk, uint64, error) {
	size := iova.Whole(q.Size, h.page)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, 0, fmt.Errorf("allocating DMA memory: %w", h.d.errorf("%w", bus.ErrClosed))
	}
	for _, c := range h.chunks {
		if at, ok := c.take(size, h.page); ok {
			return c, at, nil
		}
	}
	if size > addresses[1].Size() {
		return nil, 0, iova.NoRoom(h.who("allocating"), q, "the device's addresses")
	}
	c, err := newChunk(h.d.o.Memory, max(size, chunkSize))
	if err != nil {
		return nil, 0, fmt.Errorf("%s DMA memory: %w", h.who("allocating"), err)
	}
	h.chunks = append(h.chunks, c)
	at, _ := c.take(size, h.page)
	return c, at, nil
}

// newChunk makes one, of a file that memory gives; nil: of its own.
func newChunk(memory func(int64) (*os.File, error), size uint64) (*chunk, error) {
	if memory == nil {
		memory = NewMemory
	}
	f, err := memory(int64(size))
	if err != nil {
		return nil, err
	}
	b, err := unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("mapping %d bytes: %w", size, err)
	}
	return &chunk{file: f, b: b, free: iova.Spans{{Base: 0, End: size}}}, nil
}

func (c *chunk) take(size, page uint64) (uint64, bool) {
	for i, s := range c.free {
		if at, ok := iova.Fit(s, size, page, 0, 0); ok {
			c.free.Cut(i, iova.Span{Base: at, End: at + size})
			c.used++
			return at, true
		}
	}
	return 0, false
}

// give takes memory back. What is handed out again is zero.
func (h *heap) give(c *chunk, at, size uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if c.used--; h.closed {
		c.release()
		return
	}
	if err := unix.Madvise(c.b[at:at+size], unix.MADV_REMOVE); err != nil {
		clear(c.b[at : at+size])
	}
	c.free.Put(iova.Span{Base: at, End: at + size})
	if c.used == 0 && len(h.chunks) > 1 && h.d.o.Memory == nil {
		c.release()
		h.chunks = slices.DeleteFunc(h.chunks, func(x *chunk) bool { return x == c })
	}
}

// release unmaps a chunk that nobody has a piece of.
func (c *chunk) release() {
	if c.used == 0 && c.b != nil {
		_ = unix.Munmap(c.b)
		c.file.Close()
		c.b = nil
	}
}

// place gives a piece an address, and tells the server of it.
func (h *heap) place(step string, q bus.DMARequest, p piece, file *os.File, off int64) (iova.Span, error) {
	h.mu.Lock()
	v, ok := h.pool.Take(q, 0, iova.None)
	full := len(h.pieces) >= h.d.server.maps()
	if ok && !full {
		p.base, p.end = v.Base, v.Base+uint64(q.Size)
		h.add(p)
	} else if ok {
		h.pool.Put(v)
	}
	h.mu.Unlock()
	switch {
	case full:
		return v, fmt.Errorf("%s DMA memory: the server takes %d pieces: %w", h.who(step), h.d.server.maps(), unix.ENOMEM)
	case !ok:
		return v, iova.NoRoom(h.who(step), q, "the device's addresses")
	}
	if err := h.tell(v.Base, iova.Whole(q.Size, h.page), q.Dir, file, off); err != nil {
		h.drop(v)
		if end := h.d.Err(); end != nil {
			err = end
		}
		return v, fmt.Errorf("%s DMA memory: %w", h.who(step), err)
	}
	return v, nil
}

// tell is DMA_MAP.
func (h *heap) tell(base, size uint64, dir bus.Direction, file *os.File, off int64) error {
	m := dmaMap{argsz: dmaMapSize, flags: dmaReadable | dmaWriteable, offset: uint64(off), addr: base, size: size}
	switch dir {
	case bus.ToDevice:
		m.flags = dmaReadable
	case bus.FromDevice:
		m.flags = dmaWriteable
	}
	var fds []int
	if file != nil {
		fds = []int{int(file.Fd())}
	}
	return h.d.l.ask(request{cmd: cmdDMAMap, fds: fds, body: func(w *writer) { w.dmaMap(m) }})
}

// unplace takes a piece away from the server: when it returns, the device does not reach it.
func (h *heap) unplace(v iova.Span, size uint64) {
	h.untell(v.Base, size)
	h.drop(v)
}

// untell is DMA_UNMAP. A server that refuses it may write where it will for ever, so it is of no
// use any more.
func (h *heap) untell(base, size uint64) {
	if h.d.l.dead.Load() {
		return
	}
	m := dmaUnmap{argsz: dmaUnmapSize, addr: base, size: size}
	err := h.d.l.ask(request{cmd: cmdDMAUnmap, body: func(w *writer) { w.dmaUnmap(m) }})
	if err != nil && !h.d.l.dead.Load() {
		h.d.l.fail(fmt.Errorf("taking %d bytes of DMA memory at %#x away: %w (%w)", size, base, err, bus.ErrProtocol))
	}
}

func (h *heap) add(p piece) {
	i, _ := slices.BinarySearchFunc(h.pieces, p.base, func(x piece, at uint64) int {
		if x.base < at {
			return -1
		}
		return 1
	})
	h.pieces = slices.Insert(h.pieces, i, p)
}

// drop forgets the piece at the address, and gives the address back.
func (h *heap) drop(v iova.Span) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.pieces = slices.DeleteFunc(h.pieces, func(p piece) bool { return p.base == v.Base })
	h.pool.Put(v)
}

// Place is bus.Placer's: the server is told of memory that somebody else chose an address for.
func (h *heap) Place(w bus.Window) (release func(), err error) {
	if err := h.d.Err(); err != nil {
		return nil, fmt.Errorf("placing DMA memory: %w", err)
	}
	base, end := uint64(w.IOVA), uint64(w.IOVA)+w.Size
	if w.Size == 0 || end < base || w.File == nil && w.Mem == nil {
		return nil, fmt.Errorf("%s DMA memory: %d bytes at %#x: %w", h.who("placing"), w.Size, base, bus.ErrNotSupported)
	}
	h.mu.Lock()
	busy := slices.ContainsFunc(h.pieces, func(p piece) bool { return p.base < end && base < p.end })
	if !busy {
		h.add(piece{base: base, end: end, dir: w.Dir, b: w.Bytes, mem: w.Mem})
	}
	h.mu.Unlock()
	forget := func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.pieces = slices.DeleteFunc(h.pieces, func(p piece) bool { return p.base == base })
	}
	if busy {
		return nil, fmt.Errorf("%s DMA memory: there is some at %#x: %w", h.who("placing"), base, bus.ErrBusy)
	}
	if err := h.tell(base, w.Size, w.Dir, w.File, w.Off); err != nil {
		forget()
		return nil, fmt.Errorf("%s DMA memory: %w", h.who("placing"), err)
	}
	return sync.OnceFunc(func() {
		h.untell(base, w.Size)
		forget()
	}), nil
}

// close unmaps what nobody has; the rest when it is freed.
func (h *heap) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	for _, c := range h.chunks {
		c.release()
	}
}

// errNoMemory is an address at which there is nothing for the server.
var errNoMemory = errors.New("no memory of the client's is there")

// reach calls do with the piece that holds the n bytes at addr, which stays while it runs. write
// says that the device writes.
func (h *heap) reach(addr, n uint64, write bool, do func(p *piece) error) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	i, ok := slices.BinarySearchFunc(h.pieces, addr, func(p piece, at uint64) int {
		switch {
		case p.end <= at:
			return -1
		case p.base > at:
			return 1
		}
		return 0
	})
	if !ok || n > h.pieces[i].end-addr {
		return errNoMemory
	}
	if p := &h.pieces[i]; write && p.dir == bus.ToDevice || !write && p.dir == bus.FromDevice {
		return errNoMemory
	}
	return do(&h.pieces[i])
}
