// Package fault makes a device fail: a wrapper around any [bus.Device] that counts what a driver
// does and, at the access that a plan names, has it go wrong. A driver that is right on a good
// device is half written; the other half runs only when a register lies, an interrupt gets lost or
// the device is pulled out, and here that happens when it is asked for.
//
// # Use
//
//	plan, err := fault.Parse("STATUS#3:gone")
//	plan.Registers = driver.Registers(id) // names; without, BAR0+0x8
//	if err == nil {
//		err = plan.Check() // does the device have a STATUS?
//	}
//	dev := fault.Wrap(device, plan)
//
// The driver gets dev; [Device.Outcomes] says what became of each fault, [Device.Log] what the
// driver did. Package faulttest tries every access of a scenario, and prints what fails as a
// command that repeats it.
//
// A device that is in use gets other faults by [Device.Arm], for which accesses count from then on.
//
// # What counts
//
// One order holds every step: each read and write of a region or of config space, each call of
// Region, Alloc, Map, EnableIRQs, DisableIRQs and Reset, and each delivery of an interrupt.
// What a backend does by itself (its writes to config space in EnableIRQs, say) does not
// count, nor do Err, Done, IRQVectors, Info, Unmask, Free and Close.
//
// # Specifications
//
// A plan is a line of text, which Plan.String gives back exactly:
//
//	17:ones                  access 17, a read, gives all-ones
//	STATUS#3:gone            the link dies at the third access to STATUS
//	17:ones+irq0#2:irq-lost  two faults: any number are joined by plus signs
//
//	SPEC  = FAULT { "+" FAULT }
//	FAULT = POINT ":" KIND [ ":" NUMBER ]
//	POINT = NUMBER | PLACE "#" NUMBER
//	PLACE = a register's name ("CTRL", "RAL[3]") | "BAR0+0x8" | "cfg+0x4" | "irq0"
//	      | "Region" | "Alloc" | "Map" | "EnableIRQs" | "DisableIRQs" | "Reset"
//
// Numbers are decimal and count from 1 (offsets and vectors from 0). A register counts as one place
// for reads and writes, and at every width. The number of an access depends on what a driver's
// other goroutines do meanwhile; its number at a place hardly does, and is the better name.
//
// # Kinds
//
//	ones         read        it gives all-ones
//	zero         read        it gives 0
//	flip:BIT     read        it has that bit inverted
//	stuck:BIT    read        from here on the bit reads as the opposite of what it is now
//	lostwrite    write       it does not arrive
//	deny         call        it fails with an error that wraps bus.ErrBusy
//	irq-lost     interrupt   it is not delivered; INTx stays masked, as a line that is cut
//	irq-late:MS  interrupt   it is delivered after that many milliseconds (5)
//	irq-again    interrupt   it is delivered, and 1 ms later once more
//	irq-storm:N  interrupt   it is delivered N times (100), 50 us apart
//	garbage:SEED any         after it, rings in DMA memory hold random bytes
//	gone         any         the link is dead from here on, this access included
//	reset        access      after it the device resets by itself, and tells nobody
//	cfg-gone     any         config space reads as all-ones from here on and takes no writes; registers work
//	stall:MS     read, write it takes that many milliseconds (20)
//	irq-dead     interrupt   it is not delivered, nor is any later one of that vector
//	dma-flip:SEED any        after it one bit of a descriptor is inverted
//	dma-torn:SEED access     of what the device wrote into descriptors since, half arrived: the first 8 bytes of 16 for odd seeds, else the others
//	dma-lost     access      none of it arrived
//	dma-length:SEED access   in each of those descriptors a 16-bit field that it wrote (a length, for one) says another number
//
// An access is a read, a write or an interrupt: "since" is the access before an interrupt, and otherwise this one, for which posted
// writes are waited for. A seed is 1 where none is given. What takes effect "any" time does so at calls too.
//
// These happen to the process that makes the access, if it allows that (Plan.Process); any driver's goroutine may be the one that is hit:
//
//	panic            hang             lock (with the wrapper's lock held)   spin            kill   stop   exit:STATUS
//	leak:MB          leak-goroutines:N   leak-files:N
//	no-files         no-memory        the kernel gives no more of them (RLIMIT_NOFILE, RLIMIT_AS): system calls fail from here on
//	violate          the process breaks the protocol by which it is supervised
//
// The first process of a PID namespace, as a worker may be, can send itself no signal: there kill is exit:137 at once, and stop does nothing.
//
// A fault whose kind does not go with its access does nothing, which Outcomes tells. Interrupts that
// come before a driver looks are one wake-up, which says how many they were, as without this package.
//
// Rings are the pieces of memory that the device may write (not bus.ToDevice) and that have 64
// KiB at most; where there is none, all that the device may write. All bytes change, the
// same way for the same seed and order of allocation. That stands for every nonsense a device
// can write into descriptors and completions, and what the device reads there is nonsense too.
//
// A link that is gone reads as all-ones, Err wraps bus.ErrGone, Done is closed, vectors are
// closed and deliver nothing, calls fail; DisableIRQs works, and DMA memory stays until it is
// freed. The device inside has lost its bus mastering first, so that it writes no memory that the
// driver, rightly, frees.
//
// # Limits
//
// The wrapper is for tests: it takes a lock and some 200 ns for each access, and a goroutine for
// each vector, so that interrupts arrive a little later. The log keeps the first 65,536
// accesses. irq-late counts from when the bus delivered. A device that may not lie to its own
// backend (capabilities, MSI-X tables) is not made to: those accesses are not the driver's.
package fault
