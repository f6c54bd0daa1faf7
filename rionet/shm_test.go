package rionet

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/ivshmem"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/internal/netspace"
	"github.com/ring3dev/ring3/rionet/fabric"
	"github.com/ring3dev/ring3/rionet/fabricd"
	"github.com/ring3dev/ring3/rionet/mport"
	"github.com/ring3dev/ring3/rionet/shm"
)

// shared are two devices that meet over shared memory, through the daemon that the fabric is, in this process too. The ports are as two
// processes have them. With trust, messages go directly.
func shared(t testing.TB, trust bool) (devs []*Device) {
	t.Helper()
	yaml := star(2, "")
	if trust {
		yaml += "  - {ends: [pe0, pe1], trust: true}\n"
	}
	topo, err := fabric.Parse("test.yaml", []byte(yaml))
	if err != nil {
		t.Fatal(err)
	}
	log := bustest.Log(t)
	path := filepath.Join(t.TempDir(), "fabric.sock")
	s, err := fabricd.Open(fabricd.Config{Topology: topo, Socket: path, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close of the daemon = %v", err)
		}
	})
	w := &world{t: t}
	var nodes []*node
	for i := range 2 {
		nodes = append(nodes, w.joined(path, i))
	}
	nodes[0].route(2)
	nodes[0].find(2)
	nodes[1].find(1)
	for _, n := range nodes {
		devs = append(devs, n.open(Options{}))
	}
	allKnow(t, devs, "active exact")
	return devs
}

// joined is node over a daemon's shared memory.
func (w *world) joined(path string, i int) *node {
	w.t.Helper()
	conn, _, err := fabricd.Join(context.Background(), path, fabricd.Request{Node: fmt.Sprintf("pe%d", i)})
	if err != nil {
		w.t.Fatal(err)
	}
	dev, err := ivshmem.Open(context.Background(), conn, ivshmem.Options{Vectors: shm.NumVectors, Backend: "fabric"})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = dev.Close() })
	r := pci.Bind(context.Background(), dev, pci.Env{Name: fmt.Sprintf("pe%d", i), Log: bustest.Log(w.t)}, []*pci.Driver{mport.Driver})
	if r.Outcome != pci.Bound {
		w.t.Fatalf("Bind = %v: %v", r.Outcome, r.Err)
	}
	return w.on(i, r.Instance.(*mport.Port))
}

// Frames over shared memory, in pieces and all at once, through the fabric and directly; then two kernels' network stacks.
func TestShared(t *testing.T) {
	for _, trust := range []bool{false, true} {
		t.Run(fmt.Sprintf("trust=%t", trust), func(t *testing.T) {
			bustest.NoLeaks(t)
			devs := shared(t, trust)
			s := newSender(t, devs[0], 256)
			total := 20000
			if testing.Short() {
				total = 2000
			}
			sent := make(chan struct{})
			go func() {
				defer close(sent)
				for i := range total {
					s.send(addr(2), i, 14+i%4083)
				}
				s.drain()
			}()
			var n uint64
			eventually(t, "all that was sent is received", func() bool {
				for f := devs[1].takeSome(); len(f) > 0; f = devs[1].takeSome() {
					for _, b := range f {
						n++
						b.Free()
					}
				}
				select {
				case <-sent:
					return n == devs[0].Stats().TxPackets
				default:
					return false
				}
			})
			silence(t, devs[1])
			a, b := devs[0].Stats(), devs[1].Stats()
			// On a machine that is busy enough the receiver may sleep too long, so that some are dropped.
			if a.TxPackets+a.TxDropped != uint64(total) || a.TxErrors != 0 || b.RxPackets != a.TxPackets || b.RxBytes != a.TxBytes {
				t.Errorf("sent %+v\nreceived %+v\nwant %d packets, the same on both sides", a, b, total)
			}
			sp := spaces(t, devs)
			echo(t, sp[0], sp[1], "10.9.0.2:0", 0, 1000, 4054, 4055, 20000)
			echo(t, sp[1], sp[0], "[fd00:9::1]:0", 0, 1000, 4034, 4035, 20000)
			size := int64(256 << 20)
			if testing.Short() {
				size = 8 << 20
			}
			took, err := netspace.Send(sp[0], sp[1], "10.9.0.2:0", size)
			if err != nil {
				t.Error(err)
			}
			t.Logf("TCP: %d MiB in %s, %.2f Gb/s", size>>20, took, float64(size)*8/float64(took.Nanoseconds()))
			for _, d := range devs {
				t.Logf("%s: %+v\n%v", d.name, d.Stats(), d.Counters())
			}
		})
	}
}
