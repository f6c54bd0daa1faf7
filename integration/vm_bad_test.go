package integration

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/ring3dev/ring3/integration/vm"
)

// vmArch is the architecture of the VMs; "" is this machine's.
var vmArch = os.Getenv("RING3_VM_ARCH")

// matches tells whether a log has what a pattern says, or no pattern is given.
func matches(log, pattern string) bool {
	return regexp.MustCompile(pattern).MatchString(log)
}

var (
	resultLine = regexp.MustCompile(`^ *--- (PASS|FAIL|SKIP): TestBadVM/(\S+) \(`)
	nameLine   = regexp.MustCompile(`^=== (?:RUN|NAME|CONT) +TestBadVM/?(\S*)$`)
)

// resultsOf takes what go test -v says apart: by test its result and what it said.
func resultsOf(said string) (results, logs map[string]string) {
	results, logs = map[string]string{}, map[string]string{}
	current := ""
	for _, line := range strings.Split(said, "\n") {
		if m := nameLine.FindStringSubmatch(line); m != nil {
			current = m[1]
		} else if m := resultLine.FindStringSubmatch(line); m != nil {
			results[m[2]] = m[1]
		} else {
			logs[current] += line + "\n"
		}
	}
	return results, logs
}

// badVM is set in the process whose tests shall fail.
const badVM = "RING3_TEST_BAD_VM"

// TestBadVM is what TestVMFailures runs and looks at.
func TestBadVM(t *testing.T) {
	if os.Getenv(badVM) == "" {
		t.Skip("these tests fail on purpose; TestVMFailures runs them")
	}
	s := vm.Suite{
		Package: "integration/vm/bad",
		Config:  vm.Config{Arch: vmArch, Image: image(t)},
		Timeout: 5 * time.Second,
		Grace:   5 * time.Second,
	}
	s.Run(t)
}

// TestVMFailures checks that a test in the VM that fails, however it does, is reported as
// failing, with what helps to find out why, and that the tests after it run.
func TestVMFailures(t *testing.T) {
	vm.Need(t, vmArch)
	if os.Getenv("RING3_LONG") == "" {
		t.Skip("three boots and tests that hang take two minutes: RING3_LONG=1, make test-long")
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestBadVM$", "-test.v", "-test.timeout=6m")
	cmd.Env = append(os.Environ(), badVM+"=1", insideTap+"="+ring3)
	out, err := cmd.CombinedOutput()
	if err == nil {
		t.Errorf("tests that fail on purpose passed")
	}
	said := string(out)
	results, logs := resultsOf(said)
	for _, want := range []struct{ test, result, log string }{
		{"TestPasses", "PASS", "said by a test that passes"},
		{"TestSkips", "SKIP", "a reason to skip"},
		{"TestFails", "FAIL", "said without a test"},
		{"TestFails/good", "PASS", "said by good"},
		{"TestFails/bad", "FAIL", ""},
		{"TestFails/bad/worse", "FAIL", "said by worse"},
		{"TestFails/bad/skipped", "SKIP", "said by skipped"},
		{"TestPanics", "FAIL", "panic: said by a panic"},
		{"TestPanics/inside", "FAIL", ""},
		{"TestExits", "FAIL", "did not say how it ended"},
		{"TestHangs", "FAIL", "panic: test timed out after 5s"},
		{"TestLeaves", "FAIL", "process [0-9]+: /bin/sleep 1000"},
		{"TestRootLeaves", "FAIL", "mount at /mnt"},
		{"TestAfterLeaves", "PASS", ""},
		{"TestRootCrashes", "FAIL", "Kernel panic - not syncing: sysrq triggered crash"},
		{"TestStops", "FAIL", "it did not end when killed: the VM hangs"},
		{"TestLast", "PASS", "said by the last test"},
	} {
		if got := results[want.test]; got != want.result {
			t.Errorf("%s: %q, want %s", want.test, got, want.result)
		}
		if !matches(logs[want.test], want.log) {
			t.Errorf("%s said %q, want %q in it", want.test, logs[want.test], want.log)
		}
	}
	if n := strings.Count(said, "booted in"); n != 3 {
		t.Errorf("%d boots, want 3: one, and one after each test that ended the VM", n)
	}
	if t.Failed() {
		t.Logf("all that it said:\n%s", said)
	}
}

// TestVMBoot checks that a VM that does not come up ends with a reason and what its console
// said.
func TestVMBoot(t *testing.T) {
	vm.Need(t, vmArch)
	for _, test := range []struct {
		name  string
		c     vm.Config
		limit time.Duration
		want  []string
	}{
		{"no init", vm.Config{Args: []string{"rdinit=/nowhere", "root=/dev/none"}}, 0, []string{"booting", "Kernel panic"}},
		{"it hangs", vm.Config{Devices: []string{"-S"}, BootTimeout: time.Second}, 0, []string{"init has not said a word after 1s"}},
		{"bad device", vm.Config{Devices: []string{"-device", "nothing"}}, 0, []string{"'nothing' is not a valid device model name"}},
		{"no module", vm.Config{Modules: []string{"nothing"}}, 0, []string{"has no module nothing"}},
		{"the caller ends it", vm.Config{Devices: []string{"-S"}}, time.Second, []string{"deadline exceeded"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			ctx := t.Context()
			if test.limit > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, test.limit)
				defer cancel()
			}
			var log bytes.Buffer
			test.c.Log, test.c.Arch = &log, vmArch
			m, err := vm.Start(ctx, test.c)
			if err == nil {
				m.Close()
				t.Fatal("the VM came up")
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("Start: %v, want %q in it", err, want)
				}
			}
		})
	}
}
