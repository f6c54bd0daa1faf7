package campaign

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"sync/atomic"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/drivers/e1000"
	"github.com/ring3dev/ring3/netdev"
)

func e1000Scenarios() []*Scenario {
	var out []*Scenario
	for _, c := range []struct {
		name, model, about string
		id                 uint16
		options            map[string]string
		weight             int
	}{
		{"e1000", "e1000", "82540EM", 0x100e, nil, 3},
		{"82545em", "e1000-82545em", "82545EM", 0x100f, nil, 2},
		{"e1000e", "e1000e", "82574L", 0x10d3, nil, 3},
		{"e1000e-queues", "e1000e", "82574L with two queues and INTx", 0x10d3, map[string]string{"queues": "2", "bus": "intx"}, 2},
	} {
		fid := pci.FunctionID{Vendor: 0x8086, Device: c.id}
		s := &Scenario{
			Name: c.name, About: c.about + ": brought up, frames both ways, its counters, closed", Driver: "e1000",
			Registers: e1000.Driver.Registers(fid), Weight: c.weight, id: 0x8086<<16 | uint32(c.id), backends: allBackends,
			open: func(ctx context.Context, b Backend) (*rig, error) { return openNIC(ctx, b, c.model, c.options) },
		}
		out = append(out, s,
			&Scenario{
				Name: c.name + "-bringup", About: c.about + ": brought up and closed", Driver: "e1000",
				Registers: s.Registers, Short: true, Weight: 1, id: s.id, backends: allBackends,
				open: func(ctx context.Context, b Backend) (*rig, error) {
					r, err := openNIC(ctx, b, c.model, c.options)
					if err == nil {
						r.live = func(ctx context.Context, dev bus.Device) error { return nicLife(ctx, dev, c.options, nil) }
					}
					return r, err
				},
			})
	}
	return out
}

// openNIC makes two controllers, wired; the second has a driver.
func openNIC(ctx context.Context, b Backend, model string, options map[string]string) (_ *rig, err error) {
	m, err := start(ctx, b, [][2]string{{"eth0", "eth1"}}, part{name: "eth0", model: model}, part{name: "eth1", model: model})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.Close())
		}
	}()
	dev, err := m.Device("eth0")
	if err != nil {
		return nil, err
	}
	other, err := m.Device("eth1")
	if err != nil {
		return nil, err
	}
	inst, err := e1000.Driver.Probe(ctx, other, pci.Env{Name: "eth1", Options: map[string]string{"ring": "64"}})
	if err != nil {
		return nil, err
	}
	peer := inst.(netdev.Device)
	return &rig{
		dev: dev, reset: resetIn(m, "eth0", dev), selfReset: selfResetIn(m, "eth0"),
		live:  func(ctx context.Context, dev bus.Device) error { return nicLife(ctx, dev, options, peer) },
		close: func() error { return errors.Join(closeNIC(inst), m.Close()) },
	}, nil
}

// closeNIC takes a controller out of service, with the memory that only the queues' owner can give back.
func closeNIC(inst pci.Instance) error {
	err := inst.Close()
	n := inst.(netdev.Device)
	for q := range n.Info().RxQueues {
		n.Rx(q).Burst(nil)
	}
	for q := range n.Info().TxQueues {
		n.Tx(q).Reap()
	}
	return err
}

// nicLife is a controller's life: brought up, frames to the peer and from it, if there is one, closed.
func nicLife(ctx context.Context, dev bus.Device, options map[string]string, peer netdev.Device) error {
	o := map[string]string{"ring": "64"}
	for k, v := range options {
		o[k] = v
	}
	inst, err := e1000.Driver.Probe(ctx, dev, pci.Env{Name: "eth0", Options: o})
	if err != nil {
		return err
	}
	n := inst.(netdev.Device)
	if peer != nil {
		err = bothWays(ctx, n, peer)
	}
	for range 2 { // the driver looks whether the device is as it was set up, as it does every other second; what it finds odd, it looks at twice
		n.Stats()
	}
	n.Link()
	var bad silentError
	if n.Err() != nil && errors.As(err, &bad) {
		var data dataError
		noticed := n.Err()
		if errors.As(err, &data) {
			noticed = errors.Join(data, noticed)
		}
		err = noticed
	}
	return errors.Join(err, closeNIC(inst))
}

// frames is how many go each way; patience how long one may be on its way after something went wrong, by the real clock: what decides nothing
// where all is well.
const (
	frames   = 12
	turns    = 64/frames + 2 // exchanges after which a ring has been around, and so what was in it
	patience = 400 * time.Millisecond
)

// bothWays sends frames there and back. Those that do not come are sent again, others: if these come, some were lost, and if not the controller
// is deaf or dumb and does not know. The same is done where one came that is not what was sent.
func bothWays(ctx context.Context, n, peer netdev.Device) (err error) {
	missing := 0
	wrong := 0
	defer func() {
		if wrong > 0 {
			err = wrongData("%d frames that are not what was sent, or came twice", wrong).then(err)
		}
	}()
	hears(ctx, peer)
	hears(ctx, n)
	for _, way := range []struct {
		what     string
		from, to netdev.Device
	}{{"sent", n, peer}, {"received", peer, n}} {
		k, bad, err := exchange(ctx, n, way.from, way.to)
		wrong += bad
		if err != nil {
			return err
		}
		if k == frames && bad == 0 {
			continue
		}
		missing += frames - k
		again, cancel := awhile(ctx, 4*patience)
		for range turns { // the first may meet what is left of the fault
			k, bad, err = exchange(again, n, way.from, way.to)
			if wrong += bad; err != nil || k == frames && bad == 0 {
				break
			}
		}
		cancel()
		if err != nil {
			return err
		}
		if bad > 0 {
			return silent("of %d frames to be %s %d came, and %d others", frames, way.what, k, bad)
		}
		if k < frames {
			return silent("mute: of %d frames to be %s %d came, and nothing was said", frames, way.what, k)
		}
	}
	if missing > 0 {
		return lost("%d frames were lost", missing)
	}
	return nil
}

// hears waits until a receiver listens: QEMU's 82540EM does not for the first second, and says so by having no free descriptors.
func hears(ctx context.Context, d netdev.Device) {
	ctx, cancel := within(ctx, 3*time.Second)
	defer cancel()
	for d.Rx(0).Free() == 0 && d.Err() == nil && ctx.Err() == nil {
		time.Sleep(2 * time.Millisecond) // nothing tells of it
	}
}

// generation tells the frames of one exchange from those before, of all.
var generation atomic.Uint32

// exchange sends frames and tells how many came, whole and in order, and how many others.
func exchange(ctx context.Context, n, from, to netdev.Device) (came, bad int, err error) {
	g := generation.Add(1)
	healthy := func(e error) error { // of one end; the peer's is no error of the driver's
		if e == nil || ctx.Err() != nil && n.Err() == nil {
			return nil
		}
		if from != n && n.Err() == nil {
			return foreign("the peer: %w", e)
		}
		return e
	}
	q := from.Tx(0)
	pool, err := q.NewPool(frames)
	if err != nil {
		if from != n {
			return 0, 0, foreign("the peer: %w", err)
		}
		return 0, 0, err
	}
	defer pool.Close()
	defer q.Reap()
	bufs := make([]*dma.Buf, frames)
	for i := range bufs {
		bufs[i] = pool.Get()
		bufs[i].Data = bufs[i].Mem[:len(frame(to, g, i))]
		copy(bufs[i].Data, frame(to, g, i))
	}
	for rest := bufs; len(rest) > 0; {
		k := q.Burst(rest[:min(len(rest), 5)])
		if rest = rest[k:]; k > 0 {
			continue
		}
		// The ring is full, which it cannot be, or the device is dead.
		for _, b := range rest {
			b.Free()
		}
		if from.Err() == nil && n.Err() == nil {
			return 0, 0, nil
		}
		return 0, 0, healthy(errors.Join(from.Err(), n.Err()))
	}
	sent := make(chan error, 1)
	sendCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { sent <- q.Drain(sendCtx) }()
	came, bad, err = receive(ctx, n, to, g)
	if err != nil || came < frames {
		// What was sent and not received is not waited for longer than a moment.
		stop := after(patience/4, cancel)
		defer stop.stop()
	}
	if e := healthy(<-sent); e != nil && err == nil {
		if errors.Is(e, context.Canceled) {
			e = nil
		}
		err = e
	}
	return came, bad, err
}

// receive takes the frames of a generation as they come, and counts those that are not what was sent.
func receive(ctx context.Context, n, d netdev.Device, g uint32) (came, bad int, err error) {
	var bufs [8]*dma.Buf
	next := 0
	wait, cancel := within(ctx, 20*patience)
	defer cancel()
	for came < frames {
		k := d.Rx(0).Burst(bufs[:])
		for _, b := range bufs[:k] {
			i, ok := number(b.Data, g)
			switch {
			case !ok: // of an exchange before
			case i < next || i >= frames || !bytes.Equal(b.Data, frame(d, g, i)):
				bad++
			default:
				came, next = came+1, i+1
			}
			b.Free()
		}
		if k > 0 || came == frames {
			continue
		}
		if e := d.Rx(0).Wait(wait); e != nil {
			switch {
			case n.Err() != nil:
				return came, bad, n.Err()
			case wait.Err() != nil:
				return came, bad, nil
			case d != n:
				return came, bad, foreign("the peer: %w", e)
			}
			return came, bad, e
		}
	}
	return came, bad, nil
}

// frame is number i of a generation to a station: i says how long it is and what is in it.
func frame(to netdev.Device, g uint32, i int) []byte {
	f := make([]byte, 60+i*97%1400)
	copy(f, to.MAC())
	copy(f[6:], []byte{2, 0, 0, 0, 0, 9, 0x88, 0xb5})
	binary.BigEndian.PutUint32(f[14:], g)
	binary.BigEndian.PutUint32(f[18:], uint32(i))
	for k := 22; k < len(f); k++ {
		f[k] = byte(i + k)
	}
	return f
}

// number is which frame of the generation it is.
func number(f []byte, g uint32) (int, bool) {
	if len(f) < 22 || binary.BigEndian.Uint16(f[12:]) != 0x88b5 {
		return frames, true // none that anybody sent
	}
	return int(binary.BigEndian.Uint32(f[18:])), binary.BigEndian.Uint32(f[14:]) == g
}
