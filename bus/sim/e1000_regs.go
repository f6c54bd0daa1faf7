package sim

import "github.com/ring3dev/ring3/bus"

// Registers of the gigabit controllers: offsets in region 0. Section numbers without a name are of
// the SDM, those with "82574L" of that chip's datasheet; e1000.go has the titles.
const (
	e1CTRL     = 0x0000 // Device Control, 13.4.1
	e1CTRLDup  = 0x0004 // the same once more
	e1STATUS   = 0x0008 // Device Status, 13.4.2
	e1EECD     = 0x0010 // EEPROM Control and Data, 13.4.3
	e1EERD     = 0x0014 // EEPROM Read, 13.4.4
	e1CTRLEXT  = 0x0018 // Extended Device Control, 13.4.6
	e1FLA      = 0x001c // Flash Access
	e1MDIC     = 0x0020 // MDI Control
	e1FCAL     = 0x0028 // Flow Control Address Low, 13.4.9
	e1FCAH     = 0x002c // Flow Control Address High, 13.4.10
	e1FCT      = 0x0030 // Flow Control Type, 13.4.11
	e1VET      = 0x0038 // VLAN Ether Type
	e1ICR      = 0x00c0 // Interrupt Cause Read, 13.4.17
	e1ITR      = 0x00c4 // Interrupt Throttling, 13.4.18
	e1ICS      = 0x00c8 // Interrupt Cause Set, 13.4.19
	e1IMS      = 0x00d0 // Interrupt Mask Set and Read, 13.4.20
	e1IMC      = 0x00d8 // Interrupt Mask Clear, 13.4.21
	e1EIAC     = 0x00dc // Interrupt Auto Clear, 82574L 10.2.4
	e1IAM      = 0x00e0 // Interrupt Acknowledge Auto-Mask, 82574L 10.2.4
	e1IVAR     = 0x00e4 // Interrupt Vector Allocation, 82574L 10.2.4
	e1EITR     = 0x00e8 // Extended Interrupt Throttle, of five vectors, 82574L 10.2.4
	e1RCTL     = 0x0100 // Receive Control, 13.4.22
	e1FCTTV    = 0x0170 // Flow Control Transmit Timer Value, 13.4.12
	e1TCTL     = 0x0400 // Transmit Control, 13.4.33
	e1TIPG     = 0x0410 // Transmit Inter-Packet Gap, 13.4.34
	e1AIT      = 0x0458 // Adaptive Inter-Frame Spacing
	e1LEDCTL   = 0x0e00 // LED Control
	e1EXTCNF   = 0x0f00 // Extended Configuration Control, 82574L: who owns the PHY
	e1PBA      = 0x1000 // Packet Buffer Allocation
	e1EEMNGCTL = 0x1010 // Management EEPROM Control, 82574L
	e1EEWR     = 0x102c // EEPROM Write, 82574L
	e1FCRTL    = 0x2160 // Flow Control Receive Threshold Low, 13.4.23
	e1FCRTH    = 0x2168 // Flow Control Receive Threshold High, 13.4.24
	e1PSRCTL   = 0x2170 // Packet Split Receive Control, 82574L 10.2.5
	e1RXQ      = 0x2800 // a receive queue: RDBAL and what follows, 13.4.25
	e1RDTR     = 0x2820 // Receive Delay Timer, 13.4.30
	e1RXDCTL   = 0x2828 // Receive Descriptor Control, 13.4.32
	e1RADV     = 0x282c // Receive Absolute Delay Timer, 13.4.31
	e1RSRPD    = 0x2c00 // Receive Small Packet Detect
	e1RAID     = 0x2c08 // Receive Ack Interrupt Delay, 82574L 10.2.5
	e1TXQ      = 0x3800 // a transmit queue: TDBAL and what follows, 13.4.36
	e1TIDV     = 0x3820 // Transmit Interrupt Delay, 13.4.41
	e1TXDCTL   = 0x3828 // Transmit Descriptor Control, 13.4.43
	e1TADV     = 0x382c // Transmit Absolute Delay, 13.4.44
	e1TSPMT    = 0x3830 // TCP Segmentation Pad and Minimum Threshold
	e1TARC     = 0x3840 // Transmit Arbitration Counter, 82574L 10.2.6
	e1RXCSUM   = 0x5000 // Receive Checksum Control, 13.4.47
	e1RFCTL    = 0x5008 // Receive Filter Control, 82574L 10.2.5
	e1MTA      = 0x5200 // Multicast Table Array, 128 words, 13.5.1
	e1RA       = 0x5400 // Receive Address, 16 pairs, 13.5.2
	e1VFTA     = 0x5600 // VLAN Filter Table Array, 128 words, 13.5
	e1WUC      = 0x5800 // Wake Up Control
	e1WUFC     = 0x5808 // Wake Up Filter Control
	e1MRQC     = 0x5818 // Multiple Receive Queues Command, 82574L 10.2.5
	e1MANC     = 0x5820 // Management Control
	e1GCR      = 0x5b00 // 3GIO Control, 82574L
	e1SWSM     = 0x5b50 // Software Semaphore, 82574L
	e1GCR2     = 0x5b64 // 3GIO Control 2, 82574L
	e1PBACLR   = 0x5b68 // MSI-X PBA Clear, 82574L 10.2.4
	e1RETA     = 0x5c00 // Redirection Table, 32 words, 82574L 10.2.5
	e1RSSRK    = 0x5c80 // RSS Random Key, 10 words, 82574L 10.2.5

	e1Space  = 0x20000
	e1Queue2 = 0x100 // from the registers of queue 0 to those of queue 1
)

// Registers of a queue, from its first one.
const (
	e1QBAL = 0x00
	e1QBAH = 0x04
	e1QLEN = 0x08
	e1QH   = 0x10
	e1QT   = 0x18
)

// Statistics registers, 13.7. All clear when read; of a pair, reading the high one clears both.
const (
	e1Stats   = 0x4000 // the first
	e1MPC     = 0x4010
	e1XONRXC  = 0x4048
	e1XONTXC  = 0x404c
	e1XOFFRXC = 0x4050
	e1XOFFTXC = 0x4054
	e1FCRUC   = 0x4058
	e1PRC64   = 0x405c // and five for longer frames
	e1GPRC    = 0x4074
	e1BPRC    = 0x4078
	e1MPRC    = 0x407c
	e1GPTC    = 0x4080
	e1GORC    = 0x4088 // pair
	e1GOTC    = 0x4090 // pair
	e1RNBC    = 0x40a0
	e1RUC     = 0x40a4
	e1ROC     = 0x40ac
	e1TOR     = 0x40c0 // pair
	e1TOT     = 0x40c8 // pair
	e1TPR     = 0x40d0
	e1TPT     = 0x40d4
	e1PTC64   = 0x40d8 // and five for longer frames
	e1MPTC    = 0x40f0
	e1BPTC    = 0x40f4
	e1TSCTC   = 0x40f8
	e1TSCTFC  = 0x40fc
	e1IAC     = 0x4100 // 82574L
	e1StatEnd = 0x4128
)

// Bits of CTRL, STATUS, CTRL_EXT and EECD.
const (
	e1CtrlFD      = 1 << 0
	e1CtrlGIODis  = 1 << 2
	e1CtrlSLU     = 1 << 6
	e1CtrlSpeed   = 3 << 8
	e1CtrlFRCSPD  = 1 << 11
	e1CtrlFRCDPX  = 1 << 12
	e1CtrlRST     = 1 << 26
	e1CtrlRFCE    = 1 << 27
	e1CtrlTFCE    = 1 << 28
	e1CtrlVME     = 1 << 30
	e1CtrlPHYRST  = 1 << 31
	e1StatFD      = 1 << 0
	e1StatLU      = 1 << 1
	e1StatTXOFF   = 1 << 4
	e1StatPHYRA   = 1 << 10
	e1StatGIO     = 1 << 19
	e1ExtEERST    = 1 << 13
	e1ExtEIAME    = 1 << 24
	e1ExtIAME     = 1 << 27
	e1ExtPBACLR   = 1 << 31
	e1EECDsk      = 1 << 0
	e1EECDcs      = 1 << 1
	e1EECDdi      = 1 << 2
	e1EECDdo      = 1 << 3
	e1EECDreq     = 1 << 6
	e1EECDgnt     = 1 << 7
	e1EECDpres    = 1 << 8
	e1EECDautoRD  = 1 << 9
	e1EECDsizeEx  = 0xf << 11
	e1MngCfgDone  = 1 << 18
	e1MDICwrite   = 1 << 26
	e1MDICread    = 1 << 27
	e1MDICready   = 1 << 28
	e1MDICirq     = 1 << 29
	e1MDICerror   = 1 << 30
	e1TarcEnable  = 1 << 10
	e1RCTLen      = 1 << 1
	e1RCTLupe     = 1 << 3
	e1RCTLmpe     = 1 << 4
	e1RCTLlpe     = 1 << 5
	e1RCTLlbm     = 3 << 6
	e1RCTLbam     = 1 << 15
	e1RCTLvfe     = 1 << 18
	e1RCTLcfien   = 1 << 19
	e1RCTLcfi     = 1 << 20
	e1RCTLdpf     = 1 << 22
	e1RCTLpmcf    = 1 << 23
	e1RCTLbsex    = 1 << 25
	e1RCTLsecrc   = 1 << 26
	e1TCTLen      = 1 << 1
	e1TCTLpsp     = 1 << 3
	e1TCTLswxoff  = 1 << 22
	e1CsumIP      = 1 << 8
	e1CsumTU      = 1 << 9
	e1CsumV6      = 1 << 10 // 8254x only
	e1CsumPCSD    = 1 << 13
	e1RFNoACK     = 1 << 12
	e1RFACKNoData = 1 << 13
	e1RFNoV6      = 1 << 10
	e1RFNoV6Sum   = 1 << 11
	e1RFExten     = 1 << 15
	e1RFNoV6Ex    = 1 << 16
	e1FCXONE      = 1 << 31
	e1DelayFlush  = 1 << 31 // RDTR and TIDV: what is delayed fires now
)

// Interrupt causes, 13.4.17 and 82574L 10.2.4.
const (
	e1TXDW   = 1 << 0
	e1TXQE   = 1 << 1
	e1LSC    = 1 << 2
	e1RXDMT  = 1 << 4
	e1RXO    = 1 << 6
	e1RXT    = 1 << 7
	e1MDAC   = 1 << 9
	e1SRPD   = 1 << 16
	e1ACK    = 1 << 17
	e1MNG    = 1 << 18
	e1RXQ0   = 1 << 20
	e1TXQ0   = 1 << 22
	e1OTHER  = 1 << 24
	e1INTA   = 1 << 31
	e1Queues = 0xf << 20
	// e1Others are what OTHER stands for with MSI-X.
	e1Others = e1LSC | e1RXO | e1MDAC | e1SRPD | e1ACK | e1MNG
)

// How a register takes an access.
const (
	e1No   uint8 = iota // there is none: reads 0, and writes go nowhere
	e1RW                // read and write
	e1RO                // read only
	e1Stat              // a statistic: cleared by reading
	e1Call              // more than that: see read and write
)

// e1Map says for each 32-bit register of a chip how it takes an access.
type e1Map [e1Space / 4]uint8

func (m *e1Map) set(kind uint8, offs ...int) {
	for _, o := range offs {
		m[o/4] = kind
	}
}

func (m *e1Map) array(kind uint8, off, n int) {
	for i := range n {
		m[off/4+i] = kind
	}
}

func newE1Map(pcie bool) *e1Map {
	m := &e1Map{}
	m.set(e1RW, e1FLA, e1FCAL, e1TIPG, e1AIT, e1LEDCTL, e1RXDCTL, e1TXDCTL, e1TSPMT, e1RXCSUM, e1WUC, e1WUFC, e1MANC)
	m.set(e1Call, e1CTRL, e1CTRLDup, e1STATUS, e1EECD, e1EERD, e1CTRLEXT, e1MDIC, e1FCAH, e1FCT, e1VET,
		e1ICR, e1ITR, e1ICS, e1IMS, e1IMC, e1RCTL, e1FCTTV, e1TCTL, e1PBA, e1FCRTL, e1FCRTH,
		e1RDTR, e1RADV, e1RSRPD, e1TIDV, e1TADV)
	m.array(e1Stat, e1Stats, (e1StatEnd-e1Stats)/4)
	m.array(e1RW, e1MTA, 128)
	m.array(e1RW, e1RA, 32)
	m.array(e1RW, e1VFTA, 128)
	queues := 1
	if pcie {
		queues = 2
		m.set(e1RW, e1IAM, e1EIAC, e1IVAR, e1PSRCTL, e1RFCTL, e1MRQC, e1GCR, e1GCR2, e1TARC, e1TARC+e1Queue2,
			e1RXDCTL+e1Queue2, e1TXDCTL+e1Queue2)
		m.set(e1RO, e1EEMNGCTL)
		m.set(e1Call, e1EXTCNF, e1EEWR, e1RAID, e1SWSM, e1PBACLR)
		m.array(e1Call, e1EITR, e1Vectors)
		m.array(e1RW, e1RETA, 32)
		m.array(e1RW, e1RSSRK, 10)
	}
	for q := range queues {
		for _, base := range []int{e1RXQ, e1TXQ} {
			base += q * e1Queue2
			m.set(e1RW, base+e1QBAH)
			m.set(e1Call, base+e1QBAL, base+e1QLEN, base+e1QH, base+e1QT)
		}
	}
	return m
}

// r is a register's value.
func (c *e1000) r(off bus.Off) uint32 { return c.reg[off/4] }

// setR stores it, without doing what a write does.
func (c *e1000) setR(off bus.Off, v uint32) { c.reg[off/4] = v }

// on says whether any of the bits is set.
func (c *e1000) on(off bus.Off, bits uint32) bool { return c.reg[off/4]&bits != 0 }
