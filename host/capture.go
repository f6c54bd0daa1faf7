package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/ring3dev/ring3/internal/frame"
)

// capture is a file that QEMU writes frames to. It has another name until everything is up,
// so that a start that fails neither empties a file that was there nor leaves one behind.
type capture struct {
	file *os.File
	path string
	tmp  string // "" where it is, or has become, path

	outside Outside // that opened it for us; nil: we did
	device  string
}

// openCapture opens the file for a device's capture.
func openCapture(device, path string) (*capture, error) {
	c := &capture{path: path, device: device}
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

// openCapture opens the file for a device's capture, or has it opened.
func (s *System) openCapture(device, path string) (*capture, error) {
	if s.outside == nil {
		return openCapture(device, path)
	}
	f, err := s.outside.File(s.ctx, useCapture, device)
	if err != nil {
		return nil, fmt.Errorf("%s: opening the capture: %w", device, err)
	}
	return &capture{file: f, path: path, outside: s.outside, device: device}, nil
}

// writer is what writes frames to it. One that has frames already, of a process in whose place this one is, gets more.
func (c *capture) writer() (*frame.PcapWriter, error) {
	if fi, err := c.file.Stat(); err == nil && fi.Mode().IsRegular() && fi.Size() > 0 && c.outside != nil {
		if _, err := c.file.Seek(0, io.SeekEnd); err != nil {
			return nil, err
		}
		return frame.AppendPcap(c.file), nil
	}
	return frame.NewPcapWriter(c.file)
}

// keep gives the file its name.
func (c *capture) keep(ctx context.Context) error {
	if c.outside != nil {
		return c.outside.Begin(ctx, useCapture, c.device)
	}
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
	if c.file == nil { // it is somebody else's
		return nil
	}
	err := c.file.Close()
	if c.tmp != "" {
		err = errors.Join(err, os.Remove(c.tmp))
	}
	return err
}
