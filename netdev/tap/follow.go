package tap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/internal/crash"
	"github.com/ring3dev/ring3/netdev"
)

// lookEvery is how often the device is looked at, which does not say when its link, MTU or
// features change.
const lookEvery = 200 * time.Millisecond

// follower keeps the interface and the device alike. It belongs to one goroutine.
type follower struct {
	b      *Bridge
	wishes chan Wish
	mute   map[string]bool

	seq           uint64 // of the last wish
	ifMTU, devMTU int    // as last seen
	carrier       bool
	mode          netdev.RxMode
	modeSet       bool
}

func newFollower(b *Bridge) *follower {
	return &follower{b: b, wishes: make(chan Wish), mute: map[string]bool{}}
}

// ask asks who holds the interface.
func (b *Bridge) ask(q Request) (Reply, error) {
	r, files, err := b.lender.Call(b.ctx, q)
	for _, f := range files {
		f.Close()
	}
	return r, err
}

// open gets the interface.
func (f *follower) open(queues int) (*Tap, error) {
	dev := f.b.dev
	f.carrier, f.devMTU = dev.Link().Up, dev.MTU()
	r, files, err := f.b.lender.Call(f.b.ctx, Request{Op: opOpen, Queues: queues, MAC: dev.MAC(), MTU: f.devMTU, Carrier: f.carrier})
	if err != nil {
		return nil, err
	}
	t := &Tap{name: r.Name}
	for _, file := range files {
		q, e := readable(file)
		file.Close()
		if e != nil {
			err = e
			continue
		}
		t.queues = append(t.queues, q)
	}
	if err != nil {
		err = fmt.Errorf("tap %s: %w", r.Name, err)
	} else if len(files) != queues {
		err = fmt.Errorf("tap %s: %d queues came, want %d: %w", r.Name, len(files), queues, bus.ErrProtocol)
	}
	if err != nil {
		return nil, errors.Join(err, t.Close())
	}
	f.ifMTU = r.Wish.MTU
	if r.Again && f.ifMTU != 0 {
		f.ifMTU = f.devMTU // as if somebody had just changed it
	}
	f.seen(r.Wish)
	return t, nil
}

// warn logs what goes wrong, once for each reason.
func (f *follower) warn(what string, err error) {
	if s := what + ": " + err.Error(); !f.mute[s] {
		f.mute[s] = true
		f.b.log.Warn(fmt.Sprintf("tap %s: %s", f.b.Name(), s), "device", f.b.dev.Info().Name)
	}
}

// wait hands on what the interface wishes, until the bridge ends.
func (f *follower) wait(seen uint64) {
	defer crash.Report()
	b := f.b
	for {
		r, err := b.ask(Request{Op: opWait, Seen: seen})
		switch {
		case b.ctx.Err() != nil:
			return
		case errors.Is(err, bus.ErrGone):
			b.fail(b.tap.errGone())
			return
		case err != nil:
			b.fail(fmt.Errorf("tap %s: following the interface: %w", b.tap.name, err))
			return
		}
		seen = r.Wish.Seq
		select {
		case f.wishes <- r.Wish:
		case <-b.ctx.Done():
			return
		}
	}
}

// run follows both sides until the bridge ends.
func (f *follower) run() {
	defer crash.Report()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-f.b.ctx.Done():
			if f.b.dev.Err() != nil { // nobody carries frames any more
				_, _ = f.b.askLast(Request{Op: opCarrier})
			}
			return
		case w := <-f.wishes:
			f.seen(w)
		case <-tick.C:
			f.look()
		}
	}
}

// look looks at the device.
func (f *follower) look() {
	b := f.b
	if up := b.dev.Link().Up; up != f.carrier {
		f.carrier = up
		if _, err := b.ask(Request{Op: opCarrier, Carrier: up}); err != nil {
			f.warn("cannot show the link", err)
		}
	}
	if err := b.tune(); err != nil {
		f.warn("cannot change offloads", err)
	}
	if mtu := b.dev.MTU(); mtu != f.devMTU {
		f.devMTU = mtu
		if f.ifMTU != 0 && mtu != f.ifMTU {
			if err := f.setIfMTU(mtu); err != nil {
				f.warn("cannot follow the device", err)
			}
		}
	}
}

func (f *follower) setIfMTU(mtu int) error {
	r, err := f.b.ask(Request{Op: opMTU, MTU: mtu})
	if err == nil {
		f.ifMTU = mtu
		f.seen(r.Wish)
	}
	return err
}

// seen makes the device follow the interface. Wishes may come late, and then not at all.
func (f *follower) seen(w Wish) {
	b := f.b
	if w.Seq <= f.seq {
		return
	}
	f.seq = w.Seq
	if w.MTU != 0 && w.MTU != f.ifMTU {
		first := f.ifMTU == 0
		f.ifMTU = w.MTU
		if !first {
			f.mtuChanged(w.MTU)
		}
	}
	m := netdev.RxMode{AllMulti: true, Promisc: w.Promisc}
	if w.MAC != nil && !bytes.Equal(w.MAC, b.dev.MAC()) {
		if _, ok := b.dev.(netdev.RxModer); ok {
			m.Promisc = true
		} else if _, err := b.ask(Request{Op: opMAC, MAC: b.dev.MAC()}); err != nil {
			f.warn("cannot set the address back", err)
		} else {
			f.warn("the address was set back", fmt.Errorf("%s has no filters: %w", b.dev.Info().Name, bus.ErrNotSupported))
		}
	}
	f.setMode(m)
}

// mtuChanged makes the device's MTU the interface's, or the other way round.
func (f *follower) mtuChanged(mtu int) {
	dev := f.b.dev
	if mtu == dev.MTU() {
		return
	}
	err := fmt.Errorf("%s cannot change its own: %w", dev.Info().Name, bus.ErrNotSupported)
	if s, ok := dev.(netdev.MTUSetter); ok {
		if err = f.b.setMTU(s, mtu); err == nil {
			f.devMTU = mtu
			return
		}
	} else if mtu < dev.MTU() {
		return // the kernel sends less, and the device receives as much as before
	}
	f.warn(fmt.Sprintf("an MTU of %d is set back to %d", mtu, dev.MTU()), err)
	if err := f.setIfMTU(dev.MTU()); err != nil {
		f.warn("cannot set the MTU back", err)
	}
}

// setMTU changes the device's MTU, if the buffers are large enough for it.
func (b *Bridge) setMTU(s netdev.MTUSetter, mtu int) error {
	for _, q := range b.tx {
		if most := q.pool.BufSize() - headerLen - etherLen - 2*tagLen - 1; mtu > most {
			return fmt.Errorf("transmit buffers are for %d: %w", most, unix.EINVAL)
		}
	}
	return s.SetMTU(b.ctx, mtu)
}

// setMode sets the device's filters, where it has any and they change.
func (f *follower) setMode(m netdev.RxMode) {
	d, ok := f.b.dev.(netdev.RxModer)
	if !ok || f.modeSet && m.Promisc == f.mode.Promisc {
		return
	}
	if err := d.SetRxMode(f.b.ctx, m); err != nil {
		f.warn("cannot change the device's filters", err)
		return
	}
	f.mode, f.modeSet = m, true
}

// gone tells whether the interface was deleted.
func (b *Bridge) gone() bool {
	_, err := b.ask(Request{Op: opAlive})
	return errors.Is(err, bus.ErrGone)
}

// askWait bounds how long a bridge that has ended waits for an answer.
const askWait = 5 * time.Second

// askLast is ask of a bridge that has ended.
func (b *Bridge) askLast(q Request) (Reply, error) {
	ctx, cancel := context.WithTimeout(context.Background(), askWait)
	defer cancel()
	r, files, err := b.lender.Call(ctx, q)
	for _, f := range files {
		f.Close()
	}
	return r, err
}

// Release says, after Close, that an interface that is lent is not wanted any more. Without it, it waits for the next bridge.
func (b *Bridge) Release() error {
	if b.cfg.Lender == nil {
		return nil
	}
	_, err := b.askLast(Request{Op: opRelease})
	return err
}
