package hwbind

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/internal/syspci"
)

// PlanUnbind looks whether functions can be given back to the drivers that had them. takeover:
// also from a process that has one open, which is asked for it, and waited for.
func (m *Machine) PlanUnbind(list []pci.Addr, takeover bool) (*Plan, error) {
	p := &Plan{m: m}
	for _, a := range list {
		f, err := m.Sys.Function(a)
		if err != nil {
			return nil, err
		}
		t := &target{f: f, was: m.recall(a), restore: true}
		if !IsUserDriver(f.Driver) && (t.was == nil || f.Driver != "") {
			has := "no driver has it"
			if f.Driver != "" {
				has = "the kernel's driver " + f.Driver + " has it"
			}
			return nil, fmt.Errorf("%s: unbinding: %s, not %s or %s: %w", a, has, VFIO, UIO, bus.ErrNotSupported)
		}
		if t.was != nil {
			t.to = t.was.Was
		}
		t.took = m.openBy(f)
		if len(t.took) > 0 && !takeover {
			return nil, fmt.Errorf("%s: unbinding: %w: %s; end that, or --takeover asks it back", a, ErrInUse, strings.Join(t.took, "; "))
		}
		t.owners = m.owners(f, f.Driver)
		p.targets = append(p.targets, t)
	}
	return p, nil
}

func (m *Machine) unbindSteps(t *target) []string {
	a := t.f.Addr
	var out []string
	if t.f.Driver != "" {
		out = append(out, "echo "+a.String()+" > "+m.driver(t.f.Driver, "unbind"))
	}
	if override := t.override(); t.f.Override != override {
		out = append(out, "echo '"+override+"' > "+m.Sys.Path(a, "driver_override"))
	}
	switch {
	case t.was == nil:
		out = append(out, "echo "+a.String()+" > "+m.probe())
	case t.to != "":
		out = append(out, "echo "+a.String()+" > "+m.driver(t.to, "bind"))
	}
	return out
}

// override is what the override is to be afterwards: what it was, unless that keeps the driver
// away that the function is to have.
func (t *target) override() string {
	if t.was != nil && t.was.Override == t.was.Was {
		return t.was.Override
	}
	return ""
}

// probe is the file by which the kernel is told to find a driver.
func (m *Machine) probe() string { return string(m.Sys) + "/bus/pci/drivers_probe" }

// unbind gives one function back.
func (m *Machine) unbind(ctx context.Context, t *target) (Result, error) {
	a := t.f.Addr
	r := Result{Address: a.String(), Was: t.f.Driver, Group: t.f.Group, Took: t.took}
	nodes := m.Nodes(t.f)
	t.begun = true
	if t.to != "" && !m.hasDriver(t.to) {
		// Removed since: the module's name is not always the driver's, the alias always leads to it.
		_ = m.Ops.Modprobe(ctx, text(m.Sys.Path(a, "modalias")))
	}
	if t.f.Driver != "" {
		if err := m.Ops.Write(m.driver(t.f.Driver, "unbind"), a.String()); err != nil {
			return r, fmt.Errorf("%s: unbinding: taking it from %s: %w", a, t.f.Driver, err)
		}
	}
	if err := m.giveBack(a, t); err != nil {
		return r, err
	}
	now, err := m.Sys.Function(a)
	if err != nil {
		return r, fmt.Errorf("%s: unbinding: %w", a, err)
	}
	r.Driver = now.Driver
	if err := m.takeNodes(t, nodes, &r); err != nil {
		return r, err
	}
	if err := m.forget(a); err != nil {
		return r, err
	}
	return r, nil
}

// giveBack clears the override and binds the driver that was there before, or lets the kernel
// find one.
func (m *Machine) giveBack(a pci.Addr, t *target) error {
	if override := t.override(); t.f.Override != override {
		if err := m.override(a, override); err != nil {
			return fmt.Errorf("%s: unbinding: setting driver_override to %q: %w", a, override, err)
		}
	}
	if t.was == nil {
		if err := m.Ops.Write(m.probe(), a.String()); err != nil {
			return fmt.Errorf("%s: unbinding: letting the kernel find a driver: %w", a, err)
		}
		return nil
	}
	if t.to == "" {
		return nil // it had none
	}
	if err := m.Ops.Write(m.driver(t.to, "bind"), a.String()); err != nil {
		return fmt.Errorf("%s: unbinding: giving it back to %s: %w", a, t.to, err)
	}
	return nil
}

// takeNodes makes nodes that remain root's again: the group's, unless another member of it is
// still with a user.
func (m *Machine) takeNodes(t *target, nodes []string, r *Result) error {
	if t.f.Driver == VFIO && t.f.Group != syspci.NoGroup {
		members, err := m.Sys.Members(t.f.Group)
		if err != nil {
			members = nil // the group went with it
		}
		for _, o := range members {
			if w := m.recall(o.Addr); o.Addr != t.f.Addr && o.Driver == VFIO && w != nil && w.Owner != nil {
				r.Notes = append(r.Notes, fmt.Sprintf("%s of the same IOMMU group is still bound for %s", o.Addr, w.Owner))
				return nil
			}
		}
	}
	for _, n := range nodes {
		if err := m.Ops.Chown(n, 0, -1); err != nil && !isMissing(err) {
			return fmt.Errorf("%s: unbinding: taking %s back: %w", t.f.Addr, n, err)
		}
	}
	return nil
}

// putBack undoes what was begun: afterwards a function has the driver, the override, the
// nodes' owner and the memory of before. It does what it can, and says what it cannot.
func (m *Machine) putBack(t *target) error {
	a := t.f.Addr
	now, err := m.Sys.Function(a)
	if err != nil {
		return errors.Join(err, m.forget(a)) // it vanished: nothing to put back
	}
	var errs []error
	do := func(what string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: putting it back as it was: %s: %w", a, what, err))
		}
	}
	if now.Driver != "" && now.Driver != t.f.Driver {
		do("taking it from "+now.Driver, m.Ops.Write(m.driver(now.Driver, "unbind"), a.String()))
	}
	// The driver need not be the one that the override names, as long as it is bound.
	pass := t.f.Override
	if now.Driver != t.f.Driver && t.f.Driver != "" && pass != "" {
		pass = t.f.Driver
	}
	if now.Override != pass {
		do("driver_override", m.override(a, pass))
	}
	if now.Driver != t.f.Driver && t.f.Driver != "" {
		do("giving it to "+t.f.Driver, m.Ops.Write(m.driver(t.f.Driver, "bind"), a.String()))
	}
	if pass != t.f.Override {
		do("driver_override", m.override(a, t.f.Override))
	}
	for _, driver := range []string{t.f.Driver, t.to} {
		for _, n := range m.nodesWith(t.f, driver) {
			// A node that came since is the kernel's, and goes with the driver: but the group's may
			// stay, which another member keeps.
			if uid := t.owners[n]; m.Ops.OwnerOf(n) != uid {
				do("owner of "+n, m.Ops.Chown(n, uid, -1))
			}
		}
	}
	if t.was != nil {
		do("its memory", m.remember(a, *t.was))
	} else {
		do("its memory", m.forget(a))
	}
	return errors.Join(errs...)
}

// override sets driver_override; "" is none.
func (m *Machine) override(a pci.Addr, driver string) error {
	return m.Ops.Write(m.Sys.Path(a, "driver_override"), driver+"\n")
}
