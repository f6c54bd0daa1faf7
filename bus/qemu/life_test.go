package qemu

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
)

// TestDeath kills QEMU under a driver.
func TestDeath(t *testing.T) {
	m, err := Start(t.Context(), Config{Devices: []DeviceSpec{{Name: "d", Model: "edu"}}})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	d, _ := m.Device("d")
	r, err := d.Region(0)
	if err != nil {
		t.Fatal(err)
	}
	q, err := d.EnableIRQs(bus.MSI, 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(m.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	r.Read32(0)
	select {
	case <-d.Done():
	case <-time.After(20 * time.Second):
		t.Fatal("Done() is still open 20 s after QEMU was killed")
	}
	// Whatever notices first, the reason is QEMU's end.
	if got := r.Read32(0); got != ^uint32(0) {
		t.Errorf("Read32(0) of a dead device = %#x, want all-ones", got)
	}
	r.Write32(4, 1)
	if got := d.Config().Read16(0); got != 0xffff {
		t.Errorf("Config().Read16(0) of a dead device = %#x, want 0xffff", got)
	}
	if err := d.Err(); !errors.Is(err, bus.ErrGone) || !strings.Contains(err.Error(), "killed") {
		t.Errorf("Err() = %v, want ErrGone with the exit status", err)
	}
	if _, err := d.Region(0); !errors.Is(err, bus.ErrGone) {
		t.Errorf("Region(0) of a dead device: %v, want ErrGone", err)
	}
	if _, err := d.DMA().Alloc(bus.DMARequest{Size: 1}); !errors.Is(err, bus.ErrGone) {
		t.Errorf("Alloc of a dead device: %v, want ErrGone", err)
	}
	if err := d.Close(); err != nil {
		t.Errorf("Close() of a dead device = %v", err)
	}
	if _, err := q[0].Wait(t.Context()); !errors.Is(err, bus.ErrClosed) {
		t.Errorf("Wait() after Close = %v, want ErrClosed", err)
	}
}

// TestStopped stops QEMU: a read must not wait for ever.
func TestStopped(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for AnswerTimeout (5 s)")
	}
	m, err := Start(t.Context(), Config{Devices: []DeviceSpec{{Name: "d", Model: "edu"}}})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	d, _ := m.Device("d")
	r, _ := d.Region(0)
	if err := syscall.Kill(m.PID(), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if got := r.Read32(0); got != ^uint32(0) {
		t.Errorf("Read32(0) of a stopped QEMU = %#x, want all-ones", got)
	}
	if err := d.Err(); !errors.Is(err, bus.ErrTimeout) {
		t.Errorf("Err() = %v, want ErrTimeout", err)
	}
}

// TestStartErrors: each is one line that names the thing and what to do.
func TestStartErrors(t *testing.T) {
	one := []DeviceSpec{{Name: "d", Model: "edu"}}
	nic := []DeviceSpec{{Name: "a", Model: "e1000e"}, {Name: "b", Model: "e1000e"}, {Name: "c", Model: "edu"}}
	old := filepath.Join(t.TempDir(), "old-qemu")
	if err := os.WriteFile(old, []byte("#!/bin/sh\necho \"-M q35,pit=off: unsupported machine\" >&2\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		c    Config
		want string
	}{
		{"none", Config{}, "0 devices: want 1 to 256"},
		{"missing", Config{Binary: "no-such-qemu", Devices: one}, "apt-get install qemu-system-x86"},
		{"dying", Config{Binary: old, Devices: one}, "exit status 1: -M q35,pit=off: unsupported machine"},
		{"model", Config{Devices: []DeviceSpec{{Name: "d", Model: "flux-capacitor"}}}, "'flux-capacitor' is not a valid device model name"},
		{"property", Config{Devices: []DeviceSpec{{Name: "d", Model: "edu", Props: []string{"nosuch=1"}}}}, "nosuch"},
		{"bad property", Config{Devices: []DeviceSpec{{Name: "d", Model: "edu", Props: []string{"nosuch"}}}}, "want key=value"},
		{"comma", Config{Devices: []DeviceSpec{{Name: "d", Model: "edu,addr=9"}}}, "want the name of a QEMU device model"},
		{"two of a name", Config{Devices: append(one, one...)}, "two devices are named d"},
		{"name", Config{Devices: []DeviceSpec{{Name: "a/b", Model: "edu"}}}, `device name "a/b"`},
		{"no bus", Config{Devices: []DeviceSpec{{Name: "d", Model: "edu", Bus: "rp0"}}}, "stands under rp0, which is not a port"},
		{"wire to nowhere", Config{Devices: nic, Wires: [][2]string{{"a", "x"}}}, "no device is named x"},
		{"wire to edu", Config{Devices: nic, Wires: [][2]string{{"a", "c"}}}, "c (edu) is no network adapter"},
		{"wire to itself", Config{Devices: nic, Wires: [][2]string{{"a", "a"}}}, "a"},
		{"wired twice", Config{Devices: append(nic, DeviceSpec{Name: "e", Model: "e1000"}), Wires: [][2]string{{"a", "b"}, {"e", "b"}}}, "b is wired to a already"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m, err := Start(t.Context(), tc.c)
			if err == nil {
				m.Close()
				t.Fatal("Start() succeeded")
			}
			if !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("Start() = %q, want one line with %q", err, tc.want)
			}
		})
	}
}

// TestNoLeak starts and closes machines and counts descriptors.
func TestNoLeak(t *testing.T) {
	count := func() int {
		e, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(e)
	}
	run := func() int {
		m, err := Start(t.Context(), Config{Devices: []DeviceSpec{{Name: "a", Model: "e1000e"}, {Name: "b", Model: "e1000"}}, Wires: [][2]string{{"a", "b"}}})
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"a", "b"} {
			d, _ := m.Device(name)
			if _, err := d.EnableIRQs(bus.INTx, 1); err != nil {
				t.Error(err)
			}
		}
		pid := m.PID()
		if err := m.Close(); err != nil {
			t.Errorf("Close() = %v", err)
		}
		if err := unix.Kill(pid, 0); err != unix.ESRCH {
			t.Errorf("QEMU (pid %d) after Close: kill(0) = %v, want ESRCH", pid, err)
		}
		return count()
	}
	run()
	first := run()
	for range 3 {
		if n := run(); n > first {
			t.Errorf("%d descriptors open after another Close, want %d", n, first)
		}
	}
}

// TestUnderPort drives a device two bridges down, with MSI and with INTx.
func TestUnderPort(t *testing.T) {
	m := start(t, Config{Devices: []DeviceSpec{
		{Name: "rp0", Model: "pcie-root-port"},
		{Name: "sw0", Model: "x3130-upstream", Bus: "rp0"},
		{Name: "dn0", Model: "xio3130-downstream", Bus: "sw0"},
		{Name: "dn1", Model: "xio3130-downstream", Bus: "sw0"},
		{Name: "eth0", Model: "e1000e", Bus: "dn1"},
		{Name: "rp1", Model: "ioh3420"},
		{Name: "d", Model: "edu", Bus: "rp1"},
	}})
	for name, want := range map[string]string{"eth0": "8086:10d3", "d": "1234:11e8"} {
		f, err := m.Function(name)
		if err != nil {
			t.Fatal(err)
		}
		if f.ID.String() != want || f.Addr.Bus == 0 {
			t.Errorf("%s is %s at %s, want %s below a bridge", name, f.ID, f.Addr, want)
		}
	}
	d, _ := m.Device("d")
	r, err := d.Region(0)
	if err != nil {
		t.Fatal(err)
	}
	if got := r.Read32(0); got&0xff != 0xed {
		t.Errorf("edu below a port: Read32(0) = %#x, want 0x____00ed", got)
	}
	q, err := d.EnableIRQs(bus.INTx, 1)
	if err != nil {
		t.Fatal(err)
	}
	r.Write32(0x60, 1)
	if _, err := q[0].Wait(t.Context()); err != nil {
		t.Errorf("INTx below a port: %v", err)
	}
}
