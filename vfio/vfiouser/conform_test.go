package vfiouser

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/qemu"
	"github.com/ring3dev/ring3/bus/sim"
)

// The ways of reaching a device that are tried with everything.
var ways = []struct {
	name    string
	without Ways
}{
	{"queue", 0},
	{"messages", WriteQueue | Doorbells},
	{"one socket", WriteQueue | Doorbells | TwinSocket},
	{"queue, one socket", TwinSocket},
}

// hooks of a model.
func hooks(name string) func(*testing.T, bus.Device) bustest.Subject {
	if name == "edu" {
		return bustest.Edu
	}
	return bustest.E1000e
}

func TestSim(t *testing.T) {
	for _, name := range []string{"edu", "e1000e"} {
		for _, w := range ways {
			t.Run(name+" "+w.name, func(t *testing.T) {
				bustest.All(t, func(t *testing.T) bustest.Subject {
					m, d := model(t, name, sim.Eager)
					s := hooks(name)(t, serve(t, d, simServer(t, m), Options{Without: w.without}).Device)
					s.Kill = func() { _ = m.Unplug("d") }
					return s
				})
			})
		}
	}
}

// virtual is a device of QEMU's behind its IOMMU, at a port, whose reset it has.
func virtual(t testing.TB, name string) (*qemu.Machine, bus.Device) {
	t.Helper()
	m, err := qemu.Start(t.Context(), qemuConfig(name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil && !errors.Is(err, bus.ErrGone) {
			t.Errorf("closing QEMU: %v", err)
		}
	})
	d, err := m.Device("d")
	if err != nil {
		t.Fatal(err)
	}
	return m, d
}

func qemuConfig(name string) qemu.Config {
	return qemu.Config{Devices: []qemu.DeviceSpec{
		{Name: "p", Model: "pcie-root-port"}, {Name: "d", Model: name, Bus: "p", IOMMU: true},
	}}
}

func TestQEMU(t *testing.T) {
	bustest.NeedQEMU(t)
	for _, c := range []struct{ name, way string }{{"edu", "queue"}, {"edu", "messages"}, {"e1000e", "queue"}} {
		name := c.name
		for _, w := range ways {
			if w.name != c.way || testing.Short() && name != "edu" {
				continue
			}
			t.Run(name+" "+w.name, func(t *testing.T) {
				bustest.All(t, func(t *testing.T) bustest.Subject {
					m, d := virtual(t, name)
					s := hooks(name)(t, serve(t, d, ServerOptions{Log: bustest.Log(t)}, Options{Without: w.without}).Device)
					s.Kill = func() { _, _ = m.Execute("quit", nil) }
					s.Confined = true // and why it died is told
					return s
				})
			})
		}
	}
}

// Across two processes. The other one is killed to make the link die.
func TestProcesses(t *testing.T) {
	for _, c := range []struct{ what, way string }{
		{"sim:edu", "queue"}, {"sim:edu", "messages"}, {"sim:e1000e", "queue"}, {"qemu:edu", "queue"}, {"qemu:e1000e", "messages"},
	} {
		what := c.what
		backend, name, _ := strings.Cut(what, ":")
		for _, w := range ways {
			if w.name != c.way || testing.Short() && backend == "qemu" {
				continue
			}
			t.Run(what+" "+w.name, func(t *testing.T) {
				if backend == "qemu" {
					bustest.NeedQEMU(t)
				}
				bustest.All(t, func(t *testing.T) bustest.Subject {
					d, kill := spawn(t, what, Options{Without: w.without})
					s := hooks(name)(t, d)
					s.Kill = kill
					s.Confined = backend == "qemu"
					return s
				})
			})
		}
	}
}

// serveEnv names the device that this test binary is to serve instead of testing.
const serveEnv = "RING3_TEST_VFIOUSER_SERVE"

func TestMain(m *testing.M) {
	if what := os.Getenv(serveEnv); what != "" {
		if err := serveMain(what); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// serveMain is the other process: it serves a device on descriptor 3, until its client leaves.
func serveMain(what string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	f := os.NewFile(3, "socket")
	conn, err := fileConn(f)
	if err != nil {
		return err
	}
	backend, name, _ := strings.Cut(what, ":")
	var dev bus.Device
	var o ServerOptions
	switch backend {
	case "sim":
		m, err := sim.Start(ctx, sim.Config{Devices: []sim.DeviceSpec{{Name: "d", Model: name}}})
		if err != nil {
			return err
		}
		defer m.Close()
		o.Reset = func(ctx context.Context) error { return m.Reset(ctx, "d") }
		if dev, err = m.Device("d"); err != nil {
			return err
		}
	default:
		m, err := qemu.Start(ctx, qemuConfig(name))
		if err != nil {
			return err
		}
		defer m.Close()
		if dev, err = m.Device("d"); err != nil {
			return err
		}
	}
	s, err := NewServer(dev, o)
	if err != nil {
		return err
	}
	return s.ServeConn(ctx, conn)
}

// spawn starts the other process, and opens its device.
func spawn(t *testing.T, what string, o Options) (d *Device, kill func()) {
	t.Helper()
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs := os.NewFile(uintptr(p[1]), "socket")
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), serveEnv+"="+what)
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Stderr = testWriter{t}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err = cmd.Start()
	theirs.Close()
	conn := connOf(t, p[0])
	if err != nil {
		conn.Close()
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Wait() })
	if o.Log == nil {
		o.Log = bustest.Log(t)
	}
	o.Timeout = 30 * time.Second // it starts a QEMU first
	if d, err = Open(t.Context(), conn, o); err != nil {
		_ = cmd.Process.Kill()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
	})
	return d, func() { _ = cmd.Process.Kill() }
}

// testWriter passes what the other process says to the test's log.
type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Logf("the other process: %s", b)
	return len(b), nil
}
