package crb

import (
	"fmt"

	"github.com/ring3dev/ring3/bus"
)

// Registers of locality 0 (PTP 1.05, 6.5.3, tables 26 to 45).
const (
	regLOCSTATE   bus.Off = 0x00 // TPM_LOC_STATE_x, RO
	regLOCCTRL    bus.Off = 0x08 // TPM_LOC_CTRL_x, WO
	regLOCSTS     bus.Off = 0x0c // TPM_LOC_STS_x, RO
	regINTFID     bus.Off = 0x30 // TPM_CRB_INTF_ID_x, RO, 64 bits
	regINTFIDHigh bus.Off = 0x34
	regCTRLREQ    bus.Off = 0x40 // TPM_CRB_CTRL_REQ_x, RW: cleared by the TPM
	regCTRLSTS    bus.Off = 0x44 // TPM_CRB_CTRL_STS_x, RO
	regCANCEL     bus.Off = 0x48 // TPM_CRB_CTRL_CANCEL_x, RW
	regSTART      bus.Off = 0x4c // TPM_CRB_CTRL_START_x, RW: cleared by the TPM
	regCMDSIZE    bus.Off = 0x58 // TPM_CRB_CTRL_CMD_SIZE_x, RO
	regCMDLADDR   bus.Off = 0x5c // TPM_CRB_CTRL_CMD_LADDR_x, RO
	regCMDHADDR   bus.Off = 0x60 // TPM_CRB_CTRL_CMD_HADDR_x, RO
	regRSPSIZE    bus.Off = 0x64 // TPM_CRB_CTRL_RSP_SIZE_x, RO
	regRSPADDR    bus.Off = 0x68 // TPM_CRB_CTRL_RSP_ADDR_x, RO, 64 bits
	regRSPADDRHi  bus.Off = 0x6c
	regsSize              = 0x80 // what comes behind is the buffer, as a rule
)

// locState is the value of LOC_STATE.
type locState uint32

const (
	locEstablished locState = 1 << 0
	locAssigned    locState = 1 << 1
	locActive      locState = 0b111 << 2 // number of the active locality
	locValid       locState = 1 << 7     // the other bits are
	locZero        locState = 1 << 31    // reads 0, or the device is gone
)

func (l locState) String() string { return locStateBits(uint64(l)) }

// Bits of LOC_CTRL.
const (
	locRequest    uint32 = 1 << 0
	locRelinquish uint32 = 1 << 1
)

// ctrl is the value of CTRL_REQ, CTRL_STS or START, each with its own bits.
type ctrl uint32

const (
	reqReady ctrl = 1 << 0 // of CTRL_REQ
	reqIdle  ctrl = 1 << 1

	stsError ctrl = 1 << 0 // of CTRL_STS: fatal
	stsIdle  ctrl = 1 << 1

	startInvoke  ctrl = 1 << 0
	cancelInvoke ctrl = 1 << 0
)

func (c ctrl) String() string { return fmt.Sprintf("%#x", uint32(c)) }

// Fields of INTF_ID.
const (
	intfType uint32 = 0xf // typeCRB: the CRB is active
	typeCRB  uint32 = 1
)

var (
	locStateBits = bus.BitNames(bus.Bit{Mask: uint64(locEstablished), Name: "tpmEstablished"}, bus.Bit{Mask: uint64(locAssigned), Name: "locAssigned"},
		bus.Bit{Mask: uint64(locValid), Name: "tpmRegValidSts"})
	reqBits = bus.BitNames(bus.Bit{Mask: uint64(reqReady), Name: "cmdReady"}, bus.Bit{Mask: uint64(reqIdle), Name: "goIdle"})
	stsBits = bus.BitNames(bus.Bit{Mask: uint64(stsError), Name: "tpmSts"}, bus.Bit{Mask: uint64(stsIdle), Name: "tpmIdle"})
)

// registers is the table for traces and fault reports.
var registers = []bus.Register{
	{Name: "LOC_STATE", Off: regLOCSTATE, Access: bus.RO, Bits: locStateBits},
	{Name: "LOC_CTRL", Off: regLOCCTRL, Access: bus.WO},
	{Name: "LOC_STS", Off: regLOCSTS, Access: bus.RO},
	{Name: "INTF_ID", Off: regINTFID, Access: bus.RO, Count: 2},
	{Name: "CTRL_REQ", Off: regCTRLREQ, Bits: reqBits},
	{Name: "CTRL_STS", Off: regCTRLSTS, Access: bus.RO, Bits: stsBits},
	{Name: "CTRL_CANCEL", Off: regCANCEL},
	{Name: "CTRL_START", Off: regSTART},
	{Name: "CTRL_CMD_SIZE", Off: regCMDSIZE, Access: bus.RO},
	{Name: "CTRL_CMD_ADDR", Off: regCMDLADDR, Access: bus.RO, Count: 2},
	{Name: "CTRL_RSP_SIZE", Off: regRSPSIZE, Access: bus.RO},
	{Name: "CTRL_RSP_ADDR", Off: regRSPADDR, Access: bus.RO, Count: 2},
	{Name: "DATA", Off: regsSize, Access: bus.RO, Width: 8, Count: 0xf80 / 8},
}
