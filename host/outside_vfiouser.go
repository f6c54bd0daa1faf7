package host

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/internal/link"
	"github.com/ring3dev/ring3/vfio/vfiouser"
)

// A device that another process serves is a connection to its socket, and memory that is shared with the server. A worker makes neither, so it asks for them. When it is dead the
// connection is ended: the server takes the memory away from the device and resets it, and serves the next one.

// Methods of outside about devices of vfio-user servers. A device is called by its name in the plan.
const (
	outsideServed link.Method = 0x0360 // servedCall; the connection
	outsideShared link.Method = 0x0361 // servedCall with Size; memory
)

type servedCall struct {
	Device string `json:"device"`
	Size   int64  `json:"size,omitempty"`
}

// maxShared is how much memory one worker may share with the server of one device, in bytes.
const maxShared = 1 << 30

// The worker's end.

// Served implements Outside.
func (o *farOutside) Served(ctx context.Context, device string) (*net.UnixConn, error) {
	f, err := one(o.call(ctx, outsideServed, servedCall{Device: device}, nil))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return link.Open(f)
}

// Shared implements Outside.
func (o *farOutside) Shared(ctx context.Context, device string, size int64) (*os.File, error) {
	return one(o.call(ctx, outsideShared, servedCall{device, size}, nil))
}

// How long a server may be busy with taking leave of the worker before, and when it is asked again.
const (
	servedTime = 10 * time.Second
	servedStep = 20 * time.Millisecond
)

// borrowVFIOUser opens a device whose connection is the supervisor's. again: a worker before this one had it.
func borrowVFIOUser(ctx context.Context, out Outside, d DeviceSpec, o vfiouser.Options, again bool) (*vfiouser.Device, error) {
	o.Memory = func(size int64) (*os.File, error) { return out.Shared(context.Background(), d.Name, size) }
	for end := time.Now().Add(servedTime); ; {
		c, err := out.Served(ctx, d.Name)
		if err != nil {
			return nil, err
		}
		dev, err := vfiouser.Open(ctx, c, o)
		if again && errors.Is(err, bus.ErrBusy) && time.Now().Before(end) {
			select {
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			case <-time.After(servedStep):
				continue
			}
		}
		if err != nil || !again {
			return dev, err
		}
		// The server did it when the connection ended, if it is one of those that do.
		if err := dev.Reset(ctx); err != nil && !errors.Is(err, bus.ErrNotSupported) {
			return nil, errors.Join(err, dev.Close())
		}
		return dev, nil
	}
}

// The supervisor's end.

// heldServed are the devices of a group that others serve; outsideBackend. Safe for concurrent use.
type heldServed struct {
	devices map[string]*lentDevice // by name
}

// lentDevice is one.
type lentDevice struct {
	path string

	mu     sync.Mutex
	conn   *net.UnixConn // nil: nobody has it
	shared int64         // bytes, by one worker: who connects again may have kept what it was given
	closed bool
}

// holdServed is one of outsideBackends.
func holdServed(_ Config, g groupPlan) (outsideBackend, error) {
	h := &heldServed{devices: map[string]*lentDevice{}}
	for _, d := range g.Plan.Devices {
		if d.Backend == vfioUser {
			h.devices[d.Name] = &lentDevice{path: d.Device}
		}
	}
	if len(h.devices) == 0 {
		return nil, nil
	}
	return h, nil
}

func (h *heldServed) calls() map[link.Method]outsideCall {
	return map[link.Method]outsideCall{outsideServed: h.connect, outsideShared: h.share}
}

func (h *heldServed) asked(body []byte) (*lentDevice, servedCall, error) {
	var q servedCall
	if err := asked(body, &q); err != nil {
		return nil, q, err
	}
	d := h.devices[q.Device]
	if d == nil {
		return nil, q, fmt.Errorf("vfio-user: device %.64q: the plan has no such: %w", q.Device, syscall.EACCES)
	}
	return d, q, nil
}

// connect answers outsideServed. Who connects again has no use for the connection before.
func (h *heldServed) connect(ctx context.Context, body []byte, _ []*os.File) (any, []*os.File, error) {
	d, _, err := h.asked(body)
	if err != nil {
		return nil, nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, nil, bus.ErrClosed
	}
	d.end()
	c, err := vfiouser.Connect(ctx, d.path)
	if err != nil {
		return nil, nil, err
	}
	f, err := c.File()
	if err != nil {
		c.Close()
		return nil, nil, err
	}
	d.conn = c
	return nil, []*os.File{f}, nil
}

// end ends the connection, whoever else has a descriptor of it. mu is held.
func (d *lentDevice) end() {
	if d.conn != nil {
		_ = d.conn.CloseRead()
		_ = d.conn.CloseWrite()
		d.conn.Close()
		d.conn = nil
	}
}

// share answers outsideShared. What a worker lets go of it uses again, and asks for no more than it has at a time.
func (h *heldServed) share(_ context.Context, body []byte, _ []*os.File) (any, []*os.File, error) {
	d, q, err := h.asked(body)
	if err != nil {
		return nil, nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.conn == nil:
		return nil, nil, fmt.Errorf("vfio-user: memory for %s, which is not connected: %w", q.Device, bus.ErrClosed)
	case q.Size <= 0 || q.Size%int64(os.Getpagesize()) != 0 || q.Size > maxShared-d.shared:
		return nil, nil, fmt.Errorf("vfio-user: %d bytes of memory for %s, which has %d, want whole pages, and at most %d: %w", q.Size, q.Device, d.shared, int64(maxShared), syscall.ENOMEM)
	}
	f, err := vfiouser.NewMemory(q.Size)
	if err != nil {
		return nil, nil, err
	}
	d.shared += q.Size
	return nil, []*os.File{f}, nil
}

// Quiesce implements outsideBackend.
func (h *heldServed) Quiesce(context.Context) error {
	for _, d := range h.devices {
		d.mu.Lock()
		d.end()
		d.shared = 0
		d.mu.Unlock()
	}
	return nil
}

// Close implements outsideBackend.
func (h *heldServed) Close() error {
	for _, d := range h.devices {
		d.mu.Lock()
		d.closed = true
		d.end()
		d.mu.Unlock()
	}
	return nil
}
