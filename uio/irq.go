package uio

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/internal/crash"
)

// startPump finds out whether the device has an interrupt, and waits for it from now on: the
// pump is also who learns that the device was removed.
func (d *Device) startPump() error {
	what := fmt.Sprintf("%s: reading /dev/%s", d.place.name, d.place.node)
	var b [4]byte
	n, err := unix.Read(d.files.uioFD, b[:])
	switch {
	case err == unix.EIO:
		// No interrupt, as far as one can tell: a device that is gone says the same.
		if _, err := os.Stat(d.tree.class(d.place.node)); err != nil {
			return fmt.Errorf("%s: the device was removed, or unbound from its driver: %w", what, bus.ErrGone)
		}
		return nil
	case err == unix.EAGAIN:
		// Nothing fired since the file was opened; the count is in sysfs.
	case err != nil:
		return fmt.Errorf("%s: %w", what, err)
	case n != len(b):
		return fmt.Errorf("%s: %d bytes, want %d: %w", what, n, len(b), bus.ErrProtocol)
	}
	count := binary.NativeEndian.Uint32(b[:])
	if err == unix.EAGAIN {
		event, err := number(d.tree.class(d.place.node, "event"))
		if err != nil {
			return fmt.Errorf("%s: %w", d.place.name, err)
		}
		count = uint32(event)
	}
	d.hasIRQ = true
	d.pumped = make(chan struct{})
	go d.pump(count)
	return nil
}

// pump passes on each interrupt that the kernel counted, until the file is closed. count is
// how many there were before. The kernel's count wraps at 32 bits.
func (d *Device) pump(count uint32) {
	defer crash.Report()
	defer close(d.pumped)
	for {
		var b [4]byte
		n, err := d.files.uio.Read(b[:])
		if errors.Is(err, os.ErrClosed) {
			return
		}
		if err != nil || n != len(b) {
			if err == nil {
				err = bus.ErrProtocol
			}
			d.end(fmt.Errorf("%s: waiting for interrupts: the device was removed, or unbound from its driver: %w: %w", d.place.name, bus.ErrGone, err))
			return
		}
		now := binary.NativeEndian.Uint32(b[:])
		d.irqMu.Lock()
		if d.irq != nil {
			d.irq.SignalN(uint64(now - count))
		}
		d.irqMu.Unlock()
		count = now
	}
}

// IRQVectors is 1 for INTx where the device has an interrupt: UIO has no other.
func (d *Device) IRQVectors(mode bus.IRQMode) int {
	if mode != bus.INTx || !d.hasIRQ || d.Err() != nil {
		return 0
	}
	return 1
}

// EnableIRQs lets the device's one interrupt through.
func (d *Device) EnableIRQs(mode bus.IRQMode, n int) ([]*bus.IRQ, error) {
	d.irqMu.Lock()
	defer d.irqMu.Unlock()
	if err := d.disableLocked(); err != nil {
		return nil, err
	}
	what := fmt.Sprintf("%s: enabling %d %s vectors", d.place.name, n, mode)
	// Under the lock, so that Close comes before and is seen, or after and disables.
	if err := d.refuse(); err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	if have := d.IRQVectors(mode); n < 1 || n > have {
		return nil, fmt.Errorf("%s: there are %d, and UIO has INTx only: %w", what, have, bus.ErrNotSupported)
	}
	var q *bus.IRQ
	q, err := bus.NewIRQ(bus.INTx, 0, func() { d.unmask(q) })
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	q.SetLine(d.line)
	d.irq = q
	if err := d.allow(true, true); err != nil {
		d.irq = nil
		return nil, errors.Join(fmt.Errorf("%s: %w", what, err), q.Close())
	}
	return []*bus.IRQ{q}, nil
}

// unmask lets the line fire again, unless its vector was replaced meanwhile.
func (d *Device) unmask(q *bus.IRQ) {
	d.irqMu.Lock()
	defer d.irqMu.Unlock()
	if d.irq != q || d.refuse() != nil {
		return
	}
	if err := d.allow(true, true); err != nil {
		d.log.Warn("interrupt not enabled again", "address", d.place.name, "error", err)
	}
}

// DisableIRQs holds the interrupt back and ends its vector.
func (d *Device) DisableIRQs() error {
	d.irqMu.Lock()
	defer d.irqMu.Unlock()
	return d.disableLocked()
}

// disableLocked is DisableIRQs with irqMu held.
func (d *Device) disableLocked() error {
	q := d.irq
	if q == nil {
		return nil
	}
	d.irq = nil
	var err error
	if d.Err() == nil {
		err = d.allow(false, false)
	}
	return errors.Join(err, q.Close())
}

// allow lets the interrupt through or not: for uio_pci_generic, which masks by INTx-Disable, by
// that bit; for others by a write to their file, which a driver may lack that never masks.
// Called with irqMu held.
func (d *Device) allow(on, owned bool) error {
	if d.fn != nil && (d.place.fn.Driver == generic || d.ctl) {
		d.cfg.intx(on, owned)
		return nil
	}
	if d.ctl {
		return nil
	}
	var b [4]byte
	if on {
		binary.NativeEndian.PutUint32(b[:], 1)
	}
	switch _, err := d.files.uio.Write(b[:]); {
	case errors.Is(err, unix.ENOSYS):
		d.ctl = true
		return d.allow(on, owned)
	case errors.Is(err, unix.EIO):
		return nil // it is gone, as the pump will say
	case err != nil:
		return fmt.Errorf("switching the interrupt at /dev/%s: %w", d.place.node, err)
	}
	return nil
}
