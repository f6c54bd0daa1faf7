// Package integration tests the whole program, as a user runs it: the real binary, real
// QEMU, real mounts, real namespaces. Nobody imports it.
package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// ring3 is the binary under test.
var ring3 string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if ring3 = os.Getenv(insideTap); ring3 != "" {
		return m.Run() // a test of this program started it
	}
	dir, err := os.MkdirTemp("", "ring3-integration-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	// The unprivileged tests run it too.
	if err := os.Chmod(dir, 0o755); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	ring3 = filepath.Join(dir, "ring3")
	build := exec.Command("go", "build", "-trimpath", "-o", ring3, "../cmd/ring3")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "building ring3: %v\n%s", err, out)
		return 1
	}
	code := m.Run()
	if left := leftovers(dir); left != "" {
		fmt.Fprintf(os.Stderr, "left over after the tests:\n%s", left)
		code = 1
	}
	return code
}

// leftovers lists processes of the binary under test, and QEMUs that it started.
func leftovers(dir string) string {
	var b strings.Builder
	for range 20 {
		b.Reset()
		procs, _ := filepath.Glob("/proc/[0-9]*/exe")
		for _, p := range procs {
			exe, err := os.Readlink(p)
			if err == nil && strings.HasPrefix(exe, dir) {
				cmdline, _ := os.ReadFile(filepath.Join(filepath.Dir(p), "cmdline"))
				fmt.Fprintf(&b, "process %s: %q\n", filepath.Dir(p), cmdline)
			}
		}
		mounts, _ := os.ReadFile("/proc/self/mounts")
		for _, l := range strings.Split(string(mounts), "\n") {
			if strings.Contains(l, "fuse.ring3") && strings.Contains(l, filepath.Base(dir)) {
				fmt.Fprintf(&b, "mount %s\n", l)
			}
		}
		if b.Len() == 0 {
			return ""
		}
		time.Sleep(100 * time.Millisecond)
	}
	return b.String()
}

func TestScripts(t *testing.T) {
	t.Parallel()
	top, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			runDir := filepath.Join(e.WorkDir, "run")
			e.Setenv("XDG_RUNTIME_DIR", runDir)
			e.Setenv("RING3", ring3)
			e.Setenv("TOP", top)
			e.Setenv("PATH", filepath.Dir(ring3)+string(os.PathListSeparator)+os.Getenv("PATH"))
			// Whatever a script that failed left running.
			e.Defer(func() { cleanRun(t, runDir) })
			e.Defer(func() { cleanFabric(e.WorkDir) })
			return os.Mkdir(runDir, 0o700)
		},
		Condition: lacksCondition,
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"waitfor": waitFor,
			"empty":   empty,
			"gone":    gone,
			"waitmsg": waitMessage,
			"aer":     aerRecord,
		},
	})
}

// lacksCondition is [lacks:PROGRAM]: it is not there, and no test needs it. With RING3_NEED_QEMU the script runs, and fails.
func lacksCondition(cond string) (bool, error) {
	name, ok := strings.CutPrefix(cond, "lacks:")
	if !ok {
		return false, fmt.Errorf("unknown condition %q", cond)
	}
	return lacks(name) != "" && os.Getenv("RING3_NEED_QEMU") == "", nil
}

// waitFor waits until a file contains a text: waitfor FILE TEXT.
func waitFor(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: waitfor FILE TEXT")
	}
	file := ts.MkAbs(args[0])
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		b, _ := os.ReadFile(file)
		if strings.Contains(string(b), args[1]) {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%s does not contain %q after 20s: %s", args[0], args[1], b)
		}
	}
}

// empty checks that a folder has no visible entry within 5 s: empty DIR. Names that begin
// with a dot are the run folder's own (its lock).
func empty(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: empty DIR")
	}
	var names []string
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		names = nil
		entries, err := os.ReadDir(ts.MkAbs(args[0]))
		if os.IsNotExist(err) {
			return
		}
		for _, e := range entries {
			if !strings.HasPrefix(e.Name(), ".") {
				names = append(names, e.Name())
			}
		}
		if len(names) == 0 {
			return
		}
	}
	ts.Fatalf("%s holds %v, want nothing", args[0], names)
}

// gone waits until the processes whose ids a file lists have ended: gone FILE.
func gone(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: gone FILE")
	}
	for _, pid := range strings.Fields(ts.ReadFile(args[0])) {
		for deadline := time.Now().Add(5 * time.Second); alive(pid); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				ts.Fatalf("process %s still runs", pid)
			}
		}
	}
}

// alive says whether a process runs; one that ended and was not reaped yet does not.
func alive(pid string) bool {
	b, err := os.ReadFile(filepath.Join("/proc", pid, "stat"))
	_, rest, ok := strings.Cut(string(b), ") ")
	return err == nil && ok && !strings.HasPrefix(rest, "Z")
}

// pidLine finds process ids in an instance's state.
var pidLine = regexp.MustCompile(`"pid": ([0-9]+)`)

// cleanFabric ends the fabric that a failed script left; it is no instance.
func cleanFabric(dir string) {
	b, err := os.ReadFile(filepath.Join(dir, "fab.pid"))
	if pid := strings.TrimSpace(string(b)); err == nil && alive(pid) {
		_ = exec.Command("kill", pid).Run()
	}
}

// cleanRun ends what a failed script left in its run folder.
func cleanRun(t *testing.T, dir string) {
	states, _ := filepath.Glob(filepath.Join(dir, "ring3", "*", "state.json"))
	for _, f := range states {
		b, _ := os.ReadFile(f)
		t.Logf("left over: %s", f)
		if m := pidLine.FindSubmatch(b); m != nil {
			_ = exec.Command("kill", string(m[1])).Run()
		}
	}
}
