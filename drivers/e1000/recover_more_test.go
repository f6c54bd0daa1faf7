package e1000_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/fault"
	"github.com/ring3dev/ring3/bus/fault/faulttest"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/qemu"
	"github.com/ring3dev/ring3/drivers/e1000"
	"github.com/ring3dev/ring3/netdev"
)

// volatile are registers that need not be after a recovery what they were before.
var volatile = []string{"RDH0", "RDT0", "RDH1", "RDT1", "TDH0", "TDT0", "TDH1", "TDT1", "RDH", "RDT", "TDH", "TDT", "MDIC", "EERD", "IMS", "ICS", "SWSM"}

// dump is the registers that say how the device is set up.
func dump(t testing.TB, dev bus.Device) (lines []string) {
	t.Helper()
	r, err := dev.Region(0)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range e1000.Driver.Registers(pci.ReadID(dev.Config())) {
		if x.Region != 0 || x.Access != bus.RW && x.Access != bus.RO || slices.Contains(volatile, x.Name) {
			continue
		}
		stride := x.Stride
		if stride == 0 {
			stride = 4
		}
		for i := range max(x.Count, 1) {
			lines = append(lines, fmt.Sprintf("%s[%d]=%#x", x.Name, i, r.Read32(x.Off+bus.Off(i)*stride)))
		}
	}
	return lines
}

// TestRecoveryKeepsSettings: all that a user can set is in the registers again.
func TestRecoveryKeepsSettings(t *testing.T) {
	for _, c := range []struct {
		model   string
		options map[string]string
	}{
		{"e1000e", map[string]string{"ring": "128", "queues": "2", "itr": "5000", "mac": "02:00:00:00:00:77"}},
		{"e1000e", map[string]string{"bus": "intx"}},
		{"e1000", map[string]string{"ring": "64"}},
	} {
		m := recoveryMachine(t, c.model)
		inst := simBind(t, m, "eth0", c.options)
		n := inst.(recoverable)
		dev := n.Info().Bus
		plain := dump(t, dev)
		check := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		check(n.(netdev.MTUSetter).SetMTU(t.Context(), 4000))
		mode := netdev.RxMode{AllMulti: true}
		for i := range 20 {
			mode.Multicast = append(mode.Multicast, net.HardwareAddr{1, 0, 0x5e, 0, byte(16 * i), byte(i)})
		}
		check(n.(netdev.RxModer).SetRxMode(t.Context(), mode))
		can, _ := n.(netdev.Offloader).Features()
		check(n.(netdev.Offloader).SetFeatures(t.Context(), can))
		check(n.(netdev.Coalescer).SetCoalesce(t.Context(), netdev.Coalesce{RxUsecs: 77}))
		check(n.(netdev.Pauser).SetPause(t.Context(), netdev.Pause{Rx: true, Tx: true}))
		for _, p := range inst.(pci.ParamUser).Params() {
			if slices.Contains([]string{"RxIntDelay", "RxAbsIntDelay", "TxIntDelay", "TxAbsIntDelay"}, p.Name) {
				check(p.Set(t.Context(), "33"))
			}
		}
		before := dump(t, dev)
		if slices.Equal(plain, before) {
			t.Error("setting everything changed no register: this tests nothing")
		}
		for i := range 3 {
			restore := keepState(t, dev)
			n.ErrorDetected(i > 0)
			if err := m.Reset(t.Context(), "eth0"); err != nil {
				t.Fatal(err)
			}
			restore()
			if v := n.SlotReset(t.Context()); v != bus.Recovered {
				t.Fatalf("SlotReset = %s", v)
			}
			n.ErrorResume()
			for i, line := range dump(t, dev) {
				if line != before[i] {
					t.Errorf("%s %v: after recovery %s, before %s", c.model, c.options, line, before[i])
				}
			}
		}
	}
}

// resettable is a wired device that the machine can reset.
type resettable struct {
	wired
	reset func(ctx context.Context) error
}

// recovery freezes, resets and resumes, and then sends and receives.
func recovery(ctx context.Context, dev bus.Device, n netdev.Device) error {
	w, _ := faulttest.As[resettable](dev)
	defer w.peer.Rx(0).Burst(nil)
	r := n.(recoverable)
	if err := sendFrames(ctx, n, w.peer, 3); err != nil {
		return err
	}
	if err := receiveFrames(ctx, w.peer, 3); err != nil {
		return err
	}
	r.ErrorDetected(true)
	if err := w.reset(ctx); err != nil {
		return faulttest.Wrong("reset: %v", err)
	}
	faulttest.From(ctx)
	v := r.SlotReset(ctx)
	if v == bus.Recovered {
		r.ErrorResume()
	}
	faulttest.Until(ctx)
	select {
	case <-n.Done():
		return n.Err()
	default:
	}
	if v != bus.Recovered {
		return faulttest.Wrong("SlotReset = %s of a device in service", v)
	}
	if err := dev.Err(); err != nil {
		<-n.Done()
		return n.Err()
	}
	short, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if err := sendFrames(short, n, w.peer, 3); err != nil {
		return err
	}
	if err := receiveFrames(short, w.peer, 3); err != nil {
		return err
	}
	if err := sendFrames(context.Background(), w.peer, n, 3); err != nil {
		return faulttest.Wrong("the peer cannot send: %v", err)
	}
	return receiveFrames(short, n, 3)
}

// power suspends and resumes.
func power(ctx context.Context, dev bus.Device, n netdev.Device) error {
	w, _ := faulttest.As[resettable](dev)
	r := n.(recoverable)
	faulttest.From(ctx)
	if err := r.Suspend(ctx); err != nil {
		return err
	}
	if err := w.reset(ctx); err != nil && dev.Err() == nil {
		return faulttest.Wrong("reset: %v", err)
	}
	err := r.Resume(ctx)
	faulttest.Until(ctx)
	if err == nil && dev.Err() != nil {
		return faulttest.Wrong("resumed, on a dead link")
	}
	return err
}

// openResettable makes a device whose interrupts are INTx, so that its state is all in config space.
func openResettable(model string) func(t testing.TB) bus.Device {
	return func(t testing.TB) bus.Device {
		t.Helper()
		m := eagerMachine(t, model)
		d := resettable{reset: func(ctx context.Context) error { return m.Reset(ctx, "eth0") }}
		d.peer = simBind(t, m, "eth1", map[string]string{"ring": "64"}).(netdev.Device)
		var err error
		if d.Device, err = m.Device("eth0"); err != nil {
			t.Fatal(err)
		}
		return d
	}
}

// TestFaultsInRecovery makes every access of a recovery fail, in every way.
func TestFaultsInRecovery(t *testing.T) {
	o := faulttest.Options{Parallel: 32, Patience: 50 * time.Millisecond, Always: []fault.Kind{fault.Ones, fault.Gone}}
	if testing.Short() {
		o.Max = 40
	} else if os.Getenv("RING3_LONG") != "" {
		o.Bits = 8
	}
	for _, c := range []struct {
		name, model string
		id          uint16
		options     map[string]string
		use         func(context.Context, bus.Device, netdev.Device) error
	}{
		{"82574L-recovery", "e1000e", 0x10d3, map[string]string{"ring": "64", "bus": "intx"}, recovery},
		{"82540EM-recovery", "e1000", 0x100e, map[string]string{"ring": "64", "flow": "auto"}, recovery},
		{"82574L-power", "e1000e", 0x10d3, map[string]string{"ring": "64", "bus": "intx"}, power},
	} {
		faulttest.Every(t, faulttest.Scenario{
			Name: c.name, Driver: "e1000",
			Registers: e1000.Driver.Registers(pci.FunctionID{Vendor: 0x8086, Device: c.id}),
			Open:      openResettable(c.model), Run: lifeOf(c.options, c.use),
		}, o)
	}
}

// busReset resets all that stands below a function's bridge, PCI-to-PCI Bridge 1.2, 3.2.5.18.
func busReset(t testing.TB, m *qemu.Machine, name string) {
	t.Helper()
	const bridgeControl, secondaryReset = 0x3e, 1 << 6
	f, err := m.Function(name)
	if err != nil {
		t.Fatal(err)
	}
	up := m.Config(f.Parent.Addr)
	v := up.Read16(bridgeControl)
	up.Write16(bridgeControl, v|secondaryReset)
	up.Read16(bridgeControl)
	up.Write16(bridgeControl, v)
	up.Read16(bridgeControl)
}

// TestRecoveryOnQEMU recovers by secondary bus resets, in the middle of traffic, and says how long traffic was away: from
// ErrorDetected to the first frame of either direction.
func TestRecoveryOnQEMU(t *testing.T) {
	bustest.NeedQEMU(t)
	for _, c := range []struct {
		name, model, bridge string
		options             map[string]string
		within              time.Duration
	}{
		{"e1000e", "e1000e", "pcie-root-port", nil, 200 * time.Millisecond},
		{"e1000e-intx", "e1000e", "pcie-root-port", map[string]string{"bus": "intx"}, 200 * time.Millisecond},
		{"e1000e-2queues", "e1000e", "pcie-root-port", map[string]string{"queues": "2", "itr": "3"}, 200 * time.Millisecond},
		{"e1000", "e1000", "pcie-pci-bridge", nil, 1500 * time.Millisecond}, // deaf for a second
	} {
		t.Run(c.name, func(t *testing.T) {
			bustest.NoLeaks(t)
			m := machineOf(t, qemu.Config{
				Devices: []qemu.DeviceSpec{
					{Name: "up", Model: c.bridge}, {Name: "eth0", Model: c.model, Bus: "up"}, {Name: "eth1", Model: c.model},
				},
				Wires: [][2]string{{"eth0", "eth1"}},
			})
			x := startTraffic(t, bind(t, m, "eth0", c.options, nil), bind(t, m, "eth1", c.options, nil))
			rounds := 5
			if c.model == "e1000" {
				rounds = 2
			}
			for i := range rounds {
				x.flows(200)
				n := x.nic[0]
				restore := keepState(t, n.Info().Bus)
				begin := time.Now()
				if v := n.ErrorDetected(i%2 == 0); v != bus.NeedReset {
					t.Fatalf("ErrorDetected = %s", v)
				}
				busReset(t, m, "eth0")
				restore()
				reset := time.Since(begin)
				if v := n.SlotReset(t.Context()); v != bus.Recovered {
					t.Fatalf("SlotReset = %s: %v", v, n.Err())
				}
				n.ErrorResume()
				set := time.Since(begin)
				var took [2]time.Duration
				from := [2]uint64{x.sinks[0].Frames(), x.sinks[1].Frames()}
				for took[0] == 0 || took[1] == 0 {
					for k, s := range x.sinks {
						if took[k] == 0 && s.Frames() > from[k] {
							took[k] = time.Since(begin)
						}
					}
					if time.Since(begin) > 2*time.Second+c.within {
						t.Fatalf("no traffic 2 s after a recovery: %v, %+v", took, n.Link())
					}
					time.Sleep(50 * time.Microsecond)
				}
				t.Logf("reset by %s, set up by %s; first frame received after %s, sent after %s", reset, set, took[0], took[1])
				if longest := max(took[0], took[1]); longest > c.within {
					t.Logf("slow: %s, want %s", longest, c.within)
				}
				x.monotonic()
			}
			x.flows(200)
			sent, missing := x.end()
			for i, n := range missing {
				t.Logf("%s: sent %d, %d dropped in its ring, %d in the far end's, %d lost between", x.nic[i].Info().Name, sent[i], x.nic[i].Stats().TxDropped, x.nic[1-i].Stats().RxDropped, n)
				if n < 0 {
					t.Errorf("more frames came than were sent: %d", -n)
				}
			}
		})
	}
}

// TestSuspendOnQEMU: with the device in D3 in between.
func TestSuspendOnQEMU(t *testing.T) {
	bustest.NeedQEMU(t)
	bustest.NoLeaks(t)
	m := machine(t, "e1000e", 2)
	x := startTraffic(t, bind(t, m, "eth0", nil, nil), bind(t, m, "eth1", nil, nil))
	for range 3 {
		x.flows(200)
		dev := x.nic[0].Info().Bus
		restore := keepState(t, dev)
		if err := x.nic[0].Suspend(t.Context()); err != nil {
			t.Fatal(err)
		}
		off, ok := pci.FindCap(dev.Config(), 1) // power management: its control is 4 bytes on
		if !ok {
			t.Fatal("no power management capability")
		}
		for _, state := range []uint16{3, 0} {
			dev.Config().Write16(off+4, dev.Config().Read16(off+4)&^3|state)
		}
		restore()
		if err := x.nic[0].Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	x.flows(200)
	if _, missing := x.end(); missing[0] < 0 || missing[1] < 0 {
		t.Error(errors.New("more frames came than were sent"), missing)
	}
}
