// Shell boots a VM and gives a shell in it: two e1000e NICs behind an IOMMU, wired to each
// other, and ring3. It is what make vm runs.
//
//	go run ./integration/vm/shell [-arch amd64|arm64] [-no-iommu]
//	go run ./integration/vm/shell -vfio-user a.sock -vfio-user b.sock    # devices that ring3 serve serves, instead
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"

	"github.com/ring3dev/ring3/integration/vm"
)

func main() {
	arch := flag.String("arch", runtime.GOARCH, "amd64 or arm64")
	noIOMMU := flag.Bool("no-iommu", false, "a VM without an IOMMU")
	var sockets []string
	flag.Func("vfio-user", "a VM with the device that is served at the Unix socket `PATH`, instead of two NICs; may be given again", func(path string) error {
		abs, err := filepath.Abs(path)
		sockets = append(sockets, abs)
		return err
	})
	flag.Parse()
	if flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGHUP)
	err := run(ctx, *arch, *noIOMMU, sockets)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// wanted are programs that the VM has if this machine does.
var wanted = []string{
	"bash", "sh", "awk", "cat", "chmod", "chown", "cp", "cut", "date", "dd", "df", "diff", "dmesg", "echo", "env", "ethtool", "false", "find", "free",
	"fusermount3", "grep", "head", "hexdump", "hostname", "id", "ip", "kill", "less", "ln", "ls", "lsmod", "lspci", "mkdir", "mktemp", "more", "mount", "mv", "nl", "nproc",
	"od", "ping", "printf", "ps", "pwd", "readlink", "rm", "rmdir", "rmmod", "sed", "seq", "setpriv", "sleep", "sort", "ss", "stat", "strace", "stty", "sync", "tail",
	"taskset", "tee", "test", "timeout", "top", "touch", "tr", "true", "tty", "umount", "uname", "uniq", "vi", "wc", "which", "xargs",
}

// startServed is start for devices that another process serves.
const startServed = `#!/bin/sh
cat <<'END'

Devices from another process: lspci shows them, and modprobe e1000e, for instance, gives them a driver of the kernel's.
The shell's end ends the VM; so does Ctrl-A x. Ctrl-A c leads to QEMU's monitor and back.

END
PS1='vm# '
export PS1
exec bash
`

// start is the script that init runs: it gets things ready, says so, and becomes the shell.
const start = `#!/bin/sh
modprobe e1000e # as on any machine, the kernel's driver has them first
for nic in 0000:00:04.0 0000:00:05.0; do
	ring3 bind $nic --driver vfio-pci --owner nobody
done
cat <<'END'

Two NICs, wired to each other, and 'nobody CMD', which runs CMD as a user without privileges. Try:
  nobody ring3 up eth0=vfio:0000:00:04.0 eth1=vfio:0000:00:05.0 &
  nobody ring3 shell -- cat /proc/net/dev
  ring3 ls --hw
  ring3 unbind 0000:00:04.0    # back to the kernel's own driver
The shell's end ends the VM; so does Ctrl-A x. Ctrl-A c leads to QEMU's monitor and back.

END
PS1='vm# '
export PS1
exec bash
`

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func run(ctx context.Context, arch string, noIOMMU bool, sockets []string) error {
	dir, err := os.MkdirTemp("", "ring3-shell-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	ring3 := filepath.Join(dir, "ring3")
	if err := vm.Build(arch, "cmd/ring3", ring3); err != nil {
		return err
	}
	root, err := vm.Programs(arch)
	if err != nil {
		return err
	}
	image := &vm.Image{Root: root}
	image.AddFile("/usr/bin/ring3", ring3, 0o755)
	for _, name := range wanted {
		err := image.AddProgram(name)
		if err != nil && !errors.Is(err, exec.ErrNotFound) {
			fmt.Fprintf(os.Stderr, "vm: going on without: %v\n", err)
		}
	}
	for _, file := range []string{"/usr/share/misc/pci.ids", "/lib/terminfo/l/linux", "/lib/terminfo/v/vt100"} {
		if from := filepath.Join(image.Root, file); exists(from) {
			image.AddFile(file, from, 0o644)
		}
	}
	c := vm.Config{Arch: arch, NoIOMMU: noIOMMU, Image: image, Shell: "/bin/start"}
	script := start
	if len(sockets) > 0 {
		var served []vm.Served
		for i, path := range sockets {
			served = append(served, vm.Served{ID: fmt.Sprintf("dev%d", i), Socket: path})
		}
		if err := c.VFIOUser(served...); err != nil {
			return err
		}
		script = startServed
	} else {
		c.Devices = []string{
			"-netdev", "hubport,id=net0,hubid=0", "-device", "e1000e,id=nic0,netdev=net0,mac=52:54:00:12:34:56,addr=4,romfile=",
			"-netdev", "hubport,id=net1,hubid=0", "-device", "e1000e,id=nic1,netdev=net1,mac=52:54:00:12:34:57,addr=5,romfile=",
		}
	}
	image.AddData("/bin/start", []byte(script), 0o755)
	return vm.Shell(ctx, c)
}
