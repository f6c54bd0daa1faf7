package instance

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
)

// The protocol of the control socket: JSON objects, one a line, in both directions. A
// connection carries requests one after the other; each is answered by any number of
// responses with More set and one last without. Closing the sending side (shutdown, or
// close) cancels the request under way, whose answer is still sent: an interrupted write
// reports how far it came.

// protocol is the version of the control socket's lines.
const protocol = 1

// Limits. A store is a command or a page of a binary file, never more.
const (
	maxRequest  = 256 << 10 // bytes of a request's line
	maxResponse = 32 << 20  // bytes of a response's line, as a client takes it
	maxOp       = 32        // characters of an operation's name
)

// request is a client's line.
type request struct {
	V    int             `json:"v"`
	Op   string          `json:"op"`
	Args json.RawMessage `json:"args,omitempty"`
}

// response is a server's line.
type response struct {
	V     int             `json:"v"`
	More  bool            `json:"more,omitempty"`
	Data  json.RawMessage `json:"data,omitempty"`
	Err   string          `json:"error,omitempty"`
	Errno int             `json:"errno,omitempty"` // Linux number; 0 with Err: none is known
}

var errTooLong = errors.New("line too long")

// readLine reads one line of at most limit bytes, without its end.
func readLine(r *bufio.Reader, limit int) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(line)+len(part) > limit {
			return nil, fmt.Errorf("%w: more than %d bytes", errTooLong, limit)
		}
		line = append(line, part...)
		switch {
		case err == nil:
			return line[:len(line)-1], nil
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF) && len(line) > 0:
			return nil, io.ErrUnexpectedEOF
		default:
			return nil, err
		}
	}
}

// parseRequest checks a client's line.
func parseRequest(line []byte) (request, error) {
	var q request
	if err := json.Unmarshal(line, &q); err != nil {
		return request{}, fmt.Errorf("control: request is not JSON: %w", err)
	}
	if q.V != protocol {
		return request{}, fmt.Errorf("control: protocol version %d, want %d: the two ring3 are different builds", q.V, protocol)
	}
	if q.Op == "" || len(q.Op) > maxOp {
		return request{}, fmt.Errorf("control: operation %.*q has %d characters, want 1 to %d", maxOp, q.Op, len(q.Op), maxOp)
	}
	for _, c := range []byte(q.Op) {
		if (c < 'a' || c > 'z') && c != '-' {
			return request{}, fmt.Errorf("control: operation %q has %q, want a to z and -", q.Op, c)
		}
	}
	return q, nil
}

// RemoteError is an operation's failure, as the instance reported it.
type RemoteError struct {
	Op    string
	Msg   string
	Errno syscall.Errno // 0 where the failure has no number
}

// Error is the instance's own text.
func (e *RemoteError) Error() string { return e.Msg }

// Unwrap gives errors.Is(err, syscall.EINVAL) its meaning across the socket.
func (e *RemoteError) Unwrap() error {
	if e.Errno == 0 {
		return nil
	}
	return e.Errno
}

// Strerror is err as a shell prints it: the words of strerror(3) where err carries an
// errno ("Invalid argument"), and its own text otherwise. What is not supported says itself
// what to use instead.
func Strerror(err error) string {
	var e syscall.Errno
	if !errors.As(err, &e) {
		return err.Error()
	}
	if e == syscall.EOPNOTSUPP {
		if own := err.Error(); own != e.Error() {
			return own
		}
	}
	s := e.Error() // Go has the C library's words, in small letters
	return strings.ToUpper(s[:1]) + s[1:]
}
