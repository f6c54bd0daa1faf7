//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/ring3dev/ring3/integration/vm/wire"
)

// do does one request of a test, as root.
func (s *session) do(a *wire.Ask) (any, error) {
	switch a.Op {
	case wire.OpModprobe:
		m, err := args[wire.Modprobe](a)
		if err != nil {
			return nil, err
		}
		return nil, modprobe(m.Name, m.Params)
	case wire.OpBind, wire.OpUnbind:
		b, err := args[wire.Bind](a)
		if err != nil {
			return nil, err
		}
		if a.Op == wire.OpUnbind {
			b.Driver = ""
		}
		return s.bind(b)
	case wire.OpRead:
		f, err := args[wire.File](a)
		if err != nil {
			return nil, err
		}
		f.Data, err = os.ReadFile(f.Path)
		return f, err
	case wire.OpWrite:
		f, err := args[wire.File](a)
		if err != nil {
			return nil, err
		}
		return nil, write(f.Path, f.Data)
	case wire.OpMemlock:
		n, err := args[uint64](a)
		if err != nil {
			return nil, err
		}
		return nil, setMemlock(s.pid, n)
	case wire.OpRun:
		c, err := args[wire.Command](a)
		if err != nil {
			return nil, err
		}
		return s.w.runFor(&c)
	}
	return nil, fmt.Errorf("no request %q is known", a.Op)
}

func args[T any](a *wire.Ask) (T, error) {
	var v T
	if err := json.Unmarshal(a.Args, &v); err != nil {
		return v, fmt.Errorf("arguments %.100q: %w", a.Args, err)
	}
	return v, nil
}

// write writes to a file that is there, in one piece, as sysfs wants it.
func write(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}

// runFor runs a program for a test and waits for its end.
func (w *worker) runFor(c *wire.Command) (*wire.Ran, error) {
	cmd, err := command(c)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := w.startLimited(cmd, c.Memlock); err != nil {
		return nil, err
	}
	exit := exitOf(cmd.Wait())
	return &wire.Ran{Exit: exit, Output: out.Bytes()}, nil
}

const pciDevices = "/sys/bus/pci/devices"

// bind gives a device to a driver, and has it given back at the end.
func (s *session) bind(b wire.Bind) (*wire.Bound, error) {
	dev := filepath.Join(pciDevices, b.Addr)
	if _, err := os.Stat(dev); err != nil {
		return nil, err
	}
	before := driverOf(dev)
	if b.Driver != "" {
		if err := modprobe(b.Driver, nil); err != nil {
			return nil, err
		}
	}
	if strings.HasPrefix(b.Driver, "vfio") {
		if err := modprobe("vfio_iommu_type1", nil); err != nil {
			return nil, err
		}
	}
	s.undos = append(s.undos, func() error { return restore(dev, before) })
	if err := rebind(dev, b.Driver); err != nil {
		return nil, err
	}
	bound := &wire.Bound{Driver: driverOf(dev)}
	if group, err := os.Readlink(filepath.Join(dev, "iommu_group")); err == nil {
		bound.Group = filepath.Base(group)
	}
	switch {
	case strings.HasPrefix(b.Driver, "vfio") && bound.Group != "":
		bound.Path = "/dev/vfio/" + bound.Group
	case strings.HasPrefix(b.Driver, "uio"):
		names, _ := filepath.Glob(filepath.Join(dev, "uio", "uio*"))
		if len(names) == 1 {
			bound.Path = "/dev/" + filepath.Base(names[0])
		}
	}
	if bound.Path != "" && b.Owner != 0 {
		if err := os.Chown(bound.Path, b.Owner, b.Owner); err != nil {
			return nil, err
		}
	}
	return bound, nil
}

// rebind takes a device from the driver that has it and gives it to another, or to none.
func rebind(dev, driver string) error {
	addr := filepath.Base(dev)
	if now := driverOf(dev); now == driver {
		return nil
	} else if now != "" {
		if err := write(filepath.Join(dev, "driver", "unbind"), []byte(addr)); err != nil {
			return fmt.Errorf("taking %s from %s: %w", addr, now, err)
		}
	}
	if driver == "" {
		return write(filepath.Join(dev, "driver_override"), []byte("\n"))
	}
	if err := write(filepath.Join(dev, "driver_override"), []byte(driver)); err != nil {
		return fmt.Errorf("naming %s as the driver of %s: %w", driver, addr, err)
	}
	err := write("/sys/bus/pci/drivers_probe", []byte(addr))
	if now := driverOf(dev); now != driver {
		return fmt.Errorf("%s is bound to %q after drivers_probe, want %q (%v); the kernel's log may say why", addr, now, driver, err)
	}
	return nil
}

// restore gives a device back to whom it had before. A device that was unplugged is fine.
func restore(dev, driver string) error {
	if _, err := os.Stat(dev); err != nil {
		return nil
	}
	if err := rebind(dev, driver); err != nil {
		return err
	}
	return write(filepath.Join(dev, "driver_override"), []byte("\n"))
}

// driverOf is the name of the driver that has a device, or "".
func driverOf(dev string) string {
	d, err := os.Readlink(filepath.Join(dev, "driver"))
	if err != nil {
		return ""
	}
	return filepath.Base(d)
}
