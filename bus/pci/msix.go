package pci

import (
	"fmt"

	"github.com/ring3dev/ring3/bus"
)

// Registers of the MSI-X capability and its table (PCI Local Bus 3.0, 6.8.2).
const (
	msixControl bus.Off = 0x02 // Message Control, RW
	msixTable   bus.Off = 0x04 // Table Offset and BIR, RO
	msixPBA     bus.Off = 0x08 // PBA Offset and BIR, RO

	msixSize   = 1<<11 - 1 // table size less one
	msixMask   = 1 << 14   // function mask
	msixEnable = 1 << 15
	msixBIR    = 0b111 // number of the BAR

	entryAddr   bus.Off = 0x0 // Message Address, RW
	entryAddrHi bus.Off = 0x4 // Message Upper Address, RW
	entryData   bus.Off = 0x8 // Message Data, RW
	entryCtrl   bus.Off = 0xc // Vector Control, RW
	entrySize   bus.Off = 16

	entryMasked = 1 << 0
)

// MSIX is the MSI-X capability of a function. Not safe for concurrent use.
type MSIX struct {
	c       bus.Config
	at      bus.Off
	table   bus.Region
	off     bus.Off // of the table in its region
	pba     bus.Region
	pbaOff  bus.Off
	vectors int
}

// OpenMSIX finds the capability, and its table in the region that it names. It fails
// with ErrNotSupported where there is no such capability, and with ErrProtocol where the
// table or the pending bits do not lie inside a memory region of the function. Nothing
// is changed.
func OpenMSIX(c bus.Config, region func(i int) (bus.Region, error)) (*MSIX, error) {
	at, ok := FindCap(c, CapMSIX)
	if !ok {
		return nil, fmt.Errorf("opening MSI-X: no such capability: %w", bus.ErrNotSupported)
	}
	if at+12 > 0x100 {
		return nil, fmt.Errorf("opening MSI-X: capability at %#x: %w", at, bus.ErrProtocol)
	}
	m := &MSIX{c: c, at: at, vectors: int(c.Read16(at+msixControl)&msixSize) + 1}
	var err error
	if m.table, m.off, err = m.locate("table", msixTable, uint64(m.vectors)*uint64(entrySize), region); err != nil {
		return nil, err
	}
	if m.pba, m.pbaOff, err = m.locate("pending bits", msixPBA, uint64(m.vectors+63)/64*8, region); err != nil {
		return nil, err
	}
	return m, nil
}

// locate reads one of the two places, checking it against its region.
func (m *MSIX) locate(what string, reg bus.Off, size uint64, region func(int) (bus.Region, error)) (bus.Region, bus.Off, error) {
	v := m.c.Read32(m.at + reg)
	bir, off := int(v&msixBIR), uint64(v&^msixBIR)
	if bir > 5 {
		return nil, 0, fmt.Errorf("opening MSI-X: %s in BAR %d: %w", what, bir, bus.ErrProtocol)
	}
	r, err := region(bir)
	if err != nil {
		return nil, 0, fmt.Errorf("opening MSI-X: %s in BAR %d: %w", what, bir, err)
	}
	info := r.Info()
	if info.Kind != bus.RegionMem || off+size > info.Size {
		return nil, 0, fmt.Errorf("opening MSI-X: %s of %d vectors at %#x of BAR %d (%s, %#x bytes): %w",
			what, m.vectors, off, bir, info.Kind, info.Size, bus.ErrProtocol)
	}
	return r, bus.Off(off), nil
}

// Vectors is how many entries the table has, 1 to 2048.
func (m *MSIX) Vectors() int { return m.vectors }

// Table is where the table lies: the region's index, and the bytes it takes there.
func (m *MSIX) Table() (region int, off bus.Off, size uint64) {
	return m.table.Info().Index, m.off, uint64(m.vectors) * uint64(entrySize)
}

func (m *MSIX) entry(i int, step string) (bus.Off, error) {
	if i < 0 || i >= m.vectors {
		return 0, fmt.Errorf("%s MSI-X vector %d of %d: %w", step, i, m.vectors, bus.ErrNotSupported)
	}
	return m.off + bus.Off(i)*entrySize, nil
}

// Set makes vector i write data to addr. Mask it before, so that no half message is
// sent; all vectors are masked after a reset.
func (m *MSIX) Set(i int, addr uint64, data uint32) error {
	e, err := m.entry(i, "setting")
	if err != nil {
		return err
	}
	if addr&3 != 0 {
		return fmt.Errorf("setting MSI-X vector %d: address %#x is not a multiple of 4: %w", i, addr, bus.ErrNotSupported)
	}
	m.table.Write32(e+entryAddr, uint32(addr))
	m.table.Write32(e+entryAddrHi, uint32(addr>>32))
	m.table.Write32(e+entryData, data)
	return nil
}

// Mask holds vector i back. When it returns, the function has seen it.
func (m *MSIX) Mask(i int) error {
	e, err := m.entry(i, "masking")
	if err != nil {
		return err
	}
	m.table.Write32(e+entryCtrl, m.table.Read32(e+entryCtrl)|entryMasked)
	m.table.Read32(e + entryCtrl) // flushes the posted write
	return nil
}

// Unmask lets vector i fire; what it wanted to send while masked is sent now.
func (m *MSIX) Unmask(i int) error {
	e, err := m.entry(i, "unmasking")
	if err != nil {
		return err
	}
	m.table.Write32(e+entryCtrl, m.table.Read32(e+entryCtrl)&^entryMasked)
	return nil
}

// Pending says whether vector i fired while it was masked.
func (m *MSIX) Pending(i int) bool {
	if i < 0 || i >= m.vectors {
		return false
	}
	return m.pba.Read32(m.pbaOff+bus.Off(i/32*4))>>(i%32)&1 != 0
}

// Enable lets the function send on all vectors that are not masked. The caller has set
// CmdMaster.
func (m *MSIX) Enable() { m.control(msixEnable, msixMask) }

// Disable stops it; the table keeps its content.
func (m *MSIX) Disable() { m.control(0, msixEnable|msixMask) }

func (m *MSIX) control(set, clear uint16) {
	m.c.Write16(m.at+msixControl, m.c.Read16(m.at+msixControl)&^clear|set)
}

// Restore says whether the first n vectors do not write their datum to addr any more, and no other message, as Set, Unmask and Enable had them, and with write has them
// do so. It fails with ErrProtocol where the function does not take it.
func (m *MSIX) Restore(n int, addr uint64, data func(i int) uint32, write bool) (lost bool, err error) {
	for try := range 2 {
		right := m.c.Read16(m.at+msixControl)&(msixEnable|msixMask) == msixEnable
		for i := range n {
			e, err := m.entry(i, "restoring")
			if err != nil {
				return lost, err
			}
			if m.table.Read32(e+entryAddr) == uint32(addr) && m.table.Read32(e+entryAddrHi) == uint32(addr>>32) && m.table.Read32(e+entryData) == data(i) &&
				m.table.Read32(e+entryCtrl)&entryMasked == 0 {
				continue
			}
			if right = false; try > 0 || !write {
				break
			}
			if err := m.Mask(i); err != nil {
				return true, err
			}
			if err := m.Set(i, addr, data(i)); err != nil {
				return true, err
			}
			if err := m.Unmask(i); err != nil {
				return true, err
			}
		}
		if right {
			return lost, nil
		}
		if lost = true; !write {
			return true, nil
		}
		if try == 0 {
			m.Enable()
		}
	}
	return true, fmt.Errorf("restoring %d MSI-X vectors: they are not as they were written: %w", n, bus.ErrProtocol)
}
