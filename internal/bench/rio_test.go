package bench

import (
	"context"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/rionet/fabric"
	"github.com/ring3dev/ring3/rionet/rapidio"
	"github.com/ring3dev/ring3/rionet/rapidio/scan"
)

// TestRIOWays sends messages by all ways, and lets them go round.
func TestRIOWays(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	memory, err := unix.MemfdCreate("rings", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range append(pair[:], memory) {
		t.Cleanup(func() { unix.Close(fd) })
	}
	if err := unix.Ftruncate(memory, ringsBytes); err != nil {
		t.Fatal(err)
	}
	a, err := openRings(memory, 0, 1)
	if err != nil {
		t.Fatal(err)
	}
	b, err := openRings(memory, 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	mails := mailPair(t, ctx)
	for _, c := range []struct {
		name     string
		from, to rioWay
	}{{"ring", a, b}, {"socket", socketWay(pair[0]), socketWay(pair[1])}, {"mail", mails[0], mails[1]}} {
		t.Run(c.name, func(t *testing.T) {
			const n = 3000
			p := make([]byte, 100)
			ended := make(chan error, 1)
			go func() {
				if err := c.to.receive(n); err != nil {
					ended <- err
					return
				}
				for range n {
					if err := c.to.receive(1); err != nil {
						ended <- err
						return
					}
					if err := c.to.send(p, 1); err != nil {
						ended <- err
						return
					}
				}
				ended <- c.to.finish(p)
			}()
			if err := c.from.send(p, n); err != nil {
				t.Fatal(err)
			}
			if err := c.from.finish(p); err != nil {
				t.Fatal(err)
			}
			p50, p99, err := ask(c.from, p, n)
			if err != nil || p50 <= 0 || p99 < p50 {
				t.Errorf("ask = %g, %g, %v, want times", p50, p99, err)
			}
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
}

// mailPair are mailboxes of two nodes of a fabric in this process, which know each other.
func mailPair(t *testing.T, ctx context.Context) (ways [2]*mailWay) {
	t.Helper()
	topology := rioTree(2)
	if err := topology.Check(); err != nil {
		t.Fatal(err)
	}
	f := fabric.New(topology, fabric.Options{})
	bus := rapidio.NewBus(rapidio.BusOptions{})
	s := scan.New(bus, scan.Options{})
	t.Cleanup(func() { bus.Close(); s.Wait() })
	var ports [2]*rapidio.Mport
	for i := range ports {
		ops, err := f.Mport(topology.Endpoints[i].Name)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ops.Close() })
		if ports[i], err = bus.AddMport(ctx, ops, rapidio.MportOptions{Host: -i, Scan: s}); err != nil {
			t.Fatal(err)
		}
		if ways[i], err = openMail(ctx, ports[i]); err != nil {
			t.Fatal(err)
		}
	}
	if err := bus.Scan(ctx, -1); err != nil {
		t.Fatal(err)
	}
	for i := range ways {
		id, err := ports[1-i].DestID(ctx)
		if err != nil {
			t.Fatal(err)
		}
		ways[i].to = id
	}
	return ways
}

func TestRIOEnumerate(t *testing.T) {
	for _, n := range []int{1, 10, 40} {
		if x, err := enumerateOnce(t.Context(), n); err != nil || x[0] <= 0 {
			t.Errorf("enumerateOnce(%d) = %v, %v, want a time", n, x, err)
		}
	}
}

func TestRIOWanted(t *testing.T) {
	for _, c := range []struct {
		way, limit string
		size       int
		want       float64
	}{{"fabric", "socket", 64, 2}, {"direct", "ring", 4096, 0.8}, {"direct", "ring", 64, 0}, {"socket", "", 64, 0}} {
		if got := rioWanted(c.way, c.limit, c.size); got != c.want {
			t.Errorf("rioWanted(%q, %q, %d) = %g, want %g", c.way, c.limit, c.size, got, c.want)
		}
	}
}
