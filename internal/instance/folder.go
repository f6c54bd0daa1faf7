package instance

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// BaseEnv is the environment variable that names the base folder outright. ring3 shell
// sets it, because in its namespace the caller's uid may be another one.
const BaseEnv = "RING3_RUNTIME_DIR"

// Files of an instance's folder.
const (
	lockFile  = "lock"
	stateFile = "state.json"
	sockFile  = "sock"
	treeDir   = "tree"
	oldDir    = "old"
)

const (
	newPrefix = ".new-"
	maxName   = 32
)

// baseWait bounds the wait for the base's lock: longer than the slowest clean-up under it.
const baseWait = 20 * time.Second

// basePath is where the run folder is to be, whether it exists or not.
func basePath() (string, error) {
	if d := os.Getenv(BaseEnv); d != "" {
		if !filepath.IsAbs(d) {
			return "", fmt.Errorf("%s=%q is not an absolute path; set it to one or unset it", BaseEnv, d)
		}
		return filepath.Clean(d), nil
	}
	// The specification says to ignore a value that is not absolute.
	if d := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(d) {
		return filepath.Join(d, "ring3"), nil
	}
	t, err := filepath.Abs(os.TempDir())
	if err != nil {
		return "", fmt.Errorf("finding the run folder: %w", err)
	}
	return filepath.Join(t, fmt.Sprintf("ring3-%d", os.Geteuid())), nil
}

// Base returns the folder under which this user's instances are, checked. Where it does
// not exist yet, create makes it and otherwise the error wraps fs.ErrNotExist.
func Base(create bool) (string, error) {
	base, err := basePath()
	if err != nil {
		return "", err
	}
	if create {
		err := os.Mkdir(base, 0o700)
		switch {
		case errors.Is(err, fs.ErrExist):
		case err != nil:
			return "", fmt.Errorf("making the run folder: %w%s", err, remedy())
		}
	}
	if err := checkBase(base); err != nil {
		return "", err
	}
	// Mounts are listed by their real paths.
	parent, err := filepath.EvalSymlinks(filepath.Dir(base))
	if err != nil {
		return "", fmt.Errorf("finding the run folder: %w", err)
	}
	return filepath.Join(parent, filepath.Base(base)), nil
}

// checkBase looks at the folder itself, by descriptor, so that what was checked is not a
// link to something else.
func checkBase(base string) error {
	fd, err := unix.Open(base, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening the run folder %s: %w", base, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("checking the run folder %s: %w", base, err)
	}
	switch {
	case st.Mode&unix.S_IFMT == unix.S_IFLNK:
		return fmt.Errorf("run folder %s is a symbolic link, want a directory; remove it", base)
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return fmt.Errorf("run folder %s is not a directory; remove it", base)
	case st.Uid != uint32(os.Geteuid()):
		return fmt.Errorf("run folder %s belongs to uid %d, want %d%s", base, st.Uid, os.Geteuid(), remedy())
	case st.Mode&0o077 != 0:
		return fmt.Errorf("run folder %s has mode %04o, want 0700; look what is in it and remove it", base, st.Mode&0o7777)
	case st.Mode&0o700 != 0o700:
		return fmt.Errorf("run folder %s has mode %04o, want 0700; chmod 700 it", base, st.Mode&0o7777)
	}
	return nil
}

// remedy names the variable that led to a base that cannot be used.
func remedy() string {
	for _, v := range []string{BaseEnv, "XDG_RUNTIME_DIR", "TMPDIR"} {
		if d := os.Getenv(v); d != "" {
			return fmt.Sprintf("; %s is %s: unset it or let it name a folder of yours", v, d)
		}
	}
	return ""
}

// CheckName says what is wrong with a name for an instance: it is 1 to 32 letters,
// digits, dots, dashes and underscores, beginning with a letter or digit. Names of
// sockets (x.sock), and of the folders that belong to them (x.sock.d), are not for
// instances: a fabric's are in the same folder.
func CheckName(name string) error {
	if name == "" || len(name) > maxName {
		return fmt.Errorf("instance name %q has %d characters, want 1 to %d", name, len(name), maxName)
	}
	if strings.HasSuffix(name, ".sock") || strings.HasSuffix(name, ".sock.d") {
		return fmt.Errorf("instance name %q is what a socket is called, want another", name)
	}
	for i, c := range []byte(name) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case i > 0 && strings.IndexByte("._-", c) >= 0:
		default:
			return fmt.Errorf("instance name %q has %q at %d, want letters, digits and, not first, any of . _ -", name, c, i)
		}
	}
	return nil
}

// lockBase takes the lock under which folders are made and removed: flock on the base
// itself, so that no file stays behind. The caller closes the file to drop it.
func lockBase(base string) (*os.File, error) {
	f, err := os.OpenFile(base, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("locking the run folder: %w", err)
	}
	// It polls, because a blocking flock can neither be given up nor spares a thread.
	const most = 20 * time.Millisecond
	end := time.Now().Add(baseWait)
	for pause := time.Millisecond; ; pause = min(2*pause, most) {
		err := flock(f)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(end) {
			f.Close()
			return nil, fmt.Errorf("locking the run folder %s within %v: %w", base, baseWait, err)
		}
		time.Sleep(pause)
	}
}

// flock takes the whole-file lock on f unless somebody else has it.
func flock(f *os.File) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var op error
	if err := rc.Control(func(fd uintptr) { op = unix.Flock(int(fd), unix.LOCK_EX|unix.LOCK_NB) }); err != nil {
		return err
	}
	return op
}

// tryLock takes the exclusive lock on the whole of f unless somebody else has it.
func tryLock(f *os.File) (bool, error) {
	l := unix.Flock_t{Type: unix.F_WRLCK}
	err := fcntl(f, unix.F_OFD_SETLK, &l)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return false, nil
	}
	return err == nil, err
}

// locked tells whether somebody holds the lock on the file at path. A file that is not
// there is not locked.
func locked(path string) (bool, error) {
	// Asking for a write lock needs no write access, but asking through a descriptor
	// opened for reading only is EBADF on F_OFD_SETLK; GETLK takes either.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	l := unix.Flock_t{Type: unix.F_WRLCK}
	if err := fcntl(f, unix.F_OFD_GETLK, &l); err != nil {
		return false, err
	}
	return l.Type != unix.F_UNLCK, nil
}

// fcntl runs one lock operation without taking f out of the runtime poller.
func fcntl(f *os.File, cmd int, l *unix.Flock_t) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var op error
	if err := rc.Control(func(fd uintptr) { op = unix.FcntlFlock(fd, cmd, l) }); err != nil {
		return err
	}
	return op
}
