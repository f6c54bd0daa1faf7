package fabricd

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/internal/sockpath"
)

// Client asks a fabric's daemon. It holds no connection between calls, so it survives a daemon that ends and comes back. It is safe for
// concurrent use.
type Client struct {
	path   string
	owners []int
}

// Dial finds the daemon at a socket, and whether it speaks this version. It must be run by this user, root, or one of the owners.
func Dial(ctx context.Context, path string, owners ...int) (*Client, error) {
	c := &Client{path: path, owners: owners}
	if _, err := c.call(ctx, request{Op: opVersion}); err != nil {
		return nil, err
	}
	return c, nil
}

// Path is the daemon's socket.
func (c *Client) Path() string { return c.path }

// Show is the fabric: what it consists of and who has joined.
func (c *Client) Show(ctx context.Context) (*Fabric, error) {
	r, err := c.call(ctx, request{Op: opShow})
	if err == nil && r.Fabric == nil {
		err = c.foreign("without a fabric")
	}
	return r.Fabric, err
}

// Stats are the fabric's counters.
func (c *Client) Stats(ctx context.Context) (*Stats, error) {
	r, err := c.call(ctx, request{Op: opStats})
	if err == nil && r.Stats == nil {
		err = c.foreign("without statistics")
	}
	return r.Stats, err
}

// Windows are the memory windows of all nodes.
func (c *Client) Windows(ctx context.Context) ([]Window, error) {
	r, err := c.call(ctx, request{Op: opWindows})
	return r.Windows, err
}

// SetLink makes the link between two ends ("pe0", "sw0:1") work or fail.
func (c *Client) SetLink(ctx context.Context, a, b string, up bool) error {
	_, err := c.call(ctx, request{Op: opLink, Ends: []string{a, b}, Up: &up})
	return err
}

// Watch calls f for what happens from now on, until ctx ends (nil), the daemon does or f returns an error. ready, if not nil, is called
// once nothing will be missed any more.
func (c *Client) Watch(ctx context.Context, ready func(), f func(Event) error) error {
	conn, err := connect(ctx, c.path, c.owners)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if err := send(conn, request{V: version, Op: opWatch}, callWait); err != nil {
		return c.gone(ctx, err)
	}
	r := bufio.NewReader(conn)
	for {
		a, err := c.receive(r)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return c.gone(ctx, err)
		case a.Event != nil:
			if err := f(*a.Event); err != nil {
				return err
			}
		case ready != nil:
			ready()
			ready = nil
		}
	}
}

// call sends a request and takes its one response.
func (c *Client) call(ctx context.Context, q request) (response, error) {
	ctx, cancel := context.WithTimeout(ctx, callWait)
	defer cancel()
	conn, err := connect(ctx, c.path, c.owners)
	if err != nil {
		return response{}, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	q.V = version
	// A daemon that refuses (too many connections) answers without reading: then the write fails, and the answer says why.
	werr := send(conn, q, callWait)
	r, err := c.receive(bufio.NewReader(conn))
	if err != nil && werr != nil && !isAnswer(err) {
		err = werr
	}
	if err != nil {
		return response{}, c.gone(ctx, err)
	}
	return r, nil
}

// receive takes one response, and makes an error of one that is one.
func (c *Client) receive(r *bufio.Reader) (response, error) {
	line, err := readLine(r, maxResponse)
	if err != nil {
		return response{}, err
	}
	return c.parse(line)
}

func (c *Client) parse(line []byte) (response, error) {
	var a response
	if err := json.Unmarshal(line, &a); err != nil || a.V == 0 {
		return response{}, c.foreign(fmt.Sprintf("%.40q", line))
	}
	if a.V != version {
		return response{}, &Error{Code: codeVersion, Msg: fmt.Sprintf("the fabric at %s speaks version %d of the control protocol, this program %d", c.path, a.V, version)}
	}
	if !a.OK && a.Event == nil || a.Error != "" {
		return response{}, &Error{Code: a.Code, Msg: a.Error}
	}
	return a, nil
}

// foreign is the error of an answer that no fabric's daemon gives.
func (c *Client) foreign(what string) error {
	return fmt.Errorf("what answers at %s is no fabric: it sent %s: %w", c.path, what, bus.ErrProtocol)
}

// isAnswer tells whether err is something that the other side said.
func isAnswer(err error) bool {
	var e *Error
	return errors.As(err, &e) || errors.Is(err, bus.ErrProtocol)
}

// gone says in a line what a connection that broke means.
func (c *Client) gone(ctx context.Context, err error) error {
	switch {
	case isAnswer(err):
		return err
	case errors.Is(ctx.Err(), context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("the fabric at %s does not answer: %w", c.path, bus.ErrTimeout)
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, io.EOF), errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("the fabric at %s is gone: %w", c.path, bus.ErrGone)
	}
	return fmt.Errorf("the fabric at %s: %w", c.path, err)
}

// connect opens a connection to the socket at path, of a daemon that is no stranger.
func connect(ctx context.Context, path string, owners []int) (*net.UnixConn, error) {
	short, done, err := sockpath.Short(path)
	if err != nil {
		return nil, fmt.Errorf("no fabric at %s: %w", path, err)
	}
	defer done()
	d := net.Dialer{Timeout: dialWait}
	c, err := d.DialContext(ctx, "unix", short)
	switch {
	case err == nil:
		conn := c.(*net.UnixConn) // what "unix" gives
		if err := CheckOwner(conn, path, owners...); err != nil {
			conn.Close()
			return nil, err
		}
		return conn, nil
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("no fabric at %s: %w", path, fs.ErrNotExist)
	case errors.Is(err, unix.ECONNREFUSED):
		if st, serr := os.Stat(path); serr == nil && st.Mode()&fs.ModeSocket == 0 {
			return nil, fmt.Errorf("no fabric at %s: it is not a socket", path)
		}
		return nil, fmt.Errorf("no fabric answers at %s (its process is gone): %w", path, bus.ErrGone)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("the fabric at %s belongs to another user: %w", path, fs.ErrPermission)
	case ctx.Err() != nil:
		return nil, ctx.Err()
	}
	return nil, fmt.Errorf("connecting to the fabric at %s: %w", path, err)
}

// send writes v as a line.
func send(c net.Conn, v any, wait time.Duration) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("sending: %w", err)
	}
	if err := c.SetWriteDeadline(time.Now().Add(wait)); err != nil {
		return fmt.Errorf("sending: %w", err)
	}
	if _, err := c.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("sending: %w", err)
	}
	return nil
}
