package tap

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
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
	b       *Bridge
	h       *netlink.Handle // in the interface's namespace; nil where that cannot be looked into
	updates chan netlink.LinkUpdate
	stop    chan struct{} // ends the subscription
	index   int           // of the interface, 0 while it is not known where it is
	mute    map[string]bool

	ifMTU, devMTU int // as last seen
	carrier       bool
	mode          netdev.RxMode
	modeSet       bool
}

func newFollower(b *Bridge) *follower {
	return &follower{b: b, mute: map[string]bool{}}
}

// start gives the interface what the device has.
func (f *follower) start() error {
	b := f.b
	f.carrier = b.dev.Link().Up
	if err := b.tap.SetCarrier(f.carrier); err != nil && !errors.Is(err, unix.EINVAL) {
		return err
	}
	f.devMTU = b.dev.MTU()
	if err := f.join(); err != nil {
		if b.cfg.Up {
			return fmt.Errorf("tap %s: bringing the interface up: %w", b.tap.name, err)
		}
		f.warn("cannot follow the interface", err)
		f.setMode(netdev.RxMode{AllMulti: true})
		return nil
	}
	if f.ifMTU != f.devMTU {
		if err := f.setIfMTU(f.devMTU); err != nil {
			return err
		}
	}
	if b.cfg.Up {
		if err := f.h.LinkSetUp(f.link()); err != nil {
			return fmt.Errorf("tap %s: bringing the interface up: %w", b.tap.name, err)
		}
	}
	return nil
}

// warn logs what goes wrong, once for each reason.
func (f *follower) warn(what string, err error) {
	if s := what + ": " + err.Error(); !f.mute[s] {
		f.mute[s] = true
		f.b.log.Warn(fmt.Sprintf("tap %s: %s", f.b.tap.name, s), "device", f.b.dev.Info().Name)
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
			if f.b.dev.Err() != nil {
				_ = f.b.tap.SetCarrier(false) // nobody carries frames any more
			}
			return
		case u, ok := <-f.updates:
			switch {
			case !ok: // too many at once, for instance
				f.leave()
			case int(u.Index) != f.index || u.IfInfomsg.Family != unix.AF_UNSPEC:
			case u.Header.Type == unix.RTM_DELLINK:
				f.leave()
				if err := f.join(); err != nil {
					f.lost(err)
				}
			default:
				f.seen(u.Attrs())
			}
		case <-tick.C:
			f.look()
		}
	}
}

// lost is what an interface that is not where it was means: deleted, or moved to where it
// cannot be followed, or not arrived there yet.
func (f *follower) lost(err error) {
	if _, e := f.b.tap.now(); e != nil {
		f.b.fail(f.b.tap.errGone())
		return
	}
	var missing netlink.LinkNotFoundError
	if !errors.As(err, &missing) {
		f.warn("cannot follow the interface", err)
	}
}

// look looks at the device.
func (f *follower) look() {
	b := f.b
	if f.h == nil {
		if err := f.join(); err != nil {
			f.lost(err)
		}
	}
	if up := b.dev.Link().Up; up != f.carrier {
		f.carrier = up
		if err := b.tap.SetCarrier(up); err != nil {
			f.warn("cannot show the link", err)
		}
	}
	if err := b.tune(); err != nil {
		f.warn("cannot change offloads", err)
	}
	if mtu := b.dev.MTU(); mtu != f.devMTU {
		f.devMTU = mtu
		if f.h != nil && mtu != f.ifMTU {
			if err := f.setIfMTU(mtu); err != nil {
				f.warn("cannot follow the device", err)
			}
		}
	}
}

// join finds the interface in its namespace and subscribes to its changes.
func (f *follower) join() (err error) {
	f.leave()
	name, err := f.b.tap.now()
	if err != nil {
		return err
	}
	ns := netns.None()
	if fd, err := f.b.tap.netns(); err == nil {
		ns = netns.NsHandle(fd)
		defer ns.Close()
		if here, err := netns.Get(); err == nil {
			if ns.Equal(here) {
				_ = unix.Close(int(ns)) // nothing to enter, which takes rights
				ns = netns.None()
			}
			here.Close()
		}
	}
	defer func() {
		if err != nil {
			f.leave()
		}
	}()
	if f.h, err = netlink.NewHandleAt(ns, unix.NETLINK_ROUTE); err != nil {
		return fmt.Errorf("entering its network namespace: %w", err)
	}
	f.updates, f.stop = make(chan netlink.LinkUpdate), make(chan struct{})
	o := netlink.LinkSubscribeOptions{Namespace: &ns}
	if err = netlink.LinkSubscribeWithOptions(f.updates, f.stop, o); err != nil {
		f.updates = nil
		return fmt.Errorf("subscribing to its changes: %w", err)
	}
	link, err := f.h.LinkByName(name)
	if err != nil {
		return err
	}
	if _, ok := link.(*netlink.Tuntap); !ok {
		return netlink.LinkNotFoundError{} // another of that name; ours is under way
	}
	f.index = link.Attrs().Index
	f.seen(link.Attrs())
	return nil
}

// leave ends the subscription, and waits for its end.
func (f *follower) leave() {
	f.index = 0
	if f.stop != nil {
		close(f.stop)
		f.stop = nil
	}
	if f.updates != nil {
		for range f.updates {
		}
		f.updates = nil
	}
	if f.h != nil {
		f.h.Close()
		f.h = nil
	}
}

func (f *follower) close() { f.leave() }

// link names the interface to netlink.
func (f *follower) link() netlink.Link {
	return &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Index: f.index}}
}

func (f *follower) setIfMTU(mtu int) error {
	if err := f.h.LinkSetMTU(f.link(), mtu); err != nil {
		return fmt.Errorf("tap %s: setting the interface's MTU to the device's (sudo ip link set %s mtu %d): %w", f.b.tap.name, f.b.tap.name, mtu, err)
	}
	f.ifMTU = mtu
	return nil
}

// seen makes the device follow the interface.
func (f *follower) seen(a *netlink.LinkAttrs) {
	b := f.b
	first := f.ifMTU == 0
	if a.MTU != 0 && a.MTU != f.ifMTU {
		f.ifMTU = a.MTU
		if !first {
			f.mtuChanged(a.MTU)
		}
	}
	m := netdev.RxMode{AllMulti: true, Promisc: a.Promisc > 0 || a.RawFlags&unix.IFF_PROMISC != 0}
	if !bytes.Equal(a.HardwareAddr, b.dev.MAC()) {
		if _, ok := b.dev.(netdev.RxModer); ok {
			m.Promisc = true
		} else if err := b.tap.SetMAC(b.dev.MAC()); err != nil {
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
