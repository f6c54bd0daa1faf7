//go:build vm

package guest

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/internal/netspace"
)

// These run in a VM whose devices are ring3's models, which a process of the host's serves
// (integration/vfiouser_vm_test.go). The kernel's drivers are the judges.

// userNIC gives a NIC to the kernel's e1000e, and returns the interface's name.
func userNIC(t *testing.T, id string) string {
	t.Helper()
	addr := Address(t, id)
	Bind(t, addr, "e1000e")
	return iface(t, addr)
}

// statistic is what the kernel's driver counted.
func statistic(t *testing.T, name, what string) int64 {
	t.Helper()
	b, err := os.ReadFile("/sys/class/net/" + name + "/statistics/" + what)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// The kernel's driver passes traffic over our model: TCP both ways, with its checksums and segmentation,
// in interrupts of the kernel's choice.
func TestRootVFIOUserTraffic(t *testing.T) {
	a, b := userNIC(t, "nic0"), userNIC(t, "nic1")
	t.Logf("the kernel's interfaces are %s and %s", a, b)
	far, err := netspace.New()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	// The far end is in a namespace of its own: else the kernel takes the short way.
	link, err := netlink.LinkByName(b)
	if err == nil {
		err = netlink.LinkSetNsFd(link, far.FD())
	}
	if err != nil {
		t.Fatal(err)
	}
	up := func(name, addr string) {
		t.Helper()
		l, err := netlink.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		ip, err := netlink.ParseAddr(addr)
		if err == nil {
			err = errors.Join(netlink.AddrAdd(l, ip), netlink.LinkSetUp(l))
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s is up as %s", name, addr)
	}
	up(a, "10.9.0.1/24")
	far.Do(func() { up(b, "10.9.0.2/24") })
	for until := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		if c, err := os.ReadFile("/sys/class/net/" + a + "/carrier"); err == nil && strings.TrimSpace(string(c)) == "1" {
			break
		}
		if time.Now().After(until) {
			t.Fatalf("no link after 30 s; the kernel says:\n%s", KernelLog(t))
		}
	}
	const size = 4 << 20
	for i, dir := range []struct {
		from, to *netspace.Space
		addr     string
	}{{nil, far, "10.9.0.2:0"}, {far, nil, "10.9.0.1:0"}} {
		took, err := netspace.Send(dir.from, dir.to, dir.addr, size)
		if err != nil {
			t.Fatalf("transfer %d: %v; the kernel says:\n%s", i, err, KernelLog(t))
		}
		t.Logf("transfer %d: %d bytes in %v", i, size, took)
	}
	for _, what := range []string{"tx_errors", "rx_errors", "rx_crc_errors", "tx_dropped"} {
		if n := statistic(t, a, what); n != 0 {
			t.Errorf("%s of %s = %d, want 0", what, a, n)
		}
	}
	if tx, rx := statistic(t, a, "tx_bytes"), statistic(t, a, "rx_bytes"); tx < size || rx < size {
		t.Errorf("%s sent %d bytes and received %d, want at least %d each", a, tx, rx, size)
	}
	if log := KernelLog(t); strings.Contains(log, "Hardware Error") || strings.Contains(log, "Detected Hardware Unit Hang") || strings.Contains(log, "NETDEV WATCHDOG") {
		t.Errorf("the kernel complains of its NIC:\n%s", log)
	}
}

// edu, by the kernel's generic driver: the conformance suite on our model from within a VM.
func TestRootVFIOUserEdu(t *testing.T) {
	hugePages(t, 32)
	addr := Address(t, "edu0")
	Bind(t, addr, "uio_pci_generic")
	bustest.All(t, func(t *testing.T) bustest.Subject {
		s := bustest.Edu(t, openUnsafe(t, addr))
		s.MoveMask = 0
		return s
	})
}
