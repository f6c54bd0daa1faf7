package host

import (
	"errors"
	"reflect"
	"strings"
	"testing"
)

func TestParseDevice(t *testing.T) {
	got, err := ParseDevice("eth0=qemu:e1000e,mac=02:00:00:00:00:01,qemu.x-pcie-pm-init=off,ring=256")
	want := DeviceSpec{Name: "eth0", Backend: "qemu", Device: "e1000e", Options: map[string]string{"mac": "02:00:00:00:00:01", "ring": "256"},
		Props: []string{"x-pcie-pm-init=off"}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("ParseDevice = %+v, %v, want %+v", got, err, want)
	}
	if s := got.String(); s != "eth0=qemu:e1000e,mac=02:00:00:00:00:01,ring=256,qemu.x-pcie-pm-init=off" {
		t.Errorf("String() = %q", s)
	}
	for s, on := range map[string]bool{"eth0=qemu:e1000e,iommu=on": true, "eth0=qemu:e1000e,iommu=off": false, "eth0=qemu:e1000e": false} {
		if d, err := ParseDevice(s); err != nil || d.IOMMU != on || len(d.Options) != 0 {
			t.Errorf("ParseDevice(%q) = %+v, %v, want IOMMU %v and no option of the driver's", s, d, err, on)
		}
	}
	for _, s := range []string{"eth0=qemu:edu,iommu=", "eth0=qemu:edu,iommu=1", "eth0=qemu:edu,iommu=on,iommu=on", "", "=", "eth0", "eth0=", "eth0=qemu", "eth0=qemu:", "eth0=vfio:x", "-x=qemu:edu", ".=qemu:edu", "a b=qemu:edu", "a@b=qemu:edu",
		"abcdefghijklmnop=qemu:edu", "eth0=qemu:edu,", "eth0=qemu:edu,x", "eth0=qemu:edu,=1", "eth0=qemu:edu,qemu.=1", "eth0=qemu:edu,mac=1,mac=2"} {
		_, err := ParseDevice(s)
		var u *usageError
		if !errors.As(err, &u) || strings.Contains(err.Error(), "\n") {
			t.Errorf("ParseDevice(%q) = %v, want a usage error of one line", s, err)
		}
	}
}

func TestParsePlan(t *testing.T) {
	p, err := ParsePlan(nil, nil, nil)
	if err != nil || len(p.Devices) != 2 || len(p.Wires) != 1 || p.Wires[0].String() != "eth0-eth1" {
		t.Errorf("ParsePlan of nothing = %+v, %v, want two wired devices", p, err)
	}
	p, err = ParsePlan(nil, []string{"eth0-eth1,lossy"}, nil)
	if err != nil || len(p.Wires) != 1 || !p.Wires[0].Lossy {
		t.Errorf("ParsePlan of a lossy wire = %+v, %v", p, err)
	}
	// A name may hold what separates the ends.
	p, err = ParsePlan([]string{"a-b=qemu:e1000", "c=qemu:edu", "d=qemu:e1000", "b-d=qemu:e1000"}, []string{"a-b-d"}, []string{"d=x=y"})
	if err != nil || p.Wires[0] != (Wire{A: "a-b", B: "d"}) || p.Captures["d"] != "x=y" {
		t.Errorf("ParsePlan = %+v, %v", p, err)
	}
	var names [][]string
	for _, g := range p.groups() {
		var n []string
		for _, d := range g {
			n = append(n, d.Name)
		}
		names = append(names, n)
	}
	if want := [][]string{{"a-b", "d"}, {"c"}, {"b-d"}}; !reflect.DeepEqual(names, want) {
		t.Errorf("groups() = %v, want %v", names, want)
	}
}

func FuzzParsePlan(f *testing.F) {
	f.Add("eth0=qemu:e1000e,mac=1", "eth0-eth1,lossy", "eth0=f")
	f.Fuzz(func(t *testing.T, device, wire, capture string) {
		p, err := ParsePlan([]string{device, "eth1=qemu:e1000"}, []string{wire}, []string{capture})
		if err != nil {
			var u *usageError
			if !errors.As(err, &u) {
				t.Errorf("ParsePlan(%q, %q, %q) = %v, want a usage error", device, wire, capture, err)
			}
			return
		}
		for _, d := range p.Devices {
			again, err := ParseDevice(d.String())
			if err != nil || again.String() != d.String() {
				t.Errorf("ParseDevice(%q) = %v, %v, want itself", d.String(), again, err)
			}
		}
		p.groups()
	})
}

func TestParseTap(t *testing.T) {
	for s, want := range map[string]TapSpec{
		"eth0":                    {Device: "eth0", Interface: "eth0"},
		"eth0=rt0":                {Device: "eth0", Interface: "rt0"},
		"rio0,up=on":              {Device: "rio0", Interface: "rio0", Up: true},
		"rio0=x,gro=off,up=on":    {Device: "rio0", Interface: "x", NoGRO: true, Up: true},
		"a=b,offload=off,gro=off": {Device: "a", Interface: "b", NoOffload: true, NoGRO: true},
	} {
		got, err := ParseTap(s)
		if err != nil || got != want {
			t.Errorf("ParseTap(%q) = %+v, %v, want %+v", s, got, err, want)
		}
		if again, err := ParseTap(got.String()); err != nil || again != got {
			t.Errorf("ParseTap(%q) = %+v, %v, want %+v", got.String(), again, err, got)
		}
	}
	for _, s := range []string{"", "=", "eth0=", "=rt0", "eth0,up", "eth0,up=yes", "eth0,blue=on", "eth0=a/b", ",up=on"} {
		_, err := ParseTap(s)
		var u *usageError
		if !errors.As(err, &u) || strings.Contains(err.Error(), "\n") {
			t.Errorf("ParseTap(%q) = %v, want a usage error of one line", s, err)
		}
	}
}
