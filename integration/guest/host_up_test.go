//go:build vm

package guest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// send is pktgen by echo: frames from eth0 to eth1, until all of them were received.
const send = `
echo add_device eth0 > $TREE/proc/net/pktgen/kpktgend_0
echo count $COUNT > $TREE/proc/net/pktgen/eth0
echo dst_mac $(cat $TREE/sys/class/net/eth1/address) > $TREE/proc/net/pktgen/eth0
echo start > $TREE/proc/net/pktgen/pgctrl
for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
	[ $(cat $TREE/sys/class/net/eth1/statistics/rx_packets) -ge $COUNT ] && break
	sleep 0.1
done
cat $TREE/sys/class/net/eth1/statistics/rx_packets
`

// sendForEver leaves when the first were sent, to nobody.
const sendForEver = `
echo add_device eth0 > $TREE/proc/net/pktgen/kpktgend_0
echo count 0 > $TREE/proc/net/pktgen/eth0
echo start > $TREE/proc/net/pktgen/pgctrl 2>/dev/null &
n=0
until [ $(cat $TREE/sys/class/net/eth0/statistics/tx_packets) -gt 0 ]; do n=$((n+1)); [ $n -lt 400 ]; sleep 0.05; done
`

// TestRootUp binds two NICs for nobody, who brings them up and sends frames from one to the
// other, by the tree and inside ring3 shell.
func TestRootUp(t *testing.T) {
	leaveNothing(t)
	a, b := Address(t, "nic0"), Address(t, "nic1")
	Bind(t, a, "e1000e")
	Bind(t, b, "e1000e")
	must(t, "bind", a, b, "--driver", "vfio-pci", "--owner", "nobody")
	in := up(t, "eth0=vfio:"+a, "eth1=vfio:"+b)
	if want := "eth0: e1000 82574L at " + a + " (vfio), 52:54:00:12:34:56, link 1000Mb/s full\n"; !strings.HasPrefix(in.said, want) {
		t.Errorf("it says %q, want %q", in.said, want)
	}
	if got := in.sh("COUNT=1000" + send); got != "1000\n" {
		t.Errorf("received %q, want 1000", got)
	}
	// The function stands where the kernel has it, and is ours.
	at, err := filepath.EvalSymlinks("/sys/bus/pci/devices/" + a)
	if err != nil {
		t.Fatal(err)
	}
	const look = `
ls -l $1/bus/pci/devices/$2 | sed 's/.* -> //'
ls -l $1/bus/pci/devices/$2/driver | sed 's/.* -> //'
cat $1/bus/pci/devices/$2/device $1/bus/pci/devices/$2/driver_override
cat $1/class/net/eth0/device/net/eth0/address
`
	place := "../../.." + strings.TrimPrefix(at, "/sys") + "\n"
	want := place + "../../../bus/pci/drivers/e1000\n0x10d3\nvfio-pci\n52:54:00:12:34:56\n"
	if got := in.sh("set -- $TREE/sys " + a + look); got != want {
		t.Errorf("in the tree: %q, want %q", got, want)
	}
	// In the shell the kernel's own files of the function stand beside ours, and others are
	// as they were.
	script := "set -e; set -- /sys " + a + look + "cat /sys/bus/pci/devices/" + a + "/iommu_group/type; cat /sys/bus/pci/devices/" + Address(t, "edu0") + "/vendor; grep -c eth0 /proc/interrupts"
	out, code := command(t, false, "shell", "--", "sh", "-c", script)
	if first, rest, _ := strings.Cut(out, "\n"); strings.Contains(first, "the machine has eth0 too") {
		out = rest // another NIC's, and true
	}
	if rest, ok := strings.CutPrefix(out, want); code != 0 || !ok || !strings.HasSuffix(rest, "\n0x1234\n3\n") {
		t.Errorf("in the shell (%d): %q, want %q, the group's type, edu's vendor, 3 interrupts", code, out, want)
	}
	if code := in.end(syscall.SIGINT); code != 0 || in.stderr() != "" {
		t.Errorf("ring3 up ends with %d: %s", code, in.stderr())
	}
	must(t, "unbind", a, b)
}

// TestRootUpKilled kills ring3 up in the middle of a run, ten times: the next one finds the
// device free and working.
func TestRootUpKilled(t *testing.T) {
	leaveNothing(t)
	a := Address(t, "nic0")
	must(t, "bind", a, "--driver", "vfio-pci", "--owner", "nobody")
	defer must(t, "unbind", a)
	for i := range 10 {
		in := up(t, "eth0=vfio:"+a)
		// What still writes ends with the files; so there is no pipe whose end would be waited for.
		cmd := in.shell(sendForEver)
		if err := cmd.Run(); err != nil {
			t.Fatalf("run %d: nothing is sent: %v, %s", i, err, in.stderr())
		}
		in.end(syscall.SIGKILL)
	}
}

// TestRootUpUnplugged unplugs a NIC under ring3 up: with another device it goes on, alone it
// ends.
func TestRootUpUnplugged(t *testing.T) {
	leaveNothing(t)
	other := Address(t, "nic0")
	must(t, "bind", other, "--driver", "vfio-pci", "--owner", "nobody")
	defer must(t, "unbind", other)
	for _, alone := range []bool{false, true} {
		Plug(t, "e1000e", "id=away", "bus=port0", "romfile=")
		addr := Address(t, "away")
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			if _, err := os.Stat("/sys/bus/pci/devices/" + addr); err == nil {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("%s does not come", addr)
			}
		}
		must(t, "bind", addr, "--driver", "vfio-pci", "--owner", "nobody", "--takeover")
		devices := []string{"eth0=vfio:" + addr}
		if !alone {
			devices = append(devices, "eth1=vfio:"+other)
		}
		in := up(t, devices...)
		Unplug(t, "away")
		WaitUnplugged(t, "away", upWait)
		if alone {
			if code := in.wait(); code != 1 {
				t.Errorf("alone: ring3 up ends with %d, want 1", code)
			}
		} else {
			out, _ := command(t, false, "ls")
			if !strings.Contains(out, "gone: "+addr) || !strings.Contains(out, " up\n") {
				t.Errorf("ls says %s, want one gone and one up", out)
			}
			if code := in.end(syscall.SIGINT); code != 0 {
				t.Errorf("ring3 up ends with %d", code)
			}
		}
		if s := in.stderr(); strings.Count(s, "\n") != 1 || !strings.Contains(s, addr) {
			t.Errorf("alone %v: it says %q, want one line about %s", alone, s, addr)
		}
		_ = os.Remove(fmt.Sprintf("/run/ring3/bound-%s.json", addr)) // the function is no more
	}
	_ = os.Remove("/run/ring3")
}
