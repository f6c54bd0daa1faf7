//go:build vm

package guest

import (
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

// readableLog lets everybody read the kernel's log, as many machines do.
func readableLog(t *testing.T) {
	t.Helper()
	const file = "/proc/sys/kernel/dmesg_restrict"
	was, err := os.ReadFile(file)
	if err == nil {
		err = os.WriteFile(file, []byte("0\n"), 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.WriteFile(file, was, 0); err != nil {
			t.Error(err)
		}
	})
}

// TestRootContainStray has a NIC reach for what is not mapped for it: in the ring of the one that receives an upper bit of an address flips (which seed does that, is a fact of
// package bus/fault), so that a frame goes elsewhere, and all else is well. The IOMMU stops that, the kernel's log says so, and that is what its driver's worker dies of; the next one has the device, and the one beside it notices nothing.
func TestRootContainStray(t *testing.T) {
	nic0, nic1, _ := bindContained(t)
	readableLog(t)
	faults := strings.Count(KernelLog(t), "DMAR: [DMA")
	in := up(t, "--supervise=on", "eth0=vfio:"+nic0, "eth1=vfio:"+nic1, "--fault", "eth1=RDT#3:dma-flip:247")
	// Without moderation, and slowly: QEMU's 82574L ends QEMU when its MSI-X is switched off, as it is of a driver that died, in the 128 us after an interrupt, which is the
	// least that it throttles.
	if out, code := command(t, false, "ethtool", "-C", "eth1", "rx-usecs", "0"); code != 0 {
		t.Fatalf("switching moderation off: exit status %d: %s", code, out)
	}
	before := workers(t)["eth0"]
	// To the other one's address; what still writes has no pipe whose end would be waited for.
	if err := in.shell("echo add_device eth0 > $TREE/proc/net/pktgen/kpktgend_0; for l in 'count 0' 'delay 4000000' \"dst_mac $(cat $TREE/sys/class/net/eth1/address)\"; do echo \"$l\" > $TREE/proc/net/pktgen/eth0; done; echo start > $TREE/proc/net/pktgen/pgctrl 2>/dev/null &").Run(); err != nil {
		t.Fatalf("nothing is sent: %v; %s", err, in.stderr())
	}
	s := waitWorker(t, in, "eth1", "up again", func(s supervised) bool { return s.Restarts > 0 && s.State == "up" })
	want := regexp.MustCompile(`^` + regexp.QuoteMeta(nic1) + `: DMA outside of what is mapped for it, a (read|write) at 0x[0-9a-f]+: stopped by the IOMMU \(the kernel's log: DMAR: .*\[DMA (Read|Write).* \[` +
		regexp.QuoteMeta(strings.TrimPrefix(nic1, "0000:")) + `\] .*\)$`)
	if !want.MatchString(s.LastCause) {
		t.Errorf("%+v, want that it died of %v; it said %s", s, want, in.stderr())
	}
	if n := strings.Count(KernelLog(t), "DMAR: [DMA"); n <= faults {
		log := KernelLog(t)
		t.Errorf("%d DMA faults in the kernel's log, want more than the %d before; it ends with\n%s", n, faults, log[max(0, len(log)-2000):])
	}
	t.Logf("eth1 died of: %s; in service again after %.1f ms", s.LastCause, s.Recovery)
	grows(t, in, "eth1/statistics/rx_packets")
	grows(t, in, "eth0/statistics/tx_packets")
	if s := workers(t)["eth1"]; s.Restarts != 1 || s.State != "up" {
		t.Errorf("%+v, want it up after one restart; it said %s", s, in.stderr())
	}
	if s := workers(t)["eth0"]; s.Restarts != 0 || s.Worker != before.Worker || s.State != "up" {
		t.Errorf("%+v, want it as it was: %+v", s, before)
	}
	if code := in.end(syscall.SIGINT); code != 0 {
		t.Errorf("ring3 up ends with %d: %s", code, in.stderr())
	}
}
