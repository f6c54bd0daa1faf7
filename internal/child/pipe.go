package child

import (
	"errors"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Pipe is the end of a pipe that a program's words come out of. Once the program has ended, Ended says so, and the pipe is at its end when it is empty: the other end may be
// somebody else's, too, to whom the program gave it, and who keeps it.
type Pipe struct {
	f    *os.File
	rest int // how much may come yet after Ended
}

// maxRest is more than a pipe holds, in bytes: what comes after that is somebody else's.
const maxRest = 1 << 20

// NewPipe makes a pipe, and returns its other end for the program.
func NewPipe() (*Pipe, *os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	return &Pipe{r, maxRest}, w, nil
}

// Ended may be called while somebody reads.
func (p *Pipe) Ended() { _ = p.f.SetReadDeadline(time.Unix(1, 0)) }

// Close is called by who reads.
func (p *Pipe) Close() error { return p.f.Close() }

// Read implements io.Reader.
func (p *Pipe) Read(b []byte) (int, error) {
	n, err := p.f.Read(b)
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return n, err
	}
	c, err := p.f.SyscallConn()
	if err != nil {
		return 0, err
	}
	n = 0
	_ = c.Control(func(fd uintptr) { // which no deadline ends
		for {
			if n, err = unix.Read(int(fd), b[:min(len(b), p.rest)]); err != unix.EINTR {
				return
			}
		}
	})
	if n <= 0 {
		return 0, io.EOF
	}
	p.rest -= n
	return n, nil
}
