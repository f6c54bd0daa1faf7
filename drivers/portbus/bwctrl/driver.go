package bwctrl

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/drivers/portbus"
	"github.com/ring3dev/ring3/sysfs"
)

// Driver is the service driver, "pcie_bwctrl".
var Driver = portbus.ServiceDriver{
	Name: "pcie_bwctrl", Service: portbus.BW, Port: portbus.AnyPort, Probe: probe,
}

// irqName is what /proc/interrupts shows.
const irqName = "PCIe bwctrl"

// pause is the least time between two uevents.
const pause = 10 * time.Millisecond

const events = pci.LnkStaLBMS | pci.LnkStaLABS

// service serves one port.
type service struct {
	d    *portbus.Device
	port *portbus.Port
	cfg  bus.Config
	exp  bus.Off // of the Express capability
	irq  bool

	asleep atomic.Bool // suspended

	managed, autonomous atomic.Uint64

	speed sync.Mutex // held while the speed is set; guards:
	kept  uint16     // which of the bits that enable the interrupt were seen set: QEMU's ports have none

	wake *bus.Waker
	done chan struct{}
	ctx  context.Context
	stop context.CancelFunc
	once sync.Once
}

func probe(_ context.Context, d *portbus.Device) (portbus.Instance, error) {
	p := d.Port()
	if !p.Profile().Bandwidth {
		return nil, fmt.Errorf("%s: the kernel of this profile has no driver for it: %w", d.Name(), pci.ErrSkip)
	}
	s := &service{d: d, port: p, cfg: d.Config(), exp: p.Express().At, wake: bus.NewWaker(), done: make(chan struct{})}
	_, err := d.Handle(irqName, s.interrupt)
	s.irq = err == nil
	if err != nil && !errors.Is(err, bus.ErrNotSupported) {
		return nil, err
	}
	if err := s.enable(); err != nil {
		return nil, fmt.Errorf("enabling the interrupt: %w", err)
	}
	s.ctx, s.stop = context.WithCancel(p.Context())
	go s.run()
	return s, nil
}

// enable forgets what was, and lets the port interrupt.
func (s *service) enable() error {
	if !s.irq {
		return nil
	}
	s.cfg.Write16(s.exp+pci.ExpLnkSta, events)
	_, err := s.d.Modify(pci.ExpLnkCtl, 0, pci.LnkCtlLBMIE|pci.LnkCtlLABIE, false)
	return err
}

func (s *service) disable() error {
	_, err := s.d.Modify(pci.ExpLnkCtl, pci.LnkCtlLBMIE|pci.LnkCtlLABIE, 0, false)
	return err
}

// status is Link Status; not ok where the port does not answer.
func (s *service) status() (v uint16, ok bool) {
	v = s.cfg.Read16(s.exp + pci.ExpLnkSta)
	return v, v != 0xffff
}

func (s *service) interrupt() bool {
	v, ok := s.status()
	if !ok || v&events == 0 {
		return false
	}
	s.cfg.Write16(s.exp+pci.ExpLnkSta, v&events)
	if v&pci.LnkStaLBMS != 0 {
		s.managed.Add(1)
	}
	if v&pci.LnkStaLABS != 0 {
		s.autonomous.Add(1)
	}
	s.wake.Wake()
	return true
}

// run tells of changes.
func (s *service) run() {
	defer close(s.done)
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-s.wake.C():
			s.tell()
			if s.port.Sleep(s.ctx, pause) != nil {
				return
			}
		}
	}
}

func (s *service) tell() {
	h, f := s.port.Hierarchy(), s.port.Function()
	v, ok := s.status()
	if h == nil || f == nil || !ok {
		return
	}
	h.Uevent("change", pci.SysfsPath(f), "pci", "LINK_SPEED="+pci.LinkSpeed(uint32(v)), fmt.Sprintf("LINK_WIDTH=%d", v&pci.LnkStaWidth>>4))
}

// Attrs are the service's files; pci.AttrUser.
func (s *service) Attrs() map[string]*sysfs.File {
	count := func(n *atomic.Uint64) *sysfs.File { return sysfs.Show(func() string { return fmt.Sprint(n.Load()) }) }
	return map[string]*sysfs.File{
		"target_link_speed":           sysfs.Attr(0o644, s.showTarget, s.storeTarget),
		"bandwidth_management_events": count(&s.managed),
		"autonomous_bandwidth_events": count(&s.autonomous),
	}
}

func (s *service) showTarget(w *bytes.Buffer) error {
	v, err := s.target()
	if err != nil {
		return err
	}
	fmt.Fprintln(w, pci.LinkSpeed(uint32(v)))
	return nil
}

// Suspend is a bus.PowerHandler's.
func (s *service) Suspend(context.Context) error {
	err := s.disable()
	s.asleep.Store(err == nil)
	return err
}

// Resume is a bus.PowerHandler's.
func (s *service) Resume(context.Context) error {
	s.asleep.Store(false)
	return s.enable()
}

// SlotReset sets the port up again after it was reset itself, unless it is suspended; portbus.Restorer.
func (s *service) SlotReset(context.Context) error {
	if s.asleep.Load() {
		return nil
	}
	return s.enable()
}

// Check is portbus.Keeper's. Who sets the speed changes what is looked at.
func (s *service) Check() (wrong, missed string) {
	if !s.irq || s.asleep.Load() || !s.speed.TryLock() {
		return "", ""
	}
	defer s.speed.Unlock()
	if v := s.cfg.Read16(s.exp + pci.ExpLnkCtl); v != 0xffff {
		s.kept |= v & (pci.LnkCtlLBMIE | pci.LnkCtlLABIE)
		if v&s.kept != s.kept {
			wrong = fmt.Sprintf("Link Control=%#x, want %#x", v, s.kept)
		}
	}
	if v, ok := s.status(); ok && v&events != 0 {
		missed = fmt.Sprintf("Link Status=%#x", v)
	}
	return wrong, missed
}

// Repair is portbus.Keeper's.
func (s *service) Repair(context.Context, bool) error {
	if !s.irq || s.asleep.Load() {
		return nil
	}
	_, err := s.d.Modify(pci.ExpLnkCtl, 0, pci.LnkCtlLBMIE|pci.LnkCtlLABIE, false)
	return err
}

// Close is portbus.Instance's.
func (s *service) Close() error {
	s.once.Do(func() {
		_ = s.disable() // it fails where the port is gone
		s.stop()
		<-s.done
	})
	s.speed.Lock() // whoever sets the speed ends
	defer s.speed.Unlock()
	return nil
}
