package edu

import (
	"fmt"
	"testing"

	"github.com/ring3dev/ring3/bus/pci"
)

// Every bit alone: those that have a name, and the others.
func TestRegisterBits(t *testing.T) {
	names := map[string]map[int]string{
		"STATUS": {0: "COMPUTING", 7: "IRQ_WHEN_DONE"},
		"IRQ":    {0: "COMPUTED", 8: "DMA_DONE"},
		"IRQACK": {0: "COMPUTED", 8: "DMA_DONE"},
		"DMACMD": {0: "RUN", 1: "FROM_EDU", 2: "IRQ_WHEN_DONE"},
	}
	for _, r := range Driver.Registers(pci.FunctionID{}) {
		for i := range 32 {
			want, ok := names[r.Name][i]
			if !ok {
				want = fmt.Sprintf("%#x", 1<<i)
			}
			if got := r.Format(1 << i); got != want {
				t.Errorf("%s.Format(1<<%d) = %s, want %s", r.Name, i, got, want)
			}
		}
	}
}
