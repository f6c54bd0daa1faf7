package bus

import "context"

// Off is an offset in a region or in config space, in bytes.
type Off uint64

// IOVA is an address as a device sees it (an I/O virtual address).
type IOVA uint64

// Device is one device on one bus, as a driver sees it.
type Device interface {
	// Address is where the device stands, for messages: "1000:00:04.0" for a PCI
	// function (domain:bus:device.function).
	Address() string
	// Backend names what carries the device, for messages: "qemu:e1000e".
	Backend() string
	// Config is the device's configuration space.
	Config() Config
	// Regions lists the regions that exist, in index order. The index of a PCI
	// region is the number of its (first) BAR.
	Regions() []RegionInfo
	// Region gives access to the region of that index. It fails with
	// ErrNotSupported where there is none, ErrGone or ErrClosed where there is no
	// device any more.
	Region(index int) (Region, error)
	// DMA is where memory comes from that the device may touch.
	DMA() DMA
	// IRQVectors says how many vectors the device and the backend offer in a mode; 0 if
	// the mode is not there.
	IRQVectors(mode IRQMode) int
	// EnableIRQs switches the device to one interrupt mode with n vectors and returns
	// them in vector order. It replaces what was enabled before. It fails with
	// ErrNotSupported where n exceeds IRQVectors(mode).
	EnableIRQs(mode IRQMode, n int) ([]*IRQ, error)
	// DisableIRQs masks and closes all of them. Waiters return ErrClosed.
	DisableIRQs() error
	// Reset resets the function (the best reset the backend has for it). Config space is
	// restored to what it was; registers are not. Without any reset: ErrNotSupported.
	Reset(ctx context.Context) error
	// Done is closed when the link died or the device was closed.
	Done() <-chan struct{}
	// Err is nil while the link lives, then says why it died: it wraps ErrGone (or
	// ErrDMAFault, which is one), ErrTimeout, ErrProtocol or ErrClosed.
	Err() error
	// Close releases the device. It is idempotent.
	Close() error
}

// Config is a configuration space. Offsets must be aligned to the access and lie
// below Size; otherwise, and when the link is dead, reads give all-ones and writes
// go nowhere.
type Config interface {
	// Size is 256 (conventional PCI) or 4096 (PCI Express) bytes.
	Size() int
	Read8(Off) uint8
	Read16(Off) uint16
	Read32(Off) uint32
	Write8(Off, uint8)
	Write16(Off, uint16)
	Write32(Off, uint32)
}

// RegionKind tells memory from I/O space.
type RegionKind uint8

// The kinds of regions.
const (
	RegionMem RegionKind = iota // memory space
	RegionIO                    // I/O space: 8, 16 and 32 bits only
)

func (k RegionKind) String() string {
	if k == RegionIO {
		return "io"
	}
	return "mem"
}

// RegionInfo describes a region.
type RegionInfo struct {
	Index    int        // number of its first BAR
	Kind     RegionKind // memory or I/O space
	Size     uint64     // bytes, a power of two for a BAR
	Addr     uint64     // where the bus placed it, for sysfs' resource file; 0 if not placed
	Prefetch bool       // prefetchable memory
	Is64     bool       // a 64-bit BAR (takes two BAR numbers)
}

// Region is a window of registers. An access that is not aligned to its width or
// does not lie inside the region reads all-ones or writes nothing: it is the
// driver's mistake, or a device that lied about a size, and never an access to
// something else.
type Region interface {
	Info() RegionInfo
	Read8(Off) uint8
	Read16(Off) uint16
	Read32(Off) uint32
	Read64(Off) uint64
	Write8(Off, uint8)
	Write16(Off, uint16)
	Write32(Off, uint32)
	Write64(Off, uint64)
}

// Platform is implemented by a device that is no PCI function, but stands where firmware says it does. Its config
// space has size 0, and its regions are numbered from 0.
type Platform interface {
	// HardwareIDs are the names by which firmware describes it, the most specific first: of ACPI
	// _HID and _CID, "MSFT0101".
	HardwareIDs() []string
}

// HardwareIDs are a device's, none for a PCI function. A wrapper passes them on.
func HardwareIDs(d Device) []string {
	if p, ok := d.(Platform); ok {
		return p.HardwareIDs()
	}
	return nil
}

// Direction says who writes DMA memory.
type Direction uint8

// Directions of DMA.
const (
	Bidirectional Direction = iota
	ToDevice                // the device only reads
	FromDevice              // the device only writes
)

// DMARequest says what memory is wanted.
type DMARequest struct {
	Size     int    // bytes, more than 0; rounded up to whole pages by most backends
	Align    uint64 // a power of two; 0 means a page (4096)
	Boundary uint64 // a power of two that the memory must not cross; 0 means none
	Mask     uint64 // highest address the device reaches (edu: 1<<28-1); 0 means all
	Dir      Direction
}

// DMA is a source of memory that one device may touch. Safe for concurrent use.
type DMA interface {
	// Alloc returns zeroed memory. It fails with ErrNoIOMMU where the backend
	// confines nothing, and with an error that names the request where there is no
	// memory of that kind.
	Alloc(DMARequest) (*Memory, error)
	// Map lets the device touch the caller's own page-aligned memory. Most
	// backends say ErrNotSupported.
	Map(b []byte, r DMARequest) (*Memory, error)
}

// Memory is DMA memory: Bytes and, at the same place for the device, IOVA.
type Memory struct {
	Bytes []byte
	IOVA  IOVA
	free  func()
}

// NewMemory is for backends: free is called once, by Free.
func NewMemory(b []byte, iova IOVA, free func()) *Memory {
	return &Memory{Bytes: b, IOVA: iova, free: free}
}

// Free gives the memory back. The device must not touch it any more: reset it, or
// stop its queues, first. Free of a freed or nil Memory does nothing. It is not safe
// for concurrent use with itself or with access to Bytes.
func (m *Memory) Free() {
	if m == nil || m.free == nil {
		return
	}
	f := m.free
	m.free, m.Bytes = nil, nil
	f()
}

// ErrorHandler is implemented by a driver instance that takes part in the recovery
// of its device from a bus error (Linux, Documentation/PCI/pci-error-recovery). A driver without it is treated as the
// kernel treats one: nothing below that port is recovered. The calls come in this order, one at a time.
type ErrorHandler interface {
	// ErrorDetected tells of an error; frozen means that registers cannot be reached. The driver stops
	// using the device, and votes: CanRecover, NeedReset, Disconnect, or NoVote.
	ErrorDetected(frozen bool) Verdict
	// SlotReset tells that the device was reset, its config space and interrupt messages are what they were, and it must be
	// brought up again: Recovered or Disconnect.
	SlotReset(ctx context.Context) Verdict
	// ErrorResume tells that traffic may go on.
	ErrorResume()
}

// MMIOHandler is an ErrorHandler that wants to look at its device before it decides on a reset.
type MMIOHandler interface {
	// MMIOEnabled is called when everybody voted CanRecover: registers can be reached, DMA is not to be started. Recovered,
	// NeedReset or Disconnect.
	MMIOEnabled() Verdict
}

// Verdict is a driver's vote in error recovery.
type Verdict uint8

// Verdicts.
const (
	NoVote     Verdict = iota // no opinion
	CanRecover                // without a reset
	NeedReset
	Recovered
	Disconnect // it is hopeless
	NoHandler  // no driver, or one that is no ErrorHandler: not for drivers to say
)

func (v Verdict) String() string {
	switch v {
	case NoVote:
		return "none"
	case CanRecover:
		return "can recover"
	case NeedReset:
		return "need reset"
	case Recovered:
		return "recovered"
	case Disconnect:
		return "disconnect"
	case NoHandler:
		return "no AER driver"
	}
	return "unknown verdict"
}

// StateKeeper is implemented by a device that can be brought back to its state after a reset that is not its own,
// as that of the bus it stands on. A wrapper passes it on.
type StateKeeper interface {
	// SaveState remembers config space and what else the backend, not the driver, programmed: where the device's
	// interrupts go. restore writes it back. Between the two a driver must not enable other interrupts.
	SaveState() (restore func() error)
}

// SaveState is a device's, or one that has nothing to keep.
func SaveState(d Device) (restore func() error) {
	if k, ok := d.(StateKeeper); ok {
		return k.SaveState()
	}
	return func() error { return nil }
}

// IRQKeeper is implemented by a device whose interrupt messages the backend, not the driver, programmed. A wrapper passes it on.
type IRQKeeper interface {
	// RestoreIRQs says whether one of the vectors that are enabled does not go any more where EnableIRQs had it go, as after a
	// reset that nobody told of, and with write sees to it that they do. The device must answer to its memory.
	RestoreIRQs(write bool) (lost bool, err error)
}

// RestoreIRQs is a device's, or nothing.
func RestoreIRQs(d Device, write bool) (lost bool, err error) {
	if k, ok := d.(IRQKeeper); ok {
		return k.RestoreIRQs(write)
	}
	return false, nil
}

// PowerHandler is implemented by a driver instance that can suspend its device.
type PowerHandler interface {
	Suspend(ctx context.Context) error
	Resume(ctx context.Context) error
}
