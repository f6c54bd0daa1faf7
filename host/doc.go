// Package host is the importable main of a ring3: drivers in, process out. cmd/ring3 is
// nothing but a call of [Main] with the drivers that come with it; a program with a driver
// of its own is the same two lines with another list.
//
//	func main() { host.Main(mydriver.Driver) }
//
// A [System] is a set of devices in service: started on their backends, matched with
// drivers, wired, with pktgen on top and an exported tree of files. The commands are thin:
// up runs a System in a process and mounts its tree, shell enters a namespace in which
// that tree stands at /proc and /sys, run does both around one command; ls, get, set and
// dmesg ask a running process over its control socket.
//
// Data goes to stdout, messages to stderr. Exit status: 0 done, 1 failed, 2 wrong usage;
// shell and run give their command's own.
package host
