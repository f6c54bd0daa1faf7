package sim_test

import (
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
)

// irqs switches to a mode.
func (n *nic) irqs(mode bus.IRQMode, k int) []*bus.IRQ {
	n.t.Helper()
	q, err := n.dev.EnableIRQs(mode, k)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { _ = n.dev.DisableIRQs() })
	return q
}

// wantFired checks how many interrupts came.
func wantFired(t *testing.T, what string, q *bus.IRQ, want uint64) {
	t.Helper()
	moment := 20 * time.Millisecond
	if want > 0 {
		moment = 5 * time.Second // one that comes late is no other
	}
	if got := firedWithin(t, q, moment); got != want {
		t.Errorf("%s: %d interrupts, want %d", what, got, want)
	}
}

// A level: it stays until its cause is cleared, and comes back while another is there.
func TestE1000INTx(t *testing.T) {
	on(t, allChips, true, func(t *testing.T, a, _ *nic) {
		q := a.irqs(bus.INTx, 1)[0]
		a.r.Write32(rICS, 4)
		wantFired(t, "a masked cause", q, 0)
		a.r.Write32(rIMS, 4)
		wantFired(t, "the cause, enabled", q, 1)
		q.Unmask()
		wantFired(t, "the cause, not cleared", q, 1)
		a.r.Write32(rIMC, 0xffffffff)
		if v := a.r.Read32(rICR); v&4 == 0 {
			t.Errorf("ICR = %#x, want LSC", v)
		}
		if v := a.r.Read32(rICR); v&4 != 0 {
			t.Errorf("ICR = %#x when it was read, want it clear", v)
		}
		q.Unmask()
		wantFired(t, "the cause, cleared", q, 0)
		if v := a.r.Read32(rIMS); v != 0 {
			t.Errorf("IMS = %#x, want 0", v)
		}
	})
}

// ICR is cleared by reading; the 82574L's with MSI-X is not while anything is enabled, but for
// auto-mask.
func TestE1000ReadICR(t *testing.T) {
	on(t, twoChips, true, func(t *testing.T, a, _ *nic) {
		a.r.Write32(rIMS, 4)
		a.r.Write32(rICS, 4|0x10)
		a.r.Read32(rICR)
		if v := a.r.Read32(rICR); v != 0 {
			t.Errorf("ICR read twice = %#x, want 0", v)
		}
		if !a.pcie {
			return
		}
		a.irqs(bus.MSIX, 1)
		const other = 1 << 24
		a.r.Write32(rICS, 4|0x10)
		a.r.Read32(rICR)
		if v := a.r.Read32(rICR) &^ (1 << 31); v != 4|0x10|other {
			t.Errorf("ICR read twice with MSI-X = %#x, want %#x", v, 4|0x10|other)
		}
		a.r.Write32(rIAM, 4)
		a.r.Write32(rEXT, 1<<27)
		a.r.Read32(rICR)
		if v := a.r.Read32(rIMS); v != 0 {
			t.Errorf("IMS after a read with IAME = %#x, want 0", v)
		}
		if v := a.r.Read32(rICR); v != 0 {
			t.Errorf("ICR after a read with IAME = %#x, want 0", v)
		}
		a.r.Write32(rIMC, 0xffffffff)
		if a.emu {
			time.Sleep(2 * time.Millisecond) // it aborts where MSI-X is disabled while it throttles
		}
	})
}

// A message for each new cause; queues' causes clear and mask themselves.
func TestE1000Messages(t *testing.T) {
	on(t, newChip, false, func(t *testing.T, a, b *nic) {
		q := a.irqs(bus.MSI, 1)[0]
		a.r.Write32(rIMS, 4|1<<7)
		a.r.Write32(rICS, 4)
		wantFired(t, "MSI", q, 1)
		a.r.Write32(rICS, 4)
		wantFired(t, "MSI for the same cause", q, 0)
		a.r.Write32(rICS, 1<<7)
		wantFired(t, "MSI for another", q, 1)
		a.r.Write32(rIMC, 0xffffffff)
		a.r.Write32(rICR, 0xffffffff)

		v := a.irqs(bus.MSIX, 5)
		a.up(fSECRC)
		b.up(0)
		const rxq0, txq0, other = 1 << 20, 1 << 22, 1 << 24
		a.r.Write32(rEIAC, rxq0|txq0)
		a.r.Write32(rIVAR, 8|(8|1)<<8|(8|2)<<16)
		a.r.Write32(rIMS, rxq0|txq0|other|4)
		b.send(raw(b, a, 60))
		wantFired(t, "receive", v[0], 1)
		b.send(raw(b, a, 60))
		wantFired(t, "receive, masked", v[0], 0)
		if x := a.r.Read32(rIMS); x != txq0|other|4 {
			t.Errorf("IMS = %#x, want that the message masked its cause", x)
		}
		a.r.Write32(rIMS, rxq0)
		wantFired(t, "receive, enabled again", v[0], 1)
		a.send(raw(a, b, 60))
		wantFired(t, "transmit", v[1], 1)
		a.r.Write32(rICS, 4)
		wantFired(t, "link", v[2], 1)
		a.r.Write32(rICS, 4)
		wantFired(t, "link, not acknowledged", v[2], 0)
		a.r.Write32(rICR, 4|other)
		a.r.Write32(rICS, 4)
		wantFired(t, "link, acknowledged", v[2], 1)
		// A message that is masked is pending, until the cause is enabled anew with PBA_CLR.
		table, err := a.dev.Region(3)
		if err != nil {
			t.Fatal(err)
		}
		table.Write32(16+12, 1)
		a.r.Write32(rICR, 0xffffffff)
		for _, clr := range []bool{false, true} {
			a.r.Write32(rIMS, txq0)
			a.r.Write32(rICS, txq0)
			if table.Read32(0x2000)&2 == 0 {
				t.Error("vector 1 is not pending")
			}
			if clr {
				a.r.Write32(rEXT, 1<<31)
				a.r.Write32(rIMS, txq0)
			}
			table.Write32(16+12, 0)
			want := uint64(1)
			if clr {
				want = 0
			}
			wantFired(t, "transmit, unmasked", v[1], want)
			table.Write32(16+12, 1)
		}
		for _, x := range v[3:] {
			wantFired(t, "a vector of no cause", x, 0)
		}
	})
}

// The interrupt of the link as Linux's driver has it: all causes mask themselves, the handler reads ICR
// and enables them again. That is one message for each change, and the causes of the queues live through
// it where the handler sets anew what it read of them.
func TestE1000LinkMessage(t *testing.T) {
	on(t, newChip, false, func(t *testing.T, a, b *nic) {
		const lsc, rxq0, txq0, other = 1 << 2, 1 << 20, 1 << 22, 1 << 24
		v := a.irqs(bus.MSIX, 3)
		a.up(fSECRC)
		b.up(0)
		a.r.Write32(rIAM, 0xffffffff)
		a.r.Write32(rEITR, 1000)
		a.r.Write32(rIVAR, 8|(8|1)<<8|(8|2)<<16|1<<31)
		a.r.Write32(rEXT, 1<<31|1<<24)
		a.r.Write32(rEIAC, rxq0|txq0)
		a.r.Write32(rIMS, lsc|rxq0|txq0|other)
		b.send(raw(b, a, 60))
		wantFired(t, "receive", v[0], 1)
		a.r.Write32(rIMS, rxq0)
		b.send(raw(b, a, 60))
		wantFired(t, "receive, throttled", v[0], 0)
		for range 3 {
			a.r.Write32(rICS, lsc|other)
			wantFired(t, "link", v[2], 1)
			icr := a.r.Read32(rICR)
			if icr&lsc == 0 {
				t.Errorf("ICR = %#x, want LSC", icr)
			}
			if queues := icr & (rxq0 | txq0); queues != 0 {
				a.r.Write32(rICS, queues)
			}
			a.r.Write32(rIMS, lsc|other)
			wantFired(t, "link, once served", v[2], 0)
		}
		a.machine.Advance(300 * time.Microsecond)
		wantFired(t, "receive, after the throttle", v[0], 1)
	})
}

// ITR and EITR keep interrupts apart, on the virtual clock.
func TestE1000Throttle(t *testing.T) {
	on(t, allChips, false, func(t *testing.T, a, b *nic) {
		modes := []bus.IRQMode{bus.INTx}
		if a.pcie {
			modes = append(modes, bus.MSI, bus.MSIX)
		}
		b.up(0)
		for _, mode := range modes {
			q := a.irqs(mode, 1)[0]
			a.r.Write32(rIMC, 0xffffffff)
			a.r.Write32(rICR, 0xffffffff)
			a.up(fSECRC)
			reg, cause := rITR, uint32(1<<7)
			if mode == bus.MSIX {
				reg, cause = rEITR, 1<<20
				a.r.Write32(rIVAR, 8)
				a.r.Write32(rEIAC, cause)
			}
			a.r.Write32(reg, 1000) // 256 us
			// serve is a handler.
			serve := func() {
				a.r.Write32(rIMC, 0xffffffff)
				a.r.Read32(rICR)
				q.Unmask()
				a.r.Write32(rIMS, cause)
			}
			a.r.Write32(rIMS, cause)
			b.send(raw(b, a, 60))
			wantFired(t, "the first frame", q, 1)
			serve()
			b.send(raw(b, a, 60))
			wantFired(t, "the second, at once", q, 0)
			a.machine.Advance(255 * time.Microsecond)
			wantFired(t, "the second, after 255 us", q, 0)
			a.machine.Advance(2 * time.Microsecond)
			wantFired(t, "the second, after 257 us", q, 1)
			serve()
			a.machine.Advance(300 * time.Microsecond)
			wantFired(t, "nothing", q, 0)
			b.send(raw(b, a, 60))
			wantFired(t, "the third, much later", q, 1)
			serve()
			b.send(raw(b, a, 60))
			a.r.Write32(reg, 0)
			a.machine.Advance(0)
			wantFired(t, "the fourth, not throttled any more", q, 1)
			a.r.Write32(rIMC, 0xffffffff)
			a.r.Write32(rICR, 0xffffffff)
			a.r.Write32(rRCTL, 0)
		}
	})
}

// RDTR and RADV, TIDV and TADV.
func TestE1000Delays(t *testing.T) {
	on(t, twoChips, false, func(t *testing.T, a, b *nic) {
		const unit = 1024 * time.Nanosecond
		q := a.irqs(bus.INTx, 1)[0]
		a.up(fSECRC)
		b.up(0)
		a.r.Write32(rRDTR, 10)
		a.r.Write32(rRADV, 25)
		a.r.Write32(rIMS, 1<<7|1)
		ack := func() {
			a.r.Write32(rICR, 0xffffffff)
			q.Unmask()
		}
		b.send(raw(b, a, 60))
		a.machine.Advance(9 * unit)
		wantFired(t, "9 units after a frame", q, 0)
		a.machine.Advance(unit)
		wantFired(t, "10 units after a frame", q, 1)
		ack()
		for range 3 { // at 0, 9, 18
			b.send(raw(b, a, 60))
			a.machine.Advance(9 * unit)
		}
		wantFired(t, "25 units after the first", q, 1)
		ack()
		b.send(raw(b, a, 60))
		a.r.Write32(rRDTR, 10|1<<31)
		wantFired(t, "flushed", q, 1)
		ack()

		a.r.Write32(rTIDV, 10)
		a.r.Write32(rTADV, 25)
		late := func() {
			a.used = 0
			a.tx(0, [2]uint64{a.put(raw(a, b, 60)), 60 | tEOP | tIFCS | tIDE})
		}
		late()
		a.machine.Advance(9 * unit)
		wantFired(t, "9 units after sending", q, 0)
		a.machine.Advance(unit)
		wantFired(t, "10 units after sending", q, 1)
		ack()
		for range 3 {
			late()
			a.machine.Advance(9 * unit)
		}
		wantFired(t, "25 units after the first was sent", q, 1)
		ack()
		a.send(raw(a, b, 60))
		wantFired(t, "without IDE", q, 1)
	})
}

// The cable is pulled, and plugged in again.
func TestE1000Link(t *testing.T) {
	on(t, twoChips, false, func(t *testing.T, a, b *nic) {
		q := a.irqs(bus.INTx, 1)[0]
		a.up(fSECRC)
		b.up(0)
		a.r.Write32(rIMS, 4)
		for _, up := range []bool{false, true} {
			if err := a.machine.SetLink("eth0", up); err != nil {
				t.Fatal(err)
			}
			wantFired(t, "a change of the link", q, 1)
			for _, n := range []*nic{a, b} {
				if got := n.r.Read32(rSTATUS)&2 != 0; got != up {
					t.Errorf("STATUS.LU = %t, want %t", got, up)
				}
				if got := n.mdi(1)&4 != 0; got != up {
					t.Errorf("the PHY's link = %t, want %t", got, up)
				}
			}
			b.send(raw(b, a, 60))
			if got := len(a.rx(0, nicBuf)) == 1; got != up {
				t.Errorf("a frame arrived: %t, want %t", got, up)
			}
			a.r.Write32(rICR, 0xffffffff)
			q.Unmask()
		}
		// Negotiating again takes the link down for half a second.
		a.r.Write32(rMDIC, 1<<26|1<<21|0<<16|0x1340)
		if a.r.Read32(rSTATUS)&2 != 0 || a.mdi(1)&(1<<5) != 0 {
			t.Error("the link is up while it is negotiated")
		}
		a.machine.Advance(500 * time.Millisecond)
		if a.r.Read32(rSTATUS)&2 == 0 || a.mdi(1)&(1<<5) == 0 {
			t.Error("the link is down after it was negotiated")
		}
		if id1, id2 := a.mdi(2), a.mdi(3)&^15; id1 != 0x0141 || id2 != 0x0c20 && id2 != 0x0cb0 {
			t.Errorf("PHY %#x %#x, want 0x141 and 0xc20 or 0xcb0", id1, id2)
		}
		a.r.Write32(rMDIC, 1<<27|2<<21)
		if v := a.r.Read32(rMDIC); v&(1<<30) == 0 {
			t.Errorf("MDIC of PHY 2 = %#x, want an error", v)
		}
	})
}

// mdi reads a register of the PHY.
func (n *nic) mdi(reg uint32) uint32 {
	n.r.Write32(rMDIC, 1<<27|1<<21|reg<<16)
	v := n.r.Read32(rMDIC)
	if v&(1<<28) == 0 || v&(1<<30) != 0 {
		n.t.Errorf("MDIC of register %d = %#x, want it ready, no error", reg, v)
	}
	return v & 0xffff
}

// flow sets up IEEE 802.3x.
func (n *nic) flow(high, low uint32) {
	n.r.Write32(rFCAL, 0x00c28001)
	n.r.Write32(rFCAH, 0x0100)
	n.r.Write32(rFCT, 0x8808)
	n.r.Write32(rFCTTV, 1000)
	n.r.Write32(rFCRTH, high)
	n.r.Write32(rFCRTL, low|1<<31)
	n.r.Write32(rCTRL, n.r.Read32(rCTRL)|1<<27|1<<28)
}

// Without descriptors frames wait in the packet buffer, and with pause frames none is lost.
func TestE1000Pause(t *testing.T) {
	on(t, twoChips, false, func(t *testing.T, a, b *nic) {
		a.up(0)
		b.up(fSECRC | fUPE)
		a.flow(10<<10, 4<<10)
		b.flow(10<<10, 4<<10)
		b.r.Write32(rRX+0x18, 0) // take back all but none
		b.r.Write32(rRX+0x10, 0)
		// 60 frames of 1000 bytes at once: after 11 of them B says stop.
		f := raw(a, b, 1000)
		var descs [][2]uint64
		for range 60 {
			descs = append(descs, [2]uint64{0, 1000 | tEOP | tIFCS})
		}
		a.used = 0
		at := a.put(f)
		for i := range descs {
			descs[i][0] = at
		}
		a.post2(descs)
		head := a.r.Read32(rTX + 0x10)
		if head < 10 || head > 12 {
			t.Errorf("%d frames were sent before the pause, want 11", head)
		}
		if v := a.r.Read32(rSTATUS); v&16 == 0 {
			t.Errorf("STATUS = %#x, want TXOFF", v)
		}
		if s, r := b.r.Read32(rXOFFTX), a.r.Read32(rXOFFRX); s != 1 || r != 1 {
			t.Errorf("%d XOFF sent, %d received, want 1", s, r)
		}
		b.post(0, nicRing-1) // there is room
		a.machine.Advance(time.Microsecond)
		if s, r := b.r.Read32(rXONTX), a.r.Read32(rXONRX); s != 1 || r != 1 {
			t.Errorf("%d XON sent, %d received, want 1", s, r)
		}
		if got := len(b.rx(0, nicBuf)); got != 60 {
			t.Errorf("%d frames arrived, want 60", got)
		}
		if v := b.r.Read32(rMPC); v != 0 {
			t.Errorf("MPC = %d, want 0", v)
		}
	})
}

// post2 gives transmit descriptors to queue 0 and does not wait.
func (n *nic) post2(descs [][2]uint64) {
	d := n.rings.Bytes[2*nicRing*16:]
	for i, x := range descs {
		put64(d[i*16:], x[0])
		put64(d[i*16+8:], x[1])
	}
	n.r.Write32(rTX+0x18, uint32(len(descs)))
	n.r.Read32(rSTATUS)
}

// A pause ends by itself, and without flow control what does not fit is missed.
func TestE1000Missed(t *testing.T) {
	on(t, twoChips, false, func(t *testing.T, a, b *nic) {
		a.up(0)
		b.up(fSECRC)
		a.flow(0, 0)
		f := raw(b, a, 60)
		copy(f, "\x01\x80\xc2\x00\x00\x01")
		copy(f[12:], "\x88\x08\x00\x01\x00\x64") // 100 quanta: 51.2 us
		b.send(f)
		a.used = 0
		a.post2([][2]uint64{{a.put(raw(a, b, 60)), 60 | tEOP | tIFCS | tRS}})
		a.machine.Advance(51 * time.Microsecond)
		if got := len(b.rx(0, nicBuf)); got != 0 {
			t.Errorf("%d frames arrived within the pause, want 0", got)
		}
		a.machine.Advance(time.Microsecond)
		if got := len(b.rx(0, nicBuf)); got != 1 {
			t.Errorf("%d frames arrived after the pause, want 1", got)
		}
		b.r.Write32(rRX+0x18, 1) // the one that was used
		const sent = 100
		for range sent {
			a.txTail[0] = a.r.Read32(rTX + 0x10)
			a.send(raw(a, b, 1500))
		}
		kib := int(b.r.Read32(rPBA) & 0xffff)
		fit := kib << 10 / 1502
		if v := b.r.Read32(rMPC); int(v) != sent-fit {
			t.Errorf("MPC = %d, want %d: %d KiB hold %d", v, sent-fit, kib, fit)
		}
		if v := b.r.Read32(rICR); v&(1<<6) == 0 {
			t.Errorf("ICR = %#x, want RXO", v)
		}
		b.rxNext[0] = 1
		b.r.Write32(rRX+0x18, 0) // all but one
		if got := len(b.rx(0, nicBuf)); got != fit {
			t.Errorf("%d frames arrived, want %d", got, fit)
		}
	})
}
