package e1000

import (
	"context"
	"fmt"

	"github.com/ring3dev/ring3/bus"
)

// causes are the bits that arm each queue and the rest, in the interrupt mode in use.
type causes struct {
	mode   bus.IRQMode
	rx, tx [maxQueues]cause // by queue
	other  cause
}

// MSI-X vectors, 82574L 7.4: the receive queues', the transmit queues', and the last for
// everything else.
func (n *nic) vecRx(q int) int { return q }
func (n *nic) vecTx(q int) int { return n.queues + q }
func (n *nic) vecOther() int   { return 2 * n.queues }
func (n *nic) numVectors() int { return 2*n.queues + 1 }

// chooseIRQs is the interrupt mode that the option bus asks for, else the best there is, and how
// many vectors it takes.
func (n *nic) chooseIRQs() (mode bus.IRQMode, vectors int, err error) {
	for _, m := range []bus.IRQMode{bus.MSIX, bus.MSI, bus.INTx} {
		want := 1
		if m == bus.MSIX {
			want = n.numVectors()
		}
		switch have := n.dev.IRQVectors(m); {
		case n.opt.irq != "" && n.opt.irq != irqNames[m], !n.chip.pcie && m != bus.INTx:
		case have >= want:
			return m, want, nil
		case n.opt.irq != "":
			return 0, 0, n.errorf("interrupts: %s (option bus=%s) has %d vectors at %s, want %d: %w", m, n.opt.irq, have, n.dev.Backend(), want, bus.ErrNotSupported)
		}
	}
	return bus.INTx, 1, nil // what EnableIRQs says of it is the error
}

// enableIRQs starts the handlers. Everything is masked until armed.
func (n *nic) enableIRQs() error {
	mode, count, err := n.chooseIRQs()
	if err != nil {
		return err
	}
	irqs, err := n.dev.EnableIRQs(mode, count)
	if err != nil {
		return n.errorf("interrupts: %w", err)
	}
	n.irq = causes{mode: mode, rx: [maxQueues]cause{causeRXT0, causeRXT0}, tx: [maxQueues]cause{causeTXDW, causeTXDW}, other: causeLSC}
	if mode != bus.MSIX {
		n.handlers = []*bus.Handler{bus.Handle(irqs[0], n.name, func(uint64) { n.serveAll(irqs[0]) })}
		return nil
	}
	n.irq = causes{mode: mode, rx: [maxQueues]cause{causeRXQ0, causeRXQ1}, tx: [maxQueues]cause{causeTXQ0, causeTXQ1}, other: causeOTHER | causeLSC}
	for q := range n.queues {
		n.handlers = append(n.handlers, bus.Handle(irqs[n.vecRx(q)], fmt.Sprintf("%s-rx-%d", n.name, q), func(uint64) { n.rx[q].wake.Wake() }))
	}
	for q := range n.queues {
		n.handlers = append(n.handlers, bus.Handle(irqs[n.vecTx(q)], fmt.Sprintf("%s-tx-%d", n.name, q), func(uint64) { n.tx[q].wake.Wake() }))
	}
	n.handlers = append(n.handlers, bus.Handle(irqs[n.vecOther()], n.name, func(uint64) { n.serveOther() }))
	return nil
}

// programIRQs tells the 82574L of the mode.
func (n *nic) programIRQs() {
	switch {
	case n.irq.mode == bus.MSIX:
		n.programMSIX()
	case n.chip.pcie: // a predecessor's MSI-X may have left them
		n.regs.Write32(regCTRLEXT, n.regs.Read32(regCTRLEXT)&^uint32(ctrlExtIAME|ctrlExtEIAME|ctrlExtPBACLR))
		n.regs.Write32(regIAM, 0)
		n.regs.Write32(regEIAC, 0)
	}
}

// programMSIX tells the 82574L which vector a cause fires. The queues' causes clear and
// mask themselves when they fire, so that their handlers touch no register.
func (n *nic) programMSIX() {
	w := n.regs.Write32
	ext := ctrlExt(n.regs.Read32(regCTRLEXT))
	w(regCTRLEXT, uint32(ext&^ctrlExtIAME|ctrlExtEIAME|ctrlExtPBACLR))
	var queues cause
	vectors := put(ivarOTHER, ivarValid+ivar(n.vecOther()))
	for q := range n.queues {
		queues |= n.irq.rx[q] | n.irq.tx[q]
		vectors |= put(ivarRXQ[q], ivarValid+ivar(n.vecRx(q))) | put(ivarTXQ[q], ivarValid+ivar(n.vecTx(q)))
	}
	w(regIAM, uint32(queues))
	w(regEIAC, uint32(queues))
	n.ivar = uint32(vectors)
	w(regIVAR, n.ivar)
	w(regEITR(n.vecOther()), 0)
}

// arm lets a queue's cause fire once. What fired since it was masked is pending, and
// fires now.
func (n *nic) arm(c cause) { n.regs.Write32(regIMS, uint32(c)) }

// serveAll serves the one vector of MSI and INTx. It masks everything before it reads the
// causes: only then does the 82574L clear them (82574L 10.2.4), at the moment of the
// read. Clearing by a write instead could come after a frame that the waiter, signalled
// too early, does not see yet. All queues are signalled whatever was read: a masked
// queue must look for itself.
func (n *nic) serveAll(irq *bus.IRQ) {
	n.irqMu.Lock()
	defer n.irqMu.Unlock()
	if n.stopped() {
		return // start unmasks it
	}
	before := n.stops.Load()
	n.regs.Write32(regIMC, uint32(causeAll))
	icr := cause(n.regs.Read32(regICR))
	if uint32(icr) == allOnes {
		n.missing(before, "serving an interrupt: ICR reads all-ones")
		return
	}
	if icr&causeLSC != 0 {
		n.readLink()
	}
	n.arm(n.irq.other) // what fired since the read fires now
	for q := range n.queues {
		n.rx[q].wake.Wake()
		n.tx[q].wake.Wake()
	}
	irq.Unmask()
}

// serveOther serves the vector of the link. It clears the causes by writing them: a read
// would take the queues' causes with it.
func (n *nic) serveOther() {
	n.irqMu.Lock()
	defer n.irqMu.Unlock()
	if n.stopped() {
		return
	}
	n.regs.Write32(regICR, uint32(causesOther|causeOTHER))
	n.readLink()
}

// readLink looks at the link. STATUS is read after the cause was cleared, so a later change
// interrupts again. When the link comes up flow control is programmed: what was agreed is known
// then, and QEMU's 82574L has switched it on by itself.
func (n *nic) readLink() {
	before := n.stops.Load()
	v := n.regs.Read32(regSTATUS)
	if v == allOnes {
		n.missing(before, "reading the link's state: STATUS reads all-ones")
		return
	}
	if n.stopped() {
		return // start looks again
	}
	s := status(v)
	if (s^status(n.link.Swap(v)))&statusLU == 0 {
		return
	}
	if s&statusLU != 0 {
		n.confMu.Lock()
		var err error
		if !n.dead.Load() && !n.stopped() {
			err = n.applyPause(context.Background())
		}
		n.confMu.Unlock()
		if err != nil && n.dev.Err() == nil {
			n.log.Warn("flow control is off", "error", err)
		}
	}
	n.log.Info("NIC Link is " + s.link(ctrl(n.flow.Load())))
}
