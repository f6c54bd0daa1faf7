package sim

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// The slot and link below a port (PCI Express Base 5.0, 6.7 and 7.5.3).

// present says whether a card is in the slot.
func (p *port) present() bool { return len(p.d.below) > 0 }

// powered says whether the card has power.
func (p *port) powered() bool {
	return !p.faulted && (p.opt.sltCap&pci.SltCapPower == 0 || p.get(pci.ExpSltCtl)&pci.SltCtlPowerOff == 0)
}

// passes says whether what is below can be reached. Inside a switch it can, unless it is held in reset.
func (p *port) passes() bool {
	if p.d.space.get16(int(pci.CfgBridgeCtl))&pci.BridgeReset != 0 {
		return false
	}
	if !p.hasSlot() {
		return true
	}
	return p.present() && p.powered() && !p.open && !p.flapped && p.get(pci.ExpLnkCtl)&pci.LnkCtlDisable == 0 && !p.contained()
}

// reportsActive says whether the port tells of its link (Data Link Layer Link Active Reporting Capable).
func (p *port) reportsActive() bool { return p.reportsActiveIn(p.d.space) }

func (p *port) reportsActiveIn(s *space) bool {
	return p.hasSlot() && s.get32(s.exp+int(pci.ExpLnkCap))&pci.LnkCapActive != 0
}

// settle is called when something may have happened to the link. tell says whether that shows as an event.
func (p *port) settle(tell bool) {
	if up := p.passes(); up != p.up {
		p.up = up
		if !up {
			p.resetBelow(!p.powered() || !p.present())
			p.put(pci.ExpLnkSta, pci.LnkStaTrain, false)
		} else {
			p.train()
		}
		if p.reportsActive() {
			p.put(pci.ExpLnkSta, pci.LnkStaActive, up)
			if tell {
				p.put(pci.ExpSltSta, pci.SltStaLink, true)
			}
		}
	}
	p.negotiateVC()
	for _, d := range p.d.below {
		d.refresh()
	}
	p.interrupts()
}

// event sets bits of Slot Status that the slot has.
func (p *port) event(bits uint16) {
	s := p.d.space
	at := s.exp + int(pci.ExpSltSta)
	has := uint16(s.w1c[at]) | uint16(s.w1c[at+1])<<8
	p.put(pci.ExpSltSta, bits&has, true)
	p.interrupts()
}

// slotControl is a command to the slot. What was in effect before says whether the card is let go of.
func (p *port) slotControl(before uint16, lock bool) {
	now := p.get(pci.ExpSltCtl)
	if lock && p.opt.sltCap&pci.SltCapLock != 0 { // each write of 1 turns it: 7.5.3.10
		p.put(pci.ExpSltSta, pci.SltStaLocked, p.get(pci.ExpSltSta)&pci.SltStaLocked == 0)
	}
	if now&pci.SltCtlPowerOff != 0 {
		p.faulted = false // 6.7.1.8: until it is switched off
	}
	if !p.lets(before) && p.lets(now) {
		for len(p.d.below) > 0 && p.opt.autoEject {
			card := p.d.below[0]
			p.leave(card)
			p.d.m.left = append(p.d.m.left, card.spec.Name)
			p.put(pci.ExpSltSta, pci.SltStaPresence, true)
		}
	}
	if p.opt.sltCap&pci.SltCapNoCmd != 0 {
		return
	}
	if p.opt.cmd == 0 {
		p.put(pci.ExpSltSta, pci.SltStaCmd, true)
		return
	}
	again(&p.command, p.d, p.opt.cmd, func() { p.event(pci.SltStaCmd) })
}

// lets says whether a value of Slot Control has power and power indicator off: what a slot without one has never, or always.
func (p *port) lets(ctl uint16) bool {
	if p.opt.sltCap&pci.SltCapPower == 0 {
		return false
	}
	return ctl&pci.SltCtlPowerOff != 0 && (p.opt.sltCap&pci.SltCapPowerLED == 0 || ctl&pci.SltCtlPowerLED == pci.LEDOff<<8)
}

// leave takes a card out of the slot: it, and all that is behind it, is no more.
func (p *port) leave(card *device) {
	card.dies(fmt.Errorf("it was pulled out: %w", bus.ErrGone))
	p.d.m.removed(card)
	p.put(pci.ExpSltSta, pci.SltStaPresent, p.present())
}

// dies ends a device and all behind it, the leaves first.
func (d *device) dies(why error) {
	for _, x := range d.below {
		x.dies(why)
	}
	d.end(why)
	d.setLink(false)
}

// removed takes a card, and all behind it, out of the lists.
func (m *Machine) removed(d *device) {
	for len(d.below) > 0 {
		m.removed(d.below[0])
	}
	if d.up != nil {
		d.up.below = without(d.up.below, d)
	} else {
		m.roots = without(m.roots, d)
	}
	m.devices = without(m.devices, d)
	m.retire(d)
}

// retire remembers a device that is no more until its bus.Device is closed.
func (m *Machine) retire(d *device) {
	if !d.closed && d.fn != nil { // else nobody has it
		m.dead[d] = true
	}
}

// without is a list less one. It is a new list: somebody may be going through the old one.
func without(list []*device, d *device) []*device {
	out := make([]*device, 0, len(list))
	for _, x := range list {
		if x != d {
			out = append(out, x)
		}
	}
	return out
}

// portNamed is the port of that name, of which the slot or link is wanted.
func (m *Machine) portNamed(name, step string) (*port, error) {
	d := m.find(name)
	if d == nil {
		return nil, fmt.Errorf("sim: %s: no device is named %s: %w", step, name, unix.ENODEV)
	}
	if d.port == nil || !d.port.hasSlot() {
		return nil, d.errorf("%s: model %s has no slot: %w", step, d.spec.Model, bus.ErrNotSupported)
	}
	return d.port, nil
}

// Plug puts a card into the slot of the port that spec.Bus names, which must be empty, as somebody does with his hands: the slot tells of
// the card, and, where it has a button, that this was pressed. Until Slot Control gives it power the card answers nothing; where there is
// no power controller it comes up at once. Nothing enumerates it: that is Rescan's. A name whose device left may be used again, and is wired as the one
// before was.
func (m *Machine) Plug(ctx context.Context, spec DeviceSpec) error {
	if ctx.Err() != nil {
		return fmt.Errorf("sim: plugging %s: %w", spec.Name, context.Cause(ctx))
	}
	if err := spec.check(); err != nil {
		return err
	}
	if spec.Bus == "" {
		return fmt.Errorf("sim: plugging %s: nothing can be plugged in on the root bus: name a port for it to stand under: %w", spec.Name, bus.ErrNotSupported)
	}
	m.lock()
	defer m.unlock()
	if m.err != nil {
		return fmt.Errorf("sim: plugging %s: %w", spec.Name, m.err)
	}
	if m.find(spec.Name) != nil {
		return fmt.Errorf("sim: plugging %s: there is a device of that name: %w", spec.Name, bus.ErrBusy)
	}
	p, err := m.portNamed(spec.Bus, "plugging "+spec.Name)
	if err != nil {
		return err
	}
	if err := spec.checkKind(modelOf(p.d.spec.Model)); err != nil {
		return err
	}
	if p.present() {
		return p.d.errorf("plugging %s: %s is in the slot: %w", spec.Name, p.d.below[0].spec.Name, bus.ErrBusy)
	}
	d, err := newDevice(m, spec)
	if err != nil {
		return fmt.Errorf("sim: %s: model %s: %w", spec.Name, spec.Model, err)
	}
	m.devices = append(m.devices, d)
	m.wire(d)
	d.chip.reset()
	p.put(pci.ExpSltSta, pci.SltStaPresent, true)
	p.put(pci.ExpSltSta, p.sensed()|pci.SltStaPresence, true)
	p.settle(true)
	return nil
}

// sensed is the button, where there is one.
func (p *port) sensed() uint16 {
	if p.opt.sltCap&pci.SltCapButton != 0 {
		return pci.SltStaButton
	}
	return 0
}

// Eject asks for a card to be let go of: somebody presses the button of its slot. The card leaves when power and power indicator are off,
// as QEMU's do, unless the port has auto_eject=off; at once where they are already. bus.ErrBusy: the slot is at it, its power indicator blinks.
func (m *Machine) Eject(name string) error {
	m.lock()
	defer m.unlock()
	d := m.find(name)
	if d == nil {
		return fmt.Errorf("sim: ejecting: no device is named %s: %w", name, unix.ENODEV)
	}
	if d.up == nil || !d.up.port.hasSlot() {
		return d.errorf("ejecting: it is in no slot: %w", bus.ErrNotSupported)
	}
	p := d.up.port
	ctl := p.get(pci.ExpSltCtl)
	switch {
	case p.lets(ctl):
		p.leave(d)
		m.left = append(m.left, name)
		p.event(pci.SltStaPresence)
	case p.opt.sltCap&pci.SltCapButton == 0:
		return d.errorf("ejecting: slot of %s has no attention button: %w", p.d.spec.Name, bus.ErrNotSupported)
	case p.opt.sltCap&pci.SltCapPowerLED != 0 && ctl&pci.SltCtlPowerLED == pci.LEDBlink<<8:
		return d.errorf("ejecting: the power indicator of %s blinks (Slot Control %#04x): %w", p.d.spec.Name, ctl, bus.ErrBusy)
	default:
		p.event(pci.SltStaButton)
	}
	return nil
}

// PressButton presses the attention button of the slot of the port of that name.
func (m *Machine) PressButton(name string) error {
	return m.onPort(name, "pressing the button", pci.SltCapButton, func(p *port) { p.event(pci.SltStaButton) })
}

// OpenLatch opens or closes the latch that holds the card (mrl=on). While it is open the card has no link.
func (m *Machine) OpenLatch(name string, open bool) error {
	return m.onPort(name, "moving the latch", pci.SltCapMRL, func(p *port) {
		if p.open != open {
			p.open = open
			p.put(pci.ExpSltSta, pci.SltStaOpen, open)
			p.event(pci.SltStaMRL)
			p.settle(true)
		}
	})
}

// PowerFault makes a slot's power fail, until software switches it off and on again.
func (m *Machine) PowerFault(name string) error {
	return m.onPort(name, "failing power", pci.SltCapPower, func(p *port) {
		p.faulted = true
		p.event(pci.SltStaFault)
		p.settle(true)
	})
}

// SetPortLink holds the link below a port down, or lets it come up again. What is behind is reset when it goes down.
func (m *Machine) SetPortLink(name string, up bool) error {
	return m.onPort(name, "setting the link", 0, func(p *port) {
		p.flapped = !up
		p.settle(true)
	})
}

// onPort does something to a port whose slot has these capabilities.
func (m *Machine) onPort(name, step string, cap uint32, f func(*port)) error {
	m.lock()
	defer m.unlock()
	p, err := m.portNamed(name, step)
	if err != nil {
		return err
	}
	if p.opt.sltCap&cap != cap {
		return p.d.errorf("%s: the slot has none (Slot Capabilities %#x, want %#x): %w", step, p.opt.sltCap, cap, bus.ErrNotSupported)
	}
	f(p)
	return nil
}
