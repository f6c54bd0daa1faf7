package portmodel

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// Tree owns the bus of a test; pci.Hierarchy, and where messages go. Safe for concurrent use.
type Tree struct {
	mu      sync.Mutex // guards what follows
	members []*pci.Member
	uevents []string
	lines   []string
	woken   []string
}

// Add makes a function part of it.
func (t *Tree) Add(m *pci.Member) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.members = append(t.members, m)
}

// Function describes a port as enumeration does.
func Function(p *Port, secondary, subordinate uint8) *pci.Function {
	a, err := pci.ParseAddr(p.Address())
	if err != nil {
		panic(err) // the test's mistake
	}
	return &pci.Function{Addr: a, ID: pci.ReadID(config{p}), Config: config{p}, Header: pci.HeaderBridge, Secondary: secondary, Subordinate: subordinate, AER: &pci.AERStats{}}
}

// Probe binds a port to a driver of ports, and closes it at the end of the test.
func (t *Tree) Probe(tb testing.TB, p *Port, drv *pci.Driver, profile string) (pci.Instance, error) {
	tb.Helper()
	inst, err := drv.Probe(context.Background(), p, pci.Env{Name: "rp0", Log: slog.New(handler{t}), Profile: profile, Bus: t, Function: Function(p, 1, 8)})
	if err == nil {
		tb.Cleanup(func() {
			if err := inst.Close(); err != nil {
				tb.Errorf("Close of the port = %v", err)
			}
		})
	}
	return inst, err
}

// Find is pci.Hierarchy's.
func (t *Tree) Find(a pci.Addr) *pci.Member {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, m := range t.members {
		if m.Function.Addr == a {
			return m
		}
	}
	return nil
}

// Below is everything that was added: a test has one port.
func (t *Tree) Below(pci.Addr) []*pci.Member {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.members)
}

// Rescan finds nothing new.
func (t *Tree) Rescan(context.Context, pci.Addr) (int, error) { return 0, bus.ErrNotSupported }

// Remove is not possible.
func (t *Tree) Remove(context.Context, pci.Addr, bool) error { return bus.ErrNotSupported }

// Wake is pci.Waker's: it remembers.
func (t *Tree) Wake(_ context.Context, a pci.Addr) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.woken = append(t.woken, a.String())
	return nil
}

// Uevent remembers "change PATH KEY=VALUE".
func (t *Tree) Uevent(action, path, _ string, env ...string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.uevents = append(t.uevents, strings.TrimSuffix(fmt.Sprintf("%s %s %s", action, path, strings.Join(env, " ")), " "))
}

// Uevents are those so far; Woken the addresses of devices woken up; Lines the messages.
func (t *Tree) Uevents() []string { return t.copy(&t.uevents) }

// Woken lists the addresses that Wake was called with.
func (t *Tree) Woken() []string { return t.copy(&t.woken) }

// Lines are the messages so far.
func (t *Tree) Lines() []string { return t.copy(&t.lines) }

func (t *Tree) copy(s *[]string) []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(*s)
}

// handler keeps messages.
type handler struct{ t *Tree }

func (handler) Enabled(context.Context, slog.Level) bool { return true }
func (h handler) WithAttrs([]slog.Attr) slog.Handler     { return h }
func (h handler) WithGroup(string) slog.Handler          { return h }
func (h handler) Handle(_ context.Context, r slog.Record) error {
	h.t.mu.Lock()
	defer h.t.mu.Unlock()
	h.t.lines = append(h.t.lines, r.Message)
	return nil
}
