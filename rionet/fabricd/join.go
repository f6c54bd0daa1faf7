package fabricd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/rionet/rapidio"
)

// Request is what a process says that wants to be a node.
type Request struct {
	Node    string         // name of the endpoint that it wants to be
	IDs     rapidio.IDSize // that it can do; 0: any
	Windows Sizes          // memory windows that others are to map
	Owners  []int          // users who may run the fabric, besides the caller and root
}

// Info is what it is told.
type Info struct {
	IDs  rapidio.IDSize
	Peer int // its ivshmem ID
}

// Join makes the calling process a node of the fabric at path. From then on the connection speaks the ivshmem server's protocol, which
// bus/ivshmem does: nothing of it has been read. The node leaves when the connection is closed.
func Join(ctx context.Context, path string, q Request) (*net.UnixConn, Info, error) {
	if q.Node == "" {
		return nil, Info{}, errors.New("joining a fabric wants the name of an endpoint")
	}
	if err := q.Windows.check(); err != nil {
		return nil, Info{}, fmt.Errorf("joining as %s: %w", q.Node, err)
	}
	conn, err := connect(ctx, path, q.Owners)
	if err != nil {
		return nil, Info{}, err
	}
	info, err := join(ctx, conn, path, q)
	if err != nil {
		conn.Close()
		return nil, Info{}, err
	}
	return conn, info, nil
}

func join(ctx context.Context, conn *net.UnixConn, path string, q Request) (Info, error) {
	ctx, cancel := context.WithTimeout(ctx, callWait)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	c := &Client{path: path}
	werr := send(conn, request{V: version, Join: q.Node, IDs: q.IDs, Window: q.Windows}, callWait)
	line, err := readExactly(conn)
	if err != nil && werr != nil {
		err = werr
	}
	var a response
	if err == nil {
		a, err = c.parse(line)
	}
	if err != nil {
		stop()
		return Info{}, c.gone(ctx, err)
	}
	if a.IDs != rapidio.Small && a.IDs != rapidio.Large || a.Peer < 1 || a.Peer > 0xffff {
		stop()
		return Info{}, c.foreign(fmt.Sprintf("%v, peer %d", a.IDs, a.Peer))
	}
	if q.IDs != 0 && q.IDs != a.IDs {
		stop()
		return Info{}, fmt.Errorf("joining as %s: the fabric at %s has %v, wanted %v: %w", q.Node, path, a.IDs, q.IDs, bus.ErrProtocol)
	}
	if !stop() {
		return Info{}, c.gone(ctx, ctx.Err())
	}
	return Info{IDs: a.IDs, Peer: a.Peer}, conn.SetDeadline(time.Time{})
}

// readExactly reads a line byte by byte: what follows it comes with descriptors, which a reader that reads ahead would lose.
func readExactly(conn *net.UnixConn) ([]byte, error) {
	line := make([]byte, 0, 128)
	for {
		line = append(line, 0)
		if _, err := conn.Read(line[len(line)-1:]); err != nil {
			return nil, err
		}
		if line[len(line)-1] == '\n' {
			return line[:len(line)-1], nil
		}
		if len(line) > maxRequest {
			return nil, fmt.Errorf("%w: more than %d bytes (%w)", errTooLong, maxRequest, bus.ErrProtocol)
		}
	}
}
