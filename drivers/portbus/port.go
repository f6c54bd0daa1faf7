package portbus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/internal/profile"
	"github.com/ring3dev/ring3/sysfs"
)

// Classes of what the kernel's pcieport serves (PCI Code and ID Assignment 1.11, 1.7 and 1.9).
const (
	classBridge      = 0x060400 // PCI-to-PCI bridge
	classSubtractive = 0x060401
	classCollector   = 0x080700 // root complex event collector
	classAll         = 0xffffff
)

// DriverName is the PCI driver's, in files and messages.
const DriverName = "pcieport"

// PortDriver is the PCI driver that claims ports for this bus.
func (b *Bus) PortDriver() *pci.Driver {
	return &pci.Driver{
		Name: DriverName,
		IDs: []pci.ID{
			{Vendor: pci.Any, Device: pci.Any, Class: classBridge, ClassMask: classAll},
			{Vendor: pci.Any, Device: pci.Any, Class: classSubtractive, ClassMask: classAll},
			{Vendor: pci.Any, Device: pci.Any, Class: classCollector, ClassMask: classAll},
		},
		API:      1,
		Prefixed: true,
		Probe: func(ctx context.Context, dev bus.Device, env pci.Env) (pci.Instance, error) {
			return b.probePort(ctx, dev, env)
		},
	}
}

// Port is a port in service; pci.Instance, pci.IRQUser, pci.DirUser, bus.ErrorHandler, bus.MMIOHandler, bus.PowerHandler.
type Port struct {
	bus  *Bus
	dev  bus.Device
	cfg  bus.Config
	env  pci.Env
	addr pci.Addr
	// function is what services see of env.Function, and as much as there is without it.
	function *pci.Function
	exp      pci.Express
	caps     capabilities
	prof     *profile.Profile
	mode     bus.IRQMode
	irqs     []*vector
	finish   time.Duration // see finishTime
	regs     sync.Mutex    // a read-modify-write of a shared register
	ctx      context.Context
	cancel   context.CancelFunc
	looks    looks

	devices []*Device // in the order of their bits; fixed once it is probed

	closeOnce sync.Once
	closeErr  error
}

// capabilities are the extended ones that services are made of; 0: it has none.
type capabilities struct{ aer, dpc, vc bus.Off }

// probePort takes a port into service, whatever services it has.
func (b *Bus) probePort(ctx context.Context, dev bus.Device, env pci.Env) (*Port, error) {
	p := &Port{bus: b, dev: dev, cfg: dev.Config(), env: env, finish: finishTime}
	exp, ok := pci.FindExpress(p.cfg)
	if !ok {
		return nil, fmt.Errorf("%s: it has no PCI Express capability, or one that does not fit: %w", dev.Address(), pci.ErrSkip)
	}
	if !exp.IsPort() {
		return nil, fmt.Errorf("%s: it is a PCI Express %s and no port: %w", dev.Address(), exp.Type, pci.ErrSkip)
	}
	var err error
	if p.prof, err = profile.Find(env.Profile); err != nil {
		return nil, err
	}
	if p.addr, err = pci.ParseAddr(dev.Address()); err != nil {
		return nil, fmt.Errorf("%s: %w", dev.Address(), err)
	}
	p.exp = exp
	if f := env.Function; f != nil {
		p.function = f.WithConfig(readOnly{p.cfg})
	} else {
		p.function = &pci.Function{Addr: p.addr, ID: pci.ReadID(p.cfg), Config: readOnly{p.cfg}, Header: pci.HeaderBridge}
	}
	p.looks.over = make(chan struct{})
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.findExtended()
	p.looks.caps = p.caps
	p.check(&p.caps.aer, "Advanced Error Reporting", aerSize(exp))
	p.check(&p.caps.dpc, "Downstream Port Containment", dpcLeast)
	// A bridge forwards what those below it send, which its own driver has no other say in.
	pci.SetCommand(p.cfg, pci.CmdMaster|pci.CmdMem|pci.CmdIO, 0)
	offered := p.discover()
	p.looks.offered = offered
	p.silence(offered)
	if err := p.enableIRQs(offered); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	for bit := range services {
		s := Service(1 << bit)
		if offered&s == 0 {
			continue
		}
		d := &Device{port: p, service: s, name: fmt.Sprintf("%s:pcie%03x", p.addr, uint(exp.Type-pci.ExpRootPort)<<8|uint(s)), dir: &sysfs.Dir{}}
		d.config = newView(p, s)
		d.vector = p.vectorOf(s)
		p.devices = append(p.devices, d)
	}
	b.add(ctx, p)
	p.startLooking()
	if err := dev.Err(); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: the port died while it was probed: %w", p.addr, err), p.Close())
	}
	return p, nil
}

// findExtended finds the extended capabilities.
func (p *Port) findExtended() {
	for id, at := range map[uint16]*bus.Off{pci.ExtCapAER: &p.caps.aer, pci.ExtCapDPC: &p.caps.dpc, pci.ExtCapVC: &p.caps.vc} {
		*at, _ = pci.FindExtCap(p.cfg, id)
	}
}

// check forgets a capability whose registers do not fit before the next one: it would be changed with it.
func (p *Port) check(at *bus.Off, name string, size bus.Off) {
	if end := next(p.cfg, *at); *at != 0 && *at+size > end {
		p.Log(slog.LevelWarn, "the capability %s at %#x has %#x bytes, want %#x: it is not used", name, uint(*at), uint(end-*at), uint(size))
		*at = 0
	}
}

// discover finds out what the port offers (PCI Express Base 5.0, 7.5.3 and 7.9; the kernel's rules).
func (p *Port) discover() (s Service) {
	if p.exp.HasRoot() {
		s |= PME
	}
	if p.caps.aer != 0 && (p.exp.HasRoot() || p.prof.Ports.AEREverywhere) {
		s |= AER
	}
	if p.exp.Slot && p.exp.HasLink() && p.cfg.Read32(p.exp.At+pci.ExpSltCap)&pci.SltCapHotPlug != 0 {
		s |= HP
	}
	if p.caps.dpc != 0 && p.caps.aer != 0 && p.exp.HasLink() {
		s |= DPC
	}
	if p.exp.HasLink() && p.cfg.Read32(p.exp.At+pci.ExpLnkCap)&pci.LnkCapNotify != 0 {
		s |= BW
	}
	if p.caps.vc != 0 {
		s |= VC
	}
	return s
}

// silence disables what firmware, or a driver before, may have left enabled: nobody would acknowledge it. What the port
// detects is reported from now on.
func (p *Port) silence(s Service) {
	if s&HP != 0 {
		p.modify(p.exp.At+pci.ExpSltCtl, pci.SltCtlCmd|pci.SltCtlHP, 0)
	}
	if s&PME != 0 {
		p.modify(p.exp.At+pci.ExpRtCtl, pci.RtCtlPME, 0)
	}
	if s&BW != 0 {
		p.modify(p.exp.At+pci.ExpLnkCtl, pci.LnkCtlLBMIE|pci.LnkCtlLABIE, 0)
	}
	if s&AER != 0 && p.exp.HasRoot() {
		p.cfg.Write32(p.caps.aer+pci.AERRootCmd, 0)
	}
	if p.caps.aer != 0 {
		// What it reports goes to the root port's service, whoever serves this port: all that can report do (Linux, pci_aer_init).
		p.modify(p.exp.At+pci.ExpDevCtl, 0, pci.DevCtlErrors)
	}
	if s&DPC != 0 {
		p.modify(p.caps.dpc+pci.DPCCtl, pci.DPCCtlFatal|pci.DPCCtlNonFatal|pci.DPCCtlIRQ, 0)
	}
}

// modify is one locked read-modify-write of a 16-bit register. A port that does not answer is left alone.
func (p *Port) modify(reg bus.Off, clear, set uint16) (old uint16) {
	p.regs.Lock()
	defer p.regs.Unlock()
	old = p.cfg.Read16(reg)
	if v := old&^clear | set; v != old && old != 0xffff {
		p.cfg.Write16(reg, v)
	}
	return old
}

// Addr is the port's address.
func (p *Port) Addr() pci.Addr { return p.addr }

// Express is its PCI Express capability.
func (p *Port) Express() pci.Express { return p.exp }

// AER, DPC and VC are the offsets of those capabilities, 0 where it has none.
func (p *Port) AER() bus.Off { return p.caps.aer }

// DPC is the offset of Downstream Port Containment, or 0.
func (p *Port) DPC() bus.Off { return p.caps.dpc }

// VC is the offset of the Virtual Channel capability, or 0.
func (p *Port) VC() bus.Off { return p.caps.vc }

// Hierarchy is who owns the bus; nil where nobody does. The port itself is there what Member is. It is a pci.Waker if the owner is; of what else the owner
// offers Port has methods.
func (p *Port) Hierarchy() pci.Hierarchy {
	if p.env.Bus == nil {
		return nil
	}
	b := ownBus{p.env.Bus, p}
	if w, ok := p.env.Bus.(pci.Waker); ok {
		return ownWaker{b, w}
	}
	return b
}

// Profile says which kernel's texts are followed.
func (p *Port) Profile() profile.Ports { return p.prof.Ports }

// Name is the user's name of the port.
func (p *Port) Name() string { return p.env.Name }

// Err is why the port is dead, or as good as that; nil while it lives.
func (p *Port) Err() error {
	if err := p.looks.failed.Load(); err != nil {
		return *err
	}
	return p.dev.Err()
}

// Clock is the time that the port lives in.
func (p *Port) Clock() bus.Clock { return bus.ClockOf(p.dev) }

// Sleep waits by the port's clock.
func (p *Port) Sleep(ctx context.Context, d time.Duration) error {
	return bus.Sleep(ctx, p.Clock(), d)
}

// Context ends when the port is closed.
func (p *Port) Context() context.Context { return p.ctx }

// Bus is the bus of its services.
func (p *Port) Bus() *Bus { return p.bus }

// Function is what enumeration found out about the port until it came into service; nil where nobody told. Its config space is read only.
func (p *Port) Function() *pci.Function {
	if p.env.Function == nil {
		return nil
	}
	return p.function
}

// Member is the port itself, as others see it, to read: its config space takes no writes, and neither interrupts nor resets are to be had from
// its device. ClearErrors and the like do what is a service's business.
func (p *Port) Member() *pci.Member {
	if h := p.env.Bus; h != nil {
		if m := h.Find(p.addr); m != nil {
			return p.own(m)
		}
	}
	return p.own(&pci.Member{Function: p.function, Name: p.env.Name, Driver: DriverName, Use: func(f func(pci.Instance)) { f(p) }})
}

// Below are the functions behind the port.
func (p *Port) Below() []*pci.Member {
	if p.env.Bus == nil {
		return nil
	}
	return p.env.Bus.Below(p.addr)
}

// Others are the functions behind the port that somebody else has, the kernel, as messages call them.
func (p *Port) Others() []string {
	if h, ok := p.env.Bus.(pci.Foreign); ok {
		return h.Others(p.addr)
	}
	return nil
}

// Log writes a message as the kernel's pci_info does: "pcieport 1000:00:04.0: ...".
func (p *Port) Log(level slog.Level, format string, args ...any) {
	if p.env.Log != nil {
		p.env.Log.Log(context.Background(), level, DriverName+" "+p.addr.String()+": "+fmt.Sprintf(format, args...))
	}
}

// Print writes a message that names no function: "pci_hotplug: ...".
func (p *Port) Print(level slog.Level, format string, args ...any) {
	if p.env.Log != nil {
		p.env.Log.Log(context.Background(), level, fmt.Sprintf(format, args...))
	}
}

// LogOf writes a message about another function: "e1000 1000:01:00.0: ...".
func (p *Port) LogOf(m *pci.Member, level slog.Level, format string, args ...any) {
	if p.env.Log != nil {
		p.env.Log.Log(context.Background(), level, m.Label()+": "+fmt.Sprintf(format, args...))
	}
}

// Service finds the driver's instance of a service of this port; nil where nobody serves it. It is for
// looking at what the instance implements, and may be closed at any time. It waits for nobody: a service asks for another one while
// it is itself waited for, by whoever closes it.
func (p *Port) Service(s Service) Instance {
	for _, d := range p.devices {
		if d.service != s {
			continue
		}
		if inst := d.live.Load(); inst != nil {
			return *inst
		}
	}
	return nil
}

// uevent tells of a service device.
func (p *Port) uevent(action string, d *Device, env ...string) {
	if p.env.Bus != nil && p.env.Function != nil {
		p.env.Bus.Uevent(action, pci.SysfsPath(p.env.Function)+"/"+d.name, "pci_express", env...)
	}
}

// Dirs are the directories of the services; pci.DirUser.
func (p *Port) Dirs() map[string]*sysfs.Dir {
	dirs := map[string]*sysfs.Dir{}
	for _, d := range p.devices {
		dirs[d.name] = d.dir
	}
	return dirs
}

// Close takes the port out of service: its services in order, then its interrupts.
func (p *Port) Close() error {
	p.closeOnce.Do(func() {
		p.cancel()
		p.closeErr = p.bus.remove(p)
		if p.looks.mended != nil { // it was begun
			<-p.looks.over
		}
		for _, v := range p.irqs {
			p.closeErr = errors.Join(p.closeErr, v.handler.Close())
		}
		p.closeErr = errors.Join(p.closeErr, p.dev.DisableIRQs())
	})
	if errors.Is(p.closeErr, bus.ErrGone) {
		return nil
	}
	return p.closeErr
}
