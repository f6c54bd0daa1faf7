package portbus

import (
	"bytes"
	"context"
	"log/slog"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/internal/uevent"
	"github.com/ring3dev/ring3/sysfs"
)

// Where the bus stands below /sys.
const busDir = "/bus/pci_express"

// tree is what sysfs shows of the bus.
type tree struct {
	b                            *Bus
	bus, devices, drivers, slots *sysfs.Dir
}

func newTree(b *Bus) *tree {
	t := &tree{b: b, bus: &sysfs.Dir{}, slots: &sysfs.Dir{}}
	t.devices, t.drivers = t.bus.MkdirAll("devices"), t.bus.MkdirAll("drivers")
	t.bus.Put("drivers_autoprobe", sysfs.Attr(0o644, func(w *bytes.Buffer) error {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.noprobe {
			w.WriteString("0\n")
		} else {
			w.WriteString("1\n")
		}
		return nil
	}, func(_ context.Context, p []byte) (int, error) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.noprobe = bytes.HasPrefix(p, []byte("0"))
		return len(p), nil
	}))
	t.bus.Put("drivers_probe", sysfs.Attr(0o200, nil, func(ctx context.Context, p []byte) (int, error) {
		d, err := b.find(line(p))
		if err != nil {
			return 0, err
		}
		b.probe(ctx, d)
		return len(p), nil
	}))
	t.bus.Put("uevent", sysfs.Attr(0o200, nil, func(_ context.Context, p []byte) (int, error) { return len(p), nil }))
	return t
}

// line is what was written without the newline.
func line(p []byte) string { return strings.TrimSuffix(string(p), "\n") }

// addDriver shows a driver.
func (t *tree) addDriver(drv *ServiceDriver) {
	dir := t.drivers.MkdirAll(drv.Name)
	dir.Put("bind", sysfs.Attr(0o200, nil, func(ctx context.Context, p []byte) (int, error) {
		return len(p), t.b.BindDevice(ctx, drv.Name, line(p))
	}))
	dir.Put("unbind", sysfs.Attr(0o200, nil, func(_ context.Context, p []byte) (int, error) {
		return len(p), t.b.UnbindDevice(drv.Name, line(p))
	}))
	dir.Put("uevent", sysfs.Attr(0o200, nil, func(_ context.Context, p []byte) (int, error) { return len(p), nil }))
}

func (t *tree) removeDriver(drv *ServiceDriver) { t.drivers.Remove(drv.Name) }

// addDevice shows a service: its directory, which the host puts into the port's, and the link of the bus.
func (t *tree) addDevice(d *Device) {
	at := d.path()
	d.dir.Put("uevent", sysfs.Attr(0o644, func(w *bytes.Buffer) error {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.driver != nil {
			w.WriteString("DRIVER=" + d.driver.Name + "\n")
		}
		return nil
	}, d.storeUevent))
	if at == "" {
		return
	}
	d.dir.Put("subsystem", &sysfs.Link{Target: sysfs.Rel(at, busDir)})
	d.dir.MkdirAll("power")
	t.devices.Put(d.name, &sysfs.Link{Target: sysfs.Rel(busDir+"/devices", at)})
}

func (t *tree) removeDevice(d *Device) { t.devices.Remove(d.name) }

// path is where the service stands below /sys; "" where nobody told.
func (d *Device) path() string {
	if f := d.port.env.Function; f != nil {
		return pci.SysfsPath(f) + "/" + d.name
	}
	return ""
}

// storeUevent sends the event that was written.
func (d *Device) storeUevent(_ context.Context, p []byte) (int, error) {
	if a := line(p); slices.Contains(uevent.Actions, a) {
		d.port.uevent(a, d, "SYNTH_UUID=0")
		return len(p), nil
	}
	d.port.Print(slog.LevelError, "synth uevent: %s: unknown uevent action string", d.path())
	d.mu.Lock()
	who := "pci_express"
	if d.driver != nil {
		who = d.driver.Name
	}
	d.mu.Unlock()
	d.port.Print(slog.LevelError, "%s %s: uevent: failed to send synthetic uevent: %d", who, d.name, -int(unix.EINVAL))
	return 0, unix.EINVAL
}

// show brings the links of a service and its driver up to date. d.mu is held.
func (d *Device) show() {
	at, t := d.path(), d.port.bus.tree
	for _, name := range t.drivers.Names() {
		if dir, ok := t.drivers.Lookup(name).(*sysfs.Dir); ok && (d.driver == nil || name != d.driver.Name) {
			dir.Remove(d.name)
		}
	}
	for _, name := range d.shown {
		d.dir.Remove(name)
	}
	d.shown = nil
	d.dir.Remove("driver")
	if d.driver == nil || at == "" {
		return
	}
	dir := busDir + "/drivers/" + d.driver.Name
	d.dir.Put("driver", &sysfs.Link{Target: sysfs.Rel(at, dir)})
	t.drivers.MkdirAll(d.driver.Name).Put(d.name, &sysfs.Link{Target: sysfs.Rel(dir, at)})
	if u, ok := d.inst.(pci.AttrUser); ok {
		for name, f := range u.Attrs() {
			d.dir.Put(name, f)
			d.shown = append(d.shown, name)
		}
	}
	if u, ok := d.inst.(pci.DirUser); ok {
		for name, sub := range u.Dirs() {
			d.dir.Put(name, sub)
			d.shown = append(d.shown, name)
		}
	}
}
