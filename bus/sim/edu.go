package sim

import (
	"fmt"
	"strconv"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

var eduModel = model{
	name: "edu", about: "QEMU's educational device: a factorial, an interrupt, DMA",
	props: map[string]string{"dma_mask": "highest address that DMA reaches, a number (default 0xfffffff: 28 bits)"},
	make:  newEdu,
}

// Registers of edu (QEMU's docs/specs/edu). Below 0x80 they are 32 bits wide.
const (
	eduID     bus.Off = 0x00 // Identification, RO
	eduLive   bus.Off = 0x04 // Card Liveness Check, RW
	eduFact   bus.Off = 0x08 // Factorial Computation, RW
	eduStatus bus.Off = 0x20 // Status, RW
	eduIRQ    bus.Off = 0x24 // Interrupt Status, RO
	eduRaise  bus.Off = 0x60 // Interrupt Raise, WO
	eduAck    bus.Off = 0x64 // Interrupt Acknowledge, WO
	eduWide   bus.Off = 0x80 // from here on, 32 or 64 bits
	eduSrc    bus.Off = 0x80 // DMA Source Address, RW
	eduDst    bus.Off = 0x88 // DMA Destination Address, RW
	eduCount  bus.Off = 0x90 // DMA Transfer Count, RW
	eduCmd    bus.Off = 0x98 // DMA Command, RW

	eduVersion   = 0x010000ed
	eduComputing = 1 << 0 // of Status, RO
	eduIRQFact   = 1 << 7 // of Status: interrupt when computed
	eduRun       = 1 << 0 // of DMA Command
	eduToMem     = 1 << 1 // of DMA Command: from the buffer to memory
	eduIRQDMA    = 1 << 2 // of DMA Command: interrupt when done
	eduFactIRQ   = 1 << 0 // of Interrupt Status
	eduDMAIRQ    = 1 << 8 // of Interrupt Status
	eduBufAt     = 0x40000
	eduBufLen    = 4096
	eduMask      = 1<<28 - 1
	eduDMATime   = 100 * time.Millisecond
	// eduFactTime is how long a factorial takes. QEMU's takes as long as its thread needs to be
	// scheduled.
	eduFactTime = 10 * time.Microsecond
)

// edu is QEMU's educational device. Unlike that, it ignores a transfer that leaves its buffer
// (which counts as stray DMA), where QEMU aborts.
type edu struct {
	s    slot
	mask uint64

	live, fact, status, irq  uint32
	src, dst, count, command uint64
	buf                      [eduBufLen]byte
	dma, computed            *timer
}

func newEdu(s slot, o options) (chip, header, error) {
	e := &edu{s: s, mask: eduMask}
	if v, ok := o.props["dma_mask"]; ok {
		var err error
		if e.mask, err = strconv.ParseUint(v, 0, 64); err != nil {
			return nil, header{}, fmt.Errorf("property dma_mask=%s: want a number", v)
		}
	}
	return e, header{
		// No subsystem of its own: QEMU gives its default.
		id:      pci.FunctionID{Vendor: 0x1234, Device: 0x11e8, SubVendor: 0x1af4, SubDevice: 0x1100, Class: 0x00ff00, Revision: 0x10},
		regions: []bus.RegionInfo{{Index: 0, Size: 1 << 20}},
		widths:  map[int]int{0: 4 | 8},
		intx:    true, msi: 1,
	}, nil
}

func (e *edu) reset() {
	e.dma.stop()
	e.computed.stop()
	*e = edu{s: e.s, mask: e.mask, dma: e.dma, computed: e.computed}
	e.s.line(false)
}

func (e *edu) read(_ int, off bus.Off, width int) uint64 {
	if off < eduWide && width != 4 {
		return ^uint64(0)
	}
	switch off {
	case eduID:
		return eduVersion
	case eduLive:
		return uint64(e.live)
	case eduFact:
		return uint64(e.fact)
	case eduStatus:
		return uint64(e.status)
	case eduIRQ:
		return uint64(e.irq)
	case eduSrc:
		return e.src
	case eduDst:
		return e.dst
	case eduCount:
		return e.count
	case eduCmd:
		return e.command
	}
	return ^uint64(0)
}

func (e *edu) write(_ int, off bus.Off, width int, v uint64) {
	if off < eduWide && width != 4 {
		return
	}
	// A transfer that runs holds its registers.
	set := func(r *uint64) {
		if e.command&eduRun == 0 {
			*r = v
		}
	}
	switch off {
	case eduLive:
		e.live = ^uint32(v)
	case eduFact:
		if e.status&eduComputing == 0 {
			e.fact = uint32(v)
			e.status |= eduComputing
			again(&e.computed, e.s, eduFactTime, e.compute)
		}
	case eduStatus:
		e.status = e.status&^eduIRQFact | uint32(v)&eduIRQFact
	case eduRaise:
		e.raise(uint32(v))
	case eduAck:
		e.irq &^= uint32(v)
		e.s.line(e.irq != 0)
	case eduSrc:
		set(&e.src)
	case eduDst:
		set(&e.dst)
	case eduCount:
		set(&e.count)
	case eduCmd:
		if v&eduRun != 0 && e.command&eduRun == 0 {
			e.command = v
			again(&e.dma, e.s, eduDMATime, e.transfer)
		}
	}
}

// again starts a timer anew, and makes it the first time.
func again(t **timer, s slot, d time.Duration, f func()) {
	if *t == nil {
		*t = s.after(d, f)
		return
	}
	(*t).reset(d)
}

func (e *edu) raise(v uint32) {
	e.irq |= v
	if e.irq == 0 {
		return
	}
	if e.s.mode() == bus.MSI {
		e.s.msi(0)
		return
	}
	e.s.line(true)
}

func (e *edu) compute() {
	v := uint32(1)
	for n := e.fact; n > 0 && v != 0; n-- {
		v *= n // 0 from 34! on
	}
	e.fact = v
	e.status &^= eduComputing
	if e.status&eduIRQFact != 0 {
		e.raise(eduFactIRQ)
	}
}

// transfer is the end of a transfer, when it happens.
func (e *edu) transfer() {
	n, at, mem := e.count, e.dst, e.src
	if e.command&eduToMem != 0 {
		at, mem = e.src, e.dst
	}
	if mem &= e.mask; at >= eduBufAt && at <= eduBufAt+eduBufLen && n <= eduBufAt+eduBufLen-at {
		b := e.buf[at-eduBufAt:][:n]
		if e.command&eduToMem != 0 {
			e.s.writeMem(bus.IOVA(mem), b)
		} else {
			e.s.readMem(bus.IOVA(mem), b)
		}
	} else {
		e.s.fault(fmt.Sprintf("a transfer of %d bytes at %#x leaves the buffer of %d at %#x", n, at, eduBufLen, eduBufAt))
	}
	e.command &^= eduRun
	if e.command&eduIRQDMA != 0 {
		e.raise(eduDMAIRQ)
	}
}
