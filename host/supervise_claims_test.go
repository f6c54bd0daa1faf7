package host

import "testing"

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
		want string // of the groups, who may; "" all
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
	} {
		for _, ch := range s.charges {
			if got, want := s.may(ch.Name, c.path), c.want == "" || c.want == ch.Name; got != want {
				t.Errorf("may(%s, %s) = %t, want %t", ch.Name, c.path, got, want)
			}
		}
	}
}
