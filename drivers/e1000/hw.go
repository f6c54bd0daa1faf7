package e1000

import (
	"context"
	"encoding/binary"
	"net"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/netdev"
)

// regSpace is the size of the register region, 4.1 and 82574L 10.1.
const regSpace = 128 << 10

// Times of the datasheets.
const (
	resetTime  = 10 * time.Millisecond  // 14.3: EEPROM load included
	masterTime = 100 * time.Millisecond // 82574L 5.2.5.3: pending requests end
	eepromTime = 10 * time.Millisecond  // one word, 13.4.4
	pollEvery  = 100 * time.Microsecond
	// deafTime is how long QEMU's 82540EM receives nothing after a write to RCTL, with a
	// little more for a timer that is late.
	deafTime = 1000*time.Millisecond + 50*time.Millisecond
)

// bringUp takes the controller from any state into service, in the order of 14.3 to
// 14.5 and 82574L 4.6.
func (n *nic) bringUp(ctx context.Context) error {
	if v := n.regs.Read32(regSTATUS); v == allOnes {
		return n.lost("probing: STATUS reads all-ones")
	}
	if err := n.reset(ctx); err != nil {
		return err
	}
	if err := n.checkEEPROM(ctx); err != nil {
		return err
	}
	if err := n.setMAC(ctx); err != nil {
		return err
	}
	n.initGeneral()
	n.clearStats()
	for q := range n.queues {
		if err := n.tx[q].init(n, q, n.ring); err != nil {
			return n.errorf("transmit ring of %d: %w", n.ring, err)
		}
		if err := n.rx[q].init(n, q, n.ring); err != nil {
			return n.errorf("receive ring of %d: %w", n.ring, err)
		}
	}
	if err := n.enableIRQs(); err != nil {
		return err
	}
	n.programIRQs()
	n.setITR(n.opt.itr, itrInterval(n.opt.itr))
	n.initReceive(n.defaults())
	n.initTransmit()
	n.enable(func(q *rxQueue) { q.refill() })
	if n.pause.Autoneg {
		if err := n.advertise(ctx, n.pause); err != nil {
			return err
		}
	}
	n.readLink()
	n.arm(n.irq.other)
	if err := n.Err(); err != nil {
		return err
	}
	n.confMu.Lock()
	defer n.confMu.Unlock()
	if err := n.verify(); err != nil {
		return n.errorf("bring-up: %w", err)
	}
	return nil
}

// reset masks interrupts, stops what a predecessor left running, and resets the controller, 14.3.
// QEMU's models (the 82574L up to 7.2) ignore CTRL.RST, so nothing after relies on reset values.
func (n *nic) reset(ctx context.Context) error {
	r := n.regs
	r.Write32(regIMC, uint32(causeAll))
	r.Write32(regRCTL, 0)
	r.Write32(regTCTL, uint32(tctlPSP))
	if n.chip.pcie {
		// Should requests still be pending in the end, the reset goes ahead all the same.
		r.Write32(regCTRL, r.Read32(regCTRL)|uint32(ctrlGIOMDIS))
		_ = n.poll(ctx, masterTime, func() bool { return status(r.Read32(regSTATUS))&statusGIOMaster == 0 })
	}
	r.Write32(regCTRL, r.Read32(regCTRL)|uint32(ctrlRST))
	// A read so soon may meet all-ones: not gone yet, just not there again.
	var last uint32
	if err := n.poll(ctx, resetTime, func() bool {
		last = r.Read32(regCTRL)
		return last != allOnes && ctrl(last)&ctrlRST == 0
	}); err != nil {
		if last == allOnes {
			err = bus.ErrGone
		}
		return n.errorf("reset: CTRL.RST still set after %s (CTRL=%s): %w", resetTime, ctrl(last), err)
	}
	if n.chip.pcie {
		if err := n.poll(ctx, resetTime, func() bool {
			last = r.Read32(regEECD)
			return eecd(last)&eecdAutoRD != 0
		}); err != nil {
			return n.errorf("reset: EECD.AUTO_RD still clear after %s (EECD=%#x): %w", resetTime, last, err)
		}
	}
	r.Write32(regIMC, uint32(causeAll))
	r.Read32(regICR)
	r.Write32(regICR, uint32(causeAll))
	return nil
}

// poll waits until ok, at most t.
func (n *nic) poll(ctx context.Context, t time.Duration, ok func() bool) error {
	deadline := time.Now().Add(t)
	for !ok() {
		if err := n.dev.Err(); err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return bus.ErrTimeout
		}
		select {
		case <-time.After(pollEvery):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// setMAC takes the address from the options, else from receive address 0, into which the
// hardware loads the EEPROM's at reset, else from the EEPROM itself.
func (n *nic) setMAC(ctx context.Context) error {
	mac := n.opt.mac
	if mac == nil {
		mac = make(net.HardwareAddr, 6)
		low, high := n.regs.Read32(regRAL(0)), n.regs.Read32(regRAH(0))
		binary.LittleEndian.PutUint32(mac[0:4], low)
		binary.LittleEndian.PutUint16(mac[4:6], uint16(high))
		if high&rahAV == 0 || !validMAC(mac) {
			for i := range 3 {
				w, err := n.readEEPROM(ctx, uint32(i))
				if err != nil {
					return err
				}
				binary.LittleEndian.PutUint16(mac[2*i:], w)
			}
		}
		if !validMAC(mac) {
			return n.errorf("station address: RAL=%#x RAH=%#x and the EEPROM's %s are no unicast address (option mac= gives one): %w", low, high, mac, bus.ErrProtocol)
		}
	}
	n.mac = [6]byte(mac)
	return nil
}

// initGeneral sets up link and address filters, 14.4. Flow control is off: see applyPause.
func (n *nic) initGeneral() {
	r := n.regs
	c := ctrl(r.Read32(regCTRL))
	r.Write32(regCTRL, uint32(c&^ctrlBringUpOff|ctrlSLU|ctrlASDE))
	for _, off := range []bus.Off{regFCAL, regFCAH, regFCT, regFCTTV} {
		r.Write32(off, 0)
	}
	r.Write32(regRAL(0), binary.LittleEndian.Uint32(n.mac[0:4]))
	r.Write32(regRAH(0), rahAV|uint32(binary.LittleEndian.Uint16(n.mac[4:6])))
	for i := 1; i < raPairs; i++ {
		r.Write32(regRAL(i), 0)
		r.Write32(regRAH(i), 0)
	}
	for i := range mtaWords {
		r.Write32(regMTA(i), 0)
	}
}

// initReceive sets up the receiver, 14.4.
func (n *nic) initReceive(on netdev.Feature) {
	r := n.regs
	r.Write32(regRDTR, n.delays[delayRx].Load())
	r.Write32(regRADV, n.delays[delayRxAbs].Load())
	n.initRSS()
	r.Write32(regVET, ethVLAN)
	n.applyFeatures(on)
	for q := range n.queues {
		n.rx[q].program()
	}
}

// initTransmit sets up the transmitter, 14.5.
func (n *nic) initTransmit() {
	r := n.regs
	for q := range n.queues {
		n.tx[q].program()
	}
	r.Write32(regTIDV, n.delays[delayTx].Load())
	r.Write32(regTADV, n.delays[delayTxAbs].Load())
	r.Write32(regTIPG, uint32(put(tipgIPGT, 8)|put(tipgIPGR1, 8)|put(tipgIPGR2, 6))) // copper, 13.4.34
}

// enable lets receiver and transmitter work. give gives a receive queue's buffers to the device.
func (n *nic) enable(give func(*rxQueue)) {
	n.lockRx()
	defer n.unlockRx()
	n.startReceiver(rctlEN|rctlBAM|rctlSECRC|rctlOf(n.MTU())|n.filters.promiscuous(), give)
	n.regs.Write32(regTCTL, uint32(tctlEN|tctlPSP|tctlRTLC|put(tctlCT, 15)|put(tctlCOLD, 0x3f)))
}

// deaf says whether the receiver does not listen yet.
func (n *nic) deaf() bool {
	t := n.deafUntil.Load()
	return t != 0 && time.Now().UnixNano() < t
}

// quiesce stops and resets the controller. A device that is gone is quiet.
func (n *nic) quiesce() error {
	if n.dev.Err() != nil || n.regs == nil {
		return nil
	}
	if n.regs.Read32(regSTATUS) == allOnes {
		return nil
	}
	if err := n.reset(context.Background()); err != nil && n.dev.Err() == nil {
		return err
	}
	return nil
}

// fillOnes fills a ring, so that a device that reads it too early meets no address of ours.
func fillOnes(b []byte) {
	for i := range b {
		b[i] = 0xff
	}
}
