package e1000

import (
	"fmt"
	"math/bits"
	"strings"

	"github.com/ring3dev/ring3/bus"
)

// Registers, at the same place in all chips unless a comment says otherwise.
const (
	regCTRL    bus.Off = 0x0000 // Device Control, RW, 13.4.1
	regSTATUS  bus.Off = 0x0008 // Device Status, RO, 13.4.2
	regEECD    bus.Off = 0x0010 // EEPROM Control and Data, RW, 13.4.3
	regEERD    bus.Off = 0x0014 // EEPROM Read, RW, 13.4.4
	regCTRLEXT bus.Off = 0x0018 // Extended Device Control, RW, 13.4.6
	regMDIC    bus.Off = 0x0020 // MDI Control: access to the PHY's registers, RW, 13.4.8
	regFCAL    bus.Off = 0x0028 // Flow Control Address Low, RW, 13.4.9
	regFCAH    bus.Off = 0x002c // Flow Control Address High, RW, 13.4.10
	regFCT     bus.Off = 0x0030 // Flow Control Type, RW, 13.4.11
	regICR     bus.Off = 0x00c0 // Interrupt Cause Read, RC and W1C, 13.4.17
	regITR     bus.Off = 0x00c4 // Interrupt Throttling, RW, 13.4.18
	regICS     bus.Off = 0x00c8 // Interrupt Cause Set, WO, 13.4.19
	regIMS     bus.Off = 0x00d0 // Interrupt Mask Set and Read, RW, 13.4.20
	regIMC     bus.Off = 0x00d8 // Interrupt Mask Clear, WO, 13.4.21
	regEIAC    bus.Off = 0x00dc // Interrupt Auto Clear, RW, 82574L 10.2.4
	regIAM     bus.Off = 0x00e0 // Interrupt Acknowledge Auto-Mask, RW, 82574L 10.2.4
	regIVAR    bus.Off = 0x00e4 // Interrupt Vector Allocation, RW, 82574L 10.2.4
	regRCTL    bus.Off = 0x0100 // Receive Control, RW, 13.4.22
	regVET     bus.Off = 0x0038 // VLAN Ether Type, RW, 13.4.14
	regFCTTV   bus.Off = 0x0170 // Flow Control Transmit Timer Value, RW, 13.4.12
	regTCTL    bus.Off = 0x0400 // Transmit Control, RW, 13.4.33
	regTIPG    bus.Off = 0x0410 // Transmit Inter-Packet Gap, RW, 13.4.34
	regPBA     bus.Off = 0x1000 // Packet Buffer Allocation, in KiB, RW, 13.4.15
	regFCRTL   bus.Off = 0x2160 // Flow Control Receive Threshold Low, RW, 13.4.23
	regFCRTH   bus.Off = 0x2168 // Flow Control Receive Threshold High, RW, 13.4.24
	regRDTR    bus.Off = 0x2820 // Receive Delay Timer, RW, 13.4.30
	regRADV    bus.Off = 0x282c // Receive Absolute Delay Timer, RW, 13.4.31
	regTIDV    bus.Off = 0x3820 // Transmit Interrupt Delay, RW, 13.4.41
	regTADV    bus.Off = 0x382c // Transmit Absolute Delay, RW, 13.4.44
	regRXCSUM  bus.Off = 0x5000 // Receive Checksum Control, RW, 13.4.47
	regRFCTL   bus.Off = 0x5008 // Receive Filter Control, RW, 82574L 10.2.5
	regMRQC    bus.Off = 0x5818 // Multiple Receive Queues Command, RW, 82574L 10.2.5
)

// Registers of the queues: queue 1, which the 82574L has, is queueStride further on.
const queueStride bus.Off = 0x100

// regRDBAL is Receive Descriptor Base Low, RW, 13.4.25.
func regRDBAL(q int) bus.Off { return 0x2800 + queueStride*bus.Off(q) }

// regRDBAH is Receive Descriptor Base High, RW, 13.4.26.
func regRDBAH(q int) bus.Off { return 0x2804 + queueStride*bus.Off(q) }

// regRDLEN is Receive Descriptor Length, RW, 13.4.27.
func regRDLEN(q int) bus.Off { return 0x2808 + queueStride*bus.Off(q) }

// regRDH is Receive Descriptor Head, RW, 13.4.28.
func regRDH(q int) bus.Off { return 0x2810 + queueStride*bus.Off(q) }

// regRDT is Receive Descriptor Tail, RW, 13.4.29.
func regRDT(q int) bus.Off { return 0x2818 + queueStride*bus.Off(q) }

// regRXDCTL is Receive Descriptor Control, RW, 13.4.32.
func regRXDCTL(q int) bus.Off { return 0x2828 + queueStride*bus.Off(q) }

// regTDBAL is Transmit Descriptor Base Low, RW, 13.4.36.
func regTDBAL(q int) bus.Off { return 0x3800 + queueStride*bus.Off(q) }

// regTDBAH is Transmit Descriptor Base High, RW, 13.4.37.
func regTDBAH(q int) bus.Off { return 0x3804 + queueStride*bus.Off(q) }

// regTDLEN is Transmit Descriptor Length, RW, 13.4.38.
func regTDLEN(q int) bus.Off { return 0x3808 + queueStride*bus.Off(q) }

// regTDH is Transmit Descriptor Head, RW, 13.4.39.
func regTDH(q int) bus.Off { return 0x3810 + queueStride*bus.Off(q) }

// regTDT is Transmit Descriptor Tail, RW, 13.4.40.
func regTDT(q int) bus.Off { return 0x3818 + queueStride*bus.Off(q) }

// regTXDCTL is Transmit Descriptor Control, RW, 13.4.43.
func regTXDCTL(q int) bus.Off { return 0x3828 + queueStride*bus.Off(q) }

// regTARC is Transmit Arbitration Counter, RW, 82574L 10.2.6.
func regTARC(q int) bus.Off { return 0x3840 + queueStride*bus.Off(q) }

// regRETA is word i of the Redirection Table, four entries each, RW, 82574L 10.2.5.
func regRETA(i int) bus.Off { return 0x5c00 + 4*bus.Off(i) }

// regRSSRK is word i of the RSS Random Key, RW, 82574L 10.2.5.
func regRSSRK(i int) bus.Off { return 0x5c80 + 4*bus.Off(i) }

// regEITR is Extended Interrupt Throttle of an MSI-X vector, RW, 82574L 10.2.4.
func regEITR(vector int) bus.Off { return 0x00e8 + 4*bus.Off(vector) }

// regMTA is word i of the Multicast Table Array, RW, 13.5.1.
func regMTA(i int) bus.Off { return 0x5200 + 4*bus.Off(i) }

// regRAL is Receive Address Low, RW, 13.5.2.
func regRAL(i int) bus.Off { return 0x5400 + 8*bus.Off(i) }

// regRAH is Receive Address High, RW, 13.5.3.
func regRAH(i int) bus.Off { return 0x5404 + 8*bus.Off(i) }

const (
	mtaWords   = 128
	retaWords  = 32
	rssrkWords = 10
	raPairs    = 16
	maxVectors = 5 // 82574L: MSI-X vectors
)

// Statistics registers, all RC, 13.7.
const (
	regCRCERRS  bus.Off = 0x4000 // CRC Error Count
	regALGNERRC bus.Off = 0x4004 // Alignment Error Count
	regRXERRC   bus.Off = 0x400c // Receive Error Count
	regMPC      bus.Off = 0x4010 // Missed Packets Count
	regSCC      bus.Off = 0x4014 // Single Collision Count
	regECOL     bus.Off = 0x4018 // Excessive Collisions Count
	regMCC      bus.Off = 0x401c // Multiple Collision Count
	regLATECOL  bus.Off = 0x4020 // Late Collisions Count
	regCOLC     bus.Off = 0x4028 // Collision Count
	regDC       bus.Off = 0x4030 // Defer Count
	regTNCRS    bus.Off = 0x4034 // Transmit with No Carrier Sense Count
	regRLEC     bus.Off = 0x4040 // Receive Length Error Count
	regXONRXC   bus.Off = 0x4048 // XON Received Count
	regXONTXC   bus.Off = 0x404c // XON Transmitted Count
	regXOFFRXC  bus.Off = 0x4050 // XOFF Received Count
	regXOFFTXC  bus.Off = 0x4054 // XOFF Transmitted Count
	regGPRC     bus.Off = 0x4074 // Good Packets Received Count
	regBPRC     bus.Off = 0x4078 // Broadcast Packets Received Count
	regMPRC     bus.Off = 0x407c // Multicast Packets Received Count
	regGPTC     bus.Off = 0x4080 // Good Packets Transmitted Count
	regGORCL    bus.Off = 0x4088 // Good Octets Received Count Low; reading High clears both
	regGORCH    bus.Off = 0x408c
	regRNBC     bus.Off = 0x40a0 // Receive No Buffers Count
	regRUC      bus.Off = 0x40a4 // Receive Undersize Count
	regRFC      bus.Off = 0x40a8 // Receive Fragment Count
	regROC      bus.Off = 0x40ac // Receive Oversize Count
	regRJC      bus.Off = 0x40b0 // Receive Jabber Count
	regMGTPRC   bus.Off = 0x40b4 // Management Packets Received Count
	regMGTPDC   bus.Off = 0x40b8 // Management Packets Dropped Count
	regMGTPTC   bus.Off = 0x40bc // Management Packets Transmitted Count
	regMPTC     bus.Off = 0x40f0 // Multicast Packets Transmitted Count
	regBPTC     bus.Off = 0x40f4 // Broadcast Packets Transmitted Count
	regTSCTC    bus.Off = 0x40f8 // TCP Segmentation Context Transmitted Count
	regTSCTFC   bus.Off = 0x40fc // TCP Segmentation Context Transmit Fail Count
)

// allOnes is what a register of a device that is gone reads.
const allOnes = ^uint32(0)

// mask is a register type whose fields are masks.
type mask interface{ ~uint32 | ~uint64 }

// get extracts the field of a mask.
func get[T mask](v, field T) T { return v & field >> bits.TrailingZeros64(uint64(field)) }

// put places x in the field of a mask; bits that do not fit are cut.
func put[T mask](field, x T) T { return x << bits.TrailingZeros64(uint64(field)) & field }

// ctrl is the value of CTRL.
type ctrl uint32

const (
	ctrlFD         ctrl = 1 << 0  // full duplex
	ctrlGIOMDIS    ctrl = 1 << 2  // 82574L: disable PCIe mastering; reserved in the 82540EM
	ctrlLRST       ctrl = 1 << 3  // link reset, fibre chips
	ctrlASDE       ctrl = 1 << 5  // auto-speed detection
	ctrlSLU        ctrl = 1 << 6  // set link up
	ctrlILOS       ctrl = 1 << 7  // invert loss of signal
	ctrlFRCSPD     ctrl = 1 << 11 // force speed
	ctrlFRCDPX     ctrl = 1 << 12 // force duplex
	ctrlRST        ctrl = 1 << 26 // device reset, clears itself
	ctrlRFCE       ctrl = 1 << 27 // receive flow control
	ctrlTFCE       ctrl = 1 << 28 // transmit flow control
	ctrlVME        ctrl = 1 << 30 // VLAN tags stripped
	ctrlPHYRST     ctrl = 1 << 31 // reset of the PHY
	ctrlBringUpOff      = ctrlGIOMDIS | ctrlLRST | ctrlILOS | ctrlFRCSPD | ctrlFRCDPX | ctrlRST | ctrlRFCE | ctrlTFCE | ctrlVME | ctrlPHYRST
)

func (v ctrl) String() string { return names(v, ctrlNames) }

var ctrlNames = []bitName[ctrl]{
	{ctrlFD, "FD"}, {ctrlGIOMDIS, "GIO_MASTER_DISABLE"}, {ctrlLRST, "LRST"}, {ctrlASDE, "ASDE"}, {ctrlSLU, "SLU"},
	{ctrlILOS, "ILOS"}, {ctrlFRCSPD, "FRCSPD"}, {ctrlFRCDPX, "FRCDPLX"}, {ctrlRST, "RST"}, {ctrlRFCE, "RFCE"},
	{ctrlTFCE, "TFCE"}, {ctrlVME, "VME"}, {ctrlPHYRST, "PHY_RST"},
}

// status is the value of STATUS.
type status uint32

const (
	statusFD        status = 1 << 0    // full duplex
	statusLU        status = 1 << 1    // link up
	statusTXOFF     status = 1 << 4    // transmission paused
	statusSpeed     status = 0b11 << 6 // 0: 10, 1: 100, 2 and 3: 1000 Mb/s
	statusGIOMaster status = 1 << 19   // 82574L: PCIe mastering is on
)

func (v status) String() string { return names(v, statusNames) }

var statusNames = []bitName[status]{
	{statusFD, "FD"}, {statusLU, "LU"}, {statusTXOFF, "TXOFF"}, {statusGIOMaster, "GIO_MASTER_ENABLE"},
}

// link describes the link in the kernel's words; flow has CTRL.RFCE and TFCE.
func (v status) link(flow ctrl) string {
	if v&statusLU == 0 {
		return "Down"
	}
	duplex := "Half"
	if v&statusFD != 0 {
		duplex = "Full"
	}
	return fmt.Sprintf("Up %d Mbps %s Duplex, Flow Control: %s", v.speed(), duplex, flowWords(flow))
}

// speed is the link's speed in Mb/s.
func (v status) speed() int { return [4]int{10, 100, 1000, 1000}[get(v, statusSpeed)] }

// eecd is the value of EECD.
type eecd uint32

const eecdAutoRD eecd = 1 << 9 // 82574L: the EEPROM's content was loaded after reset

// EERD is laid out differently in the two families.
type eerdLayout struct {
	start, done, addr, data uint32
}

var (
	eerd8254x = eerdLayout{start: 1 << 0, done: 1 << 4, addr: 0xff << 8, data: 0xffff << 16}
	eerd82574 = eerdLayout{start: 1 << 0, done: 1 << 1, addr: 0x3fff << 2, data: 0xffff << 16}
)

// ctrlExt is the value of CTRL_EXT, 82574L 10.2.2.
type ctrlExt uint32

const (
	ctrlExtEIAME  ctrlExt = 1 << 24 // MSI-X: mask the causes in IAM when their vector fires
	ctrlExtIAME   ctrlExt = 1 << 27 // mask the causes in IAM when ICR is read
	ctrlExtPBACLR ctrlExt = 1 << 31 // MSI-X: arming a cause clears its vector's pending bit
)

func (v ctrlExt) String() string { return names(v, ctrlExtNames) }

var ctrlExtNames = []bitName[ctrlExt]{{ctrlExtEIAME, "EIAME"}, {ctrlExtIAME, "IAME"}, {ctrlExtPBACLR, "PBA_CLR"}}

// mdic is the value of MDIC.
type mdic uint32

const (
	mdicData  mdic = 0xffff << 0
	mdicReg   mdic = 0b11111 << 16
	mdicPHY   mdic = 0b11111 << 21
	mdicWrite mdic = 1 << 26 // opcode 1
	mdicRead  mdic = 1 << 27 // opcode 2
	mdicReady mdic = 1 << 28 // done
	mdicInt   mdic = 1 << 29 // interrupt when done
	mdicError mdic = 1 << 30 // no such register
)

func (v mdic) String() string { return names(v, mdicNames) }

var mdicNames = []bitName[mdic]{{mdicWrite, "WRITE"}, {mdicRead, "READ"}, {mdicReady, "READY"}, {mdicInt, "INT"}, {mdicError, "ERROR"}}

// cause is the value of ICR, ICS, IMS, IMC, EIAC and IAM.
type cause uint32

const (
	causeTXDW   cause = 1 << 0  // transmit descriptor written back
	causeTXQE   cause = 1 << 1  // transmit queue empty
	causeLSC    cause = 1 << 2  // link status change
	causeRXSEQ  cause = 1 << 3  // receive sequence error
	causeRXDMT0 cause = 1 << 4  // receive descriptors run low
	causeRXO    cause = 1 << 6  // receiver overrun
	causeRXT0   cause = 1 << 7  // receive timer: a frame was received
	causeMDAC   cause = 1 << 9  // MDIO access complete
	causeSRPD   cause = 1 << 16 // small packet received
	causeACK    cause = 1 << 17 // acknowledge frame received
	causeMNG    cause = 1 << 18 // management event
	causeRXQ0   cause = 1 << 20 // 82574L: receive queue 0
	causeRXQ1   cause = 1 << 21 // 82574L: receive queue 1
	causeTXQ0   cause = 1 << 22 // 82574L: transmit queue 0
	causeTXQ1   cause = 1 << 23 // 82574L: transmit queue 1
	causeOTHER  cause = 1 << 24 // 82574L: any of the others, MSI-X
	causeINTA   cause = 1 << 31 // 82574L: the interrupt is asserted
	causeAll    cause = 0xffffffff

	// causesOther are the causes that the 82574L reports as OTHER, which clears none of them.
	causesOther = causeLSC | causeRXO | causeMDAC | causeSRPD | causeACK | causeMNG
)

func (v cause) String() string { return names(v, causeNames) }

var causeNames = []bitName[cause]{
	{causeTXDW, "TXDW"}, {causeTXQE, "TXQE"}, {causeLSC, "LSC"}, {causeRXSEQ, "RXSEQ"}, {causeRXDMT0, "RXDMT0"}, {causeRXO, "RXO"},
	{causeRXT0, "RXT0"}, {causeMDAC, "MDAC"}, {causeSRPD, "SRPD"}, {causeACK, "ACK"}, {causeMNG, "MNG"}, {causeRXQ0, "RXQ0"},
	{causeRXQ1, "RXQ1"}, {causeTXQ0, "TXQ0"}, {causeTXQ1, "TXQ1"}, {causeOTHER, "OTHER"}, {causeINTA, "INT_ASSERTED"},
}

// ivar is the value of IVAR: for each cause a vector and a bit that makes it valid.
type ivar uint32

const (
	ivarRXQ0  ivar = 0b1111 << 0
	ivarRXQ1  ivar = 0b1111 << 4
	ivarTXQ0  ivar = 0b1111 << 8
	ivarTXQ1  ivar = 0b1111 << 12
	ivarOTHER ivar = 0b1111 << 16
	ivarValid ivar = 0b1000 // in each of these fields
)

// The fields of the queues.
var (
	ivarRXQ = [maxQueues]ivar{ivarRXQ0, ivarRXQ1}
	ivarTXQ = [maxQueues]ivar{ivarTXQ0, ivarTXQ1}
)

// rctl is the value of RCTL.
type rctl uint32

const (
	rctlEN    rctl = 1 << 1     // receiver enabled
	rctlUPE   rctl = 1 << 3     // unicast promiscuous
	rctlMPE   rctl = 1 << 4     // multicast promiscuous
	rctlLPE   rctl = 1 << 5     // long packets
	rctlRDMTS rctl = 0b11 << 8  // threshold of RXDMT0: 0: a half, 1: a quarter, 2: an eighth
	rctlBAM   rctl = 1 << 15    // broadcasts accepted
	rctlBSIZE rctl = 0b11 << 16 // buffer size: 0: 2048 bytes
	rctlBSEX  rctl = 1 << 25    // buffer sizes 16 times as large
	rctlSECRC rctl = 1 << 26    // CRC stripped
)

func (v rctl) String() string { return names(v, rctlNames) }

var rctlNames = []bitName[rctl]{
	{rctlEN, "EN"}, {rctlUPE, "UPE"}, {rctlMPE, "MPE"}, {rctlLPE, "LPE"}, {rctlBAM, "BAM"}, {rctlBSEX, "BSEX"}, {rctlSECRC, "SECRC"},
}

// rxcsum is the value of RXCSUM.
type rxcsum uint32

const (
	rxcsumIPOFL rxcsum = 1 << 8  // IPv4 checksums verified
	rxcsumTUOFL rxcsum = 1 << 9  // TCP and UDP checksums verified
	rxcsumV6OFL rxcsum = 1 << 10 // 8254x: and those over IPv6
	rxcsumPCSD  rxcsum = 1 << 13 // 82574L: the RSS hash in place of the packet checksum
)

func (v rxcsum) String() string { return names(v, rxcsumNames) }

var rxcsumNames = []bitName[rxcsum]{{rxcsumIPOFL, "IPOFL"}, {rxcsumTUOFL, "TUOFL"}, {rxcsumV6OFL, "IPV6OFL"}, {rxcsumPCSD, "PCSD"}}

const rfctlEXTEN uint32 = 1 << 15 // RFCTL: extended receive descriptors

// mrqc is the value of MRQC.
type mrqc uint32

const (
	mrqcRSS     mrqc = 1 << 0  // receive side scaling
	mrqcTCPIPv4 mrqc = 1 << 16 // which fields are hashed
	mrqcIPv4    mrqc = 1 << 17
	mrqcTCPIPv6 mrqc = 1 << 18
	mrqcIPv6    mrqc = 1 << 20
)

func (v mrqc) String() string { return names(v, mrqcNames) }

var mrqcNames = []bitName[mrqc]{
	{mrqcRSS, "RSS"}, {mrqcTCPIPv4, "TCPIPV4"}, {mrqcIPv4, "IPV4"}, {mrqcTCPIPv6, "TCPIPV6"}, {mrqcIPv6, "IPV6"},
}

// tctl is the value of TCTL.
type tctl uint32

const (
	tctlEN   tctl = 1 << 1      // transmitter enabled
	tctlPSP  tctl = 1 << 3      // short packets padded
	tctlCT   tctl = 0xff << 4   // collision threshold
	tctlCOLD tctl = 0x3ff << 12 // collision distance, in byte times
	tctlRTLC tctl = 1 << 24     // retransmit on late collision
)

func (v tctl) String() string { return names(v, tctlNames) }

var tctlNames = []bitName[tctl]{{tctlEN, "EN"}, {tctlPSP, "PSP"}, {tctlRTLC, "RTLC"}}

// tipg is the value of TIPG.
type tipg uint32

const (
	tipgIPGT  tipg = 0x3ff << 0
	tipgIPGR1 tipg = 0x3ff << 10
	tipgIPGR2 tipg = 0x3ff << 20
)

// dctl is the value of TXDCTL and RXDCTL. A write-back threshold of 0 reports each
// descriptor at once.
type dctl uint32

const (
	dctlGRAN dctl = 1 << 24 // thresholds count descriptors, not cache lines
	dctlOne  dctl = 1 << 22 // 82574L: must be set in TXDCTL
)

func (v dctl) String() string { return names(v, dctlNames) }

var dctlNames = []bitName[dctl]{{dctlOne, "COUNT_DESC"}, {dctlGRAN, "GRAN"}}

const tarcEnable uint32 = 1 << 10 // 82574L: the queue takes part in arbitration

const rahAV uint32 = 1 << 31 // RAH: the address is valid

// bitName names a bit for String.
type bitName[T mask] struct {
	bit  T
	name string
}

// names is the named bits joined by "|", and what is left in hex.
func names[T mask](v T, table []bitName[T]) string {
	var s []string
	for _, n := range table {
		if v&n.bit != 0 {
			s = append(s, n.name)
			v &^= n.bit
		}
	}
	if v != 0 || len(s) == 0 {
		s = append(s, fmt.Sprintf("%#x", uint64(v)))
	}
	return strings.Join(s, "|")
}
