package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestPortsPulledOut: cards are pulled out while pktgen sends and they receive. What they did ends, others go on, and they can be put
// in again.
func TestPortsPulledOut(t *testing.T) {
	p := startPorts(t, "rp0=sim:root-port", "eth0=sim:e1000e,under=rp0", "rp1=sim:root-port", "eth1=sim:e1000e,under=rp1", "--wire", "eth0-eth1",
		"rp2=sim:root-port", "eth2=sim:e1000e,under=rp2", "rp3=sim:root-port", "eth3=sim:e1000e,under=rp3", "--wire", "eth2-eth3")
	p.pktgen(t, 0, "eth0", p.get(t, "sys/class/net/eth1/address"), 0)
	p.pktgen(t, 0, "eth2", p.get(t, "sys/class/net/eth3/address"), 0)
	done := p.start()
	goesOn := func(sender, receiver string) {
		t.Helper()
		from := p.stat(t, receiver, "rx_packets")
		eventually(t, receiver+" receiving", func() bool { return p.stat(t, receiver, "rx_packets") > from+1000 })
		if n := p.number(t, "proc/net/pktgen/"+sender, `errors: (\d+)`); n != 0 {
			t.Errorf("%s has %d errors", sender, n)
		}
	}
	goesOn("eth0", "eth1")
	goesOn("eth2", "eth3")

	// Whoever sends: pktgen has the device no more, as the kernel's has one no more that is unregistered.
	p.ring3(t, "unplug", "--now", "eth0")
	for _, gone := range []string{"proc/net/pktgen/eth0", "sys/class/net/eth0", "sys/bus/pci/devices/1000:01:00.0"} {
		if _, err := os.Stat(filepath.Join(p.tree, gone)); !os.IsNotExist(err) {
			t.Errorf("%s is there after eth0 was pulled out: %v", gone, err)
		}
	}
	if text := p.get(t, "proc/net/pktgen/kpktgend_0"); strings.Contains(text, "eth0") {
		t.Errorf("kpktgend_0 has eth0 after it was pulled out: %s", text)
	}
	goesOn("eth2", "eth3")

	// Whoever receives: the sender's link goes down, and with it its run ends.
	p.ring3(t, "unplug", "--now", "eth3")
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("pktgen ended with %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("pktgen did not end: %s\n%s", p.get(t, "proc/net/pktgen/eth2"), p.lastWords())
	}
	if ls := p.ring3(t, "ls"); strings.Contains(ls, "r0        eth0 ") || strings.Contains(ls, "r0        eth3 ") || strings.Count(ls, "pcieport") != 4 {
		t.Errorf("ring3 ls after two cards were pulled out: %s", ls)
	}

	p.pluggedAgain(t)
	p.end(t)
}

// pluggedAgain plugs the cards of TestPortsPulledOut in again: they are wired as before, and nothing is lost.
func (p *portsRun) pluggedAgain(t *testing.T) {
	t.Helper()
	for _, d := range []string{"eth0=sim:e1000e,under=rp0", "eth3=sim:e1000e,under=rp3"} {
		p.ring3(t, "plug", d)
	}
	p.pktgen(t, 1, "eth0", p.get(t, "sys/class/net/eth1/address"), 100_000)
	for _, c := range []string{"count 100000", "dst_mac " + p.get(t, "sys/class/net/eth3/address")} {
		p.set(t, "proc/net/pktgen/eth2", c)
	}
	select {
	case err := <-p.start():
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("pktgen does not come to an end: %s\n%s", p.get(t, "proc/net/pktgen/eth0"), p.get(t, "proc/net/pktgen/eth2"))
	}
	for _, rx := range []string{"eth1", "eth3"} {
		eventually(t, rx+" receiving all", func() bool {
			return p.number(t, "proc/net/pktgen/"+rx+".rx", `(?s)Runs:.*received: (\d+)  lost: 0`) == 100_000
		})
	}
	p.end(t)
}

// TestPortsRebound: a device that got its driver anew is on its wire as before, on which nothing is lost.
func TestPortsRebound(t *testing.T) {
	for _, backend := range []string{"sim", "qemu"} {
		t.Run(backend, func(t *testing.T) {
			p := startPorts(t, "rp0="+backend+":pcie-root-port", "eth0="+backend+":e1000e,under=rp0", "eth1="+backend+":e1000e", "--wire", "eth0-eth1")
			const eth0, eth1 = "1000:01:00.0", "1000:00:04.0"
			p.set(t, "sys/bus/pci/drivers/e1000/unbind", eth1)
			p.set(t, "sys/bus/pci/drivers/e1000/bind", eth1)
			p.set(t, "sys/bus/pci/devices/"+eth0+"/remove", "1")
			p.set(t, "sys/bus/pci/rescan", "1")
			p.pktgen(t, 0, "eth0", p.get(t, "sys/class/net/eth1/address"), 50_000)
			if err := <-p.start(); err != nil {
				t.Fatal(err)
			}
			eventually(t, "all packets", func() bool { return p.number(t, "proc/net/pktgen/eth1.rx", `received: (\d+) `) == 50_000 })
			if n := p.number(t, "proc/net/pktgen/eth1.rx", `lost: (\d+) `); n != 0 {
				t.Errorf("%d packets are lost: %s", n, p.get(t, "proc/net/pktgen/eth1.rx"))
			}
			p.end(t)
		})
	}
}

// TestPortsAtOnce plugs and unplugs below two ports at once.
func TestPortsAtOnce(t *testing.T) {
	for _, backend := range []string{"sim", "qemu"} {
		t.Run(backend, func(t *testing.T) {
			p := startPorts(t, "rp0="+backend+":pcie-root-port", "rp1="+backend+":pcie-root-port", "edu0="+backend+":edu")
			var all sync.WaitGroup
			failed := make(chan string, 2)
			for port := range 2 {
				all.Go(func() {
					for range long(25, 3) {
						if err := p.cycle(t, backend, port); err != nil {
							failed <- err.Error()
							return
						}
					}
				})
			}
			all.Wait()
			select {
			case text := <-failed:
				t.Fatalf("%s\n%s", text, p.lastWords())
			default:
			}
			if ls := p.ring3(t, "ls"); strings.Contains(ls, "eth") || strings.Count(ls, "pcieport") != 2 || !strings.Contains(ls, "edu0") {
				t.Errorf("ring3 ls: %s", ls)
			}
			p.end(t)
		})
	}
}

// cycle plugs a card in below a port, and has it switched off again; its name is free when it returns.
func (p *portsRun) cycle(t *testing.T, backend string, port int) error {
	name := fmt.Sprintf("eth%d", port)
	if out, err := p.command(t, "plug", fmt.Sprintf("%s=%s:e1000e,under=rp%d", name, backend, port)).CombinedOutput(); err != nil || !strings.Contains(string(out), name+": e1000 82574L") {
		return fmt.Errorf("plugging %s: %w, %s", name, err, out)
	}
	if _, err := os.Stat(filepath.Join(p.tree, "sys/class/net", name)); err != nil {
		return err
	}
	if err := p.write(fmt.Sprintf("sys/bus/pci/slots/%d/power", port+1), []byte("0\n")); err != nil {
		return fmt.Errorf("switching %s off: %w", name, err)
	}
	if _, err := os.Stat(filepath.Join(p.tree, "sys/class/net", name)); !os.IsNotExist(err) {
		return fmt.Errorf("%s is there after its slot was switched off: %w", name, err)
	}
	return nil
}

// TestPortsCycles: 50 times a card comes and goes by the power file (3 times without RING3_LONG), and nothing is left of it.
func TestPortsCycles(t *testing.T) {
	p := startPorts(t, "rp0=qemu:pcie-root-port", "eth9=qemu:e1000e")
	const warm = 2 // what is made once is made then
	var before usage
	n := long(50, 3)
	for i := range n + warm {
		if i == warm {
			before = p.usage(t)
		}
		if err := p.cycle(t, "qemu", 0); err != nil {
			t.Fatalf("cycle %d: %v\n%s", i, err, p.lastWords())
		}
	}
	var after usage
	for range 50 { // QEMU takes a card away in its own time
		if after = p.usage(t); after.descriptors <= before.descriptors && after.qemu <= before.qemu {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Logf("before %d cycles %+v, after %+v", n, before, after)
	if after.descriptors > before.descriptors || after.qemu > before.qemu || after.threads > before.threads+6 || after.rss > before.rss+16<<10 {
		t.Errorf("after %d cycles %+v, before %+v", n, after, before)
	}
	p.end(t)
}

// usage is what an instance uses.
type usage struct {
	descriptors, threads int
	rss                  int // KiB
	qemu                 int // descriptors of its QEMUs
}

func (p *portsRun) usage(t *testing.T) usage {
	t.Helper()
	pid := p.up.cmd.Process.Pid
	u := usage{descriptors: descriptors(pid)}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range strings.Split(string(status), "\n") {
		_, _ = fmt.Sscanf(l, "Threads: %d", &u.threads)
		_, _ = fmt.Sscanf(l, "VmRSS: %d kB", &u.rss)
	}
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, f := range tasks {
		b, _ := os.ReadFile(f)
		for _, child := range strings.Fields(string(b)) {
			if exe, _ := os.Readlink("/proc/" + child + "/exe"); strings.Contains(exe, "qemu") {
				var n int
				_, _ = fmt.Sscan(child, &n)
				u.qemu += descriptors(n)
			}
		}
	}
	return u
}

func descriptors(pid int) int {
	fds, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	return len(fds)
}
