package ivshmem

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
)

// HardwareID is what the device is called, for drivers.
const HardwareID = "IVSHMEM"

// DefaultTimeout is how long a server may take for what it sends first.
const DefaultTimeout = 5 * time.Second

// Options say what is wanted of a server.
type Options struct {
	// Vectors is how many own vectors there are to be: 1 to 64.
	Vectors int
	// Timeout is for all that the server sends first; 0: DefaultTimeout.
	Timeout time.Duration
	// Backend is what the device says of itself, for messages; empty: "ivshmem".
	Backend string
	Log     *slog.Logger // nil discards
}

// Device is a peer of an ivshmem server; bus.Device and bus.Platform. Safe for concurrent use.
type Device struct {
	o    Options
	conn *net.UnixConn
	id   int
	regs *registers
	mem  *memory

	bells sync.RWMutex  // guards peers, fds; held for reading while a descriptor is used
	peers map[int][]int // their eventfds, by ID and vector; of the own ID too
	fds   int           // all of those

	mu     sync.Mutex // guards what follows
	irqs   []*bus.IRQ
	err    error
	done   chan struct{}
	closed bool
	reader sync.WaitGroup
}

// Open makes a device of a connection to a server, that has nothing sent yet, or nothing read. The connection is the device's, also
// where Open fails.
func Open(ctx context.Context, conn *net.UnixConn, o Options) (*Device, error) {
	if o.Timeout <= 0 {
		o.Timeout = DefaultTimeout
	}
	if o.Backend == "" {
		o.Backend = "ivshmem"
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	d := &Device{o: o, conn: conn, id: -1, peers: map[int][]int{}, done: make(chan struct{})}
	d.regs = &registers{d: d}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	err := d.begin()
	stop()
	if e := ctx.Err(); e != nil {
		err = e
	}
	if err != nil {
		_ = d.Close()
		return nil, fmt.Errorf("%s: joining: %w", o.Backend, err)
	}
	d.reader.Go(d.read)
	return d, nil
}

// begin receives what a server sends first.
func (d *Device) begin() error {
	if d.o.Vectors < 1 || d.o.Vectors > maxVectors {
		return fmt.Errorf("%d vectors, want 1 to %d: %w", d.o.Vectors, maxVectors, bus.ErrNotSupported)
	}
	deadline := time.Now().Add(d.o.Timeout)
	next := func(what string) (message, error) {
		m, err := receive(d.conn, deadline, d.o.Timeout)
		if errors.Is(err, io.EOF) {
			err = fmt.Errorf("the server closed the connection: %w", bus.ErrGone)
		}
		if err != nil {
			return m, fmt.Errorf("waiting for %s: %w", what, err)
		}
		return m, nil
	}
	m, err := next("the protocol's version")
	if err != nil {
		return err
	}
	if m.drop(); m.v != protocolVersion || m.fd >= 0 {
		return fmt.Errorf("the server has version %d of the protocol, want %d: %w", m.v, protocolVersion, bus.ErrProtocol)
	}
	if m, err = next("the own ID"); err != nil {
		return err
	}
	if m.drop(); m.v < 0 || m.v > maxID || m.fd >= 0 {
		return fmt.Errorf("the server gave the ID %d, want 0 to %d: %w", m.v, maxID, bus.ErrProtocol)
	}
	d.id = int(m.v)
	if m, err = next("the memory"); err != nil {
		return err
	}
	defer func() { m.drop() }()
	if m.v != memoryMessage || m.fd < 0 {
		return fmt.Errorf("the server sent %d, want %d with the memory: %w", m.v, memoryMessage, bus.ErrProtocol)
	}
	b, err := mapMemory(m.fd)
	if err != nil {
		return err
	}
	if d.mem, err = newMemory(b); err != nil {
		_ = unix.Munmap(b)
		return err
	}
	for len(d.peers[d.id]) < d.o.Vectors {
		v, err := next(fmt.Sprintf("own vector %d of %d", len(d.peers[d.id]), d.o.Vectors))
		if err != nil {
			return err
		}
		if err := d.handle(v); err != nil {
			return err
		}
	}
	return nil
}

// handle acts on a message about a peer.
func (d *Device) handle(m message) error {
	if m.v < 0 || m.v > maxID {
		m.drop()
		return fmt.Errorf("the server sent %d, want the ID of a peer: %w", m.v, bus.ErrProtocol)
	}
	id := int(m.v)
	d.bells.Lock()
	defer d.bells.Unlock()
	switch n := len(d.peers[id]); {
	case m.fd < 0 && id == d.id:
		return fmt.Errorf("the server says that the own ID %d is gone: %w", id, bus.ErrProtocol)
	case m.fd < 0:
		for _, fd := range d.peers[id] {
			_ = unix.Close(fd)
		}
		d.fds -= n
		delete(d.peers, id)
		return nil
	case n == maxVectors || d.fds == maxDescriptors:
		m.drop()
		return fmt.Errorf("vector %d of peer %d, and %d descriptors in all: want at most %d, and %d: %w", n, id, d.fds, maxVectors, maxDescriptors, bus.ErrProtocol)
	}
	if err := checkEventfd(m.fd); err != nil {
		m.drop()
		return fmt.Errorf("vector %d of peer %d: %w", len(d.peers[id]), id, err)
	}
	d.peers[id] = append(d.peers[id], m.fd)
	d.fds++
	return nil
}

// read receives what the server sends later, until the connection ends.
func (d *Device) read() {
	for {
		m, err := receive(d.conn, time.Time{}, d.o.Timeout)
		switch {
		case errors.Is(err, io.EOF):
			err = fmt.Errorf("the server closed the connection: %w", bus.ErrGone)
		case errors.Is(err, net.ErrClosed):
			return
		case err == nil:
			err = d.handle(m)
		}
		if err == nil {
			continue
		}
		if !errors.Is(err, bus.ErrGone) {
			err = fmt.Errorf("%w (%w)", err, bus.ErrGone)
		}
		d.die(fmt.Errorf("%s: %w", d.Address(), err))
		return
	}
}

// die says why the device is dead, once.
func (d *Device) die(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err != nil {
		return
	}
	d.err = err
	if d.mem != nil {
		d.mem.Suspend()
	}
	close(d.done)
}

// Peer is the own ID.
func (d *Device) Peer() int { return d.id }

// Address is where the device stands, for messages: "IVSHMEM:0007" with its ID.
func (d *Device) Address() string { return fmt.Sprintf("%s:%04x", HardwareID, max(d.id, 0)) }

// Backend is what carries it.
func (d *Device) Backend() string { return d.o.Backend }

// HardwareIDs are what drivers know it by; bus.Platform.
func (d *Device) HardwareIDs() []string { return []string{HardwareID} }

// Config is no config space.
func (d *Device) Config() bus.Config { return noConfig{} }

// Regions are the registers and the memory.
func (d *Device) Regions() []bus.RegionInfo {
	return []bus.RegionInfo{d.regs.Info(), d.mem.Info()}
}

// Region gives access to one.
func (d *Device) Region(index int) (bus.Region, error) {
	if err := d.Err(); err != nil {
		return nil, err
	}
	switch index {
	case 0:
		return d.regs, nil
	case 1:
		return d.mem, nil
	}
	return nil, fmt.Errorf("%s: region %d: there is none: %w", d.Address(), index, bus.ErrNotSupported)
}

// DMA gives none.
func (d *Device) DMA() bus.DMA { return noDMA{d} }

// Reset is not to be had.
func (d *Device) Reset(context.Context) error {
	if err := d.Err(); err != nil {
		return err
	}
	return fmt.Errorf("%s: reset: a peer of an ivshmem server has none: %w", d.Address(), bus.ErrNotSupported)
}

// IRQVectors are the own vectors, as MSI-X.
func (d *Device) IRQVectors(mode bus.IRQMode) int {
	if mode != bus.MSIX {
		return 0
	}
	return d.o.Vectors
}

// EnableIRQs gives the first n vectors.
func (d *Device) EnableIRQs(mode bus.IRQMode, n int) ([]*bus.IRQ, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err != nil {
		return nil, d.err
	}
	if most := d.IRQVectors(mode); n < 1 || n > most {
		return nil, fmt.Errorf("%s: enabling %d vectors of %s: there are %d: %w", d.Address(), n, mode, most, bus.ErrNotSupported)
	}
	if err := d.disable(); err != nil {
		return nil, err
	}
	d.bells.RLock()
	defer d.bells.RUnlock()
	for i := range n {
		q, err := bus.WrapIRQ(mode, i, d.peers[d.id][i], nil)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("%s: enabling vector %d: %w", d.Address(), i, err), d.disable())
		}
		d.irqs = append(d.irqs, q)
	}
	return append([]*bus.IRQ(nil), d.irqs...), nil
}

// DisableIRQs closes them.
func (d *Device) DisableIRQs() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.disable()
}

// disable is called with mu held.
func (d *Device) disable() error {
	var errs []error
	for _, q := range d.irqs {
		errs = append(errs, q.Close())
	}
	d.irqs = nil
	return errors.Join(errs...)
}

// Done is closed when the connection ended, or the device was closed.
func (d *Device) Done() <-chan struct{} { return d.done }

// Err says why; nil while the device lives.
func (d *Device) Err() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.err
}

// Close leaves the server.
func (d *Device) Close() error {
	d.die(fmt.Errorf("%s: %w", d.Address(), bus.ErrClosed))
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		d.reader.Wait()
		return nil
	}
	d.closed = true
	err := d.disable()
	d.mu.Unlock()
	err = errors.Join(err, d.conn.Close())
	d.reader.Wait()
	d.bells.Lock()
	for id, fds := range d.peers {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
		delete(d.peers, id)
	}
	d.bells.Unlock()
	if d.mem != nil {
		err = errors.Join(err, d.mem.Close())
	}
	return err
}
