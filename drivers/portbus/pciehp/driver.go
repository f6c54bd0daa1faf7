package pciehp

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/drivers/portbus"
)

// Name is the driver's, in files and messages.
const Name = "pciehp"

const prefix = Name + ": "

// Options are the kernel module's parameters.
type Options struct {
	// Poll: slots do not interrupt, and are looked at every PollTime (pciehp_poll_mode).
	Poll bool
	// PollTime is 1 to 60 s; anything else is 2 s (pciehp_poll_time).
	PollTime time.Duration
}

// Driver is the hot-plug service's driver, for one portbus.Bus.
func Driver(o Options) *portbus.ServiceDriver {
	if o.PollTime < time.Second || o.PollTime > time.Minute {
		o.PollTime = pollTime
	}
	names := &sync.Mutex{} // one slot is named at a time
	return &portbus.ServiceDriver{
		Name: Name, Service: portbus.HP, Port: portbus.AnyPort, Prefix: prefix,
		Probe: func(ctx context.Context, d *portbus.Device) (portbus.Instance, error) {
			s, err := probe(ctx, d, o, names)
			if err != nil {
				return nil, err
			}
			return s, nil
		},
	}
}

// Slot is a slot in service; portbus.Instance, portbus.SlotResetter, portbus.Restorer, bus.PowerHandler.
type Slot struct {
	dev   *portbus.Device
	port  *portbus.Port
	cfg   bus.Config
	clock bus.Clock
	exp   bus.Off // of the PCI Express capability
	caps  uint32  // Slot Capabilities
	opts  Options
	poll  bool // there are no interrupts
	// listens are the bits of notification that are set while the slot is in service.
	listens uint16
	// inBand: presence in the link does not count as presence in the slot, so that the link may be there first.
	inBand bool
	name   string // of the directory, and in messages
	unshow func() // takes the directory away

	ownSpeed atomic.Uint32 // speed's, where nobody knows the function

	ctx    context.Context // ends when the slot is taken out of service
	cancel context.CancelFunc
	worker sync.WaitGroup
	kick   chan struct{} // there may be something for the worker
	ready  chan struct{} // closed when the state is known
	// hold is held while events are acted on, the bus behind is reset, or the slot is put to sleep or woken; guards what follows. The worker
	// lets go of it wherever it waits for others.
	hold    chan struct{}
	away    bool          // the worker let go of it, and goes on later
	recall  func()        // ends what it calls meanwhile, if that has not begun; nil while it is not away
	upsets  int           // counts resets and suspensions
	resumed chan struct{} // closed when the slot is not suspended any more

	cmd    sync.Mutex    // one command at a time; guards the next two
	issued time.Duration // when the last one was
	last   uint16        // what it wrote

	sta     sync.Mutex // one look at Slot Status at a time; guards what follows. Last in the order of locks
	pending events
	asked   events        // by waiters
	waiters []waiter      // who wrote to the file power
	busy    chan struct{} // closed when the command under way completes; nil: none is
	faulted bool          // a power fault was told of
	stuck   uint16        // events that could not be acknowledged
	mute    bool          // only completed commands are taken in
	deaf    bool          // so it is, since somebody else switched the slot's interrupts off
	silent  bool          // it was told that the port does not answer
	again   func() bool   // stops the timer of the next look; nil: there is none
	// suspended: neither events nor files count. It changes with hold held too, so each of both is enough to read it.
	suspended bool

	mu    sync.Mutex // guards what follows
	state state
	press int         // counts button presses and what undid them
	grace func() bool // stops the timer of the last press; nil: there is none

	closeOnce sync.Once
	closeErr  error
}

// probe takes a slot into service.
func probe(ctx context.Context, d *portbus.Device, o Options, names *sync.Mutex) (*Slot, error) {
	p := d.Port()
	s := &Slot{
		dev: d, port: p, cfg: d.Config(), clock: p.Clock(), exp: p.Express().At, opts: o,
		kick: make(chan struct{}, 1), ready: make(chan struct{}), hold: make(chan struct{}, 1),
	}
	if f := p.Function(); f != nil && f.Secondary == 0 {
		s.log(slog.LevelError, "Hotplug bridge without secondary bus, ignoring")
		return nil, fmt.Errorf("probing: no bus is behind the port: %w", pci.ErrSkip)
	}
	if s.caps = s.cfg.Read32(s.exp + pci.ExpSltCap); s.caps == 0xffffffff {
		return nil, fmt.Errorf("probing: Slot Capabilities read all-ones: %w", bus.ErrGone)
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	if err := s.start(ctx, names); err != nil {
		s.cancel()
		s.stopLooking()
		return nil, err
	}
	s.worker.Go(s.work)
	return s, nil
}

// start sets the slot's registers up.
func (s *Slot) start(ctx context.Context, names *sync.Mutex) error {
	if s.port.Express().Version >= 2 && s.cfg.Read32(s.exp+pci.ExpSltCap2)&pci.SltCap2InBand != 0 {
		if err := s.command(ctx, 0, pci.SltCtlInBand, false); err != nil {
			return fmt.Errorf("disabling in-band presence detection: %w", err)
		}
		s.inBand = true
	}
	// All events at once, set or not, as the kernel does. QEMU takes that for a reason to keep those that are set, so a card and a button
	// that came before the driver are still seen by it, there as here.
	s.cfg.Write16(s.exp+pci.ExpSltSta, pci.SltStaEvents)
	s.banner()
	if s.caps&pci.SltCapPower != 0 {
		if present, link := s.occupied(); !present && !link && s.powered() {
			// Nobody put it to use, and what comes into the slot later must not come into a live one.
			if err := s.command(ctx, notification, pci.SltCtlPowerOff, true); err != nil {
				return fmt.Errorf("switching the empty slot off: %w", err)
			}
		}
	}
	s.publish(names)
	if err := s.listen(ctx); err != nil {
		s.unshow()
		return err
	}
	return nil
}

// banner is the line that the kernel prints about a slot.
func (s *Slot) banner() {
	flag := func(on bool) byte {
		if on {
			return '+'
		}
		return '-'
	}
	has := func(bit uint32) byte { return flag(s.caps&bit != 0) }
	s.log(slog.LevelInfo, "Slot #%d AttnBtn%c PwrCtrl%c MRL%c AttnInd%c PwrInd%c HotPlug%c Surprise%c Interlock%c NoCompl%c IbPresDis%c LLActRep%c",
		s.number(), has(pci.SltCapButton), has(pci.SltCapPower), has(pci.SltCapMRL), has(pci.SltCapAttnLED), has(pci.SltCapPowerLED),
		has(pci.SltCapHotPlug), has(pci.SltCapSurprise), has(pci.SltCapLock), has(pci.SltCapNoCmd), flag(s.inBand), flag(s.reportsLink()))
}

// number is the Physical Slot Number.
func (s *Slot) number() uint32 { return s.caps & pci.SltCapSlot >> pci.SltCapSlotAt }

// Name is the slot's, as its directory is called.
func (s *Slot) Name() string { return s.name }

// State says what the slot is in, for people: "on".
func (s *Slot) State() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state.String()
}

// log writes a message of the slot's. Unlike Device.Log it may be called at any time.
func (s *Slot) log(level slog.Level, format string, args ...any) {
	s.port.Log(level, prefix+format, args...)
}

// say is log about the slot: "Slot(1): ...".
func (s *Slot) say(level slog.Level, format string, args ...any) {
	s.log(level, "Slot(%s): "+format, append([]any{s.name}, args...)...)
}

// Close takes the slot out of service: its files go, what it is doing ends, and it does not interrupt any more. A card that is on
// stays on.
func (s *Slot) Close() error {
	s.closeOnce.Do(func() {
		s.unshow()
		s.cancel()
		s.worker.Wait()
		s.hold <- struct{}{} // a reset may be under way, and has its end first
		defer s.release()
		s.mu.Lock()
		s.calm()
		s.mu.Unlock()
		s.stopLooking()
		s.deafen(true)
		if s.port.Err() == nil {
			ctx, cancel := context.WithTimeout(context.Background(), commandTimePolled)
			defer cancel()
			s.closeErr = s.command(ctx, notification, 0, true)
		}
	})
	if s.port.Err() != nil {
		return nil
	}
	return s.closeErr
}
