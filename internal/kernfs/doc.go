// Package kernfs serves a tree of package node as a mounted file system, so that programs
// which know /proc and /sys meet the same files, sizes, modes and error numbers. It is the
// one user of go-fuse.
//
// # What a client sees
//
// Files follow the kernel's two habits. A procfs file has st_size 0 and its store gets each
// write(2) whole (up to 128 KiB); a sysfs file has st_size 4096, and a write is cut to 4096
// bytes. Both make their text once per open file, at the first read, and again when it is
// read at offset 0. A writer's file offset means nothing, O_TRUNC neither. A file without a
// write bit cannot be opened for writing, nor one without a read bit for reading, by root
// neither, as in sysfs: EACCES. Making, removing and renaming are refused as the kernel's
// own file systems refuse them: ENOENT, EPERM and EACCES.
//
// # What the kernel's FUSE asks for
//
//   - Two writers of one inode wait for each other inside the kernel: a `stop` would wait
//     behind a blocking `start`. So each LOOKUP of a file that can be written gives a new
//     node id, with no caching of names and attributes. Directories keep theirs, or a
//     shell's working directory would become unreachable. st_ino is made from the path and
//     stays the same.
//   - Reads and writes bypass the page cache (FOPEN_DIRECT_IO), sizes mean nothing.
//   - A zero-length write never arrives; the kernel answers it with 0. A device node would
//     never reach the server, so devices are regular files. An ioctl gives ENOTTY.
//   - A signal to a waiting client arrives as an interrupt: the context that Store got
//     ends. Store decides what that means. One that does not return within a grace time is
//     left to itself and the client gets EINTR. This holds for Show too, which has no
//     context (ShowContext has one). Signals that are for something else (SIGCHLD, SIGCONT,
//     SIGURG, SIGWINCH, a profiler's) do not count: programs in Go send them to their own threads,
//     shells get them of their children. In the kernel a call begins anew after them where the program's
//     handler says so (SA_RESTART), or does not mind; a handler that does not say so is not heeded
//     here. Where /proc does not tell of the client (hidepid, another pid namespace) each counts.
//   - The process that serves must never touch its own mount: package os would wait for an
//     answer that only it can give.
//
// # Streams
//
// A file with Open behaves as a character device does: package devfs says how, and what
// differs. Beyond that:
//
//   - close(2) returns when the kernel has sent its RELEASE. An open that comes after it waits
//     until the stream is closed where the file is for one program at a time (OneOpen), which it
//     would find busy otherwise; only there, as a close may wait for minutes.
//   - What was read and written is zeroed in all buffers here and in the guard once it has
//     passed: it may be a key.
//   - Such a file has a node id for each LOOKUP, as every file that can be written, so that opens do
//     not wait for each other. That takes a path through a directory: all opens through one
//     mount of the file alone share an id, and their writes come one at a time.
//   - FOPEN_STREAM, besides making the file one without positions, has the kernel not lock
//     the position, which would make a write wait for another thread's read.
//   - A request moves at most maxIO, 128 KiB, in whole pages of the client's memory: 124 KiB
//     come whole wherever they start. The kernel makes several requests of more.
//   - A Read left to itself after the grace time leaves what it reads in the end for the next
//     one. A Write is waited for without limit, as long as the tree is mounted: a client told
//     EINTR would repeat a command that is being executed.
//
// poll(2) is answered here, since go-fuse says ENOSYS, after which the kernel asks no more.
// A Poller's channel that closes becomes a notification, once for each time that the kernel
// asks for one. Files that are no Poller are always ready, as the kernel itself would say. A
// POLL that fails is POLLERR to the client.
//
// # A stopped server
//
// While the process that serves is stopped (SIGSTOP, a debugger), only the clients of its
// files wait. The kernel lets a client go only for a signal that kills it: cat ends at
// Ctrl-C, but bash, which catches SIGINT, waits in `echo x > file` until the server runs
// again. Options.Guard is the remedy: a small process of this same binary stands between the
// kernel and the server, and answers EINTR for a server that does not. A stream's client
// that got such an answer may have had its command executed, or its response read and lost.
// The guard also answers POLL for all files but streams, which are always ready.
//
// The machine's own entries in a merged directory are links that the kernel may remember for
// an hour, and the directory's attributes too; who has looked them up once (package userns
// does) can use them while the server is stopped.
//
// # Locks
//
// tree.mu guards the tables and is never held during Show, Store or a call into package
// node; handle.mu is held while a file's text is made, so readers that share one open file
// wait for one Show. stream.use is read-locked during calls of a stream, and locked when it is
// to be closed; stream.mu and watch.mu are held for moments, and not together.
package kernfs
