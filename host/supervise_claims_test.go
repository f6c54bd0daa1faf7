package host

import (
	"testing"

	"github.com/ring3dev/ring3/rionet/fabricd"
)

// A worker shows its own devices, and what is nobody's.
func TestMayHave(t *testing.T) {
	p, err := ParsePlan([]string{"eth0=sim:e1000e", "eth1=sim:e1000e", "tpm0=sim:tpm-tis", "hw=vfio:0000:03:00.0"}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	s := &supervisor{}
	for _, g := range p.cut(func(string) int { return -1 }) {
		if g.Name != "hw" {
			g.Numbers.Domain = 0x1000 + uint32(len(s.charges))
		}
		s.charges = append(s.charges, &charge{groupPlan: g, s: s})
	}
	for _, c := range []struct {
		path string
		want string // of the groups, who may; "" all, "-" none
	}{
		{"/proc/net/pktgen/eth1", "eth1"},
		{"/proc/net/pktgen/eth1.rx", "eth1"},
		{"/proc/net/pktgen/eth1@3", "eth1"},
		{"/proc/net/pktgen/pgctrl", ""},
		{"/sys/class/net/eth0", "eth0"},
		{"/sys/class/net/lo", ""},
		{"/sys/devices/pci1000:00/1000:00:03.0/net/eth0", "eth0"},
		{"/sys/devices/pci1000:00/1000:00:03.0", "eth0"},
		{"/sys/bus/pci/devices/1001:00:03.0", "eth1"},
		{"/sys/bus/pci/devices/0000:03:00.0", "hw"},
		{"/sys/bus/pci/devices/0000:07:00.0", ""},
		{"/sys/class/tpmrm/tpmrm0", "tpm0"},
		{"/dev/tpm0", "tpm0"},
		{"/dev/hwrng", ""},
		{"/sys/module/eth0", ""},
		{"/sys/devices/pci1000:00/power", ""},
		{"/sys/x.so", "-"}, // link, directory or file: it is what QEMU loads, or finds x.so.la beside
		{"/sys/class/net/.so", "-"},
		{"/proc/net/pktgen/eth1.so", "-"},
		{"/sys/x.so.la", ""},
		{"/sys/so", ""},
	} {
		for _, ch := range s.charges {
			if got, want := s.may(ch.Name, c.path), c.want == "" || c.want == ch.Name; got != want {
				t.Errorf("may(%s, %s) = %t, want %t", ch.Name, c.path, got, want)
			}
		}
	}
}

// A link to a window is called as one, and is of a group that was told of it.
func TestLeads(t *testing.T) {
	p, err := ParsePlan([]string{"rio0=fabric:/run/f.sock,node=pe0", "eth0=sim:e1000e"}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	s := &supervisor{}
	for _, g := range p.cut(func(string) int { return -1 }) {
		ch := &charge{groupPlan: g, s: s}
		b, err := holdFabrics(Config{}, g)
		if err != nil {
			t.Fatal(err)
		}
		if h, ok := b.(*heldFabrics); ok {
			defer h.Close()
			h.nodes["rio0"].set([]fabricd.Window{{Node: "pe1", Size: 4096, Path: "/dev/shm/f/pe1.0"}})
			ch.out = &nearOutside{backends: []outsideBackend{h}}
		}
		s.charges = append(s.charges, ch)
	}
	const dir, window = "/sys/devices/rio/00:e:0001/", "/dev/shm/f/pe1.0"
	for _, c := range []struct {
		part, at, target string
		want             bool
	}{
		{"rio0", dir + "window0", window, true},
		{"rio0", dir + "window12", window, true},
		{"rio0", dir + "window0", "/dev/shm/f/pe1.1", false},
		{"eth0", dir + "window0", window, false},
		{"rio0", dir + "window", window, false},
		{"rio0", dir + "window.so", window, false},
		{"rio0", dir + "window0.so", window, false},
		{"rio0", dir + "windowx0", window, false},
		{"rio0", dir + "window-1", window, false},
		{"rio0", dir + "x.so", window, false},
		{"rio0", dir + "window0/x.so", window, false},
	} {
		if got := s.leads(c.part, c.at, c.target); got != c.want {
			t.Errorf("leads(%s, %s, %s) = %t, want %t", c.part, c.at, c.target, got, c.want)
		}
	}
}
