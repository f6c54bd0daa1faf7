package e1000

import (
	"encoding/binary"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/dma"
)

// descSize is the size of a descriptor of either kind, 3.2.3 and 3.3.3.
const descSize = 16

// Frame lengths, without the frame check sequence.
const (
	headerLen = 14 // an Ethernet header
	tagLen    = 4  // a VLAN tag
	minFrame  = headerLen
	minWire   = 60 // the shortest frame on the wire
	minBuf    = 64 // the smallest transmit buffer: a padded frame, a cache line
	fcsLen    = 4
)

// frameLen is the longest frame at an MTU: with one VLAN tag.
func frameLen(mtu int) int { return headerLen + tagLen + mtu }

// txCmd is the second word of a legacy transmit descriptor, 3.3.3: length, command, and
// the status that the device writes.
type txCmd uint64

const (
	txLen  txCmd = 0xffff << 0
	txEOP  txCmd = 1 << 24 // end of packet
	txIFCS txCmd = 1 << 25 // insert frame check sequence
	txTSE  txCmd = 1 << 26 // context and data descriptors: segment
	txRS   txCmd = 1 << 27 // report status
	txDEXT txCmd = 1 << 29 // a context or data descriptor, not a legacy one
	txVLE  txCmd = 1 << 30 // insert a VLAN tag
	txIDE  txCmd = 1 << 31 // delay the interrupt
	txDD   txCmd = 1 << 32 // done
	txVLAN txCmd = 0xffff << 48

	// Data descriptors, 3.3.7.
	txData txCmd = 1 << 20 // the kind of an extended descriptor; context is 0
	txIXSM txCmd = 1 << 40 // insert the IPv4 header's checksum
	txTXSM txCmd = 1 << 41 // insert the TCP or UDP checksum

	// Context descriptors, 3.3.6.
	ctxPaylen txCmd = 0xfffff << 0
	ctxTCP    txCmd = 1 << 24
	ctxIPv4   txCmd = 1 << 25
	ctxHdrlen txCmd = 0xff << 40
	ctxMSS    txCmd = 0xffff << 48
)

// txContext is a context descriptor, 3.3.6: where checksums begin, end and stand, and how the
// frame is cut into segments.
type txContext struct {
	sums uint64 // the first word
	cmd  txCmd
}

// The fields of a context descriptor's first word. An end of 0 is the frame's.
const (
	ctxIPCSS uint64 = 0xff << 0    // IPv4 header: start,
	ctxIPCSO uint64 = 0xff << 8    // checksum,
	ctxIPCSE uint64 = 0xffff << 16 // last byte
	ctxTUCSS uint64 = 0xff << 32   // TCP or UDP: start,
	ctxTUCSO uint64 = 0xff << 40   // checksum,
	ctxTUCSE uint64 = 0xffff << 48 // last byte
)

// putContext writes descriptor i of a ring.
func putContext(ring []byte, i uint32, c txContext) {
	d := ring[uint64(i)*descSize:][:descSize]
	binary.LittleEndian.PutUint64(d[0:8], c.sums)
	binary.LittleEndian.PutUint64(d[8:16], uint64(c.cmd))
}

// putTx writes descriptor i of a ring: status 0, so that DD means done.
func putTx(ring []byte, i uint32, addr bus.IOVA, cmd txCmd) {
	at := uint64(i) * descSize
	d := ring[at : at+descSize : at+descSize] // of constant size: cheaper
	// Mostly it stands there already: a pool hands out buffers in order. What is not written
	// stays in the device's cache.
	if binary.LittleEndian.Uint64(d[0:8]) != uint64(addr) {
		binary.LittleEndian.PutUint64(d[0:8], uint64(addr))
	}
	if binary.LittleEndian.Uint64(d[8:16]) != uint64(cmd) {
		binary.LittleEndian.PutUint64(d[8:16], uint64(cmd))
	}
}

// reportTx sets RS in descriptor i, and what else report has.
func reportTx(ring []byte, i uint32, report txCmd) {
	d := ring[uint64(i)*descSize+8:][:8]
	binary.LittleEndian.PutUint64(d, binary.LittleEndian.Uint64(d)|uint64(report))
}

// doneTx says whether the device is done with descriptor i.
func doneTx(ring []byte, i uint32) bool {
	return dma.Load32(ring, int(i)*descSize+12)&uint32(txDD>>32) != 0
}

// rxStat is the second word of a legacy receive descriptor, 3.2.3, as the device wrote
// it: not to be trusted.
type rxStat uint64

const (
	rxLen  rxStat = 0xffff << 0
	rxDD   rxStat = 1 << 32 // done
	rxEOP  rxStat = 1 << 33 // end of packet
	rxIXSM rxStat = 1 << 34 // checksums were not looked at
	rxVP   rxStat = 1 << 35 // a VLAN tag was stripped
	rxTUCS rxStat = 1 << 37 // TCP or UDP checksum was calculated
	rxIPCS rxStat = 1 << 38 // IPv4 checksum was calculated
	rxCE   rxStat = 1 << 40 // CRC or alignment error
	rxSE   rxStat = 1 << 41 // symbol error
	rxSEQ  rxStat = 1 << 42 // sequence error
	rxCXE  rxStat = 1 << 44 // carrier extension error
	rxTUE  rxStat = 1 << 45 // TCP or UDP checksum is wrong
	rxIPE  rxStat = 1 << 46 // IPv4 checksum is wrong
	rxRXE  rxStat = 1 << 47 // receive data error
	rxVLAN rxStat = 0xffff << 48
	rxErrs        = rxCE | rxSE | rxSEQ | rxCXE | rxRXE
)

func (v rxStat) String() string { return names(v&^(rxLen|rxVLAN), rxNames) }

var rxNames = []bitName[rxStat]{
	{rxDD, "DD"}, {rxEOP, "EOP"}, {rxIXSM, "IXSM"}, {rxVP, "VP"}, {rxTUCS, "TCPCS"}, {rxIPCS, "IPCS"},
	{rxCE, "CE"}, {rxSE, "SE"}, {rxSEQ, "SEQ"}, {rxCXE, "CXE"}, {rxTUE, "TCPE"}, {rxIPE, "IPE"}, {rxRXE, "RXE"},
}

// putRx writes descriptor i of a ring: an empty buffer.
func putRx(ring []byte, i uint32, addr bus.IOVA) {
	d := ring[uint64(i)*descSize:][:descSize]
	binary.LittleEndian.PutUint64(d[8:16], 0)
	binary.LittleEndian.PutUint64(d[0:8], uint64(addr))
}

// statRx reads the status of descriptor i, once.
func statRx(ring []byte, i uint32) rxStat {
	return rxStat(dma.Load64(ring, int(i)*descSize+8))
}

// extended makes of the second word of an extended receive descriptor, 82574L 7.1.5, what it would
// be in a legacy one: status and errors in the low half, there in the middle; length and VLAN
// tag in the high half. It moves all bits, so that what no device writes stays such.
func extended(w uint64) rxStat {
	return rxStat(w>>32&0xffff | w<<32&0x000000ff_00000000 | w<<16&0x0000ff00_00000000 | w<<8&0xffff0000 | w&0xffff0000_00000000)
}

// meta is what the device says of a frame: whether the checksums are right, and its tag.
func (v rxStat) meta() (flags dma.MetaFlags, vlan uint16) {
	if v&(rxTUCS|rxIXSM|rxTUE|rxIPE) == rxTUCS {
		flags |= dma.CsumGood
	}
	if v&rxVP != 0 {
		flags |= dma.VLAN
		vlan = uint16(get(v, rxVLAN))
	}
	return flags, vlan
}

// rxVerdict is what becomes of a received descriptor.
type rxVerdict uint8

const (
	rxGood    rxVerdict = iota
	rxLength            // the length is impossible, or the frame goes on in the next descriptor
	rxCRC               // CRC or alignment
	rxFrame             // other errors of the receiver
	rxGarbage           // nothing that the device can have written
)

// decode checks a status with DD set, of a buffer of size bytes. n is the frame's length,
// from minFrame to size, where the verdict is rxGood, and 0 otherwise.
func (v rxStat) decode(size int) (n int, verdict rxVerdict) {
	n = int(v & rxLen)
	switch {
	case v == ^rxStat(0):
		return 0, rxGarbage
	case v&rxCE != 0:
		return 0, rxCRC
	case v&rxErrs != 0:
		return 0, rxFrame
	case v&rxEOP == 0, n < minFrame, n > size:
		return 0, rxLength
	}
	return n, rxGood
}
