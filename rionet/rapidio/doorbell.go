package rapidio

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/ring3dev/ring3/bus"
)

// claim is somebody's range of doorbells.
type claim struct {
	first, last uint16
	owner       string
}

// ranges are claims that do not overlap, in order.
type ranges struct {
	mu   sync.Mutex
	list []claim
}

// overlap is where a new claim would stand, or the claim that is in its way.
func overlap(list []claim, first, last uint16) (at int, other *claim) {
	at, _ = slices.BinarySearchFunc(list, first, func(c claim, first uint16) int { return int(c.last) - int(first) })
	if at < len(list) && list[at].first <= last {
		return at, &list[at]
	}
	return at, nil
}

func (r *ranges) add(c claim) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	at, other := overlap(r.list, c.first, c.last)
	if other != nil {
		return inTheWay(*other)
	}
	r.list = slices.Insert(r.list, at, c)
	return nil
}

func inTheWay(c claim) error {
	by := ""
	if c.owner != "" {
		by = " of " + c.owner
	}
	return fmt.Errorf("%#04x to %#04x are%s: %w", c.first, c.last, by, ErrClaimed)
}

func (r *ranges) remove(c claim) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if i := slices.Index(r.list, c); i >= 0 {
		r.list = slices.Delete(r.list, i, i+1)
	}
}

func (r *ranges) drop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = nil
}

// bell is a claim of doorbells that come in.
type bell struct {
	claim
	hook
	f func(src DestID, info uint16)
}

// bells are a port's.
type bells struct {
	mu   sync.Mutex // also over OpenDoorbells: the hardware sees the last of us
	list atomic.Pointer[[]*bell]
	logs atomic.Bool // somebody was told of a stray one
}

func (b *bells) load() []*bell {
	if p := b.list.Load(); p != nil {
		return *p
	}
	return nil
}

// RequestInbDoorbell claims the doorbells first to last: f is called with each that comes in, and who sent it. Calls come one at a time, in
// order, and must not take long. Where the range overlaps another's it fails with ErrClaimed. release gives the range up. It is
// idempotent, and when it returns f does not run; called from within a callback of this bus it does not wait for that.
func (m *Mport) RequestInbDoorbell(owner string, first, last uint16, f func(src DestID, info uint16)) (release func(), err error) {
	fail := func(err error) (func(), error) {
		return nil, fmt.Errorf("%s: claiming doorbells %#04x to %#04x for %s: %w", m.Name(), first, last, owner, err)
	}
	if first > last {
		return fail(ErrRange)
	}
	b := &m.bells
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := m.usable(); err != nil {
		return fail(err)
	}
	list := b.load()
	at := len(list)
	for i, other := range list {
		if other.first <= last && first <= other.last {
			return fail(inTheWay(other.claim))
		}
		if other.first > last {
			at = min(at, i)
		}
	}
	n := &bell{claim: claim{first, last, owner}, f: f}
	with := slices.Insert(slices.Clone(list), at, n)
	b.list.Store(&with) // first: what comes as soon as they are let in is taken
	if len(list) == 0 {
		if err := m.ops.OpenDoorbells(true); err != nil {
			b.list.Store(&list)
			n.off.Store(true)
			return fail(err)
		}
	}
	return func() { m.releaseBell(n) }, nil
}

func (m *Mport) releaseBell(n *bell) {
	b := &m.bells
	b.mu.Lock()
	list := b.load()
	if i := slices.Index(list, n); i >= 0 {
		list = slices.Delete(slices.Clone(list), i, i+1)
		b.list.Store(&list)
		if len(list) == 0 {
			_ = m.ops.OpenDoorbells(false) // a port that is gone has none open
		}
	}
	b.mu.Unlock()
	n.release()
}

// drop lets all go, of a port that is out of service.
func (b *bells) drop(ops Ops) {
	b.mu.Lock()
	list := b.load()
	b.list.Store(nil)
	if len(list) > 0 {
		_ = ops.OpenDoorbells(false)
	}
	b.mu.Unlock()
	for _, n := range list {
		n.release()
	}
}

// doorbell is one that came in.
func (m *Mport) doorbell(src DestID, info uint16) {
	m.counts.doorbells.Add(1)
	for _, n := range m.bells.load() {
		if n.first <= info && info <= n.last {
			n.run(func() { n.f(src, info) })
			return
		}
	}
	m.counts.strayDoorbells.Add(1)
	if !m.bells.logs.Swap(true) {
		m.bus.log.Info(fmt.Sprintf("RIO: %s: spurious inbound doorbell %#04x from %#04x, which nobody asked for; more are counted only", m.Name(), info, src))
	}
}

// RequestOutbDoorbell claims the doorbells first to last of a remote endpoint, for this process alone: so that not two of its parts talk to
// it with the same numbers. release is idempotent.
func (d *Device) RequestOutbDoorbell(first, last uint16) (release func(), err error) {
	fail := func(err error) (func(), error) {
		return nil, fmt.Errorf("%s: claiming its doorbells %#04x to %#04x: %w", d.Name(), first, last, err)
	}
	if first > last {
		return fail(ErrRange)
	}
	if d.IsSwitch() {
		return fail(fmt.Errorf("a switch takes none: %w", bus.ErrNotSupported))
	}
	if err := d.here(); err != nil {
		return fail(err)
	}
	c := claim{first: first, last: last}
	if err := d.claims.add(c); err != nil {
		return fail(err)
	}
	var once sync.Once
	return func() { once.Do(func() { d.claims.remove(c) }) }, nil
}
