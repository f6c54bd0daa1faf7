package vc

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/sysfs"
)

// files are those of a resource.
func (s *service) files(n int) map[string]*sysfs.File {
	show := func(f func(w *bytes.Buffer, ctl uint32)) func(*bytes.Buffer) error {
		return func(w *bytes.Buffer) error {
			ctl, err := s.control(n)
			if err == nil {
				f(w, ctl)
			}
			return err
		}
	}
	store := func(f func(context.Context, int, []byte) error) func(context.Context, []byte) (int, error) {
		return func(ctx context.Context, p []byte) (int, error) {
			if err := s.change(ctx, func(ctx context.Context) error { return f(ctx, n, p) }); err != nil {
				return 0, err
			}
			return len(p), nil
		}
	}
	files := map[string]*sysfs.File{
		"id":      sysfs.Attr(0o644, show(func(w *bytes.Buffer, ctl uint32) { fmt.Fprintln(w, idOf(ctl)) }), store(s.storeID)),
		"enabled": sysfs.Attr(0o644, show(func(w *bytes.Buffer, ctl uint32) { fmt.Fprintln(w, ctl>>31) }), store(s.storeEnabled)),
		"tc_map":  sysfs.Attr(0o644, show(func(w *bytes.Buffer, ctl uint32) { fmt.Fprintf(w, "0x%02x\n", mapOf(ctl)) }), store(s.storeMap)),
		"arbitration": sysfs.Attr(0o644, show(func(w *bytes.Buffer, ctl uint32) {
			showArbitration(w, s.layout.port[n], selectOf(ctl))
		}), store(s.storeArbitration)),
		"max_time_slots": sysfs.Showf("%d", s.slots[n]),
		"negotiation_pending": sysfs.Attr(0o444, show(func(w *bytes.Buffer, _ uint32) {
			fmt.Fprintln(w, s.cfg.Read16(s.at+resSta(n))&pci.VCResPend>>1)
		}), nil),
	}
	if s.layout.port[n].phases(0) > 0 {
		files["slots"] = sysfs.Attr(0o644, func(w *bytes.Buffer) error { return s.showSlots(w, n) }, store(s.storeSlots))
	}
	return files
}

func (s *service) storeID(_ context.Context, n int, p []byte) error {
	id, err := sysfs.ParseUint(string(p), 7)
	if err != nil {
		return s.failf("setting the ID of vc%d: %w", n, err)
	}
	ctl, err := s.control(n)
	switch {
	case err != nil:
		return err
	case uint32(id) == idOf(ctl):
		return nil
	case n == 0 || id == 0:
		return s.failf("setting the ID of vc%d to %d: ID 0 is VC 0's: %w", n, id, unix.EINVAL)
	case enabledOf(ctl):
		return s.failf("setting the ID of vc%d: it is enabled: %w", n, unix.EBUSY)
	}
	taken, err := s.ids(true, n)
	if err != nil {
		return err
	}
	if slices.Contains(taken, uint32(id)) {
		return s.failf("setting the ID of vc%d: an enabled channel has ID %d: %w", n, id, unix.EEXIST)
	}
	return s.setControl(n, ctl, ctl&^pci.VCResID|uint32(id)<<24)
}

func (s *service) storeEnabled(_ context.Context, n int, p []byte) error {
	on, err := sysfs.ParseUint(string(p), 1)
	if err != nil {
		return s.failf("enabling vc%d: %w", n, err)
	}
	ctl, err := s.control(n)
	switch {
	case err != nil:
		return err
	case on == 1 == enabledOf(ctl):
		return nil
	case n == 0:
		return s.failf("disabling vc0: it is always enabled: %w", unix.EINVAL)
	case on == 0:
		return s.setControl(n, ctl, ctl&^pci.VCResOn)
	case idOf(ctl) == 0:
		return s.failf("enabling vc%d: its ID is 0, which is VC 0's: %w", n, unix.EINVAL)
	}
	taken, err := s.ids(true, n)
	if err != nil {
		return err
	}
	if slices.Contains(taken, idOf(ctl)) {
		return s.failf("enabling vc%d: an enabled channel has ID %d too: %w", n, idOf(ctl), unix.EEXIST)
	}
	return s.setControl(n, ctl, ctl|pci.VCResOn)
}

func (s *service) storeMap(_ context.Context, n int, p []byte) error {
	m, err := sysfs.ParseUint(string(p), 0xff)
	if err != nil {
		return s.failf("setting the map of vc%d: %w", n, err)
	}
	ctl, err := s.control(n)
	switch {
	case err != nil:
		return err
	case n == 0 && m&1 == 0:
		return s.failf("setting the map of vc0 to 0x%02x: TC 0 is always VC 0's: %w", m, unix.EINVAL)
	case n != 0 && m&1 != 0:
		return s.failf("setting the map of vc%d to 0x%02x: TC 0 is VC 0's: %w", n, m, unix.EINVAL)
	}
	for other := range s.resources {
		if other == n {
			continue
		}
		theirs, err := s.control(other)
		if err != nil {
			return err
		}
		if both := mapOf(theirs) & uint32(m); both != 0 {
			return s.failf("setting the map of vc%d to 0x%02x: vc%d has 0x%02x of that: %w", n, m, other, both, unix.EBUSY)
		}
	}
	return s.setControl(n, ctl, ctl&^pci.VCResMap|uint32(m))
}

// showArbitration lists what there is, the chosen one in brackets.
func showArbitration(w *bytes.Buffer, t table, selected int) {
	var names []string
	for n, k := range t.kinds {
		switch {
		case n == selected:
			names = append(names, "["+k.name+"]")
		case t.has(n):
			names = append(names, k.name)
		}
	}
	fmt.Fprintln(w, strings.Join(names, " "))
}

// parseArbitration is the number of an arbitration.
func parseArbitration(p []byte, t table) (int, error) {
	name := strings.TrimSuffix(string(p), "\n")
	n := slices.IndexFunc(t.kinds, func(k arbitration) bool { return k.name == name })
	switch {
	case n < 0:
		return 0, fmt.Errorf("there is no arbitration %q: %w", name, unix.EINVAL)
	case !t.has(n):
		return 0, fmt.Errorf("the port has no arbitration %s: %w", name, unix.EOPNOTSUPP)
	}
	return n, nil
}

func (s *service) storeArbitration(_ context.Context, n int, p []byte) error {
	a, err := parseArbitration(p, s.layout.port[n])
	if err != nil {
		return s.failf("setting the arbitration of vc%d: %w", n, err)
	}
	ctl, err := s.control(n)
	if err != nil {
		return err
	}
	return s.setControl(n, ctl, ctl&^pci.VCResSelect|uint32(a)<<17)
}

// vcSelected is the VC arbitration that is chosen.
func (s *service) vcSelected() int { return int(s.cfg.Read16(s.at+pci.VCCtl) & pci.VCCtlSelect >> 1) }

func (s *service) showVCArbitration(w *bytes.Buffer) error {
	if _, err := s.portControl(); err != nil {
		return err
	}
	showArbitration(w, s.vc, s.vcSelected())
	return nil
}

func (s *service) storeVCArbitration(ctx context.Context, p []byte) (int, error) {
	err := s.change(ctx, func(context.Context) error {
		a, err := parseArbitration(p, s.vc)
		if err != nil {
			return s.failf("setting the VC arbitration: %w", err)
		}
		return s.setVCArbitration(a)
	})
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// setVCArbitration chooses one. It must not change while more than one channel of the low-priority group is enabled (7.9.1.4).
func (s *service) setVCArbitration(a int) error {
	old, err := s.portControl()
	if err != nil {
		return err
	}
	v := old&^(pci.VCCtlSelect|pci.VCCtlLoad) | uint16(a)<<1
	if v == old {
		return nil
	}
	on := 0
	for n := range s.low {
		ctl, err := s.control(n)
		if err != nil {
			return err
		}
		if enabledOf(ctl) {
			on++
		}
	}
	if on > 1 {
		return s.failf("setting the VC arbitration: %d channels of the low-priority group are enabled, want one: %w", on, unix.EBUSY)
	}
	s.cfg.Write16(s.at+pci.VCCtl, v)
	if got := s.cfg.Read16(s.at + pci.VCCtl); got&pci.VCCtlSelect != v&pci.VCCtlSelect {
		s.cfg.Write16(s.at+pci.VCCtl, old)
		return s.failf("Port VC Control is %#x, want %#x: %w", got, v, unix.EIO)
	}
	return nil
}
