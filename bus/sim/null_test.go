package sim_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/sim"
	"github.com/ring3dev/ring3/drivers/e1000"
	"github.com/ring3dev/ring3/netdev"
)

// nullNIC is the model null with its driver in service, in real time.
func nullNIC(t testing.TB, opts map[string]string, props ...string) netdev.Device {
	t.Helper()
	m, err := sim.Start(context.Background(), sim.Config{Devices: []sim.DeviceSpec{{Name: "eth0", Model: "null", Props: props}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Errorf("Close of the machine = %v", err)
		}
		if n, err := m.StrayDMA(); n != 0 {
			t.Errorf("%d times stray DMA, first %v", n, err)
		}
	})
	dev, err := m.Device("eth0")
	if err != nil {
		t.Fatal(err)
	}
	r := pci.Bind(context.Background(), dev, pci.Env{Name: "eth0", Options: opts}, []*pci.Driver{e1000.Driver})
	if r.Outcome != pci.Bound {
		t.Fatalf("Bind = %s, %v, want bound", r.Outcome, r.Err)
	}
	nd := r.Instance.(netdev.Device)
	t.Cleanup(func() {
		if err := r.Instance.Close(); err != nil {
			t.Errorf("Close of the driver = %v", err)
		}
		nd.Rx(0).Burst(nil) // its owner's last word: gives the memory back
	})
	return nd
}

func TestNullSends(t *testing.T) {
	bustest.NoLeaks(t)
	nd := nullNIC(t, nil)
	q := nd.Tx(0)
	pool, err := q.NewPool(64)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	for sent := 0; sent < 10_000; {
		var bufs []*dma.Buf
		for len(bufs) < 32 {
			b := pool.Get()
			b.Data = b.Mem[:60]
			bufs = append(bufs, b)
		}
		if n := q.Burst(bufs); n != 32 {
			t.Fatalf("Burst = %d, want 32: the device is done at once", n)
		}
		sent += 32
		if n := q.Reap(); n != 0 {
			t.Fatalf("%d frames in flight after Reap, want 0", n)
		}
	}
	if got := nd.Stats().TxPackets; got != 10_016 {
		t.Errorf("TxPackets = %d, want 10016", got)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := q.Drain(ctx); err != nil {
		t.Errorf("Drain = %v", err)
	}
}

func TestNullReceives(t *testing.T) {
	bustest.NoLeaks(t)
	for _, bus := range []string{"intx", "msi", "msix"} {
		nd := nullNIC(t, map[string]string{"bus": bus}, "rx=100")
		q := nd.Rx(0)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		bufs := make([]*dma.Buf, 32)
		for got := 0; got < 5000; {
			if err := q.Wait(ctx); err != nil {
				t.Fatalf("%s: Wait = %v", bus, err)
			}
			n := q.Burst(bufs)
			for _, b := range bufs[:n] {
				if want := byte(99); len(b.Data) != 100 || b.Data[99] != want || b.Data[12] != 0x88 {
					t.Fatalf("%s: frame %d = % x, want 100 bytes, the last %#x", bus, got, b.Data, want)
				}
				b.Free()
				got++
			}
		}
		cancel()
		if nd.Stats().RxPackets < 5000 {
			t.Errorf("%s: RxPackets = %d, want at least 5000", bus, nd.Stats().RxPackets)
		}
	}
}

func BenchmarkNull(b *testing.B) {
	for _, burst := range []int{1, 32} {
		b.Run(fmt.Sprintf("tx/burst=%d", burst), func(b *testing.B) {
			q := nullNIC(b, nil).Tx(0)
			pool, err := q.NewPool(256)
			if err != nil {
				b.Fatal(err)
			}
			defer pool.Close()
			bufs := make([]*dma.Buf, burst)
			b.ReportAllocs()
			b.ResetTimer()
			for n := 0; n < b.N; n += burst {
				for i := range bufs {
					bufs[i] = pool.Get()
					bufs[i].Data = bufs[i].Mem[:60]
				}
				if q.Burst(bufs) != burst {
					b.Fatal("a short burst")
				}
				q.Reap()
			}
		})
		b.Run(fmt.Sprintf("rx/burst=%d", burst), func(b *testing.B) {
			q := nullNIC(b, nil, "rx=60").Rx(0)
			bufs := make([]*dma.Buf, burst)
			b.ReportAllocs()
			b.ResetTimer()
			for n := 0; n < b.N; {
				k := q.Burst(bufs)
				for _, x := range bufs[:k] {
					x.Free()
				}
				n += k
			}
		})
	}
}
