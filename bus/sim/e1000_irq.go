package sim

import (
	"time"

	"github.com/ring3dev/ring3/bus"
)

// Units of time.
const (
	e1Throttle = 256 * time.Nanosecond  // ITR and EITR, 13.4.18
	e1Delay    = 1024 * time.Nanosecond // RDTR, RADV, TIDV, TADV, RAID, 13.4.30
)

// e1IRQ is what became of the causes.
type e1IRQ struct {
	told    uint32 // enabled causes for which a message was sent, MSI and MSI-X
	delayed uint32 // causes that wait for one of the timers
	high    bool   // INTx

	rdtr, radv, raid *timer
	tidv, tadv       *timer
	itr              throttle
	eitr             [e1Vectors]throttle
}

// throttle keeps interrupts apart.
type throttle struct {
	t     *timer
	waits bool // an interrupt waits for it
}

// pass says whether an interrupt may be sent now, and if so begins the interval of the register,
// in which no further one is.
func (t *throttle) pass(c *e1000, off bus.Off) bool {
	if t.t.pending() {
		t.waits = true
		return false
	}
	if v := c.r(off); v != 0 {
		t.t.reset(time.Duration(v) * e1Throttle)
	}
	return true
}

// changed ends an interval when throttling was switched off.
func (t *throttle) changed(c *e1000, off bus.Off) {
	if c.r(off) == 0 && t.t.pending() {
		t.t.reset(0)
	}
}

// raise sets causes.
func (c *e1000) raise(causes uint32) {
	if causes != 0 {
		c.setR(e1ICR, c.r(e1ICR)|causes)
		c.interrupt()
	}
}

// interrupt does what ICR and IMS ask for, 13.4.17 to 13.4.21 and 82574L 7.4.
func (c *e1000) interrupt() {
	icr, mode := c.r(e1ICR)&^e1INTA, c.s.mode()
	if mode == bus.MSIX && icr&e1Others != 0 {
		icr |= e1OTHER
	}
	active := icr & c.r(e1IMS)
	if active != 0 && c.m.pcie {
		icr |= e1INTA
	}
	c.setR(e1ICR, icr)
	c.irq.told &= active
	if mode == bus.INTx {
		c.level(active != 0)
		return
	}
	c.level(false)
	fresh := active &^ c.irq.told
	if fresh == 0 {
		return
	}
	c.irq.told |= fresh
	if mode == bus.MSIX {
		c.messages(fresh)
		return
	}
	if c.irq.itr.pass(c, e1ITR) {
		c.count(e1IAC)
		c.s.msi(0)
	}
}

// level raises or lowers INTx.
func (c *e1000) level(want bool) {
	if want == c.irq.high || want && !c.irq.itr.pass(c, e1ITR) {
		return
	}
	if want {
		c.count(e1IAC)
	}
	c.irq.high = want
	c.s.line(want)
}

// messages sends those of MSI-X: each queue's, and that of all the rest.
func (c *e1000) messages(fresh uint32) {
	for i := range e1Vectors {
		cause := uint32(e1RXQ0 << i)
		if fresh&cause == 0 {
			continue
		}
		v, ok := c.vector(i)
		if !ok {
			continue
		}
		if !c.irq.eitr[v].pass(c, e1EITR+bus.Off(4*v)) {
			c.irq.told &^= cause // comes again
			continue
		}
		c.count(e1IAC)
		c.s.msix(int(v))
		c.acknowledge(cause)
	}
}

// vector is that of a cause, RXQ0 being 0, if it is allocated to one.
func (c *e1000) vector(cause int) (v uint32, ok bool) {
	v = c.r(e1IVAR) >> (4 * cause) & 15
	return v & 7, v&8 != 0 && v&7 < e1Vectors
}

// forget takes back the pending messages of causes: CTRL_EXT.PBA_CLR, 82574L 10.2.2.
func (c *e1000) forget(causes uint32) {
	for i := range e1Vectors {
		if v, ok := c.vector(i); ok && causes&(e1RXQ0<<i) != 0 {
			c.s.forget(int(v))
		}
	}
}

// acknowledge clears and masks what asks for it when its message is sent, 82574L 10.2.4.
func (c *e1000) acknowledge(cause uint32) {
	auto := cause & c.r(e1EIAC)
	c.setR(e1ICR, c.r(e1ICR)&^auto)
	mask := uint32(0)
	if !c.on(e1CTRLEXT, e1ExtIAME) {
		mask = auto
	}
	if c.on(e1CTRLEXT, e1ExtEIAME) {
		mask |= cause & c.r(e1IAM)
	}
	c.setR(e1IMS, c.r(e1IMS)&^mask)
	active := c.r(e1ICR) & c.r(e1IMS)
	c.irq.told &= active
	if active&^e1INTA == 0 {
		c.setR(e1ICR, c.r(e1ICR)&^e1INTA)
	}
}

// itrOver ends the interval of ITR.
func (c *e1000) itrOver() {
	if !c.irq.itr.waits {
		return
	}
	c.irq.itr.waits = false
	if c.s.mode() == bus.MSI {
		c.irq.told = 0
	}
	c.interrupt()
}

// eitrOver ends that of a vector.
func (c *e1000) eitrOver(v int) {
	if c.irq.eitr[v].waits {
		c.irq.eitr[v].waits = false
		c.interrupt()
	}
}

// readICR is the cause register's read, which clears it; but not the 82574L's with MSI-X, unless
// nothing is enabled, or an interrupt is asserted and causes mask themselves: by EIAME, or by IAME,
// with which the read masks what IAM says (82574L 7.4 and 10.2.4). QEMU's does not clear with EIAME;
// Linux's driver, which sets it, wants that.
func (c *e1000) readICR() uint32 {
	v := c.r(e1ICR)
	asserted := v&e1INTA != 0
	if !c.m.pcie || c.r(e1IMS) == 0 || asserted && c.on(e1CTRLEXT, e1ExtIAME|e1ExtEIAME) || c.s.mode() != bus.MSIX {
		c.setR(e1ICR, 0)
	}
	if c.m.pcie && asserted && c.on(e1CTRLEXT, e1ExtIAME) {
		c.setR(e1IMS, c.r(e1IMS)&^c.r(e1IAM))
	}
	c.interrupt()
	return v
}

// storeIRQ is a write of ICR, ICS, IMS or IMC.
func (c *e1000) storeIRQ(off bus.Off, v uint32) {
	switch off {
	case e1ICR:
		if c.m.pcie && c.on(e1ICR, e1INTA) && c.on(e1CTRLEXT, e1ExtIAME) {
			c.setR(e1IMS, c.r(e1IMS)&^c.r(e1IAM))
		}
		if v&e1OTHER != 0 && c.m.pcie { // with it goes what it stands for
			v |= e1Others
		}
		c.setR(e1ICR, c.r(e1ICR)&^v)
	case e1ICS:
		c.setR(e1ICR, c.r(e1ICR)|v&c.m.valid)
	case e1IMS:
		c.setR(e1IMS, c.r(e1IMS)|v&c.m.valid)
		if c.m.pcie && c.on(e1CTRLEXT, e1ExtPBACLR) {
			c.forget(v)
		}
	case e1IMC:
		c.setR(e1IMS, c.r(e1IMS)&^v)
	}
	c.interrupt()
}

// received raises the causes of a frame in queue q, delayed where RDTR says so. MSI-X knows no
// delay but EITR.
func (c *e1000) received(q int, more uint32, ack bool) {
	if c.s.mode() == bus.MSIX {
		c.raise(e1RXQ0<<q | more&^e1RXDMT)
		return
	}
	i := &c.irq
	if rdtr := c.r(e1RDTR); rdtr != 0 && more == 0 && (!ack || c.r(e1RAID) != 0) {
		i.delayed |= e1RXT
		i.rdtr.reset(time.Duration(rdtr) * e1Delay)
		if radv := c.r(e1RADV); radv != 0 && !i.radv.pending() {
			i.radv.reset(time.Duration(radv) * e1Delay)
		}
		if ack {
			i.delayed |= e1ACK
			if !i.raid.pending() {
				i.raid.reset(time.Duration(c.r(e1RAID)) * e1Delay)
			}
		}
		return
	}
	if ack {
		more |= e1ACK
	}
	c.takeDelayed()
	c.raise(i.delayed | e1RXT | more)
	i.delayed = 0
}

// sent raises the causes after descriptors of queue q were written back, delayed where all of them
// asked for it.
func (c *e1000) sent(q int, causes uint32, ide bool) {
	if c.s.mode() == bus.MSIX {
		if causes&e1TXDW != 0 {
			causes = causes&^e1TXDW | e1TXQ0<<q
		}
		c.raise(causes)
		return
	}
	i := &c.irq
	if tidv := c.r(e1TIDV); ide && tidv != 0 && causes&e1TXDW != 0 {
		i.delayed |= causes
		i.tidv.reset(time.Duration(tidv) * e1Delay)
		if tadv := c.r(e1TADV); tadv != 0 && !i.tadv.pending() {
			i.tadv.reset(time.Duration(tadv) * e1Delay)
		}
		return
	}
	c.raise(causes)
}

// takeDelayed stops the timers: what they delay is raised by the caller.
func (c *e1000) takeDelayed() {
	if c.irq.delayed == 0 {
		return
	}
	for _, t := range [...]*timer{c.irq.rdtr, c.irq.radv, c.irq.raid, c.irq.tidv, c.irq.tadv} {
		t.stop()
	}
}

// flushDelayed raises what was delayed: a timer is over, or the driver wants it now.
func (c *e1000) flushDelayed() {
	c.takeDelayed()
	causes := c.irq.delayed
	c.irq.delayed = 0
	c.raise(causes)
}
