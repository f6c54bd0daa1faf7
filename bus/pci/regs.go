package pci

import "github.com/ring3dev/ring3/bus"

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
