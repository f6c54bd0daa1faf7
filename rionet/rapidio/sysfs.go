package rapidio

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/internal/uevent"
	"github.com/ring3dev/ring3/sysfs"
)

// Where things stand below /sys.
const (
	classPort = "rapidio_port"
	busDir    = "/bus/rapidio"
	classDir  = "/class/" + classPort
	portsDir  = "/devices/virtual/" + classPort
)

// tree is what sysfs shows of the subsystem.
type tree struct {
	b                                   *Bus
	bus, devices, drivers, class, ports *sysfs.Dir
}

// portDir and deviceDir are the folders of a master port and a device.
type (
	portDir   struct{ *sysfs.Dir }
	deviceDir struct {
		*sysfs.Dir
		windows []string // names of links
	}
)

// SysfsBus is the folder /sys/bus/rapidio.
func (b *Bus) SysfsBus() *sysfs.Dir { return b.tree.bus }

// SysfsClass is the folder /sys/class/rapidio_port.
func (b *Bus) SysfsClass() *sysfs.Dir { return b.tree.class }

// SysfsDevices is the folder /sys/devices/virtual/rapidio_port, with all master ports in it.
func (b *Bus) SysfsDevices() *sysfs.Dir { return b.tree.ports }

// SysfsDevices is the port's folder in it, with its net and that net's devices.
func (m *Mport) SysfsDevices() *sysfs.Dir { return m.dir.Dir }

// path is where the port stands below /sys.
func (m *Mport) path() string { return portsDir + "/" + m.Name() }

func (n *Net) path() string { return n.home.path() + "/" + n.Name() }

func (d *Device) path() string { return d.Net.path() + "/" + d.Name() }

func newTree(b *Bus) *tree {
	t := &tree{b: b, bus: &sysfs.Dir{}, class: &sysfs.Dir{}, ports: &sysfs.Dir{}}
	t.devices, t.drivers = t.bus.MkdirAll("devices"), t.bus.MkdirAll("drivers")
	t.bus.Put("scan", command(0o200, func(ctx context.Context, s string) error {
		id, err := parseScan(s)
		if err != nil {
			return err
		}
		return b.Scan(ctx, id)
	}))
	t.bus.Put("drivers_autoprobe", sysfs.Attr(0o644, func(w *bytes.Buffer) error {
		on := 0
		if b.Autoprobe() {
			on = 1
		}
		fmt.Fprintln(w, on)
		return nil
	}, func(_ context.Context, p []byte) (int, error) {
		b.SetAutoprobe(!bytes.HasPrefix(p, []byte("0")))
		return len(p), nil
	}))
	t.bus.Put("drivers_probe", command(0o200, func(ctx context.Context, s string) error { return b.Probe(ctx, line(s)) }))
	t.bus.Put("uevent", command(0o200, func(_ context.Context, s string) error { return b.synthesize(s, busDir, "bus") }))
	return t
}

// command makes a file that is only written to.
func command(mode fs.FileMode, do func(ctx context.Context, s string) error) *sysfs.File {
	return sysfs.Attr(mode, nil, func(ctx context.Context, p []byte) (int, error) {
		if err := do(ctx, string(p)); err != nil {
			return 0, errno(err)
		}
		return len(p), nil
	})
}

// line is what was written without the newline.
func line(s string) string { return strings.TrimSuffix(s, "\n") }

// errnos are the numbers of errors here: some of this package's have another one than those of the bus that they wrap.
var errnos = slices.Concat([]bus.Numbered{{Err: ErrRange, Errno: unix.EINVAL}, {Err: ErrNoDevice, Errno: unix.ENODEV}, {Err: ErrResponse, Errno: unix.EIO}, {Err: ErrRetry, Errno: unix.EAGAIN}},
	bus.Errnos, []bus.Numbered{{Err: context.DeadlineExceeded, Errno: unix.ETIMEDOUT}})

// errno gives an error a number.
func errno(err error) error { return bus.WithErrno(err, errnos) }

// parseScan reads which master port is to be scanned: its number, or -1 for all (the kernel's kstrtol, in which a sign may stand).
func parseScan(s string) (int, error) {
	bad := fmt.Errorf("scan: %q, want the number of a master port or -1: %w", s, unix.EINVAL)
	digits, minus := strings.CutPrefix(s, "-")
	if minus && strings.HasPrefix(digits, "+") {
		return 0, bad
	}
	v, err := sysfs.ParseUint(digits, MaxMports-1)
	switch {
	case err != nil:
		return 0, bad
	case minus && v == 1:
		return -1, nil
	case minus && v != 0:
		return 0, bad
	}
	return int(v), nil
}

// synthesize tells of an event that somebody wrote to a file uevent.
func (b *Bus) synthesize(s, path, subsystem string, env ...string) error {
	action, synth, err := uevent.ParseSynth(s)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	b.uevent(action, path, subsystem, append(synth, env...)...)
	return nil
}

// addDriver shows a driver.
func (t *tree) addDriver(drv *Driver) {
	b, name := t.b, drv.Name
	dir := t.drivers.MkdirAll(name)
	dir.Put("bind", command(0o200, func(ctx context.Context, s string) error {
		err := b.Bind(ctx, name, line(s))
		if errors.Is(err, bus.ErrNotSupported) && !errors.Is(err, ErrRange) {
			err = fmt.Errorf("%w: %w", err, unix.ENODEV)
		}
		return err
	}))
	dir.Put("unbind", command(0o200, func(ctx context.Context, s string) error { return b.Unbind(ctx, name, line(s)) }))
	dir.Put("uevent", command(0o200, func(_ context.Context, s string) error {
		return b.synthesize(s, busDir+"/drivers/"+name, "drivers")
	}))
}

func (t *tree) removeDriver(drv *Driver) { t.drivers.Remove(drv.Name) }

// addMport shows a master port.
func (t *tree) addMport(m *Mport) {
	dir := &sysfs.Dir{}
	m.dir = portDir{dir}
	dir.Put("sys_size", sysfs.Showf("%d", map[IDSize]int{Small: 0, Large: 1}[m.IDs()]))
	dir.Put("port_destid", sysfs.Show(m.portDestID))
	dir.Put("subsystem", &sysfs.Link{Target: sysfs.Rel(m.path(), classDir)})
	dir.Put("uevent", sysfs.Attr(0o644, func(*bytes.Buffer) error { return nil }, func(_ context.Context, p []byte) (int, error) {
		if err := t.b.synthesize(string(p), m.path(), classPort); err != nil {
			return 0, err
		}
		return len(p), nil
	}))
	t.ports.Put(m.Name(), dir)
	t.class.Put(m.Name(), &sysfs.Link{Target: sysfs.Rel(classDir, m.path())})
}

func (t *tree) removeMport(m *Mport) {
	t.class.Remove(m.Name())
	t.ports.Remove(m.Name())
}

// showTime bounds how long a file waits for a register.
const showTime = time.Second

// portDestID is the port's device ID: a host's own from the beginning, that of others once they know a net.
func (m *Mport) portDestID() string {
	if m.opts.Host >= 0 {
		return fmt.Sprintf("0x%04x", m.opts.Host)
	}
	if m.Net() != nil {
		ctx, cancel := context.WithTimeout(m.ctx, showTime)
		defer cancel()
		if id, err := m.DestID(ctx); err == nil {
			return fmt.Sprintf("0x%04x", id)
		}
	}
	return "0xffffffff"
}

func (t *tree) addNet(n *Net)    { n.home.dir.Put(n.Name(), &sysfs.Dir{}) }
func (t *tree) removeNet(n *Net) { n.home.dir.Remove(n.Name()) }

// addDevice shows a device.
func (t *tree) addDevice(d *Device) {
	dir := &sysfs.Dir{}
	d.dir.Dir = dir
	t.fill(d)
	at := d.path()
	dir.Put("subsystem", &sysfs.Link{Target: sysfs.Rel(at, busDir)})
	d.showWindows()
	d.Net.home.dir.MkdirAll(d.Net.Name()).Put(d.Name(), dir)
	t.devices.Put(d.Name(), &sysfs.Link{Target: sysfs.Rel(busDir+"/devices", at)})
}

func (t *tree) removeDevice(d *Device) {
	t.devices.Remove(d.Name())
	if dir, ok := d.Net.home.dir.Lookup(d.Net.Name()).(*sysfs.Dir); ok {
		dir.Remove(d.Name())
	}
}

// fill makes the files of a device.
func (t *tree) fill(d *Device) {
	dir := d.dir.Dir
	dir.Put("did", sysfs.Showf("0x%04x", d.DID))
	dir.Put("vid", sysfs.Showf("0x%04x", d.VID))
	dir.Put("device_rev", sysfs.Showf("0x%08x", d.Rev))
	dir.Put("asm_did", sysfs.Showf("0x%04x", d.AsmDID))
	dir.Put("asm_vid", sysfs.Showf("0x%04x", d.AsmVID))
	dir.Put("asm_rev", sysfs.Showf("0x%04x", d.AsmRev))
	dir.Put("modalias", sysfs.Showf("%s", d.Modalias()))
	dir.Put("destid", sysfs.Show(func() string {
		dest, _, _ := d.Way()
		return fmt.Sprintf("0x%04x", dest)
	}))
	dir.Put("lprev", sysfs.Show(func() string {
		if _, _, prev := d.Way(); prev != nil {
			return prev.Name()
		}
		return "root"
	}))
	dir.Put("config", configFile(d))
	dir.Put("uevent", sysfs.Attr(0o644, func(w *bytes.Buffer) error {
		if name := d.Driver(); name != "" {
			w.WriteString("DRIVER=" + name + "\n")
		}
		w.WriteString("MODALIAS=" + d.Modalias() + "\n")
		return nil
	}, d.storeUevent))
	if d.IsSwitch() {
		dir.Put("hopcount", sysfs.Show(func() string {
			_, hop, _ := d.Way()
			return fmt.Sprintf("0x%02x", hop)
		}))
		dir.Put("routes", sysfs.Attr(0o444, d.showRoutes, nil))
		dir.Put("lnext", sysfs.Attr(0o444, d.showNext, nil))
	}
}

// storeUevent sends the event that was written.
func (d *Device) storeUevent(_ context.Context, p []byte) (int, error) {
	var env []string
	if name := d.Driver(); name != "" {
		env = append(env, "DRIVER="+name)
	}
	if err := d.Net.bus.synthesize(string(p), d.path(), "rapidio", append(env, "MODALIAS="+d.Modalias())...); err != nil {
		return 0, err
	}
	return len(p), nil
}

// pageSize is how much an attribute shows; of a table that is longer only whole lines.
const pageSize = 4096

func (d *Device) showRoutes(w *bytes.Buffer) error {
	for dest, port := range d.Routes() {
		if port == InvalidRoute {
			continue
		}
		l := fmt.Sprintf("%04x %02x\n", dest, port)
		if w.Len()+len(l) > pageSize {
			break
		}
		w.WriteString(l)
	}
	return nil
}

func (d *Device) showNext(w *bytes.Buffer) error {
	for port := range d.Ports() {
		name := "null"
		if next := d.Next(port); next != nil {
			name = next.Name()
		}
		w.WriteString(name + "\n")
	}
	return nil
}

// bound shows whose a device is now.
func (t *tree) bound(d *Device, drv *Driver) {
	at, dir := d.path(), busDir+"/drivers/"+drv.Name
	d.dir.Put("driver", &sysfs.Link{Target: sysfs.Rel(at, dir)})
	if drivers, ok := t.drivers.Lookup(drv.Name).(*sysfs.Dir); ok { // unless it goes at this moment
		drivers.Put(d.Name(), &sysfs.Link{Target: sysfs.Rel(dir, at)})
	}
}

func (t *tree) unbound(d *Device, drv *Driver) {
	d.dir.Remove("driver")
	if dir, ok := t.drivers.Lookup(drv.Name).(*sysfs.Dir); ok {
		dir.Remove(d.Name())
	}
}

// showWindows brings the links to a node's memory up to date. The device's turn is held.
func (d *Device) showWindows() {
	for _, name := range d.dir.windows {
		d.dir.Remove(name)
	}
	d.dir.windows = nil
	w := d.Mport.opts.Windows
	if w == nil || d.IsSwitch() {
		return
	}
	for _, i := range w.Of(d.DestID) {
		name := "window" + strconv.Itoa(i.Index)
		d.dir.Put(name, &sysfs.Link{Target: i.Path})
		d.dir.windows = append(d.dir.windows, name)
	}
}

// WindowsChanged has the links to other nodes' memory made anew, after Options.Windows has others.
func (m *Mport) WindowsChanged() {
	n := m.Net()
	if n == nil {
		return
	}
	for _, d := range n.Devices() {
		if d.turn.take(m.ctx) != nil {
			return
		}
		if d.Mport == m && d.here() == nil {
			d.showWindows()
		}
		d.turn.give()
	}
}
