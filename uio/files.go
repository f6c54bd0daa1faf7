package uio

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
)

// Files are the open files of one device, for a process that may not open them itself: root
// calls [OpenFiles], and then drops its rights, or passes the files to another process, by the
// names that [Files.Named] gives them. What they allow is the rights of whoever opened them:
// all of config space, and with it whatever the device can do.
type Files struct {
	Device   string           // what Open is to be given: "0000:00:05.0" or "uio0"
	UIO      *os.File         // /dev/uioN
	Config   *os.File         // config space; nil where there is no PCI
	Resource map[int]*os.File // of PCI: the BARs, by number
	Reset    *os.File         // nil where the kernel has no reset for the device
}

// OpenFiles opens all files of a device, as root.
func OpenFiles(device string, o Options) (*Files, error) {
	t := o.tree()
	p, err := t.locate(device)
	if err != nil {
		return nil, err
	}
	f, lacks, err := t.open(p)
	if err != nil {
		return nil, err
	}
	for _, err := range lacks {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Names of files in Named.
const (
	fileUIO      = "uio"
	fileConfig   = "config"
	fileReset    = "reset"
	fileResource = "resource" // and the number of the BAR
)

// Named is the files by names that [FilesOf] understands: "uio", "config", "resource0",
// "reset".
func (f *Files) Named() map[string]*os.File {
	m := map[string]*os.File{}
	for name, x := range map[string]*os.File{fileUIO: f.UIO, fileConfig: f.Config, fileReset: f.Reset} {
		if x != nil {
			m[name] = x
		}
	}
	for i, x := range f.Resource {
		m[fileResource+strconv.Itoa(i)] = x
	}
	return m
}

// FilesOf is the other end of [Files.Named]: the files of a device that were passed.
func FilesOf(device string, named map[string]*os.File) (*Files, error) {
	f := &Files{Device: device, Resource: map[int]*os.File{}}
	for name, x := range named {
		switch name {
		case fileUIO:
			f.UIO = x
		case fileConfig:
			f.Config = x
		case fileReset:
			f.Reset = x
		default:
			n, ok := strings.CutPrefix(name, fileResource)
			i, err := strconv.ParseUint(n, 10, 3)
			if !ok || err != nil {
				return nil, fmt.Errorf("%s: files of a UIO device: none is named %q", device, name)
			}
			f.Resource[int(i)] = x
		}
	}
	return f, nil
}

// Close closes the files. A Device that was opened with them has its own copies.
func (f *Files) Close() error {
	var err error
	for _, x := range f.Named() {
		err = errors.Join(err, x.Close())
	}
	return err
}

// open opens the files of a device. What is needed and cannot be had is an error; lacks has
// those without which part of the device can be used, and why, by the name in Named.
func (t tree) open(p *place) (f *Files, lacks map[string]error, err error) {
	f = &Files{Device: p.name, Resource: map[int]*os.File{}}
	lacks = map[string]error{}
	defer func() {
		if err != nil {
			_ = f.Close()
			f = nil
		}
	}()
	// Non-blocking, so that the runtime's poller waits for interrupts.
	if f.UIO, err = os.OpenFile(filepath.Join(t.dev, p.node), os.O_RDWR|unix.O_NONBLOCK, 0); err != nil {
		return f, lacks, openError(p, "/dev/"+p.node, err)
	}
	if p.fn == nil {
		return f, lacks, nil
	}
	if f.Config, err = os.OpenFile(t.sys.Path(p.fn.Addr, "config"), os.O_RDWR, 0); err != nil {
		return f, lacks, openError(p, "config space", err)
	}
	for _, r := range p.fn.BARs {
		if r.Addr == 0 {
			continue // not placed, and so not there
		}
		name := fileResource + strconv.Itoa(r.Index)
		x, err := os.OpenFile(t.sys.Path(p.fn.Addr, name), os.O_RDWR, 0)
		if err != nil {
			lacks[name] = openError(p, fmt.Sprintf("region %d", r.Index), err)
			continue
		}
		f.Resource[r.Index] = x
	}
	x, err := os.OpenFile(t.sys.Path(p.fn.Addr, "reset"), os.O_WRONLY, 0)
	switch {
	case err == nil:
		f.Reset = x
	case !errors.Is(err, fs.ErrNotExist):
		lacks[fileReset] = openError(p, "its reset", err)
	}
	return f, lacks, nil
}

// openError says what opening a file of a device failed for, and what helps.
func openError(p *place, what string, err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s: opening %s: only root may, as a rule: %s: %w", p.name, what, p.asRoot(), err)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return fmt.Errorf("%s: opening %s: it was removed, or unbound from its driver: %w: %w", p.name, what, bus.ErrGone, err)
	}
	return fmt.Errorf("%s: opening %s: %w", p.name, what, err)
}

// asRoot is the command that opens a device as root and uses it as somebody else.
func (p *place) asRoot() string {
	return fmt.Sprintf("'sudo ring3 up --as $USER NAME=uio:%s'", p.name)
}

// dup is a descriptor of one's own for a file. It leaves the file as it is: os.File's Fd
// would make it block.
func dup(f *os.File) (int, error) {
	c, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd := -1
	var e error
	if err := c.Control(func(x uintptr) { fd, e = unix.FcntlInt(x, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return -1, err
	}
	return fd, e
}

// held is a device's own copies of its files; -1 where there is none.
type held struct {
	uio           *os.File
	uioFD         int // uio's
	config, reset int
	resource      map[int]int
}

// hold copies files.
func hold(f *Files) (h *held, err error) {
	h = &held{uioFD: -1, config: -1, reset: -1, resource: map[int]int{}}
	defer func() {
		if err != nil {
			_ = h.close()
			h = nil
		}
	}()
	for name, x := range f.Named() {
		fd, err := dup(x)
		if err != nil {
			return h, fmt.Errorf("%s: copying the descriptor of %s: %w", f.Device, name, err)
		}
		switch name {
		case fileUIO:
			if err := unix.SetNonblock(fd, true); err != nil {
				_ = unix.Close(fd)
				return h, fmt.Errorf("%s: making /dev/uio non-blocking: %w", f.Device, err)
			}
			h.uioFD, h.uio = fd, os.NewFile(uintptr(fd), fileUIO)
		case fileConfig:
			h.config = fd
		case fileReset:
			h.reset = fd
		default:
			i, _ := strconv.Atoi(strings.TrimPrefix(name, fileResource))
			h.resource[i] = fd
		}
	}
	return h, nil
}

func (h *held) close() error {
	var err error
	if h.uio != nil {
		err = h.uio.Close()
	}
	shut := func(fd int) {
		if fd >= 0 {
			err = errors.Join(err, unix.Close(fd))
		}
	}
	shut(h.config)
	shut(h.reset)
	for _, fd := range h.resource {
		shut(fd)
	}
	return err
}
