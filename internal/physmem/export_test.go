package physmem

import "github.com/ring3dev/ring3/internal/ioctl"

// PhysOf is the physical address of a page, by what the source said.
func (m *Memory) PhysOf(b []byte) uint64 {
	at := ioctl.Address(b)
	for _, r := range m.runs {
		if base := ioctl.Address(r.block.Bytes); at >= base && at < base+uintptr(len(r.block.Bytes)) {
			return r.block.Phys[(at-base)/uintptr(pageSize)]
		}
	}
	return ^uint64(0)
}

// Frames is where the kernel says that the pages of b are.
func Frames(s Source, b []byte) ([]uint64, error) { return s.(*physical).frames(b) }
