package qemu

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

func launched(t testing.TB, c Config) *Process {
	t.Helper()
	c.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	p, err := Launch(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func attached(t testing.TB, p *Process, c Config) *Machine {
	t.Helper()
	parts, err := p.Parts()
	if err != nil {
		t.Fatal(err)
	}
	m, err := Attach(t.Context(), c, parts, p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// die is what is left of a machine whose process was killed: its descriptors are closed, and nothing else was done.
func die(m *Machine) {
	m.record(bus.ErrGone)
	m.qt.dead.Store(true)
	close(m.gone)
	m.closeOnce.Do(func() {})
	m.qt.close()
	m.unwatch()
	m.ejects.Wait()
	m.iommu.close()
	m.bell.close()
}

func quiesce(t testing.TB, p *Process) {
	t.Helper()
	if err := p.Quiesce(t.Context()); err != nil {
		t.Fatalf("Quiesce() = %v", err)
	}
}

// TestAttach has one machine after the other on one QEMU, each of which dies in the middle of everything.
func TestAttach(t *testing.T) {
	c := Config{Devices: []DeviceSpec{
		{Name: "rp0", Model: "pcie-root-port"}, {Name: "eth0", Model: "e1000e", Bus: "rp0"}, {Name: "eth1", Model: "e1000e", IOMMU: true}, {Name: "edu0", Model: "edu"},
	}, Wires: [][2]string{{"eth0", "eth1"}}}
	p := launched(t, c)
	for round := range 4 {
		m := attached(t, p, c)
		dev, err := m.Device("edu0")
		if err != nil {
			t.Fatal(err)
		}
		r, err := dev.Region(0)
		if err != nil {
			t.Fatal(err)
		}
		pci.SetCommand(dev.Config(), pci.CmdMaster, 0)
		mode := []bus.IRQMode{bus.MSI, bus.INTx}[round%2]
		q, err := dev.EnableIRQs(mode, 1)
		if err != nil {
			t.Fatal(err)
		}
		raise := func(want bool) {
			t.Helper()
			d := 20 * time.Second
			if !want {
				d = 20 * time.Millisecond
			}
			ctx, cancel := context.WithTimeout(t.Context(), d)
			defer cancel()
			if _, err := q[0].Wait(ctx); (err == nil) != want {
				t.Fatalf("round %d, %v: Wait() = %v, want an interrupt: %v", round, mode, err, want)
			}
		}
		raise(false) // of the one before
		r.Write32(0x60, 1)
		raise(true)
		mem, err := dev.DMA().Alloc(bus.DMARequest{Size: 4096, Mask: 1<<28 - 1})
		if err != nil {
			t.Fatal(err)
		}
		for i, b := range mem.Bytes {
			if b != 0 {
				t.Fatalf("round %d: byte %d of new memory is %#x, want 0", round, i, b)
			}
		}
		for i := range mem.Bytes {
			mem.Bytes[i] = 0xaa
		}
		// A copy that is made 100 ms after the death, answers that nobody read, and half an answer.
		for off, v := range map[bus.Off]uint32{0x80: 0x40000, 0x88: uint32(mem.IOVA), 0x90: 2048} {
			r.Write32(off, v)
		}
		r.Write32(0x98, 1|2)
		for range 100 {
			r.Write32(4, 1)
		}
		for range 50 {
			m.qt.mu.Lock()
			m.qt.write([]byte("read 0x0 0x800\n"))
			m.qt.mu.Unlock()
		}
		_, _ = unix.Read(m.qt.fd, make([]byte, 17))
		die(m)
		quiesce(t, p)
	}
	if err := p.Err(); err != nil {
		t.Error(err)
	}
}

// TestQuiesceOwnReset: a machine that its user had reset itself, and one that it put to sleep, come back or are no more.
func TestQuiesceOwnReset(t *testing.T) {
	c := Config{Devices: []DeviceSpec{{Name: "eth0", Model: "e1000e"}}}
	p := launched(t, c)
	for range 5 {
		m := attached(t, p, c)
		m.qt.post(cmdOut[1], 0xcf9, 6) // Reset Control of the ICH9: a hard reset
		die(m)
		quiesce(t, p)
		m = attached(t, p, c)
		time.Sleep(5 * time.Millisecond) // for a reset that comes too late
		d, err := m.Device("eth0")
		if err != nil {
			t.Fatal(err)
		}
		if id := pci.ReadID(d.Config()).String(); id != "8086:10d3" {
			t.Fatalf("after a reset of its own eth0 is %s", id)
		}
		die(m)
		quiesce(t, p)
	}
	m := attached(t, p, c)
	// PMBASE of the ICH9's LPC bridge, its ACPI enabled; then SLP_TYP 1 with SLP_EN in PM1_CNT: to sleep, S3.
	m.qt.post(cmdOut[4], 0xcf8, 1<<31|0x1f<<11|0x40)
	m.qt.post(cmdOut[4], 0xcfc, 0x601)
	m.qt.post(cmdOut[4], 0xcf8, 1<<31|0x1f<<11|0x44)
	m.qt.post(cmdOut[1], 0xcfc, 0x80)
	m.qt.post(cmdOut[2], 0x604, 1<<13|1<<10)
	die(m)
	if err := p.Quiesce(t.Context()); err != nil && !errors.Is(err, bus.ErrGone) {
		t.Errorf("Quiesce() of a machine that sleeps = %v, want nil or ErrGone", err)
	} else if err == nil {
		attached(t, p, c)
	}
}

// TestAttachPlugged finds what was plugged in before.
func TestAttachPlugged(t *testing.T) {
	c := Config{Devices: []DeviceSpec{{Name: "rp0", Model: "pcie-root-port"}, {Name: "rp1", Model: "pcie-root-port"}}}
	p := launched(t, c)
	m := attached(t, p, c)
	late := DeviceSpec{Name: "eth0", Model: "e1000e", Bus: "rp1"}
	if err := m.Plug(t.Context(), late); err != nil {
		t.Fatal(err)
	}
	if err := m.Plug(t.Context(), DeviceSpec{Name: "eth1", Model: "e1000e", Bus: "rp1"}); !errors.Is(err, bus.ErrBusy) {
		t.Errorf("Plug() into a slot that is taken = %v, want ErrBusy", err)
	}
	die(m)
	quiesce(t, p)
	m = attached(t, p, Config{Devices: append(c.Devices, late)})
	f, err := m.Function("eth0")
	if err != nil || f.ID.String() != "8086:10d3" {
		t.Fatalf("Function(eth0) = %+v, %v", f, err)
	}
	if err := m.Eject("eth0"); err != nil {
		t.Errorf("Eject() = %v", err)
	}
	die(m)
	quiesce(t, p)
	parts, err := p.Parts()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Attach(t.Context(), Config{Devices: []DeviceSpec{{Name: "x", Model: "edu"}}}, parts, p); !errors.Is(err, unix.ENODEV) {
		t.Errorf("Attach() for a device that is not there = %v, want ENODEV", err)
	}
}

// TestCloseAttached leaves QEMU as it is.
func TestCloseAttached(t *testing.T) {
	c := Config{Devices: []DeviceSpec{{Name: "edu0", Model: "edu"}}}
	p := launched(t, c)
	for range 3 {
		m := attached(t, p, c)
		d, _ := m.Device("edu0")
		if _, err := d.EnableIRQs(bus.INTx, 1); err != nil {
			t.Fatal(err)
		}
		if err := m.Close(); err != nil {
			t.Errorf("Close() = %v", err)
		}
		if err := p.Err(); err != nil {
			t.Fatal(err)
		}
		quiesce(t, p)
	}
	m := attached(t, p, c)
	p.Close()
	select {
	case <-m.Done():
	case <-time.After(20 * time.Second):
		t.Fatal("Done() is still open 20 s after QEMU's end")
	}
	if err := m.Err(); !errors.Is(err, bus.ErrGone) {
		t.Errorf("Err() = %v, want ErrGone", err)
	}
}

// TestQuiesceStuck: a QEMU that is stopped, and one that was told nonsense.
func TestQuiesceStuck(t *testing.T) {
	c := Config{Devices: []DeviceSpec{{Name: "edu0", Model: "edu"}}}
	for name, spoil := range map[string]func(p *Process, fd int){
		"stopped": func(p *Process, _ int) { _ = syscall.Kill(p.PID(), syscall.SIGSTOP) },
		"cut":     func(_ *Process, fd int) { _, _ = unix.Write(fd, []byte("writel 0xc000")) },
		"ended":   func(_ *Process, fd int) { _ = unix.Shutdown(fd, unix.SHUT_RDWR) },
	} {
		t.Run(name, func(t *testing.T) {
			p := launched(t, c)
			parts, err := p.Parts()
			if err != nil {
				t.Fatal(err)
			}
			defer parts.Close()
			spoil(p, int(parts.Files[1].Fd()))
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			if err := p.Quiesce(ctx); !errors.Is(err, bus.ErrGone) {
				t.Errorf("Quiesce() = %v, want ErrGone", err)
			}
			select {
			case <-p.Done():
			case <-time.After(20 * time.Second):
				t.Error("QEMU lives on")
			}
			if _, err := p.Parts(); !errors.Is(err, bus.ErrGone) {
				t.Errorf("Parts() = %v, want ErrGone", err)
			}
		})
	}
}

// TestSandbox: QEMU itself may start nothing.
func TestSandbox(t *testing.T) {
	p := launched(t, Config{Devices: []DeviceSpec{{Name: "edu0", Model: "edu"}}})
	b, err := os.ReadFile("/proc/" + strconv.Itoa(p.PID()) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	if unsandboxed(p.child.Path()) {
		t.Skip("this QEMU was built without seccomp")
	}
	if !strings.Contains(string(b), "Seccomp:\t2") {
		t.Error("QEMU runs without its seccomp filter")
	}
}

func BenchmarkRecover(b *testing.B) {
	for _, iommu := range []bool{false, true} {
		b.Run(fmt.Sprintf("iommu=%v", iommu), func(b *testing.B) { recovery(b, iommu) })
	}
}

func recovery(b *testing.B, iommu bool) {
	c := Config{Devices: []DeviceSpec{{Name: "eth0", Model: "e1000e", IOMMU: iommu}, {Name: "eth1", Model: "e1000e", IOMMU: iommu}}, Wires: [][2]string{{"eth0", "eth1"}}}
	p := launched(b, c)
	var q, a time.Duration
	m := attached(b, p, c)
	for b.Loop() {
		die(m)
		t := time.Now()
		quiesce(b, p)
		q += time.Since(t)
		t = time.Now()
		m = attached(b, p, c)
		a += time.Since(t)
	}
	b.ReportMetric(float64(q.Microseconds())/float64(b.N), "µs/quiesce")
	b.ReportMetric(float64(a.Microseconds())/float64(b.N), "µs/attach")
}
