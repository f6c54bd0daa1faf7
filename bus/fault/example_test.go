package fault_test

import (
	"context"
	"fmt"
	"log"

	"github.com/ring3dev/ring3/bus/fault"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/sim"
	"github.com/ring3dev/ring3/drivers/edu"
)

// A device is pulled out while its driver reads the result.
func Example() {
	ctx := context.Background()
	m, err := sim.Start(ctx, sim.Config{Devices: []sim.DeviceSpec{{Name: "edu0", Model: "edu"}}, Clock: sim.Eager})
	if err != nil {
		log.Fatal(err)
	}
	defer m.Close()
	in, err := m.Device("edu0")
	if err != nil {
		log.Fatal(err)
	}
	plan, err := fault.Parse("FACTORIAL#2:gone")
	if err != nil {
		log.Fatal(err)
	}
	plan.Registers = edu.Driver.Registers(pci.ReadID(in.Config()))
	if err := plan.Check(); err != nil {
		log.Fatal(err)
	}
	dev := fault.Wrap(in, plan)
	defer dev.Close()
	inst, err := edu.Driver.Probe(ctx, dev, pci.Env{Name: "edu0"})
	if err != nil {
		log.Fatal(err)
	}
	defer inst.Close()
	_, err = inst.(*edu.Device).Factorial(ctx, 5)
	fmt.Println(err)
	for _, o := range dev.Outcomes() {
		// Which access that is depends on when the interrupt was served.
		fmt.Println(o.Fault, "made:", o.Made, "at", o.Access.Place, o.Access.Op)
	}
	// Output:
	// 1000:00:03.0 edu: factorial of 5: 1000:00:03.0: the link died by fault FACTORIAL#2:gone: device gone
	// FACTORIAL#2:gone made: true at FACTORIAL read
}
