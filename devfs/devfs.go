// Package devfs is the vocabulary for files as /dev has them: a name, a mode, and an open
// that gives each program a stream of its own. It knows nothing of how they are served.
//
// A file of a user's file system cannot be a character device, so programs see a regular
// file of size 0; but open, read, write, poll, fcntl and close reach the driver as they
// would in the kernel, and an ioctl gives ENOTTY. What differs:
//
//   - A write of up to 124 KiB is one call of Write, and so is a read. The kernel may cut
//     longer ones, at 128 KiB and at the pages that the buffer touches.
//   - A write or read of length 0 gives 0 without a call.
//   - Writes through one open, or through descriptors that share it, come one at a time. Any
//     other two calls may come at once.
//   - A signal handled with SA_RESTART ends a read that gave up with EINTR all the same.
//   - A Read that ignores the end of its ctx is left to itself after a grace time; what it
//     reads then is kept for the next read of that open. A Write is waited for, since it may have
//     begun something.
//   - close(2) does not wait for Close. Of a file with OneOpen the next open does.
package devfs

import (
	"io/fs"

	"github.com/ring3dev/ring3/internal/node"
)

// Dir, File and Link are the parts of a tree. Stream is one open of a file, Poller one that
// knows when it is ready.
type (
	Dir    = node.Dir
	File   = node.File
	Link   = node.Link
	Stream = node.Stream
	Poller = node.Poller
)

// Node makes a file with opens that have state. open gets the flags of open(2); its error's
// number, such as EBUSY, is what the program sees.
func Node(mode fs.FileMode, open func(flags int) (Stream, error)) *File {
	return &File{Mode: mode, Flavour: node.Proc, Open: open}
}
