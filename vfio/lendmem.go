package vfio

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/internal/ioctl"
	"github.com/ring3dev/ring3/internal/iova"
)

// chunk is memory that a lender made for a borrower: a file in memory that neither can make shorter or longer. The lender maps it, since that is
// how VFIO names memory, and never looks into it: the borrower may have made holes in it.
type chunk struct {
	id    int
	file  *os.File
	mem   []byte
	unmap func()
	free  iova.Spans // offsets; nil: it is one piece
	used  int        // pieces
}

func (c *chunk) close() {
	c.unmap()
	c.file.Close()
}

// piece is what a borrower allocated: a part of a chunk, mapped for the device.
type piece struct {
	m  *mapping
	c  *chunk
	at iova.Span // in c
}

// madvCollapse is MADV_COLLAPSE (Linux 6.1): make huge pages of what is there, whatever the system does by itself.
const madvCollapse = 25

// newChunk makes memory of size bytes, whole pages.
func newChunk(size uint64, p Pages) (c *chunk, err error) {
	huge := size >= hugePage && p != PagesSmall
	if whole := (size + hugePage - 1) &^ (hugePage - 1); huge && whole-size <= whole/8 {
		// Mapping reserves the pages, or is refused: a touch finds them later.
		if c, err := sharedFile(whole, unix.MFD_HUGETLB|unix.MFD_HUGE_2MB); err == nil {
			return c, nil
		}
	}
	if c, err = sharedFile(size, 0); err == nil && huge {
		// For the IOTLB, and so that what lies together in memory does so on the bus. Where it cannot be had the pages are small.
		if unix.Madvise(c.mem, unix.MADV_POPULATE_WRITE) == nil {
			_ = unix.Madvise(c.mem[:size&^(hugePage-1)], madvCollapse)
		}
	}
	return c, err
}

// sharedFile is a file in memory, sealed and mapped.
func sharedFile(size uint64, flags int) (*chunk, error) {
	fd, err := unix.MemfdCreate("ring3-dma", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|flags)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	c := &chunk{file: os.NewFile(uintptr(fd), "ring3-dma")}
	if err = unix.Ftruncate(fd, int64(size)); err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL)
	}
	if err == nil {
		c.mem, c.unmap, err = mapShared(fd, size)
	}
	if err != nil {
		c.file.Close()
		return nil, fmt.Errorf("making %d bytes of shared memory: %w", size, err)
	}
	return c, nil
}

// mapShared maps all of a file, from 2 MiB on where huge pages could be.
func mapShared(fd int, size uint64) (mem []byte, unmap func(), err error) {
	if size < hugePage {
		mem, err = unix.Mmap(fd, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		return mem, func() { _ = unix.Munmap(mem) }, err
	}
	all, err := unix.Mmap(-1, 0, int(size+hugePage), unix.PROT_NONE, unix.MAP_ANON|unix.MAP_PRIVATE|unix.MAP_NORESERVE)
	if err != nil {
		return nil, nil, err
	}
	off := -uint64(ioctl.Address(all)) & (hugePage - 1)
	mem = all[off : off+size : off+size]
	if err := ioctl.MapOver(mem, fd, 0); err != nil {
		_ = unix.Munmap(all)
		return nil, nil, err
	}
	return mem, func() { _ = unix.Munmap(all) }, nil
}

// alloc makes memory for a borrower, and maps it for the device.
func (l *Loan) alloc(q lendRequest) (*lentMemory, []*os.File, error) {
	a := dmaOf{space: l.d.space, owner: l.d, pages: l.d.pages}
	r := bus.DMARequest{Size: q.Size, Align: q.Align, Boundary: q.Boundary, Mask: q.Mask, Dir: q.Dir}
	const step = "allocating"
	if r.Dir > bus.FromDevice {
		return nil, nil, fmt.Errorf("%s DMA memory: direction %d: %w", step, r.Dir, bus.ErrProtocol)
	}
	size, err := a.check(step, r)
	if err != nil {
		return nil, nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.lent {
		return nil, nil, bus.ErrClosed
	}
	if len(l.pieces) >= l.o.Pieces {
		return nil, nil, fmt.Errorf("%s DMA memory: %d pieces are allocated, want at most %d: %w", step, len(l.pieces), l.o.Pieces, unix.ENOMEM)
	}
	if size > l.o.Bytes {
		return nil, nil, fmt.Errorf("%s DMA memory: %d bytes, want at most %d: %w", step, size, l.o.Bytes, unix.ENOMEM)
	}
	c, at, fresh, err := l.room(size)
	if err != nil {
		return nil, nil, fmt.Errorf("%s DMA memory: %d bytes: %w", step, size, err)
	}
	better := uint64(0)
	if size >= hugePage && l.d.pages != PagesSmall {
		better = hugePage
	}
	m, err := a.place(step, r, c.mem[at.Base:at.End:at.End], better)
	if err != nil {
		l.giveBack(c, at)
		return nil, nil, err
	}
	l.next++
	l.pieces[l.next] = &piece{m: m, c: c, at: at}
	out := &lentMemory{ID: l.next, IOVA: bus.IOVA(m.at.Base), Chunk: c.id, Off: at.Base, Size: at.Size()}
	if !fresh {
		return out, nil, nil
	}
	out.New = uint64(len(c.mem))
	fd, err := unix.FcntlInt(c.file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		_, _ = l.freeLocked(out.ID)
		return nil, nil, os.NewSyscallError("fcntl", err)
	}
	return out, []*os.File{os.NewFile(uintptr(fd), "ring3-dma")}, nil
}

// room finds memory: a part of a chunk, or a new chunk. mu is held.
func (l *Loan) room(size uint64) (c *chunk, at iova.Span, fresh bool, err error) {
	small := size < hugePage && l.d.pages == PagesAuto
	if small {
		for _, c := range l.chunks {
			for i, s := range c.free {
				if s.Size() >= size {
					at := iova.Span{Base: s.Base, End: s.Base + size}
					c.free.Cut(i, at)
					c.used++
					return c, at, false, nil
				}
			}
		}
	}
	whole := size
	if small {
		whole = hugePage
	}
	if l.bytes+whole > l.o.Bytes {
		return nil, at, false, fmt.Errorf("%d bytes are allocated, want at most %d: %w", l.bytes, l.o.Bytes, unix.ENOMEM)
	}
	if whole > hugePage { // of a chunk that pieces share only these are locked
		if err := lockable(whole); err != nil {
			return nil, at, false, err
		}
	}
	if c, err = newChunk(whole, l.d.pages); err != nil {
		return nil, at, false, err
	}
	l.next++
	c.id, c.used = l.next, 1
	l.bytes += uint64(len(c.mem))
	l.chunks[c.id] = c
	if small {
		c.free = iova.Spans{{Base: size, End: whole}}
	}
	return c, iova.Span{End: size}, true, nil
}

// giveBack gives memory back that is not mapped for the device any more; the borrower does the same. mu is held.
func (l *Loan) giveBack(c *chunk, at iova.Span) {
	if c.used--; c.used > 0 {
		c.free.Put(at)
		return
	}
	delete(l.chunks, c.id)
	l.bytes -= uint64(len(c.mem))
	c.close()
}

// free takes memory away from the device, and back.
func (l *Loan) free(id int) (*lentMemory, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.freeLocked(id)
}

func (l *Loan) freeLocked(id int) (*lentMemory, error) {
	p := l.pieces[id]
	if p == nil {
		return nil, fmt.Errorf("freeing DMA memory: there is no piece %d: %w", id, bus.ErrClosed)
	}
	delete(l.pieces, id)
	l.d.space.remove(p.m)
	l.giveBack(p.c, p.at)
	return &lentMemory{ID: id, Chunk: p.c.id}, nil
}
