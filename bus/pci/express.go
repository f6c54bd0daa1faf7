package pci

import (
	"github.com/ring3dev/ring3/bus"
)

// Registers of the PCI Express capability, from its beginning (PCI Express Base 5.0, 7.5.3). Caps registers are RO,
// Status registers are RO and W1C.
const (
	ExpFlags   bus.Off = 0x02 // PCI Express Capabilities, 16 bits
	ExpDevCap  bus.Off = 0x04 // Device Capabilities, 32 bits
	ExpDevCtl  bus.Off = 0x08 // Device Control, RW, 16 bits
	ExpDevSta  bus.Off = 0x0a // Device Status, 16 bits
	ExpLnkCap  bus.Off = 0x0c // Link Capabilities, 32 bits
	ExpLnkCtl  bus.Off = 0x10 // Link Control, RW, 16 bits
	ExpLnkSta  bus.Off = 0x12 // Link Status, 16 bits
	ExpSltCap  bus.Off = 0x14 // Slot Capabilities, 32 bits
	ExpSltCtl  bus.Off = 0x18 // Slot Control, RW, 16 bits
	ExpSltSta  bus.Off = 0x1a // Slot Status, 16 bits
	ExpRtCtl   bus.Off = 0x1c // Root Control, RW, 16 bits
	ExpRtCap   bus.Off = 0x1e // Root Capabilities, 16 bits
	ExpRtSta   bus.Off = 0x20 // Root Status, 32 bits
	ExpDevCap2 bus.Off = 0x24 // Device Capabilities 2, 32 bits
	ExpDevCtl2 bus.Off = 0x28 // Device Control 2, RW, 16 bits
	ExpLnkCap2 bus.Off = 0x2c // Link Capabilities 2, 32 bits
	ExpLnkCtl2 bus.Off = 0x30 // Link Control 2, RW, 16 bits
	ExpLnkSta2 bus.Off = 0x32 // Link Status 2, 16 bits
	ExpSltCap2 bus.Off = 0x34 // Slot Capabilities 2, 32 bits
	ExpSize            = 0x3c // bytes of version 2
)

// ExpType is the kind of a function in PCI Express Capabilities, bits 7:4.
type ExpType uint8

// Kinds of functions (7.5.3.2).
const (
	ExpEndpoint     ExpType = 0x0
	ExpLegacy       ExpType = 0x1 // legacy endpoint
	ExpRootPort     ExpType = 0x4
	ExpUpstream     ExpType = 0x5 // upstream port of a switch
	ExpDownstream   ExpType = 0x6 // downstream port of a switch
	ExpToPCI        ExpType = 0x7 // PCI Express to PCI bridge
	ExpFromPCI      ExpType = 0x8
	ExpRootEndpoint ExpType = 0x9 // root complex integrated endpoint
	ExpCollector    ExpType = 0xa // root complex event collector
)

func (t ExpType) String() string {
	switch t {
	case ExpEndpoint:
		return "endpoint"
	case ExpLegacy:
		return "legacy endpoint"
	case ExpRootPort:
		return "root port"
	case ExpUpstream:
		return "upstream port"
	case ExpDownstream:
		return "downstream port"
	case ExpToPCI:
		return "bridge to PCI"
	case ExpFromPCI:
		return "bridge from PCI"
	case ExpRootEndpoint:
		return "root complex integrated endpoint"
	case ExpCollector:
		return "root complex event collector"
	}
	return "reserved"
}

// Fields of PCI Express Capabilities.
const (
	FlagVersion uint16 = 0xf
	FlagType    uint16 = 0xf << 4
	FlagSlot    uint16 = 1 << 8    // slot implemented
	FlagMessage uint16 = 0x1f << 9 // Interrupt Message Number
	flagMsgAt          = 9
)

// Bits of Device Control: what errors are reported.
const (
	DevCtlCor      uint16 = 1 << 0
	DevCtlNonFatal uint16 = 1 << 1
	DevCtlFatal    uint16 = 1 << 2
	DevCtlUnsup    uint16 = 1 << 3 // unsupported requests
	DevCtlErrors          = DevCtlCor | DevCtlNonFatal | DevCtlFatal | DevCtlUnsup
	DevCtlFLR      uint16 = 1 << 15
)

// Bits of Device Status, W1C.
const (
	DevStaCor      uint16 = 1 << 0
	DevStaNonFatal uint16 = 1 << 1
	DevStaFatal    uint16 = 1 << 2
	DevStaUnsup    uint16 = 1 << 3
	DevStaErrors          = DevStaCor | DevStaNonFatal | DevStaFatal | DevStaUnsup
)

// Bits of Link Capabilities, Control and Status.
const (
	LnkCapActive uint32 = 1 << 20 // Data Link Layer Link Active is reported
	LnkCapNotify uint32 = 1 << 21 // link bandwidth notification

	LnkCtlDisable uint16 = 1 << 4
	LnkCtlRetrain uint16 = 1 << 5
	LnkCtlLBMIE   uint16 = 1 << 10 // bandwidth management interrupt
	LnkCtlLABIE   uint16 = 1 << 11 // autonomous bandwidth interrupt

	LnkStaSpeed  uint16 = 0xf
	LnkStaWidth  uint16 = 0x3f << 4
	LnkStaTrain  uint16 = 1 << 11 // training
	LnkStaActive uint16 = 1 << 13 // data link layer is up
	LnkStaLBMS   uint16 = 1 << 14 // bandwidth management status, W1C
	LnkStaLABS   uint16 = 1 << 15 // autonomous bandwidth status, W1C
)

// Bits of Slot Capabilities.
const (
	SltCapButton   uint32 = 1 << 0 // attention button
	SltCapPower    uint32 = 1 << 1 // power controller
	SltCapMRL      uint32 = 1 << 2 // manually-operated retention latch sensor
	SltCapAttnLED  uint32 = 1 << 3
	SltCapPowerLED uint32 = 1 << 4
	SltCapSurprise uint32 = 1 << 5
	SltCapHotPlug  uint32 = 1 << 6
	SltCapLock     uint32 = 1 << 17 // electromechanical interlock
	SltCapNoCmd    uint32 = 1 << 18 // no command completed
	SltCapSlot     uint32 = 0x1fff << 19
	SltCapSlotAt          = 19
	SltCap2InBand  uint32 = 1 << 0 // in-band presence detect can be disabled (Slot Capabilities 2)
)

// Bits of Slot Control.
const (
	SltCtlButton   uint16 = 1 << 0 // enables: attention button pressed
	SltCtlFault    uint16 = 1 << 1 // power fault detected
	SltCtlMRL      uint16 = 1 << 2 // latch changed
	SltCtlPresence uint16 = 1 << 3 // presence changed
	SltCtlCmd      uint16 = 1 << 4 // command completed
	SltCtlHP       uint16 = 1 << 5 // hot-plug interrupt
	SltCtlAttnLED  uint16 = 0b11 << 6
	SltCtlPowerLED uint16 = 0b11 << 8
	SltCtlPowerOff uint16 = 1 << 10 // power controller: 1 is off
	SltCtlLock     uint16 = 1 << 11
	SltCtlLink     uint16 = 1 << 12 // data link layer state changed
	SltCtlInBand   uint16 = 1 << 13 // in-band presence detect disable

	LEDOn    = 1 // values of the indicators
	LEDBlink = 2
	LEDOff   = 3
)

// Bits of Slot Status; those of events are W1C.
const (
	SltStaButton   uint16 = 1 << 0
	SltStaFault    uint16 = 1 << 1
	SltStaMRL      uint16 = 1 << 2
	SltStaPresence uint16 = 1 << 3
	SltStaCmd      uint16 = 1 << 4
	SltStaOpen     uint16 = 1 << 5 // latch is open
	SltStaPresent  uint16 = 1 << 6 // a card is present
	SltStaLocked   uint16 = 1 << 7
	SltStaLink     uint16 = 1 << 8 // data link layer state changed
	SltStaEvents          = SltStaButton | SltStaFault | SltStaMRL | SltStaPresence | SltStaCmd | SltStaLink
)

// Bits of Root Control and Root Status.
const (
	RtCtlSysErr uint16 = 0b111   // system error on correctable, non-fatal, fatal
	RtCtlPME    uint16 = 1 << 3  // PME interrupt
	RtStaFrom   uint32 = 0xffff  // requester of the PME
	RtStaPME    uint32 = 1 << 16 // W1C
	RtStaMore   uint32 = 1 << 17 // another PME is pending
)

// Registers of the Advanced Error Reporting capability (7.8.4), 32 bits each.
const (
	AERUncSta  bus.Off = 0x04 // Uncorrectable Error Status, W1C
	AERUncMask bus.Off = 0x08 // RW
	AERUncSev  bus.Off = 0x0c // Uncorrectable Error Severity, RW: 1 is fatal
	AERCorSta  bus.Off = 0x10 // Correctable Error Status, W1C
	AERCorMask bus.Off = 0x14 // RW
	AERCap     bus.Off = 0x18 // Advanced Error Capabilities and Control
	AERHeader  bus.Off = 0x1c // Header Log, RO, 4 words
	AERRootCmd bus.Off = 0x2c // Root Error Command, RW
	AERRootSta bus.Off = 0x30 // Root Error Status, W1C
	AERErrSrc  bus.Off = 0x34 // Error Source: correctable, above it uncorrectable, RO

	AERFirst uint32 = 0x1f // of AERCap: First Error Pointer

	RootCmdAll uint32 = 0b111 // interrupts on correctable, non-fatal, fatal

	RootStaCor      uint32 = 1 << 0
	RootStaMultiCor uint32 = 1 << 1
	RootStaUnc      uint32 = 1 << 2
	RootStaMultiUnc uint32 = 1 << 3
	RootStaFirstFat uint32 = 1 << 4 // the first uncorrectable one was fatal
	RootStaNonFatal uint32 = 1 << 5
	RootStaFatal    uint32 = 1 << 6
	RootStaMessage  uint32 = 0x1f << 27 // Advanced Error Interrupt Message Number
	RootStaMsgAt           = 27
)

// Registers of Downstream Port Containment (7.9.15), 16 bits but for the RP PIO ones.
const (
	DPCCap       bus.Off = 0x04 // Capability, RO
	DPCCtl       bus.Off = 0x06 // Control, RW
	DPCSta       bus.Off = 0x08 // Status
	DPCSource    bus.Off = 0x0a // Error Source ID, RO
	DPCPIOSta    bus.Off = 0x0c // RP PIO Status, W1C, 32 bits
	DPCPIOMask   bus.Off = 0x10 // RP PIO Mask, RW
	DPCPIOSev    bus.Off = 0x14 // RP PIO Severity, RW
	DPCPIOSysErr bus.Off = 0x18 // RP PIO SysError, RW
	DPCPIOExc    bus.Off = 0x1c // RP PIO Exception, RW
	DPCPIOHeader bus.Off = 0x20 // RP PIO Header Log, RO, 4 words
	DPCPIOImp    bus.Off = 0x30 // RP PIO ImpSpec Log, RO
	DPCPIOPrefix bus.Off = 0x34 // RP PIO TLP Prefix Log, RO, up to 4 words

	DPCCapMessage  uint16 = 0x1f   // Interrupt Message Number
	DPCCapRP       uint16 = 1 << 5 // RP extensions
	DPCCapPoisoned uint16 = 1 << 6 // poisoned TLP egress blocking
	DPCCapTrigger  uint16 = 1 << 7 // software triggering
	DPCCapLogSize  uint16 = 0xf << 8
	DPCCapActive   uint16 = 1 << 12 // DL_Active error reporting

	DPCCtlFatal    uint16 = 1 << 0 // trigger on ERR_FATAL
	DPCCtlNonFatal uint16 = 1 << 1 // on ERR_NONFATAL too (the field is 1 or 2)
	DPCCtlIRQ      uint16 = 1 << 3
	DPCCtlTrigger  uint16 = 1 << 6 // software trigger

	DPCStaTriggered uint16 = 1 << 0    // W1C: releases
	DPCStaReason    uint16 = 0b11 << 1 // 0 unmasked uncorrectable, 1 ERR_NONFATAL, 2 ERR_FATAL, 3 see DPCStaMore
	DPCStaIRQ       uint16 = 1 << 3    // W1C
	DPCStaBusy      uint16 = 1 << 4    // RP busy
	DPCStaMore      uint16 = 0b11 << 5 // 0 RP PIO, 1 software
	DPCStaPIOFirst  uint16 = 0x1f << 8
)

// Registers of the Virtual Channel capability (7.9.1). Those of resource n stand VCStride further each.
const (
	VCCap1   bus.Off = 0x04 // Port VC Capability 1, 32 bits: extended VC count 2:0, low priority count 6:4
	VCCap2   bus.Off = 0x08 // Port VC Capability 2, 32 bits: arbitrations 7:0, table offset 31:24 (16 bytes)
	VCCtl    bus.Off = 0x0c // Port VC Control, RW, 16 bits: load table 0, arbitration select 3:1
	VCSta    bus.Off = 0x0e // Port VC Status, 16 bits: table loading 0
	VCResCap bus.Off = 0x10 // VC Resource Capability, 32 bits: arbitrations 7:0, time slots 22:16, table offset 31:24
	VCResCtl bus.Off = 0x14 // VC Resource Control, RW, 32 bits: TC map 7:0, load table 16, select 19:17, VC ID 26:24, enable 31
	VCResSta bus.Off = 0x1a // VC Resource Status, 16 bits: table loading 0, negotiation pending 1
	VCStride bus.Off = 0x0c

	VCCap1Count uint32 = 0b111       // VCs beside VC 0
	VCCap1Low   uint32 = 0b111 << 4  // of them in the low-priority group
	VCCap1Entry uint32 = 0b11 << 10  // bits of an entry of a port arbitration table, as a power of two
	VCCapArb    uint32 = 0xff        // of VCCap2 and VCResCap: arbitrations
	VCCapTable  uint32 = 0xff << 24  // of both: where the table is, in 16 bytes; 0: there is none
	VCResSlots  uint32 = 0x7f << 16  // of VCResCap: Maximum Time Slots, less one
	VCCtlLoad   uint16 = 1 << 0      // reads 0
	VCCtlSelect uint16 = 0b111 << 1  // arbitration
	VCStaLoad   uint16 = 1 << 0      // of both status registers: the table was written, and is not loaded
	VCResPend   uint16 = 1 << 1      // of VCResSta: negotiation is pending
	VCResMap    uint32 = 0xff        // of VCResCtl: TC/VC map
	VCResLoad   uint32 = 1 << 16     // reads 0
	VCResSelect uint32 = 0b111 << 17 // port arbitration
	VCResID     uint32 = 0b111 << 24
	VCResOn     uint32 = 1 << 31 // enabled
)

// Secondary Bus Number and Bridge Control of a type 1 header (PCI-to-PCI Bridge 1.2, 3.2.5.3 and 3.2.5.17).
const (
	CfgSecondary bus.Off = 0x19 // 8 bits
	CfgBridgeCtl bus.Off = 0x3e

	BridgeParity uint16 = 1 << 0
	BridgeSERR   uint16 = 1 << 1
	BridgeReset  uint16 = 1 << 6 // Secondary Bus Reset
)

// Power Management (PCI Bus Power Management 1.2, 3.2), from the capability's beginning.
const (
	PMCap bus.Off = 0x02 // RO, 16 bits: PME support 15:11 (D0, D1, D2, D3hot, D3cold)
	PMCtl bus.Off = 0x04 // Control/Status, 16 bits

	PMCtlState  uint16 = 0b11
	PMCtlPMEEn  uint16 = 1 << 8
	PMCtlPMESta uint16 = 1 << 15 // W1C
)

// Express is a function's PCI Express capability.
type Express struct {
	At      bus.Off // of the capability
	Type    ExpType
	Version int
	Slot    bool // a slot is implemented
	Message int  // Interrupt Message Number
}

// FindExpress reads a function's PCI Express capability; not ok where there is none, or it does not fit.
func FindExpress(c bus.Config) (e Express, ok bool) {
	at, ok := FindCap(c, CapPCIe)
	if !ok || at+ExpFlags+2 > 0x100 {
		return e, false
	}
	v := c.Read16(at + ExpFlags)
	e = Express{At: at, Type: ExpType(v & FlagType >> 4), Version: int(v & FlagVersion), Slot: v&FlagSlot != 0, Message: int(v & FlagMessage >> flagMsgAt)}
	if int(at)+ExpSize > 0x100 {
		e.Version = min(e.Version, 1) // whatever it says, the second half is not there
	}
	return e, v != 0xffff && int(at)+e.size() <= 0x100
}

// size is how many bytes such a capability has at least.
func (e Express) size() int {
	switch {
	case e.Version >= 2:
		return ExpSize
	case e.Type == ExpRootPort || e.Type == ExpCollector:
		return int(ExpRtSta) + 4
	case e.Slot:
		return int(ExpSltSta) + 2
	}
	return int(ExpLnkSta) + 2
}

// HasRoot says whether it has the Root registers.
func (e Express) HasRoot() bool { return e.Type == ExpRootPort || e.Type == ExpCollector }

// IsPort says whether it is a port, which a port's driver serves.
func (e Express) IsPort() bool {
	return e.Type == ExpRootPort || e.Type == ExpUpstream || e.Type == ExpDownstream || e.Type == ExpCollector
}

// HasLink says whether a link, so a bus with one device, is below it.
func (e Express) HasLink() bool { return e.Type == ExpRootPort || e.Type == ExpDownstream }
