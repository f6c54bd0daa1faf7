//go:build vm

package guest

import (
	"encoding/json"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// supervised is a line of ring3 ls -json, as far as these tests look at it.
type supervised struct {
	Name      string  `json:"name"`
	State     string  `json:"state"`
	Cause     string  `json:"cause"`
	Worker    int     `json:"worker"`
	Restarts  int     `json:"restarts"`
	LastCause string  `json:"last_cause"`
	Recovery  float64 `json:"recovery_ms"`
}

// workers are the devices of the one instance, by name.
func workers(t *testing.T) map[string]supervised {
	t.Helper()
	out, code := command(t, false, "ls", "-json")
	var list []supervised
	if err := json.Unmarshal([]byte(out), &list); code != 0 || err != nil {
		t.Fatalf("ring3 ls: exit status %d, %v: %s", code, err, out)
	}
	m := map[string]supervised{}
	for _, s := range list {
		m[s.Name] = s
	}
	return m
}

// waitWorker waits until a device is as it should be.
func waitWorker(t *testing.T, in *instance, name, what string, ok func(supervised) bool) supervised {
	t.Helper()
	for end := time.Now().Add(upWait); ; time.Sleep(20 * time.Millisecond) {
		if s := workers(t)[name]; ok(s) {
			return s
		} else if time.Now().After(end) {
			t.Fatalf("%s after %v, want it %s: %+v; it said %s", name, upWait, what, s, in.stderr())
		}
	}
}

// counter reads a counter of a network device.
func counter(t *testing.T, in *instance, file string) int {
	t.Helper()
	b, err := in.shell("cat $TREE/sys/class/net/" + file).Output()
	n, aerr := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || aerr != nil {
		t.Fatalf("%s: %q, %v, %v", file, b, err, aerr)
	}
	return n
}

// grows waits until a counter is larger than it was.
func grows(t *testing.T, in *instance, file string) {
	t.Helper()
	was := counter(t, in, file)
	for end := time.Now().Add(upWait); counter(t, in, file) <= was; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s stays at %d; %+v; it said %s", file, was, workers(t), in.stderr())
		}
	}
}

// bindContained binds the pair of NICs and edu for nobody.
func bindContained(t *testing.T) (nic0, nic1, edu string) {
	t.Helper()
	leaveNothing(t)
	nic0, nic1, edu = Address(t, "nic0"), Address(t, "nic1"), Address(t, "edu0")
	must(t, "bind", nic0, nic1, edu, "--driver", "vfio-pci", "--owner", "nobody")
	t.Cleanup(func() { must(t, "unbind", nic0, nic1, edu) })
	return nic0, nic1, edu
}

// TestRootContainKilled kills the driver of a NIC that sends, five times: the device is stopped before its memory goes, the next driver has it, and what runs on it
// goes on. The others notice nothing.
func TestRootContainKilled(t *testing.T) {
	nic0, nic1, edu := bindContained(t)
	in := up(t, "--supervise=on", "eth0=vfio:"+nic0, "eth1=vfio:"+nic1, "edu0=vfio:"+edu)
	if want := "eth0: e1000 82574L at " + nic0 + " (vfio), 52:54:00:12:34:56, link 1000Mb/s full\n"; !strings.HasPrefix(in.said, want) {
		t.Errorf("it says %q, want %q", in.said, want)
	}
	if got := in.sh("COUNT=1000" + send); got != "1000\n" {
		t.Errorf("received %q, want 1000", got)
	}
	faults := strings.Count(KernelLog(t), "DMAR: [DMA")
	// What still writes has no pipe whose end would be waited for.
	if err := in.shell("echo count 0 > $TREE/proc/net/pktgen/eth0; echo start > $TREE/proc/net/pktgen/pgctrl 2>/dev/null &").Run(); err != nil {
		t.Fatal(err)
	}
	before := workers(t)
	var took []float64
	for round := 1; round <= 5; round++ {
		grows(t, in, "eth1/statistics/rx_packets")
		s := workers(t)["eth0"]
		if s.Worker == 0 || s.Worker == in.cmd.Process.Pid {
			t.Fatalf("%+v is not driven by a worker", s)
		}
		if v := vectorsOf(t, nic0); v == nil {
			t.Errorf("round %d: no interrupts are enabled while it runs", round)
		}
		if err := syscall.Kill(s.Worker, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		s = waitWorker(t, in, "eth0", "up again", func(s supervised) bool { return s.Restarts == round && s.State == "up" })
		took = append(took, s.Recovery)
	}
	grows(t, in, "eth1/statistics/rx_packets")
	for _, name := range []string{"eth1", "edu0"} {
		if s := workers(t)[name]; s.Restarts != 0 || s.Worker != before[name].Worker || s.State != "up" {
			t.Errorf("%+v, want it as it was: %+v", s, before[name])
		}
	}
	if n := strings.Count(KernelLog(t), "DMAR: [DMA") - faults; n != 0 {
		t.Errorf("%d DMA faults in the kernel's log, want none of a device that was stopped first", n)
	}
	slices.Sort(took)
	t.Logf("in service again after %.1f ms (median), %.1f at most", took[len(took)/2], took[len(took)-1])
	if code := in.end(syscall.SIGINT); code != 0 {
		t.Errorf("ring3 up ends with %d: %s", code, in.stderr())
	}
	if v := vectorsOf(t, nic0); v != nil {
		t.Errorf("interrupts are enabled afterwards: %q", v)
	}
}

// TestRootContainStopped stops the supervisor for good: its workers end with it, and the devices are the kernel's.
func TestRootContainStopped(t *testing.T) {
	nic0, nic1, _ := bindContained(t)
	for range 3 {
		in := up(t, "--supervise=on", "eth0=vfio:"+nic0, "eth1=vfio:"+nic1)
		if err := in.shell(sendForEver).Run(); err != nil {
			t.Fatalf("nothing is sent: %v; %s", err, in.stderr())
		}
		all := workers(t)
		in.end(syscall.SIGKILL)
		for name, s := range all {
			for end := time.Now().Add(upWait); ; time.Sleep(10 * time.Millisecond) {
				if _, err := os.Stat("/proc/" + strconv.Itoa(s.Worker)); err != nil {
					break
				}
				if time.Now().After(end) {
					t.Fatalf("the worker of %s (%d) outlives its supervisor", name, s.Worker)
				}
			}
		}
		if v := append(vectorsOf(t, nic0), vectorsOf(t, nic1)...); v != nil {
			t.Errorf("interrupts are enabled afterwards: %q", v)
		}
	}
}

// TestRootContainUnplugged unplugs a NIC under its worker: the kernel has it back within a moment, and the others go on.
func TestRootContainUnplugged(t *testing.T) {
	leaveNothing(t)
	other := Address(t, "nic0")
	must(t, "bind", other, "--driver", "vfio-pci", "--owner", "nobody")
	defer must(t, "unbind", other)
	Plug(t, "e1000e", "id=away", "bus=port0", "romfile=")
	addr := Address(t, "away")
	eventually(t, "the kernel to see the plugged device", func() bool {
		_, err := os.Stat("/sys/bus/pci/devices/" + addr)
		return err == nil
	})
	must(t, "bind", addr, "--driver", "vfio-pci", "--owner", "nobody", "--takeover")
	in := up(t, "--supervise=on", "eth0=vfio:"+addr, "eth1=vfio:"+other)
	Unplug(t, "away")
	WaitUnplugged(t, "away", upWait)
	s := waitWorker(t, in, "eth0", "gone", func(s supervised) bool { return s.State == "gone" })
	if !strings.Contains(s.Cause, "asked it back") && !strings.Contains(s.Cause, addr) {
		t.Errorf("%+v, want that the kernel asked it back", s)
	}
	if s := workers(t)["eth1"]; s.State != "up" || s.Restarts != 0 {
		t.Errorf("%+v, want it as it was", s)
	}
	if code := in.end(syscall.SIGINT); code != 0 {
		t.Errorf("ring3 up ends with %d: %s", code, in.stderr())
	}
	_ = os.Remove("/run/ring3/bound-" + addr + ".json") // the function is no more
	_ = os.Remove("/run/ring3")
}
