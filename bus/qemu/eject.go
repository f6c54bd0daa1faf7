package qemu

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

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
	_, err = m.Execute("device_del", map[string]any{"id": u.id()})
	var said *qmpError
	switch {
	case err == nil:
		m.mu.Lock()
		u.leaving = true
		m.mu.Unlock()
		select {
		case m.pressed <- struct{}{}:
		default:
		}
		return nil
	case !errors.As(err, &said):
	case strings.Contains(said.desc, "process of unplug") || strings.Contains(said.desc, "busy"):
		err = fmt.Errorf("%s: %w", said.desc, bus.ErrBusy)
	case strings.Contains(said.desc, "not found"):
		err = fmt.Errorf("%s: %w", said.desc, bus.ErrGone)
	default:
		err = fmt.Errorf("%s: %w", said.desc, bus.ErrNotSupported)
	}
	return fmt.Errorf("qemu: ejecting %s: %w", name, err)
}

// event is told what QEMU tells by itself, by the QMP client's reader. There are never more devices on their way out than
// fit.
func (m *Machine) event(e qmpEvent) {
	if e.Event == "DEVICE_DELETED" && strings.HasPrefix(e.Data.Device, "dev") {
		select {
		case m.deleted <- e.Data.Device:
			return
		default:
		}
	}
	m.log.Debug("qemu: event " + e.Event + " " + e.Data.Device)
}

// watchEjects cleans up after devices that QEMU has removed.
func (m *Machine) watchEjects(ejected func(name string)) {
	var look <-chan time.Time
	for {
		select {
		case id := <-m.deleted:
			m.removed(id, ejected)
		case <-m.pressed:
			look = time.After(ejectLook)
		case <-look:
			if look = nil; m.lookForEjected(ejected) {
				look = time.After(ejectLook)
			}
		case <-m.done:
			return
		}
	}
}

// ejectLook is how often QEMU is asked for what is being ejected: of some models (qemu-xhci, bochs-display) it keeps something back, and
// never says that they are gone.
const ejectLook = 250 * time.Millisecond

// lookForEjected finds units that are gone without a word. It says whether any is still on its way.
func (m *Machine) lookForEjected(ejected func(name string)) (more bool) {
	m.mu.Lock()
	var ids []string
	for _, u := range m.units {
		if u.ready && u.leaving {
			ids = append(ids, u.id())
		}
	}
	m.mu.Unlock()
	if len(ids) == 0 {
		return false
	}
	r, err := m.Execute("qom-list", map[string]any{"path": "/machine/peripheral"})
	var there []struct{ Name string }
	if err != nil || json.Unmarshal(r, &there) != nil {
		return m.Err() == nil
	}
	for _, id := range ids {
		if !slices.ContainsFunc(there, func(x struct{ Name string }) bool { return x.Name == id }) {
			m.removed(id, ejected)
		}
	}
	return true
}

// removed cleans up after one that QEMU has removed.
func (m *Machine) removed(id string, ejected func(name string)) {
	m.mu.Lock()
	i := slices.IndexFunc(m.units, func(u *unit) bool { return u.ready && u.id() == id })
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
	m.dropNetdev(u)
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
