package class

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/sysfs"
)

// device fills a device's own directory, which depends on its bus.
func device(dev *sysfs.Dir, p Place) {
	alias := "acpi:" + p.ID + ":"
	switch p.Bus {
	case "pnp":
		// The kernel's letters: a vendor of three capitals, a product of four digits in lower case.
		dev.Put("id", sysfs.Showf("%s%s", p.ID[:min(3, len(p.ID))], strings.ToLower(p.ID[min(3, len(p.ID)):])))
		dev.Put("options", sysfs.Attr(0o444, func(*bytes.Buffer) error { return nil }, nil))
		dev.Put("resources", resources(p.Registers))
		dev.Put("uevent", uevent("DRIVER=%s\n", p.Driver))
	case "acpi":
		dev.Put("description", sysfs.Showf("TPM 2.0 Device"))
		dev.Put("hid", sysfs.Showf("%s", p.ID))
		dev.Put("modalias", sysfs.Showf("%s", alias))
		dev.Put("status", sysfs.Showf("15")) // present, enabled, shown, working (ACPI 6.5, 6.3.7)
		dev.Put("uid", sysfs.Showf("1"))
		dev.Put("uevent", uevent("DRIVER=%s\nMODALIAS=%s\n", p.Driver, alias))
	default:
		dev.Put("driver_override", choice("(null)")) // a TPM's driver is chosen once
		dev.Put("modalias", sysfs.Showf("%s", alias))
		dev.Put("uevent", uevent("DRIVER=%s\nMODALIAS=%s\n", p.Driver, alias))
	}
	power(dev)
}

// resources are what a Plug and Play device has been given. The kernel gives it no others while it has a driver.
func resources(r bus.RegionInfo) *sysfs.File {
	return sysfs.Attr(0o644, func(w *bytes.Buffer) error {
		w.WriteString("state = active\n")
		if r.Addr != 0 {
			fmt.Fprintf(w, "mem %#x-%#x\n", r.Addr, r.Addr+r.Size-1)
		}
		return nil
	}, func(context.Context, []byte) (int, error) { return 0, unix.EBUSY })
}

// uevent is the file of that name. What the kernel tells its listeners again, when an action is written, has nobody here
// to listen.
func uevent(format string, args ...any) *sysfs.File {
	text := fmt.Sprintf(format, args...)
	return sysfs.Attr(0o644, func(w *bytes.Buffer) error { w.WriteString(text); return nil }, func(_ context.Context, p []byte) (int, error) {
		switch action, _, _ := strings.Cut(strings.TrimSuffix(string(p), "\n"), " "); action {
		case "add", "remove", "change", "move", "online", "offline", "bind", "unbind":
			return len(p), nil
		}
		return 0, unix.EINVAL
	})
}

// choice is a word that can be changed to another of them. Nothing depends on it.
func choice(words ...string) *sysfs.File {
	var at atomic.Int32
	return sysfs.Attr(0o644, func(w *bytes.Buffer) error {
		w.WriteString(words[at.Load()] + "\n")
		return nil
	}, func(_ context.Context, p []byte) (int, error) {
		for i, word := range words {
			if strings.TrimSuffix(string(p), "\n") == word {
				at.Store(int32(i))
				return len(p), nil
			}
		}
		return 0, unix.EINVAL
	})
}

// power fills the directory power of a device of which the kernel manages no power.
func power(d *sysfs.Dir) {
	dir := d.MkdirAll("power")
	dir.Put("async", choice("disabled", "enabled"))
	dir.Put("control", choice("auto", "on"))
	dir.Put("autosuspend_delay_ms", sysfs.Attr(0o644, nil, nil)) // EIO, as there
	for name, text := range map[string]string{"active_kids": "0", "active_time": "0", "enabled": "disabled", "status": "unsupported", "suspended_time": "0", "usage": "0"} {
		dir.Put("runtime_"+name, sysfs.Showf("%s", text))
	}
}

// number is a number from 0 to highest that can be changed. Nothing depends on it.
func number(highest uint64) *sysfs.File {
	var n atomic.Uint64
	return sysfs.Attr(0o644, func(w *bytes.Buffer) error {
		w.WriteString(strconv.FormatUint(n.Load(), 10) + "\n")
		return nil
	}, func(_ context.Context, p []byte) (int, error) {
		v, err := sysfs.ParseUint(string(p), highest)
		if err != nil {
			return 0, unix.EINVAL
		}
		n.Store(v)
		return len(p), nil
	})
}
