// Package sockpath makes names of Unix sockets that fit: an address has room for 107 bytes, and folders may be deeper.
package sockpath

import (
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// maxSunPath is the size of sun_path with its final zero (unix(7)).
const maxSunPath = 108

// Short is a name for the socket at path that fits into an address, for this process and until done is called: the
// path itself, or one through a descriptor of its folder.
func Short(path string) (short string, done func(), err error) {
	if len(path) < maxSunPath {
		return path, func() {}, nil
	}
	fd, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", nil, fmt.Errorf("opening %s: %w", filepath.Dir(path), err)
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", fd, filepath.Base(path)), func() { unix.Close(fd) }, nil
}
