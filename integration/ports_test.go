package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/ring3dev/ring3/integration/portseen"
)

// TestPorts plays the scenario that the kernel 6.1 was played in the VM to ring3, guest-less, and compares what is seen line by line with
// testdata/ports/kernel-6.1.txt. What differs, and why, is portDifferences.
func TestPorts(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "ports")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	env := "XDG_RUNTIME_DIR=" + dir
	up := startRing3(t, nil, append(os.Environ(), env), append([]string{"up", "--profile", "6.1"}, specs()...)...)
	up.loud = true // of errors, of course
	command := func(args ...string) []string { return append([]string{"env", env, ring3}, args...) }
	ls := command("ls", "-json")
	out, err := exec.Command(ls[0], ls[1:]...).Output()
	if err != nil {
		t.Fatal(err)
	}
	var devices []struct{ Name, Address string }
	if err := json.Unmarshal(out, &devices); err != nil {
		t.Fatal(err)
	}
	p := &portseen.CommandPlayer{
		Addresses:   map[string]string{},
		PlugWords:   command("plug", "--no-wait", "{name}=qemu:{model},under={port}"),
		UnplugWords: command("unplug", "--no-wait", "{name}"),
	}
	for _, d := range devices {
		p.Addresses[d.Name] = d.Address
	}
	log, err := portseen.CommandLog(command("dmesg")...)
	if err != nil {
		t.Fatal(err)
	}
	events, stop, err := portseen.CommandEvents(command("events", "-w", "--property")...)
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	tree := filepath.Join(dir, "ring3/r0/tree")
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	r := portseen.Recorder{Roots: portseen.Roots{Sys: filepath.Join(tree, "sys"), Dev: filepath.Join(tree, "dev")}, Player: p, Log: log, Events: events}
	text, err := r.Record(ctx, portseen.Scenario)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	want, err := os.ReadFile(portsFile)
	if err != nil {
		t.Fatal(err)
	}
	kernel, ours := sameNames(string(want)), sameNames(text)
	for _, d := range portseen.Compare(kernel, ours, portseen.Tolerance{Part: portsPart, Late: time.Second}) {
		if !expected(d) {
			t.Error(d)
		}
	}
	for _, d := range portseen.Compare(kernel, ours, portseen.Tolerance{Part: portsPart}) {
		if !expected(d) {
			t.Log(d) // a busy machine may be late
		}
	}
}

// specs is portseen's topology as ring3 takes it.
func specs() []string {
	var all []string
	for _, d := range portseen.Topology {
		if d.Later {
			continue
		}
		model, props, _ := strings.Cut(d.Model, ",")
		s := d.Name + "=qemu:" + model
		if d.Under != "" {
			s += ",under=" + d.Under
		}
		for p := range strings.SplitSeq(props, ",") {
			if p != "" {
				s += ",qemu." + p
			}
		}
		if d.Slot != 0 {
			s += fmt.Sprintf(",qemu.slot=%d", d.Slot)
		}
		all = append(all, s)
	}
	return all
}

// portsPart is by how much gaps of more than 500 ms may differ from the kernel's.
const portsPart = 0.2

// sameNames calls drivers of the same devices by one name.
func sameNames(s string) string {
	return regexp.MustCompile(`\be1000e\b`).ReplaceAllString(s, "e1000")
}

// expected says whether a line of portseen.Compare's is no difference, or a known one.
func expected(line string) bool {
	for _, d := range portDifferences {
		if d.MatchString(line) {
			return true
		}
	}
	return strings.HasPrefix(line, "== ")
}

// portDifferences are where ring3 is not as the kernel, by line.
var portDifferences = []*regexp.Regexp{
	// How a function is reset cannot be chosen here, and a bridge has no file for resetting what is behind it.
	regexp.MustCompile(`^want: .* bus/pci/devices/\w+/(reset_method|reset_subordinate): `),
	// Drivers of services that the kernel 6.1 does not have. They serve nothing here: the one is not of this profile, and no port has virtual channels.
	regexp.MustCompile(`^got: .* bus/pci_express/drivers/(pcie_bwctrl|pcie_vc)/(bind|unbind|uevent): `),
	// The kernel's e1000e takes 0.5 s to come up.
	regexp.MustCompile(`^took 0\.\d+s, want 0\.\d+s: (do   write bus/pci/rescan|uev  bind /devices/pci/rp1/eth2)`),
}
