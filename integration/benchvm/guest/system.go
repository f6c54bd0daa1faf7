//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/integration/benchvm/row"
	"github.com/ring3dev/ring3/integration/vm/wire"
)

// session is root's: it gives devices to drivers.
type session struct {
	row.Plan
	only *regexp.Regexp
	init *wire.Conn
}

func newSession(p row.Plan, only *regexp.Regexp) (*session, error) {
	fd, err := strconv.Atoi(os.Getenv(wire.FD))
	if err != nil {
		return nil, fmt.Errorf("this is no VM: %s is not set", wire.FD)
	}
	unix.CloseOnExec(fd)
	return &session{Plan: p, only: only, init: wire.NewConn(os.NewFile(uintptr(fd), "init"))}, nil
}

func (s *session) set(bench string) *row.Set { return &row.Set{Bench: bench, Only: s.only} }

// bind gives a device to a driver, or to none.
func (s *session) bind(addr, driver string) error {
	return s.init.Call(wire.OpBind, wire.Bind{Addr: addr, Driver: driver, Owner: wire.Nobody}, nil)
}

func write(path, data string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(data + "\n")
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("writing %q: %w", data, err)
	}
	return nil
}

// patience bounds every wait for something that should be there soon.
const patience = 20 * time.Second

func waitFor(what string, ok func() bool) error {
	for end := time.Now().Add(patience); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			return fmt.Errorf("%s: not within %s", what, patience)
		}
	}
	return nil
}

func device(addr string) string { return filepath.Join("/sys/bus/pci/devices", addr) }

// domain sets what a device's addresses mean for its kernel driver: "identity" is past the IOMMU,
// "auto" what the machine was booted with. No driver may have the device.
func domain(addr, kind string) error {
	path, err := filepath.EvalSymlinks(filepath.Join(device(addr), "iommu_group"))
	if err != nil {
		return fmt.Errorf("IOMMU group of %s: %w", addr, err)
	}
	return write(filepath.Join(path, "type"), kind)
}

// inet asks for something that is done on a socket, by an interface's name.
func inet(name string, what uint, fill func(*unix.Ifreq) error) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	r, err := unix.NewIfreq(name)
	if err == nil {
		if err = fill(r); err == nil {
			err = unix.IoctlIfreq(fd, what, r)
		}
	}
	if err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	return nil
}

// up brings an interface up and waits for its carrier.
func up(name string) error {
	if err := inet(name, unix.SIOCSIFFLAGS, func(r *unix.Ifreq) error { r.SetUint16(unix.IFF_UP); return nil }); err != nil {
		return err
	}
	return waitFor("carrier of "+name, func() bool {
		b, _ := os.ReadFile("/sys/class/net/" + name + "/carrier")
		return strings.TrimSpace(string(b)) == "1"
	})
}

func setMTU(name string, mtu int) error {
	return inet(name, unix.SIOCSIFMTU, func(r *unix.Ifreq) error { r.SetUint32(uint32(mtu)); return nil })
}

// address gives an interface an address, with the mask that goes with its class: 255.0.0.0 for 10.
func address(name string, ip [4]byte) error {
	return inet(name, unix.SIOCSIFADDR, func(r *unix.Ifreq) error { return r.SetInet4Addr(ip[:]) })
}

// kernelDriver gives a device to e1000e, waits for its interface and brings that up.
func (s *session) kernelDriver(addr string) (name string, err error) {
	if err := s.bind(addr, "e1000e"); err != nil {
		return "", err
	}
	err = waitFor("interface of "+addr, func() bool {
		names, _ := filepath.Glob(filepath.Join(device(addr), "net", "*"))
		if len(names) == 1 {
			name = filepath.Base(names[0])
		}
		return name != ""
	})
	if err != nil {
		return "", err
	}
	return name, up(name)
}

// pinIRQs lets only one CPU serve a device's interrupts.
func pinIRQs(addr string, cpu int) error {
	irqs, err := os.ReadDir(filepath.Join(device(addr), "msi_irqs"))
	if err != nil {
		return err
	}
	for _, q := range irqs {
		if err := write("/proc/irq/"+q.Name()+"/smp_affinity_list", strconv.Itoa(cpu)); err != nil {
			return fmt.Errorf("interrupt %s of %s: %w", q.Name(), addr, err)
		}
	}
	return nil
}

// cpuTimes are what /proc/stat tells of a CPU, in its ticks.
type cpuTimes struct{ idle, all uint64 }

func readCPU(cpu int) (t cpuTimes, err error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return t, err
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 9 || f[0] != "cpu"+strconv.Itoa(cpu) {
			continue
		}
		for i, v := range f[1:9] { // guest time is in user time already
			n, err := strconv.ParseUint(v, 10, 64)
			if err != nil {
				return t, err
			}
			t.all += n
			if i == 3 || i == 4 { // idle, iowait
				t.idle += n
			}
		}
		return t, nil
	}
	return t, fmt.Errorf("/proc/stat has no cpu%d", cpu)
}

// busy is the part of the time from a to b, in percent, that a CPU had something to do.
func (a cpuTimes) busy(b cpuTimes) float64 {
	if b.all <= a.all {
		return 0
	}
	return 100 * (1 - float64(b.idle-a.idle)/float64(b.all-a.all))
}
