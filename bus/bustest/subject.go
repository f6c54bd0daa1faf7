package bustest

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// Subject is a device under test, and what it can be made to do. Nil hooks skip the
// tests that need them.
type Subject struct {
	Device bus.Device
	// Scratch is a 32-bit register that can be written and read without harm.
	Scratch *Scratch
	// Raise makes the device fire vector 0 of the mode that is enabled, once. Lower
	// acknowledges it, so that a level-triggered line falls. Where the device needs bus
	// mastering for it, the hook sees to that.
	Raise, Lower func()
	// Move makes the device read n bytes at src and write them to dst, and waits for it.
	Move func(ctx context.Context, dst, src bus.IOVA, n int) error
	// MoveMask is the highest address that Move reaches; 0 means all.
	MoveMask uint64
	// MaxMove is the most that Move takes, in bytes.
	MaxMove int
	// Confined says that an IOMMU stops what the device does outside the memory that was
	// allocated for it.
	Confined bool
	// Kill makes the link die, as when the device is pulled out.
	Kill func()
}

// Scratch is a register for tests.
type Scratch struct {
	Region int
	Off    bus.Off
	// Reads is what the register reads as after v was written.
	Reads func(v uint32) uint32
}

// Plain is a device without hooks.
func Plain(d bus.Device) Subject { return Subject{Device: d} }

// Registers of QEMU's edu (docs/specs/edu): see package drivers/edu.
const (
	eduLive  bus.Off = 0x04
	eduRaise bus.Off = 0x60
	eduAck   bus.Off = 0x64
	eduSrc   bus.Off = 0x80
	eduDst   bus.Off = 0x88
	eduCount bus.Off = 0x90
	eduCmd   bus.Off = 0x98

	eduBuffer = 0x40000
)

// Edu is QEMU's educational device with all its hooks. The device must be fresh: its
// region 0 is opened here.
func Edu(t *testing.T, d bus.Device) Subject {
	t.Helper()
	r, err := d.Region(0)
	if err != nil {
		t.Fatalf("Region(0) of edu: %v", err)
	}
	run := func(ctx context.Context, dst, src uint32, n int, cmd uint32) error {
		r.Write32(eduSrc, src)
		r.Write32(eduDst, dst)
		r.Write32(eduCount, uint32(n))
		r.Write32(eduCmd, cmd|1)
		for until := time.Now().Add(5 * time.Second); r.Read32(eduCmd)&1 != 0; {
			if err := ctx.Err(); err != nil {
				return err
			}
			if time.Now().After(until) {
				return fmt.Errorf("edu: DMA command still runs after 5 s: %w", bus.ErrTimeout)
			}
			time.Sleep(5 * time.Millisecond) // the model takes 100 ms and this must not depend on interrupts
		}
		return nil
	}
	return Subject{
		Device:  d,
		Scratch: &Scratch{Region: 0, Off: eduLive, Reads: func(v uint32) uint32 { return ^v }},
		Raise: func() {
			pci.SetCommand(d.Config(), pci.CmdMaster, 0)
			r.Write32(eduRaise, 1)
		},
		Lower:    func() { r.Write32(eduAck, 1) },
		MoveMask: 1<<28 - 1,
		MaxMove:  4095, // the model counts the byte after the last one too
		Move: func(ctx context.Context, dst, src bus.IOVA, n int) error {
			pci.SetCommand(d.Config(), pci.CmdMaster, 0)
			if err := run(ctx, eduBuffer, uint32(src), n, 0); err != nil {
				return err
			}
			return run(ctx, uint32(dst), eduBuffer, n, 2)
		},
	}
}

// Registers of the 82574 and, but for IVAR, of the 82540 (datasheets, 10.2 and 13.4).
const (
	nicICR   bus.Off = 0x00c0 // Interrupt Cause Read, RC and W1C
	nicICS   bus.Off = 0x00c8 // Interrupt Cause Set, WO
	nicIMS   bus.Off = 0x00d0 // Interrupt Mask Set, RW
	nicIMC   bus.Off = 0x00d8 // Interrupt Mask Clear, WO
	nicIVAR  bus.Off = 0x00e4 // Interrupt Vector Allocation, RW
	nicRDBAH bus.Off = 0x2804 // Receive Descriptor Base Address High, RW

	causeLSC   = 1 << 2  // link status change
	causeOther = 1 << 24 // another: of its own in MSI-X
	ivarOther  = 1 << 19 // the cause "other" is allocated, to vector 0
)

// E1000e is QEMU's e1000e, which gives the suite what edu lacks: MSI-X. The device must be
// fresh: its region 0 is opened here.
func E1000e(t *testing.T, d bus.Device) Subject {
	t.Helper()
	r, err := d.Region(0)
	if err != nil {
		t.Fatalf("Region(0) of e1000e: %v", err)
	}
	return Subject{
		Device:  d,
		Scratch: &Scratch{Region: 0, Off: nicRDBAH, Reads: func(v uint32) uint32 { return v }},
		Raise: func() {
			pci.SetCommand(d.Config(), pci.CmdMaster, 0)
			r.Write32(nicIVAR, ivarOther)
			r.Write32(nicIMS, causeOther)
			r.Write32(nicICS, causeOther)
		},
		Lower: func() {
			r.Write32(nicIMC, causeOther)
			r.Write32(nicICR, 0xffffffff)
			// QEMU's model throttles each vector to one message in 128 us, whatever EITR
			// says, sends what it held back though its cause is gone, and aborts where
			// MSI-X is disabled meanwhile. So wait, and from when the write is done: a read.
			r.Read32(nicICR)
			time.Sleep(2 * time.Millisecond)
		},
	}
}

// E1000 is QEMU's e1000, an 82540EM or 82545EM, which has INTx only. The device must be fresh:
// its region 0 is opened here.
func E1000(t *testing.T, d bus.Device) Subject {
	t.Helper()
	r, err := d.Region(0)
	if err != nil {
		t.Fatalf("Region(0) of e1000: %v", err)
	}
	return Subject{
		Device:  d,
		Scratch: &Scratch{Region: 0, Off: nicRDBAH, Reads: func(v uint32) uint32 { return v }},
		Raise: func() {
			r.Write32(nicIMS, causeLSC)
			r.Write32(nicICS, causeLSC)
		},
		Lower: func() {
			r.Write32(nicIMC, causeLSC)
			r.Write32(nicICR, causeLSC)
		},
	}
}

// Testdev is QEMU's pci-testdev, with a register in one of its regions to write: 0 is in memory
// space, 1 in I/O space.
func Testdev(d bus.Device, region int) Subject {
	return Subject{
		Device: d,
		// A write of a test's number shows that test's header (docs/specs/pci-testdev); no other
		// byte of the register can be written.
		Scratch: &Scratch{Region: region, Reads: func(v uint32) uint32 {
			const tests, width = 3, 1 << 8
			if n := v & 0xff; n < tests {
				return n + uint32(tests*region) | width
			}
			return 0
		}},
	}
}
