package dpc

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

// Driver is the service driver, "dpc".
var Driver = portbus.ServiceDriver{
	Name: "dpc", Service: portbus.DPC, Port: portbus.AnyPort, Prefix: "DPC: ", Probe: probe,
}

// irqName is what /proc/interrupts shows.
const irqName = "pcie-dpc"

// Times.
const (
	// linkTime is how long the link may take to go down or to come up (Linux: pcie_wait_for_link).
	linkTime = time.Second
	// settleTime is how long nobody may ask what is below once the link is up (6.6.1).
	settleTime = 100 * time.Millisecond
	// busyTime is how long a root port may be busy. There is no limit in the specification.
	busyTime = time.Second
	// syncTime is how long hot-plug waits for a recovery.
	syncTime = 4 * time.Second
	step     = 10 * time.Millisecond
)

// Sizes of the RP PIO logs, in words (7.9.15.2).
const (
	logHeader = 4
	logImp    = 5
	logMost   = 9
)

// Service is the service of one port in service; portbus.Instance, portbus.Container, portbus.Restorer, bus.PowerHandler. Safe for
// concurrent use.
type Service struct {
	d    *portbus.Device
	port *portbus.Port
	cfg  bus.Config
	at   bus.Off // of the capability
	cap  uint16
	log  int // words of the RP PIO logs; 0: none

	asleep     atomic.Bool // suspended
	recovering atomic.Bool
	recovered  atomic.Bool

	wake *bus.Waker
	done chan struct{}
	stop context.CancelFunc
	once sync.Once
}

func probe(_ context.Context, d *portbus.Device) (portbus.Instance, error) {
	p := d.Port()
	s := &Service{d: d, port: p, cfg: d.Config(), at: p.DPC(), wake: bus.NewWaker(), done: make(chan struct{})}
	if s.cap = s.read(pci.DPCCap); s.cap == 0xffff {
		return nil, fmt.Errorf("%s: reading DPC Capability: it reads all-ones: %w", d.Name(), bus.ErrGone)
	}
	number, err := d.Handle(irqName, s.interrupt)
	if errors.Is(err, bus.ErrNotSupported) {
		return nil, fmt.Errorf("%w: %w", err, pci.ErrSkip) // there is no polling
	}
	if err != nil {
		return nil, err
	}
	if s.extended() {
		if s.log = int(s.cap & pci.DPCCapLogSize >> 8); s.log < logHeader || s.log > logMost {
			d.Log(slog.LevelError, "RP PIO log size %d is invalid", s.log)
			s.log = 0
		}
	}
	if err := s.enable(); err != nil {
		return nil, err
	}
	d.Log(slog.LevelInfo, "enabled with IRQ %d", number)
	d.Log(slog.LevelInfo, "error containment capabilities: Int Msg #%d, RPExt%c PoisonedTLP%c SwTrigger%c RP PIO Log %d, DL_ActiveErr%c",
		s.cap&pci.DPCCapMessage, s.flag(pci.DPCCapRP), s.flag(pci.DPCCapPoisoned), s.flag(pci.DPCCapTrigger), s.log, s.flag(pci.DPCCapActive))
	var ctx context.Context
	ctx, s.stop = context.WithCancel(p.Context())
	s.interrupt() // it may be contained already
	if v := s.read(pci.DPCSta); v != 0xffff && v&pci.DPCStaTriggered != 0 {
		s.wake.Wake()
	}
	go s.run(ctx)
	return s, nil
}

func (s *Service) read(r bus.Off) uint16 { return s.cfg.Read16(s.at + r) }

// extended says whether it is a root port with the extensions.
func (s *Service) extended() bool { return s.cap&pci.DPCCapRP != 0 }

func (s *Service) flag(bit uint16) rune {
	if s.cap&bit != 0 {
		return '+'
	}
	return '-'
}

// control changes what triggers and interrupts. The register is this service's alone.
func (s *Service) control(set uint16) error {
	v := s.read(pci.DPCCtl)
	if v == 0xffff {
		return fmt.Errorf("%s: changing DPC Control: it reads all-ones: %w", s.d.Name(), bus.ErrGone)
	}
	s.cfg.Write16(s.at+pci.DPCCtl, v&^(pci.DPCCtlFatal|pci.DPCCtlNonFatal|pci.DPCCtlIRQ|pci.DPCCtlTrigger)|set)
	return nil
}

func (s *Service) enable() error { return s.control(pci.DPCCtlFatal | pci.DPCCtlIRQ) }

// interrupt acknowledges.
func (s *Service) interrupt() bool {
	v := s.read(pci.DPCSta)
	if v == 0xffff || v&pci.DPCStaIRQ == 0 {
		return false
	}
	s.cfg.Write16(s.at+pci.DPCSta, pci.DPCStaIRQ)
	if v&pci.DPCStaTriggered != 0 {
		s.wake.Wake()
	}
	return true
}

// run handles one event after the other.
func (s *Service) run(ctx context.Context) {
	defer close(s.done)
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.wake.C():
			if v := s.read(pci.DPCSta); v != 0xffff && v&pci.DPCStaTriggered != 0 {
				s.handle(ctx)
			}
		}
	}
}

// Recovered is portbus.Container's.
func (s *Service) Recovered(ctx context.Context) bool {
	for waited := time.Duration(0); waited < syncTime; waited += step {
		v := s.read(pci.DPCSta)
		if contained := v != 0xffff && v&pci.DPCStaTriggered != 0; !contained && !s.recovering.Load() {
			break
		}
		if s.port.Sleep(ctx, step) != nil {
			return false
		}
	}
	return s.recovered.Swap(false)
}

// SlotReset sets the port up again after it was reset itself, unless it is suspended; portbus.Restorer.
func (s *Service) SlotReset(context.Context) error {
	if s.asleep.Load() {
		return nil
	}
	return s.enable()
}

// Suspend keeps the port from containing what is on its way to sleep: a link that goes down then is no error.
func (s *Service) Suspend(context.Context) error {
	err := s.control(0)
	s.asleep.Store(err == nil)
	return err
}

// Resume is a bus.PowerHandler's.
func (s *Service) Resume(context.Context) error {
	s.asleep.Store(false)
	return s.enable()
}

// Check is portbus.Keeper's. A port that is contained is at work.
func (s *Service) Check() (wrong, missed string) {
	if s.asleep.Load() || s.recovering.Load() {
		return "", ""
	}
	const want = pci.DPCCtlFatal | pci.DPCCtlIRQ
	if v := s.read(pci.DPCCtl); v != 0xffff && v&want != want {
		wrong = fmt.Sprintf("DPC Control=%#x, want %#x", v, want)
	}
	if v := s.read(pci.DPCSta); v != 0xffff && v&pci.DPCStaIRQ != 0 {
		missed = fmt.Sprintf("DPC Status=%#x", v)
	}
	return wrong, missed
}

// Repair is portbus.Keeper's.
func (s *Service) Repair(context.Context, bool) error {
	if s.asleep.Load() {
		return nil
	}
	return s.enable()
}

// Close is portbus.Instance's. A recovery that began comes to its end first; a port that is contained and for which none began stays so: whoever comes next
// releases it.
func (s *Service) Close() error {
	s.once.Do(func() {
		_ = s.control(0) // it fails where the port is gone
		s.stop()
		<-s.done
	})
	return nil
}
