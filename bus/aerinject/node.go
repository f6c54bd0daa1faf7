package aerinject

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/devfs"
)

// Node is the file /dev/aer_inject: each write is one record, for which inject is called, and which is taken whole or
// refused with inject's error. As with the kernel's there is nothing to read: EINVAL.
func Node(inject func(ctx context.Context, r Record) error) *devfs.File {
	return devfs.Node(0o600, func(int) (devfs.Stream, error) { return stream(inject), nil })
}

type stream func(context.Context, Record) error

func (stream) Read(context.Context, []byte, int) (int, error) {
	return 0, fmt.Errorf("aer_inject: reading: there is nothing to read: %w", unix.EINVAL)
}

func (s stream) Write(ctx context.Context, p []byte, _ int) (int, error) {
	r, err := ParseRecord(p)
	if err == nil {
		err = s(ctx, r)
	}
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

func (stream) Close() error { return nil }
