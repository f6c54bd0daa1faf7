// Package campaign is `ring3 fault`: it has drivers live with faults, a million times if that is wanted, and says what came of it.
//
// # A run
//
// A scenario is a driver's life: brought up, used, closed, with its results compared. A run lives it on a device of which something goes
// wrong (package bus/fault), takes away what was around the device, resets that, and lives it once more with nothing wrong. The verdict:
//
//	not made   the access at which something was to go wrong never came
//	harmless   nobody noticed, and all results were right
//	recovered  the driver went on by itself and what is lost is known, or it returned an error and was closed; the driver anew works in full
//	corrupt    some of what it gave as good is not, and then the same driver went on right by itself, or said that something is wrong; anew it works in full
//	mute       the driver did nothing any more and said nothing: who waited for it noticed; the driver anew works in full
//	wrong      it goes on giving as good what is not: whoever compared noticed; the driver anew works in full
//	failed     anything else: a panic, a hang, memory, vectors, goroutines or descriptors left behind, a dead link not noticed, a driver anew that
//	           does not work, or a driver on another machine beside all this that lost a frame
//
// # A campaign
//
// Run i of a campaign has the same faults for the same seed, wherever and with whatever others it is made: slices add up ([Sum]). Which accesses
// there are does not depend on the day either: they are written down (universe), since a driver's own goroutines make a few more or fewer in each life. Short
// scenarios have each access fail in each way first, in an order that the seed gives, and then two at once; long ones have one, two or three
// faults at random. The verdict of a run is the same each time but for races between the driver's goroutines and the device, which decide, for one, whether
// a driver noticed something that was harmless.
//
// Runs are made side by side, many at a time, since they mostly wait: for what never comes, and for the device's own time, which on bus/sim costs nothing.
// On QEMU and on VFIO a device is used again while it lives. A run that waits gives its place to another, and limits count
// the time that the process was given. What 65,536 runs left behind is counted together, exactly, while nothing else is done, and then looked for by halves.
//
// A failure is shrunk to fewer faults, and earlier ones, and told as one command:
//
//	ring3 fault run e1000e --fault 'TDT#2:gone'
//
// A panic in a goroutine that is not the run's own ends the program, as it would end a worker; the traceback bears the run's scenario and faults as its
// label, ring3fault.
package campaign
