package bench

import (
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// scratch is a folder for what a benchmark needs, such as the state of a TPM. A process that is killed leaves it behind, for the
// next benchmark of the same user to remove.
type scratch struct {
	path string
	lock *os.File // the folder, locked for as long as its process lives
}

const scratchPrefix = "ring3-bench-" // of no file that is made otherwise

// newScratch makes one, and removes those that nobody has any more.
func newScratch() (*scratch, error) {
	if old, err := filepath.Glob(filepath.Join(os.TempDir(), scratchPrefix+"*")); err == nil {
		for _, path := range old {
			removeStale(path)
		}
	}
	for {
		path, err := os.MkdirTemp("", scratchPrefix)
		if err != nil {
			return nil, err
		}
		// Another benchmark that starts just now may take it for one that is left over: then it is gone, or locked.
		f, ours, err := lockFolder(path)
		switch {
		case err == nil && ours:
			return &scratch{path, f}, nil
		case err == nil, errors.Is(err, os.ErrNotExist):
		default:
			return nil, errors.Join(err, os.RemoveAll(path))
		}
	}
}

// lockFolder locks a folder of this user's, and says whether nobody else has it and it still has its name.
func lockFolder(path string) (_ *os.File, ours bool, err error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, false, &os.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	var st, named unix.Stat_t
	err = unix.Fstat(fd, &st)
	if err == nil && int(st.Uid) == os.Geteuid() && unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) == nil {
		ours = unix.Lstat(path, &named) == nil && named.Dev == st.Dev && named.Ino == st.Ino
	}
	if !ours {
		f.Close()
		return nil, false, err
	}
	return f, true, nil
}

// removeStale removes a folder whose process is gone. What cannot be removed stays.
func removeStale(path string) {
	f, stale, err := lockFolder(path)
	if err != nil || !stale {
		return
	}
	_ = os.RemoveAll(path)
	f.Close()
}

// remove removes the folder; of none, nothing.
func (s *scratch) remove() error {
	if s == nil {
		return nil
	}
	defer s.lock.Close()
	return os.RemoveAll(s.path)
}
