package userns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// What the links in /dev lead through, in /dev itself: the folder of Plan.Old may be closed to other
// users than its own, whom real root may become inside.
const (
	devKernel = ".kernel" // the machine's /dev
	devOurs   = ".ring3"  // the tree's dev/
)

// dev puts the tree's dev/, unless it is empty, beside the machine's entries of /dev.
// Files are links: mounts of single files would not do. openpty(3) looks for pts beside the
// ptmx that it opened, and a file of ours that can be written needs a look-up for each open,
// or its writers would wait for each other. It comes last, since the tree and Plan.Old may
// be below /dev themselves (/dev/shm).
func (l *layer) dev() error {
	if l.plan.Tree == "" {
		return nil // a probe
	}
	from := filepath.Join(l.plan.Tree, "dev")
	ours, err := os.ReadDir(from)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(ours) == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	at := filepath.Join(l.plan.Old, "dev")
	if err := os.Mkdir(at, 0o755); err != nil {
		return err
	}
	if err := mount("ring3", at, "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "mode=755,size=1m"); err != nil {
		return fmt.Errorf("mounting a tmpfs for /dev: %w", err)
	}
	for name, source := range map[string]string{devKernel: "/dev", devOurs: from} {
		to := filepath.Join(at, name)
		if err := os.Mkdir(to, 0o755); err != nil {
			return err
		}
		if err := bind(source, to); err != nil {
			return err
		}
	}
	if err := fillDev(at, "."); err != nil {
		return fmt.Errorf("filling /dev: %w", err)
	}
	if err := mount(at, "/dev", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("moving a tmpfs to /dev: %w", err)
	}
	return nil
}

// fillDev makes the links of one directory, dir below the new /dev at top. A directory that
// both have is made, and filled in turn; but a file system of its own (pts, shm) has names that
// come and go, and the machine's is mounted as it is. (A terminal made inside calls itself
// /dev/.kernel/pts/N all the same, after the ptmx that it came from.)
func fillDev(top, dir string) error {
	done := make(map[string]bool)
	for _, layer := range []string{devOurs, devKernel} {
		ent, err := os.ReadDir(filepath.Join(top, layer, dir))
		if err != nil {
			return err
		}
		for _, e := range ent {
			path := filepath.Join(dir, e.Name())
			if done[e.Name()] || path == devKernel || path == devOurs { // of a shell in a shell
				continue
			}
			done[e.Name()] = true
			switch kind := kindOf(top, path); {
			case kind == ownSystem:
				if err = os.Mkdir(filepath.Join(top, path), 0o755); err == nil {
					err = bind(filepath.Join(top, devKernel, path), filepath.Join(top, path))
				}
			case layer == devOurs && kind == aDir && e.IsDir():
				err = os.Mkdir(filepath.Join(top, path), 0o755)
				if err == nil {
					err = fillDev(top, path)
				}
			default:
				err = linkDev(top, layer, path, e)
			}
			if err != nil && !gone(err) {
				return err
			}
		}
	}
	return nil
}

// linkDev makes the link for one entry. A link is copied, but for one of a shell around this one.
func linkDev(top, layer, path string, e fs.DirEntry) error {
	if e.Type()&fs.ModeSymlink != 0 {
		text, err := os.Readlink(filepath.Join(top, layer, path))
		if err != nil {
			return err
		}
		if !strings.Contains(text, devOurs+"/") && !strings.Contains(text, devKernel+"/") {
			return os.Symlink(text, filepath.Join(top, path))
		}
	}
	to, err := filepath.Rel(filepath.Dir(path), filepath.Join(layer, path))
	if err != nil {
		return err
	}
	return os.Symlink(to, filepath.Join(top, path))
}

// What the machine has at a path below /dev.
const (
	noDir = iota
	aDir
	ownSystem // a directory, mounted
)

func kindOf(top, path string) int {
	var st, above unix.Stat_t
	at := filepath.Join(top, devKernel, path)
	switch {
	case unix.Lstat(at, &st) != nil || unix.Lstat(filepath.Dir(at), &above) != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return noDir
	case st.Dev != above.Dev:
		return ownSystem
	}
	return aDir
}
