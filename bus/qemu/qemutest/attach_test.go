package qemutest

import (
	"fmt"
	"testing"

	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/qemu"
)

// TestAttachedConforms runs the suite of all backends on a machine that was made of another's parts, after somebody had them before.
func TestAttachedConforms(t *testing.T) {
	bustest.NeedQEMU(t)
	c := qemu.Config{Devices: []qemu.DeviceSpec{{Name: "rp0", Model: "pcie-root-port"}, {Name: "edu0", Model: "edu", Bus: "rp0"}}}
	bustest.All(t, func(t *testing.T) bustest.Subject {
		p, err := qemu.Launch(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { p.Close() })
		var s bustest.Subject
		for i := range 2 {
			if err := p.Quiesce(t.Context()); err != nil {
				t.Fatal(err)
			}
			parts, err := p.Parts()
			if err != nil {
				t.Fatal(err)
			}
			m, err := qemu.Attach(t.Context(), c, parts, p)
			if err != nil {
				t.Fatal(err)
			}
			if i == 0 { // the one before
				if err := m.Close(); err != nil {
					t.Fatal(err)
				}
				continue
			}
			t.Cleanup(func() { m.Close() })
			d, err := m.Device("edu0")
			if err != nil {
				t.Fatal(err)
			}
			s = bustest.Edu(t, d)
			s.Kill = func() { p.Close() }
		}
		return s
	})
}

// TestAttachNoLeak: machines come and go, and their QEMU has what it had.
func TestAttachNoLeak(t *testing.T) {
	bustest.NeedQEMU(t)
	bustest.NoLeaks(t)
	c := qemu.Config{Devices: []qemu.DeviceSpec{{Name: "a", Model: "e1000e", IOMMU: true}, {Name: "b", Model: "e1000"}}, Wires: [][2]string{{"a", "b"}}}
	p, err := qemu.Launch(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for i := range 10 {
		parts, err := p.Parts()
		if err == nil {
			var m *qemu.Machine
			if m, err = qemu.Attach(t.Context(), c, parts, p); err == nil {
				err = m.Close()
			}
		}
		if err == nil {
			err = p.Quiesce(t.Context())
		}
		if err != nil {
			t.Fatal(fmt.Errorf("round %d: %w", i, err))
		}
	}
}
