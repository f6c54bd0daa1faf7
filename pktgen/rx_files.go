package pktgen

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/ring3dev/ring3/procfs"
)

// rxSuffix makes the name of a device's file that of its receiver's. No device's name may end so.
const rxSuffix = ".rx"

// receivers are an engine's, by the network device's name.
type receivers struct {
	mu     sync.Mutex // after Engine.mu, before thread.mu
	byName map[string]*procfs.File
	rx     map[string]*Rx
	saved  map[string]savedRx // settings of receivers that are not there yet
}

// AddRx makes the receiver of a network device, with its file NAME.rx. Devices that are added on it
// have the same file under their own names, eth0@3.rx. Whoever receives the network device's frames gives them to Take.
func (e *Engine) AddRx(name string) (*Rx, error) {
	if name == "" || strings.ContainsAny(name, "/\x00") {
		return nil, fmt.Errorf("pktgen: receiver of %q: no name for a file", name)
	}
	r := newRx(e, name)
	f := procfs.New(0o600, r.show, e.noted(r.store))
	if err := r.keepIn(e.ledger); err != nil {
		e.log.Warn("pktgen: what is received is not kept", "device", name, "error", err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, fmt.Errorf("pktgen: receiver of %s: %w", name, errClosed)
	}
	e.rx.mu.Lock()
	defer e.rx.mu.Unlock()
	if e.rx.byName[name] != nil || e.dir.Lookup(name+rxSuffix) != nil {
		return nil, fmt.Errorf("pktgen: receiver of %s: there is one", name)
	}
	if e.rx.byName == nil {
		e.rx.byName, e.rx.rx = make(map[string]*procfs.File), make(map[string]*Rx)
	}
	if s, ok := e.rx.saved[name]; ok {
		delete(e.rx.saved, name)
		r.set(s)
	}
	e.rx.byName[name], e.rx.rx[name] = f, r
	e.dir.Put(name+rxSuffix, f)
	for _, t := range e.threads {
		t.mu.Lock()
		for _, d := range t.devs {
			if d.base == name && e.dir.Lookup(d.name) != nil { // else it is being removed
				e.dir.Put(d.name+rxSuffix, f)
			}
		}
		t.mu.Unlock()
	}
	return r, nil
}

var errClosed = errors.New("the generator was closed")

// rxAdded gives a device that was added the file of its receiver, if it has one.
func (e *Engine) rxAdded(name, base string) {
	e.rx.mu.Lock()
	defer e.rx.mu.Unlock()
	if f := e.rx.byName[base]; f != nil {
		e.dir.Put(name+rxSuffix, f)
	}
}

// rxRemoved takes that away again. A network device's own stays.
func (e *Engine) rxRemoved(name, base string) {
	e.rx.mu.Lock()
	defer e.rx.mu.Unlock()
	if name != base {
		e.dir.Remove(name + rxSuffix)
	}
}

// rxGone takes away the receiver of a network device that goes away.
func (e *Engine) rxGone(base string) {
	e.rx.mu.Lock()
	defer e.rx.mu.Unlock()
	if e.rx.byName[base] != nil {
		e.rx.rx[base].close()
		delete(e.rx.byName, base)
		delete(e.rx.rx, base)
		e.dir.Remove(base + rxSuffix)
	}
}

// rxKeep keeps what receivers have accounted for until now. They go on, as long as somebody gives them frames.
func (e *Engine) rxKeep() {
	for _, r := range e.rx.all() {
		r.mu.Lock()
		r.keepAll()
		r.mu.Unlock()
	}
}

// all are the receivers, by name.
func (x *receivers) all() []*Rx {
	x.mu.Lock()
	defer x.mu.Unlock()
	return slices.SortedFunc(maps.Values(x.rx), func(a, b *Rx) int { return strings.Compare(a.name, b.name) })
}

// setSaved gives receivers their settings, now or when they are made.
func (x *receivers) setSaved(saved []savedRx) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, s := range saved {
		if r := x.rx[s.Name]; r != nil {
			r.set(s)
			continue
		}
		if x.saved == nil {
			x.saved = make(map[string]savedRx)
		}
		if len(x.saved) < maxSavedDevices {
			x.saved[s.Name] = s
		}
	}
}
