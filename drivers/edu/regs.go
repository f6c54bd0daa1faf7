package edu

import "github.com/ring3dev/ring3/bus"

// Registers in BAR 0, 32 bits each ("MMIO area spec").
const (
	regID        bus.Off = 0x00 // Identification, RO: 0xRRrr00ed, major and minor revision
	regLive      bus.Off = 0x04 // Card Liveness Check, RW: reads as the complement of what was written
	regFactorial bus.Off = 0x08 // Factorial Computation, RW: n becomes n!
	regStatus    bus.Off = 0x20 // Status, RW
	regIRQ       bus.Off = 0x24 // Interrupt Status, RO: what was raised and not acknowledged
	regIRQAck    bus.Off = 0x64 // Interrupt Acknowledge, WO: bits to clear
	regDMASrc    bus.Off = 0x80 // DMA Source Address, RW
	regDMADst    bus.Off = 0x88 // DMA Destination Address, RW
	regDMACount  bus.Off = 0x90 // DMA Transfer Count, RW, bytes
	regDMACmd    bus.Off = 0x98 // DMA Command, RW
)

const (
	regSpace        = 1 << 20
	idMask          = 0xffff // of Identification
	idMagic         = 0x00ed
	maxFactorial    = 12     // 13! does not fit the register
	statusComputing = 1 << 0 // of Status, RO
	statusInterrupt = 1 << 7 // raise an interrupt when computed
	dmaRun          = 1 << 0 // of DMA Command: start; stays set until done
	dmaFromEdu      = 1 << 1 // from the buffer to memory
	dmaInterrupt    = 1 << 2 // raise an interrupt when done
	dmaMask         = 1<<28 - 1
	bufferAt        = 0x40000 // the device's DMA buffer, as DMA addresses see it
	bufferLen       = 4095    // bytes of it that are used: see doc.go
	timeout         = 5e9     // nanoseconds for an operation; the model needs 0.1 s
)
