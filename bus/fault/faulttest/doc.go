// Package faulttest runs a scenario of a driver again and again, each time with something else
// going wrong (package [fault]): every access of it, in every way that applies, and every two.
//
//	func TestFaults(t *testing.T) {
//		faulttest.Every(t, faulttest.Scenario{
//			Name: "bringup", Driver: "edu", Registers: registers,
//			Open: func(t testing.TB) bus.Device { ... }, // a fresh device
//			Run: func(ctx context.Context, dev bus.Device) error {
//				d, err := Driver.Probe(ctx, dev, pci.Env{Name: "edu0"})
//				if err != nil {
//					return err
//				}
//				return d.Close()
//			},
//		}, faulttest.Options{})
//	}
//
// # What is checked
//
// The first run has no fault, and must succeed; its accesses are the ones that fail in the others.
// Of each of those it is wanted that
//
//   - it does not panic. In a goroutine of the driver's own a panic ends the process; the
//     traceback then has the run's label, ring3fault, with the specification.
//   - it returns. ctx ends Options.Patience after the fault was made, so a driver waits that long
//     for a device that lies; a run that goes on for a minute after that hangs, and all stacks are
//     shown.
//   - it leaves nothing: DMA memory, interrupt vectors, goroutines (of each run), descriptors and
//     mappings (of all together).
//   - an error begins, on each line, with the device's address and the driver's name, goes on with the
//     step, and wraps an error of package bus or context.
//   - where Run found a result wrong that the driver gave as good ([Wrong]), one of the faults is
//     one that a driver need not notice (Scenario.Notices). A wrong bit in a register it cannot notice; a
//     dead link it must.
//
// No check depends on how fast the machine is.
//
// # Repeating a run
//
// A failure is told as the command that repeats it, from the module's root:
//
//	RING3_FAULT='FACTORIAL#2:gone' go test ./drivers/edu -run '^TestFaults$/^factorial$'
//
// With that variable Every makes one run, of that specification. With -v it lists what the driver
// did, access by access, with the number and the name of each, so that other specifications can be
// tried. RING3_FAULT= (empty) lists the run without a fault.
//
// # How many
//
// A scenario of n accesses takes about 5n runs, with Pairs some (5n)²/2. Runs are made side by
// side, since they mostly wait; a model in this process (bus/sim, on the Eager clock) takes
// about a millisecond for each. Options.Max spreads fewer runs evenly, where a device is slower
// to open. Goroutines are told apart by profiler labels, which they pass on to those they start.
//
// Under the race detector, DMA memory of a backend that maps a caller's is memory that the
// detector does not watch: a device that lies about being done makes races which are not the
// driver's.
package faulttest
