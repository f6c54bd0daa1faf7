package bustest_test

import (
	"errors"
	"testing"
	"time"

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

// e1000e gives the suite what edu lacks: MSI-X. Registers are the 82574's (datasheet 10.2).
func e1000e(t *testing.T, d bus.Device) bustest.Subject {
	t.Helper()
	r, err := d.Region(0)
	if err != nil {
		t.Fatal(err)
	}
	const (
		regICR   bus.Off = 0x00c0 // Interrupt Cause Read, RC and W1C
		regICS   bus.Off = 0x00c8 // Interrupt Cause Set, WO
		regIMS   bus.Off = 0x00d0 // Interrupt Mask Set, RW
		regIMC   bus.Off = 0x00d8 // Interrupt Mask Clear, WO
		regIVAR  bus.Off = 0x00e4 // Interrupt Vector Allocation, RW
		regRDBAH bus.Off = 0x2804 // Receive Descriptor Base Address High, RW

		other     = 1 << 24 // the cause "other"
		ivarOther = 1 << 19 // it is allocated, to vector 0
	)
	return bustest.Subject{
		Device:  d,
		Scratch: &bustest.Scratch{Region: 0, Off: regRDBAH, Reads: func(v uint32) uint32 { return v }},
		Raise: func() {
			pci.SetCommand(d.Config(), pci.CmdMaster, 0)
			r.Write32(regIVAR, ivarOther)
			r.Write32(regIMS, other)
			r.Write32(regICS, other)
		},
		Lower: func() {
			r.Write32(regIMC, other)
			r.Write32(regICR, 0xffffffff)
			// QEMU's model throttles each vector to one message in 128 us, whatever EITR
			// says, sends what it held back though its cause is gone, and aborts where
			// MSI-X is disabled meanwhile. So wait, and from when the write is done: a read.
			r.Read32(regICR)
			time.Sleep(2 * time.Millisecond)
		},
	}
}

func TestQEMUe1000e(t *testing.T) {
	bustest.NeedQEMU(t)
	bustest.All(t, opener(e1000e, qemu.DeviceSpec{Name: "eth0", Model: "e1000e"}))
}

func TestQEMUe1000eIOMMU(t *testing.T) {
	bustest.NeedQEMU(t)
	bustest.All(t, opener(e1000e, qemu.DeviceSpec{Name: "eth0", Model: "e1000e", IOMMU: true}))
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
