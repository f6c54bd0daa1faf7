package host

import (
	"os"
	"testing"

	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/drivers/e1000"
	"github.com/ring3dev/ring3/drivers/edu"
	"github.com/ring3dev/ring3/drivers/portbus"
	"github.com/ring3dev/ring3/drivers/portbus/pciehp"
	"github.com/ring3dev/ring3/rionet/mport"
	"github.com/ring3dev/ring3/tpmdd/crb"
	"github.com/ring3dev/ring3/tpmdd/tis"
)

// TestMain lets this binary be a worker, with some drivers.
func TestMain(m *testing.M) {
	testProgram.workerMain()
	os.Exit(m.Run())
}

var testProgram = &Program{
	Drivers:  []*pci.Driver{e1000.Driver, edu.Driver, tis.Driver, crb.Driver, mport.Driver},
	Services: []*portbus.ServiceDriver{pciehp.Driver(pciehp.Options{})},
}
