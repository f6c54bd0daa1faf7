package vfiouser

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
)

// The file systems of a memfd of ordinary pages, and of one of huge pages.
const (
	tmpfsMagic     = 0x01021994
	hugetlbfsMagic = 0x958458f6
)

// NewMemory makes memory that a client may share with a server: a file that cannot change its size, and takes memory only where it was touched.
func NewMemory(size int64) (*os.File, error) { return newMemory("ring3-dma", size) }

// newMemory makes a memfd of a size that stays: whoever is handed it cannot pull the pages away
// from under an access.
func newMemory(name string, size int64) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("making memory: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if err := f.Truncate(size); err != nil {
		f.Close()
		return nil, fmt.Errorf("making %d bytes of memory: %w", size, err)
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL); err != nil {
		f.Close()
		return nil, fmt.Errorf("sealing memory: %w", err)
	}
	return f, nil
}

// mapFile maps n bytes of a file that a peer passed. stays false says that the file is none that
// can be trusted to stay: it is not sealed against shrinking, or of huge pages, which may run out
// at a touch. It fails with ErrProtocol where the file is shorter than it is said to be.
func mapFile(f *os.File, off int64, n uint64) (b []byte, stays bool, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, false, fmt.Errorf("looking at a passed descriptor: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, false, nil
	}
	if off < 0 || st.Size < off || uint64(st.Size-off) < n {
		return nil, false, fmt.Errorf("a file of %d bytes is said to have %d from %#x on: %w", st.Size, n, uint64(off), bus.ErrProtocol)
	}
	if !steady(int(f.Fd())) || int(n) < 0 || uint64(int(n)) != n {
		return nil, false, nil
	}
	b, err = unix.Mmap(int(f.Fd()), off, int(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, false, nil // it may be open for reading only
	}
	return b, true, nil
}

// isHuge says whether a file is of huge pages. Such a file can be mapped and not be written to, and a page that
// is not there any more can run out at a touch.
func isHuge(fd int) bool {
	var fs unix.Statfs_t
	return unix.Fstatfs(fd, &fs) == nil && uint32(fs.Type) == hugetlbfsMagic
}

// steady says whether a file's pages stay: it is a sealed memfd of ordinary pages.
func steady(fd int) bool {
	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil || seals&unix.F_SEAL_SHRINK == 0 {
		return false
	}
	var fs unix.Statfs_t
	return unix.Fstatfs(fd, &fs) == nil && uint32(fs.Type) == tmpfsMagic
}

// isEventfd says whether a descriptor is one: of anything else a write may block, or do harm.
func isEventfd(fd int) bool {
	to, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if errors.Is(err, os.ErrNotExist) {
		// Of a process that sees no /proc, and has nothing that could be harmed: of no file system is as much as it can tell.
		var st unix.Stat_t
		return unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == 0
	}
	return err == nil && to == "anon_inode:[eventfd]"
}
