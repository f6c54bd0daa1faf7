package rionet

import (
	"errors"
	"fmt"
	"regexp"
	"sync/atomic"
	"testing"

	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/netdev"
	"github.com/ring3dev/ring3/netdev/netdevtest"
	"github.com/ring3dev/ring3/pktgen"
	"github.com/ring3dev/ring3/procfs"

	"golang.org/x/sys/unix"
)

// pair is two nodes that are linked to each other, with devices that know each other.
func pair(t testing.TB, o Options) (a, b *Device, end func() error) {
	t.Helper()
	w := newWorld(t, direct)
	n, m := w.node(0), w.node(1)
	n.find(m.id)
	m.find(n.id)
	a, b = n.open(o), m.open(o)
	knows(t, a, m.id, "active exact")
	knows(t, b, n.id, "active exact")
	return a, b, func() error {
		err := errors.Join(a.Close(), b.Close())
		n.kill()
		m.kill()
		return err
	}
}

func TestConformance(t *testing.T) {
	rings := []int{64, DefaultRing, 1024}
	if testing.Short() {
		rings = rings[1:2]
	}
	netdevtest.All(t, rings, func(t *testing.T, ring int) netdevtest.Pair {
		a, b, end := pair(t, Options{Ring: ring})
		return netdevtest.Pair{A: a, B: b, CloseA: a.Close, Close: end, NoBus: true, Unpadded: true}
	})
}

// pktgen sends what it was told to, says so, and all of it arrives.
func TestPktgen(t *testing.T) {
	bustest.NoLeaks(t)
	a, b, _ := pair(t, Options{})
	if err := netdev.Wire(a, b); err != nil {
		t.Fatal(err)
	}
	e, err := pktgen.New(pktgen.Config{CPUs: []int{0}, Log: bustest.Log(t), Lookup: func(name string) (netdev.Device, error) {
		if name == "rio0" {
			return a, nil
		}
		return nil, unix.ENODEV
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	sink, err := netdev.NewSink(b)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sink.Close(); err != nil {
			t.Errorf("Sink.Close = %v", err)
		}
	})
	var wrong atomic.Uint64
	sink.Watch(func(frames []*dma.Buf) {
		for _, f := range frames {
			if len(f.Data) != 200 {
				wrong.Add(1)
			}
		}
	})
	write := func(name string, commands ...string) {
		t.Helper()
		for _, c := range commands {
			if _, err := file(t, e, name).Write(t.Context(), []byte(c+"\n")); err != nil {
				t.Fatalf("%s > %s: %v", c, name, err)
			}
		}
	}
	const count = 50000
	write("kpktgend_0", "add_device rio0")
	write("rio0", fmt.Sprintf("count %d", count), "pkt_size 200", "delay 0", "burst 32", "dst_mac "+b.MAC().String())
	write("pgctrl", "start")
	text, err := file(t, e, "rio0").ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	if m := regexp.MustCompile(`pkts-sofar: ([0-9]+)`).FindSubmatch(text); m == nil || string(m[1]) != fmt.Sprint(count) {
		t.Errorf("pkts-sofar is not %d in\n%s", count, text)
	}
	eventually(t, "all frames arrive", func() bool { return sink.Frames() >= count })
	if n, bytes := sink.Frames(), sink.Bytes(); n != count || bytes != 200*count || wrong.Load() != 0 {
		t.Errorf("%d frames with %d bytes received, %d of them not of 200 bytes, want %d, %d, 0", n, bytes, wrong.Load(), count, 200*count)
	}
	if s := a.Stats(); s.TxPackets != count || s.TxErrors != 0 || s.TxDropped != 0 {
		t.Errorf("Stats of the sender = %+v, want %d packets and nothing else", s, count)
	}
}

// file is one of the engine's.
func file(t testing.TB, e *pktgen.Engine, name string) *procfs.File {
	t.Helper()
	n, err := e.Dir().Walk(name)
	f, ok := n.(*procfs.File)
	if err != nil || !ok {
		t.Fatalf("no file %s: %v", name, err)
	}
	return f
}
