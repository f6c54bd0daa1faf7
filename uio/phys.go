package uio

import (
	"fmt"

	"github.com/ring3dev/ring3/bus"
)

// memory is DMA memory by physical addresses.
type memory struct{ who string }

func (d *Device) openMemory() (*memory, error) {
	return nil, fmt.Errorf("%s: dma=unsafe: %w", d.place.name, bus.ErrNotSupported)
}
func (m *memory) alloc(bus.DMARequest) (*bus.Memory, error) { return nil, bus.ErrNotSupported }
func (m *memory) used() bool                                { return false }
func (m *memory) close()                                    {}
