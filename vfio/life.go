package vfio

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// watch is an interrupt that ends the device, and the goroutine that waits for it.
type watch struct {
	irq  *bus.IRQ
	done sync.WaitGroup
}

// ErrAskedBack is wrapped by the end of a device that did not fail: it was unplugged, or unbound
// from vfio-pci. It is a bus.ErrGone.
var ErrAskedBack = fmt.Errorf("the kernel asked it back (unplugged, or unbound from vfio-pci): %w", bus.ErrGone)

// ends are the interrupts that end a device, and why.
var ends = []struct {
	index uint32
	why   error
}{
	{irqReq, ErrAskedBack},
	{irqErr, fmt.Errorf("the bus reported an error that it does not recover from: %w", bus.ErrGone)},
}

// watchEnd has the device end when it fails or is asked back.
func (d *Device) watchEnd() error {
	for _, e := range ends {
		flags, n, err := d.k.irqInfo(d.fd, e.index)
		if err != nil || n == 0 || flags&irqEventfd == 0 {
			continue // a conventional device reports no errors; a kernel before 4.0 asks nothing back
		}
		q, err := bus.NewIRQ(bus.INTx, int(e.index), nil)
		if err != nil {
			return err
		}
		w := &watch{irq: q}
		d.watches = append(d.watches, w)
		if err := d.k.setIRQs(d.fd, setEventfd|setTrigger, e.index, 0, 1, []int32{int32(q.FD())}); err != nil {
			return fmt.Errorf("watching over the device (interrupt index %d): %w", e.index, err)
		}
		w.done.Go(func() {
			if _, err := w.irq.Wait(context.Background()); err == nil {
				d.die(d.errorf("%w", e.why))
			}
		})
	}
	return nil
}

// die ends a device that did not end by itself. What the driver has stays: vectors that do
// not fire any more, registers that read all-ones, memory that the device does not reach.
func (d *Device) die(why error) {
	d.log.Debug(why.Error())
	if err := d.finish(why); err != nil {
		d.log.Error(d.errorf("letting go of the device: %w", err).Error())
	}
}

// finish lets go of the device, once, in the order that keeps it from reaching anything: it
// returns when the kernel has it back. Registers are unmapped before the descriptor is
// closed: mapped, they keep the device with this process.
func (d *Device) finish(why error) error {
	d.endOnce.Do(func() {
		d.end.Store(&why)
		if l := d.loan.Load(); l != nil {
			l.end(why)
			_ = l.Recall(context.Background()) // of one that did not let go
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		var errs []error
		if d.cfg != nil {
			// Of a device that is gone already nothing is left to be told.
			_ = d.maskIRQs()
			pci.SetCommand(d.cfg, 0, pci.CmdMaster)
			d.cfg.Read16(pci.CfgCommand) // what was under way has arrived
			d.cfg.Close()
		}
		for _, w := range d.open {
			errs = append(errs, w.Close())
		}
		if d.lent == nil {
			close(d.done) // who saw this reads all-ones
		}
		// The kernel resets the function here, where it can.
		errs = append(errs, os.NewSyscallError("close", unix.Close(d.fd)))
		d.fd = -1
		if d.phys != nil {
			d.phys.Close()
		}
		if d.lent != nil {
			// Who lent it resets it, and takes the memory away from it. That comes first: a process whose last device is done may end.
			d.lent.leave()
			close(d.done)
			d.endErr = errors.Join(errs...)
			return
		}
		d.endErr = errors.Join(append(errs, d.space.leave(d))...)
	})
	return d.endErr
}

// Close gives the device back: refuse new work, mask interrupts, bus mastering off, unmap the
// registers, close the descriptor, with which the kernel resets the function, take its
// memory away from it. It is idempotent.
func (d *Device) Close() error {
	d.closeOnce.Do(func() {
		err := d.finish(d.errorf("%w", bus.ErrClosed))
		d.mu.Lock()
		irqs := d.irq.irqs
		d.irq = irqState{}
		d.mu.Unlock()
		for _, q := range irqs {
			err = errors.Join(err, q.Close())
		}
		for _, w := range d.watches {
			err = errors.Join(err, w.irq.Close())
			w.done.Wait()
		}
		if d.lent != nil {
			err = errors.Join(err, d.lent.close())
		}
		d.closeErr = err
	})
	return d.closeErr
}
