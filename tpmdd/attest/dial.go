package attest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/internal/sockpath"
	"github.com/ring3dev/ring3/tpmdd"
)

const (
	// answerTime is how long an answer may take: longer than the longest command (making an RSA key, 300 s).
	answerTime = 6 * time.Minute
	// graceTime is how long it may take once nobody wants it any more: a command that is not waited for leaves
	// its keys in the TPM, and the connection in disorder.
	graceTime = 10 * time.Second
)

// Conn is a TPM behind a path. It is for one goroutine.
type Conn struct {
	path string
	rw   io.ReadWriteCloser
	sock net.Conn // nil for a device
}

// Dial opens a TPM: a character device such as /dev/tpmrm0, or a Unix socket that carries commands and
// answers as they are.
func Dial(path string) (*Conn, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("opening the TPM: %w", err)
	}
	if fi.Mode()&os.ModeSocket == 0 {
		// Not os.OpenFile: it makes the device non-blocking, which there means something else.
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("opening the TPM: %w", &os.PathError{Op: "open", Path: path, Err: err})
		}
		return &Conn{path: path, rw: os.NewFile(uintptr(fd), path)}, nil
	}
	c, err := dialSocket(path)
	if err != nil {
		return nil, fmt.Errorf("opening the TPM: %w", err)
	}
	return &Conn{path: path, rw: c, sock: c}, nil
}

// dialSocket reaches a socket whose path may be too long for an address.
func dialSocket(path string) (net.Conn, error) {
	short, done, err := sockpath.Short(path)
	if err != nil {
		return nil, err
	}
	defer done()
	c, err := net.Dial("unix", short)
	if err != nil {
		return nil, fmt.Errorf("connecting to %s: %w", path, errors.Unwrap(err))
	}
	return c, nil
}

// Close ends the connection.
func (c *Conn) Close() error { return c.rw.Close() }

// Transmit does one command. One that was sent is waited for after ctx has ended too, on a socket for graceTime at most.
func (c *Conn) Transmit(ctx context.Context, cmd []byte) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if c.sock != nil {
		if err := c.sock.SetDeadline(time.Now().Add(answerTime)); err != nil {
			return nil, fmt.Errorf("%s: %w", c.path, err)
		}
		stop := context.AfterFunc(ctx, func() { _ = c.sock.SetDeadline(time.Now().Add(graceTime)) })
		defer stop()
	}
	if _, err := c.rw.Write(cmd); err != nil {
		return nil, fmt.Errorf("%s: sending a command: %w", c.path, err)
	}
	// A device gives the whole answer to one read; a socket may take several.
	p := make([]byte, tpmdd.MaxCommand)
	n, err := io.ReadAtLeast(c.rw, p, tpmdd.HeaderSize)
	if err != nil {
		return nil, fmt.Errorf("%s: reading an answer: %w", c.path, err)
	}
	h, _ := tpmdd.ParseHeader(p)
	if h.Length < tpmdd.HeaderSize || int64(h.Length) > int64(len(p)) || int64(n) > int64(h.Length) {
		return nil, fmt.Errorf("%s: reading an answer: it says %d bytes, %d came: want %d to %d: %w", c.path, h.Length, n, tpmdd.HeaderSize, len(p), bus.ErrProtocol)
	}
	if _, err := io.ReadFull(c.rw, p[n:h.Length]); err != nil {
		return nil, fmt.Errorf("%s: reading an answer: %w", c.path, err)
	}
	return p[:h.Length], nil
}
