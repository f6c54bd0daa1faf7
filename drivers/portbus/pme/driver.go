package pme

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/drivers/portbus"
)

// Driver is the service driver, "pcie_pme".
var Driver = portbus.ServiceDriver{
	Name: "pcie_pme", Service: portbus.PME, Port: portbus.AnyPort, Prefix: "PME: ", Probe: probe,
}

// irqName is what /proc/interrupts shows.
const irqName = "PCIe PME"

// Bounds of a storm.
const (
	burst = 64 // events in a row
	pause = 10 * time.Millisecond
	spins = 16 // reads of a Root Status with PME Pending, and no PME
)

// service serves one port.
type service struct {
	d    *portbus.Device
	port *portbus.Port
	cfg  bus.Config
	sta  bus.Off // Root Status

	mu  sync.Mutex // guards the following, and is held while it is acted upon
	off bool       // suspended or closed: the interrupt stays disabled
	// kept: the bit that enables it was seen set. QEMU's ports do not have it.
	kept bool

	busy atomic.Bool // an interrupt is seen to, and is disabled until then

	wake *bus.Waker
	done chan struct{}
	stop context.CancelFunc
	once sync.Once
}

func probe(_ context.Context, d *portbus.Device) (portbus.Instance, error) {
	p := d.Port()
	s := &service{d: d, port: p, cfg: d.Config(), sta: p.Express().At + pci.ExpRtSta, wake: bus.NewWaker(), done: make(chan struct{})}
	number, err := d.Handle(irqName, s.interrupt)
	if errors.Is(err, bus.ErrNotSupported) {
		return nil, fmt.Errorf("%w: %w", err, pci.ErrSkip) // there is no polling
	}
	if err != nil {
		return nil, err
	}
	s.clear() // it is of before
	if err := s.interrupts(true); err != nil {
		return nil, fmt.Errorf("enabling the interrupt: %w", err)
	}
	d.Log(slog.LevelInfo, "Signaling with IRQ %d", number)
	var ctx context.Context
	ctx, s.stop = context.WithCancel(p.Context())
	go s.run(ctx)
	return s, nil
}

// interrupts enables or disables the service's interrupt.
func (s *service) interrupts(on bool) error {
	clear, set := pci.RtCtlPME, uint16(0)
	if on {
		clear, set = set, clear
	}
	_, err := s.d.Modify(pci.ExpRtCtl, clear, set, false)
	return err
}

// status is Root Status; not ok where the port does not answer.
func (s *service) status() (v uint32, ok bool) {
	v = s.cfg.Read32(s.sta)
	return v, v != 0xffffffff
}

// clear clears PME Status.
func (s *service) clear() {
	s.cfg.Write32(s.sta, pci.RtStaPME)
}

// interrupt disables the interrupt: the goroutine enables it again when it has seen to all that there is.
func (s *service) interrupt() bool {
	v, ok := s.status()
	if !ok || v&pci.RtStaPME == 0 {
		return false
	}
	s.busy.Store(true)
	if s.interrupts(false) != nil {
		s.busy.Store(false)
		return false // the port is gone
	}
	s.wake.Wake()
	return true
}

// run serves one interrupt after the other.
func (s *service) run(ctx context.Context) {
	defer close(s.done)
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.wake.C():
			for s.drain(ctx) {
				if s.port.Sleep(ctx, pause) != nil {
					return
				}
			}
			s.rearm()
		}
	}
}

// drain sees to all events that there are; more says that there may be others, and that it is time for a pause.
func (s *service) drain(ctx context.Context) (more bool) {
	waited := 0
	for range burst {
		v, ok := s.status()
		switch {
		case !ok || ctx.Err() != nil || s.isOff():
			return false
		case v&pci.RtStaPME != 0:
			s.clear() // so that the next one can show
			s.event(ctx, uint16(v&pci.RtStaFrom))
			waited = 0
		case v&pci.RtStaMore == 0:
			return false
		default:
			if waited++; waited >= spins {
				return true
			}
		}
	}
	return true
}

func (s *service) isOff() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.off
}

// rearm enables the interrupt. An event that came meanwhile interrupts then (6.1.6).
func (s *service) rearm() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.busy.Store(false)
	if !s.off {
		_ = s.interrupts(true) // it fails where the port is gone
	}
}

// disarm disables it for longer.
func (s *service) disarm() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.off = true
	return s.interrupts(false)
}

// arm enables it again, and forgets what was.
func (s *service) arm() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.off = false
	s.clear()
	return s.interrupts(true)
}

// Suspend is a bus.PowerHandler's.
func (s *service) Suspend(context.Context) error {
	for _, m := range s.port.Below() {
		if v, ok := portbus.PowerControl(m); ok && v&pci.PMCtlPMEEn != 0 {
			return nil // it may wake us up
		}
	}
	err := s.disarm()
	if err != nil { // it is not suspended then
		s.mu.Lock()
		s.off = false
		s.mu.Unlock()
		return err
	}
	s.clear()
	return nil
}

// Resume is a bus.PowerHandler's.
func (s *service) Resume(context.Context) error {
	if !s.isOff() {
		return nil
	}
	return s.arm()
}

// SlotReset sets the port up again after it was reset itself, unless it is suspended: Resume does it then; portbus.Restorer.
func (s *service) SlotReset(context.Context) error {
	if s.isOff() {
		return nil
	}
	return s.arm()
}

// Check is portbus.Keeper's.
func (s *service) Check() (wrong, missed string) {
	if !s.mu.TryLock() {
		return "", ""
	}
	defer s.mu.Unlock()
	if s.off || s.busy.Load() {
		return "", ""
	}
	if v := s.cfg.Read16(s.port.Express().At + pci.ExpRtCtl); v != 0xffff {
		s.kept = s.kept || v&pci.RtCtlPME != 0
		if s.kept && v&pci.RtCtlPME == 0 {
			wrong = fmt.Sprintf("Root Control=%#x, want %#x", v, pci.RtCtlPME)
		}
	}
	if v, ok := s.status(); ok && v&pci.RtStaPME != 0 {
		missed = fmt.Sprintf("Root Status=%#x", v)
	}
	return wrong, missed
}

// Repair is portbus.Keeper's.
func (s *service) Repair(context.Context, bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.off || s.busy.Load() {
		return nil
	}
	return s.interrupts(true)
}

// Close is portbus.Instance's.
func (s *service) Close() error {
	s.once.Do(func() {
		_ = s.disarm() // it fails where the port is gone
		s.stop()
		<-s.done
	})
	return nil
}
