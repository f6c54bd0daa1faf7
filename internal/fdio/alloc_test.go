//go:build !race

package fdio

import "testing"

// Under the race detector a slice that a system call writes is allocated.
func TestNoAllocation(t *testing.T) {
	f := memory(t, 64)
	s := NewSpace(int(f.Fd()), base, 64)
	if n := testing.AllocsPerRun(100, func() { s.Write32(0, s.Read32(4)) }); n != 0 {
		t.Errorf("%v allocations a read and write, want none", n)
	}
}
