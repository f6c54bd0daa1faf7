package bwctrl

import (
	"context"
	"errors"
	"path"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/sim"
	"github.com/ring3dev/ring3/drivers/portbus"
	"github.com/ring3dev/ring3/drivers/portbus/internal/portmodel"
	"github.com/ring3dev/ring3/drivers/portbus/porttest"
	"github.com/ring3dev/ring3/sysfs"
)

// rig is a root port with a card that is as fast as is wanted.
func rig(t *testing.T) *porttest.Rig {
	t.Helper()
	bustest.NoLeaks(t)
	drv := Driver
	b, err := portbus.New(&drv)
	if err != nil {
		t.Fatal(err)
	}
	return porttest.New(t, sim.Config{Clock: sim.Eager, Devices: []sim.DeviceSpec{
		{Name: "rp0", Model: "root-port", Props: []string{"bw=on"}}, {Name: "e0", Model: "e1000e", Bus: "rp0"},
	}}, b)
}

// dir is the service's directory.
func dir(t *testing.T, p *portbus.Port) *sysfs.Dir {
	t.Helper()
	d := p.Dirs()[p.Addr().String()+":pcie010"]
	if d == nil {
		t.Fatal("the port has no bandwidth notification")
	}
	return d
}

func show(t *testing.T, d *sysfs.Dir, name string) string {
	t.Helper()
	f, ok := d.Lookup(name).(*sysfs.File)
	if !ok {
		t.Fatalf("there is no file %s", name)
	}
	b, err := f.ReadAll()
	if err != nil {
		t.Fatalf("reading %s = %v", name, err)
	}
	return strings.TrimSuffix(string(b), "\n")
}

func TestParseSpeed(t *testing.T) {
	for _, c := range []struct {
		text string
		want uint16
		err  error
	}{
		{"2.5 GT/s PCIe\n", 1, nil}, {"8.0 GT/s", 3, nil}, {"16.0", 4, nil}, {"64.0 GT/s PCIe", 6, nil}, {"4", 4, nil}, {"15", 15, nil},
		{"", 0, unix.EINVAL}, {"0", 0, unix.EINVAL}, {"fast", 0, unix.EINVAL}, {"8.0 GT", 0, unix.EINVAL}, {"Unknown", 0, unix.EINVAL}, {"-1", 0, unix.EINVAL}, {"16", 0, unix.ERANGE},
	} {
		got, err := parseSpeed(c.text)
		if got != c.want || !errors.Is(err, c.err) {
			t.Errorf("parseSpeed(%q) = %d, %v, want %d, %v", c.text, got, err, c.want, c.err)
		}
	}
}

func TestNotifications(t *testing.T) {
	r := rig(t)
	p := r.Port("rp0")
	d := dir(t, p)
	if got := p.IRQHandlers()[0].Name(); got != "PCIe bwctrl" {
		t.Errorf("name in /proc/interrupts = %q", got)
	}
	at := "change@" + pci.SysfsPath(p.Function()) + " pci LINK_SPEED="
	for i, c := range []struct {
		speed, width uint8
		autonomous   bool
		want         string
	}{{1, 1, false, "2.5 GT/s PCIe LINK_WIDTH=1"}, {2, 1, true, "5.0 GT/s PCIe LINK_WIDTH=1"}, {1, 1, true, "2.5 GT/s PCIe LINK_WIDTH=1"}} {
		r.ForgetRecords()
		if err := r.Sim().SetLinkSpeed("rp0", c.speed, c.width, c.autonomous); err != nil {
			t.Fatal(err)
		}
		r.Await(t, at+c.want, func() bool { return len(r.Events()) == 1 })
		if got := r.Events()[0]; got != at+c.want {
			t.Errorf("event %d = %q, want %q", i, got, at+c.want)
		}
	}
	if got := show(t, d, "bandwidth_management_events") + show(t, d, "autonomous_bandwidth_events"); got != "12" {
		t.Errorf("counts = %s, want 1 and 2", got)
	}
	cfg, sta := p.Member().Device.Config(), p.Express().At+pci.ExpLnkSta
	if got := cfg.Read16(sta) & events; got != 0 {
		t.Errorf("Link Status = %#x, want it acknowledged", got)
	}
	if err := p.Bus().UnbindDevice("pcie_bwctrl", path.Base(p.Addr().String()+":pcie010")); err != nil {
		t.Fatal(err)
	}
	if got := cfg.Read16(p.Express().At+pci.ExpLnkCtl) & (pci.LnkCtlLBMIE | pci.LnkCtlLABIE); got != 0 {
		t.Errorf("Link Control without a driver = %#x, want no interrupts", got)
	}
}

// A storm of changes is counted and told of now and then.
func TestStorm(t *testing.T) {
	r := rig(t)
	for i := range 2000 {
		if err := r.Sim().SetLinkSpeed("rp0", uint8(1+i%2), 1, true); err != nil {
			t.Fatal(err)
		}
	}
	r.Await(t, "the last speed", func() bool {
		ev := r.Events()
		return strings.Contains(ev[len(ev)-1], "5.0 GT/s")
	})
}

func TestTarget(t *testing.T) {
	r := rig(t)
	p := r.Port("rp0")
	f := dir(t, p).Lookup("target_link_speed").(*sysfs.File)
	sta := func() string {
		return pci.LinkSpeed(uint32(p.Member().Device.Config().Read16(p.Express().At + pci.ExpLnkSta)))
	}
	for _, c := range []struct {
		text, target, runs string
		err                error
	}{
		{"8.0 GT/s PCIe\n", "8.0 GT/s PCIe", "8.0 GT/s PCIe", nil},
		{"1", "2.5 GT/s PCIe", "2.5 GT/s PCIe", nil},
		{"32.0", "2.5 GT/s PCIe", "2.5 GT/s PCIe", unix.ERANGE},
		{"junk", "2.5 GT/s PCIe", "2.5 GT/s PCIe", unix.EINVAL},
		{"16.0 GT/s", "16.0 GT/s PCIe", "16.0 GT/s PCIe", nil},
	} {
		_, err := f.Write(t.Context(), []byte(c.text))
		if !errors.Is(err, c.err) || show(t, dir(t, p), "target_link_speed") != c.target || sta() != c.runs {
			t.Errorf("writing %q = %v, target %s, link %s; want %v, %s, %s", c.text, err, show(t, dir(t, p), "target_link_speed"), sta(), c.err, c.target, c.runs)
		}
	}
}

// bare is a port without a machine.
func bare(t *testing.T, s portmodel.Spec, spoil func(*portmodel.Port)) (*portmodel.Port, *portmodel.Tree, *portbus.Port) {
	t.Helper()
	s.Type, s.BW = pci.ExpRootPort, true
	m, tree, drv := portmodel.New(s), &portmodel.Tree{}, Driver
	if spoil != nil {
		spoil(m)
	}
	b, _ := portbus.New(&drv)
	inst, err := tree.Probe(t, m, b.PortDriver(), "")
	if err != nil {
		t.Fatal(err)
	}
	return m, tree, inst.(*portbus.Port)
}

const lnkSta = portmodel.Express + pci.ExpLnkSta

func TestTargetErrors(t *testing.T) {
	bustest.NoLeaks(t)
	store := func(p *portbus.Port) error {
		_, err := dir(t, p).Lookup("target_link_speed").(*sysfs.File).Write(t.Context(), []byte("3"))
		return err
	}
	_, _, p := bare(t, portmodel.Spec{}, func(m *portmodel.Port) { m.Set(portmodel.Express+pci.ExpFlags, pci.FlagVersion, 1) })
	if err := store(p); !errors.Is(err, unix.EOPNOTSUPP) {
		t.Errorf("version 1: %v, want EOPNOTSUPP", err)
	}
	m, _, p := bare(t, portmodel.Spec{}, nil)
	m.OnWrite(func(off bus.Off, _ int, v uint32) {
		if off == portmodel.Express+pci.ExpLnkCtl && uint16(v)&pci.LnkCtlRetrain != 0 {
			m.Set(lnkSta, 0, pci.LnkStaTrain)
		}
	})
	if err := store(p); !errors.Is(err, bus.ErrTimeout) {
		t.Errorf("endless training: %v, want ErrTimeout", err)
	}
	// The service goes while somebody waits for the training.
	done := make(chan error)
	m.Set(lnkSta, pci.LnkStaTrain, 0)
	go func() { done <- store(p) }()
	for m.Peek(lnkSta, 2)&uint32(pci.LnkStaTrain) == 0 {
		time.Sleep(100 * time.Microsecond)
	}
	if err := p.Bus().Unregister("pcie_bwctrl"); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, context.Canceled) && !errors.Is(err, bus.ErrTimeout) {
		t.Errorf("unbound while training: %v, want it canceled", err)
	}
	// A card that is slower.
	m, tree, p := bare(t, portmodel.Spec{}, nil)
	tree.Add(&pci.Member{Function: &pci.Function{}, Device: m, Use: func(f func(pci.Instance)) { f(nil) }})
	if err := store(p); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("a link that stays at 16 GT/s: %v, want EAGAIN", err)
	}
	// A capability that lists no speeds has those up to the highest.
	m.Set32(portmodel.Express+pci.ExpLnkCap2, 0xffffffff, 0)
	m.Set(lnkSta, pci.LnkStaSpeed, 3)
	if err := store(p); err != nil {
		t.Errorf("no list of speeds: %v", err)
	}
}

func TestPowerAndNoInterrupt(t *testing.T) {
	bustest.NoLeaks(t)
	m, _, p := bare(t, portmodel.Spec{}, nil)
	on := func() bool {
		return m.Peek(portmodel.Express+pci.ExpLnkCtl, 2)&uint32(pci.LnkCtlLBMIE|pci.LnkCtlLABIE) == uint32(pci.LnkCtlLBMIE|pci.LnkCtlLABIE)
	}
	if !on() {
		t.Error("the interrupts are off after Probe")
	}
	if err := p.Suspend(t.Context()); err != nil || on() {
		t.Errorf("Suspend = %v, interrupts on: %t", err, on())
	}
	if got := p.SlotReset(t.Context()); got != bus.Recovered || on() {
		t.Errorf("SlotReset of a suspended port = %v, interrupts on: %t", got, on())
	}
	if err := p.Resume(t.Context()); err != nil || !on() {
		t.Errorf("Resume = %v, interrupts on: %t", err, on())
	}
	m.Set(portmodel.Express+pci.ExpLnkCtl, pci.LnkCtlLBMIE, 0)
	if got := p.SlotReset(t.Context()); got != bus.Recovered || !on() {
		t.Errorf("SlotReset = %v, interrupts on: %t", got, on())
	}
	m, _, p = bare(t, portmodel.Spec{Vectors: map[bus.IRQMode]int{}}, nil)
	if p.Service(portbus.BW) == nil || on() {
		t.Error("without interrupts: want a service, and nothing enabled")
	}
}

// The port dies at each access.
func TestDies(t *testing.T) {
	bustest.NoLeaks(t)
	run := func(k int) int {
		m, tree, p := bare(t, portmodel.Spec{}, nil)
		before := m.Accesses()
		if k > 0 {
			m.FailAt(k)
		}
		m.Set(lnkSta, 0, pci.LnkStaLBMS)
		m.Fire(0)
		_, err := dir(t, p).Lookup("target_link_speed").(*sysfs.File).Write(t.Context(), []byte("4"))
		if err != nil && !errors.Is(err, bus.ErrGone) && !errors.Is(err, unix.ERANGE) {
			t.Errorf("access %d fails: %v, want ErrGone", k, err)
		}
		if err := p.Close(); err != nil {
			t.Errorf("access %d fails: Close = %v", k, err)
		}
		if got := tree.Lines(); len(got) > 0 {
			t.Errorf("access %d fails: messages %q", k, got)
		}
		return m.Accesses() - before
	}
	for k := range run(0) + 8 {
		run(k + 1)
	}
}
