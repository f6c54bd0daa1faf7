package vm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/integration/vm/wire"
)

// BootTimeout is how long a VM may take from QEMU's start to init's first word; without KVM,
// on a quiet machine, it takes about 10 s.
const BootTimeout = 120 * time.Second

// Machine is a running VM.
type Machine struct {
	Release string // of its kernel

	dir     string // private, for captures
	cmd     *exec.Cmd
	exited  chan struct{}
	status  error // valid after exited
	console *console
	qmp     *qmp
	conn    *wire.Conn
	files   []*os.File // our ends

	mu    sync.Mutex
	runs  map[int]chan wire.Message
	last  int
	ended error // why nothing comes any more

	captures map[string]string // of a netdev: its file

	host map[string]func(json.RawMessage) (any, error) // Config.Host
}

// Start boots a VM and waits until its init is ready.
func Start(ctx context.Context, c Config) (*Machine, error) {
	c = c.withDefaults()
	if c.Console == nil && os.Getenv("RING3_VM_CONSOLE") != "" {
		c.Console = os.Stderr
	}
	dir, err := privateDir()
	if err != nil {
		return nil, err
	}
	m := &Machine{dir: dir, exited: make(chan struct{}), console: &console{also: c.Console}, runs: map[int]chan wire.Message{}, captures: map[string]string{}, host: c.Host}
	if err := m.boot(ctx, c); err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

func (m *Machine) boot(ctx context.Context, c Config) error {
	dir, err := top()
	if err != nil {
		return err
	}
	k, err := findKernel(dir, c.Kernel, c.Arch)
	if err != nil {
		return err
	}
	init, err := initFor(c.Arch, m.dir)
	if err != nil {
		return err
	}
	initrd := filepath.Join(m.dir, "initrd")
	f, err := os.OpenFile(initrd, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("vm: %w", err)
	}
	err = c.Image.write(f, init, k, &c)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("vm: making the initramfs: %w", err)
	}
	if err := m.launch(&c, k.image, initrd); err != nil {
		return err
	}
	hello := make(chan error, 1)
	go func() {
		msg, err := m.conn.Receive()
		if err == nil && msg.Hello == nil {
			err = errors.New("init's first word is no greeting")
		}
		if err == nil {
			m.Release = msg.Hello.Release
		}
		hello <- err
	}()
	limit := time.NewTimer(BootTimeout)
	defer limit.Stop()
	select {
	case err = <-hello:
	case <-limit.C:
		err = fmt.Errorf("not booted after %v", BootTimeout)
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("vm: booting: %w\n%s", err, m.Tail())
	}
	_ = os.Remove(initrd)
	go m.receive()
	return nil
}

// args are QEMU's, but for the channels.
func args(c *Config, accel, kernel, initrd string) (program string, argv []string) {
	kargs := []string{"panic=-1", "oops=panic", "loglevel=5"}
	switch c.Arch {
	case "arm64":
		program = "qemu-system-aarch64"
		m := "virt,gic-version=3"
		if !c.NoIOMMU {
			m += ",iommu=smmuv3"
		}
		argv = append(argv, "-M", m)
		kargs = append(kargs, "console=ttyAMA0")
	default:
		program = "qemu-system-x86_64"
		argv = append(argv, "-M", "q35,kernel-irqchip=split")
		kargs = append(kargs, "console=ttyS0")
		if !c.NoIOMMU {
			argv = append(argv, "-device", "intel-iommu,intremap=on")
			kargs = append(kargs, "intel_iommu=on", "iommu=nopt")
		}
	}
	argv = append(argv, "-accel", accel, "-cpu", "max", "-smp", fmt.Sprint(c.CPUs), "-m", fmt.Sprint(c.MemoryMB),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-kernel", kernel, "-initrd", initrd, "-append", strings.Join(slices.Concat(kargs, c.Args), " "))
	return program, append(argv, c.Devices...)
}

// launch starts QEMU with its channels.
func (m *Machine) launch(c *Config, kernel, initrd string) error {
	program, argv := args(c, "tcg,thread=multi", kernel, initrd)
	path, err := exec.LookPath(program)
	if err != nil {
		return fmt.Errorf("vm: %w; hack/setup installs it", err)
	}
	var theirs []*os.File
	defer func() {
		for _, f := range theirs {
			f.Close()
		}
	}()
	for i, name := range []string{"qmp", wire.Port} {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("vm: making the %s socket: %w", name, err)
		}
		_ = unix.SetNonblock(fds[0], true)
		m.files = append(m.files, os.NewFile(uintptr(fds[0]), name))
		theirs = append(theirs, os.NewFile(uintptr(fds[1]), name))
		argv = append(argv, "-chardev", fmt.Sprintf("socket,id=%s,fd=%d", name, 3+i))
	}
	argv = append(argv, "-mon", "chardev=qmp,mode=control", "-serial", "stdio",
		"-device", "virtio-serial-pci,addr=1e.0", "-device", "virtserialport,chardev="+wire.Port+",name="+wire.Port)
	m.cmd = exec.Command(path, argv...)
	m.cmd.ExtraFiles = theirs
	m.cmd.Dir = m.dir
	m.cmd.Stdout, m.cmd.Stderr = m.console, m.console
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		// The parent-death signal comes when the thread ends that started QEMU.
		runtime.LockOSThread()
		err := m.cmd.Start()
		started <- err
		if err == nil {
			m.status = m.cmd.Wait()
			close(m.exited)
		}
	}()
	if err := <-started; err != nil {
		m.cmd = nil
		return fmt.Errorf("vm: starting %s: %w", path, err)
	}
	m.conn = wire.NewConn(m.files[1])
	if m.qmp, err = newQMP(m.files[0]); err != nil {
		return fmt.Errorf("vm: %w\n%s", err, m.Tail())
	}
	return nil
}

// Close ends the VM.
func (m *Machine) Close() {
	if m.cmd != nil {
		_ = m.cmd.Process.Kill()
		<-m.exited
	}
	for _, f := range m.files {
		f.Close()
	}
	_ = os.RemoveAll(m.dir)
}

// Tail is the end of what the console said.
func (m *Machine) Tail() string {
	return "the end of the VM's console:\n" + m.console.tail(60)
}

// console keeps what the VM's console says.
type console struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	also io.Writer
}

// maxConsole is how much of it is kept.
const maxConsole = 4 << 20

func (c *console) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.buf.Len()+len(b) > maxConsole {
		c.buf.Reset()
	}
	c.buf.Write(b)
	if c.also != nil {
		_, _ = c.also.Write(b)
	}
	return len(b), nil
}

// tail is the last n lines.
func (c *console) tail(n int) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	lines := strings.Split(strings.ReplaceAll(c.buf.String(), "\r", ""), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// mark is where the console is now, for since.
func (c *console) mark() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.buf.Len()
}

// since is what the console said since a mark.
func (c *console) since(mark int) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.buf.String()[min(mark, c.buf.Len()):]
}
