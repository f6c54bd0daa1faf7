package sim_test

import (
	"context"
	"fmt"
	"log"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/sim"
)

// Open a model and drive it: registers, and a transfer that takes 0.1 s of virtual time.
func Example() {
	m, err := sim.Start(context.Background(), sim.Config{
		Devices: []sim.DeviceSpec{{Name: "edu0", Model: "edu"}},
		Clock:   sim.Stepped,
	})
	if err != nil {
		log.Fatal(err)
	}
	defer m.Close()
	dev, err := m.Device("edu0")
	if err != nil {
		log.Fatal(err)
	}
	regs, err := dev.Region(0)
	if err != nil {
		log.Fatal(err)
	}
	regs.Write32(0x04, 0x1234)
	fmt.Printf("%s %s: liveness %#x\n", dev.Address(), pci.ReadID(dev.Config()), regs.Read32(0x04))

	mem, err := dev.DMA().Alloc(bus.DMARequest{Size: 64, Mask: 1<<28 - 1})
	if err != nil {
		log.Fatal(err)
	}
	defer mem.Free()
	pci.SetCommand(dev.Config(), pci.CmdMaster, 0)
	regs.Write32(0x80, uint32(mem.IOVA)) // from here
	regs.Write32(0x88, 0x40000)          // to the device's buffer
	regs.Write32(0x90, 64)
	regs.Write32(0x98, 1)
	m.Advance(99 * time.Millisecond)
	fmt.Println("after 99 ms:", regs.Read32(0x98))
	m.Advance(time.Millisecond)
	fmt.Println("after 100 ms:", regs.Read32(0x98))
	// Output:
	// 1000:00:03.0 1234:11e8: liveness 0xffffedcb
	// after 99 ms: 1
	// after 100 ms: 0
}

// A device that touches memory that is not its own is found out.
func ExampleMachine_StrayDMA() {
	m, err := sim.Start(context.Background(), sim.Config{
		Devices: []sim.DeviceSpec{{Name: "edu0", Model: "edu"}},
		Clock:   sim.Stepped,
	})
	if err != nil {
		log.Fatal(err)
	}
	defer m.Close()
	dev, err := m.Device("edu0")
	if err != nil {
		log.Fatal(err)
	}
	regs, err := dev.Region(0)
	if err != nil {
		log.Fatal(err)
	}
	pci.SetCommand(dev.Config(), pci.CmdMaster, 0)
	regs.Write32(0x80, 0x40000)
	regs.Write32(0x88, 0xbad000)
	regs.Write32(0x90, 16)
	regs.Write32(0x98, 3)
	m.Advance(100 * time.Millisecond)
	fmt.Println(m.StrayDMA())
	// Output:
	// 1 1000:00:03.0 edu0: stray DMA: write of 16 bytes at 0xbad000: no memory of this device's is there
}

// A card goes into a slot, and out again, by the hands of whoever drives the slot.
func ExampleMachine_Plug() {
	m, err := sim.Start(context.Background(), sim.Config{
		Devices: []sim.DeviceSpec{{Name: "rp0", Model: "root-port"}},
		Clock:   sim.Stepped,
		Ejected: func(name string) { fmt.Println(name, "left") },
	})
	if err != nil {
		log.Fatal(err)
	}
	defer m.Close()
	port, err := m.Function("rp0")
	if err != nil {
		log.Fatal(err)
	}
	exp, _ := pci.FindExpress(port.Config)
	control := exp.At + pci.ExpSltCtl
	if err := m.Plug(context.Background(), sim.DeviceSpec{Name: "edu0", Model: "edu", Bus: "rp0"}); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("Slot Status %#x\n", port.Config.Read16(exp.At+pci.ExpSltSta))
	port.Config.Write16(control, pci.LEDOn<<8) // power on
	found, err := m.Rescan(port)
	if err != nil {
		log.Fatal(err)
	}
	for _, f := range found {
		name, dev, _ := m.Named(f)
		fmt.Println(name, dev.Address(), f.ID)
		m.Forget(f)
		dev.Close()
	}
	port.Config.Write16(control, pci.SltCtlPowerOff|pci.LEDOff<<8)
	// Output:
	// Slot Status 0x49
	// edu0 1000:01:00.0 1234:11e8
	// edu0 left
}
