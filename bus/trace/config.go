package trace

import (
	"fmt"
	"strings"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// configRegisters names what every function has in its configuration space (PCI Local Bus
// 3.0, 6.1; type 0).
var configRegisters = []bus.Register{
	{Region: ConfigSpace, Off: pci.CfgVendor, Name: "VENDOR", Access: bus.RO, Width: 2},
	{Region: ConfigSpace, Off: pci.CfgDevice, Name: "DEVICE", Access: bus.RO, Width: 2},
	{Region: ConfigSpace, Off: pci.CfgCommand, Name: "COMMAND", Width: 2, Bits: commandBits},
	{Region: ConfigSpace, Off: pci.CfgStatus, Name: "STATUS", Access: bus.W1C, Width: 2},
	{Region: ConfigSpace, Off: pci.CfgRevision, Name: "REVISION", Access: bus.RO, Width: 4},
	{Region: ConfigSpace, Off: 0x0c, Name: "CACHE_LINE", Width: 1},
	{Region: ConfigSpace, Off: 0x0d, Name: "LATENCY", Width: 1},
	{Region: ConfigSpace, Off: pci.CfgHeader, Name: "HEADER", Access: bus.RO, Width: 1},
	{Region: ConfigSpace, Off: 0x0f, Name: "BIST", Width: 1},
	{Region: ConfigSpace, Off: pci.CfgBAR0, Name: "BAR", Width: 4, Count: 6},
	{Region: ConfigSpace, Off: pci.CfgSubVendor, Name: "SUBVENDOR", Access: bus.RO, Width: 2},
	{Region: ConfigSpace, Off: pci.CfgSubDevice, Name: "SUBDEVICE", Access: bus.RO, Width: 2},
	{Region: ConfigSpace, Off: pci.CfgROM, Name: "ROM", Width: 4},
	{Region: ConfigSpace, Off: pci.CfgCapPtr, Name: "CAP_PTR", Access: bus.RO, Width: 1},
	{Region: ConfigSpace, Off: pci.CfgIRQLine, Name: "IRQ_LINE", Width: 1},
	{Region: ConfigSpace, Off: pci.CfgIRQPin, Name: "IRQ_PIN", Access: bus.RO, Width: 1},
}

// commandBits renders Command (6.2.2).
func commandBits(v uint64) string {
	var s []string
	for i, n := range [...]string{0: "IO", 1: "MEM", 2: "MASTER", 6: "PARITY", 8: "SERR", 10: "INTX_DISABLE"} {
		if bit := uint64(1) << i; n != "" && v&bit != 0 {
			s = append(s, n)
			v &^= bit
		}
	}
	if v != 0 || len(s) == 0 {
		s = append(s, fmt.Sprintf("%#x", v))
	}
	return strings.Join(s, "|")
}
