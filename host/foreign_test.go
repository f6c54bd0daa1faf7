package host

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/internal/syspci"
)

// What the kernel has behind a port: all that stands in its folder, at any depth, by the driver that has it.
func TestKernelsBelow(t *testing.T) {
	root := t.TempDir()
	const port = "devices/pci0000:00/0000:00:04.0"
	for place, driver := range map[string]string{
		port: "uio_pci_generic", port + "/0000:00:04.0:pcie002": "", port + "/0000:01:00.0": "pcieport",
		port + "/0000:01:00.0/0000:02:03.0": "e1000e", port + "/0000:01:00.1": "", "devices/pci0000:00/0000:00:05.0": "",
	} {
		at := filepath.Join(root, place)
		err := os.MkdirAll(at, 0o755)
		if driver != "" {
			err = errors.Join(err, os.Symlink("../../bus/pci/drivers/"+driver, filepath.Join(at, "driver")))
		}
		link := filepath.Join(root, "bus/pci/devices", filepath.Base(place))
		if err = errors.Join(err, os.MkdirAll(filepath.Dir(link), 0o755), os.Symlink(at, link)); err != nil {
			t.Fatal(err)
		}
	}
	s := newSystem(Config{})
	for addr, want := range map[string][]string{
		"0000:00:04.0": {"pcieport 0000:01:00.0", "e1000e 0000:02:03.0", "pci 0000:01:00.1"},
		"0000:00:05.0": nil,
		"0000:00:06.0": nil, // it is not there
	} {
		a, err := pci.ParseAddr(addr)
		if err != nil {
			t.Fatal(err)
		}
		if got := s.kernelsBelow(syspci.Root(root), a); !slices.Equal(got, want) {
			t.Errorf("kernelsBelow(%s) = %q, want %q", addr, got, want)
		}
	}
	if got := (hierarchy{s}).Others(pci.Addr{Dev: 4}); got != nil {
		t.Errorf("Others of a port that is not ours = %q, want none", got)
	}
}
