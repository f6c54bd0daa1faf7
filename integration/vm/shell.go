package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/integration/vm/wire"
)

// Shell boots a VM whose console is this process's terminal, or whatever its stdin and stdout
// are, and runs c.Shell there until it ends. On a terminal Ctrl-A x ends the VM, and Ctrl-A c
// leads to QEMU's monitor and back.
func Shell(ctx context.Context, c Config) error {
	c = c.withDefaults()
	if c.Shell == "" {
		return errors.New("vm: which shell?")
	}
	if c.TPM != nil {
		return errors.New("vm: a TPM in a VM with a shell is not supported")
	}
	accel, err := c.accel()
	if err != nil {
		return err
	}
	if accel == "kvm" && os.Getenv(accelEnv) == "" && !c.tryKVM(ctx) {
		accel = "tcg"
	}
	dir, err := os.MkdirTemp("", "ring3-vm-") // 0700
	if err != nil {
		return fmt.Errorf("vm: %w", err)
	}
	defer os.RemoveAll(dir)
	if size, err := unix.IoctlGetWinsize(int(os.Stdout.Fd()), unix.TIOCGWINSZ); err == nil && size.Row > 0 {
		c.Args = append(c.Args, fmt.Sprintf("%s%dx%d", wire.SizeArg, size.Row, size.Col))
	}
	argv, err := prepare(&c, accel, dir)
	if err != nil {
		return err
	}
	cmd := exec.Command(argv[0], append(argv[1:], "-serial", "mon:stdio")...)
	cmd.Dir = dir
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{} // of our group, so that it may read the terminal
	exited := make(chan struct{})
	if err := startQEMU(cmd, exited); err != nil {
		return fmt.Errorf("vm: starting %s: %w", argv[0], err)
	}
	select {
	case <-exited:
	case <-ctx.Done():
		_ = cmd.Process.Kill()
		<-exited
	}
	if cmd.ProcessState.ExitCode() != 0 {
		return fmt.Errorf("vm: QEMU ended: %v", cmd.ProcessState)
	}
	return nil
}

// tryKVM tells whether a VM with nothing in it comes up with KVM.
func (c Config) tryKVM(ctx context.Context) bool {
	c.Shell, c.Image, c.Devices = "", &Image{}, nil
	m, err := start(ctx, c, "kvm", kvmTimeout)
	if err != nil {
		c.logf("KVM does not work here, so it is done without")
		return false
	}
	m.Close()
	return true
}
