package rionet

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/ring3dev/ring3/netdev/tap"
)

// inside is set in the environment of the process that has a network namespace of its own.
const inside = "RING3_RIONET_TEST_INSIDE"

// refused is why there can be no TAP here; "" where there can.
var refused string

// TestMain runs the tests in a network namespace of their own, as its root, as netdev/tap's do: the machine's interfaces are left
// alone, and no privileges are needed where users may have namespaces.
func TestMain(m *testing.M) {
	if os.Getenv(inside) != "" {
		refused = tryTap()
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		os.Exit(0)
	case errors.As(err, &exit):
		os.Exit(max(1, exit.ExitCode()))
	}
	refused = fmt.Sprintf("no network namespace of its own: %v", err)
	os.Exit(m.Run())
}

// tryTap makes an interface and takes it away.
func tryTap() string {
	t, err := tap.Open(tap.Config{Name: "try0"})
	if err != nil {
		return err.Error()
	}
	if err := t.Close(); err != nil {
		return err.Error()
	}
	return ""
}
