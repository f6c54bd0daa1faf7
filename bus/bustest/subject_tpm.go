package bustest

import (
	"testing"

	"github.com/ring3dev/ring3/bus"
)

// Registers of locality 0 of a TPM's FIFO interface (TIS 1.3, 5.6), and the buffer of the other (PTP, 6.5.3).
const (
	tisAccess    bus.Off = 0x000
	tisIntEnable bus.Off = 0x008
	tisIntStatus bus.Off = 0x010
	tisSts       bus.Off = 0x018
	tisFIFO      bus.Off = 0x024
	crbBuffer    bus.Off = 0x080

	tisRequestUse   = 1 << 1
	tisCommandReady = 1 << 6 // of STS
	tisReadyInt     = 1 << 7
	tisIntGlobal    = 1 << 31
	tisIntMask      = tisIntGlobal | 0x9f // the bits of INT_ENABLE that there are in QEMU's model
)

// TIS is QEMU's tpm-tis, a platform device. The device must be fresh: its region 0 is opened, and locality 0
// claimed, here.
func TIS(t *testing.T, d bus.Device) Subject {
	t.Helper()
	r, err := d.Region(0)
	if err != nil {
		t.Fatalf("Region(0) of tpm-tis: %v", err)
	}
	r.Write8(tisAccess, tisRequestUse)
	return Subject{
		Device:  d,
		Scratch: &Scratch{Region: 0, Off: tisIntEnable, Reads: func(v uint32) uint32 { return v & tisIntMask }},
		Raise: func() {
			r.Write32(tisIntEnable, tisIntGlobal|tisReadyInt)
			if r.Read32(tisSts)&tisCommandReady != 0 {
				r.Write8(tisFIFO, 0) // it is ready already: begin a command, and abort it
			}
			r.Write32(tisSts, tisCommandReady)
		},
		Lower: func() { r.Write32(tisIntStatus, tisReadyInt) },
	}
}

// CRB is QEMU's tpm-crb, a platform device without interrupts.
func CRB(_ *testing.T, d bus.Device) Subject {
	return Subject{Device: d, Scratch: &Scratch{Region: 0, Off: crbBuffer, Reads: func(v uint32) uint32 { return v }}}
}
