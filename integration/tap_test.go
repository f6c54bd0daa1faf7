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
func TestTAP(t *testing.T) { runInside(t, "TestTAPInside") }

// runInside runs a test of this program in a network namespace of its own, as root and as an ordinary user.
func runInside(t *testing.T, test string) {
	if os.Getenv(insideTap) != "" {
		t.Skip("inside")
	}
	t.Parallel()
	// A user cannot reach the folder that go test runs it from.
	self := filepath.Join(filepath.Dir(ring3), test+".test")
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
				insideTap+"="+ring3, asUser+"="+c.env, "RING3_LONG="+os.Getenv("RING3_LONG"), self, "-test.run=^"+test+"$", "-test.v", "-test.timeout=9m")
			cmd := exec.Command(argv[0], argv[1:]...)
			cmd.Dir = dir
			out, err := cmd.CombinedOutput()
			switch {
			case err != nil:
				t.Errorf("%s: %v\n%s", c.name, err, out)
			case bytes.Contains(out, []byte("--- SKIP: "+test+" (")):
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
	t.Run("pktgen_drop", tapPktgenDrop)
	t.Run("worker killed", tapWorkerKilled)
	t.Run("persistent", tapPersistent)
	t.Run("refused", tapRefused)
}

// tapPktgenDrop sends pktgen's frames to a tapped device: they are counted there, and the kernel gets them, or
// with pktgen_drop=on none.
func tapPktgenDrop(t *testing.T) {
	const frames = 1000
	for _, c := range []struct {
		option string
		want   uint64
	}{{"", frames}, {",pktgen_drop=on", 0}} {
		up := startUp(t, nil, "eth0=sim:e1000e", "eth1=sim:e1000e", "--wire", "eth0-eth1", "--tap", "eth1=rt1,up=on"+c.option)
		for _, w := range [][2]string{{"kpktgend_0", "add_device eth0"}, {"eth0", fmt.Sprintf("count %d", frames)}, {"eth0", "burst 8"}, {"eth0", "dst_mac ff:ff:ff:ff:ff:ff"}, {"pgctrl", "start"}} {
			if out, err := exec.Command(ring3, "set", "/proc/net/pktgen/"+w[0], w[1]).CombinedOutput(); err != nil {
				t.Fatalf("%s > %s: %v: %s", w[1], w[0], err, out)
			}
		}
		var rx []byte
		eventually(t, "eth1.rx", func() bool {
			rx, _ = exec.Command(ring3, "get", "/proc/net/pktgen/eth1.rx").Output()
			return bytes.Contains(rx, fmt.Appendf(nil, "received: %d ", frames))
		})
		var got uint64
		eventually(t, "the kernel's frames", func() bool {
			link, err := netlink.LinkByName("rt1")
			if err != nil {
				t.Fatal(err)
			}
			got = link.Attrs().Statistics.RxPackets
			return got >= c.want
		})
		if got != c.want {
			t.Errorf("rt1%s: the kernel got %d frames, want %d", c.option, got, c.want)
		}
		up.stop(t)
	}
}

// eventually waits until something is so.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	within(t, time.Minute, what, is)
}

// within waits until something is so that may take longer.
func within(t *testing.T, most time.Duration, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(most); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waiting for %s: not within %v", what, most)
		}
	}
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
	t.Cleanup(there.Close) // after ring3 has ended, which would miss its interface
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
	pingSizes(t, to, "56", "1400", "6000")
}

func pingSizes(t *testing.T, to string, sizes ...string) {
	t.Helper()
	if !havePing() {
		t.Log("there is no ping here")
		return
	}
	for _, size := range sizes {
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
	said   []string // lines, until it was ready
	stderr *bytes.Buffer
	loud   bool // it may say something before it ends
	ended  bool
}

// startUp starts `ring3 up --no-mount` and waits until it is ready.
func startUp(t *testing.T, as []string, args ...string) *running {
	t.Helper()
	return startRing3(t, as, nil, append([]string{"up", "--no-mount"}, args...)...)
}

// startRing3 starts a ring3 with an environment, or this one's, and waits until it is ready.
func startRing3(t *testing.T, as, env []string, args ...string) *running {
	t.Helper()
	argv := append(slices.Clone(as), append([]string{ring3}, args...)...)
	r := &running{cmd: exec.Command(argv[0], argv[1:]...), stderr: &bytes.Buffer{}}
	r.cmd.Stderr, r.cmd.Env = r.stderr, env
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
	for lines.Scan() {
		r.said = append(r.said, lines.Text())
		if strings.Contains(lines.Text(), "is ready") {
			return r
		}
	}
	t.Fatalf("ring3 %s is not ready: %q, %s", strings.Join(args, " "), r.said, r.stderr)
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
	if err := r.cmd.Wait(); err != nil || r.stderr.Len() > 0 && !r.loud {
		t.Errorf("ring3 up ended with %v and said %q, want nothing", err, r.stderr)
	}
}
