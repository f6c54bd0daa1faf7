package e1000

import (
	"github.com/ring3dev/ring3/bus"
)

// causes are the bits that arm each queue and the rest, in the interrupt mode in use.
type causes struct {
	mode          bus.IRQMode
	rx, tx, other cause
}

// MSI-X vectors, 82574L 7.4.
const (
	vecRx = iota
	vecTx
	vecOther
	numVectors
)

// enableIRQs chooses the best mode there is, and starts the handlers. Everything is masked
// until unmask.
func (n *nic) enableIRQs() error {
	mode, count := bus.INTx, 1
	if n.chip.pcie {
		switch {
		case n.dev.IRQVectors(bus.MSIX) >= numVectors:
			mode, count = bus.MSIX, numVectors
		case n.dev.IRQVectors(bus.MSI) >= 1:
			mode = bus.MSI
		}
	}
	irqs, err := n.dev.EnableIRQs(mode, count)
	if err != nil {
		return n.errorf("interrupts: %w", err)
	}
	n.irq = causes{mode: mode, rx: causeRXT0, tx: causeTXDW, other: causeLSC}
	if mode != bus.MSIX {
		n.handlers = []*bus.Handler{bus.Handle(irqs[0], n.name, func(uint64) { n.serveAll(irqs[0]) })}
		return nil
	}
	n.irq = causes{mode: mode, rx: causeRXQ0, tx: causeTXQ0, other: causeOTHER | causeLSC}
	n.programMSIX()
	n.handlers = []*bus.Handler{
		bus.Handle(irqs[vecRx], n.name+"-rx-0", func(uint64) { signal(n.rx.wake) }),
		bus.Handle(irqs[vecTx], n.name+"-tx-0", func(uint64) { signal(n.tx.wake) }),
		bus.Handle(irqs[vecOther], n.name, func(uint64) { n.serveOther() }),
	}
	return nil
}

// programMSIX tells the 82574L which vector a cause fires. The queues' causes clear and
// mask themselves when they fire, so that their handlers touch no register.
func (n *nic) programMSIX() {
	w := n.regs.Write32
	ext := ctrlExt(n.regs.Read32(regCTRLEXT))
	w(regCTRLEXT, uint32(ext&^ctrlExtIAME|ctrlExtEIAME|ctrlExtPBACLR))
	w(regIAM, uint32(causeRXQ0|causeTXQ0))
	w(regEIAC, uint32(causeRXQ0|causeTXQ0))
	w(regIVAR, uint32(put(ivarRXQ0, ivarValid+vecRx)|put(ivarTXQ0, ivarValid+vecTx)|put(ivarOTHER, ivarValid+vecOther)))
	for v := range numVectors {
		w(regEITR(v), 0) // a queue is masked until its owner has polled it empty, which throttles enough
	}
}

// arm lets a queue's cause fire once. What fired since it was masked is pending, and
// fires now.
func (n *nic) arm(c cause) { n.regs.Write32(regIMS, uint32(c)) }

// serveAll serves the one vector of MSI and INTx. It masks everything before it reads the
// causes: only then does the 82574L clear them (82574L 10.2.4), at the moment of the
// read. Clearing by a write instead could come after a frame that the waiter, signalled
// too early, does not see yet. Both queues are signalled whatever was read: a masked
// queue must look for itself.
func (n *nic) serveAll(irq *bus.IRQ) {
	n.regs.Write32(regIMC, uint32(causeAll))
	icr := cause(n.regs.Read32(regICR))
	if uint32(icr) == allOnes {
		n.fail(n.errorf("serving an interrupt: ICR reads all-ones: %w", bus.ErrGone))
		return
	}
	if icr&causeLSC != 0 {
		n.readLink()
	}
	n.arm(n.irq.other) // what fired since the read fires now
	signal(n.rx.wake)
	signal(n.tx.wake)
	irq.Unmask()
}

// serveOther serves the vector of the link. It clears the causes by writing them: a read
// would take the queues' causes with it.
func (n *nic) serveOther() {
	n.regs.Write32(regICR, uint32(causesOther|causeOTHER))
	n.readLink()
}

// readLink looks at the link. STATUS is read after the cause was cleared, so a later change
// interrupts again.
func (n *nic) readLink() {
	v := n.regs.Read32(regSTATUS)
	if v == allOnes {
		n.fail(n.errorf("reading the link's state: STATUS reads all-ones: %w", bus.ErrGone))
		return
	}
	old := status(n.link.Swap(v))
	if s := status(v); (s^old)&statusLU != 0 {
		n.log.Info("NIC Link is " + s.link())
	}
}

// signal wakes a waiter, or the next one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
