package pci

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/internal/uevent"
	"github.com/ring3dev/ring3/sysfs"
)

// SysfsOps is who owns a bus, as the files see it that are written to: the host implements it. Its methods are safe for
// concurrent use, and may show functions and take them away (Sysfs.Add, Remove) before they return. An error's errno is
// what the writer gets; one of bus.Err* has its own: ENODEV for a device that is gone, EBUSY, ETIMEDOUT, EOPNOTSUPP.
type SysfsOps interface {
	// RemoveFunction takes a function out of service, and all behind it, as if it were pulled out.
	RemoveFunction(ctx context.Context, a Addr) error
	// RescanBus looks for functions on the bus on which a stands, and below; nil: on all.
	RescanBus(ctx context.Context, a *Addr) error
	// ResetFunction resets a function; bus.ErrNotSupported (ENOTTY) where it has no reset.
	ResetFunction(ctx context.Context, a Addr) error
	// BindDriver gives a function to a driver: ENODEV where the driver does not serve it, EBUSY where it has one.
	BindDriver(ctx context.Context, driver string, a Addr) error
	// UnbindDriver takes a function from the driver that it is bound to.
	UnbindDriver(ctx context.Context, driver string, a Addr) error
	// ProbeFunction looks for a driver for a function; none, or one that it has, is no error.
	ProbeFunction(ctx context.Context, a Addr) error
	// Override makes only that driver serve a function, whatever its IDs; "" lifts it. Nothing is bound or unbound.
	Override(a Addr, driver string) error
	// OverrideOf is what Override set.
	OverrideOf(a Addr) string
	// NewID makes a driver serve one more ID, and probes it for all functions without a driver: EEXIST where it serves it
	// already. RemoveID forgets an ID that NewID made: ENODEV where there is none.
	NewID(ctx context.Context, driver string, id ID) error
	RemoveID(driver string, id ID) error
	// Autoprobe says whether a function that is found gets a driver without being asked.
	Autoprobe() bool
	SetAutoprobe(on bool)
	// Uevent tells whoever listens of an event that was asked for: by the device, at a path below /sys. env is what the
	// message holds beside action, path and subsystem, "KEY=VALUE".
	Uevent(action, devpath, subsystem string, env ...string) error
}

// errno gives an error of the bus a number.
func errno(err error) error { return bus.WithErrno(err, bus.Errnos) }

// stored is what a store returns: all of the write, or the error.
func stored(p []byte, err error) (int, error) {
	if err != nil {
		return 0, errno(err)
	}
	return len(p), nil
}

// command makes a file that is only written to.
func command(mode fs.FileMode, do func(ctx context.Context, s string) error) *sysfs.File {
	return sysfs.Attr(mode, nil, func(ctx context.Context, p []byte) (int, error) { return stored(p, do(ctx, string(p))) })
}

// trigger makes a file that acts where a number other than 0 is written to it.
func trigger(mode fs.FileMode, do func(ctx context.Context) error) *sysfs.File {
	return command(mode, func(ctx context.Context, s string) error {
		v, err := sysfs.ParseUint(s, math.MaxUint64)
		if err != nil {
			return fmt.Errorf("%v: %w", err, unix.EINVAL) // also where the kernel's parser says ERANGE
		}
		if v == 0 {
			return nil
		}
		return do(ctx)
	})
}

// functionOps makes the files of a function that are written to.
func (s *Sysfs) functionOps(d *sysfs.Dir, f *Function, i SysfsInfo) {
	o, a := s.ops, f.Addr
	d.Put("remove", trigger(0o220, func(ctx context.Context) error { return o.RemoveFunction(ctx, a) }))
	d.Put("rescan", trigger(0o200, func(ctx context.Context) error { return o.RescanBus(ctx, &a) }))
	if i.NoReset {
		d.Remove("reset")
	} else {
		d.Put("reset", command(0o200, func(ctx context.Context, s string) error { return resetFunction(ctx, o, a, s) }))
	}
	d.Put("driver_override", sysfs.Attr(0o644, func(w *bytes.Buffer) error {
		name := o.OverrideOf(a)
		if name == "" {
			name = "(null)"
		}
		fmt.Fprintln(w, name)
		return nil
	}, func(_ context.Context, p []byte) (int, error) {
		name, err := parseOverride(string(p))
		if err == nil {
			err = o.Override(a, name)
		}
		return stored(p, err)
	}))
	text := ueventText(f, i.Driver)
	d.Put("uevent", sysfs.Attr(0o644, func(w *bytes.Buffer) error {
		fmt.Fprintln(w, text)
		return nil
	}, func(_ context.Context, p []byte) (int, error) {
		return stored(p, synthesize(o, string(p), SysfsPath(f), "pci", strings.Split(text, "\n")...))
	}))
}

func resetFunction(ctx context.Context, o SysfsOps, a Addr, s string) error {
	if v, err := sysfs.ParseUint(s, math.MaxUint64); err != nil || v != 1 {
		return fmt.Errorf("%s: reset: %q, want 1: %w", a, s, unix.EINVAL)
	}
	err := o.ResetFunction(ctx, a)
	if errors.Is(err, bus.ErrNotSupported) {
		return fmt.Errorf("%w: %w", err, unix.ENOTTY)
	}
	return err
}

// pageSize is how much a file of sysfs shows. A name must leave room for a newline, and the kernel for an end.
const pageSize = 4096

// parseOverride is the name in a write to driver_override, up to a newline or NUL.
func parseOverride(s string) (string, error) {
	if len(s) >= pageSize-1 {
		return "", fmt.Errorf("driver_override: %d bytes, want less than %d: %w", len(s), pageSize-1, unix.EINVAL)
	}
	if i := strings.IndexAny(s, "\x00\n"); i >= 0 {
		s = s[:i]
	}
	return s, nil
}

// busOps makes the files of the bus.
func (s *Sysfs) busOps() {
	o, d := s.ops, s.root.MkdirAll(busDir)
	d.Put("rescan", trigger(0o200, func(ctx context.Context) error { return o.RescanBus(ctx, nil) }))
	d.Put("drivers_probe", command(0o200, func(ctx context.Context, name string) error {
		f, ok := s.named(name)
		if !ok {
			return fmt.Errorf("drivers_probe: no function %q: %w", name, unix.EINVAL)
		}
		if err := o.ProbeFunction(ctx, f); err != nil {
			return fmt.Errorf("%v: %w", err, unix.EINVAL) // whatever it is, as the kernel
		}
		return nil
	}))
	d.Put("drivers_autoprobe", sysfs.Attr(0o644, func(w *bytes.Buffer) error {
		on := 0
		if o.Autoprobe() {
			on = 1
		}
		fmt.Fprintln(w, on)
		return nil
	}, func(_ context.Context, p []byte) (int, error) {
		o.SetAutoprobe(p[0] != '0') // a store has at least one byte
		return len(p), nil
	}))
	d.Put("uevent", command(0o200, func(_ context.Context, s string) error { return synthesize(o, s, busDir, "bus") }))
}

// driverOps makes the files of a driver.
func (s *Sysfs) driverOps(d *sysfs.Dir, name string) {
	o, at := s.ops, busDir+"/drivers/"+name
	d.Put("bind", command(0o200, func(ctx context.Context, arg string) error {
		a, ok := s.named(arg)
		if !ok {
			return fmt.Errorf("%s: bind: no function %q: %w", name, arg, unix.ENODEV)
		}
		return o.BindDriver(ctx, name, a)
	}))
	d.Put("unbind", command(0o200, func(ctx context.Context, arg string) error {
		a, ok := s.named(arg)
		if !ok || d.Lookup(a.String()) == nil {
			return fmt.Errorf("%s: unbind: no function %q of this driver: %w", name, arg, unix.ENODEV)
		}
		return o.UnbindDriver(ctx, name, a)
	}))
	d.Put("new_id", command(0o200, func(ctx context.Context, arg string) error {
		id, err := parseNewID(arg)
		if err != nil {
			return fmt.Errorf("%s: new_id: %w", name, err)
		}
		return o.NewID(ctx, name, id)
	}))
	d.Put("remove_id", command(0o200, func(_ context.Context, arg string) error {
		id, err := parseNewID(arg)
		if err != nil {
			return fmt.Errorf("%s: remove_id: %w", name, err)
		}
		return o.RemoveID(name, id)
	}))
	d.Put("uevent", command(0o200, func(_ context.Context, arg string) error { return synthesize(o, arg, at, "drivers") }))
	if module := "/module/" + name; d.Lookup("module") == nil {
		if _, ok := lookupDir(s.root, module); ok {
			d.Put("module", &sysfs.Link{Target: sysfs.Rel(at, module)})
		}
	}
}

// named is the function whose name was written, with or without a newline, if it is shown.
func (s *Sysfs) named(name string) (Addr, bool) {
	name = strings.TrimSuffix(name, "\n")
	a, err := ParseAddr(name)
	return a, err == nil && a.String() == name && s.devices.Lookup(name) != nil
}

// Fields of an ID as new_id has them: at least the first two. What is left out selects nothing.
const (
	idVendor = iota
	idDevice
	idSubVendor
	idSubDevice
	idClass
	idClassMask
	idData // the driver's own: no driver of ring3 has any but 0
	idFields

	idLeast = 2
	idAny   = 0xffffffff
)

// parseNewID reads an ID as the kernel's scanf does: hexadecimal numbers, with or without 0x, and what follows the last
// of them is ignored. A field that our IDs cannot hold is refused; a subsystem's 0 means any.
func parseNewID(s string) (ID, error) {
	v := [idFields]uint64{idSubVendor: idAny, idSubDevice: idAny}
	n := 0
	for rest := s; n < idFields; n++ {
		rest = strings.TrimLeft(rest, " \t\n\v\f\r")
		if len(rest) > 2 && rest[0] == '0' && (rest[1] == 'x' || rest[1] == 'X') && hexDigit(rest[2]) {
			rest = rest[2:]
		}
		end := 0
		for end < len(rest) && hexDigit(rest[end]) {
			end++
		}
		if end == 0 {
			break
		}
		x, err := strconv.ParseUint(rest[:end], 16, 32)
		if err != nil {
			return ID{}, fmt.Errorf("%q has more than 32 bits: %w", rest[:end], unix.EINVAL)
		}
		v[n], rest = x, rest[end:]
	}
	if n < idLeast {
		return ID{}, fmt.Errorf("%q has %d hexadecimal numbers, want %d to %d: %w", s, n, idLeast, idFields, unix.EINVAL)
	}
	for _, f := range [...]int{idVendor, idDevice, idSubVendor, idSubDevice} {
		if v[f] == idAny {
			v[f] = Any
			if f >= idSubVendor {
				v[f] = 0
			}
		} else if v[f] > 0xffff {
			return ID{}, fmt.Errorf("%q: %#x, want 16 bits or ffffffff: %w", s, v[f], unix.EINVAL)
		}
	}
	if v[idData] != 0 {
		return ID{}, fmt.Errorf("%q: driver data %#x, want 0: %w", s, v[idData], unix.EINVAL)
	}
	return ID{
		Vendor: uint16(v[idVendor]), Device: uint16(v[idDevice]), SubVendor: uint16(v[idSubVendor]), SubDevice: uint16(v[idSubDevice]),
		Class: uint32(v[idClass]), ClassMask: uint32(v[idClassMask]),
	}, nil
}

func hexDigit(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
}

// synthesize makes the event that a write to a file uevent asks for.
func synthesize(o SysfsOps, s, devpath, subsystem string, env ...string) error {
	action, synth, err := uevent.ParseSynth(s)
	if err != nil {
		return fmt.Errorf("%s: %w", devpath, err)
	}
	return o.Uevent(action, devpath, subsystem, append(synth, env...)...)
}

// aerFiles makes the counters of errors: a function's own, and what a root port received.
func aerFiles(d *sysfs.Dir, f *Function, c bus.Config) {
	if f.AER == nil {
		return
	}
	e, _ := FindExpress(c)
	for _, k := range []struct {
		sev       AERSeverity
		dev, root string
	}{{AERCorrectable, "correctable", "cor"}, {AERFatal, "fatal", "fatal"}, {AERNonFatal, "nonfatal", "nonfatal"}} {
		d.Put("aer_dev_"+k.dev, sysfs.Attr(0o444, func(w *bytes.Buffer) error { w.WriteString(f.AER.text(k.sev)); return nil }, nil))
		if e.HasRoot() {
			d.Put("aer_rootport_total_err_"+k.root, sysfs.Show(func() string { return fmt.Sprint(f.AER.Root(k.sev)) }))
		}
	}
}
