package e1000

import (
	"context"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/netdev"
)

// Registers of the PHY, IEEE 802.3 clause 22.
const (
	phyControl   = 0 // MII Control
	phyAdvertise = 4 // what we can do
	phyPartner   = 5 // what the link's partner can do
	phyAddress   = 1 // of the PHY on the management bus
)

// Bits of MII Control.
const (
	phyRestart uint16 = 1 << 9  // auto-negotiation begins anew
	phyAutoneg uint16 = 1 << 12 // auto-negotiation is on
)

// Bits of phyAdvertise and phyPartner, IEEE 802.3 annex 28B.
const (
	phyPause uint16 = 1 << 10 // symmetric pause
	phyAsym  uint16 = 1 << 11 // pause towards the partner
)

// mdicTime is how long an access to the PHY may take, 13.4.8: 64 bits at 2.5 MHz, and a wide margin.
const mdicTime = 10 * time.Millisecond

// mdic does one access to the PHY. Called with confMu held.
func (n *nic) mdic(ctx context.Context, op mdic, reg uint32, data uint16) (uint16, error) {
	n.regs.Write32(regMDIC, uint32(op|put(mdicPHY, phyAddress)|put(mdicReg, mdic(reg))|put(mdicData, mdic(data))))
	var v mdic
	if err := n.poll(ctx, mdicTime, func() bool { v = mdic(n.regs.Read32(regMDIC)); return v&mdicReady != 0 }); err != nil {
		return 0, n.errorf("PHY register %d: MDIC.READY still clear after %s (MDIC=%s): %w", reg, mdicTime, v, err)
	}
	if uint32(v) == allOnes {
		return 0, n.lost("PHY register %d: MDIC reads all-ones", reg)
	}
	if v&mdicError != 0 {
		return 0, n.errorf("PHY register %d: MDIC.ERROR is set (MDIC=%s): %w", reg, v, bus.ErrProtocol)
	}
	return uint16(get(v, mdicData)), nil
}

func (n *nic) readPHY(ctx context.Context, reg uint32) (uint16, error) {
	return n.mdic(ctx, mdicRead, reg, 0)
}

func (n *nic) writePHY(ctx context.Context, reg uint32, v uint16) error {
	_, err := n.mdic(ctx, mdicWrite, reg, v)
	return err
}

// Pause frames, IEEE 802.3 annex 31B, 14.8: their address, type, and the longest time that one asks for.
const (
	pauseAddrLow  = 0x00c28001
	pauseAddrHigh = 0x0100
	pauseType     = 0x8808
	pauseTime     = 0xffff
	fcrtlXONE     = 1 << 31 // FCRTL: XON is sent below the low threshold
)

// Pause is the flow control that was asked for; netdev.Pauser.
func (n *nic) Pause() netdev.Pause {
	n.confMu.Lock()
	defer n.confMu.Unlock()
	return n.pause
}

// SetPause sets flow control; netdev.Pauser. With Autoneg it is agreed with the link's partner: the
// link goes down for as long as that takes.
func (n *nic) SetPause(ctx context.Context, p netdev.Pause) error {
	return n.updatePause(ctx, func(now *netdev.Pause) { *now = p })
}

// updatePause changes a part of it, and nobody else does between.
func (n *nic) updatePause(ctx context.Context, update func(*netdev.Pause)) error {
	if err := n.changePause(ctx, update); err != nil {
		return err
	}
	n.readLink() // QEMU's models take the link down without an interrupt
	return n.alive("flow control")
}

func (n *nic) changePause(ctx context.Context, update func(*netdev.Pause)) error {
	n.confMu.Lock()
	defer n.confMu.Unlock()
	if err := n.alive("flow control"); err != nil {
		return err
	}
	p := n.pause
	update(&p)
	if p.Autoneg {
		if err := n.advertise(ctx, p); err != nil {
			return err
		}
	}
	n.pause = p
	return n.applyPause(ctx)
}

// advertise tells the link's partner what flow control is wanted. Called with confMu held.
func (n *nic) advertise(ctx context.Context, p netdev.Pause) error {
	old, err := n.readPHY(ctx, phyAdvertise)
	if err != nil {
		return err
	}
	v := advertised(old, p)
	if v == old && n.pause.Autoneg {
		return nil
	}
	c, err := n.readPHY(ctx, phyControl)
	if err != nil {
		return err
	}
	if c&phyAutoneg == 0 {
		return n.errorf("flow control: auto-negotiation is off (PHY control %#x): %w", c, unix.EINVAL)
	}
	if err := n.writePHY(ctx, phyAdvertise, v); err != nil {
		return err
	}
	return n.writePHY(ctx, phyControl, c|phyRestart)
}

// advertised puts flow control into an advertisement.
func advertised(old uint16, p netdev.Pause) uint16 {
	v := old &^ (phyPause | phyAsym)
	if p.Rx {
		v |= phyPause | phyAsym
	} else if p.Tx {
		v |= phyAsym
	}
	return v
}

// restorePHY advertises again what was advertised before a reset, which the PHY may have forgotten. It does
// not restart negotiation, which takes the link away: the partner was told, or is, by a PHY that negotiates anew
// because it was reset. Called with confMu held.
func (n *nic) restorePHY(ctx context.Context) error {
	if !n.pause.Autoneg {
		return nil
	}
	old, err := n.readPHY(ctx, phyAdvertise)
	if err != nil {
		return err
	}
	if v := advertised(old, n.pause); v != old {
		return n.writePHY(ctx, phyAdvertise, v)
	}
	return nil
}

// agreed is the flow control of two partners, IEEE 802.3 table 28B-3.
func agreed(ours, theirs uint16) (rx, tx bool) {
	switch {
	case ours&theirs&phyPause != 0:
		return true, true
	case ours&phyPause == 0 && ours&phyAsym != 0 && theirs&phyPause != 0 && theirs&phyAsym != 0:
		return false, true
	case ours&phyPause != 0 && ours&phyAsym != 0 && theirs&phyPause == 0 && theirs&phyAsym != 0:
		return true, false
	}
	return false, false
}

// applyPause programs flow control as it was asked for, or agreed. Called with confMu held.
func (n *nic) applyPause(ctx context.Context) error {
	rx, tx := n.pause.Rx, n.pause.Tx
	if n.pause.Autoneg && (rx || tx) {
		ours, err := n.readPHY(ctx, phyAdvertise)
		if err != nil {
			return err
		}
		theirs, err := n.readPHY(ctx, phyPartner)
		if err != nil {
			return err
		}
		r, t := agreed(ours, theirs)
		rx, tx = rx && r, tx && t
	}
	w := n.regs.Write32
	if rx || tx {
		w(regFCAL, pauseAddrLow)
		w(regFCAH, pauseAddrHigh)
		w(regFCT, pauseType)
		w(regFCTTV, pauseTime)
	}
	old := ctrl(n.regs.Read32(regCTRL))
	c := old &^ (ctrlRFCE | ctrlTFCE)
	if rx {
		c |= ctrlRFCE
	}
	if tx {
		c |= ctrlTFCE
	}
	n.flow.Store(uint32(c & (ctrlRFCE | ctrlTFCE)))
	n.pauseThresholds()
	if uint32(old) != allOnes && c != old {
		w(regCTRL, uint32(c))
	}
	return nil
}

// pauseThresholds programs when pause frames are sent. Called with confMu held.
func (n *nic) pauseThresholds() {
	low, high := uint32(0), uint32(0)
	if ctrl(n.flow.Load())&ctrlTFCE != 0 {
		low, high = thresholds(n.regs.Read32(regPBA)&0xffff<<10, n.MTU())
		low |= fcrtlXONE
	}
	n.regs.Write32(regFCRTL, low)
	n.regs.Write32(regFCRTH, high)
}

// thresholds are how full the receive packet buffer, of size bytes, is when XON and XOFF are sent:
// at nine tenths there, or room for a last frame left; and a little below. Units of 8 bytes.
func thresholds(size uint32, mtu int) (low, high uint32) {
	frame := uint32(frameLen(mtu) + fcsLen)
	if size < 2*frame { // cannot be
		return 0, 0
	}
	high = min(size/10*9, size-frame) &^ 7
	return high - 8, high
}

// flowWords are flow control in the kernel's words.
func flowWords(c ctrl) string {
	switch {
	case c&ctrlRFCE != 0 && c&ctrlTFCE != 0:
		return "RX/TX"
	case c&ctrlRFCE != 0:
		return "RX"
	case c&ctrlTFCE != 0:
		return "TX"
	}
	return "None"
}
