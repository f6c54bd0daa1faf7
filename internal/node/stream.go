package node

import (
	"context"
	"fmt"
	"syscall"
)

// Stream is one open of a File that has Open, such as a program's hold on /dev/tpm0. Its
// methods may be called concurrently, as by two threads that share a descriptor. flags are
// those of the open file at this moment: O_NONBLOCK changes with fcntl(2). ctx ends at a
// signal to the caller and when the tree is unmounted.
type Stream interface {
	// Read fills p, never empty, with what there is, and returns 0, nil at an end of file. A
	// Read that gives up because ctx ended returns ctx's error, or EINTR.
	Read(ctx context.Context, p []byte, flags int) (int, error)
	// Write takes one write(2) whole, never empty: see the package comment of devfs for
	// very long ones. One that has begun what cannot be repeated finishes it, and returns its
	// count though ctx ended.
	Write(ctx context.Context, p []byte, flags int) (int, error)
	// Close is the last close: called once, after all other calls returned or were left to
	// themselves. Opens of the same File that the client asks for later wait for it where the File has OneOpen.
	Close() error
}

// Poller is implemented by a Stream that can say what would not block. A file whose Stream
// does not is always ready for both, as poll(2) has it for files without a poll method.
type Poller interface {
	// Poll gives the events that are there (unix.POLLIN and its like), and a channel that is
	// closed when that may have changed, nil if it never does. It must not block.
	Poll() (events uint32, changed <-chan struct{})
}

// ErrStream is the answer to a read or write of a File with Open that no open precedes.
var ErrStream = fmt.Errorf("a device whose opens have state, use `ring3 shell`: %w", syscall.EOPNOTSUPP)
