package bus

import "errors"

// The sentinel errors of the bus. Exported functions of backends and drivers wrap
// them, with the device, the step, the value seen and the value wanted.
var (
	// ErrTimeout: a device did not do something within the time its datasheet gives it.
	ErrTimeout = errors.New("timed out")
	// ErrGone: the device or what carries it is dead or was removed.
	ErrGone = errors.New("device gone")
	// ErrClosed: the object was closed by this process.
	ErrClosed = errors.New("closed")
	// ErrNotSupported: the backend or device cannot do what was asked.
	ErrNotSupported = errors.New("not supported")
	// ErrNoIOMMU: DMA was refused because nothing confines it.
	ErrNoIOMMU = errors.New("no IOMMU confines this device")
	// ErrBusy: something else uses it.
	ErrBusy = errors.New("busy")
	// ErrProtocol: the device or peer said something that its specification forbids.
	ErrProtocol = errors.New("protocol violation")
	// ErrDMAFault: the device reached for memory that it was not given, and was cut off.
	// It wraps ErrGone: such a device is dead for its driver.
	ErrDMAFault error = dmaFault{}
)

type dmaFault struct{}

func (dmaFault) Error() string { return "stopped by the IOMMU" }
func (dmaFault) Unwrap() error { return ErrGone }
