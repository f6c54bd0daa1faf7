package tpmdd

import (
	"context"
	"time"
)

// Exchanger sends one command, whole, and returns its answer, whole. Chip is one; so is what Chip.Do hands out.
type Exchanger interface {
	Transmit(ctx context.Context, cmd []byte) ([]byte, error)
}

// Timeouts bound the steps of an interface (TIS 1.3, 5.5.1; PTP, 6.5.1.4).
type Timeouts struct{ A, B, C, D time.Duration }

// Transport moves commands through the registers of one interface. A Chip calls its methods one at a time,
// but for Cancel. Each returns within its timeouts, whatever the device does. Errors are as package tpmdd
// lists them, and name the device, the step, what was seen and what was wanted.
type Transport interface {
	// Begin claims the interface for a run of commands: locality, power. End gives it back.
	Begin(ctx context.Context) error
	End()
	// Send hands a whole command over and starts it.
	Send(cmd []byte) error
	// Wait waits until the answer is there, d at most. Where it is not, it aborts the command and fails
	// with ETIME; ECANCELED after Cancel.
	Wait(d time.Duration) error
	// Receive reads the answer into p and returns its length. It leaves the interface ready for the next command.
	Receive(p []byte) (int, error)
	// Cancel aborts the command in flight, if there is one. It does not block, and anybody may call it at any time.
	Cancel()
	// SetTimeouts replaces the timeouts, once the family is known, or what the chip itself says.
	SetTimeouts(Timeouts)
	// MaxCommand is the longest command and answer that fit.
	MaxCommand() int
}

// Resumer is implemented by a transport that must set its interface up again after a suspend; the chip calls it between Begin
// and End.
type Resumer interface{ Resumed() }

// Instance is a driver's device that is a TPM.
type Instance interface {
	Chip() *Chip
}
