// Package userns makes the private name space of `ring3 shell`: a user and a mount
// namespace in which an instance's files stand at /proc and /sys, beside the kernel's own.
// Nothing outside changes, and nothing needs root.
//
// # Two halves
//
// Run is the parent's half: it starts this same binary again in the new namespaces and
// waits. ChildMain is the child's: a main function calls it first of all; it lays the mounts
// and becomes the command. The caller's uid and gid are 0 inside, which scripts written for
// the kernel ask for; no other id exists there, so sudo and other set-uid programs fail
// inside. Real root gets only a mount namespace and loses nothing.
//
// # What is laid where
//
// The instance serves, besides its own proc/ and sys/, a directory ns/ with what is to stand
// at the kernel's paths (View makes it). Plan.Over lists these paths:
//
//   - A directory (/proc/irq, /sys/class/net, /sys/bus/pci/devices) is a merged one: our
//     entries, then the kernel's as links, which lead to Plan.Old, where the originals stay,
//     or are copies of the kernel's own links.
//   - A file (/proc/interrupts) shows the kernel's lines first, then ours.
//   - /proc/net is a link of the kernel's to self/net, another place for every process: a
//     mount there would be seen by one process only. So another link is mounted over the
//     link (open_tree, move_mount); it leads to our merged directory, whose links lead to
//     /proc/self/net.
//
// In the directories of Plan.Add (/sys/devices) new names are wanted, which the kernel's file
// systems do not let anybody make. They are grafted: a read-only tmpfs goes over the
// directory, filled with binds of the original entries and of ours. Paths stay what they
// were, so that relative links resolve and realpath answers as outside. The graft is made
// once; an entry that the kernel adds later at the top of such a directory does not show.
//
// /dev, if the instance's dev/ has anything, is a tmpfs of links to the machine's entries and to ours, which are
// mounted as a whole at /dev/.kernel and /dev/.ring3. These are there when the shell starts; what the
// instance adds to dev/ later is at /dev/.ring3 only. A link of the instance's, such as one to a socket in its
// run folder, is copied; that folder is where it is outside.
//
// A directory of ours that stands for one device of the machine's (lo) is laid over that as a whole.
//
// Plan.Programs are laid into a file system of their own below Plan.Old and stand first in PATH: a modprobe for which
// ring3's modules are loaded.
//
// A name that both have is ours inside; Hidden in package node, and Collisions here, say
// which these are.
//
// # Where it is refused
//
// Probe tries all of it and says, in one line, what to change.
package userns
