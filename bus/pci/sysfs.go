package pci

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"path"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/internal/cpuset"
	"github.com/ring3dev/ring3/sysfs"
)

// SysfsInfo is what sysfs shows of a function beyond what the function knows itself.
type SysfsInfo struct {
	Driver string                 // name of the driver that it is bound to; "" for none
	IRQ    int                    // its (first) number in /proc/interrupts; 0 for none
	MSI    map[int]bus.IRQMode    // the numbers that are MSI or MSI-X, for msi_irqs/
	Attrs  map[string]*sysfs.File // the driver's own files: see AttrUser
	Dirs   map[string]*sysfs.Dir  // and directories: see DirUser
	// NoReset says that it has no reset, and no file of that name.
	NoReset bool
}

// Sysfs shows PCI functions in a tree laid out as the kernel's /sys:
//
//	devices/pciDDDD:BB/ADDR/...           a directory a function, inside its bridge's
//	bus/pci/devices/ADDR                  a link to it
//	bus/pci/drivers/NAME/ADDR             a link to each that is bound
//
// The files have the kernel's names and formats, as Documentation/ABI/testing/sysfs-bus-pci
// has them. Missing is resourceN (which is there to be mapped, as these regions
// cannot be). What is written to acts through SysfsOps: remove, rescan, reset, driver_override and uevent of a function,
// rescan, drivers_probe, drivers_autoprobe and uevent of the bus, bind, unbind, new_id, remove_id and uevent of a driver.
// Without it those files are not there, or read-only, and so are the others
// that the kernel lets root write, but for config. lspci reads
// the tree with -A linux-sysfs -O sysfs.path=DIR.
//
// Safe for concurrent use.
type Sysfs struct {
	root    *sysfs.Dir
	devices *sysfs.Dir
	drivers *sysfs.Dir
	ops     SysfsOps // nil: nobody acts

	mu    sync.Mutex
	attrs map[string][]string // names of what drivers put there, by the function's path; guarded by mu
}

// NewSysfs prepares bus/pci in root, which stands for /sys, for nobody to act on.
func NewSysfs(root *sysfs.Dir) *Sysfs { return NewSysfsOps(root, nil) }

// NewSysfsOps is NewSysfs with files that act through o; nil: there are none.
func NewSysfsOps(root *sysfs.Dir, o SysfsOps) *Sysfs {
	s := &Sysfs{
		root: root, devices: root.MkdirAll(busDir + "/devices"), drivers: root.MkdirAll(busDir + "/drivers"), ops: o,
		attrs: map[string][]string{},
	}
	root.MkdirAll("devices")
	if o != nil {
		s.busOps()
	}
	return s
}

const busDir = "/bus/pci"

// SysfsPath is where a function stands below /sys:
// "/devices/pci1000:00/1000:00:01.0/1000:01:00.0".
func SysfsPath(f *Function) string {
	if f.Parent != nil {
		return SysfsPath(f.Parent) + "/" + f.Addr.String()
	}
	return fmt.Sprintf("/devices/pci%04x:%02x/%s", f.Addr.Domain, f.Addr.Bus, f.Addr)
}

// AddDriver shows a driver, bound or not.
func (s *Sysfs) AddDriver(name string) *sysfs.Dir {
	d := s.drivers.MkdirAll(name)
	if s.ops != nil {
		s.driverOps(d, name)
	}
	return d
}

// RemoveDriver takes a driver away that nothing is bound to any more.
func (s *Sysfs) RemoveDriver(name string) { s.drivers.Remove(name) }

// Add shows a function, or shows it anew after its binding changed. It returns the
// function's directory, for what a driver's class adds (net/eth0). c is where config
// is read and written; nil means the function's own Config.
func (s *Sysfs) Add(f *Function, c bus.Config, i SysfsInfo) *sysfs.Dir {
	if c == nil {
		c = f.Config
	}
	at := SysfsPath(f)
	d := s.root.MkdirAll(at)
	s.unbind(f, d)
	s.replaceAttrs(at, d, i)
	fill(d, f, c, i)
	if s.ops != nil {
		s.functionOps(d, f, i)
	}
	d.Put("subsystem", &sysfs.Link{Target: sysfs.Rel(at, busDir)})
	if i.Driver != "" {
		drv := busDir + "/drivers/" + i.Driver
		d.Put("driver", &sysfs.Link{Target: sysfs.Rel(at, drv)})
		s.AddDriver(i.Driver).Put(f.Addr.String(), &sysfs.Link{Target: sysfs.Rel(drv, at)})
	}
	s.devices.Put(f.Addr.String(), &sysfs.Link{Target: sysfs.Rel(busDir+"/devices", at)})
	return d
}

// replaceAttrs takes away what the driver put there that the function had before, and puts what that has which it has now.
func (s *Sysfs) replaceAttrs(at string, d *sysfs.Dir, i SysfsInfo) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range s.attrs[at] {
		d.Remove(name)
	}
	delete(s.attrs, at)
	put := func(name string, n sysfs.Node) {
		d.Put(name, n)
		s.attrs[at] = append(s.attrs[at], name)
	}
	for name, f := range i.Attrs {
		put(name, f)
	}
	for name, sub := range i.Dirs {
		put(name, sub)
	}
}

// Remove takes a function away, with all that stands behind it in the tree.
func (s *Sysfs) Remove(f *Function) {
	at := SysfsPath(f)
	d, ok := lookupDir(s.root, at)
	if !ok {
		return
	}
	s.remove(d)
	s.unbind(f, d)
	s.forget(at)
	s.devices.Remove(f.Addr.String())
	if up, ok := lookupDir(s.root, path.Dir(at)); ok {
		up.Remove(f.Addr.String())
	}
}

// forget drops what is remembered of a function and of all behind it.
func (s *Sysfs) forget(at string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for p := range s.attrs {
		if p == at || strings.HasPrefix(p, at+"/") {
			delete(s.attrs, p)
		}
	}
}

// remove takes away the links to all functions below a directory.
func (s *Sysfs) remove(d *sysfs.Dir) {
	for _, name := range d.Names() {
		a, err := ParseAddr(name)
		sub, ok := d.Lookup(name).(*sysfs.Dir)
		if err != nil || !ok {
			continue
		}
		s.remove(sub)
		s.unbind(&Function{Addr: a}, sub)
		s.devices.Remove(name)
	}
}

func (s *Sysfs) unbind(f *Function, d *sysfs.Dir) {
	if l, ok := d.Lookup("driver").(*sysfs.Link); ok {
		if drv, ok := s.drivers.Lookup(path.Base(l.Target)).(*sysfs.Dir); ok {
			drv.Remove(f.Addr.String())
		}
		d.Remove("driver")
	}
}

func lookupDir(d *sysfs.Dir, at string) (*sysfs.Dir, bool) {
	for _, name := range strings.Split(strings.Trim(at, "/"), "/") {
		sub, ok := d.Lookup(name).(*sysfs.Dir)
		if !ok {
			return nil, false
		}
		d = sub
	}
	return d, true
}

// fill makes the files of a function's directory.
func fill(d *sysfs.Dir, f *Function, c bus.Config, i SysfsInfo) {
	id := f.ID
	d.Put("vendor", sysfs.Showf("0x%04x", id.Vendor))
	d.Put("device", sysfs.Showf("0x%04x", id.Device))
	d.Put("subsystem_vendor", sysfs.Showf("0x%04x", id.SubVendor))
	d.Put("subsystem_device", sysfs.Showf("0x%04x", id.SubDevice))
	d.Put("class", sysfs.Showf("0x%06x", id.Class))
	d.Put("revision", sysfs.Showf("0x%02x", id.Revision))
	d.Put("irq", sysfs.Showf("%d", i.IRQ))
	d.Put("modalias", sysfs.Showf("%s", Modalias(id)))
	d.Put("uevent", sysfs.Showf("%s", ueventText(f, i.Driver)))
	d.Put("resource", sysfs.Showf("%s", resources(f)))
	d.Put("config", configFile(c))
	d.Put("numa_node", sysfs.Showf("-1"))
	d.Put("local_cpus", sysfs.Show(func() string { return cpus(cpuset.FormatMask) }))
	d.Put("local_cpulist", sysfs.Show(func() string { return cpus(cpuset.FormatList) }))
	enabled := 0
	if i.Driver != "" || f.IsBridge() {
		enabled = 1
	}
	d.Put("enable", sysfs.Showf("%d", enabled))
	d.Put("power_state", sysfs.Show(func() string { return powerState(c) }))
	d.Put("broken_parity_status", sysfs.Showf("0"))
	d.Put("msi_bus", sysfs.Showf("1"))
	d.Put("ari_enabled", sysfs.Showf("0"))
	d.Put("driver_override", sysfs.Showf("(null)"))
	if f.IsBridge() {
		d.Put("secondary_bus_number", sysfs.Showf("%d", f.Secondary))
		d.Put("subordinate_bus_number", sysfs.Showf("%d", f.Subordinate))
	}
	if e, ok := FindExpress(c); ok {
		d.Put("max_link_speed", sysfs.Show(func() string { return LinkSpeed(c.Read32(e.At + ExpLnkCap)) }))
		d.Put("max_link_width", sysfs.Show(func() string { return linkWidth(c.Read32(e.At + ExpLnkCap)) }))
		d.Put("current_link_speed", sysfs.Show(func() string { return LinkSpeed(uint32(c.Read16(e.At + ExpLnkSta))) }))
		d.Put("current_link_width", sysfs.Show(func() string { return linkWidth(uint32(c.Read16(e.At + ExpLnkSta))) }))
	}
	d.Remove("msi_irqs")
	for n, mode := range i.MSI {
		name := "msi"
		if mode == bus.MSIX {
			name = "msix"
		}
		d.MkdirAll("msi_irqs").Put(fmt.Sprint(n), sysfs.Showf("%s", name))
	}
	aerFiles(d, f, c)
}

// Modalias is what module aliases are matched with: "pci:v00008086d000010D3sv...".
func Modalias(id FunctionID) string {
	return fmt.Sprintf("pci:v%08Xd%08Xsv%08Xsd%08Xbc%02Xsc%02Xi%02X", id.Vendor, id.Device, id.SubVendor, id.SubDevice,
		uint8(id.Class>>16), uint8(id.Class>>8), uint8(id.Class))
}

// ueventText is the file uevent, without its last newline.
func ueventText(f *Function, driver string) string {
	var b strings.Builder
	if driver != "" {
		fmt.Fprintf(&b, "DRIVER=%s\n", driver)
	}
	id := f.ID
	fmt.Fprintf(&b, "PCI_CLASS=%04X\nPCI_ID=%04X:%04X\nPCI_SUBSYS_ID=%04X:%04X\nPCI_SLOT_NAME=%s\nMODALIAS=%s",
		id.Class, id.Vendor, id.Device, id.SubVendor, id.SubDevice, f.Addr, Modalias(id))
	return b.String()
}

func cpus(format func(unix.CPUSet, int) string) string {
	set, err := cpuset.Online()
	if err != nil {
		return ""
	}
	return format(set, cpuset.Max(set)+1)
}

// powerState is the state that the Power Management capability tells (PCI Bus Power
// Management 1.2, 3.2.4); without one a function is always in D0.
func powerState(c bus.Config) string {
	at, ok := FindPowerControl(c)
	if !ok {
		return "D0"
	}
	return [...]string{"D0", "D1", "D2", "D3hot"}[c.Read16(at)&PMCtlState]
}

// LinkSpeed is how sysfs writes the speed in the low bits of Link Capabilities or Link Status: "2.5 GT/s PCIe".
func LinkSpeed(v uint32) string {
	gts := [...]string{1: "2.5", 2: "5.0", 3: "8.0", 4: "16.0", 5: "32.0", 6: "64.0"}
	if n := v & uint32(LnkStaSpeed); n > 0 && int(n) < len(gts) {
		return gts[n] + " GT/s PCIe"
	}
	return "Unknown"
}

// linkWidth is of either register too.
func linkWidth(v uint32) string { return fmt.Sprint(v & uint32(LnkStaWidth) >> 4) }

// Flags of a resource (the kernel's ioport.h), as the file resource shows them: the low
// bits are those of the BAR itself.
const (
	resIO        = 0x100
	resMem       = 0x200
	resPrefetch  = 0x2000
	resReadOnly  = 0x4000
	resSizeAlign = 0x40000
	resMem64     = 0x100000
	resUnset     = 0x20000000
)

// Lines of the file resource. The kernel of every distribution is built with SR-IOV, which
// takes lines 7 to 12.
const (
	resROM          = 6
	resWindows      = 13
	resLinesDevice  = 13
	resLinesBridge  = 17
	resWindowIO     = resWindows
	resWindowMem    = resWindows + 1
	resWindowPref64 = resWindows + 2
)

// resources is the file resource, without its last newline.
func resources(f *Function) string {
	var lines [resLinesBridge][3]uint64 // start, end, flags
	put := func(i int, base, size, flags uint64) {
		if base == 0 {
			flags |= resUnset
		}
		lines[i] = [3]uint64{base, base + size - 1, flags}
	}
	for _, r := range f.BARs {
		flags := uint64(resSizeAlign | resMem)
		switch {
		case r.Kind == bus.RegionIO:
			flags = resSizeAlign | resIO | barIO
		case r.Is64:
			flags |= resMem64 | bar64
		}
		if r.Prefetch {
			flags |= resPrefetch | barPrefetch
		}
		put(r.Index, r.Addr, r.Size, flags)
	}
	if r := f.ROM; r.Size != 0 {
		put(resROM, r.Addr, r.Size, resSizeAlign|resReadOnly|resPrefetch|resMem)
	}
	n := resLinesDevice
	if f.IsBridge() {
		n = resLinesBridge
		if w := f.Windows.IO; w.Size != 0 {
			put(resWindowIO, w.Base, w.Size, resIO|1)
		}
		if w := f.Windows.Mem; w.Size != 0 {
			put(resWindowMem, w.Base, w.Size, resMem)
		}
		if w := f.Windows.Mem64; w.Size != 0 {
			flags := uint64(resMem | resPrefetch)
			if f.pref64 {
				flags |= resMem64 | 1
			}
			put(resWindowPref64, w.Base, w.Size, flags)
		}
	}
	var b bytes.Buffer
	for i, l := range lines[:n] {
		if i > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "0x%016x 0x%016x 0x%016x", l[0], l[1], l[2])
	}
	return b.String()
}

// configFile is config space as a file. Aligned words are accessed as such, the rest as
// bytes and halves, as the kernel does.
func configFile(c bus.Config) *sysfs.File {
	step := func(off int64, n int) int {
		switch {
		case off&1 != 0 || n < 2:
			return 1
		case off&3 != 0 || n < 4:
			return 2
		}
		return 4
	}
	size := c.Size()
	read := func(p []byte, off int64) (int, error) {
		if off < 0 || off >= int64(size) {
			return 0, nil
		}
		p = p[:min(len(p), size-int(off))]
		for done := 0; done < len(p); {
			at, rest := off+int64(done), p[done:]
			switch n := step(at, len(rest)); n {
			case 1:
				rest[0] = c.Read8(bus.Off(at))
				done++
			case 2:
				binary.LittleEndian.PutUint16(rest, c.Read16(bus.Off(at)))
				done += n
			default:
				binary.LittleEndian.PutUint32(rest, c.Read32(bus.Off(at)))
				done += n
			}
		}
		return len(p), nil
	}
	write := func(p []byte, off int64) (int, error) {
		if off < 0 || off >= int64(size) {
			return 0, nil
		}
		p = p[:min(len(p), size-int(off))]
		for done := 0; done < len(p); {
			at, rest := off+int64(done), p[done:]
			switch n := step(at, len(rest)); n {
			case 1:
				c.Write8(bus.Off(at), rest[0])
				done++
			case 2:
				c.Write16(bus.Off(at), binary.LittleEndian.Uint16(rest))
				done += n
			default:
				c.Write32(bus.Off(at), binary.LittleEndian.Uint32(rest))
				done += n
			}
		}
		return len(p), nil
	}
	return sysfs.Binary(0o644, size, read, write)
}
