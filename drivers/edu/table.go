package edu

import (
	"fmt"
	"strings"

	"github.com/ring3dev/ring3/bus"
)

// registers is the table of the registers, for traces and fault reports.
var registers = []bus.Register{
	{Name: "ID", Off: regID, Access: bus.RO},
	{Name: "LIVE", Off: regLive},
	{Name: "FACTORIAL", Off: regFactorial},
	{Name: "STATUS", Off: regStatus, Bits: bits(bit{statusComputing, "COMPUTING"}, bit{statusInterrupt, "IRQ_WHEN_DONE"})},
	{Name: "IRQ", Off: regIRQ, Access: bus.RO, Bits: irqBits},
	{Name: "IRQACK", Off: regIRQAck, Access: bus.WO, Bits: irqBits},
	{Name: "DMASRC", Off: regDMASrc},
	{Name: "DMADST", Off: regDMADst},
	{Name: "DMACOUNT", Off: regDMACount},
	{Name: "DMACMD", Off: regDMACmd, Bits: bits(bit{dmaRun, "RUN"}, bit{dmaFromEdu, "FROM_EDU"}, bit{dmaInterrupt, "IRQ_WHEN_DONE"})},
}

// irqBits names what can be raised.
var irqBits = bits(bit{1 << 0, "COMPUTED"}, bit{1 << 8, "DMA_DONE"})

// bit is a bit of a register's value.
type bit struct {
	mask uint64
	name string
}

// bits makes the words of a value: the bits that are set, and what is left in hexadecimal.
func bits(table ...bit) func(v uint64) string {
	return func(v uint64) string {
		var s []string
		for _, b := range table {
			if v&b.mask != 0 {
				s = append(s, b.name)
				v &^= b.mask
			}
		}
		if v != 0 || len(s) == 0 {
			s = append(s, fmt.Sprintf("%#x", v))
		}
		return strings.Join(s, "|")
	}
}
