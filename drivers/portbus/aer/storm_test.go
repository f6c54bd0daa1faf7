package aer_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/fault"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/sim"
	"github.com/ring3dev/ring3/drivers/portbus"
)

// Each of 10,000 errors is counted, of its function and of the root port.
func TestNoneLost(t *testing.T) {
	r := newRig(t, options{})
	names := []string{"eth0", "dn1", "rp0", "eth1"}
	root := r.fn("rp0").AER
	all := uint64(10000)
	if testing.Short() {
		all = 2000
	}
	for i := range all {
		name := names[i%uint64(len(names))]
		s := r.fn(name).AER
		before := s.Total(pci.AERCorrectable)
		r.hit(name, pci.AERError{Correctable: corBadTLP})
		for n := 0; r.read(name, pci.AERCorSta) != 0 || s.Total(pci.AERCorrectable) == before; n++ {
			if n < 1000 {
				runtime.Gosched()
				continue
			}
			r.Await(t, fmt.Sprintf("error %d", i), func() bool { return r.read(name, pci.AERCorSta) == 0 })
		}
		if i%500 == 0 {
			r.ForgetRecords()
		}
	}
	if n := root.Root(pci.AERCorrectable); n != all {
		t.Errorf("the root port counted %d, want %d", n, all)
	}
	for _, name := range names {
		s := r.fn(name).AER
		if b, n := s.Bit(pci.AERCorrectable, 6), s.Total(pci.AERCorrectable); b != all/4 || n != all/4 {
			t.Errorf("%s counted %d, %d, want %d", name, b, n, all/4)
		}
	}
}

// slot is a stand-in for the hot-plug service, on the same vector: it counts how often the button was pressed.
func slot(pressed *atomic.Uint64) *portbus.ServiceDriver {
	return &portbus.ServiceDriver{Name: "slot", Service: portbus.HP, Port: pci.ExpRootPort, Probe: func(_ context.Context, d *portbus.Device) (portbus.Instance, error) {
		sta := d.Port().Express().At + pci.ExpSltSta
		_, err := d.Handle("pciehp", func() bool {
			v := d.Config().Read16(sta)
			if v == 0xffff || v&pci.SltStaButton == 0 {
				return false
			}
			d.Config().Write16(sta, pci.SltStaButton)
			pressed.Add(1)
			return true
		})
		if err == nil {
			_, err = d.Modify(pci.ExpSltCtl, 0, pci.SltCtlButton|pci.SltCtlHP, false)
		}
		return idle{}, err
	}}
}

// A storm: as fast as the models go, from several functions. The other service of the vector is served, and nothing grows.
func TestStorm(t *testing.T) {
	var pressed atomic.Uint64
	r := newRig(t, options{more: []*portbus.ServiceDriver{slot(&pressed)}})
	if n := r.Port("rp0").IRQHandlers(); len(n) != 1 || n[0].Name() != "aerdrv, pciehp" {
		t.Fatalf("vectors %v, want one of both", n)
	}
	stop := make(chan struct{})
	var storm sync.WaitGroup
	var hits atomic.Uint64
	for _, name := range []string{"eth0", "eth1"} {
		storm.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := r.Sim().InjectError(name, pci.AERError{Correctable: corBadTLP | corRxErr}); err != nil {
					t.Error(err)
					return
				}
				hits.Add(1)
				runtime.Gosched()
			}
		})
	}
	heap := func() uint64 {
		r.ForgetRecords()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	for i := range uint64(50) {
		from := hits.Load()
		r.Await(t, "the storm", func() bool { return hits.Load() > from+400 })
		if err := r.Sim().PressButton("rp0"); err != nil {
			t.Fatal(err)
		}
		r.Await(t, "the button's interrupt", func() bool { return pressed.Load() > i })
		if i%10 == 0 {
			r.ForgetRecords()
		}
	}
	after := heap()
	close(stop)
	storm.Wait()
	if grown := int64(after) - int64(before); grown > 8<<20 {
		t.Errorf("the heap grew by %d KiB in %d errors", grown>>10, hits.Load())
	}
	t.Logf("%d errors, of which the root port received %d", hits.Load(), r.fn("rp0").AER.Root(pci.AERCorrectable))
	// Nothing is stuck.
	r.quiet("rp0")
	n := r.fn("dn0").AER.Total(pci.AERCorrectable)
	r.hit("dn0", pci.AERError{Correctable: corBadTLP})
	r.Await(t, "an error after the storm", func() bool { return r.fn("dn0").AER.Total(pci.AERCorrectable) == n+1 })
}

// Ten thousand a second, from two functions, in bursts of ten, of each of which the root port remembers the first and that there were more.
func TestStormPaced(t *testing.T) {
	r := newRig(t, options{})
	const n, every = 5000, 100 * time.Microsecond
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for i := 0; i < n; {
		<-tick.C
		for range time.Millisecond / every {
			r.hit([]string{"eth0", "eth1"}[i%2], pci.AERError{Correctable: corBadTLP})
			i++
		}
		if i%500 == 0 {
			r.ForgetRecords()
		}
	}
	r.quiet("rp0")
	for _, name := range []string{"eth0", "eth1"} {
		if r.fn(name).AER.Total(pci.AERCorrectable) == 0 {
			t.Errorf("%s: nothing counted", name)
		}
		n := r.fn(name).AER.Total(pci.AERCorrectable)
		r.hit(name, pci.AERError{Correctable: corBadTLP})
		r.Await(t, "an error after the storm", func() bool { return r.fn(name).AER.Total(pci.AERCorrectable) == n+1 })
	}
	t.Logf("%d errors, of which the root port received %d", n, r.fn("rp0").AER.Root(pci.AERCorrectable))
}

// blocker's ErrorDetected waits.
type blocker struct {
	idle
	entered, release chan struct{}
}

func (b *blocker) ErrorDetected(bool) bus.Verdict {
	b.entered <- struct{}{}
	<-b.release
	return bus.CanRecover
}
func (b *blocker) SlotReset(context.Context) bus.Verdict { return bus.Recovered }
func (b *blocker) ErrorResume()                          {}

// blocked is a rig whose goroutine of rp1 waits in a recovery.
func blocked(t *testing.T) (*rig, *blocker) {
	t.Helper()
	b := &blocker{entered: make(chan struct{}, 100), release: make(chan struct{})}
	r := newRig(t, options{instance: func(name string) pci.Instance {
		if name == "eth2" {
			return b
		}
		return idle{}
	}})
	r.hit("rp1", pci.AERError{Uncorrectable: uncTO})
	<-b.entered
	return r, b
}

// What does not fit into the queue is lost, and one line says how much.
func TestOverflow(t *testing.T) {
	r, b := blocked(t)
	const n = 300
	for range n {
		r.hit("rp1", pci.AERError{Correctable: corBadTLP})
		r.Await(t, "the handler", func() bool { return r.read("rp1", pci.AERRootSta)&pci.RootStaCor == 0 })
	}
	close(b.release)
	r.AwaitLine(t, fmt.Sprintf("pcieport %s: AER: %d error messages came faster than they could be read and are lost", rp1, n-128))
	if x := r.fn("rp1").AER.Root(pci.AERCorrectable); x != 128 {
		t.Errorf("the root port counted %d, want 128", x)
	}
	r.quiet("rp1")
	said := 0
	for _, l := range r.Texts("pcieport " + rp1 + ": AER: ") {
		if strings.Contains(l, "lost") {
			said++
		}
	}
	if said > 0 {
		t.Errorf("it was said %d times more", said)
	}
}

// The service is taken away while messages wait, and while a recovery is under way: that ends first.
func TestUnbindPending(t *testing.T) {
	r, b := blocked(t)
	for range 20 {
		r.hit("rp1", pci.AERError{Correctable: corBadTLP})
	}
	done := make(chan error, 1)
	go func() { done <- r.bus.UnbindDevice("aer", rp1+":pcie002") }()
	select {
	case err := <-done:
		t.Errorf("unbinding did not wait for the recovery: %v", err)
	case <-time.After(20 * time.Millisecond): // that it does not return is to be seen
	}
	close(b.release)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	r.AwaitLine(t, "device recovery successful")
	if v := r.read("rp1", pci.AERRootCmd); v != 0 {
		t.Errorf("Root Error Command = %#x, want 0", v)
	}
	if err := r.bus.BindDevice(t.Context(), "aer", rp1+":pcie002"); err != nil {
		t.Fatal(err)
	}
	r.quiet("rp1")
}

// And again and again, while errors arrive.
func TestUnbindStorm(t *testing.T) {
	r := newRig(t, options{})
	stop := make(chan struct{})
	var storm sync.WaitGroup
	storm.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				_ = r.Sim().InjectError("eth0", pci.AERError{Correctable: corBadTLP})
				runtime.Gosched()
			}
		}
	})
	for range 100 {
		if err := r.bus.UnbindDevice("aer", rp0+":pcie002"); err != nil {
			t.Fatal(err)
		}
		if err := r.bus.BindDevice(t.Context(), "aer", rp0+":pcie002"); err != nil {
			t.Fatal(err)
		}
		r.ForgetRecords()
	}
	close(stop)
	storm.Wait()
	r.quiet("rp0")
}

// A suspended port is silent, and begins anew.
func TestPower(t *testing.T) {
	r := newRig(t, options{})
	p := r.Port("rp1")
	if err := p.Suspend(t.Context()); err != nil {
		t.Fatal(err)
	}
	if v := r.read("rp1", pci.AERRootCmd); v != 0 {
		t.Errorf("Root Error Command of a suspended port = %#x, want 0", v)
	}
	if got, v := p.SlotReset(t.Context()), r.read("rp1", pci.AERRootCmd); got != bus.Recovered || v != 0 {
		t.Errorf("SlotReset of a suspended port = %v, Root Error Command %#x, want 0", got, v)
	}
	r.hit("rp1", pci.AERError{Correctable: corBadTLP})
	if err := p.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	if sta, cor := r.read("rp1", pci.AERRootSta)&0x7f, r.read("rp1", pci.AERCorSta); sta|cor != 0 {
		t.Errorf("after resuming: Root Error Status %#x, Correctable Error Status %#x, want 0", sta, cor)
	}
	if l, _ := r.quiet("rp1"); len(l) != 0 {
		t.Errorf("a suspended port says %q", l)
	}
}

// A port that dies says no more, and ends what is under way.
func TestPortDies(t *testing.T) {
	r, b := blocked(t)
	for range 5 {
		r.hit("rp1", pci.AERError{Correctable: corBadTLP})
	}
	n := len(r.Lines())
	if err := r.Sim().Unplug("rp1"); err != nil {
		t.Fatal(err)
	}
	close(b.release)
	if err := r.Unbind(t.Context(), "rp1"); err != nil {
		t.Error(err)
	}
	if l := r.Lines()[n:]; len(l) > 1 {
		t.Errorf("a dead port says %q", l)
	}
}

// Every access to the root port goes wrong once: nothing panics, nothing hangs, and where a register only read all-ones or a write got lost, the
// next error is handled.
func TestFaults(t *testing.T) {
	few := []sim.DeviceSpec{{Name: "rp1", Model: "root-port"}, {Name: "eth2", Model: "e1000e", Bus: "rp1", Props: []string{"aer=on"}}}
	run := func(t *testing.T, spec string, what pci.AERError, recovers bool) (upTo, all int) {
		plan := fault.Plan{}
		if spec != "" {
			var err error
			if plan, err = fault.Parse(spec); err != nil {
				t.Fatal(err)
			}
		}
		var dev *fault.Device
		r := newRig(t, options{devices: few, votes: votes{"eth2": ok}, wrap: func(name string, d bus.Device) bus.Device {
			if name == "rp1" {
				dev = fault.Wrap(d, plan)
				return dev
			}
			return d
		}})
		upTo = len(dev.Log())
		soon := func() { time.Sleep(time.Millisecond) } // for an access that may never come
		r.hit("rp1", what)
		for range 20 {
			if p := r.Port("rp1"); p == nil || p.Err() != nil || p.Service(portbus.AER) == nil {
				break
			}
			if len(r.Texts("pcieport 1000:00:03.0: AER: device recovery")) > 0 || what.Uncorrectable == 0 && r.read("rp1", pci.AERCorSta) == 0 {
				break
			}
			soon()
		}
		if recovers {
			n := r.fn("rp1").AER.Total(pci.AERCorrectable)
			for i := 0; r.fn("rp1").AER.Total(pci.AERCorrectable) == n; i++ {
				if i == 2000 {
					t.Errorf("%s: the next error is not handled; Root Error Status %#x, Command %#x", spec, r.read("rp1", pci.AERRootSta), r.read("rp1", pci.AERRootCmd))
					break
				}
				if i%20 == 0 {
					r.hit("rp1", pci.AERError{Correctable: corRxErr})
				}
				soon()
			}
		}
		if err := r.Close(); err != nil && !errors.Is(err, bus.ErrBusy) { // that DisableIRQs is denied is told
			t.Errorf("%s: Close = %v", spec, err)
		}
		return upTo, len(dev.Log())
	}
	for _, c := range []struct {
		name string
		what pci.AERError
	}{{"correctable", pci.AERError{Correctable: corBadTLP}}, {"non-fatal", pci.AERError{Uncorrectable: uncTO}}, {"fatal", pci.AERError{Uncorrectable: uncDLP}}} {
		t.Run(c.name, func(t *testing.T) {
			upTo, n := run(t, "", c.what, false)
			step := 1
			if testing.Short() {
				step = 5
			}
			for k := 1; k <= n; k += step {
				for _, kind := range []string{"ones", "zero", "flip:0", "lostwrite", "gone", "irq-lost", "deny"} {
					transient := (kind == "ones" || kind == "lostwrite") && k > upTo && c.name != "fatal"
					spec := fmt.Sprintf("%d:%s", k, kind)
					t.Run(spec, func(t *testing.T) { run(t, spec, c.what, transient) })
				}
			}
			t.Logf("%d accesses, %d of them before the error", n, upTo)
		})
	}
}
