package userns

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// Probe tries what Run needs, in a namespace of its own, and says why it is refused, in one
// line with the remedy; nil if all of it works. It takes some milliseconds.
func Probe() error {
	old, err := os.MkdirTemp("", "ring3-probe")
	if err != nil {
		return err
	}
	defer os.Remove(old)
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	cmd, report, err := start(Command{Stdin: null, Stdout: null, Stderr: null}, job{Plan: Plan{Old: old}, Probe: true})
	if err != nil {
		return err
	}
	said, _ := io.ReadAll(report)
	report.Close()
	err = cmd.Wait()
	if len(said) > 0 {
		return errors.New(string(said))
	}
	if err != nil {
		return fmt.Errorf("trying a mount namespace: %w", err)
	}
	return nil
}

// probeLink tries the link over /proc/net.
func probeLink(p Plan) error {
	l := layer{plan: p}
	err := l.relink("/proc/net", "self/net")
	if errors.Is(err, syscall.ENOSYS) {
		return fmt.Errorf("%w: this needs Linux 5.2 or later, or a container whose seccomp profile knows the new mount calls", err)
	}
	return explain("/proc", os.Getuid(), err)
}

// explain adds to a refusal what this machine's settings under proc say about it, and the
// remedy. uid is the caller's.
func explain(proc string, uid int, err error) error {
	if err == nil {
		return nil
	}
	if !errors.Is(err, syscall.EPERM) && !errors.Is(err, syscall.EACCES) && !errors.Is(err, syscall.ENOSPC) &&
		!errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.EUSERS) {
		return err
	}
	setting := func(name string) string {
		p, err := os.ReadFile(filepath.Join(proc, "sys", name))
		if err != nil {
			return ""
		}
		return strings.TrimSpace(string(p))
	}
	switch {
	case setting("user/max_user_namespaces") == "0":
		return fmt.Errorf("%w: user namespaces are switched off: `sudo sysctl -w user.max_user_namespaces=15000`", err)
	case setting("user/max_mnt_namespaces") == "0":
		return fmt.Errorf("%w: mount namespaces are switched off: `sudo sysctl -w user.max_mnt_namespaces=15000`", err)
	case uid != 0 && setting("kernel/unprivileged_userns_clone") == "0":
		return fmt.Errorf("%w: user namespaces are for root only: `sudo sysctl -w kernel.unprivileged_userns_clone=1`", err)
	case setting("kernel/apparmor_restrict_unprivileged_userns") == "1":
		return fmt.Errorf("%w: AppArmor restricts user namespaces: `sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`, or an AppArmor profile for this program with the rule `userns,`", err)
	case seccomp(proc):
		return fmt.Errorf("%w: a seccomp filter is active, as in containers: start the container with `--security-opt seccomp=unconfined --security-opt apparmor=unconfined`, for root also `--cap-add SYS_ADMIN`", err)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EUSERS):
		return fmt.Errorf("%w: too many namespaces, or too deeply nested: raise user.max_user_namespaces, or leave the outer shells", err)
	case !exists(filepath.Join(proc, "self/ns/user")):
		return fmt.Errorf("%w: the kernel was built without CONFIG_USER_NS", err)
	case errors.Is(err, syscall.EINVAL):
		return err
	}
	return fmt.Errorf("%w: this machine's policy refuses it (a chroot, a container or a security module)", err)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// seccomp says whether this process has a system call filter.
func seccomp(proc string) bool {
	p, err := os.ReadFile(filepath.Join(proc, "self/status"))
	return err == nil && strings.Contains(string(p), "\nSeccomp:\t2")
}
