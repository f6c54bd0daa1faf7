package instance

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/ring3dev/ring3/internal/sockpath"
)

// Bounds of a client's patience.
const (
	dialWait = 5 * time.Second
	// cancelWait is how long an interrupted set may take to tell how far it came, and
	// askWait how long anything else, which did nothing.
	cancelWait = 5 * time.Second
	askWait    = 300 * time.Millisecond
)

// Client is a connection to an instance's control socket. It carries one operation at a
// time; further callers wait. An operation whose context ends leaves the connection
// closed.
type Client struct {
	name string
	c    *net.UnixConn

	mu sync.Mutex // held for an operation
	r  *bufio.Reader
}

// Dial connects to a running instance.
func Dial(i Info) (*Client, error) {
	short, done, err := sockpath.Short(i.Sock())
	if err != nil {
		return nil, fmt.Errorf("instance %s: connecting: %w", i.Name, err)
	}
	defer done()
	d := net.Dialer{Timeout: dialWait}
	c, err := d.Dial("unix", short)
	if err != nil {
		if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED) {
			return nil, fmt.Errorf("instance %s (pid %d) does not answer: it is starting or ending: %w", i.Name, i.Pid, err)
		}
		return nil, fmt.Errorf("instance %s: connecting: %w", i.Name, err)
	}
	uc := c.(*net.UnixConn) // what "unix" gives
	return &Client{name: i.Name, c: uc, r: bufio.NewReader(uc)}, nil
}

// Close ends the connection, and an operation under way with it.
func (c *Client) Close() error {
	if err := c.c.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("instance %s: %w", c.name, err)
	}
	return nil
}

// Call does one operation: args go as JSON (nil for none), the result comes into result
// (nil to drop it). A failure in the instance is a *RemoteError. When ctx ends, the
// operation is cancelled there and its answer still awaited for a while, so an
// interrupted command tells how far it came.
func (c *Client) Call(ctx context.Context, op string, args, result any) error {
	return c.stream(ctx, op, args, nil, result)
}

// Stream does an operation with several results, each given to each as it comes. An
// error from each ends the operation and is returned.
func (c *Client) Stream(ctx context.Context, op string, args any, each func(json.RawMessage) error) error {
	return c.stream(ctx, op, args, each, nil)
}

func (c *Client) stream(ctx context.Context, op string, args any, each func(json.RawMessage) error, result any) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("instance %s: %s: %w", c.name, op, err)
	}
	q := request{V: protocol, Op: op}
	if args != nil {
		b, err := json.Marshal(args)
		if err != nil {
			return fmt.Errorf("instance %s: %s: arguments: %w", c.name, op, err)
		}
		q.Args = b
	}
	line, err := json.Marshal(q)
	if err != nil {
		return fmt.Errorf("instance %s: %s: %w", c.name, op, err)
	}
	if len(line) > maxRequest {
		return fmt.Errorf("instance %s: %s: request of %d bytes, at most %d are taken: %w", c.name, op, len(line), maxRequest, syscall.E2BIG)
	}
	wait := askWait
	if op == opSet {
		wait = cancelWait
	}
	stop := context.AfterFunc(ctx, func() {
		_ = c.c.SetReadDeadline(time.Now().Add(wait))
		_ = c.c.CloseWrite()
	})
	defer stop()
	// A server that refuses (too many connections) answers without reading; then the
	// write fails and the answer says why.
	_, werr := c.c.Write(append(line, '\n'))
	for {
		r, err := c.receive(op)
		if err != nil {
			if werr != nil {
				err = werr
			}
			if ctx.Err() != nil {
				err = ctx.Err()
			}
			return fmt.Errorf("instance %s: %s: %w", c.name, op, err)
		}
		switch {
		case r.Err != "":
			return &RemoteError{Op: op, Msg: r.Err, Errno: syscall.Errno(max(r.Errno, 0))}
		case r.More && each != nil:
			if err := each(r.Data); err != nil {
				c.c.Close()
				return err
			}
		case r.More:
		case result == nil || len(r.Data) == 0:
			return nil
		default:
			if err := json.Unmarshal(r.Data, result); err != nil {
				return fmt.Errorf("instance %s: %s: result: %w", c.name, op, err)
			}
			return nil
		}
	}
}

func (c *Client) receive(op string) (response, error) {
	line, err := readLine(c.r, maxResponse)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) {
		return response{}, fmt.Errorf("the instance ended or closed the connection: %w", err)
	}
	if err != nil {
		return response{}, err
	}
	var r response
	if err := json.Unmarshal(line, &r); err != nil {
		return response{}, fmt.Errorf("answer is not JSON: %w", err)
	}
	if r.V != protocol {
		return response{}, fmt.Errorf("answer in protocol version %d, want %d: the two ring3 are different builds", r.V, protocol)
	}
	return r, nil
}
