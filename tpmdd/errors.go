package tpmdd

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
)

// Gone is for transports: the error of a device that is gone, nil of one that lives.
func Gone(dev bus.Device) error {
	if err := dev.Err(); err != nil {
		return fmt.Errorf("%w (%w)", unix.EPIPE, err)
	}
	return nil
}

// Late is for transports: the error of a register that did not become what was wanted, or the device's end, which
// explains it.
func Late(dev bus.Device, what string, after time.Duration, reg string, seen fmt.Stringer, e unix.Errno) error {
	if err := Gone(dev); err != nil {
		return err
	}
	return fmt.Errorf("%s: not after %v (%s=%v): %w (%w)", what, after, reg, seen, e, bus.ErrTimeout)
}
