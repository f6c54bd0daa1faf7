//go:build vm

package guest

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestNobody checks what all tests stand on that are not called TestRoot...: they have no
// privileges.
func TestNobody(t *testing.T) {
	if os.Getuid() != Nobody || os.Geteuid() != Nobody || os.Getgid() != Nobody {
		t.Errorf("uid %d, euid %d, gid %d; want %d", os.Getuid(), os.Geteuid(), os.Getgid(), Nobody)
	}
	if groups, err := os.Getgroups(); err != nil || len(groups) > 0 {
		t.Errorf("Getgroups() = %v, %v, want none", groups, err)
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapAmb"} {
		if want := set + ":\t0000000000000000\n"; !strings.Contains(string(status), want) {
			t.Errorf("/proc/self/status lacks %q", want)
		}
	}
	if _, err := os.ReadFile("/proc/1/environ"); err == nil {
		t.Error("a file of root's can be read")
	}
}

func TestRootIsRoot(t *testing.T) {
	if os.Getuid() != 0 {
		t.Errorf("uid %d, want 0", os.Getuid())
	}
}

// TestKernel checks that this is Debian's kernel, with an IOMMU in use.
func TestKernel(t *testing.T) {
	b, err := os.ReadFile("/proc/version")
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`^Linux version 6\.1\.\S+ \(debian-kernel@`).Match(b) {
		t.Errorf("/proc/version is %q, want Debian's 6.1", b)
	}
	for _, dir := range []string{"/sys/class/iommu", "/sys/kernel/iommu_groups"} {
		if names, err := os.ReadDir(dir); err != nil || len(names) == 0 {
			t.Errorf("%s has %v, %v; want an IOMMU", dir, names, err)
		}
	}
}

// TestBind checks that a device can be had by nobody, by VFIO and by UIO.
func TestBind(t *testing.T) {
	for _, test := range []struct{ id, driver, path string }{
		{"nic0", "vfio-pci", "/dev/vfio/[0-9]*"},
		{"old0", "uio_pci_generic", "/dev/uio[0-9]*"},
		{"port0", "uio_pci_generic", "/dev/uio[0-9]*"},
	} {
		t.Run(test.id+" "+test.driver, func(t *testing.T) {
			b := Bind(t, Address(t, test.id), test.driver)
			if ok, _ := filepath.Match(test.path, b.Path); !ok || b.Driver != test.driver {
				t.Fatalf("Bind(%s, %s) = %+v, want %s", test.id, test.driver, b, test.path)
			}
			f, err := os.OpenFile(b.Path, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			f.Close()
		})
	}
}
