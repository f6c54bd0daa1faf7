package instance

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/internal/mounts"
)

// ErrExists is wrapped by Create where a live instance has the name.
var ErrExists = errors.New("already running")

// Options are what Create is told.
type Options struct {
	Name    string       // "" for the lowest free r0, r1, ...
	Version string       // of the program, for ls
	Devices []string     // as given by the user, for ls
	Extra   []string     // further arguments, for ls
	Measure string       // the device that everything is measured into; "": none
	Log     *slog.Logger // nil discards
}

// Instance is this process's own entry in the run folder. Its methods are safe for
// concurrent use.
type Instance struct {
	name, base, dir string
	log             *slog.Logger
	lock            *os.File

	mu     sync.Mutex
	state  State    // guarded by mu
	watch  *watcher // guarded by mu; nil before StartWatcher
	closed bool     // guarded by mu
}

// maxAuto bounds the search for a free r0, r1, ...
const maxAuto = 1000

// Create enters this process into the run folder. The caller closes the Instance; when
// it cannot (SIGKILL), the watcher or the next Sweep removes what is left.
func Create(o Options) (*Instance, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Name != "" {
		if err := CheckName(o.Name); err != nil {
			return nil, err
		}
	}
	base, err := Base(true)
	if err != nil {
		return nil, err
	}
	self, err := procOf(os.Getpid(), "")
	if err != nil {
		return nil, err
	}
	in := &Instance{base: base, log: o.Log, state: State{
		Format: format, ID: rand.Text(), Version: o.Version, Proc: self, Where: thisHere(),
		Since: time.Now().Round(0), Devices: o.Devices, Extra: o.Extra, Measure: o.Measure,
	}}
	in.state = in.state.clone()

	bl, err := lockBase(base)
	if err != nil {
		return nil, err
	}
	defer bl.Close()
	if err := in.enter(o.Name); err != nil {
		return nil, err
	}
	return in, nil
}

// enter prepares the folder and gives it its name. The base is locked.
func (in *Instance) enter(name string) error {
	tmp, err := os.MkdirTemp(in.base, fmt.Sprintf("%s%d-", newPrefix, os.Getpid()))
	if err != nil {
		return fmt.Errorf("making the run folder: %w", err)
	}
	if err := in.fill(tmp); err != nil {
		_ = removeFolder(tmp)
		return err
	}
	if err := in.claim(tmp, name); err != nil {
		in.lock.Close()
		_ = removeFolder(tmp)
		return err
	}
	return nil
}

// fill makes what belongs in the folder, and takes the lock.
func (in *Instance) fill(tmp string) error {
	for _, d := range []string{treeDir, oldDir} {
		if err := os.Mkdir(filepath.Join(tmp, d), 0o700); err != nil {
			return fmt.Errorf("making the run folder: %w", err)
		}
	}
	f, err := os.OpenFile(filepath.Join(tmp, lockFile), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("making the run folder: %w", err)
	}
	ok, err := tryLock(f)
	if err == nil && !ok {
		err = unix.EAGAIN
	}
	if err == nil {
		err = writeState(tmp, in.state)
	}
	if err != nil {
		f.Close()
		return fmt.Errorf("making the run folder: %w", err)
	}
	in.lock = f
	return nil
}

// claim renames the folder to name, or to the first free automatic one.
func (in *Instance) claim(tmp, name string) error {
	for n := range maxAuto {
		try := name
		if try == "" {
			try = fmt.Sprintf("r%d", n)
		}
		dir := filepath.Join(in.base, try)
		err := unix.Renameat2(unix.AT_FDCWD, tmp, unix.AT_FDCWD, dir, unix.RENAME_NOREPLACE)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
			// A file system without NOREPLACE: a plain rename replaces only an empty
			// directory, which nobody lives in.
			err = os.Rename(tmp, dir)
		}
		switch {
		case err == nil:
			in.name, in.dir = try, dir
			return nil
		case errors.Is(err, fs.ErrExist), errors.Is(err, unix.ENOTEMPTY):
			if name == "" {
				continue
			}
			return in.taken(dir, name)
		default:
			return fmt.Errorf("making the run folder %s: %w", dir, err)
		}
	}
	return fmt.Errorf("making the run folder: r0 to r%d are all taken in %s: %w", maxAuto-1, in.base, ErrExists)
}

// taken says who has the name.
func (in *Instance) taken(dir, name string) error {
	if live, _ := locked(filepath.Join(dir, lockFile)); live {
		if s, err := readState(dir); err == nil {
			return fmt.Errorf("instance %s is %w (pid %d); take another name", name, ErrExists, s.Pid)
		}
		return fmt.Errorf("instance %s is %w; take another name", name, ErrExists)
	}
	return fmt.Errorf("instance %s: %s is left of one that died and could not be cleaned up: %w", name, dir, ErrExists)
}

// Name is the instance's name.
func (in *Instance) Name() string { return in.name }

// Dir is its folder.
func (in *Instance) Dir() string { return in.dir }

// Tree is the default mount point, an empty directory.
func (in *Instance) Tree() string { return filepath.Join(in.dir, treeDir) }

// Sock is the path of the control socket; see Listen.
func (in *Instance) Sock() string { return filepath.Join(in.dir, sockFile) }

// Info is the entry as others see it now.
func (in *Instance) Info() Info {
	in.mu.Lock()
	defer in.mu.Unlock()
	return Info{Name: in.name, Dir: in.dir, State: in.state.clone()}
}

// Update changes the state by edit and writes it. edit must not touch what identifies
// the instance, and uses AddChild and AddMount, not this, for what must be cleaned up.
func (in *Instance) Update(edit func(*State)) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.updateLocked(edit)
}

func (in *Instance) updateLocked(edit func(*State)) error {
	if in.closed {
		return fmt.Errorf("instance %s: writing the state: %w", in.name, fs.ErrClosed)
	}
	s := in.state.clone()
	edit(&s)
	s.Format, s.ID, s.Proc, s.Where = in.state.Format, in.state.ID, in.state.Proc, in.state.Where
	in.state = s
	if err := writeState(in.dir, s); err != nil {
		return fmt.Errorf("instance %s: %w", in.name, err)
	}
	return nil
}

// AddChild records a process (QEMU) that must not outlive this one. Call it right after
// starting it. The watcher knows it even where writing the state fails.
func (in *Instance) AddChild(pid int, what string) error {
	p, err := procOf(pid, what)
	if err != nil {
		return fmt.Errorf("instance %s: %w", in.name, err)
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	in.watch.tell(msgChild(p))
	return in.updateLocked(func(s *State) { s.Children = append(s.Children, p) })
}

// RemoveChild forgets a process that has ended.
func (in *Instance) RemoveChild(pid int) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.watch.tell(msgNoChild(pid))
	return in.updateLocked(func(s *State) { s.Children = dropChild(s.Children, pid) })
}

// AddMount records that the tree now stands at dir. Call it right after mounting: it
// notes which mount it is, so that a later one at the same place is never taken for it.
func (in *Instance) AddMount(dir string) error {
	dir, err := realMount(dir)
	if err != nil {
		return fmt.Errorf("instance %s: mount point: %w", in.name, err)
	}
	e, ok := mounts.At(dir)
	if !ok || !e.IsFuse() {
		return fmt.Errorf("instance %s: no FUSE mount at %s: %w", in.name, dir, unix.EINVAL)
	}
	m := Mount{Dir: dir, Dev: e.Dev}
	in.mu.Lock()
	defer in.mu.Unlock()
	in.watch.tell(msgMount(m))
	return in.updateLocked(func(s *State) {
		s.Mounts = append(dropMount(s.Mounts, dir), m)
		s.Mount = dir
	})
}

// RemoveMount forgets a mount that was undone.
func (in *Instance) RemoveMount(dir string) error {
	dir, err := realMount(dir)
	if err != nil {
		return fmt.Errorf("instance %s: mount point: %w", in.name, err)
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	in.watch.tell(msgNoMount(dir))
	return in.updateLocked(func(s *State) {
		s.Mounts = dropMount(s.Mounts, dir)
		if s.Mount == dir {
			s.Mount = ""
		}
	})
}

// AddDir records a directory that was made for this instance elsewhere (a mount point that
// was not there). Close, the watcher or Sweep removes it where it is empty by then.
func (in *Instance) AddDir(dir string) error {
	dir, err := realMount(dir)
	if err != nil {
		return fmt.Errorf("instance %s: directory: %w", in.name, err)
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	in.watch.tell(msgDir(dir))
	return in.updateLocked(func(s *State) { s.Dirs = append(s.Dirs, dir) })
}

// realMount is dir as mountinfo spells it. Links are followed in the parent only: the
// mount itself is not looked at, since it may be dead.
func realMount(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if abs == "/" {
		return "", fmt.Errorf("/ cannot be one: %w", unix.EINVAL)
	}
	parent, err := filepath.EvalSymlinks(filepath.Dir(abs))
	if err != nil {
		return "", err
	}
	return filepath.Join(parent, filepath.Base(abs)), nil
}

// Close removes everything there is of the instance: children and mounts still recorded,
// then the folder, then the lock. It is idempotent. Orderly callers have ended both
// before, so that only the folder is left to do.
func (in *Instance) Close() error {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.closed {
		return nil
	}
	in.closed = true
	var errs []error
	errs = append(errs, cleanUp(in.dir, in.state))
	in.watch.finish()

	bl, err := lockBase(in.base)
	if err == nil {
		errs = append(errs, removeFolder(in.dir))
		bl.Close()
	}
	errs = append(errs, err, in.lock.Close())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("instance %s: closing: %w", in.name, err)
	}
	return nil
}

// cleanUp ends what an instance had outside its folder.
func cleanUp(dir string, s State) error {
	var errs []error
	for _, p := range s.Children {
		errs = append(errs, p.kill())
	}
	errs = append(errs, unmountAll(dir, s.Mounts))
	for _, d := range s.Dirs {
		// rmdir takes only an empty directory, and only one where nothing is mounted. One
		// that somebody uses by now is theirs.
		switch err := unix.Rmdir(d); {
		case err == nil, errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTEMPTY), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.EBUSY):
		default:
			errs = append(errs, fmt.Errorf("removing %s: %w", d, err))
		}
	}
	return errors.Join(errs...)
}

func dropChild(ps []Proc, pid int) []Proc {
	var out []Proc
	for _, p := range ps {
		if p.Pid != pid {
			out = append(out, p)
		}
	}
	return out
}

func dropMount(ms []Mount, dir string) []Mount {
	var out []Mount
	for _, m := range ms {
		if m.Dir != dir {
			out = append(out, m)
		}
	}
	return out
}
