package fabric

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/rionet/rapidio"
)

// Mport is a master port inside the fabric's own process: a rapidio.Ops without shared memory, for tests, benchmarks and whoever has
// all nodes in one process.
type Mport struct {
	f    *Fabric
	name string
	done chan struct{}

	mu   sync.Mutex // makes callers one goroutine, as port wants it; not taken by what the fabric calls
	port *Port
	tag  uint32 // of the last doorbell or maintenance transaction

	closed atomic.Bool
	in     [rapidio.MaxMboxes]atomic.Pointer[inbox]
	out    [rapidio.MaxMboxes]atomic.Pointer[outbox]
	boxes  sync.Mutex // guards opening and closing of in and out, and:
	gen    uint32     // counts outboxes

	waitMu  sync.Mutex
	waiters map[uint32]chan result // by tag

	events eventQueue
}

var _ rapidio.Ops = (*Mport)(nil)

// result is what a response says.
type result struct {
	status rapidio.Status
	value  uint32
}

// Mport attaches a master port to an endpoint. The caller closes it.
func (f *Fabric) Mport(node string) (*Mport, error) {
	m := &Mport{f: f, name: node, done: make(chan struct{}), waiters: make(map[uint32]chan result)}
	m.events.init()
	// Held, because the fabric may call mportSink before it is known.
	m.mu.Lock()
	defer m.mu.Unlock()
	p, err := f.Attach(node, mportSink{m})
	if err != nil {
		return nil, err
	}
	m.port = p
	return m, nil
}

// Close unplugs the port. What waits for a response fails with bus.ErrClosed. It does not wait for Events that run.
func (m *Mport) Close() error {
	if m.closed.Swap(true) {
		return nil
	}
	m.mu.Lock()
	m.port.Detach()
	m.mu.Unlock()
	close(m.done)
	return nil
}

// Done and Err are as in rapidio.Ops.
func (m *Mport) Done() <-chan struct{} { return m.done }

func (m *Mport) Err() error {
	if m.closed.Load() {
		return m.errClosed()
	}
	return nil
}

func (m *Mport) errClosed() error { return fmt.Errorf("%s: %w", m.name, bus.ErrClosed) }

// Info describes the port.
func (m *Mport) Info() rapidio.PortInfo {
	return rapidio.PortInfo{Name: m.name, Model: "fabric", IDs: m.f.ids}
}

// Start begins the calling of e.
func (m *Mport) Start(e rapidio.Events) { go m.events.run(e, m.done) }

// LocalRead reads one of the port's own registers.
func (m *Mport) LocalRead(ctx context.Context, off rapidio.Off, w rapidio.Width) (uint32, error) {
	return m.maint(ctx, &Maint{Local: true, Off: off, Width: w})
}

// LocalWrite writes one of the port's own registers.
func (m *Mport) LocalWrite(ctx context.Context, off rapidio.Off, w rapidio.Width, v uint32) error {
	_, err := m.maint(ctx, &Maint{Local: true, Off: off, Width: w, Write: true, Value: v})
	return err
}

// Read reads a register of another device.
func (m *Mport) Read(ctx context.Context, dest rapidio.DestID, hop uint8, off rapidio.Off, w rapidio.Width) (uint32, error) {
	return m.maint(ctx, &Maint{Dest: dest, Hop: hop, Off: off, Width: w})
}

// Write writes a register of another device.
func (m *Mport) Write(ctx context.Context, dest rapidio.DestID, hop uint8, off rapidio.Off, w rapidio.Width, v uint32) error {
	_, err := m.maint(ctx, &Maint{Dest: dest, Hop: hop, Off: off, Width: w, Write: true, Value: v})
	return err
}

func (m *Mport) maint(ctx context.Context, t *Maint) (uint32, error) {
	what := "read"
	if t.Write {
		what = "write"
	}
	if !t.valid() {
		return 0, fmt.Errorf("%s: config %s of %d bytes at %#x: %w", m.name, what, t.Width, uint32(t.Off), rapidio.ErrRange)
	}
	r, err := m.transact(ctx, func(tag uint32) result {
		t.Tag = tag
		v, s := m.port.Maint(t)
		return result{s, v}
	})
	if err == nil {
		err = r.status.Err()
	}
	switch {
	case err != nil && t.Local:
		return 0, fmt.Errorf("%s: config %s at %#x: %w", m.name, what, uint32(t.Off), err)
	case err != nil:
		return 0, fmt.Errorf("%s: config %s of device %#x, hop %d, at %#x: %w", m.name, what, uint16(t.Dest), t.Hop, uint32(t.Off), err)
	}
	return r.value, nil
}

// tagWaits in a tag says that somebody waits for the response, who is found by the tag; without it the tag is one of an outbox.
const tagWaits = 1 << 31

// transact starts a transaction and waits for its response.
func (m *Mport) transact(ctx context.Context, start func(tag uint32) result) (result, error) {
	if m.closed.Load() {
		return result{}, bus.ErrClosed
	}
	if err := ctx.Err(); err != nil {
		return result{}, err
	}
	ch := make(chan result, 1)
	m.mu.Lock()
	m.tag++
	tag := m.tag | tagWaits
	m.waitMu.Lock()
	m.waiters[tag] = ch
	m.waitMu.Unlock()
	r := start(tag)
	m.port.Flush()
	m.mu.Unlock()
	defer func() {
		m.waitMu.Lock()
		delete(m.waiters, tag)
		m.waitMu.Unlock()
	}()
	if r.status != rapidio.Pending {
		if m.closed.Load() {
			return result{}, bus.ErrClosed
		}
		return r, nil
	}
	select {
	case r = <-ch:
		return r, nil
	case <-ctx.Done():
		return result{}, ctx.Err()
	case <-m.done:
		return result{}, bus.ErrClosed
	}
}

// Doorbell sends a doorbell and waits for its response.
func (m *Mport) Doorbell(ctx context.Context, dest rapidio.DestID, info uint16) error {
	r, err := m.transact(ctx, func(tag uint32) result { return result{status: m.port.Doorbell(tag, dest, info)} })
	if err == nil {
		err = r.status.Err()
	}
	if err != nil {
		return fmt.Errorf("%s: doorbell %#x to device %#x: %w", m.name, info, uint16(dest), err)
	}
	return nil
}

// PortWrite sends a port-write.
func (m *Mport) PortWrite(ctx context.Context, dest rapidio.DestID, p []byte) error {
	if n := len(p); n < 4 || n > rapidio.MaxPortWrite || n%4 != 0 {
		return fmt.Errorf("%s: port-write of %d bytes: %w", m.name, n, rapidio.ErrRange)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed.Load() {
		return m.errClosed()
	}
	m.port.PortWrite(dest, p)
	return nil
}

// OpenDoorbells lets doorbells in, or not.
func (m *Mport) OpenDoorbells(open bool) error {
	if m.closed.Load() {
		return m.errClosed()
	}
	m.port.SetDoorbells(open)
	return nil
}

// mportSink is what the fabric sees of an Mport. It takes none of the locks that are held while the fabric is called.
type mportSink struct{ m *Mport }

func (s mportSink) Message(msg *rapidio.Message) rapidio.Status {
	if b := s.m.in[msg.Mbox].Load(); b != nil {
		return b.put(msg)
	}
	return rapidio.Error
}

func (s mportSink) Doorbell(src rapidio.DestID, info uint16) rapidio.Status {
	if !s.m.events.doorbell(src, info) {
		return rapidio.Retry
	}
	return rapidio.Done
}

func (s mportSink) PortWrite(p []byte) { s.m.events.portWrite(p) }
func (s mportSink) ConfigWritten()     { s.m.events.configWritten() }
func (s mportSink) Link(up bool)       { s.m.events.link(up) }

func (s mportSink) Complete(tag uint32, st rapidio.Status) {
	if tag&tagWaits != 0 {
		s.Response(tag, 0, st)
		return
	}
	if b := s.m.out[tag>>tagMboxShift&(rapidio.MaxMboxes-1)].Load(); b != nil {
		b.complete(tag, st)
	}
}

func (s mportSink) Response(tag, v uint32, st rapidio.Status) {
	s.m.waitMu.Lock()
	ch := s.m.waiters[tag]
	s.m.waitMu.Unlock()
	if ch != nil {
		ch <- result{st, v} // has room: a tag has one response
	}
}

func (s mportSink) Flush() {
	s.m.events.flush()
	for i := range s.m.in {
		if b := s.m.in[i].Load(); b != nil {
			b.flush()
		}
	}
}
