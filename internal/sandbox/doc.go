// Package sandbox starts a program with the least rights that it can do its work with, and sees how it ends.
//
//	p, err := sandbox.Start(sandbox.Options{Args: []string{"worker"}, Files: []*os.File{link}})   // the supervisor
//	...
//	err := sandbox.Enter()                                                                       // first thing in the worker's main
//
// [Start] puts the program into namespaces of its own (user, mount, network, IPC, UTS, PID) and hands it its descriptors, 3 and up. [Enter] does what
// only the program itself can do: it exchanges its root for an empty one that cannot be written, limits what it may use, gives up all
// capabilities and new privileges, and installs the filter of system calls, on all of its threads. Until Enter has returned the program is trusted;
// what it reads from anybody before that, it reads with its user's rights.
//
// # What is left to it
//
// Its descriptors, its memory, threads, clocks, signals to itself. It opens nothing, connects to nothing, executes nothing, starts no process, maps nothing
// executable, and asks devices only what a driver asks of VFIO (filter.go has the list, and why).
//
// A call that looks a name up (openat and its like) gets ENOENT, as in an empty root it would: libraries look for files that they do
// without. Some newer calls get ENOSYS, and callers fall back. Any other kills the program. The call waits meanwhile, never made, and the
// supervisor is told which it was (SECCOMP_RET_USER_NOTIF): it asks for the stacks (SIGQUIT), and kills 250 ms later. Where the kernel
// has no such thing, the kernel kills at once, and nobody knows the call.
//
// # Limits
//
// Bytes of private memory (RLIMIT_DATA: Go reserves more address space than it uses, so RLIMIT_AS would say nothing), descriptors, threads, size of a
// file that it writes to, locked memory, core dumps (none). In a delegated cgroup of version 2 also memory with all that the kernel
// holds for it, threads, and CPU time. Memory that is shared by descriptor (a device's RAM) is its owner's, and the program cannot make more of it.
//
// # Where the system refuses
//
// A system may refuse user namespaces, a container the listener. Then what is left is done without, and the supervisor's log says so in a line each, once.
// [Limits] tries, and lists them. Root's worker runs as nobody (65534), others' as their user, seen as root of an empty namespace.
//
// # Bare
//
// With [Options.Bare] the program keeps its user's rights, and is watched and ended as any other: for drivers that must open their devices themselves. Enter says so to nobody: who
// starts a program bare knows it.
//
// # Ends
//
// The program is killed when the thread of the supervisor that started it ends (PR_SET_PDEATHSIG), so also with the supervisor. The last 64 KiB of its stderr are kept: a panic's
// stack is in them. Stderr never blocks the program for longer than it takes to copy it.
//
// # Sources
//
// namespaces(7), user_namespaces(7), pivot_root(2), seccomp(2), seccomp_unotify(2), setrlimit(2), cgroups(7). Linux 5.9 has everything; 4.14 is
// the oldest that kills the process and not only a thread.
package sandbox
