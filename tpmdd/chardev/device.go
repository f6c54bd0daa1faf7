package chardev

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/tpmdd"
	"github.com/ring3dev/ring3/tpmdd/rm"
)

// Chip is the TPM; a *tpmdd.Chip is one.
type Chip = rm.Chip

// Options are what both devices of a chip have in common.
type Options struct {
	// Refuse, where set, may answer a command (of 10 to 4096 bytes) in place of the chip; nil lets it
	// through. It must not change or keep it, and is called from many goroutines.
	Refuse func(cmd []byte) []byte
	// Warn, where set, gets the lines that the kernel logs. It must not close the file.
	Warn func(line string)
	// Log gets the rest; nil discards.
	Log *slog.Logger
}

// Device is the two character devices of a chip. It is safe for concurrent use.
type Device struct {
	chip   Chip
	spaces *rm.Manager
	opt    Options
	opened atomic.Bool // /dev/tpm0
}

// New makes the devices of a chip. Without a Manager there is no /dev/tpmrm0.
func New(chip Chip, m *rm.Manager, opt Options) *Device {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	if opt.Warn == nil {
		opt.Warn = func(string) {}
	}
	return &Device{chip: chip, spaces: m, opt: opt}
}

// OpenTPM opens /dev/tpm0. It fails with EBUSY while somebody has it. Flags do not matter: each call on a File has
// its own.
func (d *Device) OpenTPM(flags int) (*File, error) {
	if !d.opened.CompareAndSwap(false, true) {
		return nil, fmt.Errorf("tpm: another process owns this TPM: %w: %w", unix.EBUSY, bus.ErrBusy)
	}
	return newFile(d, d.transmit, func() { d.opened.Store(false) }), nil
}

// OpenRM opens /dev/tpmrm0, with a space of its own. It fails with ENODEV where there is no resource manager.
func (d *Device) OpenRM(flags int) (*File, error) {
	if d.spaces == nil {
		return nil, fmt.Errorf("tpmrm: a TPM %s without a resource manager: %w: %w", d.chip.Family(), unix.ENODEV, bus.ErrNotSupported)
	}
	s := d.spaces.Open()
	return newFile(d, s.Transmit, func() {
		if err := s.Close(); err != nil {
			d.opt.Log.Warn("tpmrm: closing a space", "err", err)
		}
	}), nil
}

// transmit sends one command to the chip. ctx ends the wait for the turn, and nothing else.
func (d *Device) transmit(ctx context.Context, cmd []byte) (rsp []byte, err error) {
	err = d.chip.Do(ctx, func(x tpmdd.Exchanger) (err error) {
		rsp, err = x.Transmit(context.WithoutCancel(ctx), cmd)
		return err
	})
	return rsp, err
}
