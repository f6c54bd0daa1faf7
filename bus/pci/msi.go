package pci

import (
	"fmt"

	"github.com/ring3dev/ring3/bus"
)

// Registers of the MSI capability (PCI Local Bus 3.0, 6.8.1).
const (
	msiControl bus.Off = 0x02 // Message Control, RW
	msiAddr    bus.Off = 0x04 // Message Address, RW
	msiAddrHi  bus.Off = 0x08 // Message Upper Address, RW, where 64-bit

	msiEnable = 1 << 0
	msiMMC    = 0b111 << 1 // multiple message capable, log2
	msiMME    = 0b111 << 4 // multiple message enable, log2
	msi64     = 1 << 7     // 64-bit address capable
	msiMask   = 1 << 8     // per-vector masking capable
)

// MSI is the MSI capability of a function. Not safe for concurrent use.
type MSI struct {
	c    bus.Config
	at   bus.Off
	ctrl uint16
}

// OpenMSI finds the capability. It fails with ErrNotSupported where there is none, and
// ErrProtocol where it does not fit into config space. Nothing is changed.
func OpenMSI(c bus.Config) (*MSI, error) {
	at, ok := FindCap(c, CapMSI)
	if !ok {
		return nil, fmt.Errorf("opening MSI: no such capability: %w", bus.ErrNotSupported)
	}
	m := &MSI{c: c, at: at, ctrl: c.Read16(at + msiControl)}
	end := m.dataAt() + 2
	if m.CanMask() {
		end = m.pendingAt() + 4
	}
	if end > 0x100 || m.ctrl&msiMMC>>1 > 5 {
		return nil, fmt.Errorf("opening MSI: capability at %#x with control %#04x: %w", at, m.ctrl, bus.ErrProtocol)
	}
	return m, nil
}

func (m *MSI) dataAt() bus.Off {
	if m.ctrl&msi64 != 0 {
		return m.at + 0x0c
	}
	return m.at + 0x08
}

func (m *MSI) maskAt() bus.Off    { return m.dataAt() + 4 }
func (m *MSI) pendingAt() bus.Off { return m.dataAt() + 8 }

// Vectors is how many vectors the function can use: 1, 2, 4, 8, 16 or 32.
func (m *MSI) Vectors() int { return 1 << (m.ctrl & msiMMC >> 1) }

// Is64 says whether the message address may lie above 4 GiB.
func (m *MSI) Is64() bool { return m.ctrl&msi64 != 0 }

// CanMask says whether single vectors can be masked.
func (m *MSI) CanMask() bool { return m.ctrl&msiMask != 0 }

// Set gives the function 1<<nLog2 vectors: vector i writes data+i to addr. The low nLog2
// bits of data must be 0. It fails with ErrNotSupported where the function offers fewer
// vectors or cannot reach the address, and leaves everything as it was.
func (m *MSI) Set(addr uint64, data uint16, nLog2 int) error {
	switch {
	case nLog2 < 0 || nLog2 > int(m.ctrl&msiMMC>>1):
		return fmt.Errorf("setting MSI: %d vectors wanted, the function has %d: %w", 1<<max(nLog2, 0), m.Vectors(), bus.ErrNotSupported)
	case data&(1<<nLog2-1) != 0:
		return fmt.Errorf("setting MSI: data %#04x must have its low %d bits clear: %w", data, nLog2, bus.ErrNotSupported)
	case addr&3 != 0 || addr>>32 != 0 && !m.Is64():
		return fmt.Errorf("setting MSI: address %#x out of reach: %w", addr, bus.ErrNotSupported)
	}
	m.c.Write32(m.at+msiAddr, uint32(addr))
	if m.Is64() {
		m.c.Write32(m.at+msiAddrHi, uint32(addr>>32))
	}
	m.c.Write16(m.dataAt(), data)
	v := m.c.Read16(m.at + msiControl)
	m.c.Write16(m.at+msiControl, v&^msiMME|uint16(nLog2)<<4)
	return nil
}

// Enable lets the function send. The caller has set CmdMaster.
func (m *MSI) Enable() { m.control(msiEnable, 0) }

// Disable stops it.
func (m *MSI) Disable() { m.control(0, msiEnable) }

func (m *MSI) control(set, clear uint16) {
	m.c.Write16(m.at+msiControl, m.c.Read16(m.at+msiControl)&^clear|set)
}

// Mask holds vector i back: ErrNotSupported where there is no such vector or no mask.
func (m *MSI) Mask(i int) error { return m.mask(i, true) }

// Unmask lets vector i fire; what it wanted to send while masked is sent now.
func (m *MSI) Unmask(i int) error { return m.mask(i, false) }

func (m *MSI) mask(i int, on bool) error {
	if !m.CanMask() || i < 0 || i >= m.Vectors() {
		return fmt.Errorf("masking MSI vector %d of %d: %w", i, m.Vectors(), bus.ErrNotSupported)
	}
	v := m.c.Read32(m.maskAt()) &^ (1 << i)
	if on {
		v |= 1 << i
	}
	m.c.Write32(m.maskAt(), v)
	return nil
}

// Restore says whether what Set and Enable set is not so any more, and with write does both where that is so. It fails with ErrProtocol where the function does not take it.
func (m *MSI) Restore(addr uint64, data uint16, nLog2 int, write bool) (lost bool, err error) {
	for range 2 {
		ctl := m.c.Read16(m.at + msiControl)
		if ctl&msiEnable != 0 && int(ctl&msiMME>>4) == nLog2 && m.c.Read32(m.at+msiAddr) == uint32(addr) && m.c.Read16(m.dataAt()) == data &&
			(!m.Is64() || m.c.Read32(m.at+msiAddrHi) == uint32(addr>>32)) {
			return lost, nil
		}
		if lost = true; !write {
			return true, nil
		}
		if err := m.Set(addr, data, nLog2); err != nil {
			return lost, err
		}
		m.Enable()
	}
	return true, fmt.Errorf("restoring MSI: it is not as it was written: %w", bus.ErrProtocol)
}
