package e1000

import (
	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/netdev"
)

// hwStats adds up the statistics registers, which clear when read. Guarded by nic.statsMu.
type hwStats struct {
	crcErrs, rxErrs, missed, lengthErrs    uint64
	excessCols, lateCols, cols, noCarrier  uint64
	rxFrames, rxMulticast, rxOctets        uint64
	rxBytes                                uint64 // without checks, as told last
	txFrames                               uint64
	undersize, fragments, oversize, jabber uint64
	missedBefore                           uint32 // the last MPC, where it does not clear

	more            [len(moreRegs)]uint64
	noBuffersBefore uint32 // the last RNBC, likewise
}

// moreRegs are the registers that only Counters shows.
var moreRegs = [...]bus.Off{
	regALGNERRC, regSCC, regMCC, regDC, regXONRXC, regXONTXC, regXOFFRXC, regXOFFTXC, regBPRC, regRNBC, regMGTPRC, regMGTPDC, regMGTPTC,
	regMPTC, regBPTC, regTSCTC, regTSCTFC,
}

// counters lists the 32-bit registers and where each is added.
func (s *hwStats) counters() [15]struct {
	reg bus.Off
	sum *uint64
} {
	return [...]struct {
		reg bus.Off
		sum *uint64
	}{
		{regCRCERRS, &s.crcErrs}, {regRXERRC, &s.rxErrs}, {regRLEC, &s.lengthErrs},
		{regECOL, &s.excessCols}, {regLATECOL, &s.lateCols}, {regCOLC, &s.cols}, {regTNCRS, &s.noCarrier},
		{regGPRC, &s.rxFrames}, {regMPRC, &s.rxMulticast}, {regGPTC, &s.txFrames},
		{regRUC, &s.undersize}, {regRFC, &s.fragments}, {regROC, &s.oversize}, {regRJC, &s.jabber},
		{regMPC, &s.missed},
	}
}

// clearStats begins to count, 13.7: the registers hold anything before.
func (n *nic) clearStats() {
	n.statsMu.Lock()
	defer n.statsMu.Unlock()
	n.readStats()
	n.readMore()
	n.stats = hwStats{missedBefore: n.stats.missedBefore, noBuffersBefore: n.stats.noBuffersBefore}
}

// readStats adds the registers. Called with statsMu held.
func (n *nic) readStats() {
	if !n.dead.Load() && !n.stopped() {
		n.addStats(&n.stats)
	}
}

// addStats adds the registers to s.
func (n *nic) addStats(s *hwStats) {
	for _, c := range s.counters() {
		v := n.regs.Read32(c.reg)
		if v == allOnes { // a count sticks there, or the device is gone
			if n.regs.Read32(regSTATUS) == allOnes {
				return
			}
		}
		if c.reg == regMPC && n.chip.quirk {
			v, s.missedBefore = v-s.missedBefore, v
		}
		*c.sum += uint64(v)
	}
	s.rxOctets += n.read64(regGORCL, regGORCH)
}

// readMore adds the other registers. Called with statsMu held.
func (n *nic) readMore() {
	if !n.dead.Load() && !n.stopped() {
		n.addMore(&n.stats)
	}
}

// addMore adds the other registers to s.
func (n *nic) addMore(s *hwStats) {
	for i, reg := range moreRegs {
		if n.dead.Load() {
			return
		}
		v := n.regs.Read32(reg)
		if v == allOnes && n.regs.Read32(regSTATUS) == allOnes {
			return
		}
		if reg == regRNBC && n.chip.quirk {
			v, s.noBuffersBefore = v-s.noBuffersBefore, v
		}
		s.more[i] += uint64(v)
	}
}

// restartStats begins anew with registers that were reset: what they count from now on is added to what they had counted. Of
// what they had counted since they were read last the driver knows its own part. s.missedBefore and the like are what
// registers that do not clear begin with.
func (n *nic) restartStats() {
	n.statsMu.Lock()
	defer n.statsMu.Unlock()
	s := &n.stats
	var fresh hwStats
	n.addStats(&fresh)
	n.addMore(&fresh)
	s.missedBefore, s.noBuffersBefore = fresh.missedBefore, fresh.noBuffersBefore
	var rxFrames, rxOctets, txFrames uint64
	for i := range n.queues {
		rx, tx := &n.rx[i], &n.tx[i]
		rx.mu.Lock()
		rxFrames += rx.frames + rx.dropped
		rxOctets += rx.octets + rx.droppedOctets
		rx.mu.Unlock()
		tx.mu.Lock()
		txFrames += less(tx.sent, tx.spare+tx.dropped)
		tx.mu.Unlock()
	}
	if rxFrames > s.rxFrames {
		const shortest = minWire + fcsLen
		s.rxOctets = max(s.rxOctets+shortest*(rxFrames-s.rxFrames), rxOctets+fcsLen*rxFrames)
		s.rxFrames = rxFrames
	}
	s.txFrames = max(s.txFrames, txFrames)
}

// read64 reads a counter of two registers, of which the high one clears both. A device
// that is gone has counted nothing.
func (n *nic) read64(low, high bus.Off) uint64 {
	v := uint64(n.regs.Read32(low))
	v |= uint64(n.regs.Read32(high)) << 32
	if v == ^uint64(0) {
		return 0
	}
	return v
}

// Stats reads the counters; netdev.Device. It takes about twenty register reads.
func (n *nic) Stats() netdev.Stats {
	n.check()
	n.statsMu.Lock()
	defer n.statsMu.Unlock()
	n.readStats()
	h := &n.stats
	// Frames that came between the reads of the two registers have their octets counted and their checks not yet: it does not go back when these are.
	h.rxBytes = max(h.rxBytes, less(h.rxOctets, fcsLen*h.rxFrames))
	st := netdev.Stats{
		RxPackets: h.rxFrames, TxPackets: h.txFrames,
		// The octet counter includes the frame check sequence, 13.7. The transmit octet
		// counter of QEMU's 82574L does so in some versions and not in others: the driver
		// counts what it gave to the device.
		RxBytes:    h.rxBytes,
		Multicast:  h.rxMulticast,
		Collisions: h.cols,

		RxLengthErrors: h.lengthErrs + h.undersize + h.oversize + h.fragments + h.jabber,
		RxCRCErrors:    h.crcErrs,
		RxFrameErrors:  h.rxErrs,
		RxMissedErrors: h.missed,

		TxErrors:        h.excessCols + h.lateCols + h.noCarrier,
		TxAbortedErrors: h.excessCols,
		TxWindowErrors:  h.lateCols,
		TxCarrierErrors: h.noCarrier,
	}
	for i := range n.queues {
		rx, tx := &n.rx[i], &n.tx[i]
		rx.mu.Lock()
		st.RxLengthErrors += rx.lengthErrors
		st.RxCRCErrors += rx.crcErrors
		st.RxFrameErrors += rx.frameErrors
		st.RxErrors += rx.garbage
		st.RxAllocFailed += rx.allocFailed
		st.RxDropped += rx.dropped
		rx.mu.Unlock()
		tx.mu.Lock()
		st.TxErrors += tx.errors
		st.TxDropped += tx.dropped
		st.TxBytes += tx.octets
		st.TxBusies += tx.busies
		tx.mu.Unlock()
	}
	st.RxErrors += st.RxLengthErrors + st.RxCRCErrors + st.RxFrameErrors
	return st
}

// less is a-b, not below 0: two registers are not read at one moment.
func less(a, b uint64) uint64 {
	if b > a {
		return 0
	}
	return a - b
}
