// Package syspci reads the machine's own PCI functions from the kernel's /sys: who they
// are, which driver has them, which IOMMU group they are in. It changes nothing.
//
// Sources: the kernel's Documentation/ABI/testing/sysfs-bus-pci and
// sysfs-kernel-iommu_groups.
package syspci

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// Root is where sysfs is mounted. Tests have a tree of their own.
type Root string

// Sys is the machine's.
const Sys Root = "/sys"

// NoGroup is the group of a function that no IOMMU confines.
const NoGroup = -1

// Function is a function as the kernel shows it.
type Function struct {
	Addr     pci.Addr
	ID       pci.FunctionID
	Driver   string           // the kernel's driver that has it; "" for none
	Override string           // driver_override; "" for none
	Group    int              // its IOMMU group, or NoGroup
	NUMA     int              // its NUMA node, -1 if there is none
	Bridge   bool             // its class is that of a PCI-to-PCI bridge, ports included
	BARs     []bus.RegionInfo // that have an address, in index order
}

// String is "0000:03:00.0 (8086:10d3, driver e1000e)".
func (f *Function) String() string {
	d := "no driver"
	if f.Driver != "" {
		d = "driver " + f.Driver
	}
	return fmt.Sprintf("%s (%s, %s)", f.Addr, f.ID, d)
}

// Path is a file of a function: Path(a, "config"), or its directory: Path(a).
func (r Root) Path(a pci.Addr, file ...string) string {
	return filepath.Join(append([]string{string(r), "bus/pci/devices", a.String()}, file...)...)
}

// UIO is a path of a UIO device ("uio0"): UIO(node, "maps"), or its directory: UIO(node). UIO() is the class.
func (r Root) UIO(elem ...string) string {
	return filepath.Join(append([]string{string(r), "class/uio"}, elem...)...)
}

// UIOFunction is the function that a UIO device is; ok is false where it is none, but on another bus, or is not there.
func (r Root) UIOFunction(node string) (a pci.Addr, ok bool, err error) {
	if on, err := os.Readlink(r.UIO(node, "device", "subsystem")); err != nil || filepath.Base(on) != "pci" {
		return a, false, nil
	}
	to, err := filepath.EvalSymlinks(r.UIO(node, "device"))
	if err != nil {
		return a, false, fmt.Errorf("%s: looking for its PCI function: %w", node, err)
	}
	if a, err = pci.ParseAddr(filepath.Base(to)); err != nil {
		return a, false, fmt.Errorf("%s: looking for its PCI function: %w: %w", node, err, bus.ErrProtocol)
	}
	return a, true, nil
}

// Function reads one function. Where there is none, or it vanishes meanwhile: bus.ErrGone.
func (r Root) Function(a pci.Addr) (*Function, error) {
	f, err := r.function(a)
	if err == nil {
		return f, nil
	}
	if _, there := os.Stat(r.Path(a)); errors.Is(there, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil, fmt.Errorf("%s: no such PCI function here; 'lspci -D' lists those there are: %w", a, bus.ErrGone)
	}
	return nil, err
}

func (r Root) function(a pci.Addr) (*Function, error) {
	f := &Function{Addr: a, Group: NoGroup, NUMA: -1}
	if err := r.identify(f); err != nil {
		return nil, err
	}
	const bridgeClass = 0x0604 // base class and subclass of a PCI-to-PCI bridge
	f.Bridge = f.ID.Class>>8 == bridgeClass
	if s, err := r.text(a, "driver_override"); err == nil && s != "(null)" {
		f.Override = s
	}
	if s, err := r.text(a, "numa_node"); err == nil {
		if n, err := strconv.Atoi(s); err == nil {
			f.NUMA = n
		}
	}
	f.Driver = r.link(a, "driver")
	if g := r.link(a, "iommu_group"); g != "" {
		n, err := strconv.ParseUint(g, 10, 31)
		if err != nil {
			return nil, fmt.Errorf("%s: reading iommu_group: %q: want a number: %w", a, g, bus.ErrProtocol)
		}
		f.Group = int(n)
	}
	s, err := r.text(a, "resource")
	if err != nil {
		return nil, err
	}
	if f.BARs, err = parseResource(s); err != nil {
		return nil, fmt.Errorf("%s: reading resource: %w", a, err)
	}
	return f, nil
}

// identify reads what makes up a function's ID.
func (r Root) identify(f *Function) error {
	for _, v := range []struct {
		file string
		bits int
		put  func(uint64)
	}{
		{"vendor", 16, func(v uint64) { f.ID.Vendor = uint16(v) }},
		{"device", 16, func(v uint64) { f.ID.Device = uint16(v) }},
		{"subsystem_vendor", 16, func(v uint64) { f.ID.SubVendor = uint16(v) }},
		{"subsystem_device", 16, func(v uint64) { f.ID.SubDevice = uint16(v) }},
		{"class", 24, func(v uint64) { f.ID.Class = uint32(v) }},
		{"revision", 8, func(v uint64) { f.ID.Revision = uint8(v) }},
	} {
		s, err := r.text(f.Addr, v.file)
		if err != nil {
			return err
		}
		n, err := strconv.ParseUint(s, 0, v.bits)
		if err != nil {
			return fmt.Errorf("%s: reading %s: %q: want a number of %d bits: %w", f.Addr, v.file, s, v.bits, bus.ErrProtocol)
		}
		v.put(n)
	}
	return nil
}

// Functions reads all functions, in the order of their addresses. Those that vanish
// meanwhile are left out.
func (r Root) Functions() ([]*Function, error) {
	entries, err := os.ReadDir(filepath.Join(string(r), "bus/pci/devices"))
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil // a machine without PCI
		}
		return nil, fmt.Errorf("listing the PCI functions: %w", err)
	}
	var out []*Function
	for _, e := range entries {
		a, err := pci.ParseAddr(e.Name())
		if err != nil {
			continue
		}
		f, err := r.Function(a)
		if errors.Is(err, bus.ErrGone) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, f)
	}
	sortByAddr(out)
	return out, nil
}

func sortByAddr(f []*Function) {
	slices.SortFunc(f, func(a, b *Function) int {
		switch {
		case a.Addr.Less(b.Addr):
			return -1
		case b.Addr.Less(a.Addr):
			return 1
		}
		return 0
	})
}

// Members reads the functions of an IOMMU group, in the order of their addresses. Those that
// vanish meanwhile are left out.
func (r Root) Members(group int) ([]*Function, error) {
	dir := filepath.Join(string(r), "kernel/iommu_groups", strconv.Itoa(group), "devices")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("listing IOMMU group %d: %w", group, err)
	}
	var out []*Function
	for _, e := range entries {
		a, err := pci.ParseAddr(e.Name())
		if err != nil {
			continue // a platform device
		}
		f, err := r.Function(a)
		if errors.Is(err, bus.ErrGone) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, f)
	}
	sortByAddr(out)
	return out, nil
}

// GroupType is how the kernel uses an IOMMU group by itself: "DMA" and "DMA-FQ" translate,
// "identity" does not.
func (r Root) GroupType(group int) (string, error) {
	b, err := os.ReadFile(filepath.Join(string(r), "kernel/iommu_groups", strconv.Itoa(group), "type"))
	if err != nil {
		return "", fmt.Errorf("reading the type of IOMMU group %d: %w", group, err)
	}
	return strings.TrimSuffix(string(b), "\n"), nil
}

// text is a small file without its last newline.
func (r Root) text(a pci.Addr, file string) (string, error) {
	b, err := os.ReadFile(r.Path(a, file))
	if err != nil {
		return "", fmt.Errorf("%s: reading %s: %w", a, file, err)
	}
	return strings.TrimSuffix(string(b), "\n"), nil
}

// link is the last element of what a link points to; "" where there is none.
func (r Root) link(a pci.Addr, file string) string {
	to, err := os.Readlink(r.Path(a, file))
	if err != nil {
		return ""
	}
	return filepath.Base(to)
}

// Flags in the file resource (the kernel's ioport.h).
const (
	resIO       = 0x100
	resMem      = 0x200
	resPrefetch = 0x2000
	resMem64    = 0x100000
	resUnset    = 0x20000000
)

// bars is how many of resource's lines are BARs.
const bars = 6

// parseResource reads the BARs from a file resource: "start end flags" a line, in hex.
func parseResource(s string) ([]bus.RegionInfo, error) {
	var out []bus.RegionInfo
	for i, line := range strings.Split(s, "\n") {
		if i == bars {
			break
		}
		f := strings.Fields(line)
		if len(f) != 3 {
			return nil, fmt.Errorf("line %d is %q: want start, end and flags: %w", i, line, bus.ErrProtocol)
		}
		var v [3]uint64
		for j := range f {
			var err error
			if v[j], err = strconv.ParseUint(f[j], 0, 64); err != nil {
				return nil, fmt.Errorf("line %d is %q: want hexadecimal numbers: %w", i, line, bus.ErrProtocol)
			}
		}
		start, end, flags := v[0], v[1], v[2]
		if flags&(resIO|resMem) == 0 || end == 0 {
			continue
		}
		if end < start || end-start == ^uint64(0) {
			return nil, fmt.Errorf("line %d is %q: ends before it starts: %w", i, line, bus.ErrProtocol)
		}
		r := bus.RegionInfo{Index: i, Size: end - start + 1, Addr: start, Prefetch: flags&resPrefetch != 0, Is64: flags&resMem64 != 0}
		if flags&resIO != 0 {
			r.Kind = bus.RegionIO
		}
		if flags&resUnset != 0 {
			r.Addr = 0
		}
		out = append(out, r)
	}
	return out, nil
}
