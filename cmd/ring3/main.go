// Command ring3 runs device drivers as ordinary, unprivileged processes. `ring3 help`
// lists its commands; package host is its manual.
package main

import (
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/drivers/e1000"
	"github.com/ring3dev/ring3/drivers/edu"
	"github.com/ring3dev/ring3/host"
	"github.com/ring3dev/ring3/internal/bench"
	"github.com/ring3dev/ring3/tpmdd/crb"
	"github.com/ring3dev/ring3/tpmdd/tis"
)

func main() {
	p := host.Program{
		Drivers:      []*pci.Driver{e1000.Driver, edu.Driver, tis.Driver, crb.Driver},
		Bench:        bench.Command,
		BenchCompare: bench.CompareCommand,
	}
	p.Main()
}
