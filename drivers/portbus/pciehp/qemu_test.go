package pciehp

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/qemu"
	"github.com/ring3dev/ring3/bus/qemu/qemutest"
	"github.com/ring3dev/ring3/drivers/edu"
	"github.com/ring3dev/ring3/drivers/portbus"
	"github.com/ring3dev/ring3/drivers/portbus/porttest"
)

// onQEMU is a machine of QEMU's with hot-plug in service. ejected tells of devices that left.
func onQEMU(t *testing.T, profile string, devices ...qemu.DeviceSpec) (m *qemu.Machine, r *porttest.Rig, b *portbus.Bus, ejected chan string) {
	t.Helper()
	ejected = make(chan string, 100)
	m = qemutest.Machine(t, qemu.Config{Devices: devices, Ejected: func(name string) { ejected <- name }})
	b, err := portbus.New(Driver(Options{}))
	if err != nil {
		t.Fatal(err)
	}
	return m, porttest.Over(t, m, porttest.Options{Bus: b, Drivers: []*pci.Driver{edu.Driver}, Profile: profile}), b, ejected
}

// left waits for a device to leave.
func left(t *testing.T, ejected chan string) {
	t.Helper()
	select {
	case <-ejected:
	case <-time.After(20 * time.Second):
		t.Fatal("the card did not leave")
	}
}

// TestQEMU has cards come and go by the file power, in the slots of each kind of port.
func TestQEMU(t *testing.T) {
	bustest.NoLeaks(t)
	n := 15
	switch {
	case testing.Short():
		n = 3
	case os.Getenv("RING3_LONG") != "":
		n = 50
	}
	m, r, b, ejected := onQEMU(t, "",
		qemu.DeviceSpec{Name: "rp0", Model: "pcie-root-port"}, qemu.DeviceSpec{Name: "rp1", Model: "ioh3420"},
		qemu.DeviceSpec{Name: "rp2", Model: "pcie-root-port"}, qemu.DeviceSpec{Name: "sw0", Model: "x3130-upstream", Bus: "rp2"}, qemu.DeviceSpec{Name: "dn0", Model: "xio3130-downstream", Bus: "sw0"})
	ports := []string{"rp0", "rp0", "rp0", "rp1", "dn0"}
	for i := range n {
		name := ports[i%len(ports)]
		s := slotOf(t, r, name)
		if err := m.Plug(t.Context(), qemu.DeviceSpec{Name: "c0", Model: "edu", Bus: name}); err != nil {
			t.Fatal(err)
		}
		is(t, r, s, on)
		if !slices.Contains(r.Names(), "c0 edu") {
			t.Fatalf("%d: after the plug below %s there are %v", i, name, r.Names())
		}
		if err := write(r, b, s.name+"/power", "0\n"); err != nil {
			t.Fatalf("%d: power 0 of %s: %v", i, name, err)
		}
		left(t, ejected)
		is(t, r, s, off)
		if got := errno(write(r, b, s.name+"/power", "1\n")); got != "ENODEV" {
			t.Errorf("%d: power 1 of the empty slot of %s = %s, want ENODEV", i, name, got)
		}
	}
}

// TestQEMUButton: what kernel 6.1 said of the same, in QEMU.
func TestQEMUButton(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 6 s: the button has a grace")
	}
	bustest.NoLeaks(t)
	m, r, _, ejected := onQEMU(t, "6.1", qemu.DeviceSpec{Name: "rp0", Model: "pcie-root-port"}, qemu.DeviceSpec{Name: "rp1", Model: "pcie-root-port"})
	s := slotOf(t, r, "rp1")
	if err := m.Plug(t.Context(), qemu.DeviceSpec{Name: "c0", Model: "edu", Bus: "rp1"}); err != nil {
		t.Fatal(err)
	}
	is(t, r, s, on)
	began := time.Now()
	if err := m.Eject("c0"); err != nil {
		t.Fatal(err)
	}
	left(t, ejected)
	if took := time.Since(began); took < graceTime+offTime {
		t.Errorf("the card left after %v, want %v or more", took, graceTime+offTime)
	}
	is(t, r, s, off)
	want := []string{
		"Slot #2 AttnBtn+ PwrCtrl+ MRL- AttnInd+ PwrInd+ HotPlug+ Surprise+ Interlock+ NoCompl- IbPresDis- LLActRep+",
		"Slot(2): Attention button pressed",
		"Slot(2) Powering on due to button press",
		"Slot(2): Card present",
		"Slot(2): Link Up",
		"Slot(2): Attention button pressed",
		"Slot(2): Powering off due to button press",
	}
	if got := said(r, s.port.Addr()); !slices.Equal(got, want) {
		t.Errorf("it said\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestQEMULate: a card, and its button, that came before the driver.
func TestQEMULate(t *testing.T) {
	bustest.NoLeaks(t)
	m, r, b, ejected := onQEMU(t, "6.1", qemu.DeviceSpec{Name: "rp0", Model: "pcie-root-port"})
	dev := slotOf(t, r, "rp0").dev.Name()
	if err := b.UnbindDevice(Name, dev); err != nil {
		t.Fatal(err)
	}
	if err := m.Plug(t.Context(), qemu.DeviceSpec{Name: "c0", Model: "edu", Bus: "rp0"}); err != nil {
		t.Fatal(err)
	}
	r.ForgetRecords()
	if err := b.BindDevice(t.Context(), Name, dev); err != nil {
		t.Fatal(err)
	}
	s := slotOf(t, r, "rp0")
	is(t, r, s, on)
	r.AwaitNames(t, "rp0 pcieport", "c0 edu")
	want := []string{
		"Slot #1 AttnBtn+ PwrCtrl+ MRL- AttnInd+ PwrInd+ HotPlug+ Surprise+ Interlock+ NoCompl- IbPresDis- LLActRep+",
		"Slot(1): Attention button pressed",
		"Slot(1) Powering on due to button press",
		"Slot(1): Card present",
		"Slot(1): Link Up",
	}
	if got := said(r, s.port.Addr()); !slices.Equal(got, want) {
		t.Errorf("it said\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if err := write(r, b, "1/power", "0"); err != nil {
		t.Error(err)
	}
	left(t, ejected)
}

// line is a port whose only interrupt is INTx.
type line struct{ dumb }

func (d *line) IRQVectors(mode bus.IRQMode) int {
	if mode == bus.INTx {
		return d.Device.IRQVectors(mode)
	}
	return 0
}

// TestQEMULine: QEMU forgets a line that is raised when anything is written to config space.
func TestQEMULine(t *testing.T) {
	bustest.NoLeaks(t)
	ejected := make(chan string, 100)
	m := qemutest.Machine(t, qemu.Config{Devices: []qemu.DeviceSpec{{Name: "rp0", Model: "pcie-root-port"}}, Ejected: func(name string) { ejected <- name }})
	b, err := portbus.New(Driver(Options{}))
	if err != nil {
		t.Fatal(err)
	}
	r := porttest.Over(t, m, porttest.Options{Bus: b, Drivers: []*pci.Driver{edu.Driver}, Wrap: func(name string, d bus.Device) bus.Device {
		if name == "rp0" {
			return &line{dumb{d}}
		}
		return d
	}})
	s := slotOf(t, r, "rp0")
	if mode, ok := s.dev.IRQMode(); !ok || mode != bus.INTx {
		t.Fatalf("IRQMode() = %v, %v, want INTx", mode, ok)
	}
	for range 2 {
		if err := m.Plug(t.Context(), qemu.DeviceSpec{Name: "c0", Model: "edu", Bus: "rp0"}); err != nil {
			t.Fatal(err)
		}
		r.Await(t, "the slot being on", func() bool { return s.is(on) }) // nobody else looks at Slot Status
		if err := write(r, b, "1/power", "0\n"); err != nil {
			t.Fatal(err)
		}
		left(t, ejected)
	}
}
