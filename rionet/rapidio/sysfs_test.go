package rapidio

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/sysfs"
)

// root is /sys as a host puts it together.
func (r *rig) root() *sysfs.Dir {
	root := &sysfs.Dir{}
	sys := root.MkdirAll("sys")
	sys.MkdirAll("bus").Put("rapidio", r.b.SysfsBus())
	sys.MkdirAll("class").Put("rapidio_port", r.b.SysfsClass())
	sys.MkdirAll("devices/virtual").Put("rapidio_port", r.b.SysfsDevices())
	return root
}

func (r *rig) file(at string) (*sysfs.File, error) {
	n, err := r.root().Walk(at)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", at, err)
	}
	f, ok := n.(*sysfs.File)
	if !ok {
		return nil, fmt.Errorf("%s is no file", at)
	}
	return f, nil
}

func (r *rig) read(at string) (string, error) {
	f, err := r.file(at)
	if err != nil {
		return "", err
	}
	b, err := f.ReadAll()
	return string(b), err
}

func (r *rig) write(at, s string) error {
	f, err := r.file(at)
	if err != nil {
		return err
	}
	n, err := f.Write(r.t.Context(), []byte(s))
	if err == nil && n != min(len(s), pageSize) || err != nil && n != 0 {
		r.t.Errorf("writing %q to %s = %d, %v", s, at, n, err)
	}
	return err
}

// tree lists everything below /sys: links with where they lead, files with their mode.
func (r *rig) tree() []string {
	var all []string
	var walk func(d *sysfs.Dir, at string)
	walk = func(d *sysfs.Dir, at string) {
		for _, name := range d.Names() {
			switch n := d.Lookup(name).(type) {
			case *sysfs.Dir:
				all = append(all, at+name+"/")
				walk(n, at+name+"/")
			case *sysfs.Link:
				all = append(all, at+name+" -> "+n.Target)
			case *sysfs.File:
				all = append(all, fmt.Sprintf("%s%s %04o", at, name, n.Mode))
			}
		}
	}
	walk(r.root(), "/")
	return all
}

const sysTree = `/sys/
/sys/bus/
/sys/bus/rapidio/
/sys/bus/rapidio/devices/
/sys/bus/rapidio/devices/00:e:0002 -> ../../../devices/virtual/rapidio_port/rapidio0/rnet_0/00:e:0002
/sys/bus/rapidio/devices/00:s:0000 -> ../../../devices/virtual/rapidio_port/rapidio0/rnet_0/00:s:0000
/sys/bus/rapidio/drivers/
/sys/bus/rapidio/drivers/rec/
/sys/bus/rapidio/drivers/rec/00:e:0002 -> ../../../../devices/virtual/rapidio_port/rapidio0/rnet_0/00:e:0002
/sys/bus/rapidio/drivers/rec/bind 0200
/sys/bus/rapidio/drivers/rec/uevent 0200
/sys/bus/rapidio/drivers/rec/unbind 0200
/sys/bus/rapidio/drivers_autoprobe 0644
/sys/bus/rapidio/drivers_probe 0200
/sys/bus/rapidio/scan 0200
/sys/bus/rapidio/uevent 0200
/sys/class/
/sys/class/rapidio_port/
/sys/class/rapidio_port/rapidio0 -> ../../devices/virtual/rapidio_port/rapidio0
/sys/devices/
/sys/devices/virtual/
/sys/devices/virtual/rapidio_port/
/sys/devices/virtual/rapidio_port/rapidio0/
/sys/devices/virtual/rapidio_port/rapidio0/port_destid 0444
/sys/devices/virtual/rapidio_port/rapidio0/rnet_0/
/sys/devices/virtual/rapidio_port/rapidio0/rnet_0/00:e:0002/
/sys/devices/virtual/rapidio_port/rapidio0/rnet_0/00:e:0002/asm_did 0444
/sys/devices/virtual/rapidio_port/rapidio0/rnet_0/00:e:0002/asm_rev 0444
/sys/devices/virtual/rapidio_port/rapidio0/rnet_0/00:e:0002/asm_vid 0444
/sys/devices/virtual/rapidio_port/rapidio0/rnet_0/00:e:0002/config 0644
/sys/devices/virtual/rapidio_port/rapidio0/rnet_0/00:e:0002/destid 0444
/sys/devices/virtual/rapidio_port/rapidio0/rnet_0/00:e:0002/device_rev 0444
/sys/devices/virtual/rapidio_port/rapidio0/rnet_0/00:e:0002/did 0444
/sys/devices/virtual/rapidio_port/rapidio0/rnet_0/00:e:0002/driver -> ../../../../../../bus/rapidio/drivers/rec
/sys/devices/virtual/rapidio_port/rapidio0/rnet_0/00:e:0002/lprev 0444
/sys/devices/virtual/rapidio_port/rapidio0/rnet_0/00:e:0002/modalias 0444
/sys/devices/virtual/rapidio_port/rapidio0/rnet_0/00:e:0002/subsystem -> ../../../../../../bus/rapidio
/sys/devices/virtual/rapidio_port/rapidio0/rnet_0/00:e:0002/uevent 0644
/sys/devices/virtual/rapidio_port/rapidio0/rnet_0/00:e:0002/vid 0444
/sys/devices/virtual/rapidio_port/rapidio0/rnet_0/00:s:0000/
/sys/devices/virtual/rapidio_port/rapidio0/rnet_0/00:s:0000/asm_did 0444
/sys/devices/virtual/rapidio_port/rapidio0/rnet_0/00:s:0000/asm_rev 0444
/sys/devices/virtual/rapidio_port/rapidio0/rnet_0/00:s:0000/asm_vid 0444
/sys/devices/virtual/rapidio_port/rapidio0/rnet_0/00:s:0000/config 0644
/sys/devices/virtual/rapidio_port/rapidio0/rnet_0/00:s:0000/destid 0444
/sys/devices/virtual/rapidio_port/rapidio0/rnet_0/00:s:0000/device_rev 0444
/sys/devices/virtual/rapidio_port/rapidio0/rnet_0/00:s:0000/did 0444
/sys/devices/virtual/rapidio_port/rapidio0/rnet_0/00:s:0000/hopcount 0444
/sys/devices/virtual/rapidio_port/rapidio0/rnet_0/00:s:0000/lnext 0444
/sys/devices/virtual/rapidio_port/rapidio0/rnet_0/00:s:0000/lprev 0444
/sys/devices/virtual/rapidio_port/rapidio0/rnet_0/00:s:0000/modalias 0444
/sys/devices/virtual/rapidio_port/rapidio0/rnet_0/00:s:0000/routes 0444
/sys/devices/virtual/rapidio_port/rapidio0/rnet_0/00:s:0000/subsystem -> ../../../../../../bus/rapidio
/sys/devices/virtual/rapidio_port/rapidio0/rnet_0/00:s:0000/uevent 0644
/sys/devices/virtual/rapidio_port/rapidio0/rnet_0/00:s:0000/vid 0444
/sys/devices/virtual/rapidio_port/rapidio0/subsystem -> ../../../../class/rapidio_port
/sys/devices/virtual/rapidio_port/rapidio0/sys_size 0444
/sys/devices/virtual/rapidio_port/rapidio0/uevent 0644`

func TestSysfsTree(t *testing.T) {
	r := newRig(t, Small, 2)
	before := r.tree()
	rec := &recorder{}
	drv := rec.driver("rec", ID{modelVendor, modelEndpoint, AnyID, AnyID})
	if err := r.b.Register(drv); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(r.tree(), "\n"); got != sysTree {
		t.Errorf("tree:\n%s\nwant\n%s", got, sysTree)
	}
	r.b.Unregister(drv)
	if got := r.tree(); !slices.Equal(got, before) {
		t.Errorf("tree after the driver:\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(before, "\n"))
	}
	r.b.RemoveMport(r.m)
	for _, l := range r.tree() {
		if strings.Contains(l, "rapidio0") {
			t.Errorf("after the port: %s", l)
		}
	}
}

func TestSysfsTexts(t *testing.T) {
	r := newRig(t, Small, 3)
	if err := r.b.Register((&recorder{}).driver("rec", ID{modelVendor, modelEndpoint, AnyID, AnyID})); err != nil {
		t.Fatal(err)
	}
	r.f.ports[2].regs.v[RegBaseDeviceID] = Small.Reg(2)
	r.add(1, -1)
	const devices = "/sys/bus/rapidio/devices/"
	for at, want := range map[string]string{
		devices + "00:e:0002/did":                      "0x0721\n",
		devices + "00:e:0002/vid":                      "0x0038\n",
		devices + "00:e:0002/device_rev":               "0x00000012\n",
		devices + "00:e:0002/asm_did":                  "0x0001\n",
		devices + "00:e:0002/asm_vid":                  "0x0038\n",
		devices + "00:e:0002/asm_rev":                  "0x0002\n",
		devices + "00:e:0002/destid":                   "0x0001\n",
		devices + "00:e:0002/lprev":                    "00:s:0000\n",
		devices + "00:e:0002/modalias":                 "rapidio:v0038d0721av0038ad0001\n",
		devices + "00:e:0002/uevent":                   "DRIVER=rec\nMODALIAS=rapidio:v0038d0721av0038ad0001\n",
		devices + "00:s:0000/uevent":                   "MODALIAS=rapidio:v0038d0500av0038ad0003\n",
		devices + "00:s:0000/destid":                   "0x00ff\n",
		devices + "00:s:0000/hopcount":                 "0x00\n",
		devices + "00:s:0000/lprev":                    "root\n",
		devices + "00:s:0000/lnext":                    "null\n00:e:0002\n00:e:0003\n",
		devices + "00:s:0000/routes":                   "0001 01\n0002 02\n",
		"/sys/class/rapidio_port/rapidio0/sys_size":    "0\n",
		"/sys/class/rapidio_port/rapidio0/port_destid": "0x0000\n",
		"/sys/class/rapidio_port/rapidio0/uevent":      "",
		"/sys/class/rapidio_port/rapidio1/port_destid": "0xffffffff\n",
		"/sys/bus/rapidio/drivers_autoprobe":           "1\n",
	} {
		if got, err := r.read(at); got != want || err != nil {
			t.Errorf("%s = %q, %v, want %q", at, got, err, want)
		}
	}
	if err := r.write("/sys/bus/rapidio/scan", "1\n"); err != nil {
		t.Error(err)
	}
	if got, err := r.read("/sys/class/rapidio_port/rapidio1/port_destid"); got != "0x0001\n" || err != nil {
		t.Errorf("port_destid after the discovery = %q, %v, want 0x0001", got, err)
	}
	if got, err := r.read("/sys/bus/rapidio/devices/01:e:0001/destid"); got != "0x0000\n" || err != nil {
		t.Errorf("destid of the host = %q, %v, want 0x0000", got, err)
	}
}

func TestSysfsRoutes(t *testing.T) {
	r := newRig(t, Large, 2)
	sw := r.device("00:s:0000")
	if got, _ := r.read("/sys/class/rapidio_port/rapidio0/sys_size"); got != "1\n" {
		t.Errorf("sys_size = %q, want 1", got)
	}
	for dest := range 1000 {
		sw.Net.SetRoute(sw, DestID(dest), 7)
	}
	sw.Net.SetRoute(sw, 3, InvalidRoute)
	sw.Net.SetRoute(sw, 0xfffe, InvalidRoute)
	got, err := r.read("/sys/bus/rapidio/devices/00:s:0000/routes")
	if lines := strings.Count(got, "\n"); err != nil || lines != 512 || !strings.HasPrefix(got, "0000 07\n0001 07\n0002 07\n0004 07\n") || !strings.HasSuffix(got, "\n0200 07\n") {
		t.Errorf("routes has %d lines, %v: %q", lines, err, got)
	}
	if n := len(sw.Routes()); n != 1000 {
		t.Errorf("Routes() has %d entries, want 1000", n)
	}
	sw.Net.SetRoute(sw, 0xfffe, 1)
	if got := sw.Routes(); len(got) != 0xffff || got[0xfffe] != 1 || got[0xfffd] != InvalidRoute {
		t.Errorf("Routes() has %d entries after one for 0xfffe", len(got))
	}
	sw.Net.SetNext(sw, 5, sw)  // has no such port
	sw.Net.SetNext(sw, -1, sw) // nor that
	ep := r.device("00:e:0002")
	ep.Net.SetNext(ep, 0, sw)
	ep.Net.SetRoute(ep, 0, 0)
	if sw.Next(5) != nil || sw.Next(-1) != nil || ep.Next(0) != nil || ep.Routes() != nil {
		t.Error("a port or a switch that there is not has a neighbour")
	}
}

func TestSysfsConfig(t *testing.T) {
	r := newRig(t, Small, 3)
	file, err := r.file("/sys/bus/rapidio/devices/00:e:0002/config")
	if err != nil || file.Size != 16<<20 {
		t.Fatalf("config has %d bytes, %v, want 16 MiB", file.Size, err)
	}
	whole, err := file.ReadAll()
	if err != nil || len(whole) != pageSize || !bytes.Equal(whole[:8], []byte{0x07, 0x21, 0, 0x38, 0, 0, 0, 0x12}) {
		t.Errorf("config begins % x, %d bytes, %v", whole[:min(8, len(whole))], len(whole), err)
	}
	for off := range int64(9) {
		for size := range 9 {
			p := make([]byte, size)
			if n, err := file.ReadAt(p, off); n != size || err != nil || !bytes.Equal(p, whole[off:int(off)+size]) {
				t.Errorf("ReadAt(%d bytes, %d) = %d, %v, % x, want % x", size, off, n, err, p, whole[off:int(off)+size])
			}
		}
	}
	for off, want := range map[int64]int{ConfigSize - 1: 1, ConfigSize - 6: 6, ConfigSize: 0, 1 << 40: 0, -1: 0, 0x40: 64} {
		if n, err := file.ReadAt(make([]byte, 64), off); n != want || err != nil {
			t.Errorf("ReadAt(64 bytes, %#x) = %d, %v, want %d", off, n, err, want)
		}
	}
	data := []byte{1, 2, 3, 4, 5, 6, 7, 8, 9}
	for off := int64(RegComponentTag); off < int64(RegComponentTag)+4; off++ {
		for n := range len(data) + 1 {
			p := make([]byte, n)
			if got, err := file.WriteAt(data[:n], off); got != n || err != nil {
				t.Errorf("WriteAt(%d bytes, %#x) = %d, %v", n, off, got, err)
			}
			if _, err := file.ReadAt(p, off); err != nil || !bytes.Equal(p, data[:n]) {
				t.Errorf("%#x = % x after a write of % x, %v", off, p, data[:n], err)
			}
		}
	}
	for _, off := range []int64{ConfigSize, -1} {
		if n, err := file.WriteAt(data, off); n != 0 || err != nil {
			t.Errorf("WriteAt(%#x) = %d, %v, want 0", off, n, err)
		}
	}
	r.f.ports[1].die() // it does not answer any more
	if n, err := file.ReadAt(make([]byte, 4), 0); n != 0 || !errors.Is(err, unix.EIO) {
		t.Errorf("ReadAt of a device that does not answer = %d, %v, want EIO", n, err)
	}
	d := r.device("00:e:0002")
	d.Net.RemoveDevice(d)
	if n, err := file.WriteAt(data, 0); n != 0 || !errors.Is(err, unix.ENODEV) {
		t.Errorf("WriteAt of a device that went = %d, %v, want ENODEV", n, err)
	}
}

func TestSysfsStores(t *testing.T) {
	r := newRig(t, Small, 3)
	rec := &recorder{}
	if err := r.b.Register(rec.driver("rec", ID{modelVendor, modelEndpoint, AnyID, AnyID})); err != nil {
		t.Fatal(err)
	}
	dead := r.add(2, 1) // a second host, whose scan fails
	dead.opts.Scan = &modelScan{fail: fmt.Errorf("lost the race: %w", bus.ErrBusy)}
	const bus, drv = "/sys/bus/rapidio/", "/sys/bus/rapidio/drivers/rec/"
	for _, c := range []struct {
		at, s string
		want  error
	}{
		{bus + "scan", "", nil}, // below: no write at all
		{bus + "scan", "8", unix.EINVAL}, {bus + "scan", "-2", unix.EINVAL}, {bus + "scan", "x", unix.EINVAL}, {bus + "scan", "1\n\n", unix.EINVAL}, {bus + "scan", "-+1", unix.EINVAL},
		{bus + "scan", "0x7", unix.ENODEV}, {bus + "scan", "1\n", unix.EBUSY}, {bus + "scan", "99999999999999999999", unix.EINVAL},
		{drv + "bind", "00:e:0002", unix.EBUSY}, {drv + "bind", "00:s:0000\n", unix.ENODEV}, {drv + "bind", "nobody", unix.ENODEV}, {drv + "bind", "\n", unix.ENODEV},
		{drv + "unbind", "00:s:0000", unix.ENODEV}, {drv + "unbind", "00:e:0002\n", nil}, {drv + "unbind", "00:e:0002\n", unix.ENODEV}, {drv + "bind", "00:e:0002\n", nil},
		{bus + "drivers_probe", "nobody", unix.ENODEV}, {bus + "drivers_probe", "00:s:0000\n", nil}, {bus + "drivers_autoprobe", "0\n", nil}, {bus + "drivers_autoprobe", "1\n", nil},
		{bus + "uevent", "add", nil}, {bus + "uevent", "explode", unix.EINVAL}, {drv + "uevent", "change\n", nil}, {drv + "uevent", " ", unix.EINVAL},
		{bus + "devices/00:e:0002/uevent", "change", nil}, {bus + "devices/00:e:0002/uevent", "change x", unix.EINVAL}, {bus + "devices/00:e:0002/did", "1", unix.EIO},
		{"/sys/class/rapidio_port/rapidio0/uevent", "add", nil}, {"/sys/class/rapidio_port/rapidio0/uevent", "ad", unix.EINVAL},
	} {
		if c.s == "" {
			continue
		}
		if err := r.write(c.at, c.s); !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
			t.Errorf("writing %q to %s = %v, want %v", c.s, c.at, err, c.want)
		}
	}
	if got, want := rec.take(), []string{"rec probe 00:e:0002", "rec probe 00:e:0003", "rec remove 00:e:0002", "rec probe 00:e:0002"}; !slices.Equal(got, want) {
		t.Errorf("drivers were asked for %q, want %q", got, want)
	}
}

// Whatever is written anywhere: a count or an error, never both, and no panic.
func FuzzSysfsStores(f *testing.F) {
	for i, s := range []string{"-1", "00:e:0002\n", "00:s:0000", "add a63a5a05-8f2d-4a3c-9f0d-0123456789ab A=1", "0"} {
		f.Add(uint8(i), s)
	}
	const bus, drv = "/sys/bus/rapidio/", "/sys/bus/rapidio/drivers/rec/"
	files := []string{bus + "scan", drv + "bind", drv + "unbind", bus + "devices/00:e:0002/uevent", bus + "drivers_autoprobe", bus + "drivers_probe", bus + "uevent", drv + "uevent",
		"/sys/class/rapidio_port/rapidio0/uevent"}
	f.Fuzz(func(t *testing.T, which uint8, s string) {
		if s == "" {
			return
		}
		r := newRig(t, Small, 2)
		r.scan.fail = errors.New("no more")
		if err := r.b.Register((&recorder{}).driver("rec", anyDevice)); err != nil {
			t.Fatal(err)
		}
		if err := r.write(files[int(which)%len(files)], s); err != nil && err.Error() == "" {
			t.Error("an error without a text")
		}
	})
}

// windows is memory that nodes share.
type windows map[DestID][]WindowInfo

func (w windows) Of(node DestID) []WindowInfo { return w[node] }

func TestSysfsWindows(t *testing.T) {
	r := newRig(t, Small, 1)
	f := newModel(Small, 3)
	w := windows{1: {{Index: 0, Size: 4096, Path: "/dev/shm/a"}, {Index: 3, Path: "/dev/shm/b"}}, 0xff: {{Path: "/dev/shm/switch"}}}
	m, err := r.b.AddMport(t.Context(), f.ports[0], MportOptions{Host: 0, Scan: r.scan, Windows: w})
	if err != nil {
		t.Fatal(err)
	}
	m.WindowsChanged() // nobody there yet
	if err := r.b.Scan(t.Context(), m.ID()); err != nil {
		t.Fatal(err)
	}
	links := func() string {
		var s []string
		for _, l := range r.tree() {
			if _, name, ok := strings.Cut(l, "/rapidio1/rnet_1/"); ok && strings.Contains(name, "window") {
				s = append(s, name)
			}
		}
		return strings.Join(s, ", ")
	}
	if got, want := links(), "01:e:0002/window0 -> /dev/shm/a, 01:e:0002/window3 -> /dev/shm/b"; got != want {
		t.Errorf("links = %q, want %q", got, want)
	}
	delete(w, 1)
	w[2] = []WindowInfo{{Index: 1, Path: "/dev/shm/c"}}
	m.WindowsChanged()
	if got, want := links(), "01:e:0003/window1 -> /dev/shm/c"; got != want {
		t.Errorf("links after the change = %q, want %q", got, want)
	}
}
