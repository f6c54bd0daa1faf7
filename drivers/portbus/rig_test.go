package portbus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/drivers/portbus/internal/portmodel"
	"github.com/ring3dev/ring3/sysfs"
)

// rig is a port under test.
type rig struct {
	*testing.T
	model *portmodel.Port
	tree  *portmodel.Tree
	bus   *Bus
	port  *Port
	log   *trail
}

// newRig binds a model to a bus with these drivers.
func newRig(t *testing.T, s portmodel.Spec, drivers ...*ServiceDriver) *rig {
	t.Helper()
	bustest.NoLeaks(t)
	r := &rig{T: t, model: portmodel.New(s), tree: &portmodel.Tree{}, log: &trail{}}
	var err error
	if r.bus, err = New(drivers...); err != nil {
		t.Fatal(err)
	}
	r.bind("")
	return r
}

func (r *rig) bind(profile string) {
	r.Helper()
	inst, err := r.tree.Probe(r.T, r.model, r.bus.PortDriver(), profile)
	if err != nil {
		r.Fatal(err)
	}
	r.port = inst.(*Port)
}

// device finds a service.
func (r *rig) device(s Service) *Device {
	r.Helper()
	for _, d := range r.port.devices {
		if d.service == s {
			return d
		}
	}
	r.Fatalf("the port has no %s", s)
	return nil
}

// trail is what happened, in order.
type trail struct {
	mu sync.Mutex
	s  []string
}

func (l *trail) add(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.s = append(l.s, fmt.Sprintf(format, args...))
}

// take is what happened since the last time.
func (l *trail) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := strings.Join(l.s, " ")
	l.s = nil
	return s
}

// fake is a service's instance that tells what is done to it.
type fake struct {
	name    string
	log     *trail
	suspend error
}

func (f *fake) Close() error { f.log.add("close:%s", f.name); return nil }

func (f *fake) Suspend(context.Context) error { f.log.add("suspend:%s", f.name); return f.suspend }

func (f *fake) Resume(context.Context) error { f.log.add("resume:%s", f.name); return nil }

func (f *fake) Attrs() map[string]*sysfs.File {
	return map[string]*sysfs.File{"answer": sysfs.Showf("42")}
}

// driver makes one that tells.
func (l *trail) driver(name string, s Service, probe func(d *Device) error) *ServiceDriver {
	return &ServiceDriver{Name: name, Service: s, Port: AnyPort, Prefix: name + ": ", Probe: func(_ context.Context, d *Device) (Instance, error) {
		l.add("probe:%s", name)
		if probe != nil {
			if err := probe(d); err != nil {
				return nil, err
			}
		}
		return &fake{name: name, log: l}, nil
	}}
}

// show reads a file of a directory.
func show(t *testing.T, d *sysfs.Dir, name string) string {
	t.Helper()
	n, err := d.Walk(name)
	if err != nil {
		t.Fatal(err)
	}
	f, ok := n.(*sysfs.File)
	if !ok {
		t.Fatalf("%s is no file", name)
	}
	b, err := f.ReadAll()
	if err != nil {
		t.Fatalf("reading %s = %v", name, err)
	}
	return string(b)
}

// store writes one.
func store(t *testing.T, d *sysfs.Dir, name, text string, want error) {
	t.Helper()
	n, err := d.Walk(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.(*sysfs.File).Write(context.Background(), []byte(text)); !errors.Is(err, want) {
		t.Errorf("writing %q to %s = %v, want %v", text, name, err, want)
	}
}

// eventually waits for another goroutine.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for until := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(until) {
			t.Fatalf("waited 20 s in vain: %s", what)
		}
	}
}

func names(ds []*Device) []string {
	var s []string
	for _, d := range ds {
		s = append(s, strings.TrimPrefix(d.name, "1000:00:04.0:"))
	}
	return s
}

func equal(t *testing.T, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s = %q, want %q", what, got, want)
	}
}
