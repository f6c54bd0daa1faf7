package uio_test

import (
	"context"
	"fmt"
	"log"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/uio"
)

// A root port that uio_pci_generic has, watched by a program that root runs. One that is not
// root's is passed the files: Options.Files.
func Example() {
	ctx := context.Background()
	d, err := uio.Open(ctx, "0000:00:05.0", uio.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer d.Close()
	fmt.Println(d.Function().ID, "leads to bus", d.Function().Secondary)
	irqs, err := d.EnableIRQs(bus.INTx, 1)
	if err != nil {
		log.Fatal(err)
	}
	for {
		if _, err := irqs[0].Wait(ctx); err != nil {
			log.Fatal(err)
		}
		// Here the device is made to lower its line; then it may fire again.
		if aer, ok := pci.FindExtCap(d.Config(), pci.ExtCapAER); ok {
			const rootStatus = 0x30
			d.Config().Write32(aer+rootStatus, d.Config().Read32(aer+rootStatus))
		}
		irqs[0].Unmask()
	}
}
