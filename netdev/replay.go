package netdev

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Settings are what can be set of a device, as texts and numbers that another binary, of another version, understands too. What is
// absent is nothing that the device has.
type Settings struct {
	MTU      int              `json:"mtu,omitempty"`
	Features *[]string        `json:"features,omitempty"` // that are on, by ethtool's names
	Pause    *Pause           `json:"pause,omitempty"`
	Coalesce *Coalesce        `json:"coalesce,omitempty"`
	Receive  *ReceiveSettings `json:"receive,omitempty"`
	NAPI     *PollSettings    `json:"napi,omitempty"`
}

// ReceiveSettings are an RxMode.
type ReceiveSettings struct {
	Promisc   bool     `json:"promisc,omitempty"`
	AllMulti  bool     `json:"allmulti,omitempty"`
	Multicast []string `json:"multicast,omitempty"`
}

// PollSettings are a NAPI.
type PollSettings struct {
	Weight            int   `json:"weight,omitempty"`
	DeferHardIRQs     int   `json:"napi_defer_hard_irqs,omitempty"`
	GROFlushTimeoutNs int64 `json:"gro_flush_timeout,omitempty"`
}

// SaveSettings are the settings of a device now. Its address cannot be set, nor the number of its queues and descriptors, which are options of its
// driver. Address filters that a TAP made are among them: whoever opens it again sets them anyway.
func SaveSettings(d Device) Settings {
	var s Settings
	if _, ok := d.(MTUSetter); ok {
		s.MTU = d.MTU()
	}
	if o, ok := d.(Offloader); ok {
		_, on := o.Features()
		names := []string{}
		FeatureNames(func(f Feature, name string) {
			if on&f != 0 {
				names = append(names, name)
			}
		})
		s.Features = &names
	}
	if p, ok := d.(Pauser); ok {
		v := p.Pause()
		s.Pause = &v
	}
	if c, ok := d.(Coalescer); ok {
		v := settled(c.Coalesce())
		s.Coalesce = &v
	}
	if m, ok := d.(RxModer); ok {
		v := receiveOf(m.RxMode())
		s.Receive = &v
	}
	if u, ok := d.(NAPIUser); ok {
		n := u.NAPI()
		s.NAPI = &PollSettings{Weight: n.Weight, DeferHardIRQs: n.DeferHardIRQs, GROFlushTimeoutNs: int64(n.GROFlushTimeout)}
	}
	return s
}

// settled is without what an adaptive moderation happens to be at.
func settled(c Coalesce) Coalesce {
	if c.Adaptive {
		c.RxUsecs = 0
	}
	return c
}

func receiveOf(m RxMode) ReceiveSettings {
	r := ReceiveSettings{Promisc: m.Promisc, AllMulti: m.AllMulti}
	for _, a := range m.Multicast {
		r.Multicast = append(r.Multicast, a.String())
	}
	slices.Sort(r.Multicast)
	return r
}

// RestoreSettings makes the settings of a device what they were, those that differ, in an order in which nothing undoes what was before:
// the MTU, which may begin the receiver anew, then what frames have done to them, flow control, which may take the link
// down for a moment, and what acts at once. What cannot be set is told, each with its name, and the rest is set all the same: the
// device may be of another kind now, or s of another version.
func RestoreSettings(ctx context.Context, d Device, s Settings) error {
	var errs []error
	set := func(what string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: restoring %s: %w", d.Info().Name, what, err))
		}
	}
	set("the MTU", restoreMTU(ctx, d, s))
	set("features", restoreFeatures(ctx, d, s))
	set("flow control", restorePause(ctx, d, s))
	set("interrupt moderation", restoreCoalesce(ctx, d, s))
	set("address filters", restoreReceive(ctx, d, s))
	set("polling", restoreNAPI(d, s))
	return errors.Join(errs...)
}

func restoreMTU(ctx context.Context, d Device, s Settings) error {
	m, ok := d.(MTUSetter)
	switch {
	case s.MTU == 0 || s.MTU == d.MTU():
		return nil
	case !ok:
		return fmt.Errorf("it is %d and cannot be %d: %w", d.MTU(), s.MTU, unix.EOPNOTSUPP)
	}
	if lowest, highest := m.MTURange(); s.MTU < lowest || s.MTU > highest {
		return fmt.Errorf("%d, want %d to %d: %w", s.MTU, lowest, highest, unix.EINVAL)
	}
	return m.SetMTU(ctx, s.MTU)
}

func restoreFeatures(ctx context.Context, d Device, s Settings) error {
	if s.Features == nil {
		return nil
	}
	var want Feature
	unknown := slices.Clone(*s.Features)
	FeatureNames(func(f Feature, name string) {
		if slices.Contains(*s.Features, name) {
			want |= f
		}
		unknown = slices.DeleteFunc(unknown, func(n string) bool { return n == name })
	})
	o, ok := d.(Offloader)
	if !ok {
		if want == 0 {
			return nil
		}
		return fmt.Errorf("%s: %w", want, unix.EOPNOTSUPP)
	}
	available, on := o.Features()
	var err error
	if no := want &^ available; no != 0 || len(unknown) > 0 {
		FeatureNames(func(f Feature, name string) {
			if no&f != 0 {
				unknown = append(unknown, name)
			}
		})
		err = fmt.Errorf("the device has no %s: %w", strings.Join(unknown, ", "), unix.EOPNOTSUPP)
		want &^= no
	}
	if want != on {
		err = errors.Join(err, o.SetFeatures(ctx, want))
	}
	return err
}

func restorePause(ctx context.Context, d Device, s Settings) error {
	p, ok := d.(Pauser)
	switch {
	case s.Pause == nil || ok && p.Pause() == *s.Pause:
		return nil
	case !ok:
		return unix.EOPNOTSUPP
	}
	return p.SetPause(ctx, *s.Pause)
}

func restoreCoalesce(ctx context.Context, d Device, s Settings) error {
	c, ok := d.(Coalescer)
	switch {
	case s.Coalesce == nil || ok && settled(c.Coalesce()) == settled(*s.Coalesce):
		return nil
	case !ok:
		return unix.EOPNOTSUPP
	}
	return c.SetCoalesce(ctx, settled(*s.Coalesce))
}

func restoreReceive(ctx context.Context, d Device, s Settings) error {
	m, ok := d.(RxModer)
	switch {
	case s.Receive == nil:
		return nil
	case !ok:
		return unix.EOPNOTSUPP
	}
	want := RxMode{Promisc: s.Receive.Promisc, AllMulti: s.Receive.AllMulti}
	for _, a := range s.Receive.Multicast {
		mac, err := net.ParseMAC(a)
		if err != nil {
			return fmt.Errorf("%w: %w", err, unix.EINVAL)
		}
		want.Multicast = append(want.Multicast, mac)
	}
	is, was := receiveOf(m.RxMode()), receiveOf(want)
	if is.Promisc == was.Promisc && is.AllMulti == was.AllMulti && slices.Equal(is.Multicast, was.Multicast) {
		return nil
	}
	return m.SetRxMode(ctx, want)
}

func restoreNAPI(d Device, s Settings) error {
	u, ok := d.(NAPIUser)
	switch {
	case s.NAPI == nil:
		return nil
	case !ok:
		return unix.EOPNOTSUPP
	}
	return ChangeNAPI(u, func(n *NAPI) {
		*n = NAPI{Weight: s.NAPI.Weight, DeferHardIRQs: s.NAPI.DeferHardIRQs, GROFlushTimeout: time.Duration(s.NAPI.GROFlushTimeoutNs)}
	})
}
