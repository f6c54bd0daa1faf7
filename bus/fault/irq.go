package fault

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ring3dev/ring3/bus"
)

// vectors are what is enabled: those of the device, and those that the driver has. A
// goroutine each carries interrupts from one to the other.
type vectors struct {
	in, out []*bus.IRQ
	mute    []atomic.Bool // by vector: it delivers nothing any more
	stop    chan struct{} // closed when nothing is to be delivered any more
	once    sync.Once
	carry   sync.WaitGroup
}

// end closes the driver's vectors. Nobody waits for the goroutines, since one of them may have
// called.
func (v *vectors) end() {
	v.once.Do(func() { close(v.stop) })
	for _, q := range v.out {
		_ = q.Close()
	}
}

// EnableIRQs enables vectors of the device, and gives out others.
func (d *Device) EnableIRQs(mode bus.IRQMode, n int) ([]*bus.IRQ, error) {
	t := d.step(EnableIRQs, place{class: call, n: int(EnableIRQs)}, 0, uint64(max(n, 0)))
	if err := d.refuse(t, fmt.Sprintf("enabling %d %s vectors", n, mode)); err != nil {
		return nil, err
	}
	d.irqMu.Lock()
	defer d.irqMu.Unlock()
	in, err := d.in.EnableIRQs(mode, n)
	d.dropVectors() // replaced
	if err != nil {
		return nil, err
	}
	v := &vectors{in: in, mute: make([]atomic.Bool, len(in)), stop: make(chan struct{})}
	for _, q := range in {
		out, err := bus.NewIRQ(q.Mode(), q.Vector(), q.Unmask)
		if err != nil {
			v.end()
			return nil, errors.Join(fmt.Errorf("%s: wrapping a vector: %w", d.Address(), err), d.in.DisableIRQs())
		}
		out.SetLine(q.HWIRQ() - q.Vector())
		v.out = append(v.out, out)
	}
	d.vecMu.Lock()
	d.irqs = v
	d.vecMu.Unlock()
	if d.dead.Load() { // it died meanwhile
		v.end()
	}
	for i := range in {
		v.carry.Go(func() { d.carry(v, i) })
	}
	d.after(t, uint64(n))
	return append([]*bus.IRQ(nil), v.out...), nil
}

// DisableIRQs disables them.
func (d *Device) DisableIRQs() error {
	t := d.step(DisableIRQs, place{class: call, n: int(DisableIRQs)}, 0, 0)
	if !d.dead.Load() {
		if err := d.refuse(t, "disabling interrupts"); err != nil {
			return err
		}
	}
	d.irqMu.Lock()
	defer d.irqMu.Unlock()
	err := d.in.DisableIRQs() // a dead device's too: its descriptors are closed
	d.dropVectors()
	d.after(t, 0)
	return err
}

// dropVectors forgets what was enabled, which the device has closed, or could not. Called
// with irqMu held.
func (d *Device) dropVectors() {
	d.vecMu.Lock()
	v := d.irqs
	d.irqs = nil
	d.vecMu.Unlock()
	if v != nil {
		v.end()
		for _, q := range v.in {
			_ = q.Close()
		}
		v.carry.Wait()
	}
}

// carry delivers the interrupts of one vector until the device closes its end of it.
func (d *Device) carry(v *vectors, i int) {
	for {
		n, err := v.in[i].Wait(context.Background())
		if err != nil {
			_ = v.out[i].Close()
			return
		}
		d.deliver(v, i, n)
	}
}

// maxCoalesced bounds the signals of one delivery.
const maxCoalesced = 1024

// againAfter is the time to the second delivery of irq-again, so that it is not taken for one with
// the first; stormEvery that between those of a storm.
const (
	againAfter = time.Millisecond
	stormEvery = 50 * time.Microsecond
)

// deliver counts an interrupt and passes it on, as planned.
func (d *Device) deliver(v *vectors, i int, n uint64) {
	t := d.step(Interrupt, place{class: vector, n: i}, 0, n)
	if d.dead.Load() {
		return
	}
	d.after(t, n) // garbage stands before the driver looks
	if d.planned(t, IRQDead) != nil {
		v.mute[i].Store(true)
	}
	if d.planned(t, IRQLost) != nil || v.mute[i].Load() {
		return
	}
	if f := d.planned(t, IRQLate); f != nil && !v.sleep(time.Duration(f.arg())*time.Millisecond) {
		return
	}
	for range min(n, maxCoalesced) {
		v.out[i].Signal()
	}
	if d.planned(t, IRQAgain) != nil && v.sleep(againAfter) {
		v.out[i].Signal()
	}
	if f := d.planned(t, IRQStorm); f != nil {
		for k := 1; k < f.arg() && v.sleep(stormEvery); k++ {
			v.out[i].Signal()
		}
	}
}

// sleep says whether something may still be delivered after t.
func (v *vectors) sleep(t time.Duration) bool {
	timer := time.NewTimer(t)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-v.stop:
		return false
	}
}
