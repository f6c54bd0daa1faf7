package integration

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// tapPersistent: a user without any privilege takes over what root made for him.
func tapPersistent(t *testing.T) {
	link := &netlink.Tuntap{LinkAttrs: netlink.NewLinkAttrs(), Mode: netlink.TUNTAP_MODE_TAP, Flags: unix.IFF_NO_PI | unix.IFF_MULTI_QUEUE | unix.IFF_VNET_HDR, Owner: 65534, Group: 65534}
	link.Name = "mine0"
	if err := netlink.LinkAdd(link); err != nil {
		t.Skipf("making an interface for uid %s: %v", nobody, err)
	}
	for _, f := range link.Fds {
		f.Close()
	}
	defer func() { _ = netlink.LinkDel(link) }()
	as := asNobody()
	if out, err := exec.Command(as[0], append(as[1:], "true")...).CombinedOutput(); err != nil {
		t.Skipf("no other user: %v: %s", err, out)
	}
	run := folder(t)
	as = append(as, "env", "-i", "PATH="+os.Getenv("PATH"), "XDG_RUNTIME_DIR="+run)
	address(t, "mine0", "10.4.0.1/24")
	up := startUp(t, as, "eth0=sim:e1000e", "--tap", "eth0=mine0")
	l, err := netlink.LinkByName("mine0")
	if err != nil || !strings.HasPrefix(l.Attrs().HardwareAddr.String(), "52:54:00:12:34:") {
		t.Errorf("the interface is %+v, %v, want the device's address", l, err)
	}
	out, err := exec.Command(as[0], append(as[1:], ring3, "ls")...).CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("mine0")) {
		t.Errorf("ring3 ls: %v: %s, want mine0 in it", err, out)
	}
	up.stop(t)
	if _, err := netlink.LinkByName("mine0"); err != nil {
		t.Errorf("the interface afterwards: %v, want that it stays", err)
	}
	out, err = exec.Command(as[0], append(as[1:], ring3, "up", "--no-mount", "eth0=sim:e1000e", "--tap", "eth0=other0")...).CombinedOutput()
	if err == nil || !bytes.Contains(out, []byte("ring3: eth0: tap other0: creating the interface needs CAP_NET_ADMIN; have it made: sudo ip tuntap add dev other0 mode tap user $USER multi_queue vnet_hdr: operation not permitted\n")) {
		t.Errorf("creating an interface without privileges: %v: %s", err, out)
	}
}

// tapRefused: one line each, and the exit status says whose mistake it is.
func tapRefused(t *testing.T) {
	sim := []string{"eth0=sim:e1000e", "eth1=sim:e1000e"}
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--tap", "eth0="}, 2, `--tap "eth0=": want NAME=IFNAME`},
		{[]string{"--tap", "eth0=a23456789012345678"}, 2, "1 to 15"},
		{[]string{"--tap", "eth2=x0"}, 2, "no device is named eth2"},
		{[]string{"--tap", "eth0=x0", "--tap", "eth1=x0"}, 2, "eth0 is x0 already"},
		{[]string{"--tap", "eth0=x0", "--tap", "eth0=x1"}, 2, "eth0 is x0 already"},
		{[]string{"--tap", "eth0=x0,offload=maybe"}, 2, `option "offload=maybe"`},
		{[]string{"--tap", "eth0=x0,speed=on"}, 2, `unknown option "speed"`},
		{[]string{"--tap", "eth0=lo"}, 1, "eth0: tap lo: the name is taken by an interface of type "},
		{[]string{"e=sim:edu", "--tap", "e=x0"}, 2, "e is no network device"},
	} {
		out, err := exec.Command(ring3, append(append([]string{"up", "--no-mount"}, sim...), c.args...)...).CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != c.code || !bytes.Contains(out, []byte(c.want)) || bytes.Count(out, []byte("\n")) != 1 {
			t.Errorf("ring3 up %s: %v\n%swant %d, one line with %q", strings.Join(c.args, " "), err, out, c.code, c.want)
		}
	}
	up := startUp(t, nil, append(sim, "--tap", "eth0=x0")...)
	out, err := exec.Command(ring3, "set", "/proc/net/pktgen/kpktgend_0", "add_device eth0").CombinedOutput()
	if err != nil { // it shares the device's queues
		t.Errorf("pktgen on a tapped device: %v: %s, want success", err, out)
	}
	up.stop(t)
}
