package vfio

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// irqState is what a device has enabled. Guarded by Device.mu.
type irqState struct {
	mode bus.IRQMode
	irqs []*bus.IRQ // nil where none is enabled
	on   bool       // the kernel signals them
}

// index is what VFIO calls a mode.
func index(m bus.IRQMode) uint32 {
	return map[bus.IRQMode]uint32{bus.INTx: irqINTx, bus.MSI: irqMSI, bus.MSIX: irqMSIX}[m]
}

// countVectors asks how many vectors there are in each mode.
func (d *Device) countVectors() error {
	for _, m := range []bus.IRQMode{bus.INTx, bus.MSI, bus.MSIX} {
		flags, n, err := d.k.irqInfo(d.fd, index(m))
		if errors.Is(err, unix.EINVAL) {
			continue
		}
		if err != nil {
			return fmt.Errorf("asking for the %s vectors: %w", m, err)
		}
		most := map[bus.IRQMode]uint32{bus.INTx: 1, bus.MSI: 32, bus.MSIX: 2048}[m]
		if n > most {
			return fmt.Errorf("the kernel says that there are %d %s vectors, want %d at most: %w", n, m, most, bus.ErrProtocol)
		}
		if flags&irqEventfd != 0 {
			d.vectors[m].Store(int32(n))
		}
	}
	return nil
}

// IRQVectors is how many vectors device and kernel have in a mode.
func (d *Device) IRQVectors(m bus.IRQMode) int {
	if d.Err() != nil || int(m) >= len(d.vectors) {
		return 0
	}
	return int(d.vectors[m].Load())
}

// EnableIRQs has the kernel signal an eventfd for each vector. All are set at once: kernels
// before 6.5 cannot add one.
func (d *Device) EnableIRQs(m bus.IRQMode, n int) ([]*bus.IRQ, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.disableIRQs(); err != nil {
		return nil, err
	}
	what := fmt.Sprintf("enabling %d %s vectors", n, m)
	if err := d.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	if have := d.IRQVectors(m); n < 1 || n > have {
		return nil, d.errorf("%s: there are %d: %w", what, have, bus.ErrNotSupported)
	}
	d.irq = irqState{mode: m}
	if err := d.enable(m, n); err != nil {
		var left tooMany
		if errors.As(err, &left) {
			d.vectors[m].Store(int32(left))
		}
		return nil, errors.Join(d.errorf("%s: %w", what, err), d.disableIRQs())
	}
	return slices.Clone(d.irq.irqs), nil
}

func (d *Device) enable(m bus.IRQMode, n int) error {
	fds := make([]int32, n)
	for i := range fds {
		var unmask func()
		if m == bus.INTx {
			unmask = func() { d.unmask() }
		}
		q, err := bus.NewIRQ(m, i, unmask)
		if err != nil {
			return err
		}
		if m == bus.INTx {
			q.SetLine(d.line)
		}
		d.irq.irqs = append(d.irq.irqs, q)
		fds[i] = int32(q.FD())
	}
	if m != bus.INTx {
		pci.SetCommand(d.cfg, pci.CmdINTxDisable, 0)
	}
	if err := d.k.setIRQs(d.fd, setEventfd|setTrigger, index(m), 0, uint32(n), fds); err != nil {
		return err
	}
	d.irq.on = true
	if m == bus.INTx {
		pci.SetCommand(d.cfg, 0, pci.CmdINTxDisable)
	}
	return nil
}

// unmask lets the line fire again, at once where it is high.
func (d *Device) unmask() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.irq.on && d.irq.mode == bus.INTx {
		// It fails where the device is gone, which the watch tells.
		_ = d.k.setIRQs(d.fd, setNone|setUnmask, irqINTx, 0, 1, nil)
	}
}

// MaskINTx holds the line back until the vector's Unmask: for a driver that does not want
// to be interrupted for a while. A line that fired is masked already.
func (d *Device) MaskINTx() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.irq.on || d.irq.mode != bus.INTx {
		return d.errorf("masking INTx, which is not enabled: %w", bus.ErrNotSupported)
	}
	if err := d.k.setIRQs(d.fd, setNone|setMask, irqINTx, 0, 1, nil); err != nil {
		return d.errorf("masking INTx: %w", err)
	}
	return nil
}

// SetVector has a vector of MSI or MSI-X that is enabled signal another eventfd, while the
// others run on: one that another process or KVM waits for. fd stays the caller's. With
// -1 the vector signals nothing, with its IRQ's FD it is as it was.
func (d *Device) SetVector(vector, fd int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.irq.on || d.irq.mode == bus.INTx || vector < 0 || vector >= len(d.irq.irqs) {
		return d.errorf("setting vector %d: %d are enabled: %w", vector, len(d.irq.irqs), bus.ErrNotSupported)
	}
	if err := d.k.setIRQs(d.fd, setEventfd|setTrigger, index(d.irq.mode), uint32(vector), 1, []int32{int32(fd)}); err != nil {
		return d.errorf("setting %s vector %d: %w", d.irq.mode, vector, err)
	}
	return nil
}

// DisableIRQs has the kernel signal none any more, then closes the eventfds.
func (d *Device) DisableIRQs() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.disableIRQs()
}

func (d *Device) disableIRQs() error {
	err := d.maskIRQs()
	if err != nil {
		err = d.errorf("disabling interrupts: %w", err)
	}
	for _, q := range d.irq.irqs {
		err = errors.Join(err, q.Close())
	}
	d.irq = irqState{}
	return err
}

// maskIRQs has the kernel signal none any more. Their eventfds stay.
func (d *Device) maskIRQs() error {
	if !d.irq.on || d.fd < 0 {
		return nil
	}
	d.irq.on = false
	if d.irq.mode == bus.INTx {
		// The line may be others' too, and nobody serves this function any more.
		pci.SetCommand(d.cfg, pci.CmdINTxDisable, 0)
	}
	return d.k.setIRQs(d.fd, setNone|setTrigger, index(d.irq.mode), 0, 0, nil)
}
