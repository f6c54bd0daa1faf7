package testdev

import "github.com/ring3dev/ring3/bus"

// Registers, in both regions.
const (
	regTest   bus.Off = 0x00 // Test, WO, 8 bits: starts the test of that number, or ends the one that runs
	regWidth  bus.Off = 0x01 // Width, RO, 8 bits: of a write, in bytes; others: there is no such test
	regOffset bus.Off = 0x04 // Offset, RO: where in this region to write
	regData   bus.Off = 0x08 // Data, RO: what to write
	regCount  bus.Off = 0x0c // Count, RO: how many writes were as they should be
	regName   bus.Off = 0x10 // Name, RO: text, ended by a zero
)

const (
	regionMem = 0
	regionIO  = 1
	regSpace  = 0x20 // bytes that a region must have at least
	noTest    = 0xff // of Test: a number that no test has
	maxTests  = 16   // more are not asked for; QEMU's model has 3
	maxName   = 64
)

// registers describes them for traces and dumps.
func registers() []bus.Register {
	var all []bus.Register
	for _, region := range []int{regionMem, regionIO} {
		all = append(all,
			bus.Register{Region: region, Off: regTest, Name: "TEST", Access: bus.WO, Width: 1},
			bus.Register{Region: region, Off: regWidth, Name: "WIDTH", Access: bus.RO, Width: 1},
			bus.Register{Region: region, Off: regOffset, Name: "OFFSET", Access: bus.RO},
			bus.Register{Region: region, Off: regData, Name: "DATA", Access: bus.RO},
			bus.Register{Region: region, Off: regCount, Name: "COUNT", Access: bus.RO},
			bus.Register{Region: region, Off: regName, Name: "NAME", Access: bus.RO, Width: 1, Count: maxName},
		)
	}
	return all
}
