package qemu

import (
	"fmt"
	"slices"

	"github.com/ring3dev/ring3/bus"
)

// Eject asks for a device to be let go, as the attention button of its slot does: the port's driver stops it, then powers the
// slot off and puts the power indicator out, and QEMU removes it: Config.Ejected is called. In a slot that is off already it is
// removed at once. A second press within 5 s is no way to change one's mind here: QEMU refuses it, bus.ErrBusy.
func (m *Machine) Eject(name string) error {
	m.mu.Lock()
	u, err := m.known(name, false)
	if err == nil {
		switch {
		case !u.ready:
			err = fmt.Errorf("qemu: ejecting %s: it is being plugged in: %w", name, bus.ErrBusy)
		case u.under == nil:
			err = fmt.Errorf("qemu: ejecting %s: it stands under no port: %w", name, bus.ErrNotSupported)
		default:
			if e := u.under.takesPlug(); e != nil {
				err = fmt.Errorf("qemu: ejecting %s: %w", name, e)
			}
		}
	}
	m.mu.Unlock()
	if err != nil {
		return err
	}
	if own := m.monitor(); own != nil {
		err = own.eject(name)
	} else {
		_, err = m.ask("eject", ejectArgs{Name: name})
	}
	return err
}

// event is told what QEMU tells by itself. There are never more devices on their way out than fit.
func (m *Machine) event(e Event) {
	select {
	case m.deleted <- e:
	default:
		m.log.Debug("qemu: news of the end of " + e.Removed + " is lost")
	}
}

// watchEjects cleans up after devices that QEMU has removed.
func (m *Machine) watchEjects(ejected func(name string)) {
	if ejected != nil {
		for _, name := range m.missing {
			ejected(name)
		}
	}
	for {
		select {
		case e := <-m.deleted:
			m.removed(e, ejected)
		case <-m.done:
			return
		}
	}
}

// removed cleans up after one that QEMU has removed.
func (m *Machine) removed(e Event, ejected func(name string)) {
	m.mu.Lock()
	i := slices.IndexFunc(m.units, func(u *unit) bool { return u.ready && u.spec.Name == e.Removed && u.key == e.Key })
	if i < 0 {
		m.mu.Unlock()
		return
	}
	u := m.units[i]
	u.ready = false
	d := u.dev
	m.mu.Unlock()
	if d != nil {
		d.leave("it was removed")
	}
	m.mu.Lock()
	m.units = slices.DeleteFunc(m.units, func(o *unit) bool { return o == u })
	if u.fn != nil {
		m.late = append(m.late, u)
	}
	m.mu.Unlock()
	m.log.Debug(fmt.Sprintf("qemu: %s (%s) was removed", u.spec.Name, u.spec.Model))
	if ejected != nil {
		ejected(u.spec.Name)
	}
}
