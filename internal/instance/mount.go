package instance

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Mount is one mount of an instance.
type Mount struct {
	Dir string `json:"dir"` // absolute, without links
	Dev string `json:"dev"` // device number as in mountinfo, "0:53"; "" if it was not seen
}

// mountEntry is a line of /proc/self/mountinfo, as far as it matters here.
type mountEntry struct {
	dir, dev, fstype string
}

// mounts lists the mounts of this process's namespace, oldest first.
func mounts() ([]mountEntry, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("listing mounts: %w", err)
	}
	return parseMountinfo(string(b)), nil
}

// parseMountinfo takes mountinfo apart: id, parent, major:minor, root, mount point,
// options, optional fields up to a dash, type. Lines that are not so are left out.
func parseMountinfo(s string) []mountEntry {
	var out []mountEntry
	for line := range strings.Lines(s) {
		left, right, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " - ")
		f := strings.Fields(left)
		t := strings.Fields(right)
		if !ok || len(f) < 6 || len(t) < 1 {
			continue
		}
		out = append(out, mountEntry{dir: unescape(f[4]), dev: f[2], fstype: t[0]})
	}
	return out
}

// unescape undoes the kernel's octal escapes (\040 and the like).
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && isOctal(s[i+1]) && isOctal(s[i+2]) && isOctal(s[i+3]) {
			b.WriteByte((s[i+1]-'0')<<6 | (s[i+2]-'0')<<3 | (s[i+3] - '0'))
			i += 3
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func isOctal(c byte) bool { return c >= '0' && c <= '7' }

func (e mountEntry) isFuse() bool { return e.fstype == "fuse" || strings.HasPrefix(e.fstype, "fuse.") }

// below tells whether path is dir or under it.
func below(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// mountAt returns the topmost mount at dir.
func mountAt(dir string) (mountEntry, bool) {
	list, err := mounts()
	if err != nil {
		return mountEntry{}, false
	}
	for i := len(list) - 1; i >= 0; i-- {
		if list[i].dir == dir {
			return list[i], true
		}
	}
	return mountEntry{}, false
}

// unmountAll detaches what is left of the mounts ms, and every FUSE mount below folder.
// Where a mount's point now belongs to another mount (another device number) it is left
// alone.
func unmountAll(folder string, ms []Mount) error {
	list, err := mounts()
	if err != nil {
		return err
	}
	var errs []error
	for i := len(list) - 1; i >= 0; i-- { // latest first, so those on top go first
		e := list[i]
		ours := below(e.dir, folder) && e.isFuse()
		for _, m := range ms {
			ours = ours || (e.dir == m.Dir && e.isFuse() && m.Dev == e.dev)
		}
		if ours {
			errs = append(errs, unmount(e.dir))
		}
	}
	return errors.Join(errs...)
}

// unmountWait bounds fusermount3, which asks nobody and should be instant.
const unmountWait = 5 * time.Second

// unmount detaches one FUSE mount, without looking at what it shows.
func unmount(dir string) error {
	err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	switch {
	case err == nil, errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.EINVAL): // no mount any more, or one that a namespace locks
		if _, still := mountAt(dir); !still {
			return nil
		}
		return fmt.Errorf("unmounting %s: %w", dir, err)
	case !errors.Is(err, unix.EPERM):
		return fmt.Errorf("unmounting %s: %w", dir, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), unmountWait)
	defer cancel()
	for _, tool := range []string{"fusermount3", "fusermount"} {
		path, lookErr := exec.LookPath(tool)
		if lookErr != nil {
			continue
		}
		cmd := exec.CommandContext(ctx, path, "-u", "-z", "--", dir)
		cmd.Dir = "/"
		out, runErr := cmd.CombinedOutput()
		if _, still := mountAt(dir); runErr == nil || !still {
			return nil
		}
		msg, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		return fmt.Errorf("unmounting %s: %s: %w: %s", dir, tool, runErr, msg)
	}
	return fmt.Errorf("unmounting %s: %w, and no fusermount3 to do it; install fuse3", dir, err)
}

// removeFolder deletes a folder of the base unless something is still mounted in it. A
// name that is a mount point in another namespace only goes away there too.
func removeFolder(dir string) error {
	list, err := mounts()
	if err != nil {
		return err
	}
	for _, e := range list {
		if below(e.dir, dir) {
			return fmt.Errorf("removing %s: %s is still mounted at %s: %w", dir, e.fstype, e.dir, unix.EBUSY)
		}
	}
	// The lock goes last: a folder without one is an instance that died.
	ents, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("removing %s: %w", dir, err)
	}
	for _, e := range ents {
		if e.Name() == lockFile {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("removing %s: %w", dir, err)
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("removing %s: %w", dir, err)
	}
	return nil
}
