package sim

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// What a user can get wrong is said in one line that begins with the device.
func TestWrongConfig(t *testing.T) {
	dev := func(s ...string) []DeviceSpec { return []DeviceSpec{{Name: s[0], Model: s[1], Props: s[2:]}} }
	two := []DeviceSpec{{Name: "a", Model: "e1000e"}, {Name: "b", Model: "e1000e"}, {Name: "c", Model: "edu"}}
	var many, tpms []DeviceSpec
	for i := range 9 {
		tpms = append(tpms, DeviceSpec{Name: fmt.Sprint("t", i), Model: "tpm-tis"})
	}
	for i := range 22 {
		many = append(many, DeviceSpec{Name: fmt.Sprint("d", i), Model: "edu"})
	}
	for _, c := range []struct {
		c    Config
		want string
	}{
		{Config{}, "sim: 0 devices: want 1 to 21"},
		{Config{Devices: many}, "sim: 22 devices: want 1 to 21"},
		{Config{Devices: dev("a b", "edu")}, `sim: device name "a b": want letters, digits, '-', '_' or '.'`},
		{Config{Devices: dev("a", "e1000x")}, `sim: a: no model is named "e1000x": there are edu, pci-testdev, null, e1000`},
		{Config{Devices: append(dev("a", "edu"), dev("a", "edu")...)}, "sim: two devices are named a"},
		{Config{Devices: dev("a", "edu", "x")}, `sim: a: property "x": want key=value`},
		{Config{Devices: dev("a", "edu", "mac=1")}, `sim: a: model edu has no property "mac": it has dma_mask`},
		{Config{Devices: dev("a", "pci-testdev", "mac=1")}, `sim: a: model pci-testdev has no property "mac": it has none`},
		{Config{Devices: dev("a", "edu", "dma_mask=1", "dma_mask=2")}, `sim: a: property "dma_mask" is given twice`},
		{Config{Devices: dev("a", "edu", "dma_mask=big")}, `sim: a: model edu: property dma_mask=big: want a number`},
		{Config{Devices: dev("a", "null", "rx=59")}, `sim: a: model null: property rx=59: want a length from 60 to 2048 bytes`},
		{Config{Devices: dev("a", "null", "mac=01:00:00:00:00:00")}, `sim: a: model null: property mac=01:00:00:00:00:00: want a unicast address`},
		{Config{Devices: two, Wires: [][2]string{{"a", "x"}}}, "sim: wire a-x: no device is named x"},
		{Config{Devices: two, Wires: [][2]string{{"a", "c"}}}, "sim: wire a-c: c (edu) is no network adapter"},
		{Config{Devices: dev("n", "null"), Wires: [][2]string{{"n", "x"}}}, "sim: wire n-x: n (null) swallows what it sends, so it has no wire"},
		{Config{Devices: two, Wires: [][2]string{{"a", "a"}}}, "sim: wire a-a: "},
		{Config{Devices: two, Wires: [][2]string{{"a", "b"}, {"b", "a"}}}, "sim: wire b-a: b is wired to a already"},
		{Config{Devices: dev("t", "tpm-tis", "family=3")}, "sim: t: model tpm-tis: property family=3: want 1.2 or 2.0"},
		{Config{Devices: dev("t", "tpm-tis", "delay=-1s")}, "sim: t: model tpm-tis: property delay=-1s: want a duration from 0s to 1h0m0s, for example 5ms"},
		{Config{Devices: dev("t", "tpm-tis", "burst=0")}, "sim: t: model tpm-tis: property burst=0: want 1 to 4096 bytes"},
		{Config{Devices: dev("t", "tpm-tis", "irq=no")}, "sim: t: model tpm-tis: property irq=no: want on or off"},
		{Config{Devices: dev("t", "tpm-crb", "family=1.2")}, `sim: t: model tpm-crb has no property "family": it has delay, misbehave`},
		{Config{Devices: dev("t", "tpm-crb", "misbehave=storm")}, `sim: t: model tpm-crb: property misbehave=storm: no kind is named "storm": there are fail, fatal, hang`},
		{Config{Devices: dev("t", "tpm-tis", "misbehave=tag:0")}, "sim: t: model tpm-tis: property misbehave=tag:0: tag:0: want the number of a command, from 1, or N-M, or N-"},
		{Config{Devices: dev("t", "tpm-tis", "misbehave=tag+tag:2")}, "sim: t: model tpm-tis: property misbehave=tag+tag:2: tag is given twice"},
		{Config{Devices: []DeviceSpec{{Name: "a", Model: "edu", TPM: newEngine(false, false)}}}, "sim: a: model edu has no TPM that another could stand for"},
		{Config{Devices: tpms}, "sim: 9 platform devices: want at most 8"},
		{Config{Devices: two, Clock: 9}, "sim: clock 9: want RealTime, Stepped or Eager"},
		{Config{Devices: []DeviceSpec{{Name: "a", Model: "edu", Capture: func([]byte) {}}}}, "sim: a: model edu is no network adapter, so there is nothing to capture"},
	} {
		m, err := Start(t.Context(), c.c)
		if err == nil || !strings.HasPrefix(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("Start(%+v) = %v, want %s", c.c, err, c.want)
		}
		if m != nil {
			m.Close()
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Start(ctx, Config{Devices: two}); !errors.Is(err, context.Canceled) {
		t.Errorf("Start with a ctx that ended = %v, want Canceled", err)
	}
}

// Every model comes up by each of its names, and is what Models says.
func TestModels(t *testing.T) {
	for _, x := range Models() {
		if x.About == "" {
			t.Errorf("model %s says nothing of itself", x.Name)
		}
		if x.Name == "upstream" || x.Name == "downstream" {
			continue // parts of a switch: TestPortsEnumerate has one
		}
		for _, name := range append(slices.Clone(x.Aliases), x.Name) {
			m := started(t, Config{Devices: []DeviceSpec{{Name: "d", Model: name}}, Domain: 0x2345})
			d, err := m.Device("d")
			if err != nil {
				t.Fatal(err)
			}
			fn, err := m.Function("d")
			if platform := len(bus.HardwareIDs(d)) > 0; platform != x.Platform {
				t.Errorf("%s: is a platform device %v, want %v", name, platform, x.Platform)
			}
			if x.Platform {
				if fn != nil || err != nil || len(m.Topology().Functions) != 0 || IsNetwork(name) || d.Backend() != "sim:"+name {
					t.Errorf("%s: Function = %v, %v, %d functions; %s", name, fn, err, len(m.Topology().Functions), d.Backend())
				}
				continue
			}
			if err != nil || !x.Port && fn.ID != pci.ReadID(d.Config()) || d.Address() != "2345:00:03.0" || d.Backend() != "sim:"+name {
				t.Errorf("%s: Function = %+v, %v; %s %s", name, fn, err, d.Address(), d.Backend())
			}
			if len(m.Topology().Functions) != 1 || m.Topology().Functions[0] != fn {
				t.Errorf("%s: the topology has %d functions, want its own", name, len(m.Topology().Functions))
			}
			if IsNetwork(name) != x.Network {
				t.Errorf("IsNetwork(%s) = %v, want %v", name, IsNetwork(name), x.Network)
			}
			if err := m.SetLink("d", false); (err == nil) != x.Network {
				t.Errorf("%s: SetLink = %v, network %v", name, err, x.Network)
			}
		}
	}
	m, _ := eduOn(t, Stepped)
	for _, f := range []func(string) error{
		func(n string) error { _, err := m.Device(n); return err },
		func(n string) error { _, err := m.Function(n); return err },
		func(n string) error { return m.Unplug(n) },
		func(n string) error { return m.SetLink(n, true) },
	} {
		if err := f("x"); !errors.Is(err, unix.ENODEV) {
			t.Errorf("for a device that there is not: %v, want ENODEV", err)
		}
	}
}
