package instance

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"
)

// ErrNone is what Pick answers where nothing runs.
var ErrNone = errors.New("no ring3 is running; start one with 'ring3 up'")

// ErrNotFound is wrapped where no live instance has the wanted name.
var ErrNotFound = errors.New("is not running")

// AmbiguousError is what Pick answers where several run and none was named: a usage
// error, exit status 2.
type AmbiguousError struct{ Running []Info }

// Error lists what runs, in one line.
func (e *AmbiguousError) Error() string {
	return fmt.Sprintf("%d instances are running, say which with -i: %s", len(e.Running), names(e.Running))
}

func names(list []Info) string {
	var s []string
	for _, i := range list {
		s = append(s, i.Name)
	}
	return strings.Join(s, ", ")
}

// List finds the live instances of this user, r2 before r10.
func List() ([]Info, error) {
	base, err := Base(false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	folders, err := folders(base)
	if err != nil {
		return nil, err
	}
	var out []Info
	for _, name := range folders {
		dir := filepath.Join(base, name)
		if live, err := locked(filepath.Join(dir, lockFile)); err != nil || !live || CheckName(name) != nil {
			continue
		}
		s, err := readState(dir)
		if err != nil {
			continue // being removed just now
		}
		out = append(out, Info{Name: name, Dir: dir, State: s})
	}
	sort.Slice(out, func(i, j int) bool {
		a, b := out[i].Name, out[j].Name
		if len(a) != len(b) && a[0] == 'r' && b[0] == 'r' {
			return len(a) < len(b)
		}
		return a < b
	})
	return out, nil
}

// folders lists the base's folders, prepared ones included.
func folders(base string) ([]string, error) {
	ents, err := os.ReadDir(base)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the run folder: %w", err)
	}
	var out []string
	for _, e := range ents {
		n := e.Name()
		if e.IsDir() && (CheckName(n) == nil || strings.HasPrefix(n, newPrefix)) {
			out = append(out, n)
		}
	}
	return out, nil
}

// Pick finds the instance a command means: the named one, or without a name the only one
// that runs. The errors are ErrNone, an *AmbiguousError, or one that wraps ErrNotFound.
func Pick(name string) (Info, error) {
	list, err := List()
	if err != nil {
		return Info{}, err
	}
	if name != "" {
		for _, i := range list {
			if i.Name == name {
				return i, nil
			}
		}
		if len(list) == 0 {
			return Info{}, fmt.Errorf("instance %q %w, nor is any other; start one with 'ring3 up -i %s'", name, ErrNotFound, name)
		}
		return Info{}, fmt.Errorf("instance %q %w; these are: %s", name, ErrNotFound, names(list))
	}
	switch len(list) {
	case 0:
		return Info{}, ErrNone
	case 1:
		return list[0], nil
	}
	return Info{}, &AmbiguousError{Running: list}
}

// Sweep removes what instances left that were killed together with their watchers. Every
// ring3 command begins with it; where there is nothing to do it costs a directory
// listing and takes no lock. What it removes it logs at info, once. A returned error
// means that something could not be removed; the command may go on.
func Sweep(log *slog.Logger) error {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	base, err := Base(false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	stale, err := staleFolders(base)
	if err != nil || len(stale) == 0 {
		return err
	}
	bl, err := lockBase(base)
	if err != nil {
		return err
	}
	defer bl.Close()
	// Look again: another command may have done the work while we waited.
	if stale, err = staleFolders(base); err != nil {
		return err
	}
	var errs []error
	for _, name := range stale {
		errs = append(errs, sweepOne(base, name, State{}, log))
	}
	return errors.Join(errs...)
}

// staleFolders lists the folders whose lock nobody holds.
func staleFolders(base string) ([]string, error) {
	all, err := folders(base)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, name := range all {
		if live, err := locked(filepath.Join(base, name, lockFile)); err == nil && !live {
			out = append(out, name)
		}
	}
	return out, nil
}

// sweepOne removes one folder and what its state lists; more is what the caller knows
// besides. The base is locked and the folder is stale.
func sweepOne(base, name string, more State, log *slog.Logger) error {
	dir := filepath.Join(base, name)
	s, err := readState(dir)
	if err != nil {
		s = State{} // torn: its folder and the mounts below it still go
	}
	if s.Where != thisHere() {
		// Another boot or pid namespace: its pids are strangers', its mounts gone or
		// somebody else's.
		s.Children, s.Mounts, s.Dirs = nil, nil, nil
	}
	s.Children = append(s.Children, more.Children...)
	s.Mounts = append(s.Mounts, more.Mounts...)
	s.Dirs = append(s.Dirs, more.Dirs...)
	if err := cleanUp(dir, s); err != nil {
		return fmt.Errorf("cleaning up after instance %s: %w", name, err)
	}
	if err := removeFolder(dir); err != nil {
		return fmt.Errorf("cleaning up after instance %s: %w", name, err)
	}
	if s.Pid != 0 {
		log.Info("cleaned up after an instance that was killed", "instance", name, "pid", s.Pid,
			"since", s.Since.Format(time.DateTime))
	}
	return nil
}
