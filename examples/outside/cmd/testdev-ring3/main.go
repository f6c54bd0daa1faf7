// Command testdev-ring3 is a ring3 with the testdev driver: `testdev-ring3 help` lists its
// commands, which are ring3's.
//
//	testdev-ring3 run dev0=qemu:pci-testdev -- sh -c 'cat /sys/bus/pci/drivers/testdev/*/tests'
package main

import (
	"example.com/testdev"
	"github.com/ring3dev/ring3/host"
)

func main() { host.Main(testdev.Driver) }
