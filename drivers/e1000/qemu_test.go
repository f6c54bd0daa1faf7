package e1000_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/qemu"
	"github.com/ring3dev/ring3/drivers/e1000"
	"github.com/ring3dev/ring3/netdev"
)

// pair starts two wired devices.
func pair(t *testing.T, model, ring string) (a, b netdev.Device) {
	t.Helper()
	m, err := qemu.Start(context.Background(), qemu.Config{
		Devices: []qemu.DeviceSpec{{Name: "eth0", Model: model}, {Name: "eth1", Model: model}},
		Wires:   [][2]string{{"eth0", "eth1"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	var ds []netdev.Device
	for _, name := range []string{"eth0", "eth1"} {
		dev, err := m.Device(name)
		if err != nil {
			t.Fatal(err)
		}
		t0 := time.Now()
		r := pci.Bind(context.Background(), dev, pci.Env{Name: name, Options: map[string]string{"ring": ring}, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))}, []*pci.Driver{&e1000.Driver})
		if r.Outcome != pci.Bound {
			t.Fatalf("Bind = %v, %v", r.Outcome, r.Err)
		}
		t.Log("probe", time.Since(t0))
		t.Cleanup(func() {
			if err := r.Instance.Close(); err != nil {
				t.Error(err)
			}
		})
		ds = append(ds, r.Instance.(netdev.Device))
	}
	return ds[0], ds[1]
}

func TestSmoke(t *testing.T) {
	for _, model := range []string{"e1000e", "e1000"} {
		t.Run(model, func(t *testing.T) {
			a, b := pair(t, model, "256")
			t.Log(a.MAC(), b.MAC(), a.Link(), b.Link())
			if err := netdev.Wire(a, b); err != nil {
				t.Fatal(err)
			}
			s, err := netdev.NewSink(b)
			if err != nil {
				t.Fatal(err)
			}
			pool, err := a.Tx(0).NewPool(512)
			if err != nil {
				t.Fatal(err)
			}
			const total = 100000
			var bufs [32]*dma.Buf
			sent := 0
			t0 := time.Now()
			for sent < total {
				n := 0
				for n < len(bufs) && sent+n < total {
					x := pool.Get()
					if x == nil {
						a.Tx(0).Reap()
						break
					}
					x.Data = x.Mem[:60]
					copy(x.Data, b.MAC())
					copy(x.Data[6:], a.MAC())
					x.Data[12], x.Data[13] = 0x88, 0xb5
					bufs[n] = x
					n++
				}
				k := 0
				for k < n {
					k += a.Tx(0).Burst(bufs[k:n])
				}
				sent += n
			}
			if err := a.Tx(0).Drain(context.Background()); err != nil {
				t.Fatal(err)
			}
			dur := time.Since(t0)
			for i := 0; i < 200 && s.Frames() < total; i++ {
				time.Sleep(10 * time.Millisecond)
			}
			t.Logf("sent %d in %v, %.0f pps; received %d, %.0f", sent, dur, float64(sent)/dur.Seconds(), s.Frames(), float64(s.Frames())/time.Since(t0).Seconds())
			t.Logf("%+v", a.Stats())
			t.Logf("%+v", b.Stats())
			for _, h := range b.(pci.IRQUser).IRQHandlers() {
				fmt.Println(h.Name(), h.Counts())
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			pool.Close()
		})
	}
}
