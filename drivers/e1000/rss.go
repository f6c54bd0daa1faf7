package e1000

import "encoding/binary"

// rssKey is the key of the receive queues' hash: the one that Microsoft's specification of
// receive side scaling gives with its examples, and that therefore everybody's tests know.
var rssKey = [4 * rssrkWords]byte{
	0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0, 0xca, 0x2b, 0xcb,
	0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
}

// retaAlternate is four entries of the redirection table, whose bit 7 is the queue: every
// other hash goes to queue 1.
const retaAlternate = 0x80008000

// extended says whether the device writes extended receive descriptors, which alone hold a
// hash. The legacy ones of a single queue are the same for all chips.
func (n *nic) extended() bool { return n.queues > 1 }

// initRSS spreads what is received over the queues, 82574L 7.1.2: TCP by addresses and ports,
// other IP by addresses, everything else to queue 0. The 82574L hashes only with extended
// descriptors and RXCSUM.PCSD.
func (n *nic) initRSS() {
	if !n.chip.pcie {
		return
	}
	w := n.regs.Write32
	if n.queues == 1 {
		w(regRFCTL, 0)
		w(regMRQC, 0)
		return
	}
	w(regRFCTL, rfctlEXTEN)
	for i := range retaWords {
		w(regRETA(i), retaAlternate)
	}
	for i := range rssrkWords {
		w(regRSSRK(i), binary.LittleEndian.Uint32(rssKey[4*i:]))
	}
	w(regMRQC, uint32(mrqcRSS|mrqcTCPIPv4|mrqcIPv4|mrqcTCPIPv6|mrqcIPv6))
}
