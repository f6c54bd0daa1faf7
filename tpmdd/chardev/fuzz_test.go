package chardev

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/tpmdd"
)

// FuzzFile has a program do anything, and holds what it sees against a simpler account of it. Writes are blocking: goroutines
// would make each run cover something else.
func FuzzFile(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7, 20, 40, 1, 9})
	f.Add([]byte{4, 4, 1, 130, 4, 5, 66})
	f.Fuzz(func(t *testing.T, ops []byte) {
		file := openTPM(t, echo, Options{})
		var left []byte // of the answer
		fresh := false
		for _, op := range ops {
			cmd := tpmdd.Command(tpmdd.TagNoSessions, uint32(op), ops...)
			if len(cmd) > tpmdd.MaxCommand {
				return
			}
			switch op & 3 {
			case 0, 1:
				want := error(nil)
				if len(left) > 0 && fresh {
					want = unix.EBUSY
				} else {
					left, fresh = cmd, true
				}
				wantWrite(t, file, cmd, 0, want)
			case 2:
				n := min(int(op>>2), len(left))
				wantRead(t, file, int(op>>2), left[:n], nil)
				if left, fresh = left[n:], false; n == 0 {
					left = nil
				}
			case 3:
				wantWrite(t, file, make([]byte, op>>6), 0, map[bool]error{true: unix.EBUSY, false: unix.EINVAL}[len(left) > 0 && fresh])
			}
		}
		if err := file.Close(); err != nil {
			t.Errorf("Close() = %v", err)
		}
	})
}
