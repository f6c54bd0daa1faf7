package vfiouser

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
)

// Version of the protocol that is spoken. A peer with the same major number speaks it too.
const (
	versionMajor = 0
	versionMinor = 1
)

// command is what a message asks for.
type command uint16

const (
	cmdVersion     command = 1
	cmdDMAMap      command = 2
	cmdDMAUnmap    command = 3
	cmdDeviceInfo  command = 4
	cmdRegionInfo  command = 5
	cmdRegionFDs   command = 6
	cmdIRQInfo     command = 7
	cmdSetIRQs     command = 8
	cmdRegionRead  command = 9
	cmdRegionWrite command = 10
	cmdDMARead     command = 11 // from the server
	cmdDMAWrite    command = 12 // from the server
	cmdReset       command = 13
	cmdWriteMulti  command = 15
	// cmdLastWords is ring3's own, from the server, where both said last_words: why the device died.
	cmdLastWords command = 0x7233
)

var commandNames = map[command]string{
	cmdVersion: "VERSION", cmdDMAMap: "DMA_MAP", cmdDMAUnmap: "DMA_UNMAP", cmdDeviceInfo: "DEVICE_GET_INFO",
	cmdRegionInfo: "DEVICE_GET_REGION_INFO", cmdRegionFDs: "DEVICE_GET_REGION_IO_FDS", cmdIRQInfo: "DEVICE_GET_IRQ_INFO",
	cmdSetIRQs: "DEVICE_SET_IRQS", cmdRegionRead: "REGION_READ", cmdRegionWrite: "REGION_WRITE", cmdDMARead: "DMA_READ",
	cmdDMAWrite: "DMA_WRITE", cmdReset: "DEVICE_RESET", cmdWriteMulti: "REGION_WRITE_MULTI", cmdLastWords: "last words",
}

func (c command) String() string {
	if s := commandNames[c]; s != "" {
		return s
	}
	return fmt.Sprintf("command %d", uint16(c))
}

// header is what each message begins with.
type header struct {
	id    uint16
	cmd   command
	size  uint32 // of the message, this included
	flags uint32
	errno uint32
}

const (
	headerSize = 16

	flagType    = 0xf
	typeCommand = 0x0
	typeReply   = 0x1
	flagNoReply = 1 << 4
	flagError   = 1 << 5
)

func (h *header) put(b []byte) {
	binary.LittleEndian.PutUint16(b, h.id)
	binary.LittleEndian.PutUint16(b[2:], uint16(h.cmd))
	binary.LittleEndian.PutUint32(b[4:], h.size)
	binary.LittleEndian.PutUint32(b[8:], h.flags)
	binary.LittleEndian.PutUint32(b[12:], h.errno)
}

// parse reads a header, and holds it to what a header may be.
func (h *header) parse(b []byte, maxBody int) error {
	r := reader{b: b}
	*h = header{r.u16(), command(r.u16()), r.u32(), r.u32(), r.u32()}
	switch {
	case h.size < headerSize || h.size > uint32(headerSize+maxBody):
		return fmt.Errorf("a message of %d bytes, want %d to %d: %w", h.size, headerSize, headerSize+maxBody, bus.ErrProtocol)
	case h.flags&flagType > typeReply:
		return fmt.Errorf("a message of type %d, want a command or a reply: %w", h.flags&flagType, bus.ErrProtocol)
	}
	return nil
}

func (h *header) isReply() bool { return h.flags&flagType == typeReply }

// answers says whether a reply may be to a command. Early libvfio-user left the number out of replies.
func (h *header) answers(cmd command) bool { return h.cmd == cmd || h.cmd == 0 }

// Indices of regions and interrupts, linux/vfio.h.
const (
	regionROM    = 6
	regionConfig = 7
	numRegions   = 9 // with VGA

	irqINTx = 0
	irqMSI  = 1
	irqMSIX = 2
	irqErr  = 3
	irqReq  = 4
	numIRQs = 5
)

// irqIndex is the index of a mode, -1 for none.
func irqIndex(m bus.IRQMode) int {
	switch m {
	case bus.INTx:
		return irqINTx
	case bus.MSI:
		return irqMSI
	case bus.MSIX:
		return irqMSIX
	}
	return -1
}

var irqModes = [...]bus.IRQMode{irqINTx: bus.INTx, irqMSI: bus.MSI, irqMSIX: bus.MSIX}

// Flags of linux/vfio.h and of vfio-user's DMA_MAP and DMA_UNMAP.
const (
	deviceReset = 1 << 0
	devicePCI   = 1 << 1

	regionRead  = 1 << 0
	regionWrite = 1 << 1
	regionMmap  = 1 << 2
	regionCaps  = 1 << 3

	irqEventfd    = 1 << 0
	irqMaskable   = 1 << 1
	irqAutomasked = 1 << 2
	irqNoResize   = 1 << 3

	setNone    = 1 << 0
	setBool    = 1 << 1
	setEventfd = 1 << 2
	setData    = setNone | setBool | setEventfd
	setMask    = 1 << 3
	setUnmask  = 1 << 4
	setTrigger = 1 << 5
	setAction  = setMask | setUnmask | setTrigger

	dmaReadable  = 1 << 0
	dmaWriteable = 1 << 1
	dmaMmap      = 1 << 2 // libvfio-user: the descriptor is to be mapped
	dmaFileIO    = 1 << 3 // libvfio-user: it is to be read and written
	unmapBitmap  = 1 << 0
	unmapAll     = 1 << 1
)

// capSparse is the region capability that lists which parts can be mapped.
const (
	capSparse     = 1
	capSize       = 8
	sparseSize    = capSize + 8
	sparseArea    = 16
	maxSparse     = 64
	ioFDsSize     = 16
	shadowFDSize  = 48
	typeShadowFD  = 2 // VFIO_USER_IO_FD_TYPE_IOEVENTFD_SHADOW
	maxDoorbells  = 64
	multiSize     = 24
	accessSize    = 16
	dmaAccessSize = 16
)

// Bodies of messages.
type (
	deviceInfo struct{ argsz, flags, regions, irqs uint32 }
	regionInfo struct {
		argsz, flags, index, caps uint32
		size, offset              uint64
	}
	irqInfo struct{ argsz, flags, index, count uint32 }
	irqSet  struct{ argsz, flags, index, start, count uint32 }
	dmaMap  struct {
		argsz, flags       uint32
		offset, addr, size uint64
	}
	dmaUnmap struct {
		argsz, flags uint32
		addr, size   uint64
	}
	access struct {
		off           uint64
		region, count uint32
	}
	dmaAccess struct{ addr, count uint64 }
	ioFDs     struct{ argsz, flags, index, count uint32 }
	shadowFD  struct {
		off, size            uint64
		fd, kind, flags, mem uint32
		memOff, match        uint64
	}
)

const (
	deviceInfoSize = 16
	regionInfoSize = 32
	irqInfoSize    = 16
	irqSetSize     = 20
	dmaMapSize     = 32
	dmaUnmapSize   = 24
)

// reader takes a body apart. What is not there reads as 0, and short tells.
type reader struct {
	b     []byte
	short bool
}

func (r *reader) take(n int) []byte {
	if len(r.b) < n {
		r.b, r.short = nil, true
		return make([]byte, n)
	}
	b := r.b[:n]
	r.b = r.b[n:]
	return b
}

func (r *reader) u16() uint16 { return binary.LittleEndian.Uint16(r.take(2)) }
func (r *reader) u32() uint32 { return binary.LittleEndian.Uint32(r.take(4)) }
func (r *reader) u64() uint64 { return binary.LittleEndian.Uint64(r.take(8)) }

func (r *reader) deviceInfo() deviceInfo { return deviceInfo{r.u32(), r.u32(), r.u32(), r.u32()} }
func (r *reader) irqInfo() irqInfo       { return irqInfo{r.u32(), r.u32(), r.u32(), r.u32()} }
func (r *reader) ioFDs() ioFDs           { return ioFDs{r.u32(), r.u32(), r.u32(), r.u32()} }
func (r *reader) access() access         { return access{r.u64(), r.u32(), r.u32()} }
func (r *reader) dmaAccess() dmaAccess   { return dmaAccess{r.u64(), r.u64()} }
func (r *reader) irqSet() irqSet         { return irqSet{r.u32(), r.u32(), r.u32(), r.u32(), r.u32()} }
func (r *reader) dmaUnmap() dmaUnmap     { return dmaUnmap{r.u32(), r.u32(), r.u64(), r.u64()} }
func (r *reader) dmaMap() dmaMap         { return dmaMap{r.u32(), r.u32(), r.u64(), r.u64(), r.u64()} }
func (r *reader) regionInfo() regionInfo {
	return regionInfo{r.u32(), r.u32(), r.u32(), r.u32(), r.u64(), r.u64()}
}
func (r *reader) shadowFD() shadowFD {
	return shadowFD{r.u64(), r.u64(), r.u32(), r.u32(), r.u32(), r.u32(), r.u64(), r.u64()}
}

// writer puts a body together.
type writer []byte

func (w *writer) u16(v uint16) { *w = binary.LittleEndian.AppendUint16(*w, v) }
func (w *writer) u64(v uint64) { *w = binary.LittleEndian.AppendUint64(*w, v) }
func (w *writer) u32(v ...uint32) {
	for _, x := range v {
		*w = binary.LittleEndian.AppendUint32(*w, x)
	}
}

func (w *writer) deviceInfo(m deviceInfo) { w.u32(m.argsz, m.flags, m.regions, m.irqs) }
func (w *writer) irqInfo(m irqInfo)       { w.u32(m.argsz, m.flags, m.index, m.count) }
func (w *writer) ioFDs(m ioFDs)           { w.u32(m.argsz, m.flags, m.index, m.count) }
func (w *writer) irqSet(m irqSet)         { w.u32(m.argsz, m.flags, m.index, m.start, m.count) }
func (w *writer) access(m access)         { w.u64(m.off); w.u32(m.region, m.count) }
func (w *writer) dmaAccess(m dmaAccess)   { w.u64(m.addr); w.u64(m.count) }
func (w *writer) dmaUnmap(m dmaUnmap)     { w.u32(m.argsz, m.flags); w.u64(m.addr); w.u64(m.size) }
func (w *writer) dmaMap(m dmaMap) {
	w.u32(m.argsz, m.flags)
	w.u64(m.offset)
	w.u64(m.addr)
	w.u64(m.size)
}
func (w *writer) regionInfo(m regionInfo) {
	w.u32(m.argsz, m.flags, m.index, m.caps)
	w.u64(m.size)
	w.u64(m.offset)
}
func (w *writer) shadowFD(m shadowFD) {
	w.u64(m.off)
	w.u64(m.size)
	w.u32(m.fd, m.kind, m.flags, m.mem)
	w.u64(m.memOff)
	w.u64(m.match)
}

// errnoOf is the number that a peer is told of an error.
func errnoOf(err error) unix.Errno {
	for _, c := range errnos {
		if errors.Is(err, c.err) {
			return c.errno
		}
	}
	var e unix.Errno
	if errors.As(err, &e) && e != 0 {
		return e
	}
	return unix.EINVAL
}

// errnos are the sentinels and how a peer is told of them; the first of an errno is what it means.
var errnos = []struct {
	err   error
	errno unix.Errno
}{
	{bus.ErrNotSupported, unix.EOPNOTSUPP},
	{bus.ErrNoIOMMU, unix.EPERM},
	{bus.ErrBusy, unix.EBUSY},
	{bus.ErrTimeout, unix.ETIMEDOUT},
	{bus.ErrGone, unix.ENODEV},
	{bus.ErrClosed, unix.ESHUTDOWN},
	{bus.ErrNotSupported, unix.ENOSYS},
	{bus.ErrNotSupported, unix.ENOTTY},
}

// refusal is the error of a reply that says that the command failed.
func refusal(errno uint32) error {
	e := unix.Errno(errno)
	if errno == 0 || errno > 4095 {
		return fmt.Errorf("the server refuses, with error number %d", errno)
	}
	for _, c := range errnos {
		if c.errno == e {
			return fmt.Errorf("the server refuses: %w (%w)", e, c.err)
		}
	}
	return fmt.Errorf("the server refuses: %w", e)
}
