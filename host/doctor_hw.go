package host

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/internal/hwbind"
)

// doctorHardware are the findings for who has real hardware in mind: a machine without it lacks
// nothing.
func doctorHardware(check func(name, needed string, f func() (string, error)) Finding) []Finding {
	m := hwbind.This()
	list, err := m.Status(false)
	out := []Finding{
		check("iommu", "the backend vfio is refused; uio drives a device without protection, and nothing contains its driver", func() (string, error) {
			if !m.HasIOMMU() {
				return "", errors.New("no IOMMU is in use: " + m.IOMMURemedy())
			}
			return "devices are confined by an IOMMU", nil
		}),
		check("vfio", "no device of the backend vfio", func() (string, error) {
			if err != nil {
				return "", err
			}
			return driverFinding(list, hwbind.VFIO)
		}),
		check("uio", "no device of the backend uio", func() (string, error) {
			if err != nil {
				return "", err
			}
			return driverFinding(list, hwbind.UIO)
		}),
		check("memlock", "many receive buffers, or several devices, fail with 'cannot allocate memory'", memlock),
	}
	for i := range out {
		out[i].Optional = true
	}
	return out
}

// driverFinding says what a driver for user space has to offer.
func driverFinding(list []hwbind.Status, driver string) (string, error) {
	var ready, not []string
	for _, s := range list {
		switch {
		case s.Driver != driver:
		case s.Usable:
			ready = append(ready, s.Address)
		default:
			not = append(not, s.Address+": "+s.Why)
		}
	}
	switch {
	case len(ready) > 0:
		return "you may open " + strings.Join(ready, ", "), nil
	case len(not) > 0:
		return "", errors.New(strings.Join(not, "; "))
	}
	if err := hasModule(driver); err != nil {
		return "", err
	}
	return "nothing is bound to " + driver + ": sudo ring3 bind ADDRESS --driver " + driver + " --owner $USER ('ring3 ls --hw' lists what there is)", nil
}

// hasModule says whether a kernel driver is there, or can be loaded.
func hasModule(driver string) error {
	if _, err := os.Stat(filepath.Join("/sys/bus/pci/drivers", driver)); err == nil {
		return nil
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return err
	}
	dir := filepath.Join("/lib/modules", unix.ByteSliceToString(uts.Release[:]))
	for _, list := range []string{"modules.dep", "modules.builtin"} {
		b, _ := os.ReadFile(filepath.Join(dir, list))
		for _, name := range []string{driver, strings.ReplaceAll(driver, "-", "_")} {
			if bytes.Contains(b, []byte("/"+name+".ko")) {
				return nil
			}
		}
	}
	return fmt.Errorf("this kernel has no module %s in %s: install the kernel's modules, or a kernel with it", driver, dir)
}

// enoughMemlock is what the defaults of an Ethernet device take, with some room.
const enoughMemlock = 8 << 20

// memlock looks at the limit of what devices may reach.
func memlock() (string, error) {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &l); err != nil {
		return "", fmt.Errorf("getrlimit(RLIMIT_MEMLOCK): %w", err)
	}
	const remedy = "a line '$USER - memlock unlimited' in /etc/security/limits.conf, and a new login"
	switch {
	case os.Geteuid() == 0 || l.Max == unix.RLIM_INFINITY:
		return "as much memory as there is may be locked for devices", nil
	case l.Max < enoughMemlock:
		return "", fmt.Errorf("%d KiB of memory may be locked for devices, want %d: %s", l.Max>>10, enoughMemlock>>10, remedy)
	}
	return fmt.Sprintf("%d MiB of memory may be locked for devices; for more: %s", l.Max>>20, remedy), nil
}

// needed are the findings that make doctor fail.
func needed(list []Finding) []Finding {
	return slices.DeleteFunc(slices.Clone(list), func(f Finding) bool { return f.OK || f.Optional })
}
