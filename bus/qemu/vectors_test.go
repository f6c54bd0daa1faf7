package qemu

import (
	"slices"
	"testing"
)

// TestVectors: QEMU refuses a function with more messages than there can be.
func TestVectors(t *testing.T) {
	for _, tt := range []struct{ nics, ports, want int }{
		{1, 0, 24}, {1, 1, 40}, {maxDevices, 0, maxVectors}, {maxDevices / 2, maxDevices / 2, maxVectors},
	} {
		c := Config{Devices: slices.Concat(slices.Repeat([]DeviceSpec{{Model: "e1000e"}}, tt.nics), slices.Repeat([]DeviceSpec{{Model: "pcie-root-port"}}, tt.ports))}
		if got := c.vectors(); got != tt.want {
			t.Errorf("vectors() of %d adapters and %d ports = %d, want %d", tt.nics, tt.ports, got, tt.want)
		}
	}
}
