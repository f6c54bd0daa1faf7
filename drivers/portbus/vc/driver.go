package vc

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/drivers/portbus"
	"github.com/ring3dev/ring3/sysfs"
)

// Driver is the service driver, "pcie_vc".
var Driver = portbus.ServiceDriver{
	Name: "pcie_vc", Service: portbus.VC, Port: portbus.AnyPort, Prefix: "VC: ", Probe: probe,
}

// How long a port may take to load a table. The specification has no limit.
const (
	loadTime = time.Second
	loadStep = time.Millisecond
)

// service serves one port. It has no interrupt and no goroutine.
type service struct {
	d    *portbus.Device
	port *portbus.Port
	cfg  bus.Config
	at   bus.Off
	layout

	ctx  context.Context // ends in Close
	stop context.CancelFunc

	mu    sync.Mutex // held while something is changed; guards saved
	saved state
}

// state is all that can be set.
type state struct {
	ctl    uint16
	vc     []uint32 // words of the VC arbitration table
	resCtl []uint32
	ports  [][]uint32 // and of the port arbitration tables
}

func probe(_ context.Context, d *portbus.Device) (portbus.Instance, error) {
	p := d.Port()
	s := &service{d: d, port: p, cfg: d.Config(), at: p.VC()}
	if s.cfg.Read32(s.at+pci.VCCap1) == 0xffffffff {
		return nil, fmt.Errorf("reading Port VC Capability 1: it reads all-ones: %w", bus.ErrGone)
	}
	s.layout = readLayout(s.cfg, s.at, end(p))
	if s.resources == 0 {
		return nil, fmt.Errorf("the Virtual Channel capability at %#x does not fit into config space: %w", uint(s.at), bus.ErrProtocol)
	}
	s.ctx, s.stop = context.WithCancel(p.Context())
	s.saved = s.save()
	return s, nil
}

// end is where the capability ends at the latest: where the next one begins.
func end(p *portbus.Port) bus.Off {
	c := p.Member().Device.Config()
	end := bus.Off(c.Size())
	for _, at := range pci.ExtCaps(c) {
		if at > p.VC() {
			end = min(end, at)
		}
	}
	return end
}

// failf is an error of the service's.
func (s *service) failf(format string, args ...any) error {
	return fmt.Errorf("%s: "+format, append([]any{s.d.Name()}, args...)...)
}

// control is VC Resource Control of a resource.
func (s *service) control(n int) (uint32, error) {
	v := s.cfg.Read32(s.at + resCtl(n))
	if v == 0xffffffff {
		return v, s.failf("VC Resource Control of vc%d reads all-ones: %w (%w)", n, bus.ErrGone, unix.EIO)
	}
	return v, nil
}

// setControl writes it, and sees that it was taken.
func (s *service) setControl(n int, old, v uint32) error {
	reg := s.at + resCtl(n)
	s.cfg.Write32(reg, v)
	if got := s.cfg.Read32(reg); got != v {
		s.cfg.Write32(reg, old)
		return s.failf("VC Resource Control of vc%d is %#x, want %#x: %w (%w)", n, got, v, bus.ErrProtocol, unix.EIO)
	}
	return nil
}

// portControl is Port VC Control.
func (s *service) portControl() (uint16, error) {
	v := s.cfg.Read16(s.at + pci.VCCtl)
	if v == 0xffff {
		return v, s.failf("Port VC Control reads all-ones: %w (%w)", bus.ErrGone, unix.EIO)
	}
	return v, nil
}

// change runs one change, alone, and remembers what there is then.
func (s *service) change(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.ctx.Err(); err != nil {
		return s.failf("the service is closed: %w", unix.ENODEV)
	}
	if err := f(ctx); err != nil {
		return err
	}
	s.saved = s.save()
	return nil
}

// save reads all that can be set.
func (s *service) save() state {
	st := state{ctl: s.cfg.Read16(s.at + pci.VCCtl)}
	st.vc = s.words(s.vc, s.vcSelected())
	for n := range s.resources {
		ctl := s.cfg.Read32(s.at + resCtl(n))
		st.resCtl = append(st.resCtl, ctl)
		st.ports = append(st.ports, s.words(s.layout.port[n], selectOf(ctl)))
	}
	return st
}

// restore writes it all back: maps and tables first, then what is enabled.
func (s *service) restore(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.saved
	var errs []error
	for n, ctl := range st.resCtl {
		s.cfg.Write32(s.at+resCtl(n), ctl&^pci.VCResLoad)
		if words := st.ports[n]; words != nil && portArbitrations[min(selectOf(ctl), len(portArbitrations)-1)].phases > 0 {
			s.write(s.layout.port[n], words)
			errs = append(errs, s.loadPort(ctx, n))
		}
	}
	s.cfg.Write16(s.at+pci.VCCtl, st.ctl&^pci.VCCtlLoad)
	if st.vc != nil && s.vcSelected() > 0 {
		s.write(s.vc, st.vc)
		errs = append(errs, s.loadVC(ctx))
	}
	return errors.Join(errs...)
}

// Suspend is a bus.PowerHandler's: what was set is known already.
func (s *service) Suspend(context.Context) error { return nil }

// Resume is a bus.PowerHandler's.
func (s *service) Resume(ctx context.Context) error { return s.restore(ctx) }

// SlotReset brings back what was set; portbus.Restorer.
func (s *service) SlotReset(ctx context.Context) error { return s.restore(ctx) }

// Attrs are the files of the port; pci.AttrUser.
func (s *service) Attrs() map[string]*sysfs.File {
	files := map[string]*sysfs.File{
		"low_priority_vcs": sysfs.Showf("%d", s.low),
		"vc_arbitration":   sysfs.Attr(0o644, s.showVCArbitration, s.storeVCArbitration),
	}
	if s.vc.phases(0) > 0 {
		files["vc_arbitration_table"] = sysfs.Attr(0o644, s.showVCTable, s.storeVCTable)
	}
	return files
}

// Dirs are the directories of the channels; pci.DirUser.
func (s *service) Dirs() map[string]*sysfs.Dir {
	dirs := map[string]*sysfs.Dir{}
	for n := range s.resources {
		d := &sysfs.Dir{}
		for name, f := range s.files(n) {
			d.Put(name, f)
		}
		dirs["vc"+strconv.Itoa(n)] = d
	}
	return dirs
}

// Close is portbus.Instance's. Whoever changes something ends; what was set stays.
func (s *service) Close() error {
	s.stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	return nil
}

// ids are the VC IDs of all resources, or of those that are enabled.
func (s *service) ids(enabled bool, except int) (ids []uint32, err error) {
	for n := range s.resources {
		ctl, err := s.control(n)
		if err != nil {
			return nil, err
		}
		if n != except && (enabledOf(ctl) || !enabled) {
			ids = append(ids, idOf(ctl))
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids), nil
}
