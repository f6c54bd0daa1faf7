package aer_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/sim"
	"github.com/ring3dev/ring3/drivers/portbus"
	"github.com/ring3dev/ring3/drivers/portbus/aer"
	"github.com/ring3dev/ring3/drivers/portbus/porttest"
)

// Addresses of the rig's tree.
const (
	rp0  = "1000:00:03.0" // root port
	up0  = "1000:01:00.0" // a switch below it
	dn0  = "1000:02:00.0"
	dn1  = "1000:02:01.0"
	eth0 = "1000:03:00.0" // below dn0
	eth1 = "1000:04:00.0" // below dn1
	rp1  = "1000:00:04.0" // another root port
	eth2 = "1000:09:00.0" // below it: the first keeps numbers for what is plugged in
)

// Bits of errors.
const (
	corRxErr  = 1 << 0
	corBadTLP = 1 << 6
	uncDLP    = 1 << 4
	uncTO     = 1 << 14
	uncMalf   = 1 << 18
	uncUnsup  = 1 << 20
)

func devices(props ...string) []sim.DeviceSpec {
	nic := append([]string{"aer=on"}, props...)
	return []sim.DeviceSpec{
		{Name: "rp0", Model: "root-port"},
		{Name: "up0", Model: "upstream", Bus: "rp0"},
		{Name: "dn0", Model: "downstream", Bus: "up0", Props: []string{"hotplug=off"}},
		{Name: "dn1", Model: "downstream", Bus: "up0", Props: []string{"hotplug=off"}},
		{Name: "eth0", Model: "e1000e", Bus: "dn0", Props: nic},
		{Name: "eth1", Model: "e1000e", Bus: "dn1", Props: nic},
		{Name: "rp1", Model: "root-port", Props: []string{"hotplug=off"}},
		{Name: "eth2", Model: "e1000e", Bus: "rp1", Props: nic},
	}
}

// rig is the tree with its drivers.
type rig struct {
	*porttest.Rig
	t     testing.TB
	calls *calls
	bus   *portbus.Bus
}

type options struct {
	profile  string
	votes    votes
	instance func(name string) pci.Instance // instead of one that votes
	devices  []sim.DeviceSpec
	more     []*portbus.ServiceDriver
	wrap     func(name string, dev bus.Device) bus.Device
}

func newRig(t *testing.T, o options) *rig {
	t.Helper()
	bustest.NoLeaks(t)
	b, err := portbus.New(append([]*portbus.ServiceDriver{&aer.Driver}, o.more...)...)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, calls: &calls{votes: o.votes, instance: o.instance}, bus: b}
	if o.devices == nil {
		o.devices = devices()
	}
	r.Rig = porttest.Start(t, sim.Config{Clock: sim.Eager, Devices: o.devices}, porttest.Options{
		Bus: b, Drivers: []*pci.Driver{r.calls.driver()}, Profile: o.profile,
		Wrap: func(name string, dev bus.Device) bus.Device {
			pci.EnableErrors(dev.Config()) // hosts do
			if o.wrap != nil {
				return o.wrap(name, dev)
			}
			return dev
		},
	})
	r.ForgetRecords()
	return r
}

func (r *rig) fn(name string) *pci.Function {
	r.t.Helper()
	f, err := r.Sim().Function(name)
	if err != nil {
		r.t.Fatal(err)
	}
	return f
}

// reg is a register of a function's capability.
func (r *rig) reg(name string, reg bus.Off) bus.Off {
	r.t.Helper()
	at, ok := pci.FindExtCap(r.fn(name).Config, pci.ExtCapAER)
	if !ok {
		r.t.Fatalf("%s has no AER capability", name)
	}
	return at + reg
}

func (r *rig) read(name string, reg bus.Off) uint32 {
	r.t.Helper()
	return r.fn(name).Config.Read32(r.reg(name, reg))
}

func (r *rig) write(name string, reg bus.Off, v uint32) {
	r.t.Helper()
	r.fn(name).Config.Write32(r.reg(name, reg), v)
}

// hit injects an error.
func (r *rig) hit(name string, e pci.AERError) {
	r.t.Helper()
	if err := r.Sim().InjectError(name, e); err != nil {
		r.t.Fatal(err)
	}
}

// quiet waits until nothing is under way: a message is sent last, whose lines are awaited. What they say is not part of the
// lines it gives, which are those since the records were last forgotten.
func (r *rig) quiet(root string) (lines, events []string) {
	r.t.Helper()
	f := r.fn(root)
	n := f.AER.Total(pci.AERCorrectable)
	for f.AER.Total(pci.AERCorrectable) == n {
		r.hit(root, pci.AERError{Correctable: corRxErr})
		r.Await(r.t, "the last error", func() bool { return r.read(root, pci.AERCorSta) == 0 })
	}
	sep := "pcieport " + f.Addr.String() + ": AER: Correctable error message received from " + f.Addr.String()
	for _, l := range r.Lines() {
		if l.Text == sep {
			break
		}
		lines = append(lines, l.Text)
	}
	events = slices.DeleteFunc(r.Events(), func(e string) bool { return !strings.HasPrefix(e, "change@") })
	r.ForgetRecords()
	return lines, events
}

func (r *rig) want(what string, got, want []string) {
	r.t.Helper()
	if !slices.Equal(got, want) {
		r.t.Errorf("%s =\n\t%s\nwant\n\t%s", what, strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

// votes is what drivers say, by the name of their device. One that is not there is no bus.ErrorHandler.
type votes map[string]vote

type vote struct{ detected, mmio, reset bus.Verdict }

var ok = vote{bus.CanRecover, bus.Recovered, bus.Recovered}

// calls is what drivers were told, in order.
type calls struct {
	votes    votes
	instance func(name string) pci.Instance
	mu       sync.Mutex // guards what follows
	list     []string
}

func (c *calls) add(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.list = append(c.list, fmt.Sprintf(format, args...))
}

func (c *calls) take() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	l := c.list
	c.list = nil
	return l
}

func (c *calls) driver() *pci.Driver {
	return &pci.Driver{
		Name: "fake", API: pci.API, Prefixed: true, IDs: []pci.ID{{Vendor: 0x8086, Device: 0x10d3}},
		Probe: func(_ context.Context, _ bus.Device, env pci.Env) (pci.Instance, error) {
			if c.instance != nil {
				return c.instance(env.Name), nil
			}
			v, ok := c.votes[env.Name]
			if !ok {
				return idle{}, nil
			}
			return &handler{c: c, name: env.Name, vote: v}, nil
		},
	}
}

// idle is a driver that takes no part.
type idle struct{}

func (idle) Close() error { return nil }

// handler is one that votes.
type handler struct {
	idle
	c    *calls
	name string
	vote vote
}

func (h *handler) ErrorDetected(frozen bool) bus.Verdict {
	h.c.add("%s detected %v", h.name, frozen)
	return h.vote.detected
}

func (h *handler) MMIOEnabled() bus.Verdict {
	h.c.add("%s mmio", h.name)
	return h.vote.mmio
}

func (h *handler) SlotReset(context.Context) bus.Verdict {
	h.c.add("%s reset", h.name)
	return h.vote.reset
}

func (h *handler) ErrorResume() { h.c.add("%s resume", h.name) }
