package edu

import "github.com/ring3dev/ring3/bus"

// registers is the table of the registers, for traces and fault reports.
var registers = []bus.Register{
	{Name: "ID", Off: regID, Access: bus.RO},
	{Name: "LIVE", Off: regLive},
	{Name: "FACTORIAL", Off: regFactorial},
	{Name: "STATUS", Off: regStatus, Bits: bus.BitNames(bus.Bit{Mask: statusComputing, Name: "COMPUTING"}, bus.Bit{Mask: statusInterrupt, Name: "IRQ_WHEN_DONE"})},
	{Name: "IRQ", Off: regIRQ, Access: bus.RO, Bits: irqBits},
	{Name: "IRQACK", Off: regIRQAck, Access: bus.WO, Bits: irqBits},
	{Name: "DMASRC", Off: regDMASrc},
	{Name: "DMADST", Off: regDMADst},
	{Name: "DMACOUNT", Off: regDMACount},
	{Name: "DMACMD", Off: regDMACmd, Bits: bus.BitNames(bus.Bit{Mask: dmaRun, Name: "RUN"}, bus.Bit{Mask: dmaFromEdu, Name: "FROM_EDU"}, bus.Bit{Mask: dmaInterrupt, Name: "IRQ_WHEN_DONE"})},
}

// irqBits names what can be raised.
var irqBits = bus.BitNames(bus.Bit{Mask: 1 << 0, Name: "COMPUTED"}, bus.Bit{Mask: 1 << 8, Name: "DMA_DONE"})
