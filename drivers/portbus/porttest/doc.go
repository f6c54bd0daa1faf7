// Package porttest is a host for tests of ports and their services: it owns the bus of a machine (bus/sim, bus/qemu), binds drivers in order,
// and is the pci.Hierarchy that ports see. What is logged and what events are sent is recorded, in the machine's time.
//
//	b, _ := portbus.New(pciehp.Driver(pciehp.Options{}))
//	r := porttest.New(t, sim.Config{Clock: sim.Eager, Devices: ...}, b, edu.Driver)
//	r.AwaitLine("Slot(0): Link Up")
//
// [New] starts a machine of bus/sim; [Over] takes any other. Both enumerate nothing: the machine did. They bind what there is, ports
// before what stands behind them, and take everything out of service in a cleanup, leaves first. The driver of ports
// need not be listed.
//
// # What it keeps of the contract of pci.Hierarchy
//
// One of Rescan, Remove and the unbinding at the end runs at a time; whoever waits for its turn stops waiting when its ctx
// ends. Find, Below and Uevent wait for none of them.
package porttest
