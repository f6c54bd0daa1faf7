package fabricd

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/internal/sockpath"
)

// Names in the folder beside the socket. An endpoint's socket has its name, which begins with no dot.
const (
	lockName   = ".lock"
	windowsDir = ".windows"
	newSocket  = ".new"
)

// lockWait is how long a daemon that runs may be one that is just being killed.
const lockWait = 300 * time.Millisecond

// folder is the daemon's folder, PATH.d, which one process has at a time: it holds a lock in it.
type folder struct {
	path string
	lock *os.File
}

// takeFolder makes the folder for the socket at path, or takes over what a daemon that died left.
func takeFolder(path string) (*folder, error) {
	f := &folder{path: path + ".d"}
	var err error
	for begin := time.Now(); f.lock == nil; {
		if err := ownFolder(f.path); err != nil {
			return nil, fmt.Errorf("fabric at %s: %w", path, err)
		}
		if f.lock, err = f.tryLock(); err == nil || errors.Is(err, fs.ErrNotExist) {
			continue // at once: its owner ended just now, and removed the folder
		}
		if !errors.Is(err, bus.ErrBusy) {
			return nil, fmt.Errorf("fabric at %s: %w", path, err)
		}
		if time.Since(begin) > lockWait {
			return nil, fmt.Errorf("another fabric runs at %s%w", path, err)
		}
		time.Sleep(lockWait / 20)
	}
	pid := strconv.Itoa(os.Getpid())
	if _, err := f.lock.WriteAt([]byte(pid+strings.Repeat(" ", 19-len(pid))+"\n"), 0); err != nil {
		f.lock.Close()
		return nil, fmt.Errorf("fabric at %s: writing %s: %w", path, f.lock.Name(), err)
	}
	if err := f.sweep(); err != nil {
		f.lock.Close()
		return nil, fmt.Errorf("fabric at %s: %w", path, err)
	}
	return f, nil
}

// tryLock locks the folder: fs.ErrNotExist where it went meanwhile, bus.ErrBusy where somebody has it.
func (f *folder) tryLock() (*os.File, error) {
	lock, err := os.OpenFile(filepath.Join(f.path, lockName), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		who := make([]byte, 20)
		n, _ := lock.ReadAt(who, 0)
		lock.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf(" (process %s): %w", strings.TrimSpace(string(who[:n])), bus.ErrBusy)
		}
		return nil, fmt.Errorf("locking %s: %w", lock.Name(), err)
	}
	// Locked; but its owner may have removed the file before that, and another may be there now.
	mine, err1 := lock.Stat()
	there, err2 := os.Lstat(lock.Name())
	if err1 != nil || err2 != nil || !os.SameFile(mine, there) {
		lock.Close()
		return nil, fs.ErrNotExist
	}
	return lock, nil
}

// ownFolder makes a folder of this user's alone, or finds it.
func ownFolder(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	st, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	var s unix.Stat_t
	if err := unix.Lstat(dir, &s); err != nil {
		return fmt.Errorf("looking at %s: %w", dir, err)
	}
	if !st.IsDir() || s.Uid != uint32(os.Geteuid()) {
		return fmt.Errorf("%s is there, and is not a folder of this user's", dir)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("%s is open to others (mode %#o), wanted 0700", dir, st.Mode().Perm())
	}
	return nil
}

// sweep removes what a daemon that died left in the folder: sockets, and nothing else but them.
func (f *folder) sweep() error {
	ents, err := os.ReadDir(f.path)
	if err != nil {
		return fmt.Errorf("looking for what an earlier fabric left: %w", err)
	}
	for _, e := range ents {
		if e.Type() == fs.ModeSocket {
			if err := os.Remove(filepath.Join(f.path, e.Name())); err != nil {
				return fmt.Errorf("removing what an earlier fabric left: %w", err)
			}
		}
	}
	return nil
}

// close removes the folder, unless there is something in it that is not the daemon's.
func (f *folder) close() error {
	err := f.sweep()
	if rm := os.Remove(filepath.Join(f.path, lockName)); rm != nil {
		err = errors.Join(err, rm)
	}
	if rm := os.Remove(f.path); rm != nil && !errors.Is(rm, unix.ENOTEMPTY) {
		err = errors.Join(err, rm)
	}
	return errors.Join(err, f.lock.Close())
}

// listen opens a socket of mode 0600 at path. It is made under another name in the folder, so that nobody meets it with the mode that the
// process's mask gives, and then moved; it replaces a socket at which nobody answers, and nothing else.
func (f *folder) listen(path string) (*net.UnixListener, error) {
	if err := vacant(path); err != nil {
		return nil, err
	}
	tmp := filepath.Join(f.path, newSocket)
	short, done, err := sockpath.Short(tmp)
	if err != nil {
		return nil, fmt.Errorf("opening the socket %s: %w", path, err)
	}
	defer done()
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: short, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("opening the socket %s: %w", path, err)
	}
	ln.SetUnlinkOnClose(false) // by its real name, later
	if err = os.Chmod(tmp, 0o600); err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		ln.Close()
		return nil, fmt.Errorf("opening the socket %s: %w", path, errors.Join(err, os.Remove(tmp)))
	}
	return ln, nil
}

// vacant tells whether a socket may be made at path: nothing is there, or a socket at which nobody answers.
func vacant(path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s is there, and is not a socket: %w", path, fs.ErrExist)
	}
	short, done, err := sockpath.Short(path)
	if err != nil {
		return err
	}
	defer done()
	c, err := net.DialTimeout("unix", short, time.Second)
	if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s is there, and whether it is in use is unknown: %w", path, err)
	}
	c.Close()
	return fmt.Errorf("something else answers at %s: %w", path, bus.ErrBusy)
}
