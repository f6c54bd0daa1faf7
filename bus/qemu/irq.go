package qemu

import (
	"errors"
	"fmt"
	"slices"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// irqState is what a device has enabled. Guarded by Machine.irqMu.
type irqState struct {
	irqs []*bus.IRQ
	mode bus.IRQMode
	base int // first doorbell vector
	took int // doorbell vectors reserved from base on
	log2 int // of MSI: how many, as its capability has it
	msi  *pci.MSI
	msix *pci.MSIX
	wire *intx
}

// line is an interrupt line of the IOAPIC, which functions share.
type line struct {
	high bool
	subs []*intx
}

// intx is one function's part in a line.
type intx struct {
	irq    *bus.IRQ
	line   int
	masked bool // fired, not yet unmasked
}

// IRQVectors looks at the capabilities each time: they are the device's word.
func (d *device) IRQVectors(mode bus.IRQMode) int {
	if d.Err() != nil {
		return 0
	}
	n := 0
	if d.platform() && mode != bus.INTx {
		return 0
	}
	switch mode {
	case bus.INTx:
		if d.line != 0 || !d.platform() && pci.INTxPin(d.cfg) != 0 {
			n = 1
		}
		return n
	case bus.MSI:
		if c, err := pci.OpenMSI(d.cfg); err == nil {
			n = c.Vectors()
		}
	case bus.MSIX:
		if c, err := pci.OpenMSIX(d.cfg, d.Region); err == nil {
			n = c.Vectors()
		}
	}
	d.m.irqMu.Lock()
	defer d.m.irqMu.Unlock()
	// What the device has now is given back when it enables others.
	return min(n, max(d.m.bell.available(), d.irq.took))
}

// EnableIRQs programs the device's interrupt messages to be doorbell writes, or joins its
// line.
func (d *device) EnableIRQs(mode bus.IRQMode, n int) ([]*bus.IRQ, error) {
	what := fmt.Sprintf("%s %s: enabling %d %s vectors", d.Address(), d.spec.Name, n, mode)
	have := d.IRQVectors(mode)
	d.m.irqMu.Lock()
	defer d.m.irqMu.Unlock()
	if err := d.disableLocked(); err != nil {
		return nil, err
	}
	if d.closing && d.Err() == nil {
		return nil, fmt.Errorf("%s: %w", what, bus.ErrClosed)
	}
	if n < 1 || n > have {
		return nil, fmt.Errorf("%s: there are %d: %w", what, have, bus.ErrNotSupported)
	}
	d.irq.mode = mode
	var err error
	if mode == bus.INTx {
		err = d.enableINTx()
	} else {
		err = d.enableMessages(mode, n)
	}
	if !d.alive() {
		err = d.Err() // its end came between, and whatever was read is all-ones
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", what, err), d.disableLocked())
	}
	return slices.Clone(d.irq.irqs), nil
}

func (d *device) enableMessages(mode bus.IRQMode, n int) error {
	s := &d.irq
	take, align := n, 1
	if mode == bus.MSI {
		for take&(take-1) != 0 {
			take++ // MSI has powers of two only,
		}
		align = take // and puts the vector's number in the low bits of its datum
	}
	if s.base = d.m.bell.take(take, align); s.base < 0 {
		return fmt.Errorf("the machine has no %d interrupt eventfds in a row left: %w", take, bus.ErrNotSupported)
	}
	s.took = take
	for i := range n {
		q, err := bus.WrapIRQ(mode, i, d.m.bell.fds[s.base+i], nil)
		if err != nil {
			return err
		}
		s.irqs = append(s.irqs, q)
	}
	pci.SetCommand(d.cfg, pci.CmdINTxDisable, 0)
	if mode == bus.MSI {
		return d.programMSI(take)
	}
	return d.programMSIX(n)
}

func (d *device) programMSI(n int) (err error) {
	s := &d.irq
	if s.msi, err = pci.OpenMSI(d.cfg); err != nil {
		return err
	}
	for s.log2 = 0; 1<<s.log2 < n; {
		s.log2++
	}
	// The datum is 16 bits: the peer above it is 0, which is this process.
	if err := s.msi.Set(d.m.bell.addr, uint16(s.base), s.log2); err != nil {
		return err
	}
	s.msi.Enable()
	return nil
}

func (d *device) programMSIX(n int) (err error) {
	s := &d.irq
	if s.msix, err = pci.OpenMSIX(d.cfg, d.Region); err != nil {
		return err
	}
	for i := range s.msix.Vectors() {
		if i >= n {
			if err := s.msix.Mask(i); err != nil {
				return err
			}
			continue
		}
		if err := s.msix.Set(i, d.m.bell.addr, d.m.bell.message(s.base+i)); err != nil {
			return err
		}
		if err := s.msix.Unmask(i); err != nil {
			return err
		}
	}
	s.msix.Enable()
	return nil
}

// RestoreIRQs looks whether messages go where they went, and sees to it with write; bus.IRQKeeper.
func (d *device) RestoreIRQs(write bool) (lost bool, err error) {
	d.m.irqMu.Lock()
	defer d.m.irqMu.Unlock()
	s := &d.irq
	switch {
	case !d.alive():
		return false, d.Err()
	case s.msi != nil:
		lost, err = s.msi.Restore(d.m.bell.addr, uint16(s.base), s.log2, write)
	case s.msix != nil:
		lost, err = s.msix.Restore(len(s.irqs), d.m.bell.addr, func(i int) uint32 { return d.m.bell.message(s.base + i) }, write)
	}
	if err != nil {
		err = fmt.Errorf("%s %s: %w", d.Address(), d.spec.Name, err)
	}
	return lost, err
}

// firstPIRQ is the IOAPIC line of PIRQE. The ICH9 routes INTx of slot s, pin p (0 to 3)
// to PIRQE plus (s+p) mod 4 for the slots that this bus uses.
const firstPIRQ = 20

// lineOf is the IOAPIC line of a function's pin: bridges swizzle (PCI-to-PCI Bridge 1.2,
// 9.1).
func lineOf(f *pci.Function, pin int) int {
	for ; f.Parent != nil; f = f.Parent {
		pin = (pin + int(f.Addr.Dev)) % 4
	}
	return firstPIRQ + (int(f.Addr.Dev)+pin)%4
}

func (d *device) enableINTx() error {
	if !d.m.intxOn {
		if err := d.m.qt.command("irq_intercept_in ioapic"); err != nil {
			return err
		}
		if err := d.m.qt.startWatch(); err != nil {
			return err
		}
		d.m.intxOn = true
	}
	w := &intx{line: d.line}
	if !d.platform() {
		w.line = lineOf(d.fn, int(pci.INTxPin(d.cfg))-1)
	}
	q, err := bus.NewIRQ(bus.INTx, 0, func() { d.m.unmask(w) })
	if err != nil {
		return err
	}
	q.SetLine(w.line)
	w.irq = q
	d.irq.irqs, d.irq.wire = []*bus.IRQ{q}, w
	d.m.lineMu.Lock()
	l := d.m.lines[w.line]
	if l == nil {
		l = &line{}
		d.m.lines[w.line] = l
	}
	l.subs = append(l.subs, w)
	if l.high {
		w.fire()
	}
	d.m.lineMu.Unlock()
	if !d.platform() {
		pci.SetCommand(d.cfg, 0, pci.CmdINTxDisable)
	}
	return nil
}

// fire signals and masks. Called with lineMu held.
func (w *intx) fire() {
	if !w.masked {
		w.masked = true
		w.irq.Signal()
	}
}

// lineChanged is called for each message about a line, with the qtest lock held.
func (m *Machine) lineChanged(n int, high bool) {
	m.lineMu.Lock()
	defer m.lineMu.Unlock()
	l := m.lines[n]
	if l == nil {
		l = &line{}
		m.lines[n] = l
	}
	l.high = high
	if high {
		for _, w := range l.subs {
			w.fire()
		}
	}
}

// unmask lets a line fire again, at once if it is high: another function on it may still
// want something, or the handler left something behind.
func (m *Machine) unmask(w *intx) {
	m.qt.flush() // the handler's writes may have lowered it
	m.lineMu.Lock()
	defer m.lineMu.Unlock()
	w.masked = false
	if l := m.lines[w.line]; l != nil && l.high {
		w.fire()
	}
}

// DisableIRQs masks at the device, then closes the eventfds.
func (d *device) DisableIRQs() error {
	d.m.irqMu.Lock()
	defer d.m.irqMu.Unlock()
	return d.disableLocked()
}

func (d *device) disableLocked() error {
	s := &d.irq
	if s.msix != nil {
		s.msix.Disable()
	}
	if s.msi != nil {
		s.msi.Disable()
	}
	if s.wire != nil {
		if !d.platform() {
			pci.SetCommand(d.cfg, pci.CmdINTxDisable, 0)
		}
		d.m.lineMu.Lock()
		if l := d.m.lines[s.wire.line]; l != nil {
			l.subs = slices.DeleteFunc(l.subs, func(w *intx) bool { return w == s.wire })
		}
		d.m.lineMu.Unlock()
	}
	if s.took > 0 || s.wire != nil {
		// Nothing is sent any more once the writes above are done.
		d.m.qt.flush()
	}
	var err error
	for _, q := range s.irqs {
		err = errors.Join(err, q.Close())
	}
	if s.took > 0 {
		d.m.bell.give(s.base, s.took)
	}
	*s = irqState{}
	return err
}
