package fabric

import "github.com/ring3dev/ring3/rionet/rapidio"

// Who the model's devices say they are. Vendor 0x5233 ("R3") is none that was assigned; Tsi500 is Tundra's.
const (
	Vendor         = 0x5233
	EndpointDevice = 0x0001
	SwitchDevice   = 0x0002
	Tsi500Vendor   = 0x000d
	Tsi500Device   = 0x0500
	deviceRevision = 0x00000001
	asmDevice      = 0x0001
	asmRevision    = 0x0001
)

// Where the blocks of extended features stand. That of error management leaves room for the registers of 255 ports before it.
const (
	efSerial  rapidio.Off = 0x0100
	efErrMgmt rapidio.Off = 0x3000
)

// Bits of Port n Control (part 6, 6.6.10) besides those in package rapidio.
const (
	ctlWidth2     uint32 = 1 << 31 // 2 lanes are possible
	ctlWidth4     uint32 = 1 << 30
	ctlInitWidth  uint32 = 0b111 << 27 // in use: 0 one lane, 2 four, 3 two, 4 eight, 5 sixteen
	ctlDisable    uint32 = 1 << 23
	ctlNoCheck    uint32 = 1 << 20
	ctlMulticast  uint32 = 1 << 19
	ctlBoundary   uint32 = 1 << 17 // enumeration boundary
	ctlWidth8     uint32 = 1 << 13
	ctlWidth16    uint32 = 1 << 12
	ctlStopOnFail uint32 = 1 << 3
	ctlDropEnable uint32 = 1 << 2
	// ctlRW is what software may set of it.
	ctlRW = ctlDisable | rapidio.PortOutputEn | rapidio.PortInputEn | ctlNoCheck | ctlMulticast | ctlBoundary |
		ctlStopOnFail | ctlDropEnable | rapidio.PortLockout
	ctlReset = rapidio.PortOutputEn | rapidio.PortInputEn
)

// Bits of Port n Error and Status (part 6, 6.6.9; part 8, 2.3) besides those in package rapidio.
const (
	statOutDropped uint32 = 1 << 26 // W1C: a packet for this port was thrown away
	// statW1C is what the model latches, and a write of 1 clears.
	statW1C = statOutDropped | rapidio.PortOutFailed | rapidio.PortOutDegraded | rapidio.PortWritePend
)

// Link maintenance (part 6, 6.6.6 and 6.6.7).
const (
	linkReqMask     uint32 = 0b111
	linkReqReset           = 3 // four in a row reset the device at the other end
	linkReqStatus          = 4
	linkRespValid   uint32 = 1 << 31 // until the register is read
	linkRespOK      uint32 = 0x10    // port status
	resetRequests          = 4
	timeoutMask     uint32 = 0xffffff00
	timeoutReset    uint32 = timeoutUnits << 8
	timeoutUnits           = 33333 // 10 ms
	timeoutUnitNs          = 300   // so that 0xffffff is 5 s; the specification says 3 to 6
	genRWEndpoint          = rapidio.GenHost | rapidio.GenMaster | rapidio.GenDiscovered
	genRWSwitch            = rapidio.GenDiscovered
	serialPortBegin        = rapidio.PHYPortLinkReq
)

// Registers of error management (part 8) besides those in package rapidio, from the block's beginning.
const (
	emCapDeviceID rapidio.Off = 0x18 // Logical/Transport Layer Device ID Capture: destination 31:16, source 15:0
	emCapControl  rapidio.Off = 0x1c // Logical/Transport Layer Control Capture: ftype 31:28
	emTTL         rapidio.Off = 0x2c // Packet Time-to-live: 31:16
)

// Bits of Logical/Transport Layer Error Detect.
const (
	logTarget  uint32 = 1 << 26 // Illegal transaction target: of a switch, no route; of an endpoint, not its ID
	logTimeout uint32 = 1 << 24 // Packet response timeout
	logLoop    uint32 = 1 << 0  // Implementation-specific: a packet went in a circle until its life ended
	logAll            = logTarget | logTimeout | logLoop
)

// Bits of Port n Error Detect.
const (
	detectLink uint32 = 1 << 31 // Implementation-specific: the link came up or went down
	detectAll         = detectLink
)

// pwTargetLarge in the port-write target register says that the ID has 16 bits.
const pwTargetLarge uint32 = 1 << 15

// The routing tables of Tsi500: 4 bits for each destination ID, 8 of them in a register, the lowest ID in the lowest bits; a
// copy for each port, by which packets that enter there are routed.
const (
	tsiPorts              = 4
	tsiTable  rapidio.Off = 0x10a00
	tsiStride rapidio.Off = 0x20000
	tsiSize   rapidio.Off = 0x80
)

// tsiCell is the table and the register in it that an offset reaches.
func tsiCell(off rapidio.Off) (table, reg int, ok bool) {
	if off < tsiTable {
		return 0, 0, false
	}
	table, in := int((off-tsiTable)/tsiStride), (off-tsiTable)%tsiStride
	return table, int(in / 4), table < tsiPorts && in < tsiSize
}

// Lane speeds as Port n Control 2 has them (part 6, 6.6.8): the selected one is in 31:28, and from bit 25 downwards there are two
// bits for each: supported, enabled.
var laneRates = [...]int64{1_250_000_000, 2_500_000_000, 3_125_000_000, 5_000_000_000, 6_250_000_000}

// laneSpeed is the slowest speed by which so many lanes carry a rate, at 8 bits of data in 10; the fastest where none does, or there
// is no limit. 1 is the first of laneRates.
func laneSpeed(rate int64, width int) int {
	for i, r := range laneRates {
		if rate > 0 && rate <= r*int64(width)/10*8 {
			return i + 1
		}
	}
	return len(laneRates)
}
