package vm

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ring3dev/ring3/integration/vm/wire"
)

// NeedVM names the environment variable that turns a skip for want of QEMU or of a kernel
// into a failure. make test sets it.
const NeedVM = "RING3_NEED_VM"

// Need skips a test, or fails it, where no VM can be booted.
func Need(t testing.TB, arch string) {
	t.Helper()
	if arch == "" {
		arch = hostArch
	}
	err := possible(arch)
	switch {
	case err == nil:
	case os.Getenv(NeedVM) != "":
		t.Fatalf("no VM here: %v", err)
	default:
		t.Skipf("no VM here: %v", err)
	}
}

func possible(arch string) error {
	program, _ := args(&Config{Arch: arch}, "", "", "")
	if _, err := exec.LookPath(program); err != nil {
		return fmt.Errorf("%w; hack/setup installs it", err)
	}
	dir, err := top()
	if err != nil {
		return err
	}
	_, err = findKernel(dir, "", arch)
	return err
}

// Suite is a test package that is run in a VM, each of its tests in a process of its own.
// The VM is booted for the first of them that is run, and again after one that ended it.
type Suite struct {
	Config  Config
	Package string                 // "integration/guest"
	Want    func(name string) bool // which of its tests; nil: all
	Env     []string               // for the tests
	Timeout time.Duration          // of one test; 0: 2 minutes

	t       *testing.T
	machine *Machine
	boots   int
}

// maxBoots bounds how often a VM is booted anew.
const maxBoots = 3

var (
	binaries sync.Mutex
	built    = map[string]string{} // by architecture and package
)

// testBinary builds the test binary of a package once. It stays until this process ends.
func testBinary(arch, pkg, dir string) (string, error) {
	binaries.Lock()
	defer binaries.Unlock()
	key := arch + " " + pkg
	if built[key] == "" {
		out := filepath.Join(dir, arch+"-"+strings.ReplaceAll(pkg, "/", "-")+".test")
		if err := BuildTest(arch, pkg, out); err != nil {
			return "", err
		}
		built[key] = out
	}
	return built[key], nil
}

// Run runs the suite as subtests of t, with the names that the tests have there.
func (s *Suite) Run(t *testing.T) {
	t.Helper()
	s.Config = s.Config.withDefaults()
	Need(t, s.Config.Arch)
	binary, err := testBinary(s.Config.Arch, s.Package, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s.Config.Image = s.Config.Image.clone()
	s.Config.Image.AddFile(s.inside(), binary, 0o755)
	names, err := s.list(t, binary)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if s.machine != nil {
			s.machine.Close()
		}
	}()
	for _, name := range names {
		if s.Want == nil || s.Want(name) {
			t.Run(name, func(t *testing.T) { s.one(t, name) })
		}
	}
}

// inside is where the test binary is in the VM.
func (s *Suite) inside() string {
	return filepath.Join(wire.TestDir, filepath.Base(s.Package)+".test")
}

// list asks the binary for the names of its tests: here where it can run here.
func (s *Suite) list(t *testing.T, binary string) ([]string, error) {
	var out []byte
	if s.Config.Arch == runtime.GOARCH {
		var err error
		if out, err = exec.Command(binary, "-test.list=^Test").Output(); err != nil {
			return nil, fmt.Errorf("listing the tests of %s: %w", s.Package, err)
		}
		return strings.Fields(string(out)), nil
	}
	m, err := s.up(t.Context())
	if err != nil {
		return nil, err
	}
	exit, err := m.Run(t.Context(), wire.Command{Argv: []string{s.inside(), "-test.list=^Test"}}, func(b []byte) { out = append(out, b...) })
	if err != nil || exit.Code != 0 {
		return nil, fmt.Errorf("listing the tests of %s: %+v: %w\n%s", s.Package, exit, err, out)
	}
	return strings.Fields(string(out)), nil
}

// up is the VM, booted if there is none.
func (s *Suite) up(ctx context.Context) (*Machine, error) {
	if s.machine != nil {
		return s.machine, nil
	}
	if s.boots == maxBoots {
		return nil, fmt.Errorf("the VM ended %d times; not booted again", s.boots)
	}
	s.boots++
	begin := time.Now()
	m, err := Start(ctx, s.Config)
	if err != nil {
		return nil, err
	}
	s.machine = m
	fmt.Fprintf(os.Stderr, "vm: kernel %s booted in %.1fs\n", m.Release, time.Since(begin).Seconds())
	return m, nil
}

// wrong is what the kernel says when it found a mistake of its own, or of a module.
var wrong = regexp.MustCompile(`(?m)^.*(BUG: |Oops: |WARNING: |general protection fault|Kernel panic|rcu: INFO: rcu_.*stall|blocked for more than).*$`)

// AsRoot is how the name of a test begins that runs as root. All others run as nobody.
const AsRoot = "TestRoot"

// one runs one test in the VM.
func (s *Suite) one(t *testing.T, name string) {
	m, err := s.up(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	limit := s.Timeout
	if limit == 0 {
		limit = 2 * time.Minute
	}
	// The test's own limit ends it with all goroutines' stacks; ours is for when that does not work.
	ctx, cancel := context.WithTimeoutCause(t.Context(), limit+15*time.Second, fmt.Errorf("still running after %v", limit+15*time.Second))
	defer cancel()
	c := wire.Command{
		Argv: []string{s.inside(), "-test.v=test2json", "-test.run=" + pattern(name), fmt.Sprintf("-test.timeout=%v", limit), "-test.paniconexit0"},
		Env:  s.Env,
		Root: strings.HasPrefix(name, AsRoot),
	}
	if testing.Short() {
		c.Argv = append(c.Argv, "-test.short")
	}
	mark := m.console.mark()
	r := newReplay(t, name)
	exit, err := m.Run(ctx, c, r.write)
	r.close()
	switch {
	case err != nil:
		t.Errorf("%v\n%s", err, m.Tail())
		m.Close()
		s.machine = nil
	case exit.Err != "" || exit.Code > 1 || exit.Code == 1 && r.result != "FAIL":
		t.Errorf("the test died: %s\n%s", describe(exit), m.Tail())
	case exit.Code == 1:
		t.Fail()
	case r.result == "":
		t.Errorf("the test did not say how it ended")
	}
	if said := wrong.FindAllString(m.console.since(mark), 5); said != nil {
		t.Errorf("the kernel said:\n%s\n%s", strings.Join(said, "\n"), m.Tail())
	}
	if r.result == "SKIP" && !t.Failed() {
		t.SkipNow()
	}
}

func describe(e wire.Exit) string {
	if e.Err != "" {
		return e.Err
	}
	return fmt.Sprintf("exit status %d", e.Code)
}

// pattern is -run's for a test in the VM: its name, and of the pattern that was given here
// what is about its subtests.
func pattern(name string) string {
	p := "^" + regexp.QuoteMeta(name) + "$"
	if f := flag.Lookup("test.run"); f != nil {
		if parts := strings.SplitN(f.Value.String(), "/", 3); len(parts) == 3 {
			p += "/" + parts[2]
		}
	}
	return p
}

// ErrEnded is wrapped by errors of a VM that ended.
var ErrEnded = errors.New("the VM ended")
