package host

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/trace"
	"github.com/ring3dev/ring3/internal/ledger"
)

// What a device did last stands in its group's ledger too, so that it is known of a worker that had no last words.

// flightArea is the area of a device's records in a ledger; nil where there is no room.
func flightArea(l *ledger.Ledger, device string) trace.Memory {
	if l == nil {
		return nil
	}
	a, _, err := l.Area("flight/"+device, trace.SharedWords)
	if err != nil { // a worker may have made it of another size
		return nil
	}
	return a
}

// lastAccesses are lines of the last accesses to a device whose worker has died, by the names that its driver has for registers; none where nothing
// is known. The records were the worker's to write.
func lastAccesses(l *ledger.Ledger, d DeviceInfo, drivers []*pci.Driver, n int) (lines []string) {
	m := flightArea(l, d.Name)
	if m == nil {
		return nil
	}
	o := trace.Options{Name: d.Name, Registers: registersOf(d, drivers)}
	for _, e := range o.Entries(d.Address, trace.Recover(m, n)) {
		lines = append(lines, e.String())
	}
	return lines[max(0, len(lines)-n):]
}

// registersOf are what a device's driver calls its registers.
func registersOf(d DeviceInfo, drivers []*pci.Driver) []bus.Register {
	i := slices.IndexFunc(drivers, func(x *pci.Driver) bool { return x.Name == d.Driver })
	if i < 0 || drivers[i].Registers == nil {
		return nil
	}
	var id pci.FunctionID
	if strings.Contains(d.ID, ":") { // a platform device has none
		if _, err := fmt.Sscanf(d.ID, "%x:%x", &id.Vendor, &id.Device); err != nil {
			return nil
		}
	}
	return drivers[i].Registers(id)
}
