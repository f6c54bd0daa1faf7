package uio

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/internal/physmem"
	"github.com/ring3dev/ring3/internal/physmem/physmemtest"
)

// The suite's DMA, on a model of a function and of memory.
func TestConformanceDMA(t *testing.T) {
	bustest.All(t, func(t *testing.T) bustest.Subject {
		m := newMachine(t)
		r := &physmemtest.RAM{T: t, Huge: physmemtest.HugeAt(100, 64)}
		o := m.options()
		o.Files = m.files()
		o.DMAUnsafe = true
		o.kernel = &kernel{mmap: realKernel.mmap, source: func() (physmem.Source, error) { return r, nil }}
		d := m.openWith(address, o)
		t.Cleanup(func() {
			if err := d.Close(); err != nil {
				t.Error(err)
			}
			r.Check(t, 64)
			if !r.Ended {
				t.Error("the source was not closed")
			}
		})
		return bustest.Plain(d)
	})
}

// DMA by physical addresses is refused where they mean nothing to the device.
func TestUnsafeRefused(t *testing.T) {
	m := newMachine(t)
	open := func(device string, src func() (physmem.Source, error)) error {
		o := m.options()
		o.Files = m.files()
		if device == "uio1" {
			o.Files = &Files{Device: "uio1", UIO: m.file}
		}
		o.DMAUnsafe = true
		o.kernel = &kernel{mmap: realKernel.mmap, source: src}
		d, err := Open(t.Context(), device, o)
		if err == nil {
			_ = d.Close()
		}
		return err
	}
	fine := func() (physmem.Source, error) { return &physmemtest.RAM{T: t}, nil }
	if err := open(address, fine); err != nil {
		t.Errorf("Open without an IOMMU = %v", err)
	}
	wantErr(t, "Open without the right", open(address, func() (physmem.Source, error) { return nil, unix.EPERM }), unix.EPERM, address, "dma=unsafe")
	platform(m)
	wantErr(t, "Open of a board's device", open("uio1", fine), bus.ErrNotSupported, "uio1", "PCI")

	m.link("../../../../kernel/iommu_groups/4", filepath.Join(m.fn(), "iommu_group"))
	kind := filepath.Join(m.sys, "kernel/iommu_groups/4/type")
	wantErr(t, "Open in a group of no type", open(address, fine), os.ErrNotExist, "group 4")
	for _, s := range []string{"DMA", "DMA-FQ", "blocked", "auto"} {
		m.write(kind, s+"\n")
		wantErr(t, "Open behind an IOMMU", open(address, fine), bus.ErrNotSupported, address, "group 4 is of type "+s, "vfio")
	}
	m.write(kind, "identity\n")
	if err := open(address, fine); err != nil {
		t.Errorf("Open in a group that does not translate = %v", err)
	}
}
