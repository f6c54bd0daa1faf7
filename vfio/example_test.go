package vfio_test

import (
	"context"
	"fmt"
	"log"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/vfio"
)

// A device is opened by its address; what it reaches of memory is what was allocated for it.
func Example() {
	d, err := vfio.Open(context.Background(), "0000:03:00.0", vfio.Options{})
	if err != nil {
		log.Fatal(err) // one line: what is wrong, and what to do
	}
	defer d.Close()
	regs, err := d.Region(0)
	if err != nil {
		log.Fatal(err)
	}
	ring, err := d.DMA().Alloc(bus.DMARequest{Size: 64 << 10})
	if err != nil {
		log.Fatal(err)
	}
	defer ring.Free()
	irqs, err := d.EnableIRQs(bus.MSIX, 1)
	if err != nil {
		log.Fatal(err)
	}
	pci.SetCommand(d.Config(), pci.CmdMaster, 0) // now it may use the memory
	fmt.Printf("register 0 is %#x, the ring at %#x\n", regs.Read32(0), ring.IOVA)
	if _, err := irqs[0].Wait(context.Background()); err != nil {
		log.Fatal(d.Err()) // asked back, or closed
	}
}

// The functions of one IOMMU group are opened in one space, and reach each other's memory.
func ExampleOptions_space() {
	space := vfio.NewSpace()
	defer space.Close() // it lives on while a device is in it
	for _, addr := range []string{"0000:03:00.0", "0000:03:00.1"} {
		d, err := vfio.Open(context.Background(), addr, vfio.Options{Space: space})
		if err != nil {
			log.Fatal(err)
		}
		defer d.Close()
	}
	m, err := space.DMA().Alloc(bus.DMARequest{Size: 1 << 20})
	if err != nil {
		log.Fatal(err)
	}
	defer m.Free()
}

// Look tells beforehand what stands in the way.
func ExampleLook() {
	a, err := vfio.Look("0000:03:00.0", vfio.Options{})
	if err != nil {
		log.Fatal(err)
	}
	for _, m := range a.Members {
		fmt.Println(m.Addr, m.Driver, m.Blocks)
	}
	if a.Err != nil {
		fmt.Println("cannot be opened:", a.Err)
	}
}
