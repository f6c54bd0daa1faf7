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

	"github.com/ring3dev/ring3/internal/mounts"
)

// Mount is one mount of an instance.
type Mount struct {
	Dir string `json:"dir"` // absolute, without links
	Dev string `json:"dev"` // device number as in mountinfo, "0:53"; "" if it was not seen
}

// below tells whether path is dir or under it.
func below(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// unmountAll detaches what is left of the mounts ms, and every FUSE mount below folder.
// Where a mount's point now belongs to another mount (another device number) it is left
// alone.
func unmountAll(folder string, ms []Mount) error {
	list, err := mounts.List()
	if err != nil {
		return err
	}
	var errs []error
	for i := len(list) - 1; i >= 0; i-- { // latest first, so those on top go first
		e := list[i]
		ours := below(e.Dir, folder) && e.IsFuse()
		for _, m := range ms {
			ours = ours || (e.Dir == m.Dir && e.IsFuse() && m.Dev == e.Dev)
		}
		if ours {
			errs = append(errs, unmount(e.Dir))
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
		if _, still := mounts.At(dir); !still {
			return nil
		}
		return fmt.Errorf("unmounting %s: %w", dir, err)
	case !errors.Is(err, unix.EPERM):
		return fmt.Errorf("unmounting %s: %w", dir, err)
	}
	// A process that gave up root cannot; whoever mounted for it may be doing so now.
	if waitTaken(dir) {
		return nil
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
		if _, still := mounts.At(dir); runErr == nil || !still {
			return nil
		}
		msg, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		return fmt.Errorf("unmounting %s: %s: %w: %s", dir, tool, runErr, msg)
	}
	return fmt.Errorf("unmounting %s: %w, and no fusermount3 to do it; install fuse3", dir, err)
}

// noNewPrivs says whether set-uid programs are of no use to this process.
func noNewPrivs() bool {
	v, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
	return err == nil && v == 1
}

// waitTaken waits for a mount to be taken away by another process, where this one cannot do it.
func waitTaken(dir string) bool {
	if !noNewPrivs() {
		return false
	}
	for end := time.Now().Add(unmountWait); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if _, still := mounts.At(dir); !still {
			return true
		}
	}
	return false
}

// removeFolder deletes a folder of the base unless something is still mounted in it. A
// name that is a mount point in another namespace only goes away there too.
func removeFolder(dir string) error {
	list, err := mounts.List()
	if err != nil {
		return err
	}
	for _, e := range list {
		if below(e.Dir, dir) {
			return fmt.Errorf("removing %s: %s is still mounted at %s: %w", dir, e.FSType, e.Dir, unix.EBUSY)
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
