package fabricd

import (
	"bytes"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// windows makes the files behind memory windows. It is safe for concurrent use.
type windows struct {
	candidates []string // folders, the best first; their parents may be no tmpfs

	mu  sync.Mutex
	dir string // where the files are; "": none was made yet
}

// window is a window in use.
type window struct {
	Window
	f *os.File
}

// newWindows prepares windows of the fabric whose socket and folder these are, and removes what an earlier daemon there left.
func newWindows(socket, dir string) *windows {
	h := fnv.New64a()
	h.Write([]byte(socket))
	own := fmt.Sprintf("ring3-fabric-%d-%016x", os.Geteuid(), h.Sum64())
	w := &windows{candidates: []string{filepath.Join(dir, windowsDir), filepath.Join("/dev/shm", own)}}
	if run := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(run) {
		w.candidates = append(w.candidates, filepath.Join(run, own))
	}
	for _, c := range w.candidates {
		if st, err := os.Lstat(c); err == nil && st.IsDir() && ownFolder(c) == nil {
			_ = empty(c) // what stays is in the way of a window of the same name, which then says so
		}
	}
	return w
}

// empty removes a folder with the files in it.
func empty(dir string) error {
	ents, err := os.ReadDir(dir)
	for _, e := range ents {
		if e.Type().IsRegular() {
			err = errors.Join(err, os.Remove(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(err, os.Remove(dir))
}

// close removes the folder. All windows are closed by then.
func (w *windows) close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.dir == "" {
		return nil
	}
	err := empty(w.dir)
	w.dir = ""
	return err
}

// folder finds or makes the folder for the files.
func (w *windows) folder() (string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.dir != "" {
		return w.dir, nil
	}
	var tried []error
	for _, c := range w.candidates {
		var st unix.Statfs_t
		if err := unix.Statfs(filepath.Dir(c), &st); err != nil {
			tried = append(tried, fmt.Errorf("%s: %w", filepath.Dir(c), err))
			continue
		}
		if st.Type != unix.TMPFS_MAGIC {
			tried = append(tried, fmt.Errorf("%s is no tmpfs", filepath.Dir(c)))
			continue
		}
		if err := ownFolder(c); err != nil {
			tried = append(tried, err)
			continue
		}
		w.dir = c
		return c, nil
	}
	why := ""
	for _, err := range tried {
		why += "; " + err.Error()
	}
	return "", fmt.Errorf("no place for memory windows%s", why)
}

// open makes the windows of a node. Their memory is there from the start: whoever maps one never meets a page that cannot be had.
func (w *windows) open(node string, sizes Sizes) (ws []*window, err error) {
	if len(sizes) == 0 {
		return nil, nil
	}
	dir, err := w.folder()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			w.drop(ws)
			ws = nil
		}
	}()
	for i, size := range sizes {
		path := filepath.Join(dir, fmt.Sprintf("%s.%d", node, i))
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return ws, fmt.Errorf("making memory window %d: %w", i, err)
		}
		ws = append(ws, &window{Window: Window{Node: node, Index: i, Size: size, Path: path}, f: f})
		if err := f.Chmod(0o600); err != nil { // whatever the process's mask
			return ws, fmt.Errorf("making memory window %d: %w", i, err)
		}
		if err := allocate(f, size); err != nil {
			return ws, fmt.Errorf("making memory window %d of %d bytes in %s: %w", i, size, dir, err)
		}
	}
	return ws, nil
}

// allocate gives a file its size and its memory.
func allocate(f *os.File, size int64) error {
	for {
		if err := unix.Fallocate(int(f.Fd()), 0, 0, size); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// closeAll ends the windows of a node that is gone: those who have one mapped read all ones from then on, as from a dead device, and keep
// memory below their mapping.
func (w *windows) closeAll(ws []*window) error {
	var errs []error
	for _, x := range ws {
		if err := fill(x.f, x.Size); err != nil {
			errs = append(errs, fmt.Errorf("ending memory window %s: %w", x.Path, err))
		}
	}
	return errors.Join(append(errs, w.drop(ws))...)
}

// drop removes files and closes them.
func (w *windows) drop(ws []*window) error {
	var errs []error
	for _, x := range ws {
		if err := os.Remove(x.Path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
		errs = append(errs, x.f.Close())
	}
	return errors.Join(errs...)
}

var ones = bytes.Repeat([]byte{0xff}, 64<<10)

// fill writes ones over all of a file. Its size is what it was made with, whatever somebody made of it since.
func fill(f *os.File, size int64) error {
	for off := int64(0); off < size; {
		n, err := f.WriteAt(ones[:min(int64(len(ones)), size-off)], off)
		if err != nil {
			return err
		}
		off += int64(n)
	}
	return nil
}
