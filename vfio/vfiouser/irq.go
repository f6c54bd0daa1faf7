package vfiouser

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
)

// maxVectors is the most that MSI-X has.
const maxVectors = 2048

// askIRQ asks how many vectors there are of a kind.
func (d *Device) askIRQ(index int) error {
	err := d.l.ask(request{
		cmd:  cmdIRQInfo,
		body: func(w *writer) { w.irqInfo(irqInfo{argsz: irqInfoSize, index: uint32(index)}) },
		reply: func(m *message) error {
			r := reader{b: m.body}
			i := r.irqInfo()
			if err := r.err(m); err != nil {
				return err
			}
			if i.index != uint32(index) || i.count > maxVectors || index == irqINTx && i.count > 1 {
				return fmt.Errorf("%d vectors of kind %d, want some of kind %d: %w", i.count, i.index, index, bus.ErrProtocol)
			}
			if i.flags&irqEventfd == 0 {
				i.count = 0 // nothing that this package could wait for
			}
			d.irqs[index] = i
			return nil
		},
	})
	if err != nil {
		return fmt.Errorf("asking for interrupts: %w", err)
	}
	return nil
}

// IRQVectors is bus.Device's.
func (d *Device) IRQVectors(mode bus.IRQMode) int {
	i := irqIndex(mode)
	if i < 0 || d.l.dead.Load() {
		return 0
	}
	return int(d.irqs[i].count)
}

// EnableIRQs is bus.Device's. The vectors are eventfds that the server signals.
func (d *Device) EnableIRQs(mode bus.IRQMode, n int) ([]*bus.IRQ, error) {
	d.irqMu.Lock()
	defer d.irqMu.Unlock()
	err := d.disableIRQs()
	if end := d.Err(); end != nil {
		return nil, end
	}
	if err == nil && d.closing {
		err = d.errorf("enabling %d %s vectors: %w", n, mode, bus.ErrClosed)
	}
	if err != nil {
		return nil, err
	}
	if have := d.IRQVectors(mode); n < 1 || n > have {
		err := d.Err()
		if err == nil {
			err = bus.ErrNotSupported
		}
		return nil, d.errorf("enabling %d %s vectors: there are %d: %w", n, mode, have, err)
	}
	for i := range n {
		q, err := d.newIRQ(mode, i)
		if err != nil {
			return nil, errors.Join(d.errorf("enabling %d %s vectors: %w", n, mode, err), d.disableIRQs())
		}
		d.lines = append(d.lines, q)
	}
	d.active = irqIndex(mode)
	if err := d.assign(n); err != nil {
		if end := d.Err(); end != nil {
			err = end
		}
		return nil, errors.Join(d.errorf("enabling %d %s vectors: %w", n, mode, err), d.disableIRQs())
	}
	return slices.Clone(d.lines), nil
}

// newIRQ makes a vector whose eventfd the server will signal.
func (d *Device) newIRQ(mode bus.IRQMode, vector int) (*bus.IRQ, error) {
	fd, err := sink()
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	return bus.WrapIRQ(mode, vector, fd, d.unmasker(mode))
}

// unmasker is what Unmask does: for a line, a message, which the server handles after all that the
// handler wrote.
func (d *Device) unmasker(mode bus.IRQMode) func() {
	if mode != bus.INTx {
		return nil
	}
	return func() {
		set := irqSet{argsz: irqSetSize, flags: setNone | setUnmask, index: irqINTx, count: 1}
		d.l.post(cmdSetIRQs, func(w *writer) { w.irqSet(set) })
	}
}

// assign passes the eventfds, as many at a time as the server takes. That there will be n is said
// first, by taking them away: a server that sets all vectors at once then does it once.
func (d *Device) assign(n int) error {
	set := func(start, count int, fds []int) error {
		return d.l.ask(request{cmd: cmdSetIRQs, fds: fds, body: func(w *writer) {
			w.irqSet(irqSet{argsz: irqSetSize, flags: setEventfd | setTrigger, index: uint32(d.active), start: uint32(start), count: uint32(count)})
		}})
	}
	batch := d.server.fds()
	if batch < 1 {
		return fmt.Errorf("the server takes no descriptors: %w", bus.ErrNotSupported)
	}
	if n > batch {
		if err := set(0, n, nil); err != nil {
			return err
		}
	}
	for at := 0; at < n; at += batch {
		var fds []int
		for _, q := range d.lines[at:min(at+batch, n)] {
			fds = append(fds, q.FD())
		}
		if err := set(at, len(fds), fds); err != nil {
			return err
		}
	}
	return nil
}

// DisableIRQs is bus.Device's.
func (d *Device) DisableIRQs() error {
	d.irqMu.Lock()
	defer d.irqMu.Unlock()
	return d.disableIRQs()
}

func (d *Device) disableIRQs() error {
	var err error
	if d.active >= 0 && !d.l.dead.Load() {
		set := irqSet{argsz: irqSetSize, flags: setNone | setTrigger, index: uint32(d.active)}
		if e := d.l.ask(request{cmd: cmdSetIRQs, body: func(w *writer) { w.irqSet(set) }}); e != nil && !d.l.dead.Load() {
			err = d.errorf("disabling %s: %w", irqModes[d.active], e)
		}
	}
	for _, q := range d.lines {
		err = errors.Join(err, q.Close())
	}
	d.lines, d.active = nil, -1
	return err
}
