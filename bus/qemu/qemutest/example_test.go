package qemutest_test

import (
	"testing"

	"github.com/ring3dev/ring3/bus/qemu/qemutest"
)

// t is what a test function is given.
var t *testing.T

// A whole test: a device model, a register, and DMA that is held to its memory.
func Example() {
	dev := qemutest.Open(t, "edu", qemutest.IOMMU())
	regs, err := dev.Region(0)
	if err != nil {
		t.Fatal(err)
	}
	const regLive = 0x04 // reads as the complement of what was written
	regs.Write32(regLive, 0x0f0f0f0f)
	if got := regs.Read32(regLive); got != 0xf0f0f0f0 {
		t.Errorf("LIVE = %#x, want 0xf0f0f0f0", got)
	}
	if err := dev.Err(); err != nil {
		t.Error(err)
	}
}
