package node

import (
	"context"
	"errors"
	"strings"
	"syscall"
	"testing"
)

func TestStreamHasNoText(t *testing.T) {
	f := &File{Mode: 0o600, Open: func(int) (Stream, error) { return nil, syscall.EBUSY }}
	_, err := f.ReadAll()
	_, errW := f.Write(context.Background(), []byte("x"))
	for _, err := range []error{err, errW} {
		if !errors.Is(err, ErrStream) || Errno(err) != syscall.EOPNOTSUPP || !strings.Contains(err.Error(), "`ring3 shell`") {
			t.Errorf("a file with Open, read or written without one: %v, want EOPNOTSUPP and what to use", err)
		}
	}
}
