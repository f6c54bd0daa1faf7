package uio

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/internal/syspci"
)

// generic is the kernel's driver for any PCI function.
const generic = "uio_pci_generic"

// place is a device that a UIO driver has.
type place struct {
	name string           // "0000:00:05.0", or "uio0" where there is no PCI
	node string           // "uio0"
	fn   *syspci.Function // nil where there is no PCI
	maps []window
}

// window is one of a UIO driver's maps (sysfs-class-uio: maps/mapN).
type window struct {
	index  int
	addr   uint64 // where its first page begins
	size   uint64 // of the mapping, in bytes
	offset uint64 // of the registers in it
}

// tree is where the kernel's files are.
type tree struct {
	sys syspci.Root
	dev string
}

// locate finds the device that a user named.
func (t tree) locate(device string) (*place, error) {
	if a, err := pci.ParseAddr(device); err == nil {
		return t.locatePCI(a)
	}
	node := strings.TrimPrefix(device, "/dev/")
	if n, ok := strings.CutPrefix(node, "uio"); !ok || !isNumber(n) {
		return nil, fmt.Errorf("uio: device %q: want a PCI address as in 0000:03:00.0, or uio0", device)
	}
	if _, err := os.Stat(t.class(node)); err != nil {
		if _, err := os.Stat(t.class()); errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%s: the kernel's module uio is not loaded: load the device's UIO driver, as in 'sudo modprobe %s': %w", node, generic, bus.ErrGone)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%s: no such UIO device here; 'ls /sys/class/uio' lists those there are: %w", node, bus.ErrGone)
		}
		return nil, fmt.Errorf("%s: looking for the device: %w", node, err)
	}
	// What stands on the PCI bus is a PCI function, by whatever name it is asked for.
	switch a, ok, err := t.sys.UIOFunction(node); {
	case err != nil:
		return nil, err
	case ok:
		return t.locatePCI(a)
	}
	maps, err := t.windows(node)
	if err != nil {
		return nil, err
	}
	return &place{name: node, node: node, maps: maps}, nil
}

func (t tree) locatePCI(a pci.Addr) (*place, error) {
	fn, err := t.sys.Function(a)
	if err != nil {
		return nil, err
	}
	ent, err := os.ReadDir(t.sys.Path(a, "uio"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: looking for its UIO device: %w", a, err)
	}
	i := slices.IndexFunc(ent, func(e fs.DirEntry) bool { return strings.HasPrefix(e.Name(), "uio") })
	if i < 0 {
		return nil, t.notUIO(fn)
	}
	p := &place{name: a.String(), node: ent[i].Name(), fn: fn}
	if p.maps, err = t.windows(p.node); err != nil {
		return nil, fmt.Errorf("%s: %w", a, err)
	}
	return p, nil
}

// notUIO says why a function is no UIO device, and what makes it one.
func (t tree) notUIO(fn *syspci.Function) error {
	remedy := fmt.Sprintf("'sudo ring3 bind %s --driver %s'", fn.Addr, generic)
	if _, err := os.Stat(filepath.Join(string(t.sys), "bus/pci/drivers", generic)); err != nil {
		remedy = fmt.Sprintf("'sudo modprobe %s', then %s", generic, remedy)
	}
	switch fn.Driver {
	case "":
		return fmt.Errorf("%s: no kernel driver has it, want %s: %s: %w", fn.Addr, generic, remedy, bus.ErrNotSupported)
	case generic:
		return fmt.Errorf("%s: %s has it but shows no UIO device: it is being bound, or unbound: %w", fn.Addr, generic, bus.ErrGone)
	}
	return fmt.Errorf("%s: the kernel's driver %s has it, want %s: %s: %w", fn.Addr, fn.Driver, generic, remedy, bus.ErrBusy)
}

// class is a path below /sys/class/uio.
func (t tree) class(elem ...string) string { return t.sys.UIO(elem...) }

// windows reads the maps of a UIO device, in the order of their numbers.
func (t tree) windows(node string) ([]window, error) {
	ent, err := os.ReadDir(t.class(node, "maps"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: listing its maps: %w", node, err)
	}
	var out []window
	for _, e := range ent {
		n, ok := strings.CutPrefix(e.Name(), "map")
		i, err := strconv.ParseUint(n, 10, 16)
		if !ok || err != nil {
			continue
		}
		w := window{index: int(i)}
		for _, f := range []struct {
			name string
			put  *uint64
		}{{"addr", &w.addr}, {"size", &w.size}, {"offset", &w.offset}} {
			if *f.put, err = number(t.class(node, "maps", e.Name(), f.name)); err != nil {
				return nil, fmt.Errorf("%s: %w", node, err)
			}
		}
		if w.offset >= w.size {
			return nil, fmt.Errorf("%s: map %d: registers at %#x of %#x bytes: want them inside: %w", node, i, w.offset, w.size, bus.ErrProtocol)
		}
		out = append(out, w)
	}
	slices.SortFunc(out, func(a, b window) int { return a.index - b.index })
	return out, nil
}

// info is the region that a map is.
func (w window) info() bus.RegionInfo {
	return bus.RegionInfo{Index: w.index, Size: w.size - w.offset, Addr: w.addr + w.offset}
}

// number reads a file that holds one number.
func number(path string) (uint64, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("reading a number: %w", err)
	}
	s := strings.TrimSuffix(string(b), "\n")
	n, err := strconv.ParseUint(s, 0, 64)
	if err != nil {
		return 0, fmt.Errorf("reading %s: %q: want a number: %w", path, s, bus.ErrProtocol)
	}
	return n, nil
}

func isNumber(s string) bool {
	_, err := strconv.ParseUint(s, 10, 20)
	return err == nil
}
