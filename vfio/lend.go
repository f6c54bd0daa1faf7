package vfio

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// Lender is how a process asks for a device that another one holds: one request, its reply, and the descriptors that come with
// it, which are the caller's. [Loan] answers; whoever carries requests from process to process stands between. Safe for
// concurrent use.
type Lender interface {
	Call(ctx context.Context, request []byte) (reply []byte, files []*os.File, err error)
}

// LoanOptions bound what a borrower may have. The zero value has the bounds below.
type LoanOptions struct {
	Bytes  uint64 // DMA memory, in whole pieces of memory that is shared; 1 GiB
	Pieces int    // pieces of it; 16384
	// Overdue is called where the kernel wants the device back and the borrower does not let go of it: it is to be ended, and
	// Recall called then. It must not block.
	Overdue func(why error)
}

// Loan lends a device that this process opened to another one, which drives it. This process keeps what outlives the other:
// the container or IOAS, the device's file, the DMA memory. There is one borrower at a time. Safe for concurrent use.
type Loan struct {
	d *Device
	o LoanOptions

	mu     sync.Mutex // before Device.mu
	lent   bool
	life   *os.File      // the writing end of the borrower's pipe, which tells it of the device's end
	back   chan struct{} // closed when the borrower has let go of the device
	eye    sync.WaitGroup
	chunks map[int]*chunk
	pieces map[int]*piece
	next   int
	bytes  uint64
	told   bool // that the device has no reset
	dirty  bool // the last borrower's work could not be stopped: nobody borrows it until it can
}

var _ Lender = (*Loan)(nil)

// How long a borrower may take to let go of a device that the kernel wants back, milliseconds as a rule; then how long it may take to be ended; and how long
// the kernel may be busy with a function that is to be reset.
const (
	grace     = 5 * time.Second
	endTime   = 5 * time.Second
	resetTime = time.Second
)

// Lend prepares to lend the device. From then on it is not to be used in any other way, but for Close.
func (d *Device) Lend(o LoanOptions) (*Loan, error) {
	if d.phys != nil {
		return nil, d.errorf("lending it: nothing confines its DMA: %w", bus.ErrNoIOMMU)
	}
	if d.lent != nil {
		return nil, d.errorf("lending it: it is borrowed: %w", bus.ErrNotSupported)
	}
	if o.Bytes == 0 {
		o.Bytes = 1 << 30
	}
	if o.Pieces == 0 {
		o.Pieces = 16384
	}
	l := &Loan{d: d, o: o, chunks: map[int]*chunk{}, pieces: map[int]*piece{}}
	if !d.loan.CompareAndSwap(nil, l) {
		return nil, d.errorf("lending it: that was asked for already: %w", bus.ErrBusy)
	}
	return l, nil
}

// Call answers a borrower. Nothing in a request is trusted: it says what is wanted, never where anything is.
func (l *Loan) Call(ctx context.Context, request []byte) ([]byte, []*os.File, error) {
	var q lendRequest
	if err := json.Unmarshal(request, &q); err != nil {
		return nil, nil, l.d.errorf("lent device: reading a request: %w: %w", err, bus.ErrProtocol)
	}
	var out lendReply
	var files []*os.File
	err := ctx.Err()
	if err == nil {
		switch q.Op {
		case lendOpen:
			out.Device, files, err = l.open()
		case lendAlloc:
			out.Memory, files, err = l.alloc(q)
		case lendFree:
			out.Memory, err = l.free(q.ID)
		case lendReset:
			err = l.reset(ctx)
		case lendClose:
			err = l.Recall(ctx)
		default:
			err = fmt.Errorf("no request %.20q is known: %w", q.Op, bus.ErrProtocol)
		}
	}
	if err == nil {
		var b []byte
		if b, err = json.Marshal(out); err == nil {
			return b, files, nil
		}
	}
	for _, f := range files {
		f.Close()
	}
	return nil, nil, l.d.errorf("lent device: %w", err)
}

// open gives the device to a borrower: its file, and a pipe that tells of its end.
func (l *Loan) open() (*lentDevice, []*os.File, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.d.Err(); err != nil {
		return nil, nil, err
	}
	if l.lent {
		return nil, nil, fmt.Errorf("somebody has it already: %w", bus.ErrBusy)
	}
	if l.dirty { // its memory would be at the addresses that the device may still write to
		if err := l.stop(context.Background()); err != nil {
			return nil, nil, fmt.Errorf("what the last borrower had it do goes on: %w", err)
		}
	}
	l.d.mu.Lock()
	defer l.d.mu.Unlock()
	if l.d.fd < 0 {
		return nil, nil, bus.ErrClosed
	}
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, nil, os.NewSyscallError("pipe2", err)
	}
	life, theirs := os.NewFile(uintptr(p[1]), "life"), os.NewFile(uintptr(p[0]), "life")
	fd, err := unix.FcntlInt(uintptr(l.d.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, nil, errors.Join(os.NewSyscallError("fcntl", err), life.Close(), theirs.Close())
	}
	l.lent, l.life, l.back = true, life, make(chan struct{})
	back := l.back
	l.eye.Go(func() { l.d.keepWatch(back) })
	f := &l.d.fn
	return &lentDevice{
		Addr: f.Addr.String(), ID: f.ID, BARs: f.BARs, API: l.d.access.API, Group: l.d.access.Group, Line: l.d.line,
	}, []*os.File{os.NewFile(uintptr(fd), "vfio-device"), theirs}, nil
}

// reset is the reset of a bus, which the borrower cannot make: it would have to show the descriptors of the groups that it hits.
func (l *Loan) reset(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.lent {
		return bus.ErrClosed
	}
	return l.d.Reset(ctx)
}

// Recall takes the device back from a borrower that is dead, or has let go of it: interrupts off, a reset, bus mastering
// off, and only then the DMA memory away from the device and back to the system. Who borrows next finds it so. A device without
// a reset is as the last one left it, but reaches no memory and interrupts nobody; the log says so once. An error says what of it
// failed; the memory is away from the device in any case, and nobody borrows it before a Recall, or the attempt to borrow it, could stop it. Recall of what is
// not lent, and stopped, does nothing.
func (l *Loan) Recall(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.lent && !l.dirty {
		return nil
	}
	err := l.stop(ctx)
	if l.lent {
		l.drop()
	}
	if l.d.Err() != nil {
		return nil // nobody borrows it any more, and what ends it has its own reason
	}
	return err
}

// stop is quiesce, and remembers whether that is still to be done. mu is held.
func (l *Loan) stop(ctx context.Context) error {
	err := l.quiesce(ctx)
	l.dirty = err != nil
	return err
}

// drop ends a loan: the memory goes. mu is held.
func (l *Loan) drop() {
	for _, p := range l.pieces {
		l.d.space.remove(p.m)
	}
	for _, c := range l.chunks {
		c.close()
	}
	clear(l.pieces)
	clear(l.chunks)
	l.bytes, l.lent = 0, false
	l.life.Close()
	close(l.back)
	l.eye.Wait()
}

// quiesce sees to it that the device does nothing. mu is held.
func (l *Loan) quiesce(ctx context.Context) error {
	d := l.d
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fd < 0 {
		return nil
	}
	errs := []error{d.silence()}
	if d.cfg.Read16(pci.CfgVendor) == 0xffff {
		return errors.Join(append(errs, d.errorf("it does not answer: config space reads all-ones: %w", bus.ErrGone))...)
	}
	if d.access.API == Cdev {
		// A borrower may have detached the device from its addresses. It cannot attach it to others: it has no iommufd.
		if t, ok := d.space.ioas(); ok {
			if err := d.k.attach(d.fd, t.id); err != nil {
				errs = append(errs, d.errorf("attaching the device to its address space again: %w", err))
			}
		}
	}
	if d.Err() != nil {
		// The kernel wants it back, and has its lock: it resets it by itself once all descriptors are closed.
	} else if err := d.resetSoon(ctx); errors.Is(err, bus.ErrNotSupported) && !d.canReset && !errors.Is(err, unix.EAGAIN) {
		if !l.told {
			d.log.Warn(d.errorf("it cannot be reset when its driver dies: %w", err).Error())
		}
		l.told = true
	} else if err != nil {
		errs = append(errs, d.errorf("resetting: %w", err))
	}
	errs = append(errs, d.stopDMA(), d.watchAgain())
	return errors.Join(errs...)
}

// resetSoon is resetAny, again for as long as somebody in the kernel is busy with the function. mu is held.
func (d *Device) resetSoon(ctx context.Context) error {
	for patience := time.Now().Add(resetTime); ; time.Sleep(10 * time.Millisecond) {
		err := d.resetAny(ctx)
		if !errors.Is(err, unix.EAGAIN) || ctx.Err() != nil || time.Now().After(patience) {
			return err
		}
	}
}

// silence has the kernel signal none of the interrupts that somebody enabled. mu is held.
func (d *Device) silence() error {
	pci.SetCommand(d.cfg, pci.CmdINTxDisable, 0)
	var err error
	for _, index := range []uint32{irqINTx, irqMSI, irqMSIX} {
		// EINVAL: that kind is not enabled, or is not there.
		if e := d.k.setIRQs(d.fd, setNone|setTrigger, index, 0, 0, nil); e != nil && !errors.Is(e, unix.EINVAL) {
			err = errors.Join(err, d.errorf("disabling interrupts (index %d): %w", index, e))
		}
	}
	return err
}

// stopDMA takes bus mastering from the device. mu is held.
func (d *Device) stopDMA() error {
	pci.SetCommand(d.cfg, 0, pci.CmdMaster)
	if c := pci.Command(d.cfg.Read16(pci.CfgCommand)); c&pci.CmdMaster != 0 {
		return d.errorf("bus mastering cannot be switched off (Command %#x): %w", uint16(c), bus.ErrGone)
	}
	return nil
}

// watchAgain has the kernel tell of the device's end, whatever a borrower made of that. mu is held.
func (d *Device) watchAgain() error {
	for _, w := range d.watches {
		if err := d.k.setIRQs(d.fd, setEventfd|setTrigger, uint32(w.irq.Vector()), 0, 1, []int32{int32(w.irq.FD())}); err != nil {
			return d.errorf("watching over the device (interrupt index %d): %w", w.irq.Vector(), err)
		}
	}
	return nil
}

// watchTime is how often the kernel is told anew who is to hear of the device's end: a hostile borrower may have told it something else. The kernel asks again
// and again, so it is heard.
const watchTime = 2 * time.Second

// keepWatch does that until the device is back.
func (d *Device) keepWatch(back <-chan struct{}) {
	t := time.NewTicker(watchTime)
	defer t.Stop()
	for {
		select {
		case <-back:
			return
		case <-d.done:
			return
		case <-t.C:
		}
		d.mu.Lock()
		if d.fd >= 0 && d.Err() == nil {
			_ = d.watchAgain() // of a device that is gone that is told already
		}
		d.mu.Unlock()
	}
}

// end tells the borrower why the device ends, and waits, as long as is decent, until it has let go of it.
func (l *Loan) end(why error) {
	l.mu.Lock()
	if !l.lent {
		l.mu.Unlock()
		return
	}
	back := l.back
	_, _ = l.life.Write([]byte{lifeOf(why)})
	l.mu.Unlock()
	select {
	case <-back:
		return
	case <-time.After(grace):
	}
	l.d.log.Warn(l.d.errorf("its driver does not let go of it after %v: %w", grace, why).Error())
	if l.o.Overdue != nil {
		l.o.Overdue(why)
		select {
		case <-back:
		case <-time.After(endTime):
		}
	}
}

// lifeOf is what a pipe says of a device's end: the number of why in ends, from 1 on, and 0 for another reason.
func lifeOf(why error) byte {
	for i, e := range ends {
		if errors.Is(why, e.why) {
			return byte(i + 1)
		}
	}
	return 0
}
