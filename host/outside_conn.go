package host

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/internal/link"
	"github.com/ring3dev/ring3/rionet/fabricd"
	"github.com/ring3dev/ring3/rionet/rapidio"
	"github.com/ring3dev/ring3/vfio/vfiouser"
)

// Some devices are a connection: a vfio-user server's, a node of a fabric. Under a supervisor it is made by that, and the worker alone has it then: with
// the worker it ends, by which the other side knows, and stops the device. The next worker has a connection of its own.

// outsideConn asks for the connection that a device is.
const outsideConn link.Method = 0x0340

// connArgs is its body.
type connArgs struct {
	Name string `json:"name"` // in the plan
}

// isConn says whether a device is a connection.
func isConn(d DeviceSpec) bool { return d.Backend == vfioUser || d.Backend == onFabric }

// Conn implements Outside.
func (o *farOutside) Conn(ctx context.Context, name string) (*net.UnixConn, error) {
	f, err := one(o.call(ctx, outsideConn, connArgs{name}, nil))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return link.Open(f)
}

// connTime is how long making a connection may take. Where the last worker had one, the other side may not know yet that it is dead.
const connTime = 10 * time.Second

// connect makes the connection that a device is.
func connect(ctx context.Context, d DeviceSpec) (*net.UnixConn, error) {
	if d.Backend == vfioUser {
		return vfiouser.Connect(ctx, d.Device)
	}
	q := fabricd.Request{Node: d.Bus["node"], Owners: ownersOf(d)}
	switch d.Bus["ids"] {
	case "8":
		q.IDs = rapidio.Small
	case "16":
		q.IDs = rapidio.Large
	}
	if v, ok := d.Bus["window"]; ok {
		var err error
		if q.Windows, err = parseWindows(v); err != nil {
			return nil, err
		}
	}
	conn, _, err := fabricd.Join(ctx, d.Device, q)
	return conn, err
}

// connOf makes the connection that a device is, or has it made.
func (s *System) connOf(ctx context.Context, d DeviceSpec) (*net.UnixConn, error) {
	if s.outside != nil {
		return s.outside.Conn(ctx, d.Name)
	}
	return connect(ctx, d)
}

// conns makes connections for a group's workers; outsideBackend.
type conns struct {
	plan   Plan
	ctx    context.Context // ends with Close
	cancel context.CancelFunc

	mu  sync.Mutex
	had map[string]bool // a worker had it, who may be dead
}

// holdConns is one of outsideBackends.
func holdConns(_ Config, g groupPlan) (outsideBackend, error) {
	if !slices.ContainsFunc(g.Plan.Devices, isConn) {
		return nil, nil
	}
	c := &conns{plan: g.Plan, had: map[string]bool{}}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c, nil
}

func (c *conns) calls() map[link.Method]outsideCall {
	return map[link.Method]outsideCall{outsideConn: c.answer}
}

// answer answers outsideConn.
func (c *conns) answer(ctx context.Context, body []byte, _ []*os.File) (any, []*os.File, error) {
	var a connArgs
	if err := asked(body, &a); err != nil {
		return nil, nil, fmt.Errorf("a connection: %w", err)
	}
	d := c.plan.find(a.Name)
	if d == nil || !isConn(*d) {
		return nil, nil, fmt.Errorf("a connection for %.64q: the plan has no such: %w", a.Name, os.ErrPermission)
	}
	ctx, cancel := context.WithTimeout(ctx, connTime)
	defer cancel()
	defer context.AfterFunc(c.ctx, cancel)()
	c.mu.Lock()
	had := c.had[a.Name]
	c.had[a.Name] = true
	c.mu.Unlock()
	conn, err := connect(ctx, *d)
	if had && errors.Is(err, bus.ErrBusy) {
		conn, err = again(ctx, func() (*net.UnixConn, error) { return connect(ctx, *d) })
	}
	if err != nil {
		return nil, nil, err
	}
	defer conn.Close()
	f, err := conn.File()
	if err != nil {
		return nil, nil, fmt.Errorf("%s: duplicating its connection: %w", a.Name, err)
	}
	return nil, []*os.File{f}, nil
}

// busyTime is how long somebody may need to see that who had a device before is dead.
const busyTime = 5 * time.Second

// again calls f for as long as the device is said to be another's, who may be dead.
func again[T any](ctx context.Context, f func() (T, error)) (T, error) {
	for end, wait := time.Now().Add(busyTime), time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		v, err := f()
		if !errors.Is(err, bus.ErrBusy) || time.Now().After(end) {
			return v, err
		}
		select {
		case <-ctx.Done():
			return v, err
		case <-time.After(wait):
		}
	}
}

// Quiesce has nothing to do: the other side does it when the connection ends, and that has ended with the worker.
func (c *conns) Quiesce(context.Context) error { return nil }

// Close ends what is under way.
func (c *conns) Close() error {
	c.cancel()
	return nil
}
