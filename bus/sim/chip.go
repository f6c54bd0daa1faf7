package sim

import (
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// chip is a device model: registers, and what they do. The machine calls one method of one
// chip at a time, under its lock, so a chip locks nothing and starts no goroutine.
type chip interface {
	// reset is power-on or function reset: registers as the datasheet says, timers stopped.
	reset()
	// read and write are one access of width bytes (1, 2, 4, 8), aligned and inside the region. The
	// function's Memory (or I/O) Space Enable is set; width is one that the chip says it has in
	// header.widths, else the machine answers with all-ones.
	read(region int, off bus.Off, width int) uint64
	write(region int, off bus.Off, width int, v uint64)
}

// netChip is a chip that has a wire.
type netChip interface {
	chip
	// receive offers a frame without frame check sequence, at least 60 bytes, which is the
	// caller's. False: there was no descriptor for it, and it is lost or, as the model is
	// documented, waits.
	receive(frame []byte) bool
}

// header is what a chip's function looks like in config space. The machine adds BARs, MSI and
// MSI-X capabilities and tables, PCI Express and power management from it.
type header struct {
	id      pci.FunctionID
	pcie    bool             // a PCI Express endpoint: 4096 bytes of config space, function reset
	flr     bool             // has function-level reset
	regions []bus.RegionInfo // Index, Kind, Size, Prefetch, Is64; Addr is placed by the machine
	widths  map[int]int      // by region: sum of the widths (1|2|4|8) that registers take
	intx    bool
	msi     int // vectors, 0: none
	msix    int // vectors, 0: none
	msixBAR int // region of the MSI-X table (offset 0) and the pending bits (offset 0x2000, or pba)
	pba     int
	aer     bool                 // has Advanced Error Reporting
	pme     bool                 // can signal PME
	layout  func(*header) *space // lays out config space, if it is not to be as of an endpoint

	// platform says that it is no function: what firmware calls it, the most specific name first. Of what stands
	// above it has regions, with the addresses at which they are for good, widths and intx.
	platform []string
}

// slot is what is around a chip. The methods may be called from the chip's own methods only.
type slot interface {
	// now is virtual time since the machine started.
	now() time.Duration
	// after calls f, under the machine's lock, once d of virtual time has passed, unless the timer
	// is stopped before. Timers that are due at the same moment run in the order of their making.
	// A chip that keeps its timer and resets it allocates nothing.
	after(d time.Duration, f func()) *timer
	// readMem copies memory at a to p, as one DMA read. Where bus mastering is off or there is no
	// such memory p is filled with ones, and it returns false.
	readMem(a bus.IOVA, p []byte) bool
	// writeMem copies p to memory, before any later store or interrupt. False: nothing written.
	writeMem(a bus.IOVA, p []byte) bool
	// mem is n bytes of memory at a itself, nil where readMem fails: for reading without
	// a copy. What the driver polls is written with store64. Memory of another process may be a
	// copy all the same: a chip that writes to it says so with wrote.
	mem(a bus.IOVA, n int) []byte
	wrote(a bus.IOVA, b []byte)
	// ahead is told descriptors that will be used next, each 16 bytes that begin with the address of memory
	// to be read. It changes nothing but how long that takes.
	ahead(descriptors []byte)
	// store64 and store32 write one aligned little-endian word at once, after all writes before it:
	// what a driver polls.
	store64(a bus.IOVA, v uint64) bool
	store32(a bus.IOVA, v uint32) bool
	// load64 reads one aligned word.
	load64(a bus.IOVA) (uint64, bool)
	// msix sends the message of an MSI-X vector (honouring enable, masks, pending bits), if MSI-X is
	// on; msi that of MSI. mode says what is on; INTx when neither is.
	msix(vector int)
	msi(vector int)
	// forget takes back the message of an MSI-X vector that is masked.
	forget(vector int)
	mode() bus.IRQMode
	// line sets the level of INTx; the machine honours Interrupt Disable.
	line(high bool)
	// send gives a frame to the far end of the wire, which receives it before send returns;
	// without a wire it goes nowhere. A frame that is sent from within receive (a pause frame) is
	// copied, and delivered once that receive has returned.
	send(frame []byte)
	// fault reports what is a driver's mistake, and is ignored: it counts as stray DMA.
	fault(what string)
}
