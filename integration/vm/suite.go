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
	c := Config{Arch: arch}
	if _, err := exec.LookPath(c.machine().program); err != nil {
		return fmt.Errorf("%w; hack/setup installs it", err)
	}
	_, err := findKernel("", arch)
	return err
}

// Suite is a test package that is run in a VM, each of its tests in a process of its own, in
// the order of its files and with its testdata. The VM is booted for the first of them that
// is run, and again after one that ended it. Several suites may run at a time, each as a test of its own.
type Suite struct {
	Config  Config
	Package string                 // "integration/guest"
	Dir     string                 // where to build, and what was built is used again; "": a folder of the test's
	Want    func(name string) bool // which of its tests; nil: all
	Env     []string               // for the tests, beside all that begin with RING3_ here
	Timeout time.Duration          // of one test; 0: 2 minutes
	Grace   time.Duration          // how long after that the VM is taken to hang; 0: 20 s

	machine *Machine
	boots   int
}

// maxBoots bounds how often a VM is booted anew.
const maxBoots = 5

// Run runs the suite as subtests of t, with the names that the tests have there.
func (s *Suite) Run(t *testing.T) {
	t.Helper()
	Need(t, s.Config.Arch)
	binary, err := s.prepare(t)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if s.machine != nil {
			s.machine.Close()
		}
	}()
	names, err := s.list(t.Context(), binary)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if s.Want == nil || s.Want(name) {
			t.Run(name, func(t *testing.T) { s.one(t, name) })
		}
	}
}

// prepare builds the test binary and puts it into the image.
func (s *Suite) prepare(t *testing.T) (binary string, err error) {
	s.Config = s.Config.withDefaults()
	if s.Timeout == 0 {
		s.Timeout = 2 * time.Minute
	}
	if s.Grace == 0 {
		s.Grace = 20 * time.Second
	}
	for _, e := range os.Environ() {
		if strings.HasPrefix(e, "RING3_") {
			s.Env = append(s.Env, e)
		}
	}
	dir := s.Dir
	if dir == "" {
		dir = t.TempDir()
	}
	binary = filepath.Join(dir, s.Config.Arch+"-"+strings.ReplaceAll(s.Package, "/", "-")+".test")
	if err := buildOnce(s.Config.Arch, s.Package, binary); err != nil {
		return "", err
	}
	s.Config.Image = s.Config.Image.clone()
	s.Config.Image.AddFile(s.inside(), binary, 0o755)
	top, err := top()
	if err != nil {
		return "", err
	}
	data := filepath.Join(top, s.Package, "testdata")
	if _, err := os.Stat(data); err != nil {
		return binary, nil
	}
	return binary, s.Config.Image.AddDir(filepath.Join(filepath.Dir(s.inside()), "testdata"), data)
}

// building is held while a test binary is built, which another suite may want too.
var building sync.Mutex

// buildOnce builds a test binary if it is not there.
func buildOnce(arch, pkg, binary string) error {
	building.Lock()
	defer building.Unlock()
	if _, err := os.Stat(binary); err == nil {
		return nil
	}
	return BuildTest(arch, pkg, binary)
}

// inside is where the test binary is in the VM.
func (s *Suite) inside() string {
	name := filepath.Base(s.Package)
	return filepath.Join(wire.TestDir, name, name+".test")
}

// list asks the binary for the names of its tests: here where it can run here.
func (s *Suite) list(ctx context.Context, binary string) ([]string, error) {
	var out []byte
	if s.Config.Arch == hostArch {
		var err error
		if out, err = exec.Command(binary, "-test.list=^Test").Output(); err != nil {
			return nil, fmt.Errorf("listing the tests of %s: %w", s.Package, err)
		}
		return strings.Fields(string(out)), nil
	}
	m, err := s.up(ctx)
	if err != nil {
		return nil, err
	}
	exit, err := m.Run(ctx, s.Grace, wire.Command{Argv: []string{s.inside(), "-test.list=^Test"}}, func(b []byte) { out = append(out, b...) })
	if err == nil && exit.Code != 0 {
		err = errors.New(describe(exit))
	}
	if err != nil {
		return nil, fmt.Errorf("listing the tests of %s: %w\n%s", s.Package, err, out)
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
	m, err := Start(ctx, s.Config)
	if err != nil {
		return nil, err
	}
	s.machine = m
	s.Config.logf("%s, kernel %s, with %s, booted in %.1fs", s.Config.Arch, m.Release, m.Accel, m.Took.Seconds())
	return m, nil
}

// wrong is what the kernel says when it found a mistake of its own, or of a module. Modules
// write WARNING too, about their users' mistakes, but behind their name.
var wrong = regexp.MustCompile(`(?m)^(\[[ 0-9.]+\] WARNING: .*|.*(BUG: |Oops: |general protection fault|Kernel panic|rcu: INFO: rcu_.*stall|blocked for more than).*)$`)

// AsRoot is how the name of a test begins that runs as root, NoIOMMU left out. All others run
// as nobody.
const AsRoot = "TestRoot"

// one runs one test in the VM.
func (s *Suite) one(t *testing.T, name string) {
	m, err := s.up(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// The test's own limit ends it with all goroutines' stacks; ours is for when that does not work.
	limit := s.Timeout + s.Grace/2
	ctx, cancel := context.WithTimeoutCause(t.Context(), limit, fmt.Errorf("still running after %v", limit))
	defer cancel()
	c := wire.Command{
		Argv: []string{s.inside(), "-test.v=test2json", "-test.run=" + pattern(t.Name(), name), fmt.Sprintf("-test.timeout=%v", s.Timeout)},
		Env:  s.Env,
		Dir:  filepath.Dir(s.inside()),
		Root: strings.HasPrefix(strings.Replace(name, "NoIOMMU", "", 1), AsRoot),
	}
	if testing.Short() {
		c.Argv = append(c.Argv, "-test.short")
	}
	mark := m.console.mark()
	r := newReplay(t, name)
	exit, err := m.Run(ctx, s.Grace, c, r.write)
	r.close()
	switch {
	case err != nil:
		t.Errorf("%v\n%s", err, m.Tail())
		m.Close()
		s.machine = nil
	case exit.Err != "" || exit.Code != 0 && r.result != "FAIL":
		t.Errorf("the test died: %s\n%s", describe(exit), m.Tail())
	case exit.Code != 0:
		t.Fail()
	case r.result == "":
		t.Errorf("the test did not say how it ended")
	}
	if exit.Left != "" {
		t.Errorf("left behind by the test:\n%s", exit.Left)
	}
	if said := wrong.FindAllString(m.console.since(mark), 5); said != nil && err == nil {
		t.Errorf("the kernel complained:\n%s\n%s", strings.Join(said, "\n"), m.Tail())
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

// pattern is -run's for a test in the VM, whose name here is given too: its name there, and of the pattern that
// was given here what is about its subtests.
func pattern(here, name string) string {
	p := "^" + regexp.QuoteMeta(name) + "$"
	if f := flag.Lookup("test.run"); f != nil {
		n := strings.Count(here, "/") + 1
		if parts := strings.SplitN(f.Value.String(), "/", n+1); len(parts) > n {
			p += "/" + parts[n]
		}
	}
	return p
}
