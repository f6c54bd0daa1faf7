package bus

import "github.com/ring3dev/ring3/internal/ioctl"

// currentCPU is the CPU this thread runs on, for statistics.
func currentCPU() (int, bool) {
	cpu, err := ioctl.Getcpu()
	return cpu, err == nil
}
