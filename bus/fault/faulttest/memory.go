package faulttest

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
)

// unwatched is a device whose DMA memory the race detector does not watch, where the backend
// maps memory that it is given. A model in this process writes Go memory, and a device that lies
// about being done writes it while the driver, which must believe it, reads: that is a race, and
// no mistake of the driver. Its own variables stay watched.
type unwatched struct{ bus.Device }

func (d unwatched) DMA() bus.DMA { return unwatchedDMA{d.Device.DMA()} }

func (d unwatched) Unwrap() bus.Device { return d.Device }

// HardwareIDs are those of a platform device.
func (d unwatched) HardwareIDs() []string { return bus.HardwareIDs(d.Device) }

type unwatchedDMA struct{ bus.DMA }

// Alloc maps memory of ours.
func (m unwatchedDMA) Alloc(r bus.DMARequest) (*bus.Memory, error) {
	const page, most = 4096, 1 << 30
	if r.Size <= 0 || r.Size > most {
		return m.DMA.Alloc(r)
	}
	size := (r.Size + page - 1) &^ (page - 1)
	b, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("mapping %d bytes: %w", size, err)
	}
	mem, err := m.Map(b, r)
	if err != nil {
		_ = unix.Munmap(b)
		if errors.Is(err, bus.ErrNotSupported) {
			return m.DMA.Alloc(r)
		}
		return nil, err
	}
	return bus.NewMemory(mem.Bytes, mem.IOVA, func() {
		mem.Free()
		_ = unix.Munmap(b)
	}), nil
}
