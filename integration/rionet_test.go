package integration

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/ring3dev/ring3/internal/netspace"
)

// TestRionet runs TestRionetInside in a network namespace of its own, as root and as an ordinary user in a user namespace of his.
func TestRionet(t *testing.T) { runInside(t, "TestRionetInside") }

// TestRionetInside runs fabrics whose nodes are processes, each in a network namespace of its own with its rionet as a kernel interface.
func TestRionetInside(t *testing.T) {
	if os.Getenv(insideTap) == "" {
		t.Skip("part of TestRionet")
	}
	if f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0); err != nil {
		t.Skip(err)
	} else {
		f.Close()
	}
	long := os.Getenv("RING3_LONG") != ""
	for _, c := range []struct {
		name string
		run  func(t *testing.T)
		user bool // as an ordinary user, too
	}{
		{"pair", rionetPair, true},
		{"comings and goings", rionetChurn, true},
		{"stalled", rionetStalled, false},
		{"kills", rionetKills, false},
		{"routing", rionetRouting, false},
		{"trust", rionetTrust, false},
		{"classic", rionetClassic, false},
		{"slow and lossy", rionetLossy, false},
		{"scribbler", rionetScribbler, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if !c.user && os.Getenv(asUser) != "" && !long {
				t.Skip("runs as root; as a user with RING3_LONG only")
			}
			c.run(t)
		})
	}
}

// oneSwitch is four endpoints at a switch.
const oneSwitch = `
switches: [{name: sw0, ports: 4, kind: standard}]
endpoints: [{name: pe0}, {name: pe1}, {name: pe2}, {name: pe3}]
links: [[pe0, "sw0:0"], [pe1, "sw0:1"], [pe2, "sw0:2"], [pe3, "sw0:3"]]
`

// fabricUp is a `ring3 fabric up`, and a run folder for its nodes.
type fabricUp struct {
	dir, file, socket string
	env               []string
	up                *running
	ups               []*running // all that there were
	nodes             []*node
}

// startFabric starts one. What stands in the test's folder when it ends is an error.
func startFabric(t *testing.T, topology string) *fabricUp {
	t.Helper()
	dir, err := os.MkdirTemp("", "fabric-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	f := &fabricUp{dir: dir, file: filepath.Join(dir, "fabric.yaml"), socket: filepath.Join(dir, "f.sock"), env: append(os.Environ(), "XDG_RUNTIME_DIR="+dir, "TMPDIR="+dir)}
	if err := os.WriteFile(f.file, []byte(topology), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.leavesNothing(t) })
	f.start(t)
	return f
}

// start starts the fabric's process, for the first time or again.
func (f *fabricUp) start(t *testing.T) {
	t.Helper()
	f.up = startRing3(t, nil, f.env, "fabric", "up", f.file, "--socket", f.socket)
	f.ups = append(f.ups, f.up)
}

// leavesNothing looks at what is there after all have ended, and at what they said.
func (f *fabricUp) leavesNothing(t *testing.T) {
	t.Helper()
	for _, name := range []string{f.socket, f.socket + ".d"} {
		if _, err := os.Lstat(name); !os.IsNotExist(err) {
			t.Errorf("%s is left over (%v)", filepath.Base(name), err)
		}
	}
	left, _ := filepath.Glob(filepath.Join(f.dir, "ring3", "[^.]*"))
	if len(left) > 0 {
		t.Errorf("the run folder holds %q, want nothing", left)
	}
	for _, r := range f.ups {
		noCrash(t, "ring3 fabric up", r)
	}
	for _, n := range f.nodes {
		for _, r := range n.ups {
			noCrash(t, n.name, r)
		}
	}
}

// noCrash looks at what a process said that has ended.
func noCrash(t *testing.T, name string, r *running) {
	t.Helper()
	for _, bad := range []string{"panic", "goroutine ", "fatal error", "SIGSEGV", "SIGBUS"} {
		if bytes.Contains(r.stderr.Bytes(), []byte(bad)) {
			t.Errorf("%s crashed: %s", name, r.stderr)
			return
		}
	}
	if testing.Verbose() && r.stderr.Len() > 0 {
		t.Logf("%s said: %.4000s", name, r.stderr)
	}
}

// node is a `ring3 up` with one node of a fabric, in a network namespace of its own, in which its rionet is rio0.
type node struct {
	f       *fabricUp
	name    string // of the instance
	args    []string
	space   *netspace.Space
	up      *running
	ups     []*running // all that there were
	ip, ip6 string
}

// node starts the node of endpoint pe<i>, with the address 10.9.0.<i+1>. The options of its device begin with a comma.
func (f *fabricUp) node(t *testing.T, i int, options string, args ...string) *node {
	t.Helper()
	n := f.newNode(t, i, options, args...)
	n.start(t)
	return n
}

// newNode is a node that is not started yet.
func (f *fabricUp) newNode(t *testing.T, i int, options string, args ...string) *node {
	t.Helper()
	space, err := netspace.New()
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(space.Close) // after ring3 has ended
	n := &node{f: f, name: fmt.Sprintf("n%d", i), space: space, ip: fmt.Sprintf("10.9.0.%d", i+1), ip6: fmt.Sprintf("fd09::%d", i+1)}
	n.args = append([]string{"up", "--no-mount", "-i", n.name, fmt.Sprintf("rio0=fabric:%s,node=pe%d%s", f.socket, i, options), "--tap", "rio0"}, args...)
	f.nodes = append(f.nodes, n)
	return n
}

// start starts its process, for the first time or again, and gives its interface its addresses.
func (n *node) start(t *testing.T) {
	t.Helper()
	n.space.Do(func() { n.up = startRing3(t, nil, n.f.env, n.args...) })
	if t.Failed() {
		t.FailNow()
	}
	n.ups = append(n.ups, n.up)
	eventually(t, n.name+" has an interface", func() bool { return n.link() != nil })
	n.space.Do(func() { address(t, "rio0", n.ip+"/24", n.ip6+"/64") })
}

// link is its interface; nil if there is none.
func (n *node) link() (l netlink.Link) {
	n.space.Do(func() { l, _ = netlink.LinkByName("rio0") })
	return l
}

// mac is the address of its interface, as the kernel has it.
func (n *node) mac() string {
	if l := n.link(); l != nil {
		return l.Attrs().HardwareAddr.String()
	}
	return ""
}

// stop ends its process in order; what it says before that may be anything.
func (n *node) stop(t *testing.T) {
	t.Helper()
	n.up.loud = true
	n.up.stop(t)
}

// kill ends a process at once.
func kill(t *testing.T, r *running) {
	t.Helper()
	r.ended = true
	r.cmd.WaitDelay = 20 * time.Second
	_ = r.cmd.Process.Kill()
	var exit *exec.ExitError
	if err := r.cmd.Wait(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("%q, killed, ended with %v: %s", r.cmd.Args, err, r.stderr)
	}
}

// mayComplain allows all that run to say something: their fabric goes, or a peer.
func (f *fabricUp) mayComplain() {
	f.up.loud = true
	for _, n := range f.nodes {
		if n.up != nil {
			n.up.loud = true
		}
	}
}

// command runs a ring3 beside the nodes.
func (f *fabricUp) command(t *testing.T, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command(ring3, args...)
	cmd.Env = f.env
	stuck := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() })
	defer stuck.Stop()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("ring3 %s: %w: %s", strings.Join(args, " "), err, &stderr)
	}
	return string(out), err
}

// get is what a file or folder of its tree holds; nothing if it is not there.
func (n *node) get(t *testing.T, path string) string {
	t.Helper()
	out, _ := n.f.command(t, "get", "-i", n.name, path)
	return strings.TrimSpace(out)
}

// others are the endpoints that it has in /sys.
func (n *node) others(t *testing.T) (names []string) {
	t.Helper()
	for line := range strings.Lines(n.get(t, "/sys/bus/rapidio/devices")) {
		if name, _, ok := strings.Cut(line, " "); ok && strings.Contains(name, ":e:") {
			names = append(names, name)
		}
	}
	return names
}

// counter is one of its rionet's own.
func (n *node) counter(t *testing.T, name string) int {
	t.Helper()
	out, err := n.f.command(t, "ethtool", "-S", "--instance", n.name, "rio0")
	if err != nil {
		return -1
	}
	for line := range strings.Lines(out) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), name+": "); ok {
			i, err := strconv.Atoi(v)
			if err != nil {
				t.Errorf("counter %s of %s: %v", name, n.name, err)
			}
			return i
		}
	}
	t.Errorf("ring3 ethtool -S has no counter %s: %s", name, out)
	return -1
}

// peers waits until a node has so many others in /sys, and as many active peers.
func (n *node) peers(t *testing.T, want int) {
	t.Helper()
	var others []string
	active := -1
	start := time.Now()
	var listed, lively time.Duration // when either was last not so
	is := func() bool {
		if others = n.others(t); len(others) != want {
			listed = time.Since(start)
		}
		if active = n.counter(t, "peers_active"); active != want {
			lively = time.Since(start)
		}
		return len(others) == want && active == want
	}
	defer func() {
		if took := max(listed, lively); took > 2*time.Second {
			t.Logf("%s has %q in /sys after %v and %d active peers after %v", n.name, others, listed.Round(time.Millisecond), active, lively.Round(time.Millisecond))
		}
	}()
	// On a busy machine nodes look less often whether others are still there.
	within(t, 3*time.Minute, fmt.Sprintf("%s has %d peers", n.name, want), is)
}

// ping has a node ping others, both ways of IP.
func (n *node) ping(t *testing.T, to ...*node) {
	t.Helper()
	for _, o := range to {
		n.space.Do(func() {
			ping(t, o.ip)
			if haveIPv6() {
				ping(t, o.ip6)
			}
		})
	}
	if t.Failed() {
		t.FailNow()
	}
}

// send sends bytes over TCP, which are compared by their checksum.
func (n *node) send(t *testing.T, to *node, bytes int64) {
	t.Helper()
	took, err := netspace.Send(n.space, to.space, to.ip+":0", bytes)
	if err != nil {
		t.Fatalf("TCP from %s to %s: %v", n.name, to.name, err)
	}
	t.Logf("TCP from %s to %s: %d MiB in %v: %.0f MiB/s", n.name, to.name, bytes>>20, took.Round(time.Millisecond), float64(bytes>>20)/took.Seconds())
}

// stop ends all processes, in the order in which nothing has to be said about it.
func (f *fabricUp) stop(t *testing.T) {
	t.Helper()
	for _, n := range f.nodes {
		n.up.stop(t)
	}
	f.up.stop(t)
}
