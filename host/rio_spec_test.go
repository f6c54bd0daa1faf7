package host

import (
	"errors"
	"reflect"
	"strings"
	"testing"
)

func TestParseFabric(t *testing.T) {
	for s, want := range map[string]DeviceSpec{
		"rio0=fabric:/run/f.sock,node=pe0,host=0": {Name: "rio0", Backend: "fabric", Device: "/run/f.sock",
			Options: map[string]string{"host": "0"}, Bus: map[string]string{"node": "pe0"}},
		"rio0=fabric:f,node=pe1,ids=16,window=64K+1M,owner=0,exact=off": {Name: "rio0", Backend: "fabric", Device: "f",
			Options: map[string]string{"exact": "off"}, Bus: map[string]string{"node": "pe1", "ids": "16", "window": "64K+1M", "owner": "0"}},
		"rio0=qemu:ivshmem-doorbell,fabric=f,node=pe1,host=0x12": {Name: "rio0", Backend: "qemu", Device: "ivshmem-doorbell",
			Options: map[string]string{"host": "0x12"}, Bus: map[string]string{"node": "pe1", "fabric": "f"}},
	} {
		got, err := ParseDevice(s)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("ParseDevice(%q) = %+v, %v, want %+v", s, got, err, want)
		}
		if again, err := ParseDevice(got.String()); err != nil || !reflect.DeepEqual(again, got) {
			t.Errorf("ParseDevice(%q) = %+v, %v, want %+v", got.String(), again, err, got)
		}
	}
	for s, want := range map[string]string{
		"rio0=fabric:f":                                            "want node=NAME",
		"rio0=fabric:,node=pe0":                                    "want BACKEND:DEVICE",
		"rio0=fabric:f,node=":                                      "want a value",
		"rio0=fabric:f,node=a,node=b":                              "want a value, once",
		"rio0=fabric:f,node=../x":                                  "no endpoint has such a name",
		"rio0=fabric:f,node=pe0,colour=blue":                       `unknown option "colour"`,
		"rio0=fabric:f,node=pe0,fabric.x=1":                        "the fabric has its properties",
		"rio0=fabric:f,node=pe0,host=":                             "want a device ID",
		"rio0=fabric:f,node=pe0,host=-1":                           "want a device ID",
		"rio0=fabric:f,node=pe0,host=65535":                        "want a device ID",
		"rio0=fabric:f,node=pe0,host=me":                           "want a device ID",
		"rio0=fabric:f,node=pe0,ids=12":                            "want ids=8 or ids=16",
		"rio0=fabric:f,node=pe0,exact=no":                          "want exact=on or exact=off",
		"rio0=fabric:f,node=pe0,window=5":                          "want whole pages",
		"rio0=fabric:f,node=pe0,window=64K+":                       "want whole pages",
		"rio0=fabric:f,node=pe0,window=2G":                         "want whole pages",
		"rio0=fabric:f,node=pe0,window=-4096":                      "want whole pages",
		"rio0=fabric:f,node=pe0,window=4K+4K+4K+4K+4K+4K+4K+4K+4K": "9 windows: want at most 8",
		"rio0=fabric:f,node=pe0,iommu=on":                          "with the backend qemu",
		"rio0=fabric:f,node=pe0,owner=no-such-user":                "no-such-user",
		"eth0=qemu:e1000e,owner=root":                              "are options of qemu:ivshmem-doorbell",
		"rio0=qemu:ivshmem-doorbell":                               "want fabric=PATH and node=NAME",
		"rio0=qemu:ivshmem-doorbell,node=pe0":                      "want fabric=PATH and node=NAME",
		"eth0=qemu:e1000e,node=pe0":                                "are options of qemu:ivshmem-doorbell",
		"eth0=qemu:e1000e,fabric=f":                                "are options of qemu:ivshmem-doorbell",
	} {
		_, err := ParseDevice(s)
		var u *usageError
		if !errors.As(err, &u) || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), want) {
			t.Errorf("ParseDevice(%q) = %v, want a usage error of one line with %q", s, err, want)
		}
	}
}

func TestPlanFabric(t *testing.T) {
	for _, c := range []struct {
		devices, wires, captures []string
		want                     string
	}{
		{[]string{"rio0=fabric:f,node=a", "rio1=fabric:f,node=a"}, nil, nil, "rio0 and rio1 are the same node, a of f"},
		{[]string{"rio0=fabric:f,node=a", "rio1=qemu:ivshmem-doorbell,fabric=f,node=a"}, nil, nil, "rio0 and rio1 are the same node, a of f"},
		{[]string{"rio0=fabric:f,node=a", "rio1=fabric:f,node=b"}, []string{"rio0-rio1"}, nil, "rio0 is a node of a fabric, which has its links"},
		{[]string{"rio0=fabric:f,node=a"}, nil, []string{"rio0=x.pcap"}, "rio0 is a node of a fabric, and nobody captures there"},
	} {
		_, err := ParsePlan(c.devices, c.wires, c.captures)
		var u *usageError
		if !errors.As(err, &u) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("ParsePlan(%q, %q, %q) = %v, want a usage error with %q", c.devices, c.wires, c.captures, err, c.want)
		}
	}
	p, err := ParsePlan([]string{"rio0=fabric:f,node=a", "eth0=sim:e1000e"}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	var u *usageError
	if err := p.addForwards([]string{"rio0-eth0"}); !errors.As(err, &u) || !strings.Contains(err.Error(), "rio0 is a node of a fabric") {
		t.Errorf("addForwards of a node = %v, want a usage error", err)
	}
	if _, err := ParsePlan([]string{"rio0=fabric:f,node=a", "rio1=fabric:g,node=a", "rio2=fabric:f,node=b"}, nil, nil); err != nil {
		t.Errorf("ParsePlan of three nodes = %v", err)
	}
}
