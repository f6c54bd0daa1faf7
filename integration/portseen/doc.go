// Package portseen plays a scenario to PCI Express ports and writes down what is seen of it: what is logged, what files say,
// the errors of writes to them, uevents. The very same code runs in a VM, where the kernel's pcieport, pciehp and aer answer
// (integration/guest), and beside ring3, so that two recordings can be compared line by line.
//
// # The scenario
//
// [Topology] is what there is, by names that stand for addresses everywhere; [Scenario] are the events. An event is some
// actions and what ends it: it is over when what it waits for has come (Until) and nothing has changed for [Quiet]. An action
// is a write to a file, which the recorder does itself, or something done to the hardware, which a [Player] does: plugging,
// the unplug button, an error that the hardware reports.
//
// # A recording
//
// It begins with the state: every file of interest with its mode and contents, links with their targets. Counters that are 0
// are left out, their names are not. For each event follow, each line with a mark before it,
//
//	do   an action and its result: ok, or an errno
//	log  a line of the log
//	uev  a uevent: action, path, and its variables in order, but for SEQNUM
//	-    state that was before; where a folder has gone, it is the only line of what was in it
//	+    state that is now
//
// Addresses are names ("rp1", "eth2"; "rp1>" is the bus below rp1, "pci" the host bridge), so domains and bus numbers do not
// matter; numbers of interrupts are N. What took longer than [MinGap] has its seconds at the end, as in "~1.16s": an action,
// a line of the log after the one before it, a uevent after the one before it or, for the first, after the event began.
//
// Slots are called by their numbers, so they must be those of the topology. Devices that are no part of it are left out.
//
// [Compare] compares two recordings, with a tolerance for those seconds.
//
// # Where it looks
//
// [Roots] says where /sys and /dev are. A Go process must not look at a tree that it serves itself: the process that records is another
// than the one that serves. Log lines come from [KernelLog] or from a command that prints all lines there are ([CommandLog]); uevents from
// [KernelEvents] or from a command that prints them as udevadm monitor -p does ([CommandEvents]). Package seen is a program that does all
// that with commands, beside ring3.
package portseen
