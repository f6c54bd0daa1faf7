package sim

import (
	"encoding/binary"
	"fmt"
	"net"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// The gigabit controllers, as Intel's "PCI/PCI-X Family of Gigabit Ethernet Controllers Software
// Developer's Manual" (317453, the SDM) and "82574 GbE Controller Family Datasheet" (317694)
// describe them.
//
// What takes time: the delays and intervals of interrupts, pauses, and negotiating the link.
// Everything else is done when it is asked for: a write of a tail register sends all frames that it
// publishes, and each is in the far end's memory before the next. A frame for which there is
// no descriptor waits in the packet buffer, whose size is PBA's, and is missed (MPC, RXO) when that
// is full too.
//
// What is left out: early receive, packet split, jumbo-frame FIFOs, wake-up, management, timestamps,
// half duplex and its collisions, the flash (there is an empty region), writing the EEPROM by
// single bits, the PHY's registers beyond those of IEEE 802.3.

// e1Chip is what differs between the chips.
type e1Chip struct {
	id     pci.FunctionID
	pcie   bool   // 82574L: PCI Express, MSI and MSI-X, two queues each way, extended descriptors
	phyID  uint16 // second word of the PHY's identification
	pba    uint32 // packet buffer: receive part, KiB, and transmit part
	valid  uint32 // causes that IMS takes
	regs   *e1Map
	name   string
	eeDone uint32 // EERD: done, and where the address begins
	eeAddr int
}

// e1Vectors is how many MSI-X vectors the 82574L has.
const e1Vectors = 5

const (
	classEthernet = 0x020000
	vendorIntel   = 0x8086
)

var (
	e1Map8254x = newE1Map(false)
	e1Map82574 = newE1Map(true)

	e1Chip82540 = e1Chip{
		name: "82540EM", id: pci.FunctionID{Vendor: vendorIntel, Device: 0x100e, SubVendor: vendorIntel, SubDevice: 0x001e, Class: classEthernet, Revision: 2},
		phyID: 0x0c20, pba: 16<<16 | 48, valid: 0x1ffff, regs: e1Map8254x, eeDone: 1 << 4, eeAddr: 8,
	}
	e1Chip82545 = e1Chip{
		name: "82545EM", id: pci.FunctionID{Vendor: vendorIntel, Device: 0x100f, SubVendor: vendorIntel, SubDevice: 0x1001, Class: classEthernet, Revision: 1},
		phyID: 0x0c20, pba: 16<<16 | 48, valid: 0x1ffff, regs: e1Map8254x, eeDone: 1 << 4, eeAddr: 8,
	}
	e1Chip82574 = e1Chip{
		name: "82574L", id: pci.FunctionID{Vendor: vendorIntel, Device: 0x10d3, SubVendor: vendorIntel, SubDevice: 0xa01f, Class: classEthernet},
		pcie: true, phyID: 0x0cb1, pba: 20<<16 | 20, valid: 0x01f782d7, regs: e1Map82574, eeDone: 1 << 1, eeAddr: 2,
	}
)

// header is the chip's config space.
func (m *e1Chip) header() header {
	h := header{
		id: m.id, intx: true,
		regions: []bus.RegionInfo{{Index: 0, Size: e1Space}, {Index: 1, Kind: bus.RegionIO, Size: 64}},
		widths:  map[int]int{0: 4, 1: 4},
	}
	if m.pcie {
		h.pcie, h.msi, h.msix, h.msixBAR = true, 1, e1Vectors, 3
		h.regions = []bus.RegionInfo{{Index: 0, Size: e1Space}, {Index: 1, Size: e1Space}, {Index: 2, Kind: bus.RegionIO, Size: 32}, {Index: 3, Size: 16 << 10}}
		h.widths = map[int]int{0: 4, 1: 1 | 2 | 4, 2: 4, 3: 4 | 8}
	}
	return h
}

// e1Props are the properties of each of these models.
var e1Props = map[string]string{"mac": "station address in the EEPROM (default 52:54:00:12:34:56 and up)"}

// e1ExpressProps are those of the 82574L.
var e1ExpressProps = map[string]string{"mac": e1Props["mac"], "aer": aerProp, "pme": pmeProp}

func e1Model(name string, variant *e1Chip, about string, aliases ...string) model {
	props := e1Props
	if variant.pcie {
		props = e1ExpressProps
	}
	return model{
		name: name, aliases: aliases, about: about, net: true, props: props,
		make: func(s slot, o options) (chip, header, error) {
			mac := [6]byte{0x52, 0x54, 0x00, 0x12, 0x34, byte(0x56 + o.index)}
			if v, ok := o.props["mac"]; ok {
				a, err := net.ParseMAC(v)
				if err != nil || len(a) != 6 || a[0]&1 != 0 || [6]byte(a) == [6]byte{} {
					return nil, header{}, fmt.Errorf("mac=%s: want a unicast address of 6 bytes, for example 52:54:00:12:34:56", v)
				}
				mac = [6]byte(a)
			}
			return newE1000(variant, s, mac), variant.header(), nil
		},
	}
}

var (
	e1000Model   = e1Model("e1000", &e1Chip82540, "Intel 82540EM, PCI gigabit Ethernet", "e1000-82540em")
	e1000EMModel = e1Model("e1000-82545em", &e1Chip82545, "Intel 82545EM, PCI-X gigabit Ethernet")
	e1000eModel  = e1Model("e1000e", &e1Chip82574, "Intel 82574L, PCI Express gigabit Ethernet")
)

// e1000 is one controller; netChip.
type e1000 struct {
	s   slot
	m   *e1Chip
	mac [6]byte // in the EEPROM
	reg [e1Space / 4]uint32

	ee     [e1EEWords]uint16
	eebits microwire
	phy    [32]uint16
	cable  bool   // is plugged in
	ioaddr uint32 // I/O space: the register that IODATA is

	irq e1IRQ
	tx  e1Tx
	rx  e1Rx
	fc  e1Flow

	negotiate *timer
}

func newE1000(m *e1Chip, s slot, mac [6]byte) *e1000 {
	c := &e1000{s: s, m: m, mac: mac, cable: true}
	c.loadEEPROM()
	c.rx.fifo = make([]byte, 2*e1FIFOMax)
	c.tx.buf = make([]byte, e1TxBuf)
	c.makeTimers()
	c.resetPHY()
	return c
}

// idle makes a timer that is stopped.
func (c *e1000) idle(f func()) *timer {
	t := c.s.after(0, f)
	t.stop()
	return t
}

func (c *e1000) makeTimers() {
	c.negotiate = c.idle(c.negotiated)
	c.fc.resume = c.idle(c.pauseOver)
	c.tx.again = c.idle(c.transmitAll)
	c.irq.rdtr, c.irq.radv, c.irq.raid = c.idle(c.flushDelayed), c.idle(c.flushDelayed), c.idle(c.flushDelayed)
	c.irq.tidv, c.irq.tadv = c.idle(c.flushDelayed), c.idle(c.flushDelayed)
	c.irq.itr.t = c.idle(func() { c.itrOver() })
	for i := range c.irq.eitr {
		c.irq.eitr[i].t = c.idle(func() { c.eitrOver(i) })
	}
}

// reset is power-on: the MAC and the PHY.
func (c *e1000) reset() {
	c.resetPHY()
	c.resetMAC()
}

// resetMAC is CTRL.RST, 14.3: all registers, but not the PHY.
func (c *e1000) resetMAC() {
	clear(c.reg[:])
	for _, t := range []*timer{c.fc.resume, c.irq.rdtr, c.irq.radv, c.irq.raid, c.irq.tidv, c.irq.tadv, c.irq.itr.t} {
		t.stop()
	}
	for i := range c.irq.eitr {
		c.irq.eitr[i].t.stop()
		c.irq.eitr[i].waits = false
	}
	c.irq.itr.waits, c.irq.delayed, c.irq.told = false, 0, 0
	c.tx.reset()
	c.rx.reset()
	c.fc = e1Flow{resume: c.fc.resume}
	c.eebits = microwire{}

	c.setR(e1CTRL, 1<<20|1<<18|2<<8|e1CtrlSLU|e1CtrlFD)
	c.setR(e1VET, 0x8100)
	c.setR(e1PBA, c.m.pba)
	c.setR(e1LEDCTL, 0x07068302)
	c.setR(e1MDIC, e1MDICready)
	c.setR(e1TIPG, 0x00602008)
	if c.m.pcie {
		c.setR(e1EECD, e1EECDpres|e1EECDautoRD|2<<11)
		c.setR(e1EEMNGCTL, e1MngCfgDone|1<<31)
		c.setR(e1TARC, 3|e1TarcEnable)
		c.setR(e1TARC+e1Queue2, 3|e1TarcEnable)
		c.setR(e1TXDCTL, 1<<22)
		c.setR(e1TXDCTL+e1Queue2, 1<<22)
	} else {
		c.setR(e1EECD, e1EECDpres)
	}
	c.loadMAC()
	c.irq.high = false
	c.s.line(false)
}

// loadMAC is what the EEPROM's load gives to the address filter.
func (c *e1000) loadMAC() {
	c.setR(e1RA, binary.LittleEndian.Uint32(c.mac[0:4]))
	c.setR(e1RA+4, uint32(binary.LittleEndian.Uint16(c.mac[4:6]))|1<<31)
}

func (c *e1000) read(region int, off bus.Off, width int) uint64 {
	switch {
	case region == 0 && off < e1Space && width == 4:
		return uint64(c.load(off &^ 3))
	case c.isIO(region) && width == 4:
		switch off { // IOADDR, IODATA
		case 0:
			return uint64(c.ioaddr)
		case 4:
			if c.ioaddr < e1Space {
				return uint64(c.load(bus.Off(c.ioaddr) &^ 3))
			}
		}
		return 0
	}
	return ^uint64(0) // an empty flash
}

func (c *e1000) write(region int, off bus.Off, width int, v uint64) {
	switch {
	case region == 0 && off < e1Space && width == 4:
		c.store(off&^3, uint32(v))
	case c.isIO(region) && width == 4 && off == 0:
		c.ioaddr = uint32(v)
	case c.isIO(region) && width == 4 && off == 4 && c.ioaddr < e1Space:
		c.store(bus.Off(c.ioaddr)&^3, uint32(v))
	}
}

// isIO says whether a region is the window in I/O space.
func (c *e1000) isIO(region int) bool { return c.m.pcie && region == 2 || !c.m.pcie && region == 1 }

// load is a read of a register.
func (c *e1000) load(off bus.Off) uint32 {
	switch c.m.regs[off/4] {
	case e1RW, e1RO:
		return c.r(off)
	case e1Stat:
		return c.readStat(off)
	case e1Call:
	default:
		return 0
	}
	switch off {
	case e1CTRLDup:
		return c.r(e1CTRL)
	case e1STATUS:
		return c.status()
	case e1EECD:
		return c.readEECD()
	case e1ICR:
		return c.readICR()
	case e1ICS:
		return c.r(e1ICR)
	case e1IMC:
		return 0
	case e1SWSM: // reading takes the semaphore
		v := c.r(off)
		c.setR(off, v|1)
		return v
	}
	return c.r(off)
}

// store is a write of a register.
func (c *e1000) store(off bus.Off, v uint32) {
	switch c.m.regs[off/4] {
	case e1RW:
		c.setR(off, v)
	case e1Call:
		switch {
		case off >= e1RXQ && off < e1RXQ+2*e1Queue2 && (off-e1RXQ)%e1Queue2 < 0x20, off >= e1TXQ && off < e1TXQ+2*e1Queue2 && (off-e1TXQ)%e1Queue2 < 0x20:
			c.storeQueue(off, v)
		default:
			c.storeCall(off, v)
		}
	}
}

// storeQueue is a write of a queue's register.
func (c *e1000) storeQueue(off bus.Off, v uint32) {
	q := int(off / e1Queue2 % 2)
	tx := off >= e1TXQ
	switch off % e1Queue2 {
	case e1QBAL:
		c.setR(off, v&^15)
	case e1QLEN:
		c.setR(off, v&0xfff80)
	case e1QH:
		c.setR(off, v&0xffff)
	case e1QT:
		c.setR(off, v&0xffff)
		if tx {
			c.transmit(q)
		} else {
			c.drain()
		}
	}
}

// storeCall is a write that does something, or does not keep all bits.
func (c *e1000) storeCall(off bus.Off, v uint32) {
	switch off {
	case e1CTRL, e1CTRLDup:
		c.setCTRL(v)
	case e1STATUS:
		if v&e1StatPHYRA == 0 {
			c.setR(off, c.r(off)&^e1StatPHYRA)
		}
	case e1EECD:
		c.setEECD(v)
	case e1EERD:
		c.readWord(v)
	case e1EEWR:
		c.writeWord(v)
	case e1CTRLEXT:
		if v&e1ExtEERST != 0 {
			c.loadMAC()
		}
		c.setR(off, v&^(e1ExtEERST|1<<12))
	case e1MDIC:
		c.setMDIC(v)
	case e1FCAH, e1FCT, e1VET, e1FCTTV, e1RADV, e1TADV, e1RAID:
		c.setR(off, v&0xffff)
	case e1ITR:
		c.setR(off, v&0xffff)
		c.irq.itr.changed(c, off)
	case e1FCRTL:
		c.setR(off, v&(e1FCXONE|0xfff8))
	case e1FCRTH:
		c.setR(off, v&0xfff8)
	case e1RSRPD:
		c.setR(off, v&0xfff)
	case e1PBA:
		c.setR(off, v&0xffff|c.m.pba&0xffff0000)
	case e1RDTR, e1TIDV:
		c.setR(off, v&0xffff)
		if v&e1DelayFlush != 0 {
			c.flushDelayed()
		}
	case e1ICR, e1ICS, e1IMS, e1IMC:
		c.storeIRQ(off, v)
	case e1RCTL:
		c.setR(off, v)
		c.drain()
	case e1TCTL:
		c.setTCTL(v)
	case e1EXTCNF: // the PHY is the software's, which may take and give it back
		c.setR(off, v&(1<<5))
	case e1SWSM:
		c.setR(off, v&3)
	case e1PBACLR:
		for i := range e1Vectors {
			if v>>i&1 != 0 {
				c.s.forget(i)
			}
		}
	default:
		if off >= e1EITR && off < e1EITR+4*e1Vectors {
			c.setR(off, v&0xffff)
			c.irq.eitr[(off-e1EITR)/4].changed(c, off)
		}
	}
}

func (c *e1000) setCTRL(v uint32) {
	if v&e1CtrlRST != 0 {
		c.resetMAC()
		return
	}
	old := c.status()
	c.setR(e1CTRL, v&^(e1CtrlRST|e1CtrlPHYRST))
	if v&e1CtrlPHYRST != 0 {
		c.resetPHY()
		c.setR(e1STATUS, c.r(e1STATUS)|e1StatPHYRA)
		c.restartAuto()
	}
	c.linkChanged(old)
	if v&e1CtrlGIODis == 0 {
		c.drain()
	}
}

// master says whether the chip may use the bus, 82574L 5.2.5.3.
func (c *e1000) master() bool { return !c.m.pcie || !c.on(e1CTRL, e1CtrlGIODis) }
