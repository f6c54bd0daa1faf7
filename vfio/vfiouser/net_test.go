package vfiouser

import (
	"context"
	"errors"
	"strconv"
	"testing"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/sim"
	"github.com/ring3dev/ring3/drivers/e1000"
	"github.com/ring3dev/ring3/netdev"
	"github.com/ring3dev/ring3/netdev/netdevtest"
)

// Served NICs keep every promise of a network device: the same driver, unchanged, in every mode of
// interrupts. Writes are not by message: then a wire's two devices are in no order with each other.
func TestNetwork(t *testing.T) {
	for _, c := range []struct {
		name, irq string
		queues    int
		without   Ways
	}{
		{"queue", "", 1, 0},
		{"two queues", "", 2, 0},
		{"doorbells", "", 1, WriteQueue},
		{"INTx", "intx", 1, 0},
		{"MSI", "msi", 1, TwinSocket},
	} {
		t.Run(c.name, func(t *testing.T) {
			netdevtest.All(t, []int{64}, func(t *testing.T, ring int) netdevtest.Pair {
				return servedPair(t, map[string]string{"ring": strconv.Itoa(ring), "queues": strconv.Itoa(c.queues), "bus": c.irq}, c.without)
			})
		})
	}
}

// servedPair is two wired e1000e, each served, with their driver.
func servedPair(t *testing.T, options map[string]string, without Ways) netdevtest.Pair {
	t.Helper()
	if options["bus"] == "" {
		delete(options, "bus")
	}
	m, err := sim.Start(context.Background(), sim.Config{
		Devices: []sim.DeviceSpec{{Name: "eth0", Model: "e1000e"}, {Name: "eth1", Model: "e1000e"}},
		Wires:   [][2]string{{"eth0", "eth1"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	group := new(Group)
	var nets [2]netdev.Device
	var closers []func() error
	for i, name := range []string{"eth0", "eth1"} {
		dev, err := m.Device(name)
		if err != nil {
			t.Fatal(err)
		}
		o := ServerOptions{Group: group, Registers: e1000.Driver.Registers(pci.ReadID(dev.Config())), Reset: func(ctx context.Context) error { return m.Reset(ctx, name) }}
		c := serve(t, dev, o, Options{Address: name, Without: without})
		r := pci.Bind(context.Background(), c.Device, pci.Env{Name: name, Options: options}, []*pci.Driver{e1000.Driver})
		if r.Outcome != pci.Bound {
			t.Fatalf("Bind of %s = %s, %v", name, r.Outcome, r.Err)
		}
		t.Cleanup(func() {
			if err := r.Instance.Close(); err != nil && !errors.Is(err, bus.ErrGone) {
				t.Errorf("closing %s: %v", name, err)
			}
		})
		nets[i] = r.Instance.(netdev.Device)
		closers = append(closers, func() error {
			err := errors.Join(r.Instance.Close(), c.Device.Close())
			_ = c.end()
			return err
		})
	}
	return netdevtest.Pair{
		A: nets[0], B: nets[1], CloseA: closers[0],
		Close: func() error {
			err := errors.Join(closers[0](), closers[1](), m.Close())
			if n, e := m.StrayDMA(); n != 0 {
				err = errors.Join(err, e)
			}
			return err
		},
	}
}
