package edu

import "github.com/ring3dev/ring3/bus"

// registers is the table of the registers, for traces and fault reports.
var registers = []bus.Register{
	{Name: "ID", Off: regID, Access: bus.RO},
	{Name: "LIVE", Off: regLive},
	{Name: "FACTORIAL", Off: regFactorial},
	{Name: "STATUS", Off: regStatus},
	{Name: "IRQ", Off: regIRQ, Access: bus.RO},
	{Name: "IRQACK", Off: regIRQAck, Access: bus.WO},
	{Name: "DMASRC", Off: regDMASrc},
	{Name: "DMADST", Off: regDMADst},
	{Name: "DMACOUNT", Off: regDMACount},
	{Name: "DMACMD", Off: regDMACmd},
}
