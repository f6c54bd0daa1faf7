package pciehp

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/sysfs"
)

// publish shows the slot's directory. A number that there is already gets a suffix, since boards lie about them.
func (s *Slot) publish(names *sync.Mutex) {
	slots := s.port.Bus().Slots()
	names.Lock()
	defer names.Unlock()
	if s.speed() == 0 {
		s.noteSpeed()
	}
	s.name = fmt.Sprint(s.number())
	for n := 1; slots.Lookup(s.name) != nil; n++ {
		s.name = fmt.Sprintf("%d-%d", s.number(), n)
	}
	slots.Put(s.name, s.dir())
	s.tell("add")
	s.unshow = func() {
		slots.Remove(s.name)
		s.tell("remove")
	}
}

// tell is the uevent of the slot's directory.
func (s *Slot) tell(action string) {
	if h := s.port.Hierarchy(); h != nil {
		h.Uevent(action, "/bus/pci/slots/"+s.name, "slots")
	}
}

// dir is /sys/bus/pci/slots/N.
func (s *Slot) dir() *sysfs.Dir {
	d := &sysfs.Dir{}
	d.Put("address", sysfs.Show(s.address))
	d.Put("max_bus_speed", sysfs.Showf("%s", pci.LinkSpeed(s.maxSpeed())))
	d.Put("cur_bus_speed", sysfs.Show(func() string { return pci.LinkSpeed(s.speed()) }))
	d.Put("power", sysfs.Attr(0o644, s.showFlag(func() bool { return s.powered() }), s.storePower))
	d.Put("adapter", sysfs.Attr(0o444, s.showFlag(func() bool {
		present, link := s.occupied()
		return present || link
	}), nil))
	if s.caps&pci.SltCapAttnLED != 0 {
		d.Put("attention", sysfs.Attr(0o644, s.showAttention, s.storeAttention))
	}
	if s.caps&pci.SltCapMRL != 0 {
		d.Put("latch", sysfs.Attr(0o444, s.showFlag(func() bool { return s.cfg.Read16(s.exp+pci.ExpSltSta)&pci.SltStaOpen != 0 }), nil))
	}
	d.Put("module", &sysfs.Link{Target: "../../../../module/" + Name})
	return d
}

// speed is that of the link when it last came up, which outlives the service.
func (s *Slot) speed() uint32 {
	if f := s.port.Function(); f != nil {
		return f.BusSpeed()
	}
	return s.ownSpeed.Load()
}

// maxSpeed is that of the link when the port was found: QEMU's ports forget it.
func (s *Slot) maxSpeed() uint32 {
	if f := s.port.Function(); f != nil && f.MaxBusSpeed != 0 {
		return f.MaxBusSpeed
	}
	return s.cfg.Read32(s.exp + pci.ExpLnkCap)
}

// noteSpeed reads it.
func (s *Slot) noteSpeed() {
	v := uint32(s.cfg.Read16(s.exp+pci.ExpLnkSta) & pci.LnkStaSpeed)
	if f := s.port.Function(); f != nil {
		f.SetBusSpeed(v)
	}
	s.ownSpeed.Store(v)
}

// address is where cards stand: "1000:01:00".
func (s *Slot) address() string {
	return fmt.Sprintf("%04x:%02x:00", s.port.Addr().Domain, s.cfg.Read8(pci.CfgSecondary))
}

func (s *Slot) showFlag(f func() bool) func(*bytes.Buffer) error {
	return func(w *bytes.Buffer) error {
		if f() {
			w.WriteString("1\n")
		} else {
			w.WriteString("0\n")
		}
		return nil
	}
}

func (s *Slot) showAttention(w *bytes.Buffer) error {
	v := s.cfg.Read16(s.exp+pci.ExpSltCtl) & pci.SltCtlAttnLED >> 6
	fmt.Fprintln(w, [...]int{255, 1, 2, 0}[v])
	return nil
}

// number8 is how the kernel reads a number here: digits, whatever comes after them, and of that the last 8 bits.
func number8(p []byte) (v uint8) {
	for _, c := range p {
		if c < '0' || c > '9' {
			break
		}
		v = v*10 + c - '0'
	}
	return v
}

func (s *Slot) storeAttention(ctx context.Context, p []byte) (int, error) {
	v := uint16(number8(p))
	if v != pci.LEDOn && v != pci.LEDBlink {
		v = pci.LEDOff
	}
	if s.ctx.Err() != nil {
		return 0, errEnded
	}
	if err := s.command(ctx, pci.SltCtlAttnLED, v<<6, false); err != nil {
		return 0, fmt.Errorf("%w: %w", err, unix.ENODEV)
	}
	return len(p), nil
}

// storePower switches the slot on or off, and waits until that is done.
func (s *Slot) storePower(ctx context.Context, p []byte) (int, error) {
	var err error
	switch number8(p) {
	case 0:
		err = s.switchOff(ctx)
	case 1:
		err = s.switchOn(ctx)
	default:
		// Not the port's: it begins with the name of the subsystem alone.
		s.port.Print(slog.LevelError, "pci_hotplug: Illegal value specified for power")
		err = unix.EINVAL
	}
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// Switch is what the file power does: on or off, and back when that is done.
func (s *Slot) Switch(ctx context.Context, on bool) error {
	if on {
		return s.switchOn(ctx)
	}
	return s.switchOff(ctx)
}

func (s *Slot) switchOn(ctx context.Context) error {
	now, err := s.known(ctx)
	if err != nil {
		return err
	}
	switch now {
	case off, blinkingOn:
		return s.ask(ctx, evPresence, true)
	case poweringOn:
		s.say(slog.LevelInfo, "Already in powering on state")
	default:
		s.say(slog.LevelInfo, "Already enabled")
	}
	return unix.ENODEV
}

func (s *Slot) switchOff(ctx context.Context) error {
	now, err := s.known(ctx)
	if err != nil {
		return err
	}
	switch now {
	case on, blinkingOff:
		return s.ask(ctx, evDisable, false)
	case poweringOff:
		s.say(slog.LevelInfo, "Already in powering off state")
	default:
		s.say(slog.LevelInfo, "Already disabled")
	}
	return unix.ENODEV
}

// known is the slot's state, once it is.
func (s *Slot) known(ctx context.Context) (state, error) {
	select {
	case <-s.ready:
	case <-s.ctx.Done():
		return 0, errEnded
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	if s.dead() {
		return 0, errEnded
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state, nil
}

// ask has the worker do something, and waits for it. Who is interrupted stops waiting; the slot goes on.
func (s *Slot) ask(ctx context.Context, e events, enable bool) error {
	w := waiter{enable, make(chan error, 1)}
	s.sta.Lock()
	s.pending |= e
	s.waiters = append(s.waiters, w)
	s.wake()
	s.sta.Unlock()
	select {
	case err := <-w.result:
		return err
	case <-s.ctx.Done():
		return errEnded
	case <-ctx.Done():
		return fmt.Errorf("waiting for the slot: %w", ctx.Err())
	}
}
