package rapidio

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/internal/uevent"
)

// MaxMports is how many master ports a bus has at most.
const MaxMports = 8

// NewBus makes a bus without anything on it.
func NewBus(o BusOptions) *Bus {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	b := &Bus{opts: o, log: o.Log}
	b.ctx, b.stop = context.WithCancel(context.Background())
	b.tree = newTree(b)
	return b
}

// AddMport takes a master port into service, under the lowest number that is free. It looks for no devices: Scan does. The port
// stays until RemoveMport, or until it is gone for good.
func (b *Bus) AddMport(ctx context.Context, ops Ops, o MportOptions) (*Mport, error) {
	info := ops.Info()
	if info.IDs != Small && info.IDs != Large {
		return nil, fmt.Errorf("%s: adding a master port: %v, want 8 or 16: %w", info.Name, info.IDs, ErrRange)
	}
	if o.Host < -1 || o.Host >= int(info.IDs.Any()) {
		return nil, fmt.Errorf("%s: adding a master port: host device ID %d, want -1 to %d: %w", info.Name, o.Host, info.IDs.Any()-1, ErrRange)
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("%s: adding a master port: %w", info.Name, err)
	}
	m := &Mport{bus: b, ops: ops, info: info, opts: o, turn: newTurn(), removed: make(chan struct{})}
	m.ctx, m.cancel = context.WithCancel(b.ctx)
	_ = m.turn.take(context.Background()) // it is free; a scan waits until the port was started
	if err := b.insert(m); err != nil {
		m.cancel()
		return nil, fmt.Errorf("%s: adding a master port: %w", info.Name, err)
	}
	b.uevent(uevent.Add, m.path(), classPort)
	ops.Start(events{m})
	m.turn.give()
	go m.watch()
	b.changed()
	return m, nil
}

// insert gives a port its number, and shows it.
func (b *Bus) insert(m *Mport) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return bus.ErrClosed
	}
	if len(b.mports) == MaxMports {
		return fmt.Errorf("there are %d, which is all that a bus has: %w", MaxMports, bus.ErrBusy)
	}
	for m.id = 0; m.id < len(b.mports) && b.mports[m.id].id == m.id; m.id++ {
	}
	b.mports = slices.Insert(b.mports, m.id, m)
	b.tree.addMport(m)
	b.wg.Add(1)
	return nil
}

// watch takes a port out of service that is gone for good.
func (m *Mport) watch() {
	defer m.bus.wg.Done()
	select {
	case <-m.ctx.Done():
	case <-m.ops.Done():
		if err := m.ops.Err(); err != nil && !errors.Is(err, bus.ErrClosed) {
			m.bus.log.Error(fmt.Sprintf("RIO: master port %d, %s: %v", m.id, m.Name(), err))
		}
		m.bus.RemoveMport(m)
	}
}

// RemoveMport takes a master port out of service, with its net, and waits for a scan to end, also one that the Enumerator makes by itself. Whoever made
// its Ops closes that, afterwards: a scan that ends gives up what it has locked. It is idempotent.
func (b *Bus) RemoveMport(m *Mport) {
	b.mu.Lock()
	first := !m.leaving
	m.leaving = true
	m.cancel() // ends a scan, and what waits in Ops; from here on there comes no net
	n := m.net
	b.mu.Unlock()
	if !first {
		if !inCallback() {
			<-m.removed
		}
		return
	}
	_ = m.turn.take(context.Background())
	if m.opts.Scan != nil {
		m.opts.Scan.Leave(m)
	}
	if n != nil {
		n.Remove()
	}
	m.turn.give()
	m.hooks.drop()
	m.links.drop()
	m.bells.drop(m.ops)
	m.boxes.drop()
	b.mu.Lock() // its number is free when it is shown no more
	b.mports = slices.DeleteFunc(b.mports, func(o *Mport) bool { return o == m })
	b.tree.removeMport(m)
	b.mu.Unlock()
	b.uevent(uevent.Remove, m.path(), classPort)
	close(m.removed)
	b.changed()
}

// Scan looks for devices at one master port, or at all of them, whose ID is -1: hosts enumerate, one after the other, and then
// the others discover, all at a time. It returns when that is done.
func (b *Bus) Scan(ctx context.Context, id int) error {
	var hosts, others []*Mport
	for _, m := range b.Mports() {
		if id != -1 && id != m.id {
			continue
		}
		if m.opts.Host >= 0 {
			hosts = append(hosts, m)
		} else {
			others = append(others, m)
		}
	}
	if id != -1 && len(hosts)+len(others) == 0 {
		return fmt.Errorf("scanning master port %d: there is none: %w", id, bus.ErrGone)
	}
	var errs []error
	for _, m := range hosts {
		errs = append(errs, m.scan(ctx))
	}
	found := make([]error, len(others))
	var wg sync.WaitGroup
	for i, m := range others {
		wg.Go(func() { found[i] = m.scan(ctx) })
	}
	wg.Wait()
	return errors.Join(append(errs, found...)...)
}

// scan looks for devices; one at a time at each port.
func (m *Mport) scan(ctx context.Context) error {
	if m.opts.Scan == nil {
		return fmt.Errorf("%s: scanning: nobody does: %w", m.Name(), bus.ErrNotSupported)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(m.ctx, cancel)()
	if err := m.turn.take(ctx); err != nil {
		return fmt.Errorf("%s: scanning: another scan goes on: %w", m.Name(), err)
	}
	defer m.turn.give()
	if m.ctx.Err() != nil { // the Enumerator is done with it
		return fmt.Errorf("%s: scanning: %w", m.Name(), bus.ErrGone)
	}
	do, what := m.opts.Scan.Discover, "discovering"
	if m.opts.Host >= 0 {
		do, what = m.opts.Scan.Enumerate, "enumerating"
	}
	err := do(ctx, m)
	if err != nil && m.ctx.Err() != nil {
		err = fmt.Errorf("%w: %w", bus.ErrGone, err)
	}
	if err != nil {
		return fmt.Errorf("%s: %s: %w", m.Name(), what, err)
	}
	return nil
}

// Mports lists the master ports, by number.
func (b *Bus) Mports() []*Mport {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.mports)
}

// Nets lists the nets, by number.
func (b *Bus) Nets() []*Net {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.nets)
}

// Devices lists the devices of all nets, each net's in the order in which they were found.
func (b *Bus) Devices() []*Device {
	b.mu.Lock()
	defer b.mu.Unlock()
	var all []*Device
	for _, n := range b.nets {
		all = append(all, n.devices...)
	}
	return all
}

// Close takes everything out of service: ports, with their devices, then drivers. It is idempotent.
func (b *Bus) Close() {
	b.mu.Lock()
	b.closed = true
	drivers := slices.Clone(b.drivers)
	b.mu.Unlock()
	for _, m := range b.Mports() {
		b.RemoveMport(m)
	}
	for _, d := range drivers {
		b.Unregister(d)
	}
	b.stop()
	b.wg.Wait()
}

func (b *Bus) changed() {
	if b.opts.Changed != nil {
		b.opts.Changed()
	}
}

func (b *Bus) uevent(action, path, subsystem string, env ...string) {
	b.opts.Uevents.Publish(action, path, subsystem, env...)
}

// turn is a lock that can be waited for until a context ends.
type turn chan struct{}

func newTurn() turn { return make(turn, 1) }

func (t turn) take(ctx context.Context) error {
	select {
	case t <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (t turn) give() { <-t }
