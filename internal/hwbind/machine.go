package hwbind

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/internal/syspci"
)

// The drivers that hand a function to user space.
const (
	VFIO = "vfio-pci"
	UIO  = "uio_pci_generic"
)

// Drivers lists them, the safer first.
func Drivers() []string { return []string{VFIO, UIO} }

// IsUserDriver says whether a kernel driver does nothing but hand its function out, or keep
// others away from it.
func IsUserDriver(driver string) bool {
	switch driver {
	case VFIO, UIO, "igb_uio", "pci-stub", "xen-pciback":
		return true
	}
	return false
}

// Machine is where functions are bound.
type Machine struct {
	Sys   syspci.Root // the kernel's trees
	Dev   string
	Proc  string
	State string // a folder of root's that lasts until the next boot
	Ops   Ops
}

// This is the machine that we run on.
func This() *Machine {
	return &Machine{Sys: syspci.Sys, Dev: "/dev", Proc: "/proc", State: "/run/ring3", Ops: kernel{}}
}

// Ops is what changes the machine, each a whole operation.
type Ops interface {
	// Write gives text to a file of sysfs in one write.
	Write(file, text string) error
	// Modprobe loads a module with what it needs.
	Modprobe(ctx context.Context, module string) error
	// Chown changes who owns a device node.
	Chown(path string, uid, gid int) error
	// OwnerOf is who owns a device node; root where there is none.
	OwnerOf(path string) int
	// Claimed says whether somebody has a block device for himself.
	Claimed(path string) bool
	// Settle waits until udev has dealt with new devices.
	Settle(ctx context.Context)
}

// kernel is the real thing.
type kernel struct{}

func (kernel) Write(file, text string) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// modprobeWait bounds one modprobe.
const modprobeWait = 30 * time.Second

func (kernel) Modprobe(ctx context.Context, module string) error {
	ctx, cancel := context.WithTimeout(ctx, modprobeWait)
	defer cancel()
	path := "modprobe"
	for _, p := range []string{"/sbin/modprobe", "/usr/sbin/modprobe"} { // sudo's PATH may lack them
		if _, err := os.Stat(p); err == nil {
			path = p
			break
		}
	}
	out, err := exec.CommandContext(ctx, path, "--", module).CombinedOutput()
	if err == nil {
		return nil
	}
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	if line == "" {
		return err
	}
	return fmt.Errorf("%s (%w)", strings.TrimPrefix(line, "modprobe: "), err)
}

func (kernel) Chown(path string, uid, gid int) error { return os.Lchown(path, uid, gid) }

func (kernel) OwnerOf(path string) int {
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil {
		return 0
	}
	return int(st.Uid)
}

func (kernel) Claimed(path string) bool {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_EXCL|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err == nil {
		unix.Close(fd)
	}
	return errors.Is(err, unix.EBUSY)
}

// settleWait bounds udev's work on one new device node.
const settleWait = 10 * time.Second

func (kernel) Settle(ctx context.Context) {
	if _, err := os.Stat("/run/udev/control"); err != nil {
		return // no udev
	}
	ctx, cancel := context.WithTimeout(ctx, settleWait)
	defer cancel()
	_ = exec.CommandContext(ctx, "udevadm", "settle").Run() // what it left undone shows below
}

// Owner is who gets the nodes.
type Owner struct {
	Name string `json:"name"`
	UID  int    `json:"uid"`
}

func (o *Owner) String() string {
	if o == nil {
		return "root"
	}
	return o.Name
}

// path of a driver's file.
func (m *Machine) driver(name string, file ...string) string {
	return filepath.Join(append([]string{string(m.Sys), "bus/pci/drivers", name}, file...)...)
}

// hasDriver says whether the kernel has a PCI driver of that name now.
func (m *Machine) hasDriver(name string) bool {
	_, err := os.Stat(m.driver(name))
	return err == nil
}

// Nodes are the device nodes by which a function is opened, of those that exist: with
// vfio-pci the group's and, where the kernel has it, the function's own; with UIO the
// function's.
func (m *Machine) Nodes(f *syspci.Function) []string { return m.nodesWith(f, f.Driver) }

// nodesWith are the nodes that a function has with a driver, of those that exist: its group's may,
// before it has that driver, because another member has.
func (m *Machine) nodesWith(f *syspci.Function, driver string) []string {
	var out []string
	add := func(path string) {
		if _, err := os.Lstat(path); err == nil {
			out = append(out, path)
		}
	}
	switch driver {
	case VFIO:
		if f.Group != syspci.NoGroup {
			n := strconv.Itoa(f.Group)
			add(filepath.Join(m.Dev, "vfio", n))
			add(filepath.Join(m.Dev, "vfio", "noiommu-"+n))
		}
		for _, n := range names(m.Sys.Path(f.Addr, "vfio-dev")) {
			add(filepath.Join(m.Dev, "vfio/devices", n))
		}
	case UIO, "igb_uio":
		for _, n := range names(m.Sys.Path(f.Addr, "uio")) {
			add(filepath.Join(m.Dev, n))
		}
	}
	return out
}

// names are what a folder holds; none where there is no folder.
func names(dir string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

// text is a small file without its end of line; "" where it cannot be read.
func text(path ...string) string {
	b, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(string(b), "\n")
}

// noIOMMU says whether the administrator allows VFIO without an IOMMU.
func (m *Machine) noIOMMU() bool {
	v := text(string(m.Sys), "module/vfio/parameters/enable_unsafe_noiommu_mode")
	return v == "Y" || v == "1"
}

// HasIOMMU says whether the kernel uses an IOMMU.
func (m *Machine) HasIOMMU() bool {
	return len(names(filepath.Join(string(m.Sys), "kernel/iommu_groups"))) > 0
}

// IOMMURemedy is how an IOMMU is switched on here.
func (m *Machine) IOMMURemedy() string {
	const setup = "switch it on in the machine's setup"
	cpu := text(m.Proc, "cpuinfo")
	switch {
	case strings.Contains(cpu, "GenuineIntel"):
		return setup + " (VT-d) and put intel_iommu=on on the kernel's command line"
	case strings.Contains(cpu, "AuthenticAMD"):
		return setup + " (IOMMU, AMD-Vi); the kernel then uses it by itself, unless amd_iommu=off is on its command line"
	}
	return setup + " (VT-d, AMD-Vi, SMMU); Intel also needs intel_iommu=on on the kernel's command line"
}

// isMissing says whether an error means that a function or a file is not there.
func isMissing(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) }

// addrs joins addresses.
func addrs(list []pci.Addr) string {
	s := make([]string, len(list))
	for i, a := range list {
		s[i] = a.String()
	}
	return strings.Join(s, " ")
}
