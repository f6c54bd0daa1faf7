package qemu

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/internal/iova"
)

// Fault status and fault records (VT-d, 11.4.7.1 and 11.4.14).
const (
	fstsPFO = 1 << 0 // overflow: a fault was lost, W1C
	fstsPPF = 1 << 1 // there is a record, RO

	recordSize = 16
	recordHigh = 8       // offset of the upper half, 64 bits
	recordTop  = 12      // offset of its upper half, 32 bits
	recordF    = 1 << 63 // of the upper half: there is a fault, W1C
	recordRead = 1 << 62 // it was a read
	topF       = 1 << 31 // F in the uppermost 32 bits
)

// aboutFault says whether a line of QEMU's is about DMA that the IOMMU stopped. QEMU says
// each of them once, whatever the device.
func aboutFault(line string) bool {
	return strings.HasPrefix(line, "vtd_") || strings.HasPrefix(line, "Interrupt Mask set, irq is not generated") ||
		strings.HasPrefix(line, "New fault is not recorded") || strings.HasPrefix(line, "Next Fault Recording Reg is used") ||
		strings.HasPrefix(line, "There are pending faults") || strings.HasPrefix(line, "There are previous interrupt conditions")
}

// mapping is memory that a device can or could reach.
type mapping struct {
	iova.Span
	dev *device
	dir bus.Direction
}

// reasons are VT-d's fault reasons (appendix A) that a stray access gives here. Others are
// mistakes of this package or of QEMU.
var reasons = map[uint8]string{
	1: "its bus has no root entry",
	2: "it has no context entry",
	3: "its context entry is invalid",
	4: "the address has more than 39 bits",
	5: "nothing is mapped there", // or not for writing
	6: "nothing is mapped there", // or not for reading
	7: "a page table cannot be read",
}

// look reads the fault records, and cuts off the devices that are in them.
func (u *iommu) look() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed || u.m.qt.dead.Load() {
		return
	}
	status, ok := u.m.qt.ask(cmdRead[4], iommuBase+vtdFSTS)
	if !ok || status&(fstsPPF|fstsPFO) == 0 {
		return
	}
	for i := range u.number {
		at := u.records + recordSize*uint64(i)
		hi, ok := u.m.qt.ask(cmdRead[8], iommuBase+at+recordHigh)
		if !ok {
			return
		}
		if hi&recordF == 0 {
			continue
		}
		addr, ok := u.m.qt.ask(cmdRead[8], iommuBase+at)
		if !ok {
			return
		}
		u.faulted(uint16(hi), addr&^(pageSize-1), uint8(hi>>32), hi&recordRead == 0)
		u.write(at+recordTop, 4, topF)
	}
	if status&fstsPFO != 0 {
		u.write(vtdFSTS, 4, fstsPFO)
		u.m.log.Warn("qemu: the IOMMU stopped DMA of another device too, and had no room to record whose")
	}
}

// faulted is told of one fault. The device is stopped first: one that goes on would fill the
// records, in which others' faults must find room.
func (u *iommu) faulted(source uint16, addr uint64, reason uint8, write bool) {
	what := "read from"
	if write {
		what = "write to"
	}
	why := reasons[reason]
	if why == "" {
		why = "the IOMMU cannot translate it"
	}
	d := u.sources[source]
	if d == nil {
		if !u.strange[source] {
			u.strange[source] = true
			u.m.log.Warn(fmt.Sprintf("qemu: DMA %s %#x by %s, which has no domain, was stopped by the IOMMU: %s (reason %d)", what, addr, sourceName(u.m.domain, source), why, reason))
		}
		u.block(source, 0)
		return
	}
	u.block(source, d.domain.id)
	// It must not hold an interrupt line that it shares.
	pci.SetCommand(u.m.Config(d.fn.Addr), pci.CmdINTxDisable, pci.CmdMaster)
	if hit := u.hit(d, addr); hit != "" {
		why = hit
	}
	d.stop(fmt.Errorf("%s %s: DMA %s %#x: %s (reason %d): %w", d.Address(), d.spec.Name, what, addr, why, reason, bus.ErrDMAFault))
}

func sourceName(domain uint32, source uint16) string {
	return pci.Addr{Domain: domain, Bus: uint8(source >> 8), Dev: uint8(source >> 3 & 0x1f), Fn: uint8(source & 7)}.String()
}

// block stops all DMA of a source, and the recording of its faults.
func (u *iommu) block(source uint16, id uint16) {
	if _, ok := u.contexts[uint8(source>>8)]; !ok {
		return // a bus that was not there when the tables were made: all of it is blocked
	}
	u.setContext(source, ctxNoFaults, 0)
	u.write(vtdCCMD, 8, ccmdICC|ccmdDevice|uint64(source)<<16|uint64(id))
	// Where the link dies meanwhile there is nobody left to stop.
	_ = u.invalidate(iotlbDomain | uint64(id)<<32)
}

// hit says what is or was at an address.
func (u *iommu) hit(d *device, addr uint64) string {
	for _, m := range u.live {
		switch {
		case !m.Holds(addr):
		case m.dev != d:
			return "that is memory of " + m.dev.spec.Name
		case m.dir == bus.ToDevice:
			return "that memory is for reading only"
		case m.dir == bus.FromDevice:
			return "that memory is for writing only"
		}
	}
	for _, m := range slices.Backward(u.freed) {
		if m.Holds(addr) {
			return "that memory of " + m.dev.spec.Name + " was freed"
		}
	}
	return ""
}

// stop makes a device dead for its driver, which is told by Done and Err. The others live
// on.
func (d *device) stop(err error) {
	if !d.closed.Load() && d.fault.CompareAndSwap(nil, &err) {
		d.markClosed()
	}
}
