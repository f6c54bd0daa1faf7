package vfio

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/internal/iova"
)

// What a borrower asks for.
const (
	lendOpen  = "open"  // lentDevice, with the device's file and the pipe that tells of its end
	lendAlloc = "alloc" // lentMemory, with its file where that is new
	lendFree  = "free"  // lentMemory
	lendReset = "reset" // by the bus
	lendClose = "close" // the device goes back
)

// lendRequest is what a borrower says.
type lendRequest struct {
	Op string `json:"op"`

	// Of alloc: a bus.DMARequest.
	Size     int           `json:"size,omitempty"`
	Align    uint64        `json:"align,omitempty"`
	Boundary uint64        `json:"boundary,omitempty"`
	Mask     uint64        `json:"mask,omitempty"`
	Dir      bus.Direction `json:"dir,omitempty"`

	ID int `json:"id,omitempty"` // of free
}

// lendReply answers it.
type lendReply struct {
	Device *lentDevice `json:"device,omitempty"`
	Memory *lentMemory `json:"memory,omitempty"`
}

// lentDevice is what a borrower cannot ask the device's file for.
type lentDevice struct {
	Addr  string           `json:"addr"`
	ID    pci.FunctionID   `json:"id"`
	BARs  []bus.RegionInfo `json:"bars"`
	API   API              `json:"api"`
	Group int              `json:"group"`
	Line  int              `json:"line"`
}

// lentMemory is a piece of memory that the device reaches: a part of a chunk, which is a file.
type lentMemory struct {
	ID    int      `json:"id"`
	IOVA  bus.IOVA `json:"iova"`
	Chunk int      `json:"chunk"`
	Off   uint64   `json:"off"`
	Size  uint64   `json:"size"`          // whole pages
	New   uint64   `json:"new,omitempty"` // size of the chunk, whose file comes along

}

// callTime is how long who lent a device may take to answer: a reset of a bus takes a second or two.
const callTime = 30 * time.Second

// lent is what a borrowed device has from who lent it; bus.DMA.
type lent struct {
	d    *Device
	l    Lender
	life *os.File // the reading end of a pipe: a byte says why the device ends, its end that nobody lends any more
	done sync.WaitGroup

	mu     sync.Mutex
	closed bool
	chunks map[int]*lentChunk
}

// lentChunk is memory of who lent the device, mapped here.
type lentChunk struct {
	mem   []byte
	unmap func()
	used  int // pieces
}

// Borrow opens a device that another process holds ([Device.Lend]): registers and interrupts are this process's own business, by the device's
// file; DMA memory is asked for, and so are resets of a bus. Of the options Log counts. The device ends with who lent it, and where that
// says so; Close gives it back. Its DMA is no bus.Placer, and maps no memory of the caller's.
func Borrow(ctx context.Context, l Lender, o Options) (*Device, error) {
	o = o.withDefaults()
	b := &lent{l: l, chunks: map[int]*lentChunk{}}
	r, files, err := b.call(ctx, lendRequest{Op: lendOpen})
	if err != nil {
		return nil, fmt.Errorf("borrowing a VFIO device: %w", err)
	}
	d, err := b.open(r.Device, files, o)
	if err != nil {
		return nil, fmt.Errorf("borrowing a VFIO device: %w", err)
	}
	b.done.Go(b.watch)
	d.log.Debug(d.errorf("borrowed: IOMMU group %d, API %s", d.access.Group, d.access.API).Error())
	return d, nil
}

// open takes the files over.
func (b *lent) open(q *lentDevice, files []*os.File, o Options) (*Device, error) {
	if q == nil || len(files) != 2 {
		err := fmt.Errorf("opening it: the answer has %d descriptors, want 2, and what the device is: %w", len(files), bus.ErrProtocol)
		for _, f := range files {
			err = errors.Join(err, f.Close())
		}
		return nil, err
	}
	b.life = files[1]
	fd, err := unix.FcntlInt(files[0].Fd(), unix.F_DUPFD_CLOEXEC, 0)
	err = errors.Join(os.NewSyscallError("fcntl", err), files[0].Close())
	addr, aerr := pci.ParseAddr(q.Addr)
	if err = errors.Join(err, aerr); err != nil {
		if fd >= 0 {
			err = errors.Join(err, unix.Close(fd))
		}
		return nil, errors.Join(err, b.life.Close())
	}
	d := &Device{
		k: o.kernel, log: o.Log, lent: b, fd: fd, open: map[int]window{}, done: make(chan struct{}), line: q.Line,
		access: &Access{Addr: addr, Driver: "vfio-pci", Group: q.Group, API: q.API},
		fn:     pci.Function{Addr: addr, ID: q.ID},
	}
	b.d = d
	if err := d.describeAll(q.BARs); err != nil {
		return nil, errors.Join(d.errorf("opening by VFIO: %w", err), d.Close())
	}
	return d, nil
}

// call asks who lent the device.
func (b *lent) call(ctx context.Context, q lendRequest) (*lendReply, []*os.File, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	body, err := json.Marshal(q)
	if err != nil {
		return nil, nil, err
	}
	reply, files, err := b.l.Call(ctx, body)
	if err != nil {
		return nil, nil, err
	}
	var r lendReply
	err = json.Unmarshal(reply, &r)
	if err != nil || q.Op != lendOpen && q.Op != lendAlloc {
		for _, f := range files {
			f.Close()
		}
		files = nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("reading the answer to %s: %w: %w", q.Op, err, bus.ErrProtocol)
	}
	return &r, files, nil
}

// watch waits for the device's end.
func (b *lent) watch() {
	var v [1]byte
	_, err := b.life.Read(v[:])
	switch n := int(v[0]); {
	case errors.Is(err, os.ErrClosed):
	case err == nil && n > 0 && n <= len(ends):
		b.d.die(b.d.errorf("%w", ends[n-1].why))
	case err == nil || errors.Is(err, io.EOF):
		b.d.die(b.d.errorf("it was taken back: %w", bus.ErrGone))
	default:
		b.d.die(b.d.errorf("waiting for its end: %w: %w", err, bus.ErrGone))
	}
}

// leave gives the device back, whose file is closed. What memory there is stays mapped here, and the device's no more.
func (b *lent) leave() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	// Where this fails nobody is there, or who lent it says so.
	if _, _, err := b.call(context.Background(), lendRequest{Op: lendClose}); err != nil {
		b.d.log.Debug(b.d.errorf("giving it back: %w", err).Error())
	}
}

// close ends the wait for the device's end.
func (b *lent) close() error {
	err := b.life.Close()
	b.done.Wait()
	return err
}

// Map is not there: the memory that a borrower's device reaches is who lent it's to give.
func (b *lent) Map([]byte, bus.DMARequest) (*bus.Memory, error) {
	return nil, b.d.errorf("mapping a caller's memory: the device is borrowed: %w", bus.ErrNotSupported)
}

// Alloc gives memory of who lent the device.
func (b *lent) Alloc(q bus.DMARequest) (*bus.Memory, error) {
	step := b.d.Address() + ": allocating"
	if err := b.d.Err(); err != nil {
		return nil, fmt.Errorf("%s DMA memory: %w", step, err)
	}
	if err := iova.Check(step, q); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, fmt.Errorf("%s DMA memory: %w", step, bus.ErrClosed)
	}
	r, files, err := b.call(context.Background(), lendRequest{Op: lendAlloc, Size: q.Size, Align: q.Align, Boundary: q.Boundary, Mask: q.Mask, Dir: q.Dir})
	if err != nil {
		return nil, err
	}
	mem, err := b.piece(r.Memory, files, uint64(q.Size))
	if err != nil {
		return nil, fmt.Errorf("%s DMA memory: %w", step, err)
	}
	id, chunk := r.Memory.ID, r.Memory.Chunk
	return bus.NewMemory(mem[:q.Size:q.Size], r.Memory.IOVA, func() { b.free(id, chunk, mem) }), nil
}

// piece is the memory of an answer, whose chunk is mapped where it is new. mu is held.
func (b *lent) piece(m *lentMemory, files []*os.File, want uint64) ([]byte, error) {
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	if m == nil || (m.New != 0) != (len(files) == 1) || m.Size < want {
		return nil, fmt.Errorf("an answer with %d descriptors: %w", len(files), bus.ErrProtocol)
	}
	c := b.chunks[m.Chunk]
	if m.New != 0 {
		mem, unmap, err := mapShared(int(files[0].Fd()), m.New)
		if err != nil {
			return nil, fmt.Errorf("mapping %d bytes: %w", m.New, err)
		}
		c = &lentChunk{mem: mem, unmap: unmap}
		b.chunks[m.Chunk] = c
	}
	if c == nil || m.Off > uint64(len(c.mem)) || m.Size > uint64(len(c.mem))-m.Off {
		return nil, fmt.Errorf("%d bytes at %d of chunk %d, which has not so many: %w", m.Size, m.Off, m.Chunk, bus.ErrProtocol)
	}
	c.used++
	return c.mem[m.Off : m.Off+m.Size : m.Off+m.Size], nil
}

// free takes a piece away from the device, and back.
func (b *lent) free(id, chunk int, mem []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.closed {
		if r, _, err := b.call(context.Background(), lendRequest{Op: lendFree, ID: id}); err != nil || r.Memory == nil {
			b.d.log.Debug(b.d.errorf("freeing DMA memory: %w", err).Error())
		}
	}
	c := b.chunks[chunk]
	if c.used--; c.used > 0 {
		clear(mem)
		return
	}
	// Who lent it gives a chunk up as well when nothing of it is used, and the next one has another number.
	c.unmap()
	delete(b.chunks, chunk)
}
