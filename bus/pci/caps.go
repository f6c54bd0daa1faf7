package pci

import (
	"iter"

	"github.com/ring3dev/ring3/bus"
)

// Caps walks the capability list: the ID and the offset of each capability. A list
// that loops, leaves the space between 0x40 and 0xff, or reads all-ones ends there.
func Caps(c bus.Config) iter.Seq2[uint8, bus.Off] {
	return func(yield func(uint8, bus.Off) bool) {
		status := c.Read16(CfgStatus)
		if status == 0xffff || Status(status)&StatusCaps == 0 {
			return
		}
		var seen uint64 // a bit for each of the 64 dwords
		ptr := CfgCapPtr
		if c.Read8(CfgHeader)&^headerMulti == HeaderCardBus {
			ptr = 0x14 // PC Card Standard 8.0: CardBus bridges keep it there
		}
		for at := bus.Off(c.Read8(ptr) &^ 3); at >= 0x40; {
			if seen&(1<<(at/4)) != 0 {
				return
			}
			seen |= 1 << (at / 4)
			v := c.Read16(at)
			if v == 0xffff {
				return
			}
			if !yield(uint8(v), at) {
				return
			}
			at = bus.Off(v>>8) &^ 3
		}
	}
}

// ExtCaps walks the extended capabilities of a PCI Express function: the ID and the
// offset of each. It ends as Caps does.
func ExtCaps(c bus.Config) iter.Seq2[uint16, bus.Off] {
	return func(yield func(uint16, bus.Off) bool) {
		var seen [1024 / 64]uint64
		for at := bus.Off(0x100); at >= 0x100 && int(at)+4 <= min(c.Size(), 4096); {
			i := at / 4
			if seen[i/64]&(1<<(i%64)) != 0 {
				return
			}
			seen[i/64] |= 1 << (i % 64)
			v := c.Read32(at)
			if v == 0 || v == 0xffffffff {
				return
			}
			// ID 0 is a header without content, which only leads to the next one.
			if id := uint16(v); id != 0 && !yield(id, at) {
				return
			}
			at = bus.Off(v>>20) &^ 3
		}
	}
}

// FindCap finds the first capability of that ID.
func FindCap(c bus.Config, id uint8) (bus.Off, bool) {
	for i, at := range Caps(c) {
		if i == id {
			return at, true
		}
	}
	return 0, false
}

// FindExtCap finds the first extended capability of that ID.
func FindExtCap(c bus.Config, id uint16) (bus.Off, bool) {
	for i, at := range ExtCaps(c) {
		if i == id {
			return at, true
		}
	}
	return 0, false
}

// FindPowerControl finds a function's power management control and status register (PMCtl); not ok where there is none, or it does not fit.
func FindPowerControl(c bus.Config) (ctl bus.Off, ok bool) {
	at, ok := FindCap(c, CapPM)
	return at + PMCtl, ok && at+PMCtl+2 <= 0x100
}

// SetCommand sets and then clears bits of the Command register, leaving the others.
// Nothing is written where nothing would change. It returns the old value.
func SetCommand(c bus.Config, set, clear Command) Command {
	old := Command(c.Read16(CfgCommand))
	if v := old&^clear | set&^clear; v != old {
		c.Write16(CfgCommand, uint16(v))
	}
	return old
}

// EnableErrors lets a function, a bridge from below too, report errors to the root port, as firmware does for those that are there
// when the machine starts.
func EnableErrors(c bus.Config) {
	e, ok := FindExpress(c)
	if !ok {
		return
	}
	SetCommand(c, CmdSERR, 0)
	c.Write16(e.At+ExpDevCtl, c.Read16(e.At+ExpDevCtl)|DevCtlErrors)
	if c.Read8(CfgHeader)&^headerMulti == HeaderBridge {
		c.Write16(CfgBridgeCtl, c.Read16(CfgBridgeCtl)|BridgeSERR)
	}
}

// INTxPin is the interrupt pin that a function uses: 1 to 4 for INTA to INTD, 0 for
// none. Values that the specification reserves are none.
func INTxPin(c bus.Config) uint8 {
	if p := c.Read8(CfgIRQPin); p <= 4 {
		return p
	}
	return 0
}

// INTxPending says whether the function wants its INTx served now, whether or not
// CmdINTxDisable holds the line back. A dead link wants nothing.
func INTxPending(c bus.Config) bool {
	s := c.Read16(CfgStatus)
	return s != 0xffff && Status(s)&StatusINTx != 0
}
