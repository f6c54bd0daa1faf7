package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/internal/ioctl"
)

// Monitor is what a machine may ask of its QEMU's owner. A [Process] is one; in another process it is a conversation with one.
type Monitor interface {
	// Execute does one of what [Process.Execute] does.
	Execute(cmd string, args json.RawMessage) (json.RawMessage, error)
	// Watch has f told of events, in order. f must not wait.
	Watch(f func(Event)) (stop func())
	// Done is closed when QEMU ended; Err then says how, and wraps bus.ErrGone.
	Done() <-chan struct{}
	Err() error
}

// Attach makes a machine of a QEMU that runs already, and enumerates its bus. It takes the files of parts over, whether or not it succeeds; mon stays
// the caller's. Devices of c must be in the machine, but for those that stood in a slot: they may have
// left it meanwhile, which Config.Ejected is told. Others that it has are known too. Of c, Binary, Wires, Started, and of a device what is
// for its start, say nothing here. Closing the machine lets QEMU run: whoever started it quiesces it.
func Attach(ctx context.Context, c Config, parts *Parts, mon Monitor) (*Machine, error) {
	defer parts.Close()
	c.fill()
	var have meta
	if err := json.Unmarshal(parts.Meta, &have); err != nil {
		return nil, fmt.Errorf("qemu: attaching: what is known of the machine: %w (%w)", err, bus.ErrProtocol)
	}
	m := newMachine(&c, mon, have)
	if err := m.take(parts); err != nil {
		m.unwatch()
		return nil, err
	}
	if err := m.place(&c, have); err != nil {
		m.Close()
		return nil, err
	}
	m.follow()
	if err := m.bringUp(ctx, &c); err != nil {
		err = errors.Join(err, m.Close())
		if ctx.Err() != nil {
			err = fmt.Errorf("qemu: attaching: %w", context.Cause(ctx))
		}
		return nil, err
	}
	return m, nil
}

// take takes the descriptors.
func (m *Machine) take(parts *Parts) error {
	if len(parts.Files) < 3 || len(parts.Files) > 2+maxVectors {
		return fmt.Errorf("qemu: attaching: %d descriptors, want RAM, a socket and 1 to %d eventfds: %w", len(parts.Files), maxVectors, bus.ErrProtocol)
	}
	var fds []int
	for _, f := range parts.Files {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			for _, fd := range fds {
				unix.Close(fd)
			}
			return fmt.Errorf("qemu: attaching: duplicating a descriptor: %w", err)
		}
		fds = append(fds, fd)
	}
	defer unix.Close(fds[0])
	m.bell = &doorbell{fds: fds[2:], used: make([]bool, len(fds)-2)}
	m.qt = newQtest(fds[1], m.lineChanged, m.fail)
	m.qt.keep = m.own == nil
	m.bell.clear()
	// Passing a file on may have changed it, and that is of the file, not of the descriptor.
	if err := unix.SetNonblock(fds[1], false); err != nil {
		m.giveBack()
		return fmt.Errorf("qemu: attaching: the qtest socket: %w", err)
	}
	var err error
	if m.ram, err = newRAM(fds[0], ramSize); err != nil {
		m.giveBack()
	}
	return err
}

// giveBack closes the descriptors.
func (m *Machine) giveBack() {
	m.qt.close()
	m.bell.close()
}

// clear makes all eventfds quiet. That they do not block is of the file, and QEMU or who passes them on may just have changed it.
func (d *doorbell) clear() {
	var b [8]byte
	for _, fd := range d.fds {
		_, _ = ioctl.ReadNow(fd, b[:])
	}
}

// place makes the units that QEMU has, and checks that those of c are among them.
func (m *Machine) place(c *Config, have meta) error {
	if len(have.Devices) > maxDevices {
		return fmt.Errorf("qemu: attaching: a machine of %d devices: %w", len(have.Devices), bus.ErrProtocol)
	}
	for _, x := range have.Devices {
		u := &unit{seat: seat{spec: DeviceSpec{Name: x.Name, Model: x.Model, Bus: x.Bus, Props: x.Props, IOMMU: x.IOMMU}, serial: x.Serial, key: x.Key, slot: x.Slot, ready: true}}
		if IsTPM(x.Model) {
			u.spec.TPM = &TPM{HardwareID: x.HID, Number: x.Number}
		}
		if x.Bus != "" {
			if u.under = m.unit(x.Bus); u.under == nil {
				return fmt.Errorf("qemu: attaching: %s stands under %s, which there is not: %w", x.Name, x.Bus, bus.ErrProtocol)
			}
		}
		m.units = append(m.units, u)
	}
	for _, d := range c.Devices {
		switch u := m.unit(d.Name); {
		case u == nil && d.Bus != "":
			m.missing = append(m.missing, d.Name) // it was let go when nobody listened
		case u == nil:
			return fmt.Errorf("qemu: attaching: the machine has no device %s: %w", d.Name, unix.ENODEV)
		case u.spec.Model != d.Model || u.spec.Bus != d.Bus || u.spec.IOMMU != d.IOMMU:
			return fmt.Errorf("qemu: attaching: %s is %s under %q, iommu %v; want %s under %q, %v: %w", d.Name, u.spec.Model, u.spec.Bus, u.spec.IOMMU, d.Model, d.Bus, d.IOMMU, bus.ErrProtocol)
		}
	}
	return nil
}
