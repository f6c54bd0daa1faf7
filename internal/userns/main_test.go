package userns

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ring3dev/ring3/internal/kernfs"
	"github.com/ring3dev/ring3/internal/node"
)

// roleEnv makes the test binary the server of a tree, or `ring3 shell`.
const roleEnv = "USERNS_TEST_ROLE"

func TestMain(m *testing.M) {
	ChildMain()
	kernfs.GuardMain()
	switch os.Getenv(roleEnv) {
	case "serve":
		if err := serveTest(os.Getenv("RUN")); err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		os.Exit(0)
	case "shell":
		run := os.Getenv("RUN")
		plan := DefaultPlan(run+"/tree", run+"/old")
		plan.Over = append(plan.Over, "/sys/bus/ring3test/devices")
		os.Unsetenv(roleEnv)
		status, err := Run(context.Background(), Command{Plan: plan, Argv: os.Args[1:]})
		if err != nil {
			fmt.Fprintln(os.Stderr, "shell:", err)
		}
		os.Exit(status)
	case "probe":
		if err := Probe(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("possible")
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// serveTest serves a tree as an instance does until its standard input ends.
func serveTest(run string) error {
	root := testTree()
	sock, err := putDev(root.MkdirAll("dev"), run)
	if err != nil {
		return err
	}
	defer sock.Close()
	ns := View(root, run+"/old")
	bus := root.MkdirAll("sys/bus/ring3test/devices")
	bus.Put("x", &node.Link{Target: "y"})
	ns.MkdirAll("sys/bus/ring3test").Put("devices", &node.Dir{Ours: bus, Kernel: "/sys/bus/ring3test/devices", Keep: run + "/old/sys/bus/ring3test/devices"})
	merged := func(path, line string) *node.File {
		return &node.File{Mode: 0o444, Show: func(w *bytes.Buffer) error {
			p, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			w.Write(p)
			w.WriteString(line)
			return nil
		}}
	}
	ns.MkdirAll("proc").Put("interrupts", merged("/proc/interrupts", "900:          7   RING3  ring0-rx\n"))
	ns.MkdirAll("proc/net").Put("dev", merged("/proc/net/dev", " ring0: 1 2 3\n"))
	root.Put(ViewName, ns)
	s, err := kernfs.Mount(run+"/tree", root, kernfs.Options{Guard: os.Getenv("GUARD") != ""})
	if err != nil {
		return err
	}
	hidden := ns.MkdirAll("sys/class").Lookup("net").(*node.Dir).Hidden()
	fmt.Println("ready", strings.Join(hidden, " "))
	sc := bufio.NewScanner(os.Stdin)
	for sc.Scan() {
		root.MkdirAll("sys/class/net").Put(sc.Text(), &node.Link{Target: "../../devices/pci1000:00/1000:00:03.0/net/ring0"})
		fmt.Println("ok")
	}
	return s.Unmount()
}

// testTree is a network device of our own, beside the machine's, and named as one of them.
func testTree() *node.Dir {
	root := &node.Dir{}
	text := func(s string) *node.File {
		return &node.File{Mode: 0o444, Flavour: node.Sys, Show: func(w *bytes.Buffer) error { w.WriteString(s); return nil }}
	}
	var said string
	root.MkdirAll("proc/net/pktgen").Put("pgctrl", &node.File{Mode: 0o600,
		Show:  func(w *bytes.Buffer) error { fmt.Fprintf(w, "said %s", said); return nil },
		Store: func(_ context.Context, p []byte) (int, error) { said = string(p); return len(p), nil }})
	root.MkdirAll("proc/net").Put("dev", text("pure\n"))
	root.MkdirAll("proc/irq/900").Put("smp_affinity_list", text("0\n"))
	dev := root.MkdirAll("sys/devices/pci1000:00/1000:00:03.0")
	dev.Put("vendor", text("0x8086\n"))
	dev.Put("subsystem", &node.Link{Target: "../../../bus/pci"})
	dev.Put("driver", &node.Link{Target: "../../../bus/pci/drivers/ring3test"})
	dev.MkdirAll("net/ring0").Put("address", text("52:54:00:00:00:01\n"))
	dev.MkdirAll("net/ring0").Put("device", &node.Link{Target: "../../../1000:00:03.0"})
	for _, name := range []string{"ring0", "lo"} { // a name that every machine has
		root.MkdirAll("sys/class/net").Put(name, &node.Link{Target: "../../devices/pci1000:00/1000:00:03.0/net/ring0"})
	}
	root.MkdirAll("sys/bus/pci/devices").Put("1000:00:03.0", &node.Link{Target: "../../../devices/pci1000:00/1000:00:03.0"})
	root.MkdirAll("sys/bus/pci/drivers/ring3test").Put("1000:00:03.0", &node.Link{Target: "../../../../devices/pci1000:00/1000:00:03.0"})
	root.MkdirAll("sys/devices/virtual/ring3test/deep").Put("file", text("deep\n"))
	return root
}

// instance is a running server and its run folder.
type instance struct {
	t      *testing.T
	run    string
	exe    string
	as     []string // prefix of commands as its user
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *bufio.Scanner
	hidden string
}

// each runs f on an instance of root's and on one of a plain user's.
func each(t *testing.T, f func(t *testing.T, in *instance)) {
	if err := kernfs.Probe(); err != nil {
		t.Skip("no FUSE here: ", err)
	}
	for _, user := range []bool{false, true} {
		name := map[bool]string{false: "self", true: "uid65534"}[user]
		t.Run(name, func(t *testing.T) {
			if user && os.Geteuid() != 0 {
				t.Skip("only root can become another user")
			}
			f(t, up(t, user))
		})
	}
}

// up starts an instance.
func up(t *testing.T, user bool) *instance {
	t.Helper()
	run, err := os.MkdirTemp("/tmp", "userns")
	if err != nil {
		t.Fatal(err)
	}
	in := &instance{t: t, run: run, exe: run + "/test"}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("cp", self, in.exe).CombinedOutput(); err != nil {
		t.Fatalf("cp: %s", out)
	}
	for _, dir := range []string{"tree", "old"} {
		if err := os.Mkdir(filepath.Join(run, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if user {
		in.as = []string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"}
		for _, path := range []string{run, run + "/tree", run + "/old"} {
			if err := os.Chown(path, 65534, 65534); err != nil {
				t.Fatal(err)
			}
		}
	}
	in.cmd = in.command("serve")
	in.cmd.Stdout, in.cmd.Stderr = nil, os.Stderr
	in.in, _ = in.cmd.StdinPipe()
	out, _ := in.cmd.StdoutPipe()
	in.out = bufio.NewScanner(out)
	if err := in.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(in.down)
	in.out.Scan()
	hidden, ok := strings.CutPrefix(in.out.Text(), "ready ")
	if !ok {
		t.Fatalf("the server says %q, want ready", in.out.Text())
	}
	in.hidden = hidden
	return in
}

// command is the test binary in a role, as the instance's user.
func (in *instance) command(role string, argv ...string) *exec.Cmd {
	argv = append(append(append([]string{}, in.as...), in.exe), argv...)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), roleEnv+"="+role, "RUN="+in.run, "GUARD=1", "LC_ALL=C", "GORACE=atexit_sleep_ms=10")
	cmd.Dir = "/"
	return cmd
}

// down ends the instance and looks for what it left.
func (in *instance) down() {
	in.in.Close()
	for in.out.Scan() {
	}
	if err := in.cmd.Wait(); err != nil {
		in.t.Errorf("the server ends with %v", err)
	}
	if p, _ := os.ReadFile("/proc/self/mounts"); strings.Contains(string(p), in.run) {
		in.t.Errorf("a mount is left below %s", in.run)
		_ = kernfs.Detach(in.run + "/tree")
	}
	for _, name := range []string{"tree", "old", "test", ""} {
		if err := os.Remove(filepath.Join(in.run, name)); err != nil {
			in.t.Error(err)
		}
	}
}

// bounded runs a command and returns both its streams, and its exit status.
func (in *instance) bounded(cmd *exec.Cmd) (string, int) {
	in.t.Helper()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		in.t.Fatal(err)
	}
	killer := time.AfterFunc(20*time.Second, func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
	_ = cmd.Wait()
	if !killer.Stop() {
		in.t.Fatalf("%q hangs; so far: %s", cmd.Args, out.String())
	}
	return out.String(), cmd.ProcessState.ExitCode()
}

// sh runs a bash script inside.
func (in *instance) sh(script string) (string, int) {
	in.t.Helper()
	return in.bounded(in.command("shell", "bash", "-c", script))
}
