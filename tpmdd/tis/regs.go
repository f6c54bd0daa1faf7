package tis

import "github.com/ring3dev/ring3/bus"

// Registers of locality 0 (PTP 1.05, 6.3; TIS 1.3, 5.2).
const (
	regACCESS   bus.Off = 0x000 // TPM_ACCESS_x, RW, 8 bits, 6.3.2.2
	regINTEN    bus.Off = 0x008 // TPM_INT_ENABLE_x, RW, 6.3.2.3
	regINTVEC   bus.Off = 0x00c // TPM_INT_VECTOR_x, RW, 8 bits
	regINTSTS   bus.Off = 0x010 // TPM_INT_STATUS_x, W1C
	regINTFCAP  bus.Off = 0x014 // TPM_INTF_CAPABILITY_x, RO, 6.3.2.4
	regSTS      bus.Off = 0x018 // TPM_STS_x, RW, 6.3.2.5
	regFIFO     bus.Off = 0x024 // TPM_DATA_FIFO_x, RW, 8 to 32 bits, 6.3.2.6
	regINTFID   bus.Off = 0x030 // TPM_INTERFACE_ID_x, RW, 6.3.2.7
	regXFIFO    bus.Off = 0x080 // TPM_XDATA_FIFO_x, the same FIFO
	regDIDVID   bus.Off = 0xf00 // TPM_DID_VID_x, RO, 6.3.2.8
	regRID      bus.Off = 0xf04 // TPM_RID_x, RO, 8 bits
	regsSize            = 0x1000
	xfifoLength         = 0x40
)

// access is the value of ACCESS.
type access uint8

const (
	accEstablishment access = 1 << 0 // R: 0 once a dynamic launch was made
	accRequestUse    access = 1 << 1 // RW: this locality wants to be active
	accPending       access = 1 << 2 // R: another one wants to
	accSeize         access = 1 << 3 // W
	accSeized        access = 1 << 4 // R, W1C
	accActive        access = 1 << 5 // R: it is; W: it no longer wants to be
	accValid         access = 1 << 7 // R: the other bits are
)

func (a access) String() string { return accessBits(uint64(a)) }

// sts is the value of STS.
type sts uint32

const (
	stsResponseRetry sts = 1 << 1       // W: read the answer from its beginning again
	stsSelfTestDone  sts = 1 << 2       // R
	stsExpect        sts = 1 << 3       // R: more bytes of the command are expected
	stsDataAvail     sts = 1 << 4       // R: bytes of the answer are there
	stsGo            sts = 1 << 5       // W: execute
	stsReady         sts = 1 << 6       // R: ready for a command; W: become so, whatever is under way
	stsValid         sts = 1 << 7       // R: stsDataAvail and stsExpect are right
	stsBurst         sts = 0xffff << 8  // R: bytes that may be moved now
	stsCancel        sts = 1 << 24      // W: cancel the command (TPM 2.0)
	stsFamily        sts = 0b11 << 26   // R: 0: 1.2, 1: 2.0
	stsZero              = stsGo | 0b11 // read as 0, or it is no status
)

// burst is the burst count.
func (s sts) burst() int { return int(s & stsBurst >> 8) }

// has says whether all bits of m are set.
func (s sts) has(m sts) bool { return s&m == m }

func (s sts) String() string { return stsBits(uint64(s)) }

// Bits of INT_ENABLE and INT_STATUS (6.3.2.3).
const (
	intDataAvail uint32 = 1 << 0
	intAll       uint32 = 0b1000_0111 // data available, status valid, locality change, command ready
	intPolarity  uint32 = 0b11 << 3   // of INT_ENABLE, and not to be changed
	intGlobal    uint32 = 1 << 31     // of INT_ENABLE
)

// Bits of INTF_CAPABILITY.
const (
	capDataAvail uint32 = 1 << 0
	capTransfer  uint32 = 0b11 << 9 // data transfer size: 0: as TIS 1.2 has it
)

// intfCRB is the interface type of the CRB in INTERFACE_ID.
const intfCRB = 1

var (
	accessBits = bus.BitNames(bus.Bit{Mask: uint64(accEstablishment), Name: "tpmEstablishment"}, bus.Bit{Mask: uint64(accRequestUse), Name: "requestUse"},
		bus.Bit{Mask: uint64(accPending), Name: "pendingRequest"}, bus.Bit{Mask: uint64(accSeize), Name: "Seize"}, bus.Bit{Mask: uint64(accSeized), Name: "beenSeized"},
		bus.Bit{Mask: uint64(accActive), Name: "activeLocality"}, bus.Bit{Mask: uint64(accValid), Name: "tpmRegValidSts"})
	stsBits = bus.BitNames(bus.Bit{Mask: uint64(stsResponseRetry), Name: "responseRetry"}, bus.Bit{Mask: uint64(stsSelfTestDone), Name: "selfTestDone"},
		bus.Bit{Mask: uint64(stsExpect), Name: "Expect"}, bus.Bit{Mask: uint64(stsDataAvail), Name: "dataAvail"}, bus.Bit{Mask: uint64(stsGo), Name: "tpmGo"},
		bus.Bit{Mask: uint64(stsReady), Name: "commandReady"}, bus.Bit{Mask: uint64(stsValid), Name: "stsValid"}, bus.Bit{Mask: uint64(stsCancel), Name: "commandCancel"})
	intBits = bus.BitNames(bus.Bit{Mask: 1 << 0, Name: "dataAvail"}, bus.Bit{Mask: 1 << 1, Name: "stsValid"}, bus.Bit{Mask: 1 << 2, Name: "localityChange"},
		bus.Bit{Mask: 1 << 7, Name: "commandReady"}, bus.Bit{Mask: uint64(intGlobal), Name: "globalIntEnable"})
)

// registers is the table for traces and fault reports.
var registers = []bus.Register{
	{Name: "ACCESS", Off: regACCESS, Width: 1, Bits: accessBits},
	{Name: "INT_ENABLE", Off: regINTEN, Bits: intBits},
	{Name: "INT_VECTOR", Off: regINTVEC, Width: 1},
	{Name: "INT_STATUS", Off: regINTSTS, Access: bus.W1C, Bits: intBits},
	{Name: "INTF_CAPABILITY", Off: regINTFCAP, Access: bus.RO},
	{Name: "STS", Off: regSTS, Bits: stsBits},
	{Name: "DATA_FIFO", Off: regFIFO, Access: bus.RC}, // reading takes bytes away
	{Name: "INTERFACE_ID", Off: regINTFID, Access: bus.RO},
	{Name: "XDATA_FIFO", Off: regXFIFO, Access: bus.RC, Count: xfifoLength / 4},
	{Name: "DID_VID", Off: regDIDVID, Access: bus.RO},
	{Name: "RID", Off: regRID, Access: bus.RO, Width: 1},
}
