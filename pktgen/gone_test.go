package pktgen_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/fault"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/sim"
	"github.com/ring3dev/ring3/bus/sim/simtest"
	"github.com/ring3dev/ring3/drivers/e1000"
	"github.com/ring3dev/ring3/netdev"
	"github.com/ring3dev/ring3/pktgen"
	"github.com/ring3dev/ring3/procfs"
)

// TestDeviceDies: a device that dies in the middle of a run, or loses its last doorbell, ends it
// with a result, and what the device held comes back once it was closed (the machine's end
// checks that).
func TestDeviceDies(t *testing.T) {
	for _, c := range []struct{ fault, count string }{
		{"TDT#9:gone", "count 0"},
		{"TDT#3:lostwrite", "count 64"}, // the first is written when the device comes up
	} {
		t.Run(c.fault, func(t *testing.T) { deviceDies(t, c.fault, c.count) })
	}
}

// faulty is a network device of which something goes wrong.
func faulty(t *testing.T, faults string) (*fault.Device, pci.Result, netdev.Device) {
	t.Helper()
	m := simtest.Machine(t, sim.Config{Devices: []sim.DeviceSpec{{Name: "eth0", Model: "e1000e"}}})
	plan, err := fault.Parse(faults)
	if err != nil {
		t.Fatal(err)
	}
	inner := simtest.Device(t, m, "eth0")
	plan.Registers = e1000.Driver.Registers(pci.ReadID(inner.Config()))
	dev := fault.Wrap(inner, plan)
	r := pci.Bind(t.Context(), dev, pci.Env{Name: "eth0"}, []*pci.Driver{e1000.Driver})
	if r.Outcome != pci.Bound {
		t.Fatal(r.Err)
	}
	nd := r.Instance.(netdev.Device)
	return dev, r, nd
}

func deviceDies(t *testing.T, faults, count string) {
	bustest.NoLeaks(t)
	dev, r, nd := faulty(t, faults)
	e, err := pktgen.New(pktgen.Config{Lookup: func(string) (netdev.Device, error) { return nd, nil }})
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, command string) {
		f := file(t, e, name)
		if _, err := f.Write(t.Context(), []byte(command+"\n")); err != nil {
			t.Errorf("%s > %s = %v", command, name, err)
		}
	}
	write("kpktgend_0", "add_device eth0")
	for _, c := range []string{count, "burst 32", "dst_mac 52:54:00:12:34:57"} {
		write("eth0", c)
	}
	write("pgctrl", "start")
	text, err := file(t, e, "eth0").ReadAll()
	if err != nil || !strings.Contains(string(text), "Result: OK: ") {
		t.Errorf("after the device died: %v\n%s\nwant the kernel's result of a run that ended", err, text)
	}
	for range 3 {
		e.Close()
	}
	nd.Rx(0).Burst(nil)
	if err := r.Instance.Close(); err != nil {
		t.Errorf("Close of the driver = %v", err)
	}
	nd.Rx(0).Burst(nil)
	if n := len(dev.Held()); n == 0 {
		t.Error("the device held nothing when it died: this tests nothing")
	}
	for range 2 {
		e.Close()
	}
	if held := dev.Held(); len(held) != 0 {
		t.Errorf("left: %q", held)
	}
}

// file is one of the generator's files.
func file(t *testing.T, e *pktgen.Engine, name string) *procfs.File {
	t.Helper()
	n, err := e.Dir().Walk(name)
	f, ok := n.(*procfs.File)
	if err != nil || !ok {
		t.Fatalf("no file %s: %v", name, err)
	}
	return f
}

// TestDeviceDiesInWorker: where another process goes on with a run, the end of its device does not end it, and it is open in what is saved; stop ends it.
func TestDeviceDiesInWorker(t *testing.T) {
	bustest.NoLeaks(t)
	dev, r, nd := faulty(t, "TDT#9:gone")
	e, err := pktgen.New(pktgen.Config{Linger: time.Hour, Lookup: func(string) (netdev.Device, error) { return nd, nil }})
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, command string) {
		if _, err := file(t, e, name).Write(t.Context(), []byte(command+"\n")); err != nil {
			t.Errorf("%s > %s = %v", command, name, err)
		}
	}
	write("kpktgend_0", "add_device eth0")
	write("eth0", "count 0")
	over := make(chan struct{})
	go func() { defer close(over); write("pgctrl", "start") }()
	<-nd.Done()
	select {
	case <-over:
		t.Error("start was answered when the device died")
	case <-time.After(50 * time.Millisecond): // the thread has looked
	}
	var s struct{ Open bool }
	if err := json.Unmarshal(e.Save(), &s); err != nil || !s.Open || !e.Running() {
		t.Errorf("the run is not open for who goes on with it: %v, running %v", err, e.Running())
	}
	write("pgctrl", "stop")
	<-over
	if text, err := file(t, e, "eth0").ReadAll(); err != nil || !strings.Contains(string(text), "Result: OK: ") {
		t.Errorf("after stop: %v\n%s", err, text)
	}
	e.Close()
	if err := r.Instance.Close(); err != nil {
		t.Error(err)
	}
	e.Close()
	if held := dev.Held(); len(held) != 0 {
		t.Errorf("left: %q", held)
	}
}
