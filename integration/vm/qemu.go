package vm

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/integration/vm/wire"
)

// accelEnv names the environment variable that chooses "kvm" or "tcg". Without it KVM is
// used where it works.
const accelEnv = "RING3_VM_ACCEL"

func (c *Config) accel() (string, error) {
	switch a := os.Getenv(accelEnv); a {
	case "kvm", "tcg":
		return a, nil
	case "":
	default:
		return "", fmt.Errorf("vm: %s=%s, want kvm or tcg", accelEnv, a)
	}
	if c.Arch != hostArch || kvmFails.Load() {
		return "tcg", nil
	}
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return "tcg", nil
	}
	f.Close()
	return "kvm", nil
}

// machine is what differs between architectures.
type machine struct {
	program string // of QEMU
	name    string // -M
	devices []string
	console string   // the first serial port, as the kernel calls it
	iommu   []string // of the kernel's arguments
}

func (c *Config) machine() machine {
	if c.Arch == "arm64" {
		m := machine{program: "qemu-system-aarch64", name: "virt,gic-version=3", console: "ttyAMA0", iommu: []string{"iommu.passthrough=0"}}
		if !c.NoIOMMU {
			m.name += ",iommu=smmuv3"
		}
		return m
	}
	// Interrupt remapping needs the split interrupt controller where KVM is used.
	m := machine{program: "qemu-system-x86_64", name: "q35,kernel-irqchip=split", console: "ttyS0", iommu: []string{"intel_iommu=on", "iommu=nopt"}}
	if !c.NoIOMMU {
		m.devices = []string{"-device", "intel-iommu,intremap=on"}
	}
	return m
}

// initrdName is the initramfs in a machine's folder.
const initrdName = "initrd"

// prepare makes the initramfs in dir and returns QEMU's command line.
func prepare(c *Config, accel, dir string) ([]string, error) {
	k, err := findKernel(c.Kernel, c.Arch)
	if err != nil {
		return nil, err
	}
	init := filepath.Join(dir, "init")
	if err := Build(c.Arch, "integration/vm/init", init); err != nil {
		return nil, err
	}
	initrd := filepath.Join(dir, initrdName)
	f, err := os.OpenFile(initrd, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("vm: %w", err)
	}
	err = c.Image.write(f, init, k, c)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("vm: making the initramfs: %w", err)
	}
	mach := c.machine()
	if c.QEMU != "" {
		mach.program = c.QEMU
	}
	path, err := exec.LookPath(mach.program)
	if err != nil {
		return nil, fmt.Errorf("vm: %w; hack/setup installs it", err)
	}
	// On a busy machine without KVM a processor of the VM's may stand still for a while: that is
	// no broken timer, and no lockup.
	kargs := []string{"console=" + mach.console, "panic=-1", "oops=panic", "loglevel=5",
		"no_timer_check", "watchdog_thresh=60", "rcupdate.rcu_cpu_stall_timeout=60"}
	if !c.NoIOMMU {
		kargs = append(kargs, mach.iommu...)
	}
	if c.Shell != "" {
		kargs = append(kargs, wire.ShellArg+c.Shell, "quiet")
	}
	if accel == "tcg" {
		accel = "tcg,thread=multi"
	}
	argv := []string{path, "-M", mach.name, "-accel", accel, "-cpu", "max",
		"-smp", fmt.Sprint(c.CPUs), "-m", fmt.Sprint(c.MemoryMB),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-kernel", k.image, "-initrd", initrd, "-append", strings.Join(slices.Concat(kargs, c.Args), " ")}
	return slices.Concat(argv, mach.devices, c.Devices), nil
}

// launch starts QEMU with the channels.
func (m *Machine) launch(c *Config, argv []string) (err error) {
	var theirs []*os.File
	closeTheirs := func() {
		for _, f := range theirs {
			f.Close()
		}
		theirs = nil
	}
	defer closeTheirs()
	for i, name := range []string{"qmp", wire.Port} {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("making the %s socket: %w", name, err)
		}
		theirs = append(theirs, os.NewFile(uintptr(fds[1]), name))
		if err := unix.SetNonblock(fds[0], true); err != nil {
			return fmt.Errorf("preparing the %s socket: %w", name, err)
		}
		m.files = append(m.files, os.NewFile(uintptr(fds[0]), name))
		argv = append(argv, "-chardev", fmt.Sprintf("socket,id=%s,fd=%d", name, 3+i))
	}
	if c.TPM != nil {
		var args []string
		if m.swtpm, args, err = c.TPM.start(m.dir, 3+len(theirs)); err != nil {
			return err
		}
		theirs, argv = append(theirs, m.swtpm.Control()), append(argv, args...)
	}
	argv = append(argv, "-mon", "chardev=qmp,mode=control", "-serial", "stdio",
		"-device", "virtio-serial-pci,addr=1e.0", "-device", "virtserialport,chardev="+wire.Port+",name="+wire.Port)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.ExtraFiles = theirs
	cmd.Dir = m.dir
	cmd.Stdout, cmd.Stderr = m.console, m.console
	if err := startQEMU(cmd, m.exited); err != nil {
		return err
	}
	closeTheirs() // so that QEMU's end is seen
	m.cmd = cmd
	m.conn = wire.NewConn(m.files[1])
	m.qmp, err = newQMP(m.files[0])
	return err
}

// startQEMU starts a command that ends with this process, in whatever way this ends, and
// closes exited when it did.
func startQEMU(cmd *exec.Cmd, exited chan<- struct{}) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	started := make(chan error)
	go func() {
		// The parent-death signal comes when the thread ends that started QEMU.
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
			close(exited)
		}
	}()
	return <-started
}
