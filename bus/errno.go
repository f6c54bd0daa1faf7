package bus

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Numbered gives an error the number that who writes to a file sees.
type Numbered struct {
	Err   error
	Errno unix.Errno
}

// Errnos are the numbers of this package's errors.
var Errnos = []Numbered{
	{ErrNotSupported, unix.EOPNOTSUPP}, {ErrGone, unix.ENODEV}, {ErrClosed, unix.ENODEV}, {ErrBusy, unix.EBUSY}, {ErrTimeout, unix.ETIMEDOUT},
}

// WithErrno wraps err with the number of the first of these that it is. An error that has a number already, or that is none of these, stays
// as it is.
func WithErrno(err error, numbers []Numbered) error {
	var e unix.Errno
	if err == nil || errors.As(err, &e) {
		return err
	}
	for _, n := range numbers {
		if errors.Is(err, n.Err) {
			return fmt.Errorf("%w: %w", err, n.Errno)
		}
	}
	return err
}
