package trace_test

import (
	"encoding/binary"
	"errors"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/sim"
	"github.com/ring3dev/ring3/bus/trace"
	"github.com/ring3dev/ring3/drivers/e1000"
	"github.com/ring3dev/ring3/netdev"
	"github.com/ring3dev/ring3/netdev/netdevtest"
)

// Wired NICs work under a trace that is being read as they do without one, the race detector
// sees nothing in what the trace reads of their rings, and every descriptor was written before
// it was published.
func TestNetworkDriver(t *testing.T) {
	netdevtest.All(t, []int{64}, func(t *testing.T, ring int) netdevtest.Pair {
		m, err := sim.Start(t.Context(), sim.Config{
			Devices: []sim.DeviceSpec{{Name: "eth0", Model: "e1000e"}, {Name: "eth1", Model: "e1000e"}},
			Wires:   [][2]string{{"eth0", "eth1"}},
		})
		if err != nil {
			t.Fatal(err)
		}
		var traced []*trace.Device
		var insts []pci.Instance
		for _, name := range []string{"eth0", "eth1"} {
			dev, err := m.Device(name)
			if err != nil {
				t.Fatal(err)
			}
			d := trace.Wrap(dev, trace.Options{Name: name, Registers: e1000.Driver.Registers(pci.ReadID(dev.Config())), Records: 1 << 16})
			r := pci.Bind(t.Context(), d, pci.Env{Name: name, Options: map[string]string{"ring": strconv.Itoa(ring), "queues": "2"}}, []*pci.Driver{e1000.Driver})
			if r.Outcome != pci.Bound {
				t.Fatal(r.Err)
			}
			traced, insts = append(traced, d), append(insts, r.Instance)
		}
		var reader sync.WaitGroup
		for _, d := range traced {
			reader.Go(func() { watchPublishes(t, d) })
		}
		return netdevtest.Pair{
			A: insts[0].(netdev.Device), B: insts[1].(netdev.Device),
			CloseA: insts[0].Close,
			Close: func() error {
				err := errors.Join(insts[0].Close(), insts[1].Close(), traced[0].Close(), traced[1].Close(), m.Close())
				reader.Wait()
				return err
			},
		}
	})
}

// watchPublishes reads a device's records until it is closed. It allocates nothing, as the
// suite counts what the driver does.
func watchPublishes(t *testing.T, d *trace.Device) {
	r := d.NewReader(trace.DefaultRecords)
	buf := make([]trace.Record, 256)
	published := 0
	for end := false; !end; {
		var n int
		n, _, end = r.Read(buf)
		for i := range n {
			rec := &buf[i]
			if rec.Kind != trace.Doorbell || rec.Count == 0 {
				continue
			}
			published++
			// What a ring is filled with before it holds anything.
			if data := rec.Data(); binary.LittleEndian.Uint64(data) == ^uint64(0) {
				for _, e := range d.Entries(nil, rec) {
					t.Errorf("%s", e.String())
				}
			}
		}
		if n == 0 {
			time.Sleep(100 * time.Microsecond)
		}
	}
	if published == 0 {
		t.Errorf("%s: nothing was published", d.Name())
	}
}
