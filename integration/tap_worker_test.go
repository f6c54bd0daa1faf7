package integration

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/ring3dev/ring3/internal/netspace"
)

// workers are the processes that run drivers for the supervisor pid, the spare one among them.
func workers(pid int) (out []int) {
	tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	for _, task := range tasks {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", pid, task.Name()))
		for _, f := range strings.Fields(string(b)) {
			child, _ := strconv.Atoi(f)
			args, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", child))
			if strings.HasSuffix(string(args), "\x00worker\x00") {
				out = append(out, child)
			}
		}
	}
	return out
}

// tapWorkerKilled kills the worker of two tapped devices again and again: a TCP connection goes on, and the interfaces
// keep what they were given.
func tapWorkerKilled(t *testing.T) {
	for _, device := range []string{"sim:e1000e", "qemu:e1000e"} {
		t.Run(device, func(t *testing.T) {
			if _, err := exec.LookPath("qemu-system-x86_64"); err != nil && strings.HasPrefix(device, "qemu") {
				t.Skip(err)
			}
			tapWorkerKilledOn(t, device)
		})
	}
}

func tapWorkerKilledOn(t *testing.T, device string) {
	if _, err := os.Stat(fmt.Sprintf("/proc/self/task/%d/children", os.Getpid())); err != nil {
		t.Skip(err)
	}
	const deaths = 2 // more of them in a short time would make the supervisor go back to what was configured, or give up
	there, err := netspace.New()
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(there.Close)
	up := startUp(t, nil, "eth0="+device, "eth1="+device, "--wire", "eth0-eth1", "--tap", "eth0=rt0", "--tap", "eth1=rt1")
	up.loud = true
	rt1, err := netlink.LinkByName("rt1")
	if err == nil {
		err = netlink.LinkSetNsFd(rt1, there.FD())
	}
	if err != nil {
		t.Fatal(err)
	}
	c := tapCase{mtu: 2000}
	c.setUp(t, "rt0", "1")
	there.Do(func() { c.setUp(t, "rt1", "2") })
	waitMTU(t, c.mtu)
	rt0, err := netlink.LinkByName("rt0")
	if err != nil {
		t.Fatal(err)
	}
	stop, sent := make(chan struct{}), make(chan error)
	go func() { // one connection after the other: each lives through what happens while it lasts
		defer close(sent)
		for {
			if _, err := netspace.Send(nil, there, "10.3.0.2:0", 64<<20); err != nil {
				sent <- err
				return
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	bytes := func() uint64 {
		l, err := netlink.LinkByName("rt0")
		if err != nil || l.Attrs().Index != rt0.Attrs().Index || l.Attrs().MTU != c.mtu {
			t.Fatalf("rt0 is %+v, %v, want the same as before, MTU %d", l, err, c.mtu)
		}
		return l.Attrs().Statistics.TxBytes
	}
	for range deaths {
		before := bytes()
		eventually(t, "traffic", func() bool {
			select {
			case err := <-sent:
				t.Fatalf("the connection ended: %v", err)
			default:
			}
			return bytes() > before+1<<20
		})
		had := workers(up.cmd.Process.Pid)
		if len(had) == 0 {
			t.Fatal("no worker")
		}
		for _, pid := range had {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	before := bytes()
	eventually(t, "traffic after the last death", func() bool { return bytes() > before+1<<20 })
	close(stop)
	if err := <-sent; err != nil {
		t.Errorf("the connection: %v", err)
	}
	waitMTU(t, c.mtu)
	up.stop(t)
	if !strings.Contains(up.stderr.String(), "in service again") {
		t.Errorf("ring3 up said %q, want recoveries", up.stderr)
	}
	if _, err := netlink.LinkByName("rt0"); err == nil {
		t.Error("rt0 is still there after ring3 has ended")
	}
}
