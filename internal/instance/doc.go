// Package instance is what processes of one user know of each other's running rings: the
// run folder, its locks, who cleans up after whom, and the control socket.
//
// # The run folder
//
// The base is $RING3_RUNTIME_DIR, or $XDG_RUNTIME_DIR/ring3, or $TMPDIR/ring3-UID (/tmp
// without TMPDIR). It must be a directory, not a link, owned by the caller, with mode
// 0700; anything else is an error and not repaired, since somebody else may have made it.
// Below it every instance has a folder of its own, named by the user or r0, r1, ...:
//
//	lock        locked by the live process, for as long as it lives
//	state.json  State: who and where, what else belongs to it (children, mounts)
//	sock        control socket (Serve, Dial)
//	tree/       the default mount point
//	old/        an empty directory, for ring3 shell to put the kernel's own trees at
//
// Beside them is fabric.sock, the default socket of ring3 fabric up, and fabric.sock.d, which are no instance's: nobody but
// the fabric's daemon removes them.
//
// A folder comes into being whole: it is prepared as .new-PID-N, its lock taken and its
// state written, and then renamed, so nobody ever sees one that is half made.
//
// # Alive or dead
//
// An instance is alive while its lock is held, which the kernel alone decides: the lock
// is an open file description lock (F_OFD_SETLK), dropped when the last descriptor closes
// and, unlike flock, open to be asked about (F_OFD_GETLK) without taking it. Pids in the
// state are never trusted alone: a process is killed only through a pidfd and only where
// its start time, the boot and the pid namespace are the recorded ones. A mount is
// unmounted only where /proc/self/mountinfo shows a FUSE mount of the recorded device
// number there; a dead or hanging mount is never looked into.
//
// # Who cleans up
//
//  1. Instance.Close, in an orderly shutdown: everything.
//  2. The watcher (StartWatcher), when the process ended in any other way: the same
//     binary, in a session of its own, waiting on a pipe. QEMU does not end when its
//     sockets close, so somebody has to see to it.
//  3. Sweep, at the start of every ring3 command, when the watcher was killed too.
//
// Creating and removing folders happens under a lock on the base itself (flock, which
// unlike the other takes a directory), so any number of commands may start at once.
//
// Sources: fcntl(2) "Open file description locks"; proc(5) /proc/pid/stat field 22,
// /proc/pid/mountinfo; pidfd_open(2); unix(7) SO_PEERCRED.
package instance
