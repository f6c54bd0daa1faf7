package qemu

import (
	"fmt"
	"math/bits"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// portModels are the ports whose errors QEMU routes.
var portModels = []string{"pcie-root-port", "ioh3420", "x3130-upstream", "xio3130-downstream"}

// uncorrectable are the errors that QEMU knows: bits 4, 5 and 12 to 25 of Uncorrectable Error Status (docs/pcie.txt;
// PCI Express Base 5.0, 7.8.4.2).
const uncorrectable uint32 = 1<<4 | 1<<5 | 0x3fff<<12

// InjectError makes a device report an error, as if it had happened: status and header log are set, and a message goes to the
// root port where the device and the ports above it are told to send and forward such (Device Control, SERR# in Command and in
// Bridge Control). QEMU does so for one uncorrectable bit at a time, of a port or of a virtio device with aer=on. All else fails with
// bus.ErrNotSupported before anything was changed.
func (m *Machine) InjectError(name string, e pci.AERError) error {
	fail := func(format string, args ...any) error {
		return fmt.Errorf("qemu: injecting an error into %s: %w", name, fmt.Errorf(format, args...))
	}
	m.mu.Lock()
	u, err := m.known(name, true)
	var fn *pci.Function
	if err == nil {
		fn = u.fn
	}
	m.mu.Unlock()
	switch {
	case err != nil:
		return err
	case e.Uncorrectable == 0 && e.Correctable == 0:
		return fail("no error bit is set: %w", bus.ErrNotSupported)
	case e.Correctable != 0:
		return fail("QEMU does not route correctable errors: %w", bus.ErrNotSupported)
	case bits.OnesCount32(e.Uncorrectable) > 1:
		return fail("QEMU takes one error at a time, and these are %d (%#08x): %w", bits.OnesCount32(e.Uncorrectable), e.Uncorrectable, bus.ErrNotSupported)
	case e.Uncorrectable&uncorrectable == 0:
		return fail("QEMU does not know uncorrectable error %#08x: %w", e.Uncorrectable, bus.ErrNotSupported)
	case fn == nil || fn.AER == nil:
		return fail("model %s has no Advanced Error Reporting: %w", u.spec.Model, bus.ErrNotSupported)
	case !slices.Contains(portModels, u.spec.Model) && !strings.HasPrefix(u.spec.Model, "virtio-"):
		return fail("QEMU does not route errors of model %s: %w", u.spec.Model, bus.ErrNotSupported)
	}
	a := injectArgs{Name: name, Error: e.Uncorrectable, Header: e.Header}
	if own := m.monitor(); own != nil {
		err = own.inject(a)
	} else {
		_, err = m.ask("inject", a)
	}
	if err != nil {
		return fail("%w", err)
	}
	return nil
}

// inject has QEMU's monitor do it.
func (p *Process) inject(a injectArgs) error {
	s := p.named(a.Name)
	if s == nil {
		return fmt.Errorf("no device is named %s: %w", a.Name, unix.ENODEV)
	}
	line := fmt.Sprintf("pcie_aer_inject_error %s %#x", s.id(), a.Error)
	if a.Header != [4]uint32{} {
		for _, w := range a.Header {
			// QEMU keeps the header as it is on the wire, the first byte first.
			line += fmt.Sprintf(" %#x", bits.ReverseBytes32(w))
		}
	}
	said, err := p.qmp.monitor(line)
	if err != nil {
		return err
	}
	if !strings.HasPrefix(said, "OK ") {
		return fmt.Errorf("QEMU says %q, want OK: %w", said, bus.ErrNotSupported)
	}
	return nil
}
