package e1000

import (
	"encoding/binary"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/dma"
)

// descSize is the size of a descriptor of either kind, 3.2.3 and 3.3.3.
const descSize = 16

// bufSize is the size of a receive buffer (RCTL.BSIZE 0), and of the buffers that are
// made for sending.
const bufSize = dma.BufSize

// Frame lengths, without the frame check sequence.
const (
	mtu      = 1500
	minFrame = 14           // an Ethernet header
	maxFrame = 14 + 4 + mtu // with one VLAN tag
	minWire  = 60           // the shortest frame on the wire
	minBuf   = 64           // the smallest transmit buffer: a padded frame, a cache line
	fcsLen   = 4
)

// txCmd is the second word of a legacy transmit descriptor, 3.3.3: length, command, and
// the status that the device writes.
type txCmd uint64

const (
	txLen  txCmd = 0xffff << 0
	txEOP  txCmd = 1 << 24 // end of packet
	txIFCS txCmd = 1 << 25 // insert frame check sequence
	txRS   txCmd = 1 << 27 // report status
	txDD   txCmd = 1 << 32 // done
)

// putTx writes descriptor i of a ring: status 0, so that DD means done.
func putTx(ring []byte, i uint32, addr bus.IOVA, cmd txCmd) {
	d := ring[uint64(i)*descSize:][:descSize]
	// Mostly it stands there already: a pool hands out buffers in order. What is not written
	// stays in the device's cache.
	if binary.LittleEndian.Uint64(d[0:8]) != uint64(addr) {
		binary.LittleEndian.PutUint64(d[0:8], uint64(addr))
	}
	if binary.LittleEndian.Uint64(d[8:16]) != uint64(cmd) {
		binary.LittleEndian.PutUint64(d[8:16], uint64(cmd))
	}
}

// reportTx sets RS in descriptor i.
func reportTx(ring []byte, i uint32) {
	d := ring[uint64(i)*descSize+8:][:8]
	binary.LittleEndian.PutUint64(d, binary.LittleEndian.Uint64(d)|uint64(txRS))
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
	rxCE   rxStat = 1 << 40 // CRC or alignment error
	rxSE   rxStat = 1 << 41 // symbol error
	rxSEQ  rxStat = 1 << 42 // sequence error
	rxCXE  rxStat = 1 << 44 // carrier extension error
	rxRXE  rxStat = 1 << 47 // receive data error
	rxErrs        = rxCE | rxSE | rxSEQ | rxCXE | rxRXE
)

func (v rxStat) String() string { return names(v&^rxLen, rxNames) }

var rxNames = []bitName[rxStat]{
	{rxDD, "DD"}, {rxEOP, "EOP"}, {rxCE, "CE"}, {rxSE, "SE"}, {rxSEQ, "SEQ"}, {rxCXE, "CXE"}, {rxRXE, "RXE"},
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

// rxVerdict is what becomes of a received descriptor.
type rxVerdict uint8

const (
	rxGood    rxVerdict = iota
	rxLength            // the length is impossible, or the frame goes on in the next descriptor
	rxCRC               // CRC or alignment
	rxFrame             // other errors of the receiver
	rxGarbage           // nothing that the device can have written
)

// decode checks a status with DD set. n is the frame's length, from minFrame to bufSize,
// where the verdict is rxGood, and 0 otherwise.
func (v rxStat) decode() (n int, verdict rxVerdict) {
	n = int(v & rxLen)
	switch {
	case v == ^rxStat(0):
		return 0, rxGarbage
	case v&rxCE != 0:
		return 0, rxCRC
	case v&rxErrs != 0:
		return 0, rxFrame
	case v&rxEOP == 0, n < minFrame, n > bufSize:
		return 0, rxLength
	}
	return n, rxGood
}
