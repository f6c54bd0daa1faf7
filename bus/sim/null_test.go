package sim_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
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
		for q := range nd.Info().RxQueues {
			nd.Rx(q).Burst(nil) // its owner's last word: gives the memory back
		}
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
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := q.Drain(ctx); err != nil {
		t.Errorf("Drain = %v", err)
	}
}

func TestNullReceives(t *testing.T) {
	bustest.NoLeaks(t)
	for _, opts := range []map[string]string{{"bus": "intx"}, {"bus": "msi"}, {"bus": "msix"}, {"queues": "2"}} {
		nd := nullNIC(t, opts, "rx=100")
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		bufs := make([]*dma.Buf, 32)
		queues := nd.Info().RxQueues
		for q := range queues {
			for got := 0; got < 5000; {
				if err := nd.Rx(q).Wait(ctx); err != nil {
					t.Fatalf("%v: Wait of queue %d = %v", opts, q, err)
				}
				n := nd.Rx(q).Burst(bufs)
				for _, b := range bufs[:n] {
					if want := byte(99); len(b.Data) != 100 || b.Data[99] != want || b.Data[12] != 0x88 {
						t.Fatalf("%v: frame %d = % x, want 100 bytes, the last %#x", opts, got, b.Data, want)
					}
					b.Free()
					got++
				}
			}
		}
		cancel()
		if got, want := nd.Stats().RxPackets, uint64(5000*queues); got < want {
			t.Errorf("%v: RxPackets = %d, want at least %d", opts, got, want)
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

// The model's own part: a doorbell for 32 descriptors, the last of which asks for a report.
func BenchmarkNullDoorbell(b *testing.B) {
	m, err := sim.Start(context.Background(), sim.Config{Devices: []sim.DeviceSpec{{Name: "eth0", Model: "null", Props: []string{"rx=60"}}}})
	if err != nil {
		b.Fatal(err)
	}
	defer m.Close()
	dev, err := m.Device("eth0")
	if err != nil {
		b.Fatal(err)
	}
	r, err := dev.Region(0)
	if err != nil {
		b.Fatal(err)
	}
	const n, burst = 1024, 32
	mem, err := dev.DMA().Alloc(bus.DMARequest{Size: 16*n + 4096})
	if err != nil {
		b.Fatal(err)
	}
	defer mem.Free()
	pci.SetCommand(dev.Config(), pci.CmdMaster, 0)
	for _, q := range []struct {
		name          string
		regs, control bus.Off
	}{{"tx", 0x3800, 0x400}, {"rx", 0x2800, 0x100}} {
		b.Run(q.name, func(b *testing.B) {
			for i := range n {
				cmd := uint64(1<<24 | 60)
				if q.name == "tx" && i%burst == burst-1 {
					cmd |= 1 << 27
				}
				binary.LittleEndian.PutUint64(mem.Bytes[16*i:], uint64(mem.IOVA)+16*n)
				binary.LittleEndian.PutUint64(mem.Bytes[16*i+8:], cmd)
			}
			r.Write32(q.regs, uint32(mem.IOVA))
			r.Write32(q.regs+4, 0)
			r.Write32(q.regs+8, 16*n)
			r.Write32(q.regs+0x10, 0)
			r.Write32(q.regs+0x18, 0)
			r.Write32(q.control, 2)
			b.ReportAllocs()
			for tail := uint32(0); b.Loop(); {
				tail = (tail + burst) % n
				r.Write32(q.regs+0x18, tail)
			}
		})
	}
}
