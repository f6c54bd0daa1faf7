package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/bits"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/ring3dev/ring3/integration/portseen"
)

// instance is a ring3 with the topology of portseen; portseen.Player. Errors are injected as the kernel's test in the VM does it, below
// /dev/aer_inject: by the hardware's own means, which is what a record becomes where QEMU has the error.
type instance struct {
	env    []string
	silent int            // messages of aer_inject that stand for a monitor's command, and are none of the scenario's
	plugs  map[string]int // how often a device was plugged in
}

// specs is portseen's topology as ring3 takes it.
func specs() []string {
	var all []string
	for _, d := range portseen.Topology {
		if !d.Later {
			all = append(all, spec(d))
		}
	}
	return all
}

func spec(d portseen.Device) string {
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
	return s
}

func (i *instance) run(args ...string) ([]byte, error) {
	cmd := exec.Command(ring3, args...)
	cmd.Env = i.env
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("ring3 %s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	return out, err
}

func (i *instance) Address(name string) (string, error) {
	out, err := i.run("ls", "-json")
	if err != nil {
		return "", err
	}
	var all []struct{ Name, Address string }
	if err := json.Unmarshal(out, &all); err != nil {
		return "", err
	}
	for _, d := range all {
		if d.Name == name {
			return d.Address, nil
		}
	}
	return "", fmt.Errorf("ring3 ls has no %s", name)
}

func (i *instance) Plug(name, model, port string) error {
	i.plugs[name]++
	_, err := i.run("plug", "--no-wait", name+"=qemu:"+model+",under="+port)
	return err
}

func (i *instance) Unplug(name string) error {
	_, err := i.run("unplug", "--no-wait", name)
	return err
}

// Unplugged looks into the log, since what is in a slot and not in service is no device.
func (i *instance) Unplugged(name string) (bool, error) {
	out, err := i.run("dmesg")
	return bytes.Count(out, []byte("qemu: "+name+" (")) >= i.plugs[name], err
}

// bits of Uncorrectable Error Status by QEMU's names.
var monitorBits = map[string]uint32{"COMP_TIME": 1 << 14, "DLP": 1 << 4, "MALF_TLP": 1 << 18, "UNSUP": 1 << 20}

func (i *instance) Inject(name, bit string, header []uint32) error {
	r := portseen.Record{Device: name, Uncor: monitorBits[bit]}
	for k, w := range header {
		r.Header[k] = bits.ReverseBytes32(w) // as QEMU's monitor puts it into the log
	}
	i.silent++
	addr, err := i.Address(name)
	if err != nil {
		return err
	}
	return r.Write(filepath.Join(i.tree(), "dev"), addr)
}

func (i *instance) tree() string {
	for _, e := range i.env {
		if dir, ok := strings.CutPrefix(e, "XDG_RUNTIME_DIR="); ok {
			return filepath.Join(dir, "ring3/r0/tree")
		}
	}
	return ""
}

// withoutInjections is a log without what aer_inject said for the hardware's own means.
type withoutInjections struct {
	portseen.Log
	i *instance
}

func (l withoutInjections) Lines() ([]portseen.Line, error) {
	lines, err := l.Log.Lines()
	kept := lines[:0]
	for _, x := range lines {
		if l.i.silent > 0 && strings.Contains(x.Text, "aer_inject: Injecting errors") {
			l.i.silent--
			continue
		}
		kept = append(kept, x)
	}
	return kept, err
}

// TestPorts plays the scenario that the kernel 6.1 was played in the VM to ring3, guest-less, and compares what is seen line by line with
// testdata/ports/kernel-6.1.txt. What differs, and why, is portDifferences.
func TestPorts(t *testing.T) {
	dir, err := os.MkdirTemp("", "ports")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	i := &instance{env: append(os.Environ(), "XDG_RUNTIME_DIR="+dir), plugs: map[string]int{}}
	startRing3(t, nil, i.env, append([]string{"up", "--profile", "6.1"}, specs()...)...)
	log, err := i.log()
	if err != nil {
		t.Fatal(err)
	}
	events, stop, err := i.events()
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	tree := i.tree()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	r := portseen.Recorder{Roots: portseen.Roots{Sys: filepath.Join(tree, "sys"), Dev: filepath.Join(tree, "dev")}, Player: i, Log: withoutInjections{log, i}, Events: events}
	text, err := r.Record(ctx, portseen.Scenario)
	if f := os.Getenv("RING3_PORTS_OUT"); f != "" {
		_ = os.WriteFile(f, []byte(text), 0o644)
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	want, err := os.ReadFile(portsFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range portseen.Compare(sameNames(string(want)), sameNames(text), portsGap) {
		if !expected(d) {
			t.Error(d)
		}
	}
}

// portsGap is by how much gaps of more than 500 ms may differ from the kernel's.
const portsGap = 0.2

func (i *instance) log() (portseen.Log, error) { return portseen.CommandLog(i.command("dmesg")...) }

func (i *instance) events() (portseen.Events, func(), error) {
	return portseen.CommandEvents(i.command("events", "-w", "--property")...)
}

// command is a command with the environment, for env(1).
func (i *instance) command(args ...string) []string {
	return append([]string{"env", i.env[len(i.env)-1], ring3}, args...)
}

// sameNames calls drivers of the same devices by one name.
func sameNames(s string) string {
	return regexp.MustCompile(`\be1000e\b`).ReplaceAllString(s, "e1000")
}

// expected says whether a difference is known.
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
}
