package vfio

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/internal/syspci"
)

// Device files.
const (
	containerPath = "/dev/vfio/vfio"
	iommufdPath   = "/dev/iommu"
)

// Access is what stands between a process and a function, as far as it can be told without
// opening it.
type Access struct {
	Addr    pci.Addr
	Driver  string   // the kernel's driver that has it; "" for none
	Group   int      // its IOMMU group, -1 for none
	Unsafe  bool     // the group is one of the no-IOMMU mode
	Members []Member // of the group, this function included, in the order of their addresses
	API     API      // what Open would use
	Paths   []string // device files that Open would open
	Err     error    // why Open would fail; nil if nothing speaks against it
}

// Member is a function of an IOMMU group.
type Member struct {
	Addr   pci.Addr
	Driver string // the kernel's driver that has it; "" for none
	// Blocks says that its driver keeps the group from being used: devices of one group can
	// reach each other.
	Blocks bool
}

// Look tells how a function can be opened, or why it cannot. It opens nothing. It fails where
// addr is none, or there is no such function.
func Look(addr string, o Options) (*Access, error) {
	a, err := pci.ParseAddr(addr)
	if err != nil {
		return nil, err
	}
	o = o.withDefaults()
	fn, err := o.Root.Function(a)
	if err != nil {
		return nil, err
	}
	return o.look(fn), nil
}

// look is Look of a function.
func (o Options) look(fn *syspci.Function) *Access {
	a := &Access{Addr: fn.Addr, Driver: fn.Driver, Group: fn.Group}
	if fn.Group != syspci.NoGroup {
		a.Members = o.members(fn.Group)
		a.Unsafe = o.isUnsafe(fn.Group)
	}
	if a.Err = o.bound(fn, a); a.Err != nil {
		return a
	}
	a.API, a.Paths, a.Err = o.choose(a)
	if a.Err == nil {
		a.Err = a.blocked()
	}
	return a
}

// isVFIO says whether a driver of the kernel's gives its devices to VFIO: vfio-pci, and the
// variants for single devices (mlx5_vfio_pci).
func isVFIO(driver string) bool { return strings.Contains(driver, "vfio") }

// members lists a group, as far as it can be read.
func (o Options) members(group int) []Member {
	fns, err := o.Root.Members(group)
	if err != nil {
		return nil
	}
	var out []Member
	for _, f := range fns {
		// These the kernel lets pass: stubs, and ports, which do no DMA.
		blocks := f.Driver != "" && !isVFIO(f.Driver) && f.Driver != "pci-stub" && !f.Bridge
		out = append(out, Member{f.Addr, f.Driver, blocks})
	}
	return out
}

// isUnsafe says whether a group is one that VFIO made for a device without an IOMMU.
func (o Options) isUnsafe(group int) bool {
	b, err := os.ReadFile(filepath.Join(string(o.Root), "kernel/iommu_groups", strconv.Itoa(group), "name"))
	return err == nil && strings.TrimSpace(string(b)) == "vfio-noiommu"
}

// bindFirst is the remedy for a function that is not VFIO's.
func bindFirst(a pci.Addr) string {
	return fmt.Sprintf("sudo ring3 bind %s --driver vfio-pci --owner $USER", a)
}

// bound says why a function is not there for VFIO.
func (o Options) bound(fn *syspci.Function, a *Access) error {
	switch {
	case fn.Bridge:
		return fmt.Errorf("it is a bridge, which vfio-pci refuses: use uio (sudo ring3 bind %s --driver uio_pci_generic): %w", fn.Addr, bus.ErrNotSupported)
	case fn.Group == syspci.NoGroup:
		return fmt.Errorf("it is in no IOMMU group: switch the IOMMU on in the firmware's set-up (VT-d, AMD-Vi) and boot with intel_iommu=on (Intel) or without amd_iommu=off: %w", bus.ErrNoIOMMU)
	case !isVFIO(fn.Driver):
		module := ""
		if _, err := os.Stat(filepath.Join(string(o.Root), "bus/pci/drivers/vfio-pci")); errors.Is(err, fs.ErrNotExist) {
			module = " (its module is not loaded: sudo modprobe vfio-pci)"
		}
		if fn.Driver == "" {
			return fmt.Errorf("no driver has it, want vfio-pci%s: %s: %w", module, bindFirst(fn.Addr), bus.ErrNotSupported)
		}
		return fmt.Errorf("the kernel's driver %s has it, want vfio-pci%s: %s: %w", fn.Driver, module, bindFirst(fn.Addr), bus.ErrBusy)
	case a.Unsafe && !o.NoIOMMU:
		return fmt.Errorf("no IOMMU confines it, and vfio-pci has it in the no-IOMMU mode, which must be asked for (noiommu=unsafe): %w", bus.ErrNoIOMMU)
	case !a.Unsafe && o.NoIOMMU:
		return fmt.Errorf("the no-IOMMU mode was asked for, and an IOMMU confines it: leave that out: %w", bus.ErrNotSupported)
	}
	return nil
}

// choose says which files open a function, and with which API.
func (o Options) choose(a *Access) (API, []string, error) {
	group := []string{containerPath, filepath.Join("/dev/vfio", strconv.Itoa(a.Group))}
	if a.Unsafe {
		group[1] = filepath.Join("/dev/vfio", "noiommu-"+strconv.Itoa(a.Group))
	}
	cdev := o.cdev(a.Addr)
	switch o.API {
	case Group:
		return Group, group, o.usable(a.Addr, group)
	case Cdev:
		if cdev == nil {
			return Cdev, nil, fmt.Errorf("the kernel has no device file of its own for it (CONFIG_VFIO_DEVICE_CDEV): use %s: %w", group[1], bus.ErrNotSupported)
		}
		return Cdev, cdev, o.usable(a.Addr, cdev)
	case Auto:
	default:
		return "", nil, fmt.Errorf("API %q: want %q, %q or nothing: %w", o.API, Group, Cdev, bus.ErrNotSupported)
	}
	if cdev == nil || a.Unsafe {
		return Group, group, o.usable(a.Addr, group)
	}
	byCdev := o.usable(a.Addr, cdev)
	if byCdev == nil {
		return Cdev, cdev, nil
	}
	byGroup := o.usable(a.Addr, group)
	if errors.Is(byGroup, fs.ErrNotExist) || errors.Is(byGroup, bus.ErrGone) {
		return Cdev, cdev, byCdev // a kernel without the other way
	}
	return Group, group, byGroup
}

// cdev is the files for a function where the kernel has one for it alone: nil otherwise.
func (o Options) cdev(a pci.Addr) []string {
	entries, _ := os.ReadDir(o.Root.Path(a, "vfio-dev"))
	for _, e := range entries {
		// Kernel 6.1 has the entry without a device file (CONFIG_VFIO_DEVICE_CDEV, from 6.6).
		if _, err := os.Stat(o.Root.Path(a, "vfio-dev", e.Name(), "dev")); err == nil && strings.HasPrefix(e.Name(), "vfio") {
			return []string{iommufdPath, filepath.Join("/dev/vfio/devices", e.Name())}
		}
	}
	return nil
}

// usable says why this process cannot open one of the files.
func (o Options) usable(a pci.Addr, paths []string) error {
	for _, p := range paths {
		if o.Files[p] != nil {
			continue
		}
		if err := o.kernel.access(p); err != nil {
			return whyNotOpen(a, p, err)
		}
	}
	return nil
}

// whyNotOpen adds cause and remedy to the kernel's refusal of a device file.
func whyNotOpen(a pci.Addr, path string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist) && (path == containerPath || path == iommufdPath):
		return fmt.Errorf("%s is not there: the kernel's VFIO is not loaded (sudo modprobe vfio-pci): %w", path, err)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s is not there: vfio-pci let go of the device: %s: %w", path, bindFirst(a), bus.ErrGone)
	case errors.Is(err, fs.ErrPermission) && strings.Contains(path, "noiommu-"):
		return fmt.Errorf("no permission on %s: the no-IOMMU mode is root's (CAP_SYS_RAWIO): %w", path, err)
	case errors.Is(err, fs.ErrPermission) && path == iommufdPath:
		return fmt.Errorf("no permission on %s: sudo chown $USER %s: %w", path, path, err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("no permission on %s: %s: %w", path, bindFirst(a), err)
	}
	return fmt.Errorf("opening %s: %w", path, err)
}

// blocked names the members that keep a group from being used.
func (a *Access) blocked() error {
	var names []string
	for _, m := range a.Members {
		if m.Blocks {
			names = append(names, fmt.Sprintf("%s (driver %s)", m.Addr, m.Driver))
		}
	}
	if names == nil {
		return nil
	}
	return fmt.Errorf("its IOMMU group %d has members at drivers of the kernel's: %s: bind each to vfio-pci, or unbind it: %w", a.Group, strings.Join(names, ", "), bus.ErrBusy)
}
