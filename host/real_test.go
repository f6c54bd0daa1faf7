package host

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/internal/syspci"
)

func TestParseHardware(t *testing.T) {
	for s, want := range map[string]DeviceSpec{
		"eth0=vfio:0000:03:00.0": {Backend: "vfio", Device: "0000:03:00.0", Options: map[string]string{}},
		"eth0=vfio:0000:03:00.0,api=cdev,mac=02:00:00:00:00:01": {Backend: "vfio", Device: "0000:03:00.0",
			Bus: map[string]string{"api": "cdev"}, Options: map[string]string{"mac": "02:00:00:00:00:01"}},
		"eth0=vfio:0000:03:00.0,noiommu=unsafe": {Backend: "vfio", Device: "0000:03:00.0", Bus: map[string]string{"noiommu": "unsafe"}, Options: map[string]string{}},
		"eth0=uio:0000:00:05.0,dma=unsafe":      {Backend: "uio", Device: "0000:00:05.0", Bus: map[string]string{"dma": "unsafe"}, Options: map[string]string{}},
		"eth0=uio:uio12":                        {Backend: "uio", Device: "uio12", Options: map[string]string{}},
		"eth0=qemu:e1000e,dma=unsafe":           {Backend: "qemu", Device: "e1000e", Options: map[string]string{"dma": "unsafe"}}, // the driver's, which refuses it
	} {
		want.Name = "eth0"
		got, err := ParseDevice(s)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("ParseDevice(%q) = %+v, %v, want %+v", s, got, err, want)
		}
		if got.String() != s {
			t.Errorf("String() = %q, want %q", got.String(), s)
		}
	}
	for _, s := range []string{"eth0=vfio:03:00.0", "eth0=vfio:uio0", "eth0=vfio:eth0", "eth0=uio:uio", "eth0=uio:uiox", "eth0=uio:x", "eth0=vfio:0000:03:00.0,api=x",
		"eth0=vfio:0000:03:00.0,api=cdev,api=group", "eth0=vfio:0000:03:00.0,vfio.x=1", "eth0=vfio:0000:03:00.0,iommu=on", "eth0=uio:uio0,dma=", "eth0=uio:uio0,dma=on"} {
		_, err := ParseDevice(s)
		var u *usageError
		if !errors.As(err, &u) || strings.Contains(err.Error(), "\n") {
			t.Errorf("ParseDevice(%q) = %v, want a usage error of one line", s, err)
		}
	}
}

func TestPlanHardware(t *testing.T) {
	two := []string{"a=vfio:0000:03:00.0", "b=vfio:0000:03:00.1", "c=qemu:e1000e"}
	for _, c := range []struct {
		devices, wires, captures []string
		says                     string
	}{
		{two, []string{"a-b"}, nil, "a is real hardware, and its wire is a cable"},
		{two, []string{"c-b"}, nil, "b is real hardware"},
		{two, nil, []string{"a=x.pcap"}, "capture at the far end"},
		{[]string{"a=vfio:0000:03:00.0", "b=uio:0000:03:00.0"}, nil, nil, "a and b are the same device"},
	} {
		_, err := ParsePlan(c.devices, c.wires, c.captures)
		var u *usageError
		if !errors.As(err, &u) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("ParsePlan(%q, %q, %q) = %v, want a usage error with %q", c.devices, c.wires, c.captures, err, c.says)
		}
	}
	p, err := ParsePlan(two, nil, nil)
	if err != nil || len(p.groups()) != 3 {
		t.Errorf("ParsePlan = %+v, %v", p, err)
	}
}

// A function stands in our tree where it stands in the kernel's.
func TestParentOf(t *testing.T) {
	root := t.TempDir()
	for place, want := range map[string]string{
		"devices/pci0000:00/0000:00:04.0":                                         "/devices/pci0000:00/0000:00:04.0",
		"devices/pci0000:00/0000:00:1c.0/0000:03:00.0":                            "/devices/pci0000:00/0000:00:1c.0/0000:03:00.0",
		"devices/pci0000:00/0000:00:1d.0/0000:04:00.0/0000:05:01.0/0000:06:00.1":  "/devices/pci0000:00/0000:00:1d.0/0000:04:00.0/0000:05:01.0/0000:06:00.1",
		"devices/pci0000:00/0000:00:0e.0/pci10000:e0/10000:e0:06.0/10000:e1:00.0": "/devices/pci10000:e0/10000:e0:06.0/10000:e1:00.0",
		"devices/platform/4010000000.pcie/pci0000:00/0000:00:02.0/0000:07:00.0":   "/devices/pci0000:00/0000:00:02.0/0000:07:00.0",
	} {
		a, err := pci.ParseAddr(filepath.Base(place))
		if err != nil {
			t.Fatal(err)
		}
		link := filepath.Join(root, "bus/pci/devices", a.String())
		if err := errors.Join(os.MkdirAll(filepath.Join(root, place), 0o755), os.MkdirAll(filepath.Dir(link), 0o755), os.Symlink(filepath.Join(root, place), link)); err != nil {
			t.Fatal(err)
		}
		f := &pci.Function{Addr: a, Parent: parentOf(syspci.Root(root), a)}
		if got := pci.SysfsPath(f); got != want {
			t.Errorf("%s stands at %s, want %s", place, got, want)
		}
	}
	if p := parentOf(syspci.Root(root), pci.Addr{Bus: 9}); p != nil {
		t.Errorf("a function that is not there has the parent %v", p.Addr)
	}
}
