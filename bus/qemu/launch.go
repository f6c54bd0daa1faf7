package qemu

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/internal/child"
)

// ramSize is the machine's RAM, which is its DMA memory. It takes real memory only where
// it was touched.
const ramSize = 512 << 20

// maxMemory is how much memory of its own QEMU may have, in bytes; what is shared (RAM, other processes' memory) does not count. It needs some 60 MiB. Whoever
// has its qtest socket can ask it for any amount, by a line without end, or by a read of all addresses.
const maxMemory = 2 << 30

// firmware is a 64 KiB image whose entry, its last 16 bytes, disables interrupts and
// halts.
func firmware() []byte {
	const size, entry = 64 << 10, 0xfff0
	b := make([]byte, size)
	copy(b[entry:], []byte{0xfa, 0xf4, 0xeb, 0xfd}) // cli; hlt; jmp to hlt
	return b
}

// socketpair returns our end and the file for QEMU's.
func socketpair(name string) (int, *os.File, error) {
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, nil, fmt.Errorf("qemu: making the %s socket: %w", name, err)
	}
	return p[0], os.NewFile(uintptr(p[1]), name), nil
}

// sealedMemfd is memory whose size nobody changes any more: a file that shrinks kills who has it mapped.
func sealedMemfd(name string, size int64) (*os.File, error) {
	f, err := memfd(name, size)
	if err != nil {
		return nil, err
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL); err != nil {
		f.Close()
		return nil, fmt.Errorf("qemu: sealing the memory for %s: %w", name, err)
	}
	return f, nil
}

func memfd(name string, size int64) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("qemu: making memory for %s: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	if err := f.Truncate(size); err != nil {
		f.Close()
		return nil, fmt.Errorf("qemu: making %d bytes of memory for %s: %w", size, name, err)
	}
	return f, nil
}

// start starts QEMU. args are those of the devices; inherit the files they name, which stay the caller's.
func (p *Process) start(path string, args []string, inherit files, sandbox bool) (err error) {
	var theirs []*os.File
	defer func() {
		for _, f := range theirs {
			f.Close()
		}
		if err != nil {
			p.closeFiles()
		}
	}()
	give := func(f *os.File) int {
		theirs = append(theirs, f)
		return inherit.add(f)
	}

	if p.ram, err = sealedMemfd("ring3-ram", ramSize); err != nil {
		return err
	}
	bios, err := memfd("ring3-firmware", 0)
	if err != nil {
		return err
	}
	biosFD := give(bios)
	if _, err := bios.Write(firmware()); err != nil {
		return fmt.Errorf("qemu: writing the firmware: %w", err)
	}
	var fd [3]int
	var ours [3]int
	for i, name := range []string{"qtest", "qmp", "ivshmem"} {
		var f *os.File
		if ours[i], f, err = socketpair(name); err != nil {
			return err
		}
		fd[i] = give(f)
		switch i {
		case 0:
			p.qtest = ours[i]
		case 1:
			if err = unix.SetNonblock(ours[i], true); err != nil {
				return fmt.Errorf("qemu: preparing the qmp socket: %w", err)
			}
			p.qmpFile = os.NewFile(uintptr(ours[i]), name)
		case 2:
			p.ivshmem = ours[i]
		}
	}

	argv := []string{
		"-M", "q35,memory-backend=ram,sata=off,smbus=off,pit=off,hpet=off,vmport=off,usb=off,graphics=off",
		// Native hot-plug, by the ports' own registers, in place of ACPI's.
		"-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off",
		"-accel", "tcg,tb-size=1", "-m", p.c.memory(),
		"-bios", fmt.Sprintf("/dev/fd/%d", biosFD),
		"-object", fmt.Sprintf("memory-backend-file,id=ram,mem-path=/dev/fd/%d,size=%d,share=on", inherit.add(p.ram), ramSize),
		"-display", "none", "-nodefaults", "-no-user-config",
		"-chardev", fmt.Sprintf("socket,id=qtest,fd=%d", fd[0]), "-qtest", "chardev:qtest", "-qtest-log", "none",
		"-chardev", fmt.Sprintf("socket,id=qmp,fd=%d", fd[1]), "-mon", "chardev=qmp,mode=control",
		"-chardev", fmt.Sprintf("socket,id=ivshmem,fd=%d", fd[2]),
		"-device", fmt.Sprintf("ivshmem-doorbell,chardev=ivshmem,vectors=%d,addr=%#x", len(p.bell.fds), ivshmemSlot),
	}
	if sandbox {
		argv = append(argv, "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
	}
	cmd := exec.Command(path, append(argv, args...)...)
	cmd.ExtraFiles = inherit
	if p.child, err = child.Start(cmd, func(line string) bool { return p.said(line) }); err != nil {
		return fmt.Errorf("qemu: starting %s: %w", path, err)
	}
	// Before it has read any command.
	if err := unix.Prlimit(p.child.PID(), unix.RLIMIT_DATA, &unix.Rlimit{Cur: maxMemory, Max: maxMemory}, nil); err != nil && err != unix.ESRCH {
		p.log.Debug(fmt.Sprintf("qemu: QEMU's memory is not limited: %v", err))
	}
	if p.c.Started != nil {
		p.c.Started(p.child.PID())
	}
	return nil
}

// memory is the option for RAM. Behind the IOMMU devices may reach other processes' as well.
func (c *Config) memory() string {
	m := fmt.Sprintf("%dM", ramSize>>20)
	if c.iommu() {
		m += fmt.Sprintf(",slots=%d,maxmem=%d", dimmSlots, uint64(dimmSpace))
	}
	return m
}

// said sorts what QEMU says.
func (p *Process) said(line string) (keep bool) {
	c := &p.c
	switch {
	case strings.Contains(line, "is not connected to host network"):
		return false
	case strings.Contains(line, "network dump write error"):
		// QEMU does not say which of them.
		c.Log.Error(fmt.Sprintf("qemu: capturing %s: the disk is full or failing, and a capture ends here; make room, and start anew", strings.Join(c.captured(), ", ")))
	case c.iommu() && aboutFault(line): // the IOMMU's records say it with the device's name
	case p.up.Load():
		c.Log.Warn("qemu: " + line)
	}
	return true
}

// kill ends QEMU and waits until it has.
func (p *Process) kill() {
	p.child.Kill()
	<-p.child.Done()
}

// closeFiles closes our ends.
func (p *Process) closeFiles() {
	if p.ram != nil {
		p.ram.Close()
	}
	if p.qmpFile != nil {
		p.qmpFile.Close()
	}
	for _, fd := range []*int{&p.qtest, &p.ivshmem} {
		if *fd >= 0 {
			unix.Close(*fd)
			*fd = -1
		}
	}
}

// noSandbox has the programs that were built without seccomp.
var noSandbox sync.Map

func unsandboxed(path string) bool {
	_, ok := noSandbox.Load(path)
	return ok
}

// startTimeout is how long QEMU may take from its start to its first answer; it takes
// about 0.1 s on a quiet machine.
const startTimeout = 20 * time.Second
