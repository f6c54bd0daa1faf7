package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ring3dev/ring3/integration/vm"
)

// fabricTests is how the names of tests begin, after Root, that run in two VMs at once, which are nodes of a fabric.
const fabricTests = "Fabric"

// vmFabric is a fabric of two VMs and a process.
const vmFabric = `
switches: [{name: sw0, ports: 4, kind: standard}]
endpoints: [{name: vm0}, {name: vm1}, {name: pe2}]
links:
  - [vm0, "sw0:0"]
  - [vm1, "sw0:1"]
  - [pe2, "sw0:2"]
`

// meeting is where the tests in two VMs wait for each other.
type meeting struct {
	over chan struct{} // closed when one of them has ended

	mu     sync.Mutex
	points map[string]*visit // somebody waits there; guarded by mu
}

// visit is the one who came first.
type visit struct {
	said string
	came chan string // gets what the second says
}

// meetTime is how long one may wait for the other, whose VM may boot a minute later.
const meetTime = 3 * time.Minute

// meet is one test coming to a point: it returns what the other says there, when it has come too. args is [point, what this one says].
func (m *meeting) meet(args json.RawMessage) (any, error) {
	var a [2]string
	if err := json.Unmarshal(args, &a); err != nil {
		return nil, err
	}
	point, say := a[0], a[1]
	m.mu.Lock()
	first := m.points[point]
	if first != nil {
		delete(m.points, point)
		m.mu.Unlock()
		first.came <- say
		return first.said, nil
	}
	v := &visit{said: say, came: make(chan string, 1)}
	m.points[point] = v
	m.mu.Unlock()
	select {
	case said := <-v.came:
		return said, nil
	case <-m.over:
	case <-time.After(meetTime):
	}
	select {
	case said := <-v.came: // just before
		return said, nil
	default:
		return nil, fmt.Errorf("%q: the test in the other VM has ended, or did not come in %v", point, meetTime)
	}
}

// TestVMFabric has two VMs on one fabric, whose ivshmem-doorbell devices ring3 drives over VFIO there, and a process of this machine.
// Not beside others: so there are two VMs at most.
func TestVMFabric(t *testing.T) {
	vm.Need(t, vmArch)
	dir, err := os.MkdirTemp("", "ring3-fabric-") // 0700, and short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	file, socket := filepath.Join(dir, "fabric.yaml"), filepath.Join(dir, "sock")
	if err := os.WriteFile(file, []byte(vmFabric), 0o600); err != nil {
		t.Fatal(err)
	}
	env := append(os.Environ(), "XDG_RUNTIME_DIR="+dir)
	startRing3(t, nil, env, "fabric", "up", file, "--socket", socket)
	process := fabricProcess(t, env, socket)

	m := meeting{over: make(chan struct{}), points: map[string]*visit{}}
	over := sync.OnceFunc(func() { close(m.over) })
	i := image(t)
	for _, p := range []string{"stat", "ping"} {
		if err := i.AddProgram(p); err != nil && (p != "ping" || !errors.Is(err, exec.ErrNotFound)) {
			t.Fatal(err)
		}
	}
	var both sync.WaitGroup
	for node, role := range map[string]string{"vm0": "Server", "vm1": "Client"} {
		s := vm.Suite{
			Package: "integration/guest", Dir: filepath.Dir(ring3),
			Config: vm.Config{
				Arch: vmArch, Image: i, MemoryMB: 768, Load: []string{"tun"}, Modules: []string{"9p", "9pnet_fd"},
				Devices: []string{
					"-chardev", "socket,id=fabric,path=" + filepath.Join(socket+".d", node),
					"-device", "ivshmem-doorbell,id=rio0,chardev=fabric,vectors=8,addr=4",
				},
				Host: map[string]func(json.RawMessage) (any, error){
					"meet":    m.meet,
					"process": func(json.RawMessage) (any, error) { return process, nil },
				},
			},
			Timeout: 5 * time.Minute,
			Want:    func(name string) bool { return name == "TestRoot"+fabricTests+role },
		}
		if role == "Server" {
			s.Config.Image = i.With("/etc/fabric-server", "the server's root\n")
		}
		both.Go(func() {
			defer over()
			t.Run(node, s.Run)
		})
	}
	both.Wait()
}

// netspaceWithTAP is what runs a command in a network namespace of its own, where it can make kernel interfaces.
func netspaceWithTAP() (argv []string, err error) {
	argv = []string{"unshare", "-n"}
	if os.Geteuid() != 0 {
		argv = []string{"unshare", "-Urn"}
	}
	if out, err := exec.Command(argv[0], append(argv[1:], "ip", "tuntap", "add", "dev", "try9", "mode", "tap")...).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, out)
	}
	return argv, nil
}

// fabricProcess starts a node of the fabric that is a process of this machine, with an interface in a network namespace of its own. It says
// whether that is possible here.
func fabricProcess(t *testing.T, env []string, socket string) bool {
	t.Helper()
	as, err := netspaceWithTAP()
	if err != nil {
		t.Logf("no process with an interface on the fabric: %v", err)
		return false
	}
	// The interface is there once the fabric was enumerated. ($$ is what exec makes of this shell.)
	const script = `
(while kill -0 $$ && ! ip addr add 10.9.0.3/24 dev rio0; do sleep 0.1; done) >/dev/null 2>&1 &
exec "$@"`
	startRing3(t, append(as, "sh", "-c", script, "sh"), env, "up", "--no-mount", "rio0=fabric:"+socket+",node=pe2", "--tap", "rio0,up=on").loud = true
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		for _, argv := range [][]string{{"fabric", "show", "--socket", socket}, {"fabric", "stats", "--socket", socket}, {"ls"}, {"ethtool", "-S", "rio0"}, {"dmesg"}} {
			cmd := exec.Command(ring3, argv...)
			cmd.Env = env
			out, err := cmd.CombinedOutput()
			t.Logf("ring3 %s: %v\n%s", strings.Join(argv, " "), err, out)
		}
	})
	return true
}
