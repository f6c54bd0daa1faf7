package hwbind

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/internal/syspci"
)

// model is a kernel's driver core above a folder: binding and unbinding, nodes that come and
// go, and operations that fail when they are told to.
type model struct {
	t     *testing.T
	dir   string
	m     *Machine
	match map[string]string // the driver that an address gets without an override
	load  map[string]bool   // modules that can be loaded
	owner map[string]int    // of nodes

	ops    int // operations so far
	failAt int // the one that fails, from 1; 0: none
	stuck  bool
	broken map[string]bool // drivers whose probe fails
}

func newModel(t *testing.T) *model {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "hwbind") // in memory: many small files
	if err != nil {
		dir = t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	k := &model{t: t, dir: dir, match: map[string]string{}, load: map[string]bool{}, owner: map[string]int{}, broken: map[string]bool{}}
	k.m = &Machine{Sys: syspci.Root(k.dir + "/sys"), Dev: k.dir + "/dev", Proc: k.dir + "/proc", State: k.dir + "/run/ring3", Ops: k}
	k.mkdir("sys/module/" + type1)
	for _, d := range []string{"sys/bus/pci/devices", "sys/bus/pci/drivers", "sys/class/net", "sys/class/block", "dev/vfio", "proc/self", "run"} {
		k.mkdir(d)
	}
	k.file("sys/bus/pci/drivers_probe", "")
	for _, d := range []string{VFIO, UIO, "e1000e", "pcieport"} {
		k.driver(d)
	}
	return k
}

func (k *model) mkdir(path string) {
	k.t.Helper()
	if err := os.MkdirAll(filepath.Join(k.dir, path), 0o755); err != nil {
		k.t.Fatal(err)
	}
}

func (k *model) file(path, content string) {
	k.t.Helper()
	k.mkdir(filepath.Dir(path))
	if err := os.WriteFile(filepath.Join(k.dir, path), []byte(content), 0o644); err != nil {
		k.t.Fatal(err)
	}
}

func (k *model) link(path, to string) {
	k.t.Helper()
	k.mkdir(filepath.Dir(path))
	if err := os.Symlink(filepath.Join(k.dir, to), filepath.Join(k.dir, path)); err != nil {
		k.t.Fatal(err)
	}
}

func (k *model) driver(name string) {
	k.file("sys/bus/pci/drivers/"+name+"/bind", "")
	k.file("sys/bus/pci/drivers/"+name+"/unbind", "")
}

const root = "sys/devices/pci0000:00/"

// add adds a function: its place below the root bus ("0000:00:1c.0/0000:03:00.0"), its class,
// its driver, its group.
func (k *model) add(place string, class uint32, driver string, group int) pci.Addr {
	k.t.Helper()
	a, err := pci.ParseAddr(filepath.Base(place))
	if err != nil {
		k.t.Fatal(err)
	}
	at := root + place + "/"
	for name, s := range map[string]string{"vendor": "0x8086", "device": "0x10d3", "subsystem_vendor": "0x8086", "subsystem_device": "0xa01f",
		"revision": "0x00", "driver_override": "(null)", "numa_node": "-1", "modalias": "pci:v00008086"} {
		k.file(at+name, s+"\n")
	}
	k.file(at+"class", fmt.Sprintf("0x%06x\n", class))
	k.file(at+"resource", strings.Repeat("0x0000000000000000 0x0000000000000000 0x0000000000000000\n", 13))
	k.link("sys/bus/pci/devices/"+a.String(), at)
	if group != syspci.NoGroup {
		g := fmt.Sprintf("sys/kernel/iommu_groups/%d", group)
		k.link(g+"/devices/"+a.String(), at)
		k.link(at+"iommu_group", g)
	}
	k.match[a.String()] = driver
	if driver != "" {
		k.link(at+"driver", "sys/bus/pci/drivers/"+driver)
	}
	return a
}

// fails counts an operation, and says whether it is to fail.
func (k *model) fails() error {
	k.ops++
	if k.failAt != 0 && (k.ops == k.failAt || k.stuck && k.ops > k.failAt) {
		return unix.EIO
	}
	return nil
}

// Write is what the kernel does with its files of these names.
func (k *model) Write(file, text string) error {
	if err := k.fails(); err != nil {
		return &fs.PathError{Op: "write", Path: file, Err: err}
	}
	if _, err := os.Stat(file); err != nil {
		return err
	}
	text = strings.TrimSpace(text)
	switch filepath.Base(file) {
	case "driver_override":
		if text == "" {
			text = "(null)"
		}
		return os.WriteFile(file, []byte(text+"\n"), 0o644)
	case "unbind":
		return k.unbind(text, filepath.Base(filepath.Dir(file)))
	case "bind":
		return k.bind(text, filepath.Base(filepath.Dir(file)))
	case "drivers_probe":
		if err := k.bind(text, k.wants(text)); err != nil && !errors.Is(err, unix.ENODEV) {
			return err
		}
		return nil
	}
	return fmt.Errorf("%s: no such file in this model", file)
}

// wants is the driver that a function goes to.
func (k *model) wants(addr string) string {
	if o := text(k.dir, "sys/bus/pci/devices", addr, "driver_override"); o != "(null)" {
		return o
	}
	return k.match[addr]
}

func (k *model) has(addr string) string {
	to, err := os.Readlink(filepath.Join(k.dir, "sys/bus/pci/devices", addr, "driver"))
	if err != nil {
		return ""
	}
	return filepath.Base(to)
}

func (k *model) group(addr string) string {
	to, err := os.Readlink(filepath.Join(k.dir, "sys/bus/pci/devices", addr, "iommu_group"))
	if err != nil {
		return ""
	}
	return filepath.Base(to)
}

func (k *model) unbind(addr, driver string) error {
	if k.has(addr) != driver {
		return unix.ENODEV
	}
	dev := filepath.Join(k.dir, "sys/bus/pci/devices", addr)
	if err := os.Remove(dev + "/driver"); err != nil {
		return err
	}
	switch driver {
	case VFIO:
		for _, o := range names(filepath.Join(k.dir, "sys/kernel/iommu_groups", k.group(addr), "devices")) {
			if k.has(o) == VFIO {
				return nil
			}
		}
		delete(k.owner, k.group(addr))
		return os.Remove(filepath.Join(k.dir, "dev/vfio", k.group(addr)))
	case UIO:
		delete(k.owner, uioName(addr))
		return errors.Join(os.RemoveAll(dev+"/uio"), os.Remove(filepath.Join(k.dir, "dev", uioName(addr))))
	}
	return nil
}

func (k *model) bind(addr, driver string) error {
	switch {
	case driver == "" || k.wants(addr) != driver:
		return unix.ENODEV
	case k.has(addr) != "":
		return unix.EBUSY
	case k.broken[driver]:
		return unix.EINVAL
	}
	k.link("sys/bus/pci/devices/"+addr+"/driver", "sys/bus/pci/drivers/"+driver)
	switch driver {
	case VFIO:
		k.file("dev/vfio/"+k.group(addr), "")
	case UIO:
		k.mkdir("sys/bus/pci/devices/" + addr + "/uio/" + uioName(addr))
		k.file("dev/"+uioName(addr), "")
	}
	return nil
}

// uioName numbers nodes by the function: uio4 is 0000:00:04.0's.
func uioName(addr string) string { return "uio" + addr[9:10] }

func (k *model) Modprobe(_ context.Context, module string) error {
	if err := k.fails(); err != nil {
		return err
	}
	if !k.load[module] {
		return fmt.Errorf("module %s: %w", module, fs.ErrNotExist)
	}
	k.driver(module)
	return nil
}

func (k *model) Chown(path string, uid, _ int) error {
	if err := k.fails(); err != nil {
		return err
	}
	if _, err := os.Stat(path); err != nil {
		return err
	}
	k.owner[filepath.Base(path)] = uid
	return nil
}

func (k *model) OwnerOf(path string) int { return k.owner[filepath.Base(path)] }

func (k *model) Claimed(path string) bool {
	_, err := os.Stat(path + ".claimed")
	return err == nil
}

func (k *model) Settle(context.Context) {}

// snapshot is all that there is, but for modules.
func (k *model) snapshot() string {
	var b strings.Builder
	err := filepath.WalkDir(k.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(k.dir, path)
		switch {
		case d.Type()&fs.ModeSymlink != 0:
			to, _ := os.Readlink(path)
			fmt.Fprintf(&b, "%s -> %s\n", rel, strings.TrimPrefix(to, k.dir))
		case !d.IsDir():
			fmt.Fprintf(&b, "%s: %q\n", rel, text(path))
		case !strings.HasPrefix(rel, "sys/bus/pci/drivers/"):
			fmt.Fprintf(&b, "%s/\n", rel)
		}
		return nil
	})
	if err != nil {
		k.t.Fatal(err)
	}
	return b.String()
}

// fullBind is a bind of all that the flags of a command say.
func (k *model) fullBind(r Request) ([]Result, []string, error) {
	p, err := k.m.PlanBind(r)
	if err != nil {
		return nil, nil, err
	}
	res, err := p.Run(k.t.Context())
	return res, p.Steps(), err
}

func (k *model) fullUnbind(list ...pci.Addr) ([]Result, error) {
	p, err := k.m.PlanUnbind(list, false)
	if err != nil {
		return nil, err
	}
	return p.Run(k.t.Context())
}
