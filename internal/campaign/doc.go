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
// # Through a supervisor
//
// All that proves drivers. The backend up, and up-qemu with QEMU's 82574L, prove supervision: a real `ring3 up` with its workers, one for each kind
// of group, in which nobody but the supervisor replaces a driver. A run arms faults on a device that is in service (`ring3 fault arm`, which an instance started with --fault-arm
// takes), at the driver's accesses from then on, those of the process too, or kills or stops the worker from outside (SIGKILL:3, SIGSTOP:3: so many
// milliseconds after the use began). Then it uses the group as a user does, by files of the tree and the control socket: a count of pktgen's, commands by
// /dev/tpmrm0, a card that comes and goes; and uses it again until that is right in full, without lending a hand. The verdicts are those above, where
// "recovered" may be by another worker, and one more, gone. Of those that mean something else here:
//
//	corrupt    some of what was given as good is not, and then the same worker, or another one, went on right
//	mute       the group is in service, is of no use, and nobody noticed for 30 s: `ring3 reload` has it back
//	wrong      the same, but that it goes on giving as good what is not
//	gone       the link of a device died, and `ring3 ls` says so: hardware, which `ring3 reload` has back where it is a model
//	failed     the supervisor ended or said nonsense, gave the group up, or has more descriptors, goroutines, mounts, processes or files at rest than at first;
//	           a file that has a bound was not answered; a reload did not help; or another group, a pair of controllers that sends all the time, lost a
//	           frame or its worker
//
// What may come yet of a fault whose worker lived, such as a goroutine that hangs and that nobody waited for, ends with that worker: it is killed between
// runs, which counts apart. Kinds that take seconds to be noticed have a small share. A failure is not shrunk, since a run has an instance of its own then.
// Of groups that there are several of, ports, it says which one it was; the command repeats it in the first, since they are alike.
//
// # Repeating
//
// A failure of the other backends is shrunk to fewer faults, and earlier ones, and told as one command:
//
//	ring3 fault run e1000e --fault 'TDT#2:gone'
//
// A panic in a goroutine that is not the run's own ends the program, as it would end a worker; the traceback bears the run's scenario and faults as its
// label, ring3fault.
package campaign
