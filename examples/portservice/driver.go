package slotcount

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/drivers/portbus"
	"github.com/ring3dev/ring3/sysfs"
)

// Driver serves the slots of root ports and downstream ports.
var Driver = portbus.ServiceDriver{
	Name: "slotcount", Service: portbus.HP, Port: portbus.AnyPort, Prefix: "slotcount: ", Probe: probe,
}

// irqName is what /proc/interrupts shows.
const irqName = "slotcount"

// kinds are the events: their bits in Slot Status (7.5.3.11), those that enable them in Slot Control (7.5.3.10), and what
// of Slot Capabilities says that there is such a thing (0: always).
var kinds = [...]struct {
	name           string
	status, enable uint16
	capability     uint32
}{
	{"button", pci.SltStaButton, pci.SltCtlButton, pci.SltCapButton},
	{"power_fault", pci.SltStaFault, pci.SltCtlFault, pci.SltCapPower},
	{"latch", pci.SltStaMRL, pci.SltCtlMRL, pci.SltCapMRL},
	{"presence", pci.SltStaPresence, pci.SltCtlPresence, 0},
	{"link", pci.SltStaLink, pci.SltCtlLink, 0},
}

// maxLooks bounds how often an interrupt looks again: a port whose events cannot be cleared must not keep the others of
// its vector from being served.
const maxLooks = 16

// service serves one slot.
type service struct {
	dev    *portbus.Device
	cfg    bus.Config
	exp    bus.Off // of the PCI Express capability
	enable uint16  // the bits of Slot Control that are ours

	counts [len(kinds)]atomic.Uint64
	news   atomic.Uint32 // bits of Slot Status that were seen and not told of yet

	wake *bus.Waker
	ctx  context.Context
	stop context.CancelFunc
	done chan struct{}
	once sync.Once
}

// probe takes a slot into service.
func probe(_ context.Context, d *portbus.Device) (portbus.Instance, error) {
	p := d.Port()
	s := &service{dev: d, cfg: d.Config(), exp: p.Express().At, enable: pci.SltCtlHP, wake: bus.NewWaker(), done: make(chan struct{})}
	caps := s.cfg.Read32(s.exp + pci.ExpSltCap)
	for _, k := range kinds {
		if caps&k.capability == k.capability {
			s.enable |= k.enable
		}
	}
	if _, err := d.Handle(irqName, s.interrupt); err != nil {
		return nil, fmt.Errorf("its interrupt: %w", err)
	}
	if err := s.start(); err != nil {
		return nil, fmt.Errorf("enabling the slot's interrupts: %w", err)
	}
	s.ctx, s.stop = context.WithCancel(p.Context())
	go s.run()
	d.Log(slog.LevelInfo, "counting, Slot Control enables %#04x", s.enable)
	return s, nil
}

// start forgets what was, and lets the slot interrupt.
func (s *service) start() error {
	s.cfg.Write16(s.exp+pci.ExpSltSta, s.cfg.Read16(s.exp+pci.ExpSltSta)&pci.SltStaEvents)
	_, err := s.dev.Modify(pci.ExpSltCtl, pci.SltCtlCmd, s.enable, false)
	return err
}

// quiet keeps it from interrupting.
func (s *service) quiet() error {
	_, err := s.dev.Modify(pci.ExpSltCtl, s.enable, 0, false)
	return err
}

// interrupt reads, acknowledges, signals, and says whether it was meant. A message is sent when the first event comes, and none
// while something is left (6.7.3.4): so it looks until there is nothing.
func (s *service) interrupt() (meant bool) {
	for range maxLooks {
		v := s.cfg.Read16(s.exp + pci.ExpSltSta)
		if v == 0xffff || v&pci.SltStaEvents == 0 { // all-ones: the port is gone
			break
		}
		s.cfg.Write16(s.exp+pci.ExpSltSta, v&pci.SltStaEvents) // ones clear; what was not read stays
		for i, k := range kinds {
			if v&k.status != 0 {
				s.counts[i].Add(1)
				s.news.Or(uint32(k.status))
				meant = true
			}
		}
	}
	if meant {
		s.wake.Wake()
	}
	return meant
}

// run tells of events.
func (s *service) run() {
	defer close(s.done)
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-s.wake.C():
			s.tell(uint16(s.news.Swap(0)))
		}
	}
}

func (s *service) tell(events uint16) {
	var names []string
	for _, k := range kinds {
		if events&k.status != 0 {
			names = append(names, k.name)
		}
	}
	if len(names) == 0 {
		return
	}
	said := strings.Join(names, " ")
	s.dev.Log(slog.LevelInfo, "%s", said)
	p := s.dev.Port()
	if h, f := p.Hierarchy(), p.Function(); h != nil && f != nil {
		h.Uevent("change", pci.SysfsPath(f), "pci", "SLOT_EVENTS="+said)
	}
}

// Attrs are the service's files; pci.AttrUser.
func (s *service) Attrs() map[string]*sysfs.File {
	show := func(w *bytes.Buffer) error {
		for i, k := range kinds {
			fmt.Fprintln(w, k.name, s.counts[i].Load())
		}
		return nil
	}
	store := func(_ context.Context, p []byte) (int, error) {
		if _, err := sysfs.ParseUint(string(p), 0); err != nil {
			return 0, err
		}
		for i := range s.counts {
			s.counts[i].Store(0)
		}
		return len(p), nil
	}
	return map[string]*sysfs.File{"slot_events": sysfs.Attr(0o644, show, store)}
}

// Suspend is a bus.PowerHandler's: before the port sleeps.
func (s *service) Suspend(context.Context) error { return s.quiet() }

// Resume is a bus.PowerHandler's.
func (s *service) Resume(context.Context) error { return s.start() }

// SlotReset sets the registers up again after the port itself was reset; portbus.Restorer.
func (s *service) SlotReset(context.Context) error { return s.start() }

// Close is a portbus.Instance's. The bus takes the handler away after it.
func (s *service) Close() error {
	s.once.Do(func() {
		_ = s.quiet() // it fails where the port is gone, and then nothing interrupts
		s.stop()
		<-s.done
	})
	return nil
}
