//go:build vm

package guest

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestRootFabricServer and TestRootFabricClient run at the same time, each in a VM of its own (integration/fabric_vm_test.go). The VMs are
// nodes of one fabric on the host, by a device that ring3 drives over VFIO, as nobody; the interface is rionet's. What the two have to say to
// each other goes over it; where they wait for each other, without one having asked the other, the host keeps them together (meet).

// Addresses on the fabric: of the two VMs, and of a process of the host's.
const (
	server4, server6 = "10.9.0.1", "fd09::1"
	client4, client6 = "10.9.0.2", "fd09::2"
	process4         = "10.9.0.3"
)

// rionetMTU is rionet's: a message of 4096 bytes, less the Ethernet header.
const rionetMTU = 4082

// sumPort is where the server's serveSums listens.
const sumPort = "7000"

// meet waits until the other VM's test has come as far, and returns what that says there.
func meet(t *testing.T, point, say string) (said string) {
	t.Helper()
	AskHost(t, "meet", []string{point, say}, &said)
	return said
}

// joinFabric makes this VM a node, with the interface rio0, by a ring3 that nobody runs. Only the binding and the interface are root's.
func joinFabric(t *testing.T, options string, addrs ...string) *instance {
	t.Helper()
	leaveNothing(t)
	a := Address(t, "rio0")
	must(t, "bind", a, "--driver", "vfio-pci", "--owner", "nobody")
	t.Cleanup(func() { must(t, "unbind", a) })
	link := &netlink.Tuntap{LinkAttrs: netlink.NewLinkAttrs(), Mode: netlink.TUNTAP_MODE_TAP, Flags: unix.IFF_NO_PI | unix.IFF_MULTI_QUEUE | unix.IFF_VNET_HDR, Owner: Nobody, Group: Nobody}
	link.Name = "rio0"
	err := netlink.LinkAdd(link)
	for _, f := range link.Fds {
		f.Close()
	}
	for _, s := range addrs {
		var addr *netlink.Addr
		if err == nil {
			addr, err = netlink.ParseAddr(s)
		}
		if err == nil {
			addr.Flags = unix.IFA_F_NODAD
			err = netlink.AddrAdd(link, addr)
		}
	}
	if err == nil {
		err = netlink.LinkSetMTU(link, rionetMTU)
	}
	if err == nil {
		err = netlink.LinkSetUp(link)
	}
	if err != nil {
		t.Fatalf("making the interface: %v", err)
	}
	t.Cleanup(func() { _ = netlink.LinkDel(link) })
	in := up(t, "--no-mount", "rio0=vfio:"+a+options, "--tap", "rio0")
	t.Cleanup(func() {
		if t.Failed() && in.cmd.ProcessState == nil {
			for _, argv := range [][]string{{"ls"}, {"ethtool", "-S", "rio0"}, {"dmesg"}} {
				out, code := command(t, false, argv...)
				t.Logf("ring3 %s: %d\n%s", strings.Join(argv, " "), code, out)
			}
		}
	})
	return in
}

// lookAtFabric checks what the files of the instance say of a node.
func lookAtFabric(t *testing.T, mac string) {
	t.Helper()
	for _, c := range []struct{ path, want string }{
		{"/sys/class/net/rio0/address", `^` + mac + `\n$`},
		{"/sys/class/net/rio0/mtu", `^4082\n$`},
		{"/sys/bus/rapidio/devices", `^00:e:\S+ -> .*\n00:e:\S+ -> .*\n00:s:\S+ -> .*\n$`},
	} {
		var got string
		for deadline := time.Now().Add(fabricWait); ; time.Sleep(100 * time.Millisecond) {
			if got, _ = command(t, false, "get", c.path); regexp.MustCompile(c.want).MatchString(got) {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s is %q, want %s", c.path, got, c.want)
			}
		}
	}
	link, err := netlink.LinkByName("rio0")
	if err != nil || link.Attrs().HardwareAddr.String() != mac || link.Attrs().MTU != rionetMTU {
		t.Errorf("the interface is %+v, %v, want %s, MTU %d", link, err, mac, rionetMTU)
	}
}

// fabricWait is how long anything may take that two VMs, which share a busy machine without KVM, do together.
const fabricWait = 90 * time.Second

// endFabric ends an instance that has nothing to complain of.
func endFabric(t *testing.T, in *instance) {
	t.Helper()
	if code := in.end(syscall.SIGINT); code != 0 {
		t.Errorf("ring3 up ends with %d: %s", code, in.stderr())
	}
	if said := in.stderr(); said != "" {
		t.Logf("ring3 up said: %s", said)
	}
}

// TestRootFabricServer enumerates the fabric, answers the other VM's pings and connections, and serves it its own root file system.
func TestRootFabricServer(t *testing.T) {
	in := joinFabric(t, ",host=0", server4+"/24", server6+"/64")
	sums := listen(t, sumPort)
	go serveSums(sums)
	stop := serveRoot(t)
	meet(t, "serving", "")
	lookAtFabric(t, "00:01:00:01:00:00")
	file := meet(t, "done", "")
	sums.Close()
	stop()
	if file != "" { // else -run left it out, or it failed
		b, err := os.ReadFile(file)
		if err != nil || !bytes.Equal(b, pattern(writtenSize)) {
			t.Errorf("what the other VM wrote into its root: %d bytes, %v, want %d", len(b), err, writtenSize)
		}
	}
	if !t.Failed() {
		endFabric(t, in)
	}
}

// TestRootFabricClient is found by the other VM, pings it and a process of the host's, sends and receives over TCP, and runs a program whose
// root file system is the other VM's.
func TestRootFabricClient(t *testing.T) {
	in := joinFabric(t, "", client4+"/24", client6+"/64")
	meet(t, "serving", "")
	t.Run("ping", func(t *testing.T) {
		fabricPing(t, server4, "56")
		for _, size := range []string{"1400", "4054", "9000"} { // 4054: a message; 9000: three fragments
			fabricPing(t, server4, size)
		}
		fabricPing(t, server6, "56")
		var there bool
		if AskHost(t, "process", nil, &there); there {
			fabricPing(t, process4, "1400")
		} else {
			t.Log("the host has no process with an interface on the fabric")
		}
	})
	t.Run("TCP", func(t *testing.T) {
		before := fabricReceived(t)
		exchange(t, server4, 2<<20)
		exchange(t, server6, 1<<20)
		if n := fabricReceived(t) - before; n < 3<<20 {
			t.Errorf("the interface received %d bytes, want more than 3 MiB", n)
		}
	})
	wrote := ""
	t.Run("root", func(t *testing.T) {
		servedRoot(t)
		wrote = writtenFile
	})
	meet(t, "done", wrote)
	if !t.Failed() {
		endFabric(t, in)
	}
}

// fabricReceived is what the interface has received.
func fabricReceived(t *testing.T) uint64 {
	t.Helper()
	link, err := netlink.LinkByName("rio0")
	if err != nil {
		t.Fatal(err)
	}
	return link.Attrs().Statistics.RxBytes
}

// fabricPing wants three answers to echo requests of one size. The first ones may find that the two are not each other's peers yet.
func fabricPing(t *testing.T, to, size string) {
	t.Helper()
	if _, err := exec.LookPath("ping"); err != nil {
		t.Log(err)
		return
	}
	var out []byte
	var err error
	for deadline := time.Now().Add(fabricWait); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if out, err = exec.Command("ping", "-n", "-c", "3", "-i", "0.2", "-w", "20", "-s", size, to).CombinedOutput(); err == nil {
			break
		}
	}
	if err != nil {
		t.Fatalf("ping -s %s %s: %v\n%s", size, to, err, out)
	}
	if testing.Verbose() {
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		t.Logf("%s bytes: %s", size, lines[len(lines)-1])
	}
}

// pattern is n bytes that are easy to make and to compare.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*i>>3 + i>>11)
	}
	return b
}

func listen(t *testing.T, port string) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", ":"+port)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// serveSums answers each connection, once the other end has sent all, with the SHA-256 of that, and then with the same bytes.
func serveSums(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		_ = c.SetDeadline(time.Now().Add(fabricWait))
		if b, err := io.ReadAll(c); err == nil {
			sum := sha256.Sum256(b)
			_, _ = c.Write(sum[:])
			_, _ = c.Write(b)
		}
		c.Close()
	}
}

// exchange sends n bytes to the server, which sends them back.
func exchange(t *testing.T, to string, n int) {
	t.Helper()
	begin := time.Now()
	c, err := net.DialTimeout("tcp", net.JoinHostPort(to, sumPort), fabricWait)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(begin.Add(fabricWait))
	sent := pattern(n)
	_, err = c.Write(sent)
	err = errors.Join(err, c.(*net.TCPConn).CloseWrite())
	var sum [sha256.Size]byte
	if err == nil {
		_, err = io.ReadFull(c, sum[:])
	}
	if err != nil {
		t.Fatalf("sending %d bytes to %s: %v", n, to, err)
	}
	if sum != sha256.Sum256(sent) {
		t.Errorf("%s received other bytes than the %d sent", to, n)
	}
	back, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(back, sent) {
		t.Errorf("%s sent back %d bytes, %v, want the %d that it got", to, len(back), err, n)
	}
	t.Logf("%d KiB to %s and back in %v", n>>10, to, time.Since(begin).Round(time.Millisecond))
}
