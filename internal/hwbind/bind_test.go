package hwbind

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/internal/syspci"
)

const (
	classEthernet = 0x020000
	classPort     = 0x060400
	classHost     = 0x060000
)

var alice = &Owner{Name: "alice", UID: 1000}

// withNIC is a machine with a network controller in a group of its own.
func withNIC(t *testing.T) (*model, pci.Addr) {
	k := newModel(t)
	a := k.add("0000:00:04.0", classEthernet, "e1000e", 7)
	k.addNet("0000:00:04.0/net/eth0", false)
	return k, a
}

// addNet adds an interface below a device.
func (k *model) addNet(place string, up bool) {
	flags := "0x1002\n"
	if up {
		flags = "0x1003\n"
	}
	k.file(root+place+"/flags", flags)
	k.link("sys/class/net/"+filepath.Base(place), root+place)
}

func TestBindUnbind(t *testing.T) {
	for _, driver := range Drivers() {
		k, a := withNIC(t)
		before := k.snapshot()
		res, steps, err := k.fullBind(Request{Addrs: []pci.Addr{a}, Driver: driver, Owner: alice})
		if err != nil {
			t.Fatal(err)
		}
		node := map[string]string{VFIO: "7", UIO: "uio4"}[driver]
		r := res[0]
		if r.Was != "e1000e" || r.Driver != driver || r.Group != 7 || r.Owner != "alice" || len(r.Nodes) != 1 || filepath.Base(r.Nodes[0]) != node {
			t.Errorf("%s: result %+v", driver, r)
		}
		if k.has(a.String()) != driver || k.owner[node] != alice.UID {
			t.Errorf("%s: the function is with %s, its node belongs to %d", driver, k.has(a.String()), k.owner[node])
		}
		want := []string{
			"echo " + driver + " > DIR/sys/bus/pci/devices/0000:00:04.0/driver_override",
			"echo 0000:00:04.0 > DIR/sys/bus/pci/drivers/e1000e/unbind",
			"echo 0000:00:04.0 > DIR/sys/bus/pci/drivers/" + driver + "/bind",
			map[string]string{VFIO: "chown alice DIR/dev/vfio/7", UIO: "chown alice DIR/dev/uioN, of the number that the kernel gives it"}[driver],
		}
		if got := k.steps(steps); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: steps %q, want %q", driver, got, want)
		}
		if res, err = k.fullUnbind(a); err != nil {
			t.Fatal(err)
		}
		if res[0].Was != driver || res[0].Driver != "e1000e" {
			t.Errorf("%s: unbind: result %+v", driver, res[0])
		}
		if after := k.snapshot(); after != before {
			t.Errorf("%s: after bind and unbind:\n%s\nwant\n%s", driver, after, before)
		}
	}
}

// VFIO's second module is loaded where it is not there, and missed by nobody where it cannot be.
func TestModules(t *testing.T) {
	for _, there := range []bool{true, false} {
		k, a := withNIC(t)
		if err := errors.Join(os.RemoveAll(filepath.Join(k.dir, "sys/module")), os.RemoveAll(filepath.Join(k.dir, "sys/bus/pci/drivers", VFIO))); err != nil {
			t.Fatal(err)
		}
		k.load[VFIO], k.load[type1] = true, there
		_, steps, err := k.fullBind(Request{Addrs: []pci.Addr{a}, Driver: VFIO})
		if want := []string{"modprobe vfio-pci", "modprobe vfio_iommu_type1"}; err != nil || !reflect.DeepEqual(steps[:2], want) {
			t.Errorf("there %v: steps %q, %v, want %q first", there, steps, err, want)
		}
	}
}

// steps takes the folder's name out of steps.
func (k *model) steps(list []string) []string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = strings.ReplaceAll(s, k.dir, "DIR")
	}
	return out
}

// A bind that fails at any operation leaves everything as it was.
func TestBindFails(t *testing.T) {
	for _, driver := range Drivers() {
		for at := 1; ; at++ {
			k, a := withNIC(t)
			b := k.add("0000:00:05.0", classEthernet, "", 7) // had no driver, and an override of somebody's
			k.file(root+"0000:00:05.0/driver_override", "pci-stub\n")
			before := k.snapshot()
			if err := os.RemoveAll(filepath.Join(k.dir, "sys/bus/pci/drivers", driver)); err != nil {
				t.Fatal(err)
			}
			k.load[driver] = true
			k.failAt = at
			_, _, err := k.fullBind(Request{Addrs: []pci.Addr{a, b}, Driver: driver, Owner: alice})
			if err == nil {
				if at < 8 {
					t.Errorf("%s: done after %d operations", driver, at)
				}
				break
			}
			if !errors.Is(err, unix.EIO) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%s: operation %d fails: %v", driver, at, err)
			}
			if at == 1 {
				k.driver(driver) // was never loaded
			}
			if after := k.snapshot(); after != before {
				t.Errorf("%s: after operation %d failed:\n%s\nwant\n%s", driver, at, after, before)
			}
		}
	}
}

// When nothing works any more, everything that is not as it was is named.
func TestBindStuck(t *testing.T) {
	k, a := withNIC(t)
	k.failAt, k.stuck = 3, true
	_, _, err := k.fullBind(Request{Addrs: []pci.Addr{a}, Driver: VFIO})
	for _, want := range []string{"vfio-pci refuses it", "putting it back as it was: driver_override", "giving it to e1000e"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q in it", err, want)
		}
	}
}

// A driver that refuses the function leaves it with the one that it had.
func TestBindRefused(t *testing.T) {
	k, a := withNIC(t)
	k.broken[UIO] = true
	before := k.snapshot()
	_, _, err := k.fullBind(Request{Addrs: []pci.Addr{a}, Driver: UIO})
	if !errors.Is(err, unix.EINVAL) || k.snapshot() != before {
		t.Errorf("error %v; now\n%s", err, k.snapshot())
	}
}

func TestUnbindFails(t *testing.T) {
	for at := 1; ; at++ {
		k, a := withNIC(t)
		if _, _, err := k.fullBind(Request{Addrs: []pci.Addr{a}, Driver: VFIO, Owner: alice}); err != nil {
			t.Fatal(err)
		}
		before := k.snapshot()
		k.ops, k.failAt = 0, at
		_, err := k.fullUnbind(a)
		if err == nil {
			if at < 3 {
				t.Errorf("done after %d operations", at)
			}
			break
		}
		if !errors.Is(err, unix.EIO) || k.snapshot() != before {
			t.Errorf("operation %d fails: %v; then\n%s\nwant\n%s", at, err, k.snapshot(), before)
		}
	}
}

// From one driver for user space to the other, and to another owner, the first memory counts.
func TestBindTwice(t *testing.T) {
	k, a := withNIC(t)
	before := k.snapshot()
	for _, r := range []Request{
		{Driver: VFIO, Owner: alice},
		{Driver: VFIO, Owner: &Owner{Name: "bob", UID: 1001}},
		{Driver: UIO},
		{Driver: UIO},
	} {
		r.Addrs = []pci.Addr{a}
		if _, _, err := k.fullBind(r); err != nil {
			t.Fatal(err)
		}
		if k.has(a.String()) != r.Driver {
			t.Errorf("it is with %s, want %s", k.has(a.String()), r.Driver)
		}
		if r.Owner != nil && k.owner["7"] != r.Owner.UID {
			t.Errorf("the node belongs to %d, want %s", k.owner["7"], r.Owner)
		}
	}
	if _, err := k.fullUnbind(a); err != nil {
		t.Fatal(err)
	}
	if after := k.snapshot(); after != before {
		t.Errorf("after unbind:\n%s\nwant\n%s", after, before)
	}
}

// Without memory, or with memory that makes no sense, the kernel finds a driver.
func TestUnbindForgotten(t *testing.T) {
	for _, memory := range []string{"", "{", `{"address":"0000:00:05.0","was":"x"}`, `{"address":"0000:00:04.0","was":"../../x"}`} {
		k, a := withNIC(t)
		before := k.snapshot()
		if _, _, err := k.fullBind(Request{Addrs: []pci.Addr{a}, Driver: VFIO}); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(k.m.stateFile(a), []byte(memory), 0o644); err != nil {
			t.Fatal(err)
		}
		if memory == "" {
			if err := os.Remove(k.m.stateFile(a)); err != nil {
				t.Fatal(err)
			}
		}
		res, err := k.fullUnbind(a)
		if err != nil || res[0].Driver != "e1000e" || k.snapshot() != before {
			t.Errorf("memory %q: %+v, %v; then\n%s", memory, res, err, k.snapshot())
		}
	}
}

// A rule of udev's set the override, but the kernel's driver was faster.
func TestOverrideBefore(t *testing.T) {
	k, a := withNIC(t)
	k.file(root+"0000:00:04.0/driver_override", "vfio-pci\n")
	before := k.snapshot()
	k.broken[VFIO] = true
	if _, _, err := k.fullBind(Request{Addrs: []pci.Addr{a}, Driver: VFIO}); err == nil || k.snapshot() != before {
		t.Errorf("refused: %v; then\n%s", err, k.snapshot())
	}
	k.broken[VFIO] = false
	if _, _, err := k.fullBind(Request{Addrs: []pci.Addr{a}, Driver: VFIO}); err != nil {
		t.Fatal(err)
	}
	if _, err := k.fullUnbind(a); err != nil || k.has(a.String()) != "e1000e" {
		t.Errorf("unbind: %v; it is with %q", err, k.has(a.String()))
	}
}

func TestRefusals(t *testing.T) {
	nowhere, _ := pci.ParseAddr("0000:09:00.0")
	for name, c := range map[string]struct {
		make func(k *model) pci.Addr
		req  Request
		is   error
		says []string
	}{
		"no such function": {func(*model) pci.Addr { return nowhere }, Request{Driver: VFIO}, bus.ErrGone, []string{"0000:09:00.0: no such PCI function"}},
		"a bridge": {func(k *model) pci.Addr { return k.add("0000:00:1c.0", classPort, "pcieport", 3) }, Request{Driver: VFIO},
			bus.ErrNotSupported, []string{"bridge", "--driver uio_pci_generic"}},
		"no IOMMU": {func(k *model) pci.Addr { return k.add("0000:00:08.0", classEthernet, "", syspci.NoGroup) }, Request{Driver: VFIO},
			bus.ErrNoIOMMU, []string{"intel_iommu=on", "--driver uio_pci_generic"}},
		"a group": {func(k *model) pci.Addr {
			k.add("0000:00:1c.0", classPort, "pcieport", 9) // does not count
			k.add("0000:00:1c.0/0000:03:00.1", classEthernet, "e1000e", 9)
			k.add("0000:00:1c.0/0000:03:00.2", classEthernet, "", 9)
			return k.add("0000:00:1c.0/0000:03:00.0", classEthernet, "", 9)
		}, Request{Driver: VFIO, Owner: alice}, bus.ErrBusy, []string{"IOMMU group 9", "0000:03:00.1 (8086:10d3, driver e1000e)",
			"sudo ring3 bind 0000:03:00.0 0000:03:00.1 --driver vfio-pci --owner alice"}},
		"in use": {func(k *model) pci.Addr {
			k.addNet("0000:00:06.0/net/lan0", true)
			return k.add("0000:00:06.0", classEthernet, "e1000e", 4)
		}, Request{Driver: VFIO}, ErrInUse, []string{"interface lan0 is up", "--takeover"}},
		"no module": {func(k *model) pci.Addr {
			_ = os.RemoveAll(filepath.Join(k.dir, "sys/bus/pci/drivers/vfio-pci"))
			return k.add("0000:00:08.0", classHost, "", 4)
		}, Request{Driver: VFIO}, os.ErrNotExist, []string{"loading the module vfio-pci"}},
	} {
		t.Run(name, func(t *testing.T) {
			k := newModel(t)
			c.req.Addrs = []pci.Addr{c.make(k)}
			before := k.snapshot()
			_, _, err := k.fullBind(c.req)
			if !errors.Is(err, c.is) {
				t.Fatalf("error %v, want %v", err, c.is)
			}
			for _, want := range c.says {
				if !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
					t.Errorf("error %q, want one line with %q", err, want)
				}
			}
			if k.snapshot() != before {
				t.Errorf("it changed something:\n%s", k.snapshot())
			}
		})
	}
}

// A whole group goes at once; the node stays the user's until its last member is back.
func TestGroup(t *testing.T) {
	k := newModel(t)
	a := k.add("0000:00:04.0", classEthernet, "e1000e", 7)
	b := k.add("0000:00:04.1", classEthernet, "e1000e", 7)
	k.addNet("0000:00:04.0/net/eth0", false)
	k.addNet("0000:00:04.1/net/eth1", true)
	before := k.snapshot()
	req := Request{Addrs: []pci.Addr{a, b}, Driver: VFIO, Owner: alice}
	if _, _, err := k.fullBind(req); !errors.Is(err, ErrInUse) {
		t.Fatalf("error %v, want in use", err)
	}
	req.Takeover = true
	p, err := k.m.PlanBind(req)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := p.Took(), []string{"0000:00:04.1: interface eth1 is up"}; !reflect.DeepEqual(got, want) {
		t.Errorf("it took %q, want %q", got, want)
	}
	if _, err := p.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	res, err := k.fullUnbind(a)
	if err != nil || len(res[0].Notes) != 1 || k.owner["7"] != alice.UID {
		t.Errorf("unbinding the first: %+v, %v, the node belongs to %d", res, err, k.owner["7"])
	}
	if _, err := k.fullUnbind(b); err != nil || k.snapshot() != before {
		t.Errorf("unbinding the second: %v; then\n%s", err, k.snapshot())
	}
}

// A group's node is one user's. Another gets it only where that was asked for, and not where
// binding fails.
func TestOtherOwner(t *testing.T) {
	bob := &Owner{Name: "bob", UID: 1001}
	const node = "/dev/vfio/7"
	k, a := withNIC(t)
	if _, _, err := k.fullBind(Request{Addrs: []pci.Addr{a}, Driver: VFIO, Owner: alice}); err != nil {
		t.Fatal(err)
	}
	// One process has it open.
	k.file("proc/123/comm", "ring3")
	k.link("proc/123/fd/5", node)
	if _, _, err := k.fullBind(Request{Addrs: []pci.Addr{a}, Driver: VFIO, Owner: bob}); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "process 123 (ring3) has ") {
		t.Errorf("bind for bob of what is open = %v, want who has it open", err)
	}
	if err := os.RemoveAll(filepath.Join(k.dir, "proc/123")); err != nil {
		t.Fatal(err)
	}
	// Another function of the group.
	b := k.add("0000:00:05.0", classEthernet, "e1000e", 7)
	k.addNet("0000:00:05.0/net/eth1", false)
	r := Request{Addrs: []pci.Addr{b}, Driver: VFIO, Owner: bob}
	before := k.snapshot()
	if _, _, err := k.fullBind(r); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), node+" is "+userName(alice.UID)+"'s") {
		t.Errorf("bind for bob = %v, want that the node is somebody's", err)
	}
	r.Takeover = true
	for step := 1; ; step++ {
		k.ops, k.failAt = 0, step
		_, _, err := k.fullBind(r)
		if err == nil {
			break
		}
		if step > 20 {
			t.Fatalf("bind for bob, taking over = %v", err)
		}
		if k.owner["7"] != alice.UID || k.snapshot() != before {
			t.Errorf("bind that fails at step %d: the node belongs to %d, want %d, and everything as before", step, k.owner["7"], alice.UID)
		}
	}
	if k.owner["7"] != bob.UID {
		t.Errorf("bind for bob, taking over: the node belongs to %d", k.owner["7"])
	}
}

func TestUnbindRefusals(t *testing.T) {
	k, a := withNIC(t)
	if _, err := k.fullUnbind(a); !errors.Is(err, bus.ErrNotSupported) || !strings.Contains(err.Error(), "driver e1000e has it") {
		t.Errorf("a function that the kernel has: %v", err)
	}
	if _, _, err := k.fullBind(Request{Addrs: []pci.Addr{a}, Driver: VFIO}); err != nil {
		t.Fatal(err)
	}
	k.file("proc/4242/comm", "dpdk-testpmd\n")
	k.link("proc/4242/fd/5", "dev/vfio/7")
	if _, err := k.fullUnbind(a); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "process 4242 (dpdk-testpmd) has ") {
		t.Errorf("a function that is open: %v", err)
	}
	if p, err := k.m.PlanUnbind([]pci.Addr{a}, true); err != nil || len(p.Took()) != 1 {
		t.Errorf("with takeover: %v, %v", p, err)
	}
}
