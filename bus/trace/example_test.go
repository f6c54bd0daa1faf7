package trace_test

import (
	"context"
	"fmt"
	"strings"

	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/sim"
	"github.com/ring3dev/ring3/bus/trace"
	"github.com/ring3dev/ring3/drivers/edu"
)

// What drivers/edu does to its device to compute 5!, without the times.
func Example() {
	ctx := context.Background()
	m, err := sim.Start(ctx, sim.Config{Devices: []sim.DeviceSpec{{Name: "edu0", Model: "edu"}}, Clock: sim.Eager})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer m.Close()
	dev, err := m.Device("edu0")
	if err != nil {
		fmt.Println(err)
		return
	}
	traced := trace.Wrap(dev, trace.Options{Name: "edu0", Registers: edu.Driver.Registers(pci.FunctionID{})})
	defer traced.Close()
	inst, err := edu.Driver.Probe(ctx, traced, pci.Env{Name: "edu0"})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer inst.Close()
	if _, err := inst.(*edu.Device).Factorial(ctx, 5); err != nil {
		fmt.Println(err)
	}
	for _, e := range trace.Snapshot([]*trace.Device{traced}, 100) {
		if e.Reg() == "FACTORIAL" || e.Kind == trace.IRQs {
			fmt.Println(strings.Join(strings.Fields(e.String())[3:], " "))
		}
	}
	// Output:
	// irqs - enable 0x1 MSI
	// write bar0+0x8/4 FACTORIAL 0x5
	// read bar0+0x8/4 FACTORIAL 0x78
}
