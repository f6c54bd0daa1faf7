// Command ring3 runs device drivers as ordinary, unprivileged processes. `ring3 help`
// lists its commands; package host is its manual.
package main

import (
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/drivers/e1000"
	"github.com/ring3dev/ring3/drivers/edu"
	"github.com/ring3dev/ring3/drivers/portbus"
	"github.com/ring3dev/ring3/drivers/portbus/aer"
	"github.com/ring3dev/ring3/drivers/portbus/bwctrl"
	"github.com/ring3dev/ring3/drivers/portbus/dpc"
	"github.com/ring3dev/ring3/drivers/portbus/pciehp"
	"github.com/ring3dev/ring3/drivers/portbus/pme"
	"github.com/ring3dev/ring3/drivers/portbus/vc"
	"github.com/ring3dev/ring3/host"
	"github.com/ring3dev/ring3/internal/bench"
	"github.com/ring3dev/ring3/internal/campaign"
	"github.com/ring3dev/ring3/rionet/mport"
	"github.com/ring3dev/ring3/tpmdd/crb"
	"github.com/ring3dev/ring3/tpmdd/tis"
)

func main() {
	p := host.Program{
		Drivers:      []*pci.Driver{e1000.Driver, edu.Driver, tis.Driver, crb.Driver, mport.Driver},
		Services:     []*portbus.ServiceDriver{&pme.Driver, &aer.Driver, pciehp.Driver(pciehp.Options{}), &dpc.Driver, &bwctrl.Driver, &vc.Driver},
		Bench:        bench.Command,
		BenchCompare: bench.CompareCommand,
		Fault:        campaign.Command,
	}
	p.Main()
}
