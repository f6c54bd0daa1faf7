package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// capture is a file that QEMU writes frames to. It has another name until everything is up,
// so that a start that fails neither empties a file that was there nor leaves one behind.
type capture struct {
	file *os.File
	path string
	tmp  string // "" where it is, or has become, path
}

// openCapture opens the file for a device's capture.
func openCapture(device, path string) (*capture, error) {
	c := &capture{path: path}
	fail := func(err error) (*capture, error) {
		var pe *fs.PathError
		if errors.As(err, &pe) {
			err = pe.Err
		}
		return nil, fmt.Errorf("%s: opening the capture: open %s: %w", device, path, err)
	}
	fi, err := os.Stat(path)
	if err == nil {
		// What is there must be ours to write; a device or a pipe is written as it is.
		if c.file, err = os.OpenFile(path, os.O_RDWR, 0); err != nil {
			return fail(err)
		}
		if !fi.Mode().IsRegular() {
			return c, nil
		}
		c.file.Close()
	}
	c.tmp = fmt.Sprintf("%s.ring3-%d", path, os.Getpid())
	if c.file, err = os.OpenFile(c.tmp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644); err != nil {
		return fail(err)
	}
	return c, nil
}

// keep gives the file its name.
func (c *capture) keep() error {
	if c.tmp == "" {
		return nil
	}
	if err := os.Rename(c.tmp, c.path); err != nil {
		return fmt.Errorf("naming the capture: %w", err)
	}
	c.tmp = ""
	return nil
}

// close closes the file, and removes one that was not kept.
func (c *capture) close() error {
	err := c.file.Close()
	if c.tmp != "" {
		err = errors.Join(err, os.Remove(c.tmp))
	}
	return err
}
