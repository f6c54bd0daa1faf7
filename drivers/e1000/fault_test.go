package e1000_test

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"net"
	"os"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/bus/fault"
	"github.com/ring3dev/ring3/bus/fault/faulttest"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/sim"
	"github.com/ring3dev/ring3/drivers/e1000"
	"github.com/ring3dev/ring3/netdev"
)

// wired is a device with what is at the far end of its wire, which works.
type wired struct {
	bus.Device
	peer netdev.Device
}

// openFault makes a device to be driven, with a peer if there is to be one.
func openFault(model string, peer bool) func(t testing.TB) bus.Device {
	return func(t testing.TB) bus.Device {
		t.Helper()
		c := sim.Config{Devices: []sim.DeviceSpec{{Name: "eth0", Model: model}}, Clock: sim.Eager}
		if peer {
			c.Devices = append(c.Devices, sim.DeviceSpec{Name: "eth1", Model: model})
			c.Wires = [][2]string{{"eth0", "eth1"}}
		}
		m, err := sim.Start(context.Background(), c)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := m.Close(); err != nil {
				t.Errorf("Machine.Close = %v", err)
			}
		})
		d := wired{}
		if peer {
			d.peer = simBind(t, m, "eth1", map[string]string{"ring": "64"}).(netdev.Device)
		}
		if d.Device, err = m.Device("eth0"); err != nil {
			t.Fatal(err)
		}
		return d
	}
}

// lifeOf brings a controller up, uses it, and closes it.
func lifeOf(options map[string]string, use func(ctx context.Context, dev bus.Device, n netdev.Device) error) func(context.Context, bus.Device) error {
	return func(ctx context.Context, dev bus.Device) error {
		inst, err := e1000.Driver.Probe(ctx, dev, pci.Env{Name: "eth0", Options: options})
		if err != nil {
			return err
		}
		n := inst.(netdev.Device)
		err = use(ctx, dev, n)
		e := inst.Close()
		for q := range n.Info().RxQueues {
			n.Rx(q).Burst(nil) // the owner's last word: the buffers' memory
		}
		for q := range n.Info().TxQueues {
			n.Tx(q).Reap()
		}
		return errors.Join(err, e)
	}
}

func nothing(context.Context, bus.Device, netdev.Device) error { return nil }

// frame is number i to a station: i says how long it is and what is in it.
func frame(to netdev.Device, i int) []byte {
	f := make([]byte, 60+i*97%1400)
	copy(f, to.MAC())
	copy(f[6:], []byte{2, 0, 0, 0, 0, 9, 0x88, 0xb5})
	for k := 14; k < len(f); k++ {
		f[k] = byte(i + k)
	}
	return f
}

// sendFrames sends frames 0 to n-1, in bursts of 3.
func sendFrames(ctx context.Context, from, to netdev.Device, n int) error {
	q := from.Tx(0)
	pool, err := q.NewPool(n)
	if err != nil {
		return err
	}
	defer pool.Close()
	defer q.Reap()
	var bufs []*dma.Buf
	for i := range n {
		b := pool.Get()
		b.Data = b.Mem[:copy(b.Mem, frame(to, i))]
		if bufs = append(bufs, b); len(bufs) < 3 && i < n-1 {
			continue
		}
		for tries := 0; len(bufs) > 0; tries++ {
			bufs = bufs[q.Burst(bufs):]
			if len(bufs) == 0 {
				break
			}
			// The ring is full, or the device dead.
			if err = q.Drain(ctx); err == nil && tries > 0 {
				<-from.Done()
				err = from.Err()
			}
			if err != nil {
				for _, b := range bufs {
					b.Free()
				}
				return err
			}
		}
	}
	return q.Drain(ctx)
}

// receiveFrames takes frames 0 to n-1 as they come, until nothing comes for a while.
func receiveFrames(ctx context.Context, d netdev.Device, n int) error {
	var bufs [8]*dma.Buf
	for got := 0; got < n; {
		k := d.Rx(0).Burst(bufs[:])
		same := true
		for _, b := range bufs[:k] {
			same = same && bytes.Equal(b.Data, frame(d, got))
			got++
			b.Free()
		}
		if !same {
			return faulttest.Wrong("a frame before number %d is not what was sent", got)
		}
		if k > 0 || got == n {
			continue
		}
		if err := d.Rx(0).Wait(ctx); err != nil {
			if ctx.Err() == nil {
				return err
			}
			select {
			case <-d.Info().Bus.Done(): // which the driver will have noticed
				<-d.Done()
				return d.Err()
			default:
				return faulttest.Wrong("%d of %d frames came", got, n)
			}
		}
	}
	return nil
}

// faultFrames is how many are sent: more than a ring holds.
const faultFrames = 70

func transmit(ctx context.Context, dev bus.Device, n netdev.Device) error {
	w, _ := faulttest.As[wired](dev)
	defer w.peer.Rx(0).Burst(nil) // its owner's last word
	faulttest.From(ctx)
	if err := sendFrames(ctx, n, w.peer, faultFrames); err != nil {
		return err
	}
	n.Stats()
	faulttest.Until(ctx)
	// The peer is well: what does not come was not sent.
	short, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	return receiveFrames(short, w.peer, faultFrames)
}

// offload sends what takes descriptors of other kinds: a checksum to be put in, and segments.
func offload(ctx context.Context, dev bus.Device, n netdev.Device) error {
	w, _ := faulttest.As[wired](dev)
	defer w.peer.Rx(0).Burst(nil)
	o := n.(netdev.Offloader)
	if err := o.SetFeatures(ctx, netdev.TxCsum|netdev.TxTSO4|netdev.TxVLAN|netdev.RxVLAN); err != nil {
		return err
	}
	faulttest.From(ctx)
	q := n.Tx(0)
	pool, err := netdev.NewTxPool(q, 4, 8192)
	if err != nil {
		return err
	}
	defer pool.Close()
	defer q.Reap()
	const header, segment, segments = 54, 1000, 4
	bufs := make([]*dma.Buf, 3)
	for i := range bufs {
		b := pool.Get()
		b.Data = b.Mem[:header+segment]
		copy(b.Data, tcp(w.peer.MAC()))
		b.Meta = dma.Meta{Flags: dma.NeedsCsum, CsumStart: 34, CsumOffset: 16}
		bufs[i] = b
	}
	bufs[1].Meta.Flags |= dma.VLAN
	bufs[1].Meta.VLAN = 5
	bufs[2].Data = bufs[2].Mem[:header+segments*segment]
	bufs[2].Meta.Flags |= dma.GSO4
	bufs[2].Meta.HdrLen, bufs[2].Meta.GSOSize = header, segment
	k := q.Burst(bufs)
	for _, b := range bufs[k:] {
		b.Free()
	}
	if k < len(bufs) {
		return n.Err()
	}
	if err := q.Drain(ctx); err != nil {
		return err
	}
	faulttest.Until(ctx)
	var got [16]*dma.Buf
	k = w.peer.Rx(0).Burst(got[:])
	for _, b := range got[:k] {
		b.Free()
	}
	if k != 2+segments {
		return faulttest.Wrong("%d frames came, want %d", k, 2+segments)
	}
	return nil
}

// tcp is an Ethernet, an IPv4 and a TCP header without checksums.
func tcp(to net.HardwareAddr) []byte {
	h := make([]byte, 54)
	copy(h, to)
	copy(h[6:], []byte{2, 0, 0, 0, 0, 9, 8, 0, 0x45, 0, 0, 0, 0, 0, 0, 0, 64, 6})
	copy(h[26:], []byte{10, 0, 0, 1, 10, 0, 0, 2, 0, 1, 0, 2})
	h[46] = 5 << 4
	return h
}

func receive(ctx context.Context, dev bus.Device, n netdev.Device) error {
	w, _ := faulttest.As[wired](dev)
	faulttest.From(ctx)
	sent := make(chan error, 1)
	go func() { sent <- sendFrames(context.Background(), w.peer, n, faultFrames) }()
	err := receiveFrames(ctx, n, faultFrames)
	if e := <-sent; e != nil {
		return faulttest.Wrong("the peer cannot send: %v", e)
	}
	return err
}

// settings changes all that can be changed in service.
func settings(ctx context.Context, dev bus.Device, n netdev.Device) error {
	faulttest.From(ctx)
	var first error
	lied := false
	try := func(what string, err error) {
		switch {
		case errors.Is(err, bus.ErrNotSupported), lied:
		case err == nil && dev.Err() != nil:
			first, lied = faulttest.Wrong("%s: done, on a dead link", what), true
		case first == nil:
			first = err
		}
	}
	if d, ok := n.(netdev.MTUSetter); ok {
		try("mtu", d.SetMTU(ctx, 1400))
		try("mtu", d.SetMTU(ctx, 4000))
	}
	if d, ok := n.(netdev.Offloader); ok {
		can, on := d.Features()
		try("features", d.SetFeatures(ctx, can))
		try("features", d.SetFeatures(ctx, 0))
		try("features", d.SetFeatures(ctx, on))
	}
	if d, ok := n.(netdev.RxModer); ok {
		try("promisc", d.SetRxMode(ctx, netdev.RxMode{Promisc: true}))
		try("multicast", d.SetRxMode(ctx, netdev.RxMode{Multicast: []net.HardwareAddr{{0x33, 0x33, 0, 0, 0, 1}}}))
	}
	if d, ok := n.(netdev.Coalescer); ok {
		try("itr", d.SetCoalesce(ctx, netdev.Coalesce{RxUsecs: 50}))
		try("itr", d.SetCoalesce(ctx, netdev.Coalesce{Adaptive: true}))
	}
	if d, ok := n.(netdev.Pauser); ok {
		try("pause", d.SetPause(ctx, netdev.Pause{Rx: true, Tx: true}))
	}
	if d, ok := n.(netdev.Ethtooler); ok {
		d.Counters()
	}
	if d, ok := n.(pci.ParamUser); ok {
		for _, p := range d.Params() {
			if v := p.Get(); p.Set != nil {
				try(p.Name, p.Set(ctx, v))
			}
		}
	}
	n.Stats()
	n.Link()
	faulttest.Until(ctx)
	return first
}

// eeprom reads it all.
func eeprom(ctx context.Context, dev bus.Device, n netdev.Device) error {
	faulttest.From(ctx)
	b, err := n.(netdev.Ethtooler).EEPROM(ctx)
	faulttest.Until(ctx)
	if err == nil && dev.Err() != nil {
		return faulttest.Wrong("%d bytes of EEPROM, on a dead link", len(b))
	}
	return err
}

// TestFaults makes every access of a controller's life fail, in every way. With -short each fails in two
// ways and some in others.
func TestFaults(t *testing.T) {
	long := os.Getenv("RING3_LONG") != ""
	o := faulttest.Options{Parallel: 32, Patience: 50 * time.Millisecond, Always: []fault.Kind{fault.Ones, fault.Gone}}
	switch {
	case testing.Short():
		o.Max = 40
	case long:
		o.Bits = 8
		o.Pairs, o.MaxPairs = true, 2000
		o.PairKinds = []fault.Kind{fault.Ones, fault.Zero, fault.LostWrite, fault.Deny, fault.IRQLost, fault.Garbage, fault.Gone}
	}
	for _, c := range []struct {
		name, model string
		id          uint16
		options     map[string]string
		full        bool // bring-up and EEPROM too: they differ enough from those of another
	}{
		{"82574L", "e1000e", 0x10d3, nil, true},
		{"82540EM", "e1000", 0x100e, nil, true},
		{"82574L-msi", "e1000e", 0x10d3, map[string]string{"bus": "msi"}, false},
		{"82574L-queues", "e1000e", 0x10d3, map[string]string{"queues": "2", "bus": "intx"}, !testing.Short()},
		{"82545EM", "e1000-82545em", 0x100f, nil, long},
	} {
		options := map[string]string{"ring": "64"}
		maps.Copy(options, c.options)
		for _, s := range []struct {
			name string
			peer bool
			use  func(context.Context, bus.Device, netdev.Device) error
		}{
			{"bringup", false, nothing}, {"eeprom", false, eeprom}, {"settings", false, settings}, {"transmit", true, transmit}, {"offload", true, offload}, {"receive", true, receive},
		} {
			if (s.name == "bringup" || s.name == "eeprom") && !c.full {
				continue
			}
			o := o
			if s.name == "eeprom" && !long {
				o.Max = 40 // its words are alike
			}
			faulttest.Every(t, faulttest.Scenario{
				Name: c.name + "-" + s.name, Driver: "e1000",
				Registers: e1000.Driver.Registers(pci.FunctionID{Vendor: 0x8086, Device: c.id}),
				Open:      openFault(c.model, s.peer), Run: lifeOf(options, s.use),
			}, o)
		}
	}
}
