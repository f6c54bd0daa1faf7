package chardev

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/tpmdd"
)

// chip is a TPM that says what it is told to.
type chip struct {
	turn   chan struct{} // full while somebody has it
	answer func(cmd []byte) ([]byte, error)
	family tpmdd.Family
}

func newChip(answer func(cmd []byte) ([]byte, error)) *chip {
	return &chip{make(chan struct{}, 1), answer, tpmdd.TPM12}
}

func (c *chip) Family() tpmdd.Family { return c.family }

func (c *chip) Do(ctx context.Context, f func(tpmdd.Exchanger) error) error {
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
		return f(had{c})
	case <-ctx.Done():
		return fmt.Errorf("waiting for the turn: %w", ctx.Err())
	}
}

func (c *chip) Transmit(ctx context.Context, cmd []byte) (rsp []byte, err error) {
	err = c.Do(ctx, func(x tpmdd.Exchanger) error {
		rsp, err = x.Transmit(ctx, cmd)
		return err
	})
	return rsp, err
}

type had struct{ c *chip }

func (h had) Transmit(ctx context.Context, cmd []byte) ([]byte, error) {
	if ctx.Done() != nil {
		return nil, errors.New("a ctx that can end a command")
	}
	return h.c.answer(cmd)
}

// echo answers with the command itself.
func echo(cmd []byte) ([]byte, error) { return bytes.Clone(cmd), nil }

func fails(errno unix.Errno) func([]byte) ([]byte, error) {
	return func([]byte) ([]byte, error) { return nil, fmt.Errorf("fake: %w", errno) }
}
