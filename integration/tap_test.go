package integration

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/internal/netspace"
)

// insideTap is set, to the binary under test, in the process that has namespaces of its own.
const insideTap = "RING3_TAP_INSIDE"

// asUser is set there where root runs the tests, too, and this process is a user's.
const asUser = "RING3_TAP_USER"

// TestTAP runs TestTAPInside in a network namespace of its own, as root and as an ordinary
// user in a user namespace of his.
func TestTAP(t *testing.T) {
	if os.Getenv(insideTap) != "" {
		t.Skip("inside")
	}
	// A user cannot reach the folder that go test runs it from.
	self := filepath.Join(filepath.Dir(ring3), "integration.test")
	copyFile(t, "/proc/self/exe", self)
	root := os.Geteuid() == 0
	for _, c := range []struct {
		name string
		argv []string
		env  string
		skip string
	}{
		{"root", []string{"unshare", "-n"}, "", reason(!root, "not root")},
		{"user", append(asNobody(), "unshare", "-Urn"), reason(root, "1"), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.skip != "" {
				t.Skip(c.skip)
			}
			if out, err := exec.Command(c.argv[0], append(c.argv[1:], "true")...).CombinedOutput(); err != nil {
				t.Skipf("%s: %v: %s", strings.Join(c.argv, " "), err, out)
			}
			dir := folder(t)
			argv := append(slices.Clone(c.argv), "env", "-i", "PATH="+os.Getenv("PATH"), "TMPDIR="+dir, "XDG_RUNTIME_DIR="+dir,
				insideTap+"="+ring3, asUser+"="+c.env, "RING3_LONG="+os.Getenv("RING3_LONG"), self, "-test.run=^TestTAPInside$", "-test.v", "-test.timeout=9m")
			cmd := exec.Command(argv[0], argv[1:]...)
			cmd.Dir = dir
			out, err := cmd.CombinedOutput()
			switch {
			case err != nil:
				t.Errorf("%s: %v\n%s", c.name, err, out)
			case bytes.Contains(out, []byte("--- SKIP: TestTAPInside (")):
				t.Skipf("%s", out)
			case testing.Verbose():
				t.Logf("%s", out)
			}
		})
	}
}

func reason(is bool, why string) string {
	if is {
		return why
	}
	return ""
}

// asNobody is what runs a command as an ordinary user.
func asNobody() []string {
	if os.Geteuid() == 0 {
		return []string{"setpriv", "--reuid=" + nobody, "--regid=" + nobody, "--clear-groups"}
	}
	return nil
}

// folder is one that nobody may use, too.
func folder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ring3-tap-")
	if err == nil && os.Geteuid() == 0 {
		err = os.Chown(dir, 65534, 65534)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(to) })
}

// TestTAPInside is TestTAP's, in a network namespace that is its own.
func TestTAPInside(t *testing.T) {
	if os.Getenv(insideTap) == "" {
		t.Skip("part of TestTAP")
	}
	if f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0); err != nil {
		t.Skip(err)
	} else {
		f.Close()
	}
	long := os.Getenv("RING3_LONG") != ""
	for _, c := range []tapCase{
		{device: "sim:e1000e", bytes: 64 << 20, perf: true, user: true},
		{device: "sim:e1000e", tap: ",offload=off", bytes: 64 << 20},
		{device: "sim:e1000e,queues=2", bytes: 16 << 20},
		{device: "sim:e1000", tap: ",gro=off", bytes: 16 << 20},
		{device: "sim:e1000e", bytes: 4 << 20, pcap: true},
		{device: "qemu:e1000e", bytes: 64 << 20, perf: true},
		{device: "qemu:e1000e", tap: ",offload=off", bytes: 16 << 20, user: true},
		{device: "qemu:e1000e", bytes: 4 << 20, pcap: true},
		{device: "qemu:e1000e", tap: ",offload=off", bytes: 4 << 20, pcap: true},
		{device: "qemu:e1000", bytes: 4 << 20, pcap: true},
		{device: "sim:e1000e", bytes: 4 << 20, vlan: true, pcap: true},
		{device: "sim:e1000e", bytes: 16 << 20, mtu: 9000},
		{device: "qemu:e1000e", bytes: 16 << 20, mtu: 9000, pcap: true},
		{device: "qemu:e1000", bytes: 4 << 20, vlan: true, mtu: 2000, pcap: true},
		{device: "qemu:e1000e,queues=2", bytes: 16 << 20, long: true},
		{device: "sim:e1000e", bytes: 1 << 30, long: true},
		{device: "sim:e1000e", tap: ",offload=off", bytes: 1 << 30, long: true},
		{device: "qemu:e1000e", bytes: 1 << 30, long: true},
		{device: "qemu:e1000e", tap: ",offload=off", bytes: 1 << 30, long: true},
	} {
		name := fmt.Sprintf("%s%s %d MiB", c.device, c.tap, c.bytes>>20)
		if c.vlan {
			name += " vlan"
		}
		if c.mtu != 0 {
			name += fmt.Sprintf(" mtu %d", c.mtu)
		}
		if c.pcap {
			name += " captured"
		}
		t.Run(name, func(t *testing.T) {
			switch _, err := exec.LookPath("qemu-system-x86_64"); {
			case c.long && !long:
				t.Skip("RING3_LONG is not set")
			case !c.user && os.Getenv(asUser) != "" && !long:
				t.Skip("runs as root; as a user with RING3_LONG only")
			case err != nil && strings.HasPrefix(c.device, "qemu"):
				t.Skip(err)
			}
			c.run(t)
		})
	}
	t.Run("persistent", tapPersistent)
	t.Run("refused", tapRefused)
}

// tapCase is two wired devices, each a kernel interface, with a network namespace between
// them.
type tapCase struct {
	device string
	tap    string // options of --tap
	bytes  int64  // to send over TCP each way
	perf   bool   // iperf3 as well
	pcap   bool   // look at the frames on the wire
	vlan   bool   // through an interface on top that tags
	mtu    int    // set at the interfaces; 0: the devices' own
	long   bool   // with RING3_LONG only
	user   bool   // as an ordinary user, too
}

func (c tapCase) run(t *testing.T) {
	there, err := netspace.New()
	if err != nil {
		t.Skip(err)
	}
	defer there.Close()
	pcap := filepath.Join(t.TempDir(), "wire.pcap")
	args := []string{"eth0=" + c.device, "eth1=" + c.device, "--wire", "eth0-eth1", "--tap", "eth0=rt0" + c.tap, "--tap", "eth1=rt1" + c.tap}
	if c.pcap {
		args = append(args, "--pcap", "eth0="+pcap)
	}
	up := startUp(t, nil, args...)
	rt1, err := netlink.LinkByName("rt1")
	if err == nil {
		err = netlink.LinkSetNsFd(rt1, there.FD())
	}
	if err != nil {
		t.Fatal(err)
	}
	c.setUp(t, "rt0", "1")
	there.Do(func() { c.setUp(t, "rt1", "2") })
	if c.mtu != 0 {
		waitMTU(t, c.mtu)
	}
	pings, sends := []string{"10.3.0.2", "fd03::2"}, []string{"10.3.0.2:0", "[fd03::2]:0"}
	if !haveIPv6() {
		t.Log("this kernel has no IPv6")
		pings, sends = pings[:1], sends[:1]
	}
	for _, to := range pings {
		ping(t, to)
	}
	for _, to := range sends {
		took, err := netspace.Send(nil, there, to, c.bytes)
		if err != nil {
			t.Error(err)
		}
		t.Logf("TCP to %s: %d MiB/s", to, int64(float64(c.bytes>>20)/took.Seconds()))
		if c.bytes > 100<<20 {
			break
		}
	}
	if _, err := netspace.Send(there, nil, "10.3.0.1:0", c.bytes); err != nil {
		t.Error(err)
	}
	if c.perf {
		iperf(t, there, "10.3.0.2")
	}
	up.stop(t)
	if c.pcap {
		longest := 1514
		if c.mtu != 0 {
			longest = c.mtu + 14
		}
		if c.vlan {
			longest += 4
		}
		onWire(t, pcap, longest)
	}
	if _, err := netlink.LinkByName("rt0"); err == nil {
		t.Error("rt0 is still there after ring3 has ended")
	}
}

// setUp gives an interface of the thread's namespace its address and what else the case wants.
func (c tapCase) setUp(t *testing.T, name, host string) {
	l, err := netlink.LinkByName(name)
	if err == nil && c.mtu != 0 {
		err = netlink.LinkSetMTU(l, c.mtu)
	}
	if err == nil && c.vlan {
		err = netlink.LinkSetUp(l)
		a := netlink.NewLinkAttrs()
		a.Name, a.ParentIndex = "v"+name, l.Attrs().Index
		if err == nil {
			err = netlink.LinkAdd(&netlink.Vlan{LinkAttrs: a, VlanId: 77})
		}
		if errors.Is(err, unix.EOPNOTSUPP) {
			t.Skipf("this kernel has no VLANs: %v", err)
		}
		name = a.Name
	}
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	address(t, name, "10.3.0."+host+"/24", "fd03::"+host+"/64")
}

// waitMTU waits until both devices have the MTU of their interfaces.
func waitMTU(t *testing.T, mtu int) {
	t.Helper()
	want := fmt.Sprint(mtu)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		a, _ := exec.Command(ring3, "get", "/sys/class/net/eth0/mtu").Output()
		b, _ := exec.Command(ring3, "get", "/sys/class/net/eth1/mtu").Output()
		if strings.TrimSpace(string(a)) == want && strings.TrimSpace(string(b)) == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the devices' MTUs are %s and %s, want %d", a, b, mtu)
		}
	}
}

// ping wants three answers to echo requests of each size. The first may wait: for the address to be
// resolved, and for QEMU's 82540EM, which is deaf for a second after its filters were set. With a
// deadline, ping sends until it has three answers; without, it takes for lost what comes
// later than two round trips after its last request.
func ping(t *testing.T, to string) {
	t.Helper()
	if !havePing() {
		t.Log("there is no ping here")
		return
	}
	for _, size := range []string{"56", "1400", "6000"} {
		out, err := exec.Command("ping", "-n", "-c", "3", "-i", "0.02", "-w", "20", "-s", size, to).CombinedOutput()
		if err != nil && bytes.Contains(out, []byte("ermitted")) {
			t.Logf("ping may not: %s", out)
			return
		}
		if err != nil {
			t.Errorf("ping -s %s %s: %v\n%s", size, to, err, out)
		}
	}
}

func havePing() bool { _, err := exec.LookPath("ping"); return err == nil }

func haveIPv6() bool { _, err := os.Stat("/proc/net/if_inet6"); return err == nil }

// iperf runs iperf3 both ways.
func iperf(t *testing.T, there *netspace.Space, to string) {
	t.Helper()
	if _, err := exec.LookPath("iperf3"); err != nil {
		t.Logf("no iperf3: %v", err)
		return
	}
	for _, extra := range [][]string{nil, {"-R"}} {
		server := exec.Command("iperf3", "-s", "-1", "--forceflush")
		out, err := server.StdoutPipe()
		if err == nil {
			there.Do(func() { err = server.Start() })
		}
		if err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for lines.Scan() && !strings.Contains(lines.Text(), "listening") {
		}
		go func() { _, _ = io.Copy(io.Discard, out) }()
		got, err := exec.Command("iperf3", append([]string{"-c", to, "-t", "1", "-f", "m"}, extra...)...).CombinedOutput()
		if err != nil || !bytes.Contains(got, []byte("receiver")) {
			t.Errorf("iperf3 %v: %v\n%s", extra, err, got)
		}
		for line := range strings.Lines(string(got)) {
			if strings.Contains(line, "receiver") {
				t.Logf("iperf3 %v: %s", extra, strings.TrimSpace(line))
			}
		}
		_ = server.Process.Kill()
		_ = server.Wait()
	}
}

// onWire looks at every frame of a capture: lengths and checksums are right, whoever put them
// in, and no frame is longer than the MTU allows.
func onWire(t *testing.T, file string, longest int) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := pcapgo.NewReader(bufio.NewReaderSize(f, 1<<20))
	if err != nil {
		t.Fatal(err)
	}
	n := map[string]int{}
	most := 0
	for i := 1; ; i++ {
		b, _, err := r.ReadPacketData()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("frame %d: %v", i, err)
		}
		kind, err := frameOK(b, longest)
		if err != nil {
			t.Fatalf("frame %d of %d bytes, %s: %v\n%x", i, len(b), kind, err, b[:min(len(b), 100)])
		}
		n[kind]++
		most = max(most, len(b))
	}
	t.Logf("on the wire: %v, the longest has %d bytes", n, most)
	if most != longest {
		t.Errorf("the longest frame has %d bytes, want %d", most, longest)
	}
	for _, want := range []string{"ARP", "ICMPv4", "ICMPv6", "TCP/IPv4", "TCP/IPv6"} {
		if n[want] == 0 && (haveIPv6() || !strings.HasSuffix(want, "v6")) && (want[:2] != "IC" || havePing()) {
			t.Errorf("no frame of %s on the wire: %v", want, n)
		}
	}
}

// frameOK checks one frame.
func frameOK(b []byte, longest int) (kind string, err error) {
	if len(b) > longest {
		return "any", fmt.Errorf("longer than %d bytes", longest)
	}
	g := gopacket.NewPacket(b, layers.LayerTypeEthernet, gopacket.DecodeOptions{NoCopy: true})
	if e := g.ErrorLayer(); e != nil {
		return "any", e.Error()
	}
	var src, dst []byte
	ip, l3 := "", 14
	var upper gopacket.Layer
	var body []byte
	for _, l := range g.Layers() {
		switch l := l.(type) {
		case *layers.ARP:
			return "ARP", nil
		case *layers.Dot1Q:
			l3 += 4
			if l.VLANIdentifier != 77 {
				return "VLAN", fmt.Errorf("tag %d", l.VLANIdentifier)
			}
		case *layers.IPv4:
			if internetSum(l.Contents) != 0xffff {
				return "IPv4", errors.New("wrong header checksum")
			}
			if l.Flags&layers.IPv4MoreFragments != 0 || l.FragOffset != 0 {
				return "fragment", nil
			}
			if want := l3 + int(l.Length); len(b) < want || len(b) > max(want, 60) {
				return "IPv4", fmt.Errorf("a frame of %d bytes for an IP length of %d", len(b), l.Length)
			}
			ip, src, dst, body = "IPv4", l.SrcIP.To4(), l.DstIP.To4(), l.Payload
		case *layers.IPv6:
			if want := l3 + 40 + int(l.Length); len(b) < want || len(b) > max(want, 60) {
				return "IPv6", fmt.Errorf("a frame of %d bytes for a payload length of %d", len(b), l.Length)
			}
			ip, src, dst, body = "IPv6", l.SrcIP.To16(), l.DstIP.To16(), l.Payload
		case *layers.TCP, *layers.UDP, *layers.ICMPv6:
			upper = l
		case *layers.ICMPv4:
			if internetSum(body) != 0xffff {
				return "ICMPv4", errors.New("wrong checksum")
			}
			return "ICMPv4", nil
		}
	}
	proto := byte(0)
	switch upper.(type) {
	case *layers.TCP:
		kind, proto = "TCP/"+ip, 6
	case *layers.UDP:
		kind, proto = "UDP/"+ip, 17
	case *layers.ICMPv6:
		kind, proto, body = "ICMPv6", 58, append(bytes.Clone(upper.LayerContents()), upper.LayerPayload()...)
	default:
		return "other", nil
	}
	pseudo := append(append(bytes.Clone(src), dst...), byte(len(body)>>24), byte(len(body)>>16), byte(len(body)>>8), byte(len(body)), 0, 0, 0, proto)
	if internetSum(append(pseudo, body...)) != 0xffff {
		return kind, errors.New("wrong checksum")
	}
	return kind, nil
}

// internetSum is RFC 1071's, 0xffff where b contains its own, right, checksum.
func internetSum(b []byte) uint16 {
	var s uint32
	for i := 0; i < len(b); i += 2 {
		w := uint32(b[i]) << 8
		if i+1 < len(b) {
			w |= uint32(b[i+1])
		}
		s += w
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

// address brings an interface of the thread's namespace up with addresses.
func address(t *testing.T, name string, addrs ...string) {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatalf("interface %s: %v", name, err)
	}
	for _, s := range addrs {
		a, err := netlink.ParseAddr(s)
		if err != nil {
			t.Fatal(err)
		}
		if a.IP.To4() == nil {
			if !haveIPv6() {
				continue
			}
			a.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(l, a); err != nil {
			t.Fatalf("%s: adding %s: %v", name, s, err)
		}
	}
	if err := netlink.LinkSetUp(l); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// running is a `ring3 up` that is ready.
type running struct {
	cmd    *exec.Cmd
	stderr *bytes.Buffer
	ended  bool
}

// startUp starts `ring3 up --no-mount` and waits until it is ready.
func startUp(t *testing.T, as []string, args ...string) *running {
	t.Helper()
	argv := append(slices.Clone(as), append([]string{ring3, "up", "--no-mount"}, args...)...)
	r := &running{cmd: exec.Command(argv[0], argv[1:]...), stderr: &bytes.Buffer{}}
	r.cmd.Stderr = r.stderr
	out, err := r.cmd.StdoutPipe()
	if err == nil {
		err = r.cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.stop(t) })
	stuck := time.AfterFunc(30*time.Second, func() { _ = r.cmd.Process.Kill() })
	defer stuck.Stop()
	lines := bufio.NewScanner(out)
	var said []string
	for lines.Scan() {
		said = append(said, lines.Text())
		if strings.Contains(lines.Text(), "is ready") {
			return r
		}
	}
	t.Fatalf("ring3 up %s is not ready: %q, %s", strings.Join(args, " "), said, r.stderr)
	return nil
}

// stop ends it, and wants a clean end.
func (r *running) stop(t *testing.T) {
	t.Helper()
	if r.ended {
		return
	}
	r.ended = true
	_ = r.cmd.Process.Signal(unix.SIGTERM)
	stuck := time.AfterFunc(20*time.Second, func() { _ = r.cmd.Process.Kill() })
	defer stuck.Stop()
	if err := r.cmd.Wait(); err != nil || r.stderr.Len() > 0 {
		t.Errorf("ring3 up ended with %v and said %q, want nothing", err, r.stderr)
	}
}

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
		{[]string{"--tap", "eth0"}, 2, `--tap "eth0": want NAME=IFNAME`},
		{[]string{"--tap", "eth0=a23456789012345678"}, 2, "1 to 15"},
		{[]string{"--tap", "eth2=x0"}, 2, "no device is named eth2"},
		{[]string{"--tap", "eth0=x0", "--tap", "eth1=x0"}, 2, "eth0 is x0 already"},
		{[]string{"--tap", "eth0=x0", "--tap", "eth0=x1"}, 2, "eth0 is x0 already"},
		{[]string{"--tap", "eth0=x0,offload=maybe"}, 2, `option "offload=maybe"`},
		{[]string{"--tap", "eth0=x0,speed=on"}, 2, `unknown option "speed"`},
		{[]string{"--tap", "eth0=lo"}, 1, "eth0: tap lo: the name is taken by an interface of type "},
		{[]string{"e=sim:edu", "--tap", "e=x0"}, 1, "e is no network device"},
	} {
		out, err := exec.Command(ring3, append(append([]string{"up", "--no-mount"}, sim...), c.args...)...).CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != c.code || !bytes.Contains(out, []byte(c.want)) || bytes.Count(out, []byte("\n")) != 1 {
			t.Errorf("ring3 up %s: %v\n%swant %d, one line with %q", strings.Join(c.args, " "), err, out, c.code, c.want)
		}
	}
	up := startUp(t, nil, append(sim, "--tap", "eth0=x0")...)
	out, err := exec.Command(ring3, "set", "/proc/net/pktgen/kpktgend_0", "add_device eth0").CombinedOutput()
	if err == nil || bytes.Count(out, []byte("\n")) != 1 {
		t.Errorf("pktgen on a tapped device: %v: %s, want one line", err, out)
	}
	t.Logf("pktgen on a tapped device: %s", out)
	up.stop(t)
}
