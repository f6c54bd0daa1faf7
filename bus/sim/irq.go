package sim

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// doorbell is where interrupt messages go: the address of the local interrupt controller. The
// datum of a message is an index in Machine.bell.
const doorbell = 0xfee00000

// maxBell is how many messages can be told apart: MSI has 16 bits.
const maxBell = 1 << 16

// irqState is what a device has enabled. Guarded by device.irqMu.
type irqState struct {
	irqs []*bus.IRQ
	base int // first datum
	took int // data reserved from base on
	log2 int // of MSI: how many, as its capability has it
	msi  *pci.MSI
	msix *pci.MSIX
}

// line is an interrupt line, which functions share as they do on a PC. Guarded by Machine.mu.
type line struct {
	high int // how many functions hold it high
	subs []*intx
}

// intx is one function's part in a line.
type intx struct {
	irq    *bus.IRQ
	masked bool // fired, not yet unmasked
}

// firstLine is the input of the interrupt controller that line 0 is, for messages. After the lines of the slots
// comes the one of platform devices.
const (
	firstLine = 20
	pciLines  = 4
)

// IRQVectors looks at config space each time, as a driver would.
func (d *device) IRQVectors(mode bus.IRQMode) int {
	if d.Err() != nil {
		return 0
	}
	if d.isPlatform() {
		if mode == bus.INTx && d.hdr.intx {
			return 1
		}
		return 0
	}
	c := d.Config()
	switch mode {
	case bus.INTx:
		if pci.INTxPin(c) != 0 {
			return 1
		}
	case bus.MSI:
		if x, err := pci.OpenMSI(c); err == nil {
			return x.Vectors()
		}
	case bus.MSIX:
		if x, err := pci.OpenMSIX(c, d.Region); err == nil {
			return x.Vectors()
		}
	}
	return 0
}

// EnableIRQs programs the device's messages to be ours, or joins its line.
func (d *device) EnableIRQs(mode bus.IRQMode, n int) ([]*bus.IRQ, error) {
	d.irqMu.Lock()
	defer d.irqMu.Unlock()
	what := fmt.Sprintf("enabling %d %s vectors", n, mode)
	if err := d.disableIRQs(); err != nil {
		return nil, err
	}
	if d.closing && d.Err() == nil {
		return nil, d.errorf("%s: %w", what, bus.ErrClosed)
	}
	if have := d.IRQVectors(mode); n < 1 || n > have {
		err := d.Err()
		if err == nil {
			err = bus.ErrNotSupported
		}
		return nil, d.errorf("%s: there are %d: %w", what, have, err)
	}
	var err error
	if mode == bus.INTx {
		err = d.enableINTx()
	} else {
		err = d.enableMessages(mode, n)
	}
	if end := d.Err(); end != nil {
		err = end // it came between, and whatever was read is all-ones
	}
	if err != nil {
		return nil, errors.Join(d.errorf("%s: %w", what, err), d.disableIRQs())
	}
	return slices.Clone(d.irq.irqs), nil
}

func (d *device) enableMessages(mode bus.IRQMode, n int) error {
	s := &d.irq
	take := n
	if mode == bus.MSI {
		for take&(take-1) != 0 {
			take++ // MSI has powers of two only
		}
	}
	for i := range n {
		q, err := bus.NewIRQ(mode, i, nil)
		if err != nil {
			return err
		}
		s.irqs = append(s.irqs, q)
	}
	if !d.m.takeBell(s, take) {
		return fmt.Errorf("the machine has no %d messages in a row left: %w", take, bus.ErrNotSupported)
	}
	pci.SetCommand(d.Config(), pci.CmdINTxDisable, 0)
	if mode == bus.MSI {
		return d.programMSI(take)
	}
	return d.programMSIX(n)
}

// takeBell finds n data in a row, the first a multiple of n's next power of two, for vectors
// that may be fewer.
func (m *Machine) takeBell(s *irqState, n int) bool {
	align := 1
	for align < n {
		align *= 2
	}
	m.lock()
	defer m.unlock()
	for at := 0; at+n <= maxBell; at += align {
		for len(m.bell) < at+n {
			m.bell = append(m.bell, nil)
		}
		if slices.ContainsFunc(m.bell[at:at+n], func(q *bus.IRQ) bool { return q != nil }) {
			continue
		}
		for i := range n {
			m.bell[at+i] = s.irqs[min(i, len(s.irqs)-1)]
		}
		s.base, s.took = at, n
		return true
	}
	return false
}

func (d *device) programMSI(n int) (err error) {
	s := &d.irq
	if s.msi, err = pci.OpenMSI(d.Config()); err != nil {
		return err
	}
	for s.log2 = 0; 1<<s.log2 < n; {
		s.log2++
	}
	if err := s.msi.Set(doorbell, uint16(s.base), s.log2); err != nil {
		return err
	}
	s.msi.Enable()
	return nil
}

func (d *device) programMSIX(n int) (err error) {
	s := &d.irq
	if s.msix, err = pci.OpenMSIX(d.Config(), d.Region); err != nil {
		return err
	}
	for i := range s.msix.Vectors() {
		if i >= n {
			if err := s.msix.Mask(i); err != nil {
				return err
			}
			continue
		}
		if err := s.msix.Set(i, doorbell, uint32(s.base+i)); err != nil {
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
	d.irqMu.Lock()
	defer d.irqMu.Unlock()
	s := &d.irq
	switch {
	case d.Err() != nil:
		return false, d.Err()
	case s.msi != nil:
		lost, err = s.msi.Restore(doorbell, uint16(s.base), s.log2, write)
	case s.msix != nil:
		lost, err = s.msix.Restore(len(s.irqs), doorbell, func(i int) uint32 { return uint32(s.base + i) }, write)
	}
	if err != nil {
		err = d.errorf("%w", err)
	}
	return lost, err
}

func (d *device) enableINTx() error {
	w := &intx{}
	q, err := bus.NewIRQ(bus.INTx, 0, func() { d.unmask(w) })
	if err != nil {
		return err
	}
	l, number := d.lineOf()
	q.SetLine(number)
	w.irq = q
	d.irq.irqs = []*bus.IRQ{q}
	d.m.lock()
	d.wire = w
	l.subs = append(l.subs, w)
	if l.high > 0 {
		w.fire()
	}
	d.m.unlock()
	pci.SetCommand(d.Config(), 0, pci.CmdINTxDisable)
	return nil
}

// fire signals and masks. Called with Machine.mu held.
func (w *intx) fire() {
	if !w.masked {
		w.masked = true
		w.irq.Signal()
	}
}

// unmask lets a line fire again, at once if it is high: another function on it may still
// want something, or the handler left something behind.
func (d *device) unmask(w *intx) {
	d.m.lock()
	defer d.m.unlock()
	w.masked = false
	if l, _ := d.lineOf(); d.wire == w && l.high > 0 {
		w.fire()
	}
}

// DisableIRQs masks at the device, then closes the eventfds.
func (d *device) DisableIRQs() error {
	d.irqMu.Lock()
	defer d.irqMu.Unlock()
	return d.disableIRQs()
}

func (d *device) disableIRQs() error {
	s := &d.irq
	if s.msix != nil {
		s.msix.Disable()
	}
	if s.msi != nil {
		s.msi.Disable()
	}
	d.m.lock()
	w := d.wire
	d.m.unlock()
	if w != nil {
		pci.SetCommand(d.Config(), pci.CmdINTxDisable, 0)
	}
	d.m.lock()
	if w != nil {
		l, _ := d.lineOf()
		l.subs = slices.DeleteFunc(l.subs, func(x *intx) bool { return x == w })
		d.wire = nil
	}
	for i := range s.took {
		d.m.bell[s.base+i] = nil
	}
	d.m.unlock()
	var err error
	for _, q := range s.irqs {
		err = errors.Join(err, q.Close())
	}
	*s = irqState{}
	return err
}

// What follows is called with Machine.mu held: the device's side.

// setLine is the level that the line is told; Interrupt Disable and messages hold it low.
func (d *device) setLine(high bool) {
	if high == d.asserts {
		return
	}
	d.asserts = high
	l, _ := d.lineOf()
	if !high {
		l.high--
		return
	}
	if l.high++; l.high == 1 {
		for _, w := range l.subs {
			w.fire()
		}
	}
}

func (d *device) mode() bus.IRQMode { return d.space.mode() }

// line is slot's.
func (d *device) line(high bool) {
	if high != d.high {
		d.high = high
		d.changed()
	}
}

// changed looks at what a write to config space or a chip's line means for the rest.
func (d *device) changed() {
	if d.gone {
		return
	}
	d.decode()
	on := d.high && d.hdr.intx
	d.space.setINTx(on)
	d.setLine(on && d.space.command()&pci.CmdINTxDisable == 0 && d.mode() == bus.INTx)
	d.flushMSIX()
	d.flushMSI()
}

// message is a write that is an interrupt. Elsewhere than at the doorbell it is DMA like any other.
func (d *device) message(addr uint64, data uint32) {
	if d.space.command()&pci.CmdMaster == 0 || !d.masters {
		return // not allowed to send, which is no fault
	}
	if addr != doorbell {
		d.store32(bus.IOVA(addr), data)
		return
	}
	if m := d.m; int64(data) < int64(len(m.bell)) && m.bell[data] != nil {
		m.bell[data].Signal()
	}
}

// msix is slot's.
func (d *device) msix(vector int) {
	if d.gone || vector < 0 || vector >= d.hdr.msix || d.mode() != bus.MSIX {
		return
	}
	e := d.msixTab[vector*entrySize:]
	if e[entryCtl]&entryIsOff != 0 || d.space.get16(d.space.msix+msixCtl)&msixMask != 0 {
		d.pending[vector/64] |= 1 << (vector % 64)
		return
	}
	d.pending[vector/64] &^= 1 << (vector % 64)
	d.message(binary.LittleEndian.Uint64(e), binary.LittleEndian.Uint32(e[8:]))
}

// forget is slot's.
func (d *device) forget(vector int) {
	if vector >= 0 && vector < d.hdr.msix {
		d.pending[vector/64] &^= 1 << (vector % 64)
	}
}

// flushMSIX sends what was held back and need not be any more.
func (d *device) flushMSIX() {
	for i, w := range d.pending {
		for v := 64 * i; w != 0; v, w = v+1, w>>1 {
			if w&1 != 0 {
				d.msix(v) // which keeps it pending where it is masked still
			}
		}
	}
}

// resetMSIX masks all vectors, PCI Local Bus 3.0, 6.8.2.9.
func (d *device) resetMSIX() {
	clear(d.msixTab)
	clear(d.pending)
	for i := range d.hdr.msix {
		d.msixTab[i*entrySize+entryCtl] = entryIsOff
	}
}

// inTable says whether an access goes to the MSI-X table (at its offset), or to the pending bits.
func (d *device) inTable(region int, off bus.Off) (table, pba bool) {
	if d.hdr.msix == 0 || region != d.hdr.msixBAR {
		return false, false
	}
	return off < bus.Off(len(d.msixTab)), off >= bus.Off(d.hdr.pba) && off < bus.Off(d.hdr.pba+8*len(d.pending))
}

func (d *device) readTable(off bus.Off, width int) uint64 {
	switch width {
	case 4:
		return uint64(binary.LittleEndian.Uint32(d.msixTab[off:]))
	case 8:
		return binary.LittleEndian.Uint64(d.msixTab[off:])
	}
	return ^uint64(0)
}

func (d *device) writeTable(off bus.Off, width int, v uint64) {
	switch width {
	case 4:
		binary.LittleEndian.PutUint32(d.msixTab[off:], uint32(v))
	case 8:
		binary.LittleEndian.PutUint64(d.msixTab[off:], v)
	default:
		return
	}
	ctl := d.msixTab[int(off)/entrySize*entrySize+entryCtl:]
	clear(ctl[1:4])
	ctl[0] &= entryIsOff
	d.msixTab[int(off)/entrySize*entrySize] &^= 3
	d.flushMSIX()
}

func (d *device) readPending(off bus.Off, width int) uint64 {
	w := d.pending[(off-bus.Off(d.hdr.pba))/8]
	switch {
	case width == 8:
		return w
	case width == 4 && off%8 == 0:
		return w & 0xffffffff
	case width == 4:
		return w >> 32
	}
	return ^uint64(0)
}
