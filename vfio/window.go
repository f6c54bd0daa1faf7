package vfio

import (
	"fmt"
	"sync"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/internal/iova"
)

// Place lets the device reach memory of another process at addresses of its choice; bus.Placer. The
// memory must be mapped here, and is locked in memory until it is released.
func (a dmaOf) Place(w bus.Window) (release func(), err error) {
	step := a.step("placing")
	if a.owner != nil {
		if err := a.owner.Err(); err != nil {
			return nil, fmt.Errorf("placing DMA memory: %w", err)
		}
	}
	at := iova.Span{Base: uint64(w.IOVA), End: uint64(w.IOVA) + w.Size}
	switch {
	case w.Bytes == nil:
		return nil, fmt.Errorf("%s DMA memory: the IOMMU maps memory, so it must be a memfd that is sealed against shrinking: %w", step, bus.ErrNotSupported)
	case w.Size == 0 || uint64(len(w.Bytes)) != w.Size || (at.Base|w.Size)&(pageSize-1) != 0 || at.End < at.Base:
		return nil, fmt.Errorf("%s DMA memory: %#x bytes at %#x: want whole pages: %w", step, w.Size, at.Base, bus.ErrNotSupported)
	}
	m, err := a.space.placeAt(step, a.owner, at, w.Bytes, permission(w.Dir))
	if err != nil {
		return nil, err
	}
	return sync.OnceFunc(func() { a.space.remove(m) }), nil
}
