package uio

import (
	"fmt"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/internal/physmem"
	"github.com/ring3dev/ring3/internal/syspci"
)

// openMemory prepares to give out physical memory, or says why the device cannot use it.
func (d *Device) openMemory() (*physmem.Memory, error) {
	what := d.place.name + ": dma=unsafe"
	if d.fn == nil {
		return nil, fmt.Errorf("%s: only of a PCI function is it known that it reaches memory at physical addresses: %w", what, bus.ErrNotSupported)
	}
	if g := d.place.fn.Group; g != syspci.NoGroup {
		kind, err := d.tree.sys.GroupType(g)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", what, err)
		}
		if kind != "identity" {
			return nil, fmt.Errorf("%s: the IOMMU translates (group %d is of type %s), so the device does not reach physical addresses: use vfio, or boot with iommu=pt: %w", what, g, kind, bus.ErrNotSupported)
		}
	}
	src, err := d.kernel.source()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	d.log.Warn("DMA without an IOMMU: the device, and any mistake of its driver, can overwrite all memory", "address", d.place.name)
	return physmem.New(d.place.name, src), nil
}
