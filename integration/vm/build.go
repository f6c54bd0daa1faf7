package vm

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
)

const hostArch = runtime.GOARCH

const module = "github.com/ring3dev/ring3"

// top is the folder of the checkout.
var top = sync.OnceValues(func() (string, error) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", module).Output()
	if err != nil {
		return "", fmt.Errorf("looking for the checkout: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
})

// goTool runs the go command for an architecture.
func goTool(arch string, args ...string) error {
	dir, err := top()
	if err != nil {
		return err
	}
	return goIn(dir, arch, append([]string{"go"}, args...)...)
}

// goIn runs a command that builds for an architecture, in a folder of sources.
func goIn(dir, arch string, argv ...string) error {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(argv, " "), err, out)
	}
	return nil
}

// Build builds a command of this module, statically, for an architecture ("": this
// machine's).
func Build(arch, pkg, out string) error {
	return goTool(orHost(arch), "build", "-trimpath", "-ldflags=-s -w", "-o", out, module+"/"+pkg)
}

// BuildTest builds the test binary of a package of this module, with the build tag vm.
func BuildTest(arch, pkg, out string) error {
	return goTool(orHost(arch), "test", "-c", "-tags=vm", "-trimpath", "-ldflags=-w", "-o", out, module+"/"+pkg)
}

func orHost(arch string) string {
	if arch == "" {
		return hostArch
	}
	return arch
}
