package e1000

import (
	"encoding/binary"
	"fmt"
)

// describeTx renders a transmit descriptor as it is published, for traces: legacy, context
// or data, 3.3.3, 3.3.6 and 3.3.7.
func describeTx(d []byte) string {
	if len(d) < descSize {
		return fmt.Sprintf("% x", d)
	}
	a, v := binary.LittleEndian.Uint64(d[0:8]), binary.LittleEndian.Uint64(d[8:16])
	cmd := txBits(v) & txBitsCmd
	switch {
	case txBits(v)&txBitsDEXT == 0:
		return fmt.Sprintf("%#x+%d %s", a, v&0xffff, cmd)
	case v>>20&0xf == 0:
		// The first word is six offsets: of the IP checksum and the TCP or UDP one.
		return fmt.Sprintf("context ip %d,%d,%d tcp %d,%d,%d mss %d hdr %d pay %d %s", a&0xff, a>>8&0xff, a>>16&0xffff,
			a>>32&0xff, a>>40&0xff, a>>48, v>>48, v>>40&0xff, v&0xfffff, ctxBits(v)&ctxBitsCmd)
	}
	s := fmt.Sprintf("data %#x+%d %s", a, v&0xfffff, dataBits(v)&dataBitsCmd)
	if dataBits(v)&dataBitsVLE != 0 {
		s += fmt.Sprintf(" vlan %#x", v>>48)
	}
	return s
}

// describeRx renders a receive descriptor as it is published: an empty buffer.
func describeRx(d []byte) string {
	if len(d) < descSize {
		return fmt.Sprintf("% x", d)
	}
	s := fmt.Sprintf("%#x", binary.LittleEndian.Uint64(d[0:8]))
	if v := binary.LittleEndian.Uint64(d[8:16]); v != 0 {
		s += fmt.Sprintf(" %#x", v)
	}
	return s
}

// The second words of the three kinds of transmit descriptors, only for rendering them. The
// command's bits mean different things in each.
type (
	txBits   uint64
	ctxBits  uint64
	dataBits uint64
)

const (
	txBitsDEXT  txBits   = 1 << 29 // not a legacy descriptor
	txBitsCmd   txBits   = 0xff << 24
	ctxBitsCmd  ctxBits  = 0xff << 24
	dataBitsCmd dataBits = 0xff<<24 | 0x3<<40
	dataBitsVLE dataBits = 1 << 30
)

func (v txBits) String() string   { return names(v, txBitNames) }
func (v ctxBits) String() string  { return names(v, ctxBitNames) }
func (v dataBits) String() string { return names(v, dataBitNames) }

var txBitNames = []bitName[txBits]{
	{1 << 24, "EOP"}, {1 << 25, "IFCS"}, {1 << 26, "IC"}, {1 << 27, "RS"}, {1 << 28, "RPS"}, {1 << 29, "DEXT"}, {1 << 30, "VLE"}, {1 << 31, "IDE"},
}

var ctxBitNames = []bitName[ctxBits]{
	{1 << 24, "TCP"}, {1 << 25, "IP"}, {1 << 26, "TSE"}, {1 << 27, "RS"}, {1 << 29, "DEXT"}, {1 << 31, "IDE"},
}

var dataBitNames = []bitName[dataBits]{
	{1 << 24, "EOP"}, {1 << 25, "IFCS"}, {1 << 26, "TSE"}, {1 << 27, "RS"}, {1 << 29, "DEXT"}, {1 << 30, "VLE"}, {1 << 31, "IDE"},
	{1 << 40, "IXSM"}, {1 << 41, "TXSM"},
}
