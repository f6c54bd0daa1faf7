package tap

import (
	"context"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/netdev"
	"github.com/ring3dev/ring3/pktgen"
	"github.com/ring3dev/ring3/procfs"
)

// TestShared has pktgen send by a device as fast as it can while the kernel's stack uses it: datagrams come and go, TCP carries its bytes, and
// pktgen loses nothing; both end at once.
func TestShared(t *testing.T) {
	needTap(t)
	bustest.NoLeaks(t)
	x0, x1 := nics(t, "e1000e")
	share, err := netdev.NewShare(x0)
	if err != nil {
		t.Fatal(err)
	}
	stack, gen := share.Client("tap", 1), share.Client("pktgen", 1)
	_, b1, there := twoSides(t, x0, x1, Config{Tx: stack.Tx, Drop: pktgen.Generated})
	e, err := pktgen.New(pktgen.Config{CPUs: []int{0}, Lookup: func(name string) (netdev.Device, error) {
		if name == "x0" {
			return gen.Device(), nil
		}
		return nil, unix.ENODEV
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	rx, err := e.AddRx("x1")
	if err != nil {
		t.Fatal(err)
	}
	b1.Watch(rx.Take)
	write := func(name, text string) {
		t.Helper()
		if _, err := e.Dir().Lookup(name).(*procfs.File).Write(context.Background(), []byte(text)); err != nil {
			t.Fatalf("%s > %s: %v", text, name, err)
		}
	}
	write("kpktgend_0", "add_device x0")
	for _, c := range []string{"count 0", "burst 64", "pkt_size 1400", "dst_mac " + x1.MAC().String(), "src_min 10.9.0.1", "dst_min 10.9.0.2"} {
		write("x0", c)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = e.Dir().Lookup("pgctrl").(*procfs.File).Write(context.Background(), []byte("start"))
	}()
	sends := func(more uint64) {
		t.Helper()
		from := e.Figures()[0].Packets
		waitFor(t, "pktgen's packets", func() bool { return e.Figures()[0].Packets >= from+more })
	}
	sends(1000)
	echo(t, there, "10.1.0.2:0", 1, 100, 1400)
	transfer(t, there, "10.1.0.2:0", 1<<20)
	sends(1000)
	write("pgctrl", "stop")
	<-done
	sent := e.Figures()[0].Packets
	for end := time.Now().Add(20 * time.Second); rx.Figures().Received < sent && time.Now().Before(end); time.Sleep(time.Millisecond) {
	}
	if f := rx.Figures(); f.Received != sent || f.Lost+f.Duplicated != 0 {
		t.Errorf("pktgen sent %d packets: %+v", sent, f)
	}
	fs := share.Figures()
	if len(fs) != 2 || fs[1].Frames != sent || fs[0].Bytes < 1<<20 {
		t.Errorf("figures %+v, want two clients, the first with a MiB and more, the other with %d frames", fs, sent)
	}
	gen.Close()
	echo(t, there, "10.1.0.2:0", 100)
}
