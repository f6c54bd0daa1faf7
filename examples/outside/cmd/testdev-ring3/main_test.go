package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus/bustest"
)

// nobody is who runs the program where the tests run as root: it needs no privileges.
const nobody = 65534

// build builds the program where anybody may run it, and prepares a folder to run it in.
func build(t *testing.T) (program, dir string) {
	t.Helper()
	bustest.NeedQEMU(t)
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("needs FUSE: %v", err)
	}
	f.Close()
	if dir, err = os.MkdirTemp("", "testdev-ring3-"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	program = filepath.Join(dir, "testdev-ring3")
	cmd := exec.Command("go", "build", "-o", program, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(dir, nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
	return program, dir
}

// run runs the program, unprivileged, and returns what it wrote and its exit status.
func run(t *testing.T, program, dir string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "TMPDIR=" + dir}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

func TestProgram(t *testing.T) {
	program, dir := build(t)
	// The driver's files stand in the shell's /sys, where the kernel would have them.
	stdout, stderr, code := run(t, program, dir, "run", "dev0=qemu:pci-testdev,writes=5", "--", "sh", "-ec", `
		cd /sys/bus/pci/drivers/testdev/*:*/
		cat tests
		echo 7 >writes
		cat writes tests`)
	if code != 0 {
		t.Fatalf("run = %d, want 0; stderr:\n%s", code, stderr)
	}
	for _, want := range []string{
		"mem 0 mmio-no-eventfd          5 of 5 counted\n", "io  0 portio-no-eventfd        5 of 5 counted\n",
		"\n7\n", "mem 0 mmio-no-eventfd          7 of 7 counted\n",
	} {
		if !strings.Contains(stdout, want) {
			t.Errorf("run printed\n%s\nwant %q in it", stdout, want)
		}
	}
	for _, tt := range []struct {
		device string
		code   int
		want   string
	}{
		{"dev0=qemu:pci-testdev,writes=0", 2, "option writes=0: want 1 to 10000"},
		{"dev0=qemu:edu", 1, "no driver for 1234:11e8"}, // this program has one driver only
	} {
		stdout, stderr, code := run(t, program, dir, "run", tt.device, "--", "true")
		if code != tt.code || stdout != "" || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, tt.want) {
			t.Errorf("run %s = %d, %q, %q, want %d and one line with %q", tt.device, code, stdout, stderr, tt.code, tt.want)
		}
	}
	left, _ := filepath.Glob(filepath.Join(dir, "ring3*", "*"))
	if len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}
