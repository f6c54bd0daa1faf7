package sim

import (
	"encoding/binary"
	"fmt"
	"net"
	"strconv"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

var nullModel = model{
	name: "null", about: "an 82574L that swallows what it is to send at once, and has more to receive than anybody takes: for measuring a driver alone",
	props: map[string]string{
		"mac": "station address (default 52:54:00:12:34:56 and up)",
		"aer": aerProp, "pme": pmeProp,
		"rx": "receive frames of that many bytes, from 60 to 2048: as many as there are descriptors for (default: none)",
	},
	make: newNull,
}

// Registers of an 82574L that null has a meaning for (Intel 317694, 10.2). The rest keep what
// is written.
const (
	nullCTRL    bus.Off = 0x0000 // Device Control
	nullSTATUS  bus.Off = 0x0008 // Device Status
	nullEECD    bus.Off = 0x0010 // EEPROM Control
	nullEERD    bus.Off = 0x0014 // EEPROM Read
	nullCTRLEXT bus.Off = 0x0018 // Extended Device Control
	nullMDIC    bus.Off = 0x0020 // MDI Control
	nullICR     bus.Off = 0x00c0 // Interrupt Cause Read
	nullICS     bus.Off = 0x00c8 // Interrupt Cause Set
	nullIMS     bus.Off = 0x00d0 // Interrupt Mask Set
	nullIMC     bus.Off = 0x00d8 // Interrupt Mask Clear
	nullEIAC    bus.Off = 0x00dc // Interrupt Auto Clear
	nullIAM     bus.Off = 0x00e0 // Interrupt Auto Mask
	nullIVAR    bus.Off = 0x00e4 // Interrupt Vector Allocation
	nullRCTL    bus.Off = 0x0100 // Receive Control
	nullTCTL    bus.Off = 0x0400 // Transmit Control
	nullRX      bus.Off = 0x2800 // the registers of receive queue 0, then queue 1's
	nullTX      bus.Off = 0x3800 // the registers of transmit queue 0, then queue 1's
	nullGPRC    bus.Off = 0x4074 // Good Packets Received
	nullGPTC    bus.Off = 0x4080 // Good Packets Transmitted
	nullGORCL   bus.Off = 0x4088 // Good Octets Received, low and high
	nullGORCH   bus.Off = 0x408c
	nullGOTCH   bus.Off = 0x4094 // Good Octets Transmitted, high: the end of what is counted here
	nullRFCTL   bus.Off = 0x5008 // Receive Filter Control
	nullRAL     bus.Off = 0x5400 // Receive Address 0, low
	nullRAH     bus.Off = 0x5404 // Receive Address 0, high

	nullQueues  = 2
	nullStride  = 0x100
	nullRegions = 128 << 10
	nullRegs    = 0x10000 // bytes of registers; above them nothing is

	ctrlMasterOff = 1 << 2  // of CTRL
	ctrlReset     = 1 << 26 // of CTRL
	statusUp      = 1<<0 | 1<<1 | 2<<6
	statusMaster  = 1 << 19
	eecdLoaded    = 1<<8 | 1<<9 // EEPROM present, content loaded
	ctrlExtEIAME  = 1 << 24
	mdicReady     = 1 << 28
	rctlEnable    = 1 << 1
	tctlEnable    = 1 << 1
	rfctlExtended = 1 << 15
	rahValid      = 1 << 31
	icrAsserted   = 1 << 31
	causeTXDW     = 1 << 0
	causeRXT0     = 1 << 7
	causeRXQ0     = 1 << 20
	causeTXQ0     = 1 << 22

	descSize  = 16
	descRS    = 1 << 27 // report status, in all kinds of transmit descriptors
	descEOP   = 1 << 24
	descDD    = 1 // of the status byte of a transmit descriptor
	rxDone    = 0b11
	eepromLen = 64
	eepromSum = 0xbaba
	maxNullRX = 2048
)

// nullRing is what a queue's registers say.
type nullRing struct {
	base       uint64
	n          uint32 // descriptors
	head, tail uint32
}

// null is an 82574L without a wire. A doorbell is done when the write returns.
type null struct {
	s      slot
	mac    [6]byte
	frame  []byte // what is received; nil: nothing
	regs   [nullRegs / 4]uint32
	eeprom [eepromLen]uint16

	icr, ims   uint32
	tx, rx     [nullQueues]nullRing
	gptc, gprc uint64
	gorc       uint64

	// written remembers buffers that hold the frame already, by address. A buffer that is pushed
	// out by another is written once more.
	written [1 << 13]uint64
}

func newNull(s slot, o options) (chip, header, error) {
	c := &null{s: s}
	c.mac = [6]byte{0x52, 0x54, 0x00, 0x12, 0x34, byte(0x56 + o.index)}
	if v, ok := o.props["mac"]; ok {
		m, err := net.ParseMAC(v)
		if err != nil || len(m) != 6 || m[0]&1 != 0 {
			return nil, header{}, fmt.Errorf("property mac=%s: want a unicast address of 6 bytes, for example 52:54:00:12:34:56", v)
		}
		c.mac = [6]byte(m)
	}
	if v, ok := o.props["rx"]; ok {
		n, err := strconv.Atoi(v)
		if err != nil || n < 60 || n > maxNullRX {
			return nil, header{}, fmt.Errorf("property rx=%s: want a length from 60 to %d bytes", v, maxNullRX)
		}
		c.frame = nullFrame(c.mac, n)
	}
	for i := range 3 {
		c.eeprom[i] = binary.LittleEndian.Uint16(c.mac[2*i:])
	}
	sum := uint16(0)
	for _, w := range c.eeprom {
		sum += w
	}
	c.eeprom[eepromLen-1] = eepromSum - sum
	return c, header{
		id:   pci.FunctionID{Vendor: 0x8086, Device: 0x10d3, SubVendor: 0x8086, SubDevice: 0xa01f, Class: 0x020000},
		pcie: true, flr: true, intx: true, msi: 1, msix: 5, msixBAR: 3,
		regions: []bus.RegionInfo{{Index: 0, Size: nullRegions}, {Index: 3, Size: 16 << 10}},
		widths:  map[int]int{0: 4},
	}, nil
}

// nullFrame is an Ethernet frame of an experimental type to the station.
func nullFrame(mac [6]byte, n int) []byte {
	f := make([]byte, n)
	copy(f, mac[:])
	copy(f[6:], []byte{0x02, 0, 0, 0, 0, 0x01, 0x88, 0xb5})
	for i := 14; i < n; i++ {
		f[i] = byte(i)
	}
	return f
}

func (c *null) reset() {
	clear(c.regs[:])
	clear(c.written[:])
	c.icr, c.ims, c.gptc, c.gprc, c.gorc = 0, 0, 0, 0, 0
	c.tx, c.rx = [nullQueues]nullRing{}, [nullQueues]nullRing{}
	c.regs[nullRAL/4] = binary.LittleEndian.Uint32(c.mac[:])
	c.regs[nullRAH/4] = rahValid | uint32(binary.LittleEndian.Uint16(c.mac[4:]))
	c.s.line(false)
}

// queue finds the registers of a queue.
func (c *null) queue(off bus.Off) (r *nullRing, q int, reg bus.Off) {
	for q = range nullQueues {
		at := bus.Off(nullStride * q)
		switch {
		case off >= nullRX+at && off < nullRX+at+0x20:
			return &c.rx[q], q, off - at
		case off >= nullTX+at && off < nullTX+at+0x20:
			return &c.tx[q], q, off - at
		}
	}
	return nil, 0, 0
}

func (c *null) read(_ int, off bus.Off, _ int) uint64 {
	if off >= nullRegs {
		return 0
	}
	if r, _, reg := c.queue(off); r != nil {
		switch reg & 0x1f {
		case 0x10:
			return uint64(r.head)
		case 0x18:
			return uint64(r.tail)
		}
	}
	take := func(v *uint64) uint64 {
		x := *v & 0xffffffff
		*v = 0
		return x
	}
	switch off {
	case nullSTATUS:
		v := uint64(statusUp)
		if c.regs[nullCTRL/4]&ctrlMasterOff == 0 {
			v |= statusMaster
		}
		return v
	case nullEECD:
		return eecdLoaded
	case nullICR:
		return uint64(c.readICR())
	case nullICS, nullIMC:
		return 0
	case nullIMS:
		return uint64(c.ims)
	case nullGPRC:
		return take(&c.gprc)
	case nullGPTC:
		return take(&c.gptc)
	case nullGORCL:
		return c.gorc & 0xffffffff
	case nullGORCH:
		v := c.gorc >> 32
		c.gorc = 0
		return v
	}
	return uint64(c.regs[off/4])
}

func (c *null) write(_ int, off bus.Off, _ int, x uint64) {
	v := uint32(x)
	// The doorbells first: the rest may take its time.
	switch off {
	case nullTX + 0x18:
		c.transmit(0, v)
		return
	case nullRX + 0x18:
		c.post(0, v)
		return
	}
	if off >= nullRegs {
		return
	}
	c.regs[off/4] = v
	if r, q, reg := c.queue(off); r != nil {
		c.writeQueue(r, q, reg, v)
		return
	}
	switch off {
	case nullCTRL:
		if v&ctrlReset != 0 {
			c.reset()
		}
	case nullEERD:
		if v&1 != 0 {
			c.regs[nullEERD/4] = v&0xfffc | 1<<1 | uint32(c.eeprom[v>>2&(eepromLen-1)])<<16
		}
	case nullMDIC:
		c.regs[nullMDIC/4] = v&^0xffff | mdicReady | nullPHY(v>>16&0x1f)
	case nullICR:
		c.icr &^= v
		c.interrupt(0)
	case nullICS:
		c.interrupt(v)
	case nullIMS:
		c.ims |= v
		c.interrupt(c.icr & v)
	case nullIMC:
		c.ims &^= v
		c.interrupt(0)
	case nullRCTL:
		if v&rctlEnable != 0 {
			clear(c.written[:])
			for q := range c.rx {
				c.post(q, c.rx[q].tail)
			}
		}
	}
}

func (c *null) writeQueue(r *nullRing, q int, reg bus.Off, v uint32) {
	switch reg & 0x1f {
	case 0x00:
		r.base = r.base&^0xffffffff | uint64(v&^0xf)
	case 0x04:
		r.base = r.base&0xffffffff | uint64(v)<<32
	case 0x08:
		r.n = v & 0xfff80 / descSize
	case 0x10:
		r.head = v & 0xffff
	case 0x18:
		if reg < nullTX {
			c.post(q, v)
		} else {
			c.transmit(q, v)
		}
	}
}

// nullPHY is a register of a PHY that has agreed on 1000 Mb/s (IEEE 802.3, 22.2.4).
func nullPHY(reg uint32) uint32 {
	return map[uint32]uint32{0: 0x1140, 1: 0x796d, 2: 0x0141, 3: 0x0cb1, 4: 0x01e1, 5: 0x45e1, 6: 1, 9: 0x0300, 10: 0x3c00, 15: 0x3000, 17: 0xac08}[reg]
}

// transmit is the doorbell: all descriptors up to tail are done. Only those that ask for it are
// told so.
func (c *null) transmit(q int, tail uint32) {
	r := &c.tx[q]
	r.tail = tail
	if tail >= r.n || r.head >= r.n || c.regs[nullTCTL/4]&tctlEnable == 0 || tail == r.head {
		return
	}
	ring := c.s.mem(bus.IOVA(r.base), int(r.n)*descSize)
	if ring == nil {
		return
	}
	sent, reported := uint64(0), uint64(0)
	sweep := func(from, to uint32) {
		for d := ring[from*descSize : to*descSize]; len(d) >= descSize; d = d[descSize:] {
			v := binary.LittleEndian.Uint64(d[8:16])
			sent += v >> 24 & 1
			if v&descRS != 0 {
				d[12] |= descDD
				reported = 1
			}
		}
		c.s.wrote(bus.IOVA(r.base)+bus.IOVA(from)*descSize, ring[from*descSize:to*descSize])
	}
	if tail < r.head {
		sweep(r.head, r.n)
		r.head = 0
	}
	sweep(r.head, tail)
	r.head = tail
	c.gptc += sent
	if reported != 0 {
		c.interrupt(causeTXDW | causeTXQ0<<q)
	}
}

// post is the doorbell of a receive queue: all buffers up to tail are filled.
func (c *null) post(q int, tail uint32) {
	r := &c.rx[q]
	r.tail = tail
	if c.frame == nil || tail >= r.n || r.head >= r.n || c.regs[nullRCTL/4]&rctlEnable == 0 || tail == r.head {
		return
	}
	ring := c.s.mem(bus.IOVA(r.base), int(r.n)*descSize)
	if ring == nil {
		return
	}
	n := uint64(len(c.frame))
	word0, word1 := uint64(0), n|rxDone<<32
	extended := c.regs[nullRFCTL/4]&rfctlExtended != 0
	if extended {
		word1 = n<<32 | rxDone
	}
	count := uint64(0)
	sweep := func(from, to uint32) {
		count += uint64(to - from)
		for d := ring[from*descSize : to*descSize]; len(d) >= descSize; d = d[descSize:] {
			a := binary.LittleEndian.Uint64(d)
			if at := &c.written[a>>6%uint64(len(c.written))]; *at != a {
				*at = a
				c.s.writeMem(bus.IOVA(a), c.frame)
			}
			if extended {
				binary.LittleEndian.PutUint64(d, word0)
			}
			binary.LittleEndian.PutUint64(d[8:16], word1)
		}
		c.s.wrote(bus.IOVA(r.base)+bus.IOVA(from)*descSize, ring[from*descSize:to*descSize])
	}
	if tail < r.head {
		sweep(r.head, r.n)
		r.head = 0
	}
	sweep(r.head, tail)
	r.head = tail
	c.gprc += count
	c.gorc += count * (n + 4)
	c.interrupt(causeRXT0 | causeRXQ0<<q)
}

// readICR reads the causes, which clears them if nothing is unmasked or the interrupt is
// asserted, 10.2.4.1.
func (c *null) readICR() uint32 {
	v := c.icr
	if c.icr&c.ims != 0 {
		v |= icrAsserted
	}
	if v&icrAsserted != 0 || c.ims == 0 {
		c.icr = 0
		c.interrupt(0)
	}
	return v
}

// interrupt adds causes, and sends what is unmasked of them.
func (c *null) interrupt(cause uint32) {
	c.icr |= cause
	fire := cause & c.ims
	if fire == 0 && c.icr&c.ims != 0 && cause == 0 {
		return // as it was
	}
	switch c.s.mode() {
	case bus.MSIX:
		if fire != 0 {
			c.vectors(fire)
		}
	case bus.MSI:
		if fire != 0 {
			c.s.msi(0)
		}
	default:
		c.s.line(c.icr&c.ims != 0)
	}
}

// vectors sends the messages of MSI-X causes, which clear and mask themselves as EIAC and IAM
// say, 7.4.
func (c *null) vectors(fire uint32) {
	ivar := c.regs[nullIVAR/4]
	for i := range 5 {
		cause := uint32(causeRXQ0) << i
		v := ivar >> (4 * i) & 0xf
		if fire&cause == 0 || v&8 == 0 {
			continue
		}
		c.icr &^= c.regs[nullEIAC/4] & cause
		if c.regs[nullCTRLEXT/4]&ctrlExtEIAME != 0 {
			c.ims &^= c.regs[nullIAM/4] & cause
		}
		c.s.msix(int(v & 7))
	}
}
