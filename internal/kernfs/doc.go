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
//   - A zero-length write never arrives; the kernel answers it with 0. poll(2) always says
//     ready, and character devices cannot be shown.
//   - A signal to a waiting client arrives as an interrupt: the context that Store got
//     ends. Store decides what that means. One that does not return within a grace time is
//     left to itself and the client gets EINTR. This holds for Show too, which has no
//     context.
//   - The process that serves must never touch its own mount: package os would wait for an
//     answer that only it can give.
//
// # A stopped server
//
// While the process that serves is stopped (SIGSTOP, a debugger), only the clients of its
// files wait. The kernel lets a client go only for a signal that kills it: cat ends at
// Ctrl-C, but bash, which catches SIGINT, waits in `echo x > file` until the server runs
// again. Options.Guard is the remedy: a small process of this same binary stands between the
// kernel and the server, and answers EINTR for a server that does not.
//
// The machine's own entries in a merged directory are links that the kernel may remember for
// an hour, and the directory's attributes too; who has looked them up once (package userns
// does) can use them while the server is stopped.
//
// # Locks
//
// tree.mu guards the tables and is never held during Show, Store or a call into package
// node; handle.mu is held while a file's text is made, so readers that share one open file
// wait for one Show.
package kernfs
