package host

import (
	"fmt"
	"strings"
	"testing"
)

// What depends on each other is one group, and what two groups number never meets.
func TestCut(t *testing.T) {
	for _, c := range []struct {
		devices, wires, forwards []string
		measure                  string
		want                     string
	}{
		{nil, nil, nil, "", "eth0+eth1"},
		{[]string{"a=sim:e1000e", "b=sim:e1000e", "c=sim:edu"}, nil, nil, "", "a b c"},
		{[]string{"a=sim:e1000e", "c=sim:edu", "b=sim:e1000e"}, []string{"a-b"}, nil, "", "a+b c"},
		{[]string{"a=sim:e1000e", "c=sim:edu", "b=qemu:e1000e"}, nil, []string{"a-b"}, "", "a+b c"},
		{[]string{"p=sim:root-port", "q=sim:root-port", "a=sim:e1000e,under=p"}, nil, nil, "", "p+a q"},
		{[]string{"a=sim:e1000e", "tpm0=sim:tpm-tis", "b=sim:edu"}, nil, nil, "tpm0", "a+tpm0+b"},
		{[]string{"tpm0=sim:tpm-tis", "a=sim:e1000e", "tpm1=sim:tpm-crb"}, nil, nil, "", "tpm0+tpm1 a"},
		{[]string{"a=vfio:0000:00:01.0", "b=vfio:0000:00:02.0", "c=vfio:0000:00:01.1"}, nil, nil, "", "a+c b"},
	} {
		p, err := ParsePlan(c.devices, c.wires, nil)
		if err == nil {
			err = p.addForwards(c.forwards)
		}
		if err == nil {
			err = p.addMeasure(c.measure, "")
		}
		if err != nil {
			t.Fatal(err)
		}
		groups := p.cut(func(device string) int { return int(device[9] - '0') }) // by slot
		var names []string
		devices := 0
		for _, g := range groups {
			names = append(names, g.Name)
			if g.Numbers.Devices != devices || g.Numbers.NoLo != (devices > 0) {
				t.Errorf("%s: numbers %+v, want %d devices before", g.Name, g.Numbers, devices)
			}
			devices += len(g.Plan.Devices)
		}
		if got := strings.Join(names, " "); got != c.want {
			t.Errorf("cut(%v) = %s, want %s", c.devices, got, c.want)
		}
	}
}

func TestCutNumbers(t *testing.T) {
	var devices []string
	for i := range 3 {
		devices = append(devices, fmt.Sprintf("rp%d=sim:root-port", i), fmt.Sprintf("eth%d=sim:e1000e,under=rp%d", i, i), fmt.Sprintf("e%d=sim:edu", i))
	}
	p, err := ParsePlan(devices, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	used := map[string]string{}
	take := func(group, kind string, n int) {
		k := fmt.Sprint(kind, " ", n)
		if o := used[k]; o != "" {
			t.Errorf("%s and %s both have %s", o, group, k)
		}
		used[k] = group
	}
	groups := p.cut(iommuGroupOf)
	for i, g := range groups {
		nics, slots := 0, 0
		for _, d := range g.Plan.Devices {
			nics += boolInt(isNetwork(d))
			slots += boolInt(hasSlot(d))
		}
		take(g.Name, "domain", int(g.Numbers.Domain))
		for k := range nics + 10 {
			take(g.Name, "NIC", g.Numbers.NICs+k+boolInt(k >= nics)*g.Numbers.Plugged)
		}
		for k := range slots + 10 {
			take(g.Name, "slot", g.Numbers.Slots+k+boolInt(k >= slots)*g.Numbers.Plugged)
		}
		for k := range len(g.Plan.Devices) + 10 {
			take(g.Name, "device", g.Numbers.Devices+k+boolInt(k >= len(g.Plan.Devices))*g.Numbers.Plugged)
		}
		if i == len(groups)-1 && g.Numbers.Plugged != 0 {
			t.Errorf("the last group: Plugged = %d, want 0", g.Numbers.Plugged)
		}
	}
}
