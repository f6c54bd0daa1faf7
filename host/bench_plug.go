package host

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/internal/klog"
	"github.com/ring3dev/ring3/internal/uevent"
)

// PlugTimes are how long after a network device was put into the slot of a port something was the case.
type PlugTimes struct {
	Noticed    time.Duration // hot-plug said so: the interrupt came
	Link       time.Duration // the slot has power, and Link Status says that the link is up
	Enumerated time.Duration // the device has its resources, and is known (the event add)
	Driver     time.Duration // its driver is up (the event bind)
	Frame      time.Duration // it has sent a frame, and says so
}

// plugLook is between two looks whether the link is up, of which nobody tells.
const plugLook = 200 * time.Microsecond

// plugFrame brings up a root port of a backend as `ring3 up` does, puts an e1000e into its slot, sends a frame from that, and takes
// all down again.
func (a *app) plugFrame(ctx context.Context, backend string) (t PlugTimes, err error) {
	plan, err := ParsePlan([]string{"rp0=" + backend + ":pcie-root-port"}, nil, nil)
	if err != nil {
		return t, err
	}
	log := klog.New(klog.Options{})
	s, err := NewSystem(ctx, Config{Plan: plan, Drivers: a.Drivers, Services: a.Services, Log: log.Logger()})
	if err != nil {
		return t, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	said, seen := lastOf(log, s.events)
	start, began := time.Now(), monotonic()
	if _, err := s.plug(ctx, plugArgs{Device: "eth0=" + backend + ":e1000e,under=rp0", NoWait: true}); err != nil {
		return t, err
	}
	if t.Link, err = s.linkUp(ctx, "rp0", start); err != nil {
		return t, err
	}
	// Messages and events have the time at which they were made.
	if err := s.awaitBound(ctx, seen, func(e uevent.Event) { t.event(e, began) }); err != nil {
		return t, err
	}
	b := s.boundOf("eth0")
	if b == nil || b.net == nil {
		return t, fmt.Errorf("bench: plug: what was bound is no network device any more: %w", bus.ErrGone)
	}
	if err := sendOne(ctx, b); err != nil {
		return t, err
	}
	t.Frame = time.Since(start)
	records, _ := log.Read(said)
	for _, r := range records {
		if t.Noticed == 0 && strings.Contains(r.Text, "pciehp: Slot(") {
			t.Noticed = time.Duration(r.Time - began)
		}
	}
	return t, nil
}

// lastOf are the numbers of the last message and the last event.
func lastOf(log *klog.Ring, events *uevent.Ring) (said, seen uint64) {
	if r, _ := log.Read(0); len(r) > 0 {
		said = r[len(r)-1].Seq
	}
	if e, _ := events.Read(0); len(e) > 0 {
		seen = e[len(e)-1].Seq
	}
	return said, seen
}

// event takes the time of an event of a function.
func (t *PlugTimes) event(e uevent.Event, began int64) {
	switch e.Action {
	case uevent.Add:
		t.Enumerated = time.Duration(e.Time - began)
	case uevent.Bind:
		t.Driver = time.Duration(e.Time - began)
	}
}

// awaitBound waits until a function was given to a driver, and tells of its events after number seq until then.
func (s *System) awaitBound(ctx context.Context, seq uint64, tell func(uevent.Event)) error {
	ctx, cancel := context.WithTimeout(ctx, plugTime)
	defer cancel()
	bound := errors.New("bound")
	err := s.events.Follow(ctx, seq, func(events []uevent.Event, _ uint64) error {
		for _, e := range events {
			if e.Subsystem != "pci" {
				continue
			}
			if tell(e); e.Action == uevent.Bind {
				return bound
			}
		}
		return nil
	})
	if errors.Is(err, bound) {
		return nil
	}
	return fmt.Errorf("bench: plug: no driver within %s: %w", plugTime, err)
}

// linkUp waits for the link of a port, and says when it was up.
func (s *System) linkUp(ctx context.Context, port string, start time.Time) (time.Duration, error) {
	c := s.boundOf(port).dev.Config()
	e, ok := pci.FindExpress(c)
	if !ok {
		return 0, fmt.Errorf("bench: plug: %s has no PCI Express capability: %w", port, bus.ErrProtocol)
	}
	for {
		if v := c.Read16(e.At + pci.ExpLnkSta); v != 0xffff && v&pci.LnkStaActive != 0 {
			return time.Since(start), nil
		}
		switch {
		case ctx.Err() != nil:
			return 0, context.Cause(ctx)
		case time.Since(start) > plugTime:
			return 0, fmt.Errorf("bench: plug: no link within %s: %w", plugTime, bus.ErrTimeout)
		}
		time.Sleep(plugLook)
	}
}

// sendOne sends a frame, and waits until the device has.
func sendOne(ctx context.Context, b *boundDevice) error {
	q := b.net.Tx(0)
	pool, err := q.NewPool(1)
	if err != nil {
		return err
	}
	defer pool.Close()
	f := pool.Get()
	f.Data = f.Mem[:60]
	if n := q.Burst([]*dma.Buf{f}); n != 1 {
		return fmt.Errorf("bench: %s: Burst took %d frames, want 1", b.spec.Name, n)
	}
	ctx, cancel := context.WithTimeout(ctx, plugTime)
	defer cancel()
	return q.Drain(ctx)
}

// monotonic is the clock of messages and events.
func monotonic() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return ts.Nano()
}
