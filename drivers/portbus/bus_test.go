package portbus

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/drivers/portbus/internal/portmodel"
	"github.com/ring3dev/ring3/sysfs"
)

// Drivers come before or after ports, and get the same.
func TestRegister(t *testing.T) {
	log := &trail{}
	r := newRig(t, all(pci.ExpRootPort), log.driver("aer", AER, nil), log.driver("pciehp", HP, nil))
	if got := log.take(); got != "probe:aer probe:pciehp" {
		t.Errorf("with the port: %q", got)
	}
	if err := r.bus.Register(context.Background(), log.driver("pcie_pme", PME, nil)); err != nil {
		t.Fatal(err)
	}
	if err := r.bus.Register(context.Background(), log.driver("second", AER, nil)); err != nil {
		t.Fatal(err)
	}
	if got := log.take(); got != "probe:pcie_pme" {
		t.Errorf("after the port: %q, want the new service alone", got)
	}
	if err := r.bus.Register(context.Background(), log.driver("aer", AER, nil)); !errors.Is(err, unix.EBUSY) {
		t.Errorf("Register of a name twice = %v, want EBUSY", err)
	}
	if err := r.bus.Unregister("aer"); err != nil || log.take() != "close:aer" {
		t.Errorf("Unregister = %v", err)
	}
	if err := r.bus.Unregister("aer"); !errors.Is(err, unix.ENODEV) {
		t.Errorf("Unregister again = %v, want ENODEV", err)
	}
	if err := r.port.Close(); err != nil || log.take() != "close:pcie_pme close:pciehp" {
		t.Errorf("Close = %v, want the services in order", err)
	}
	if err := r.port.Close(); err != nil || log.take() != "" {
		t.Errorf("Close again = %v, want nothing", err)
	}
}

// A driver matches by service and type of port.
func TestMatches(t *testing.T) {
	r := newRig(t, all(pci.ExpDownstream))
	for _, c := range []struct {
		s    Service
		port pci.ExpType
		want bool
	}{{HP, AnyPort, true}, {HP, pci.ExpDownstream, true}, {HP, pci.ExpRootPort, false}, {AER, AnyPort, false}, {AER, pci.ExpDownstream, false}} {
		drv := &ServiceDriver{Service: c.s, Port: c.port}
		if got := drv.matches(r.device(HP)); got != c.want {
			t.Errorf("matches(%s, type %v) = %t, want %t", c.s, c.port, got, c.want)
		}
	}
}

// A probe that skips says nothing, one that fails a line; either leaves the service to the next driver.
func TestProbeErrors(t *testing.T) {
	log := &trail{}
	skip := log.driver("one", AER, func(*Device) error { return fmt.Errorf("not mine: %w", pci.ErrSkip) })
	fail := log.driver("two", AER, func(*Device) error { return bus.ErrTimeout })
	r := newRig(t, all(pci.ExpRootPort), skip, fail, log.driver("three", AER, nil))
	if got := log.take(); got != "probe:one probe:two probe:three" {
		t.Errorf("probes = %q", got)
	}
	equal(t, "messages", r.tree.Lines(), []string{"pcieport 1000:00:04.0: 1000:00:04.0:pcie002: driver two: timed out"})
	if got := r.port.Service(AER); got == nil || got.(*fake).name != "three" {
		t.Errorf("Service = %v, want three's", got)
	}
	if got := r.port.Service(HP); got != nil {
		t.Errorf("Service that nobody serves = %v, want nil", got)
	}
}

func TestFiles(t *testing.T) {
	log := &trail{}
	r := newRig(t, all(pci.ExpRootPort), log.driver("aer", AER, nil), log.driver("pciehp", HP, nil))
	d, name := r.bus.Dir(), "1000:00:04.0:pcie002"
	equal(t, "bus", slices.Sorted(slices.Values(d.Names())), []string{"devices", "drivers", "drivers_autoprobe", "drivers_probe", "uevent"})
	link := func(dir *sysfs.Dir, at, want string) {
		t.Helper()
		in, err := dir.Walk(path.Dir(at))
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		if l, ok := in.(*sysfs.Dir).Lookup(path.Base(at)).(*sysfs.Link); ok {
			got = l.Target
		}
		if got != want {
			t.Errorf("link %s = %q, want %q", at, got, want)
		}
	}
	at := "devices/pci1000:00/1000:00:04.0/" + name
	link(d, "devices/"+name, "../../../"+at)
	link(d, "drivers/aer/"+name, "../../../../"+at)
	svc := r.port.Dirs()[name]
	link(svc, "driver", "../../../../bus/pci_express/drivers/aer")
	link(svc, "subsystem", "../../../../bus/pci_express")
	if got := show(t, svc, "uevent") + show(t, svc, "answer"); got != "DRIVER=aer\n42\n" {
		t.Errorf("uevent, answer = %q", got)
	}
	store(t, d, "drivers/aer/unbind", name+"\n", nil)
	link(svc, "driver", "")
	link(d, "drivers/aer/"+name, "")
	if got := show(t, svc, "uevent"); got != "" {
		t.Errorf("uevent without a driver = %q", got)
	}
	if n := svc.Lookup("answer"); n != nil {
		t.Error("the driver's file is still there")
	}
	for _, c := range []struct {
		file, text string
		want       error
	}{
		{"aer/unbind", name, unix.ENODEV}, {"aer/unbind", "nonsense", unix.ENODEV}, {"pciehp/bind", name, unix.ENODEV}, {"aer/bind", "", unix.ENODEV},
		{"aer/bind", name, nil}, {"aer/bind", name, unix.EBUSY}, {"pciehp/unbind", name, unix.ENODEV}, {"aer/unbind", name, nil},
	} {
		store(t, d, "drivers/"+c.file, c.text, c.want)
	}
	store(t, svc, "uevent", "change\n", nil)
	store(t, svc, "uevent", "nonsense", unix.EINVAL)
	equal(t, "messages", r.tree.Lines(), []string{
		"synth uevent: /devices/pci1000:00/1000:00:04.0/" + name + ": unknown uevent action string",
		"pci_express " + name + ": uevent: failed to send synthetic uevent: -22",
	})
	in := " /devices/pci1000:00/1000:00:04.0/" + name
	want := []string{"add" + in, "bind" + in + " DRIVER=aer", "unbind" + in, "bind" + in + " DRIVER=aer", "unbind" + in, "change" + in + " SYNTH_UUID=0", "remove" + in}
	if err := r.port.Close(); err != nil {
		t.Fatal(err)
	}
	got := slices.DeleteFunc(r.tree.Uevents(), func(s string) bool { return !strings.Contains(s, name) })
	equal(t, "uevents", got, want)
	if n := d.Lookup("devices").(*sysfs.Dir).Names(); len(n) != 0 {
		t.Errorf("devices after Close = %q", n)
	}
}

func TestAutoprobe(t *testing.T) {
	log := &trail{}
	r := newRig(t, all(pci.ExpRootPort))
	d := r.bus.Dir()
	if got := show(t, d, "drivers_autoprobe"); got != "1\n" {
		t.Errorf("drivers_autoprobe = %q, want 1", got)
	}
	store(t, d, "drivers_autoprobe", "", nil)
	store(t, d, "drivers_autoprobe", "0\n", nil)
	if got := show(t, d, "drivers_autoprobe"); got != "0\n" {
		t.Errorf("drivers_autoprobe = %q, want 0", got)
	}
	if err := r.bus.Register(context.Background(), log.driver("aer", AER, nil)); err != nil {
		t.Fatal(err)
	}
	if got := log.take(); got != "" {
		t.Errorf("with autoprobe off: %q", got)
	}
	store(t, d, "drivers_probe", "1000:00:04.0:pcie004", nil) // nobody is for it
	store(t, d, "drivers_probe", "1000:00:05.0:pcie002", unix.ENODEV)
	store(t, d, "drivers_probe", "1000:00:04.0:pcie002\n", nil)
	store(t, d, "drivers_probe", "1000:00:04.0:pcie002\n", nil)
	if got := log.take(); got != "probe:aer" {
		t.Errorf("drivers_probe: %q, want one probe", got)
	}
	store(t, d, "drivers_autoprobe", "1", nil)
	if err := r.bus.Register(context.Background(), log.driver("pciehp", HP, nil)); err != nil {
		t.Fatal(err)
	}
	if got := log.take(); got != "probe:pciehp" {
		t.Errorf("with autoprobe on again: %q", got)
	}
}

// Drivers come and go while ports do: in the end nothing is bound that is not registered, and nothing is left.
func TestConcurrentBinding(t *testing.T) {
	bustest.NoLeaks(t)
	b, _ := New()
	log := &trail{}
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for n := range 20 {
				name := fmt.Sprintf("drv%d", i)
				if err := b.Register(context.Background(), log.driver(name, Service(1<<(n%6)), nil)); err != nil {
					t.Error(err)
				}
				if err := b.Unregister(name); err != nil {
					t.Error(err)
				}
			}
		})
		wg.Go(func() {
			for range 10 {
				spec := all(pci.ExpRootPort)
				spec.Name = fmt.Sprintf("1000:00:%02x.0", i)
				inst, err := (&portmodel.Tree{}).Probe(t, portmodel.New(spec), b.PortDriver(), "")
				if err != nil {
					t.Error(err)
					continue
				}
				for _, d := range b.Devices() {
					_ = d.Port().Service(d.Service())
				}
				if err := inst.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got := b.Devices(); len(got) != 0 {
		t.Errorf("services left: %q", names(got))
	}
	probes, closes := 0, 0
	for _, s := range strings.Fields(log.take()) {
		if strings.HasPrefix(s, "probe:") {
			probes++
		} else {
			closes++
		}
	}
	if probes != closes {
		t.Errorf("%d probes, %d closes", probes, closes)
	}
}

// Services are suspended last first and resumed in order; what one cannot is undone for those before.
func TestPower(t *testing.T) {
	log := &trail{}
	r := newRig(t, all(pci.ExpRootPort), log.driver("pme", PME, nil), log.driver("aer", AER, nil), log.driver("hp", HP, nil))
	log.take()
	ctx := context.Background()
	if err := errors.Join(r.port.Suspend(ctx), r.port.Resume(ctx)); err != nil {
		t.Errorf("Suspend, Resume = %v", err)
	}
	if got, want := log.take(), "suspend:hp suspend:aer suspend:pme resume:pme resume:aer resume:hp"; got != want {
		t.Errorf("order = %q, want %q", got, want)
	}
	r.port.Service(AER).(*fake).suspend = bus.ErrTimeout
	if err := r.port.Suspend(ctx); !errors.Is(err, bus.ErrTimeout) {
		t.Errorf("Suspend = %v, want ErrTimeout", err)
	}
	if got, want := log.take(), "suspend:hp suspend:aer resume:hp"; got != want {
		t.Errorf("order = %q, want %q", got, want)
	}
}

func TestMerge(t *testing.T) {
	const (
		n, c, e, r, d, h = bus.NoVote, bus.CanRecover, bus.NeedReset, bus.Recovered, bus.Disconnect, bus.NoHandler
	)
	votes := []bus.Verdict{n, c, e, r, d, h}
	for _, row := range []struct {
		so   bus.Verdict
		want [6]bus.Verdict // by vote, in that order
	}{
		{c, [6]bus.Verdict{c, c, e, r, d, h}},
		{r, [6]bus.Verdict{r, c, e, r, d, h}},
		{e, [6]bus.Verdict{e, e, e, e, e, h}},
		{d, [6]bus.Verdict{d, d, e, d, d, h}},
		{h, [6]bus.Verdict{h, h, h, h, h, h}},
	} {
		for i, vote := range votes {
			if got := Merge(row.so, vote); got != row.want[i] {
				t.Errorf("Merge(%v, %v) = %v, want %v", row.so, vote, got, row.want[i])
			}
		}
	}
}

func TestServiceString(t *testing.T) {
	for s, want := range map[Service]string{PME: "PME", AER: "AER", HP: "hot-plug", DPC: "DPC", BW: "bandwidth notification", VC: "virtual channels", 0x40: "service 0x40"} {
		if got := s.String(); got != want {
			t.Errorf("String(%#x) = %q, want %q", uint8(s), got, want)
		}
	}
}
