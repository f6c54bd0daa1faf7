package uio

import (
	"fmt"

	"github.com/ring3dev/ring3/bus"
)

// DMA refuses, unless the device was opened with DMAUnsafe.
func (d *Device) DMA() bus.DMA { return dmaOf{d} }

// dmaOf is a device's memory; bus.DMA.
type dmaOf struct{ d *Device }

// Alloc gives out memory whose IOVA is its physical address.
func (a dmaOf) Alloc(r bus.DMARequest) (*bus.Memory, error) {
	if err := a.d.refuse(); err != nil {
		return nil, fmt.Errorf("allocating DMA memory: %w", err)
	}
	if a.d.mem == nil {
		return nil, fmt.Errorf("%s: allocating DMA memory: UIO keeps the device from no memory; use vfio, or, as root and at the machine's risk, dma=unsafe: %w", a.d.place.name, bus.ErrNoIOMMU)
	}
	return a.d.mem.Alloc(r)
}

// Map is not there: the caller's memory is not one piece for the device.
func (a dmaOf) Map([]byte, bus.DMARequest) (*bus.Memory, error) {
	return nil, fmt.Errorf("%s: mapping a caller's memory: without an IOMMU it is not one piece for the device: %w", a.d.place.name, bus.ErrNotSupported)
}
