package pci

import (
	"github.com/ring3dev/ring3/bus"
)

// Offsets in the header of config space (PCI Local Bus 3.0, 6.1).
const (
	CfgVendor    bus.Off = 0x00 // Vendor ID, RO
	CfgDevice    bus.Off = 0x02 // Device ID, RO
	CfgCommand   bus.Off = 0x04 // Command, RW
	CfgStatus    bus.Off = 0x06 // Status, RO and W1C
	CfgRevision  bus.Off = 0x08 // Revision ID; class code above it, RO
	CfgHeader    bus.Off = 0x0e // Header Type, RO
	CfgBAR0      bus.Off = 0x10 // Base Address Register 0, RW
	CfgSubVendor bus.Off = 0x2c // Subsystem Vendor ID, RO (header type 0)
	CfgSubDevice bus.Off = 0x2e // Subsystem ID, RO (header type 0)
	CfgROM       bus.Off = 0x30 // Expansion ROM Base Address, RW (header type 0)
	CfgCapPtr    bus.Off = 0x34 // Capabilities Pointer, RO
	CfgIRQLine   bus.Off = 0x3c // Interrupt Line, RW
	CfgIRQPin    bus.Off = 0x3d // Interrupt Pin, RO
)

// Offsets in the header of a bridge, header type 1 (PCI-to-PCI Bridge 1.2, 3.2).
const (
	cfgPrimary     bus.Off = 0x18 // Primary Bus Number, RW
	cfgSecondary   bus.Off = 0x19 // Secondary Bus Number, RW
	cfgSubordinate bus.Off = 0x1a // Subordinate Bus Number, RW
	cfgIOBase      bus.Off = 0x1c // I/O Base and, one above, I/O Limit, RW
	cfgMemBase     bus.Off = 0x20 // Memory Base and, two above, Memory Limit, RW
	cfgPrefBase    bus.Off = 0x24 // Prefetchable Memory Base and Limit, RW
	cfgPrefBaseHi  bus.Off = 0x28 // Prefetchable Base, upper 32 bits, RW
	cfgPrefLimitHi bus.Off = 0x2c // Prefetchable Limit, upper 32 bits, RW
	cfgIOBaseHi    bus.Off = 0x30 // I/O Base and Limit, upper 16 bits each, RW
	cfgBridgeROM   bus.Off = 0x38 // Expansion ROM Base Address, RW
)

// Command is the value of the Command register (PCI Local Bus 3.0, 6.2.2).
type Command uint16

// Bits of Command.
const (
	CmdIO          Command = 1 << 0  // decode I/O space
	CmdMem         Command = 1 << 1  // decode memory space
	CmdMaster      Command = 1 << 2  // bus master: DMA and MSI
	CmdParity      Command = 1 << 6  // parity error response
	CmdSERR        Command = 1 << 8  // SERR# enable: report errors upstream
	CmdINTxDisable Command = 1 << 10 // the function must not assert INTx
)

func (v Command) String() string {
	return commandNames(uint64(v))
}

// Status is the value of the Status register (PCI Local Bus 3.0, 6.2.3).
type Status uint16

// Bits of Status.
const (
	StatusINTx Status = 1 << 3 // the function wants INTx, whether or not Command disables it
	StatusCaps Status = 1 << 4 // there is a capability list
)

func (v Status) String() string {
	return statusNames(uint64(v))
}

// Header types (the low 7 bits of CfgHeader).
const (
	HeaderDevice  = 0
	HeaderBridge  = 1
	HeaderCardBus = 2

	headerMulti = 1 << 7 // there are more functions
)

// IDs of capabilities (PCI Code and ID Assignment 1.11, 2).
const (
	CapPM     = 0x01 // Power Management
	CapMSI    = 0x05
	CapVendor = 0x09 // Vendor Specific
	CapSSVID  = 0x0d // Subsystem IDs of a bridge
	CapPCIe   = 0x10 // PCI Express
	CapMSIX   = 0x11
)

// IDs of extended capabilities (PCI Code and ID Assignment 1.11, 3).
const (
	ExtCapAER = 0x0001 // Advanced Error Reporting
	ExtCapVC  = 0x0002 // Virtual Channel
	ExtCapDSN = 0x0003 // Device Serial Number
	ExtCapEC  = 0x0007 // Root Complex Event Collector Endpoint Association
	ExtCapACS = 0x000d // Access Control Services
	ExtCapARI = 0x000e // Alternative Routing ID
	ExtCapDPC = 0x001d // Downstream Port Containment
)

// Bits of a BAR (PCI Local Bus 3.0, 6.2.5.1).
const (
	barIO       = 1 << 0    // I/O space
	barType     = 0b11 << 1 // memory: where it may be
	bar32       = 0b00 << 1
	bar64       = 0b10 << 1
	barPrefetch = 1 << 3
	barIOMask   = ^uint32(0b11)
	barMemMask  = ^uint32(0b1111)
	romEnable   = 1 << 0
	romMask     = ^uint32(0x7ff)
)

// The names of bits, for String methods.
var (
	commandNames = bus.BitNames(bus.Bit{Mask: 1 << 0, Name: "IO"}, bus.Bit{Mask: 1 << 1, Name: "Mem"}, bus.Bit{Mask: 1 << 2, Name: "Master"},
		bus.Bit{Mask: 1 << 6, Name: "Parity"}, bus.Bit{Mask: 1 << 8, Name: "SERR"}, bus.Bit{Mask: 1 << 10, Name: "INTxDisable"})
	statusNames = bus.BitNames(bus.Bit{Mask: 1 << 3, Name: "INTx"}, bus.Bit{Mask: 1 << 4, Name: "Caps"})
)
