// Command slotcount-ring3 is a ring3 whose ports have the services of the usual one, and slotcount: `slotcount-ring3 help`
// lists its commands, which are ring3's.
//
//	slotcount-ring3 up rp0=sim:root-port edu0=sim:edu,under=rp0
package main

import (
	"example.com/slotcount"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/drivers/edu"
	"github.com/ring3dev/ring3/drivers/portbus"
	"github.com/ring3dev/ring3/drivers/portbus/aer"
	"github.com/ring3dev/ring3/drivers/portbus/pciehp"
	"github.com/ring3dev/ring3/host"
)

func main() {
	p := host.Program{
		Drivers:  []*pci.Driver{edu.Driver},
		Services: []*portbus.ServiceDriver{&aer.Driver, &slotcount.Driver, pciehp.Driver(pciehp.Options{})},
	}
	p.Main()
}
