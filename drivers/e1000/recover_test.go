package e1000_test

import (
	"context"
	"errors"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/sim"
	"github.com/ring3dev/ring3/netdev"
)

// recoverable is what takes part in recovery and suspend.
type recoverable interface {
	netdev.Device
	bus.ErrorHandler
	bus.PowerHandler
}

// keepState is bus.SaveState, and config space and the MSI-X table for a backend that keeps nothing.
func keepState(t testing.TB, dev bus.Device) (restore func()) {
	t.Helper()
	saved := bus.SaveState(dev)
	c := dev.Config()
	var words [64]uint32
	for i := range words {
		words[i] = c.Read32(bus.Off(4 * i))
	}
	const capMSIX = 0x11
	var table bus.Region
	var begin bus.Off
	var entries []uint32
	if off, ok := pci.FindCap(c, capMSIX); ok {
		at := c.Read32(off + 4)
		var err error
		if table, err = dev.Region(int(at & 7)); err != nil {
			t.Fatal(err)
		}
		begin = bus.Off(at &^ 7)
		for i := range 4 * (int(c.Read16(off+2)&0x7ff) + 1) {
			entries = append(entries, table.Read32(begin+bus.Off(4*i)))
		}
	}
	return func() {
		t.Helper()
		if err := saved(); err != nil {
			t.Error(err)
		}
		for i, v := range words {
			if off := bus.Off(4 * i); off != pci.CfgCommand && c.Read32(off) != v {
				c.Write32(off, v)
			}
		}
		c.Write16(pci.CfgCommand, uint16(words[pci.CfgCommand/4]))
		for i, v := range entries {
			table.Write32(begin+bus.Off(4*i), v)
		}
	}
}

// sender sends numbered frames from one device to another, as fast as they are taken, as pktgen does: it waits where nothing is.
type sender struct {
	from, to netdev.Device
	sent     atomic.Uint64 // frames that the queue took
	refused  atomic.Uint64 // bursts of which it took nothing
	stop     atomic.Bool
	done     chan error
}

func startSender(from, to netdev.Device) *sender {
	s := &sender{from: from, to: to, done: make(chan error, 1)}
	go func() { s.done <- s.run() }()
	return s
}

func (s *sender) run() error {
	q := s.from.Tx(0)
	pool, err := netdev.NewTxPool(q, 128, 128)
	if err != nil {
		return err
	}
	defer pool.Close()
	var bufs []*dma.Buf
	for i := 0; !s.stop.Load(); {
		for len(bufs) < 16 {
			b := pool.Get()
			if b == nil {
				break
			}
			b.Data = b.Mem[:copy(b.Mem, frame(s.to, 0))]
			b.Data[20] = byte(i)
			bufs = append(bufs, b)
			i++
		}
		n := q.Burst(bufs)
		s.sent.Add(uint64(n))
		bufs = append(bufs[:0], bufs[n:]...)
		if n == 0 {
			s.refused.Add(1)
			select {
			case <-s.from.Done():
				s.stop.Store(true)
			case <-time.After(20 * time.Microsecond):
			}
		}
		runtime.Gosched()
	}
	dma.FreeAll(bufs)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err = q.Drain(ctx)
	if n := pool.Len() - pool.Free(); err == nil && n != 0 {
		return errors.New("transmit buffers are missing")
	}
	return err
}

// end stops it and returns how many frames were taken.
func (s *sender) end(t testing.TB) uint64 {
	t.Helper()
	s.stop.Store(true)
	if err := <-s.done; err != nil && !errors.Is(err, bus.ErrGone) && !errors.Is(err, bus.ErrClosed) {
		t.Errorf("sending from %s: %v", s.from.Info().Name, err)
	}
	return s.sent.Load()
}

// quiet waits until it can send nothing any more to a device that is stopped: two bursts were refused, the second of which began
// after that.
func (s *sender) quiet() {
	for begin := s.refused.Load(); s.refused.Load() < begin+2; {
		time.Sleep(50 * time.Microsecond)
	}
}

// traffic is two wired devices that send to each other.
type traffic struct {
	t     testing.TB
	nic   [2]recoverable
	send  [2]*sender
	sinks [2]*netdev.Sink
	stats [2]netdev.Stats
}

func startTraffic(t testing.TB, a, b pci.Instance) *traffic {
	t.Helper()
	x := &traffic{t: t, nic: [2]recoverable{a.(recoverable), b.(recoverable)}}
	if err := netdev.Wire(x.nic[0], x.nic[1]); err != nil {
		t.Fatal(err)
	}
	for i := range x.nic {
		var err error
		if x.sinks[i], err = netdev.NewSink(x.nic[i]); err != nil {
			t.Fatal(err)
		}
		x.send[i] = startSender(x.nic[i], x.nic[1-i])
	}
	return x
}

// flows waits until n more frames came at both ends.
func (x *traffic) flows(n uint64) {
	x.t.Helper()
	var want [2]uint64
	for i, s := range x.sinks {
		want[i] = s.Frames() + n
	}
	for end := time.Now().Add(20 * time.Second); x.sinks[0].Frames() < want[0] || x.sinks[1].Frames() < want[1]; time.Sleep(50 * time.Microsecond) {
		if time.Now().After(end) {
			x.t.Fatalf("no traffic: %d and %d frames, want %d and %d (%+v, %+v)", x.sinks[0].Frames(), x.sinks[1].Frames(), want[0], want[1], x.nic[0].Link(), x.nic[1].Link())
		}
	}
}

// monotonic fails where a counter of statistics has become less.
func (x *traffic) monotonic() {
	x.t.Helper()
	for i, n := range x.nic {
		was, is := x.stats[i], n.Stats()
		if is.RxPackets < was.RxPackets || is.TxPackets < was.TxPackets || is.RxBytes < was.RxBytes || is.TxBytes < was.TxBytes || is.RxDropped < was.RxDropped || is.TxDropped < was.TxDropped {
			x.t.Errorf("statistics of %s went back: %+v, then %+v", n.Info().Name, was, is)
		}
		x.stats[i] = is
	}
}

// end stops everything and returns, by sender, how many frames were taken to be sent, and how many of them were neither received
// nor counted as lost.
func (x *traffic) end() (sent [2]uint64, missing [2]int64) {
	x.t.Helper()
	for i, s := range x.send {
		sent[i] = s.end(x.t)
	}
	lost := func(i int) int64 {
		from, to := x.nic[i].Stats(), x.nic[1-i].Stats()
		return int64(sent[i] - x.sinks[1-i].Frames() - from.TxDropped - to.RxDropped)
	}
	for end := time.Now().Add(time.Second); time.Now().Before(end) && (lost(0) != 0 || lost(1) != 0); {
		time.Sleep(time.Millisecond)
	}
	x.monotonic()
	for i := range missing {
		missing[i] = lost(i)
		if err := x.sinks[i].Close(); err != nil && !errors.Is(err, bus.ErrGone) && !errors.Is(err, bus.ErrClosed) {
			x.t.Errorf("receiving: %v", err)
		}
	}
	return sent, missing
}

// TestRecovery: a device is reset 50 times in the middle of traffic both ways, after an error that froze it. Nothing leaks, what is lost
// is counted, and its settings are what they were.
func TestRecovery(t *testing.T) {
	for _, c := range []struct {
		name, model string
		options     map[string]string
	}{
		{"e1000e", "e1000e", map[string]string{"ring": "64"}},
		{"e1000e-intx", "e1000e", map[string]string{"ring": "128", "bus": "intx"}},
		{"e1000e-2queues", "e1000e", map[string]string{"ring": "64", "queues": "2", "itr": "3"}},
		{"e1000", "e1000", map[string]string{"ring": "64", "flow": "auto"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			bustest.NoLeaks(t)
			m := recoveryMachine(t, c.model)
			a, b := simBind(t, m, "eth0", c.options), simBind(t, m, "eth1", c.options)
			x := startTraffic(t, a, b)
			dev, err := m.Device("eth0")
			if err != nil {
				t.Fatal(err)
			}
			for range 50 {
				x.flows(100)
				restore := keepState(t, x.nic[0].Info().Bus)
				if v := x.nic[0].ErrorDetected(true); v != bus.NeedReset {
					t.Fatalf("ErrorDetected = %s, want need reset", v)
				}
				if l := x.nic[0].Link(); l.Up || !l.Stopped {
					t.Errorf("Link while stopped = %+v", l)
				}
				x.send[1].quiet() // what it sends to a device that is being reset nobody counts
				if err := m.Reset(t.Context(), "eth0"); err != nil {
					t.Fatal(err)
				}
				restore()
				if v := x.nic[0].SlotReset(t.Context()); v != bus.Recovered {
					t.Fatalf("SlotReset = %s: %v, %v", v, x.nic[0].Err(), dev.Err())
				}
				x.nic[0].ErrorResume()
				x.monotonic()
			}
			x.flows(100)
			if l := x.nic[0].Link(); !l.Up || l.Stopped {
				t.Errorf("Link = %+v, want up", l)
			}
			sent, missing := x.end()
			for i := range sent {
				if missing[i] != 0 {
					t.Errorf("of %d frames from %s %d were neither received nor counted as lost: %+v, %+v", sent[i], x.nic[i].Info().Name, missing[i], x.nic[i].Stats(), x.nic[1-i].Stats())
				}
				t.Logf("%s: sent %d, dropped %d, and received %d", x.nic[i].Info().Name, sent[i], x.nic[i].Stats().TxDropped, x.nic[i].Stats().RxDropped)
			}
		})
	}
}

// recoveryMachine is two wired devices on the Eager clock, which touch no memory but their own.
func recoveryMachine(t testing.TB, model string) *sim.Machine {
	t.Helper()
	m := eagerMachine(t, model)
	t.Cleanup(func() {
		if n, err := m.StrayDMA(); n != 0 {
			t.Errorf("%d times stray DMA, the first: %v", n, err)
		}
	})
	return m
}

// eagerMachine is one whose devices may be made to lie.
func eagerMachine(t testing.TB, model string) *sim.Machine {
	t.Helper()
	m, err := sim.Start(context.Background(), sim.Config{
		Devices: []sim.DeviceSpec{{Name: "eth0", Model: model}, {Name: "eth1", Model: model}},
		Wires:   [][2]string{{"eth0", "eth1"}}, Clock: sim.Eager,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Errorf("Machine.Close = %v", err)
		}
	})
	return m
}

// TestSuspend: 20 times in the middle of traffic, with the device's power lost in between.
func TestSuspend(t *testing.T) {
	bustest.NoLeaks(t)
	m := recoveryMachine(t, "e1000e")
	x := startTraffic(t, simBind(t, m, "eth0", map[string]string{"ring": "64"}), simBind(t, m, "eth1", map[string]string{"ring": "64"}))
	for i := range 20 {
		x.flows(100)
		restore := keepState(t, x.nic[0].Info().Bus)
		for range 2 {
			if err := x.nic[0].Suspend(t.Context()); err != nil {
				t.Fatalf("Suspend = %v", err)
			}
		}
		if err := x.nic[0].(netdev.MTUSetter).SetMTU(t.Context(), 4000); !errors.Is(err, bus.ErrBusy) {
			t.Errorf("SetMTU while suspended = %v, want %v", err, bus.ErrBusy)
		}
		if i%2 == 0 { // an error comes on top
			x.nic[0].ErrorDetected(true)
			if err := m.Reset(t.Context(), "eth0"); err != nil {
				t.Fatal(err)
			}
			restore()
			if v := x.nic[0].SlotReset(t.Context()); v != bus.Recovered {
				t.Errorf("SlotReset of a suspended device = %s", v)
			}
			x.nic[0].ErrorResume()
			if l := x.nic[0].Link(); !l.Stopped {
				t.Errorf("Link of a suspended device after recovery = %+v", l)
			}
		}
		if err := m.Reset(t.Context(), "eth0"); err != nil {
			t.Fatal(err)
		}
		restore()
		for range 2 {
			if err := x.nic[0].Resume(t.Context()); err != nil {
				t.Fatalf("Resume = %v", err)
			}
		}
		x.monotonic()
	}
	x.flows(100)
	x.end()
}

// TestRecoveryWithoutFreezing: registers can be reached, and nobody waits for the far end to stop. What it sent meanwhile is lost
// on the wire, but no credit is for good.
func TestRecoveryWithoutFreezing(t *testing.T) {
	bustest.NoLeaks(t)
	m := recoveryMachine(t, "e1000e")
	x := startTraffic(t, simBind(t, m, "eth0", map[string]string{"ring": "64"}), simBind(t, m, "eth1", map[string]string{"ring": "64"}))
	const rounds = 50
	for i := range rounds {
		x.flows(100)
		n := x.nic[i%2]
		restore := keepState(t, n.Info().Bus)
		n.ErrorDetected(i%4 < 2)
		n.ErrorDetected(true)
		if err := m.Reset(t.Context(), n.Info().Name); err != nil {
			t.Fatal(err)
		}
		restore()
		if i%3 > 0 {
			if v := n.SlotReset(t.Context()); v != bus.Recovered {
				t.Fatalf("SlotReset = %s: %v", v, n.Err())
			}
		}
		n.ErrorResume()
		n.ErrorResume()
		x.monotonic()
	}
	x.flows(1000)
	_, missing := x.end()
	for i, n := range missing {
		if n < 0 || n > rounds*64 {
			t.Errorf("from %s %d frames were lost on the wire, want 0 to %d", x.nic[i].Info().Name, n, rounds*64)
		}
	}
}
