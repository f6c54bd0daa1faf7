package rapidio

import "fmt"

// Off is an offset in a device's configuration space of 16 MiB, in bytes. The space is big-endian: the byte at an offset
// that is a multiple of 4 is the most significant of its register.
type Off uint32

// ConfigSize is the size of a configuration space that maintenance transactions reach.
const ConfigSize = 1 << 24

// Capability registers (CARs), read only (RapidIO part 1 chapter 5.4, part 2 chapter 5.4, part 3 chapter 3.4).
const (
	RegDeviceID   Off = 0x00 // Device Identity: device 31:16, vendor 15:0
	RegDeviceInfo Off = 0x04 // Device Information: revision
	RegAsmID      Off = 0x08 // Assembly Identity: device 31:16, vendor 15:0
	RegAsmInfo    Off = 0x0c // Assembly Information: revision 31:16, first extended feature 15:0
	RegPEF        Off = 0x10 // Processing Element Features
	RegSwitchPort Off = 0x14 // Switch Port Information: ports 15:8, port of this access 7:0
	RegSrcOps     Off = 0x18 // Source Operations
	RegDstOps     Off = 0x1c // Destination Operations
	RegRTLimit    Off = 0x34 // Switch Route Table Destination ID Limit
)

// Command and status registers (CSRs).
const (
	RegMbox           Off = 0x40 // Mailbox CSR, RO: 8 bits a mailbox, mailbox 0 in 31:24
	RegDoorbell       Off = 0x44 // Write-Port CSR, which holds the doorbell's state in 31:24, RO
	RegPELL           Off = 0x4c // Processing Element Logical Layer Control
	RegLCSBase0       Off = 0x58 // Local Configuration Space Base Address, high
	RegLCSBase1       Off = 0x5c // and low
	RegBaseDeviceID   Off = 0x60 // Base Device ID: 8-bit ID in 23:16, 16-bit ID in 15:0
	RegHostLock       Off = 0x68 // Host Base Device ID Lock: 15:0; 0xffff is free. A write of the holder's ID frees it.
	RegComponentTag   Off = 0x6c // Component Tag
	RegRouteDestID    Off = 0x70 // Standard Route Configuration Destination ID Select
	RegRoutePort      Off = 0x74 // Standard Route Configuration Port Select: port 7:0
	RegRouteDefault   Off = 0x78 // Standard Route Default Port: 7:0
	RegExtFeatures    Off = 0x100
	RegImplementation Off = 0x10000 // implementation-defined space
)

// PEF is the value of RegPEF.
type PEF uint32

// Bits of PEF.
const (
	PEFBridge    PEF = 1 << 31
	PEFMemory    PEF = 1 << 30
	PEFProcessor PEF = 1 << 29
	PEFSwitch    PEF = 1 << 28
	PEFMultiport PEF = 1 << 27
	PEFMbox0     PEF = 1 << 23
	PEFMbox1     PEF = 1 << 22
	PEFMbox2     PEF = 1 << 21
	PEFMbox3     PEF = 1 << 20
	PEFDoorbell  PEF = 1 << 19
	PEFExtRoute  PEF = 1 << 9
	PEFStdRoute  PEF = 1 << 8
	PEFLargeIDs  PEF = 1 << 4 // common transport large system: 16-bit device IDs
	PEFExtValid  PEF = 1 << 3 // the extended features pointer is valid
	PEFAddr66    PEF = 1 << 2
	PEFAddr50    PEF = 1 << 1
	PEFAddr34    PEF = 1 << 0
	PEFMboxes        = PEFMbox0 | PEFMbox1 | PEFMbox2 | PEFMbox3
)

// Bits of RegSrcOps and RegDstOps.
const (
	OpRead      uint32 = 1 << 15
	OpWrite     uint32 = 1 << 14
	OpSWrite    uint32 = 1 << 13
	OpWriteResp uint32 = 1 << 12
	OpMessage   uint32 = 1 << 11
	OpDoorbell  uint32 = 1 << 10
	OpPortWrite uint32 = 1 << 2
)

// Bits of RegMbox, in the byte of a mailbox, and of RegDoorbell's first byte (part 2, 5.5.1).
const (
	MboxAvailable uint32 = 1 << 7
	MboxFull      uint32 = 1 << 6
	MboxEmpty     uint32 = 1 << 5
	MboxBusy      uint32 = 1 << 4
	MboxFailed    uint32 = 1 << 3
	MboxError     uint32 = 1 << 2
	DoorbellShift        = 24
	LockFree      uint32 = 0xffff
	MaxMboxes            = 4
	MaxMessage           = 4096
	MaxPortWrite         = 64 // bytes
	InvalidRoute         = 0xff
	MaxPorts             = 255 // of a switch
	MaxHops              = 255
	ComponentMask uint32 = 0x1ffff // what of a component tag stands in a device's name
)

// EnumComplete in RegComponentTag says, of an endpoint without an LP-serial block, that enumeration is complete (the 2005 design).
const EnumComplete uint32 = 0xdeadbeef

// Extended feature blocks: the header is next 31:16, ID 15:0.
const (
	EFSerialEndpoint    = 0x0001 // LP-serial, map I: endpoint
	EFSerialEndpointRec = 0x0002 // with software assisted error recovery
	EFSerialEndpointFre = 0x0003 // generic endpoint free: switches
	EFErrorMgmt         = 0x0007
	EFSerialSwitchRec   = 0x0009 // endpoint free, with software assisted error recovery
	EFRoutingTables     = 0x000e
)

// Registers of an LP-serial block (part 6), from its beginning.
const (
	PHYLinkTimeout  Off = 0x20
	PHYRespTimeout  Off = 0x24
	PHYGenControl   Off = 0x3c
	PHYPortStride   Off = 0x20
	PHYPortLinkReq  Off = 0x40 // these from the first port's
	PHYPortLinkResp Off = 0x44
	PHYPortAckID    Off = 0x48
	PHYPortControl2 Off = 0x54
	PHYPortErrStat  Off = 0x58
	PHYPortControl  Off = 0x5c
)

// Bits of PHYGenControl.
const (
	GenHost       uint32 = 1 << 31
	GenMaster     uint32 = 1 << 30
	GenDiscovered uint32 = 1 << 29
)

// Bits of PHYPortErrStat.
const (
	PortUninit      uint32 = 1 << 0
	PortOK          uint32 = 1 << 1
	PortError       uint32 = 1 << 2
	PortWritePend   uint32 = 1 << 4
	PortInStopped   uint32 = 1 << 8
	PortOutStopped  uint32 = 1 << 16
	PortOutFailed   uint32 = 1 << 25 // W1C
	PortOutDegraded uint32 = 1 << 24 // W1C
)

// Bits of PHYPortControl.
const (
	PortSerial   uint32 = 1 << 0
	PortLockout  uint32 = 1 << 1
	PortInputEn  uint32 = 1 << 21
	PortOutputEn uint32 = 1 << 22
)

// Registers of an error management block (part 8), from its beginning.
const (
	EMLogDetect    Off = 0x08 // Logical/Transport Layer Error Detect, W0C by a write of 0
	EMLogEnable    Off = 0x0c
	EMPortWriteTgt Off = 0x28 // Port-write Target Device ID: 31:16; bit 15: it is a 16-bit ID
	EMPortStride   Off = 0x40
	EMPortDetect   Off = 0x40 // Port n Error Detect
	EMPortRateEn   Off = 0x44
)

// DestID is a device ID: 8 or 16 bits, as the fabric has them.
type DestID uint16

// IDSize is the width of device IDs, in bits.
type IDSize int

// The widths.
const (
	Small IDSize = 8
	Large IDSize = 16
)

// Any is the device ID that reaches devices without one: 0xff or 0xffff.
func (s IDSize) Any() DestID {
	if s == Large {
		return 0xffff
	}
	return 0xff
}

func (s IDSize) String() string { return fmt.Sprintf("%d-bit IDs", int(s)) }

// Of is the ID that a Base Device ID register holds.
func (s IDSize) Of(reg uint32) DestID {
	if s == Large {
		return DestID(reg)
	}
	return DestID(reg >> 16 & 0xff)
}

// Reg is the Base Device ID register that holds an ID.
func (s IDSize) Reg(d DestID) uint32 {
	if s == Large {
		return uint32(d)
	}
	return uint32(d&0xff) << 16
}
