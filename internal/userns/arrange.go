package userns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// arrange lays a plan's mounts. The process is alone in its mount namespace.
func arrange(p Plan) error {
	for _, path := range append([]string{p.Tree, p.Old}, append(append([]string(nil), p.Over...), p.Add...)...) {
		if path != "" && (!filepath.IsAbs(path) || filepath.Clean(path) != path) {
			return fmt.Errorf("path %q is not absolute and clean", path)
		}
	}
	// What the machine mounts later still comes in, nothing of ours goes out.
	if err := mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("making the mounts private: %w", err)
	}
	if err := keepOld(p.Old); err != nil {
		return err
	}
	if err := layPrograms(p); err != nil {
		return err
	}
	if err := layFiles(p); err != nil {
		return err
	}
	l := layer{plan: p, missing: make(map[string]map[string]string)}
	for _, dir := range p.Add {
		if err := l.add(dir, filepath.Join(p.Tree, dir)); err != nil {
			return err
		}
	}
	for _, path := range p.Over {
		if err := l.notMissing(path); err != nil {
			return err
		}
	}
	for dir, names := range l.missing {
		if err := l.graft(dir, names); err != nil {
			return err
		}
	}
	for _, path := range p.Over {
		if err := l.over(path); err != nil {
			return err
		}
	}
	return l.dev()
}

// keepOld makes the kernel's own trees reachable below old.
func keepOld(old string) error {
	if err := mount("ring3", old, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=755,size=1m"); err != nil {
		return fmt.Errorf("mounting a tmpfs at %s: %w", old, err)
	}
	for _, top := range []string{"/proc", "/sys"} {
		if err := os.Mkdir(old+top, 0o755); err != nil {
			return err
		}
		if err := bind(top, old+top); err != nil {
			return err
		}
	}
	return os.Mkdir(old+"/links", 0o755)
}

// mount is mount(2), again when one of the runtime's own signals interrupts it while a
// path is looked up in a tree that another process serves.
func mount(source, target, fstype string, flags uintptr, data string) error {
	return again(func() error { return unix.Mount(source, target, fstype, flags, data) })
}

// again calls f until it is not interrupted.
func again(f func() error) error {
	for {
		if err := f(); !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

// bind makes from, with all that is mounted below, also stand at to.
func bind(from, to string) error {
	if err := mount(from, to, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("binding %s to %s: %w", from, to, err)
	}
	return nil
}

// layer is one arrangement being made.
type layer struct {
	plan    Plan
	missing map[string]map[string]string // kernel directory: name: what to show there
	links   int
}

// notMissing prepares a path that the kernel does not have at all: its first missing part
// joins the last directory that exists.
func (l *layer) notMissing(path string) error {
	if _, err := os.Lstat(l.served(path)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	_, err := os.Lstat(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	dir, name := filepath.Dir(path), filepath.Base(path)
	for ; dir != "/"; dir, name = filepath.Dir(dir), filepath.Base(dir) {
		if _, err := os.Lstat(dir); err == nil {
			break
		}
	}
	if !strings.HasPrefix(dir, "/sys") {
		return fmt.Errorf("adding %s: only below /sys can names be added, and %s has none of that name", path, dir)
	}
	if l.missing[dir] == nil {
		l.missing[dir] = make(map[string]string)
	}
	l.missing[dir][name] = l.served(filepath.Join(dir, name))
	return nil
}

// served is where the tree has what belongs at path.
func (l *layer) served(path string) string { return filepath.Join(l.plan.Tree, ViewName, path) }

// over replaces the kernel's entry at path. An entry that ns/ does not have is left alone.
func (l *layer) over(path string) error {
	from := l.served(path)
	// What came with a graft is the tree's own, with all that is in it.
	if l.isOurs(filepath.Dir(path)) {
		return nil
	}
	src, err := os.Lstat(from)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	dst, err := os.Lstat(path)
	switch {
	case err != nil:
		return err
	case os.SameFile(src, dst): // came with a graft itself
		return nil
	case dst.Mode()&fs.ModeSymlink != 0:
		// The link leads to a mount of its own, not through the tree: a path through the
		// tree asks its server for every part.
		at := fmt.Sprintf("%s/links/%d.to", l.plan.Old, l.links)
		if err := os.Mkdir(at, 0o755); err != nil {
			return err
		}
		if err := bind(from, at); err != nil {
			return err
		}
		remember(at)
		return l.relink(path, at)
	case src.IsDir() != dst.IsDir():
		return fmt.Errorf("laying %s over %s: one is a directory, the other is not", from, path)
	}
	if err := bind(from, path); err != nil {
		return err
	}
	remember(path)
	return nil
}

// isOurs says whether a directory is in the instance's tree, and not the kernel's.
func (l *layer) isOurs(dir string) bool {
	var at, tree unix.Stat_t
	err := again(func() error { return unix.Stat(dir, &at) })
	if err == nil {
		err = again(func() error { return unix.Stat(l.plan.Tree, &tree) })
	}
	return err == nil && at.Dev == tree.Dev
}

// remember has the kernel look up every link of a directory, as its own entries are in a merged one, so that it need not
// ask for them while the tree's server is stopped. Nothing depends on it otherwise.
func remember(dir string) {
	f, err := os.Open(dir)
	if err != nil {
		return
	}
	defer f.Close()
	entries, _ := f.ReadDir(-1)
	for _, e := range entries {
		if e.Type()&fs.ModeSymlink != 0 {
			_, _ = os.Readlink(filepath.Join(dir, e.Name()))
		}
	}
}

// relink mounts a link to target over the link at path. Mounting by name would follow path.
func (l *layer) relink(path, target string) error {
	link := fmt.Sprintf("%s/links/%d", l.plan.Old, l.links)
	l.links++
	if err := os.Symlink(target, link); err != nil {
		return err
	}
	var fd int
	err := again(func() (err error) {
		fd, err = unix.OpenTree(unix.AT_FDCWD, link, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
		return err
	})
	if err != nil {
		return fmt.Errorf("laying a link over %s: open_tree: %w", path, err)
	}
	defer unix.Close(fd)
	err = again(func() error {
		return unix.MoveMount(fd, "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH)
	})
	if err != nil {
		return fmt.Errorf("laying a link over %s: move_mount: %w", path, err)
	}
	return nil
}

// add grafts the entries of from into dir; where both have a directory, into that one.
func (l *layer) add(dir, from string) error {
	ours, err := os.ReadDir(from)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	names := make(map[string]string)
	var common []string
	for _, e := range ours {
		at := filepath.Join(dir, e.Name())
		if slices.Contains(l.plan.Over, at) {
			continue // as a whole
		}
		if fi, err := os.Lstat(at); err == nil && fi.IsDir() && e.IsDir() {
			common = append(common, e.Name())
			continue
		}
		names[e.Name()] = filepath.Join(from, e.Name())
	}
	if err := l.graft(dir, names); err != nil {
		return err
	}
	for _, name := range common {
		if err := l.add(filepath.Join(dir, name), filepath.Join(from, name)); err != nil {
			return err
		}
	}
	return nil
}

// graft puts names, each with what it shows, into a directory of the kernel's that takes no
// new names.
func (l *layer) graft(dir string, names map[string]string) error {
	if len(names) == 0 {
		return nil
	}
	old := l.plan.Old + dir
	ent, err := os.ReadDir(old)
	if err != nil {
		return fmt.Errorf("grafting into %s: %w", dir, err)
	}
	if err := mount("ring3", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=755,size=1m"); err != nil {
		return fmt.Errorf("grafting into %s: mounting a tmpfs: %w", dir, err)
	}
	for _, e := range ent {
		if names[e.Name()] != "" {
			continue
		}
		if err := transplant(filepath.Join(old, e.Name()), filepath.Join(dir, e.Name())); err != nil && !gone(err) {
			return fmt.Errorf("grafting into %s: %w", dir, err)
		}
	}
	for name, from := range names {
		if err := transplant(from, filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("grafting into %s: %w", dir, err)
		}
	}
	if err := mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("grafting into %s: making it read-only: %w", dir, err)
	}
	return nil
}

// gone says whether an error means that an entry disappeared while we worked.
func gone(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) }

// transplant makes from stand at to, in a tmpfs: a link as a copy, the rest bound.
func transplant(from, to string) error {
	fi, err := os.Lstat(from)
	if err != nil {
		return err
	}
	switch {
	case fi.Mode()&fs.ModeSymlink != 0:
		text, err := os.Readlink(from)
		if err != nil {
			return err
		}
		return os.Symlink(text, to)
	case fi.IsDir():
		err = os.Mkdir(to, 0o755)
	default:
		err = os.WriteFile(to, nil, 0o644)
	}
	if err != nil {
		return err
	}
	return bind(from, to)
}
