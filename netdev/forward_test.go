package netdev_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/sim"
	"github.com/ring3dev/ring3/drivers/e1000"
	"github.com/ring3dev/ring3/netdev"
)

// chain is eth0 wired to eth1 and eth2 to eth3, with their driver.
type chain struct {
	t     *testing.T
	m     *sim.Machine
	nets  []netdev.Device
	insts []pci.Instance
}

func newChain(t *testing.T, options map[string]string, lossy bool) *chain {
	t.Helper()
	c := &chain{t: t}
	spec := sim.Config{Wires: [][2]string{{"eth0", "eth1"}, {"eth2", "eth3"}}}
	for i := range 4 {
		spec.Devices = append(spec.Devices, sim.DeviceSpec{Name: fmt.Sprintf("eth%d", i), Model: "e1000e"})
	}
	var err error
	if c.m, err = sim.Start(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	for _, d := range spec.Devices {
		dev, err := c.m.Device(d.Name)
		if err != nil {
			t.Fatal(err)
		}
		r := pci.Bind(context.Background(), dev, pci.Env{Name: d.Name, Options: options}, []*pci.Driver{e1000.Driver})
		if r.Outcome != pci.Bound {
			t.Fatal(r.Err)
		}
		c.insts = append(c.insts, r.Instance)
		c.nets = append(c.nets, r.Instance.(netdev.Device))
	}
	for i := 0; i < 4 && !lossy; i += 2 {
		if err := netdev.Wire(c.nets[i], c.nets[i+1]); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// close takes all down; what was left behind is an error.
func (c *chain) close() {
	c.t.Helper()
	for _, i := range c.insts {
		if err := i.Close(); err != nil && !errors.Is(err, bus.ErrGone) {
			c.t.Error(err)
		}
	}
	if err := c.m.Close(); err != nil {
		c.t.Error(err)
	}
	if n, err := c.m.StrayDMA(); n != 0 {
		c.t.Error(err)
	}
}

// send sends n frames of a size, in bursts, each with its number.
func send(t *testing.T, d netdev.Device, n, size int) {
	t.Helper()
	q := d.Tx(0)
	pool, err := netdev.NewTxPool(q, 256, size)
	if err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(20 * time.Second)
	for i := 0; i < n; {
		var burst []*dma.Buf
		for len(burst) < 32 && i+len(burst) < n {
			b := pool.Get()
			if b == nil {
				break
			}
			b.Data = b.Mem[:size]
			clear(b.Data)
			copy(b.Data, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 0x88, 0xb5})
			copy(b.Data[14:], fmt.Sprintf("%08d", i+len(burst)))
			burst = append(burst, b)
		}
		k := q.Burst(burst)
		dma.FreeAll(burst[k:])
		i += k
		if q.Reap(); k == 0 {
			if time.Now().After(deadline) {
				t.Fatalf("sent %d of %d frames", i, n)
			}
			time.Sleep(20 * time.Microsecond)
		}
	}
	if err := q.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	pool.Close()
}

// await waits until a count is reached.
func await(t *testing.T, what string, want uint64, have func() uint64) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); have() != want; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: %d, want %d", what, have(), want)
		}
	}
}

// Frames go through a forwarder in order, unchanged and none lost, whatever their size.
func TestForward(t *testing.T) {
	for _, options := range []map[string]string{{"ring": "64"}, {"ring": "1024"}, {"queues": "2"}, {"mtu": "9000", "ring": "256"}} {
		c := newChain(t, options, false)
		f, err := netdev.NewForwarder(c.nets[1], c.nets[2], nil)
		if err != nil {
			t.Fatal(err)
		}
		s, err := netdev.NewSink(c.nets[3])
		if err != nil {
			t.Fatal(err)
		}
		var watched atomic.Uint64
		f.Watch(func(frames []*dma.Buf) { watched.Add(uint64(len(frames))) })
		var last []byte
		n, size := 0, 0
		s.SetTap(func(b []byte) {
			if want := fmt.Sprintf("%08d", n); len(b) != size || string(b[14:22]) != want {
				t.Errorf("%v: frame %d of %d bytes has %q, want %d", options, n, len(b), b[14:22], size)
			}
			last = append(last[:0], b...)
			n++
		})
		total := uint64(0)
		for _, size = range []int{60, 127, 128, 129, 1514, c.nets[0].MTU() + 14} {
			n = 0
			send(t, c.nets[0], 3000, size)
			total += 3000
			await(t, "frames", total, s.Frames)
			if !bytes.Equal(last[22:], make([]byte, size-22)) {
				t.Errorf("%v: a frame of %d bytes has changed", options, size)
			}
		}
		await(t, "frames that the forwarder counted", total, func() uint64 { return f.Stats().Frames }) // which it does after they were sent
		if st := f.Stats(); st.Frames != total || st.Dropped != 0 || st.Bytes != s.Bytes() || watched.Load() != total {
			t.Errorf("%v: %+v, %d watched, want %d frames of %d bytes", options, st, watched.Load(), total, s.Bytes())
		}
		if err := errors.Join(f.Close(), f.Close(), s.Close()); err != nil {
			t.Error(err)
		}
		c.close()
	}
}

// What the other device cannot send is dropped and counted, and nothing stops.
func TestForwardDrops(t *testing.T) {
	c := newChain(t, nil, false)
	defer c.close()
	f, err := netdev.NewForwarder(c.nets[1], c.nets[2], nil)
	if err != nil {
		t.Fatal(err)
	}
	send(t, c.nets[0], 100, 60)
	await(t, "frames", 100, func() uint64 { return f.Stats().Frames })
	if err := c.m.SetLink("eth2", false); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); c.nets[2].Link().Up; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the link does not go down")
		}
	}
	send(t, c.nets[0], 3000, 60)
	await(t, "frames of all kinds", 3100, func() uint64 { st := f.Stats(); return st.Frames + st.Dropped })
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

// A device that goes away ends its forwarder, which says why, and gives its memory back.
func TestForwardGone(t *testing.T) {
	for _, gone := range []string{"eth1", "eth2"} {
		c := newChain(t, nil, true)
		f, err := netdev.NewForwarder(c.nets[1], c.nets[2], nil)
		if err != nil {
			t.Fatal(err)
		}
		send(t, c.nets[0], 500, 60)
		await(t, "frames", 500, func() uint64 { st := f.Stats(); return st.Frames + st.Dropped })
		if err := c.m.Unplug(gone); err != nil {
			t.Fatal(err)
		}
		if gone == "eth1" {
			<-f.Done()
		} else {
			send(t, c.nets[0], 500, 60)
			await(t, "frames of all kinds", 1000, func() uint64 { st := f.Stats(); return st.Frames + st.Dropped })
		}
		if err := f.Close(); (err != nil) != (gone == "eth1") || err != nil && !errors.Is(err, bus.ErrGone) {
			t.Errorf("%s went: Close = %v", gone, err)
		}
		for _, i := range c.insts {
			_ = i.Close()
		}
		_ = f.Close()
		c.close()
	}
}

// A frame that is longer than the other device's MTU allows is dropped and counted, and those around it are not.
func TestForwardTooLong(t *testing.T) {
	c := newChain(t, map[string]string{"mtu": "1800"}, false)
	defer c.close()
	u, ok := c.nets[2].(netdev.MTUSetter)
	if !ok {
		t.Fatal("the MTU cannot be set")
	}
	if err := u.SetMTU(t.Context(), 1500); err != nil {
		t.Fatal(err)
	}
	f, err := netdev.NewForwarder(c.nets[1], c.nets[2], nil)
	if err != nil {
		t.Fatal(err)
	}
	for i, size := range []int{1514, 1515, 1518, 1519, 1814, 60} {
		send(t, c.nets[0], 1, size)
		await(t, "frames", uint64(i+1), func() uint64 { st := f.Stats(); return st.Frames + st.Dropped })
	}
	if st := f.Stats(); st.Frames != 2 || st.Bytes != 1514+60 || st.Dropped != 4 {
		t.Errorf("%+v, want 2 frames of 1574 bytes, and 4 dropped", st)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

func TestForwardRefuses(t *testing.T) {
	c := newChain(t, nil, true)
	defer c.close()
	if _, err := netdev.NewForwarder(c.nets[1], c.nets[1], nil); !errors.Is(err, bus.ErrNotSupported) {
		t.Errorf("a device to itself: %v", err)
	}
}
