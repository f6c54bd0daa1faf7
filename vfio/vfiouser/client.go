package vfiouser

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
)

// DefaultTimeout is how long a server may take to answer a request.
const DefaultTimeout = 5 * time.Second

// Ways are means of reaching a device that a server may offer beside messages.
type Ways uint8

// The ways that there are.
const (
	WriteQueue Ways = 1 << iota // register writes through shared memory (ring3's servers)
	Doorbells                   // doorbell registers through shared memory and an eventfd (libvfio-user's shadow ioeventfds)
	Maps                        // parts of regions that are mapped
	TwinSocket                  // a second socket for the server's commands
)

// Options say how a device is reached. The zero value is for everybody.
type Options struct {
	Address string        // the device's, for messages; "" means the socket's name
	Name    string        // what the user calls it, for messages
	Timeout time.Duration // of each request; 0 means DefaultTimeout
	Without Ways          // not to be used though the server offers them: for tests and comparisons
	Log     *slog.Logger  // nil discards
	// Memory makes memory that is shared with the server, of as many bytes in whole pages: as NewMemory does, for who may not. What it gave is used again and kept until the
	// device is closed. nil: NewMemory.
	Memory func(size int64) (*os.File, error)
}

// Device is a device that a server serves: a bus.Device. Safe for concurrent use.
type Device struct {
	o       Options
	path    string
	l       *link
	server  capabilities
	resets  bool // the server can reset the device
	queue   *producer
	cfg     *config
	regions []*region
	irqs    [3]irqInfo // by mode's index
	dma     *heap

	irqMu   sync.Mutex // guards what follows
	lines   []*bus.IRQ
	active  int  // index of what is enabled; -1: nothing
	closing bool // nothing is enabled any more

	closeOnce sync.Once
	closeErr  error
}

var _ bus.Device = (*Device)(nil)

// Dial connects to a server's socket and asks it for its device.
func Dial(ctx context.Context, path string, o Options) (*Device, error) {
	c, err := Connect(ctx, path)
	if err != nil {
		return nil, err
	}
	return Open(ctx, c, o)
}

// Connect connects to a server's socket, for Open, which may be another process's.
func Connect(ctx context.Context, path string) (*net.UnixConn, error) {
	c, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("vfio-user:%s: %w", path, dialError(err))
	}
	return c.(*net.UnixConn), nil
}

// dialError says what to do about a socket that nobody serves.
func dialError(err error) error {
	var errno unix.Errno
	if errors.As(err, &errno) {
		err = errno
	}
	switch {
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("connecting: %w (%w): start the server first, for instance 'ring3 serve sim:edu --socket PATH'", err, bus.ErrGone)
	case errors.Is(err, unix.ECONNREFUSED):
		return fmt.Errorf("connecting: %w (%w): the server that made the socket has ended: start it again", err, bus.ErrGone)
	}
	return fmt.Errorf("connecting: %w", err)
}

// Open asks the server at the other end of a connection for its device. The connection is the
// device's, and closed with it or on error.
func Open(ctx context.Context, c *net.UnixConn, o Options) (*Device, error) {
	path := c.RemoteAddr().String()
	if path == "" || path == "@" {
		path = "socket" // of a pair
	}
	if o.Address == "" {
		o.Address = filepath.Base(path)
	}
	if o.Timeout == 0 {
		o.Timeout = DefaultTimeout
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s, err := takeConn(c, o.Timeout)
	if err != nil {
		return nil, fmt.Errorf("vfio-user:%s: %w", path, err)
	}
	d := &Device{o: o, path: path, l: newLink(s, o.Timeout), active: -1}
	d.l.commands = d.command
	d.dma = newHeap(d)
	stop := context.AfterFunc(ctx, s.shutdown)
	err = d.handshake()
	if !stop() && err == nil || ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		d.release(bus.ErrClosed)
		return nil, fmt.Errorf("vfio-user:%s: %w", path, err)
	}
	return d, nil
}

// handshake agrees on a version and asks for all there is to know.
func (d *Device) handshake() error {
	if err := d.negotiate(); err != nil {
		return err
	}
	d.l.start()
	var info deviceInfo
	err := d.l.ask(request{
		cmd:  cmdDeviceInfo,
		body: func(w *writer) { w.deviceInfo(deviceInfo{argsz: deviceInfoSize}) },
		reply: func(m *message) error {
			r := reader{b: m.body}
			info = r.deviceInfo()
			return r.err(m)
		},
	})
	switch {
	case err != nil:
		return fmt.Errorf("asking for the device: %w", err)
	case info.flags&devicePCI == 0:
		return fmt.Errorf("asking for the device: flags %#x: want a PCI device: %w", info.flags, bus.ErrNotSupported)
	case info.regions <= regionConfig || info.irqs <= irqMSIX || info.regions > 1<<16 || info.irqs > 1<<16:
		return fmt.Errorf("asking for the device: %d regions and %d kinds of interrupts, want those of PCI: %w", info.regions, info.irqs, bus.ErrProtocol)
	}
	d.resets = info.flags&deviceReset != 0
	if err := d.openRegions(); err != nil {
		return err
	}
	for i := range d.irqs {
		if err := d.askIRQ(i); err != nil {
			return err
		}
	}
	return nil
}

// err is a reply that is shorter than what it says.
func (r *reader) err(m *message) error {
	if r.short {
		return fmt.Errorf("%d bytes, which is too short: %w", len(m.body), bus.ErrProtocol)
	}
	return nil
}

// negotiate exchanges versions, and takes what the server offers.
func (d *Device) negotiate() error {
	own := version{versionMajor, versionMinor, ownLimits()}
	if d.o.Without&TwinSocket == 0 {
		own.caps.Twin = &twinSocket{Supported: true}
	}
	own.caps.Ring3 = &ring3Caps{LastWords: true}
	if d.o.Without&WriteQueue == 0 {
		own.caps.Ring3.Queue = &queueOffer{}
	}
	body, err := own.body()
	if err != nil {
		return err
	}
	err = d.l.ask(request{
		cmd:   cmdVersion,
		body:  func(w *writer) { *w = append(*w, body...) },
		reply: d.agreed,
	})
	if errors.Is(err, bus.ErrBusy) {
		return fmt.Errorf("agreeing on a version: the device is served to another client: %w", err)
	}
	if err != nil {
		return fmt.Errorf("agreeing on a version: %w", err)
	}
	return nil
}

// agreed takes the server's VERSION.
func (d *Device) agreed(m *message) error {
	v, err := parseVersion(m.body)
	switch {
	case err != nil:
		return err
	case v.major != versionMajor || v.minor > versionMinor:
		return fmt.Errorf("version %d.%d, want %d.0 to %d.%d: %w", v.major, v.minor, versionMajor, versionMajor, versionMinor, bus.ErrProtocol)
	}
	d.server = v.caps
	// fd takes descriptor i out of the reply.
	fd := func(what string, i *int) (int, error) {
		if i == nil || *i < 0 || *i >= len(m.fds) || m.fds[*i] < 0 {
			return -1, fmt.Errorf("no descriptor for the %s among %d: %w", what, len(m.fds), bus.ErrProtocol)
		}
		n := m.fds[*i]
		m.fds[*i] = -1
		return n, nil
	}
	if t := v.caps.Twin; t != nil && t.Supported {
		n, err := fd("twin socket", t.FD)
		if err != nil {
			return err
		}
		s, err := newSock(n, d.o.Timeout)
		if err != nil {
			_ = unix.Close(n)
			return fmt.Errorf("the twin socket: %w (%w)", err, bus.ErrProtocol)
		}
		d.l.twin = &twin{s: s, ended: make(chan struct{})}
	}
	if r := v.caps.Ring3; r != nil && r.Queue != nil && d.o.Without&WriteQueue == 0 {
		return d.takeQueue(m, r.Queue, fd)
	}
	return nil
}

func (d *Device) takeQueue(m *message, q *queueOffer, fd func(string, *int) (int, error)) error {
	memory := q.Memory
	if memory == nil || *memory < 0 || *memory >= len(m.fds) || m.fds[*memory] < 0 {
		return fmt.Errorf("no descriptor for the write queue among %d: %w", len(m.fds), bus.ErrProtocol)
	}
	f := m.take(*memory, "write queue")
	defer f.Close()
	event, err := fd("write queue's doorbell", q.Kick)
	if err != nil {
		return err
	}
	if d.queue, err = newProducer(f, event, q.Entries, d.o.Timeout, d.l.dead.Load); err != nil {
		_ = unix.Close(event)
		return err
	}
	d.queue.timed = q.Timed
	d.l.kicks.add(&d.queue.kick)
	return nil
}

// Address is bus.Device's.
func (d *Device) Address() string { return d.o.Address }

// Backend is bus.Device's.
func (d *Device) Backend() string { return "vfio-user:" + d.path }

// Config is bus.Device's.
func (d *Device) Config() bus.Config { return d.cfg }

// Regions is bus.Device's.
func (d *Device) Regions() []bus.RegionInfo {
	var all []bus.RegionInfo
	for _, r := range d.regions {
		all = append(all, r.info)
	}
	return all
}

// Region is bus.Device's.
func (d *Device) Region(index int) (bus.Region, error) {
	if err := d.Err(); err != nil {
		return nil, err
	}
	if i := slices.IndexFunc(d.regions, func(r *region) bool { return r.info.Index == index }); i >= 0 {
		return d.regions[i], nil
	}
	return nil, d.errorf("no region %d: %w", index, bus.ErrNotSupported)
}

// DMA is bus.Device's.
func (d *Device) DMA() bus.DMA { return d.dma }

// Done is bus.Device's.
func (d *Device) Done() <-chan struct{} { return d.l.done }

// Err is bus.Device's.
func (d *Device) Err() error {
	if !d.l.dead.Load() {
		return nil
	}
	return d.errorf("%w", d.l.reason())
}

func (d *Device) errorf(format string, args ...any) error {
	who := d.o.Address
	if d.o.Name != "" {
		who += " " + d.o.Name
	}
	return fmt.Errorf(who+": "+format, args...)
}

// resetTimeout bounds a reset whose context does not.
const resetTimeout = 30 * time.Second

// Reset is bus.Device's. The server restores config space.
func (d *Device) Reset(ctx context.Context) error {
	switch {
	case d.Err() != nil:
		return d.Err()
	case ctx.Err() != nil:
		return d.errorf("reset: %w", ctx.Err())
	case !d.resets:
		return d.errorf("the server cannot reset the device: %w", bus.ErrNotSupported)
	}
	limit := resetTimeout
	if due, ok := ctx.Deadline(); ok {
		limit = min(limit, max(time.Until(due), d.o.Timeout))
	}
	if err := d.l.ask(request{cmd: cmdReset, limit: limit}); err != nil {
		return d.errorf("reset: %w", err)
	}
	return nil
}

// Close is bus.Device's.
func (d *Device) Close() error {
	d.closeOnce.Do(func() {
		d.irqMu.Lock()
		d.closing = true // the link lives on for a while, and nobody would close what is enabled by then
		err := d.disableIRQs()
		d.irqMu.Unlock()
		if errors.Is(err, bus.ErrGone) || d.l.dead.Load() {
			err = nil
		}
		d.closeErr = err
		if !d.l.dead.Load() {
			// The read flushes every posted write. Once the connection ends, the server resets the
			// device and takes its memory away.
			d.cfg.clearMaster()
		}
		d.release(bus.ErrClosed)
	})
	return d.closeErr
}

// release ends the link and gives everything back.
func (d *Device) release(why error) {
	d.l.close(why)
	if d.queue != nil {
		d.queue.close()
	}
	for _, r := range d.regions {
		r.close()
	}
	d.dma.close()
}
