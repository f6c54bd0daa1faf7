package bustest_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/qemu"
)

// opener starts a QEMU for each test, with the last of these devices under test.
func opener(hooks func(*testing.T, bus.Device) bustest.Subject, specs ...qemu.DeviceSpec) func(*testing.T) bustest.Subject {
	return func(t *testing.T) bustest.Subject {
		t.Helper()
		m, err := qemu.Start(t.Context(), qemu.Config{Devices: specs})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := m.Close(); err != nil && !errors.Is(err, bus.ErrGone) {
				t.Errorf("closing QEMU: %v", err)
			}
		})
		d, err := m.Device(specs[len(specs)-1].Name)
		if err != nil {
			t.Fatal(err)
		}
		s := hooks(t, d)
		s.Confined = specs[len(specs)-1].IOMMU
		s.Kill = func() { _, _ = m.Execute("quit", nil) }
		return s
	}
}

func TestQEMUEdu(t *testing.T) {
	bustest.NeedQEMU(t)
	bustest.All(t, opener(bustest.Edu, qemu.DeviceSpec{Name: "edu0", Model: "edu"}))
}

// Behind a port it can be reset, and its line is swizzled.
func TestQEMUEduBehindPort(t *testing.T) {
	bustest.NeedQEMU(t)
	bustest.All(t, opener(bustest.Edu,
		qemu.DeviceSpec{Name: "p0", Model: "pcie-root-port", Props: []string{"chassis=1"}},
		qemu.DeviceSpec{Name: "edu0", Model: "edu", Bus: "p0"}))
}

// Behind the IOMMU it reaches what was allocated for it, at other addresses.
func TestQEMUEduIOMMU(t *testing.T) {
	bustest.NeedQEMU(t)
	bustest.All(t, opener(bustest.Edu, qemu.DeviceSpec{Name: "edu0", Model: "edu", IOMMU: true}))
}

func TestQEMUe1000e(t *testing.T) {
	bustest.NeedQEMU(t)
	bustest.All(t, opener(bustest.E1000e, qemu.DeviceSpec{Name: "eth0", Model: "e1000e"}))
}

func TestQEMUe1000eIOMMU(t *testing.T) {
	bustest.NeedQEMU(t)
	bustest.All(t, opener(bustest.E1000e, qemu.DeviceSpec{Name: "eth0", Model: "e1000e", IOMMU: true}))
}

// testdevs has a region in memory space and one in I/O space.
var testdevs = []struct {
	name  string
	hooks func(*testing.T, bus.Device) bustest.Subject
}{
	{"mem", func(_ *testing.T, d bus.Device) bustest.Subject { return bustest.Testdev(d, 0) }},
	{"io", func(_ *testing.T, d bus.Device) bustest.Subject { return bustest.Testdev(d, 1) }},
}

func TestQEMUTestdev(t *testing.T) {
	bustest.NeedQEMU(t)
	for _, h := range testdevs {
		t.Run(h.name, func(t *testing.T) {
			bustest.All(t, opener(h.hooks, qemu.DeviceSpec{Name: "t0", Model: "pci-testdev"}))
		})
	}
}

// A region that is memory, a frame buffer, which is copied from and to.
func TestQEMUMemory(t *testing.T) {
	bustest.NeedQEMU(t)
	s := opener(func(_ *testing.T, d bus.Device) bustest.Subject { return bustest.Plain(d) },
		qemu.DeviceSpec{Name: "vga0", Model: "bochs-display"})(t)
	pci.SetCommand(s.Device.Config(), pci.CmdMem, 0)
	r, err := s.Device.Region(0)
	if err != nil {
		t.Fatal(err)
	}
	bustest.Memory(t, r)
	// Posted copies, more than QEMU's replies may wait.
	p, got := make([]byte, 3000), make([]byte, 3000)
	for i := range 300 {
		p[0], p[2999] = byte(i), byte(i+1)
		bus.WriteBytes(r, 5, p)
	}
	if bus.ReadBytes(r, 5, got); !bytes.Equal(got, p) {
		t.Error("what is read after 300 copies is not the last")
	}
	s.Kill()
	<-s.Device.Done()
	bus.WriteBytes(r, 5, p)
	if bus.ReadBytes(r, 5, got); !bytes.Equal(got, bytes.Repeat([]byte{0xff}, 3000)) {
		t.Error("a copy out of a dead device is not all-ones")
	}
}
