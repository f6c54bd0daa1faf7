package aer

import (
	"context"
	"fmt"
	"log/slog"
	"sync"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/drivers/portbus"
)

// Driver is the service driver, "aer". It is offered every port, and declines those that receive no messages, as the kernel's does.
var Driver = portbus.ServiceDriver{
	Name: "aer", Service: portbus.AER, Port: portbus.AnyPort, Prefix: "AER: ", Probe: probe,
}

// irqName is what /proc/interrupts shows.
const irqName = "aerdrv"

// instance serves one root port or event collector. Its handler queues messages, its goroutine works them off. Lock order: cmd, irq.
type instance struct {
	d    *portbus.Device
	port *portbus.Port
	cfg  bus.Config
	at   bus.Off // of the capability

	irq sync.Mutex // held while Root Error Status is read and cleared
	q   queue
	gap int // rounds in a row in which status would not become clear; the goroutine's

	cmd    sync.Mutex // guards Root Error Command, and:
	on     bool
	asleep bool // suspended
	masked bool // while what is below is reset: see interrupts
	closed bool
	kept   uint16 // which bits of Device Control were seen set

	wake chan struct{}
	done chan struct{}
	ctx  context.Context // ends in Close
	stop context.CancelFunc
	once sync.Once
}

func probe(_ context.Context, d *portbus.Device) (portbus.Instance, error) {
	p := d.Port()
	if !p.Express().HasRoot() {
		return nil, fmt.Errorf("%s: a %s receives no error messages: %w", d.Name(), p.Express().Type, pci.ErrSkip)
	}
	i := &instance{
		d: d, port: p, cfg: d.Config(), at: p.AER(),
		wake: make(chan struct{}, 1), done: make(chan struct{}),
	}
	i.ctx, i.stop = context.WithCancel(p.Context())
	number, err := d.Handle(irqName, i.interrupt)
	if err == nil {
		err = i.enable()
	}
	if err != nil {
		i.stop()
		return nil, err
	}
	go i.run()
	d.Log(slog.LevelInfo, "enabled with IRQ %d", number)
	return i, nil
}

// enable clears what was recorded before anybody listened, and lets the port interrupt (PCI Express Base 5.0, 6.2.4.1, 6.2.6).
func (i *instance) enable() error {
	if err := i.port.Err(); err != nil {
		return fmt.Errorf("%s: enabling interrupts: %w", i.d.Name(), err)
	}
	sta := i.port.Express().At + pci.ExpDevSta
	if v := i.cfg.Read16(sta) & pci.DevStaErrors; v != 0 {
		i.cfg.Write16(sta, v)
	}
	// Messages become interrupts here, and no system errors.
	if _, err := i.d.Modify(pci.ExpRtCtl, pci.RtCtlSysErr, 0, false); err != nil {
		return fmt.Errorf("%s: disabling system errors: %w", i.d.Name(), err)
	}
	if _, err := i.d.Modify(pci.ExpDevCtl, 0, pci.DevCtlErrors, false); err != nil {
		return fmt.Errorf("%s: enabling reports: %w", i.d.Name(), err)
	}
	i.clear(pci.AERRootSta)
	i.clear(pci.AERCorSta)
	i.clear(pci.AERUncSta)
	i.cmd.Lock()
	defer i.cmd.Unlock()
	i.on = !i.closed && !i.asleep
	i.command(i.on)
	return nil
}

// disable is the other way round.
func (i *instance) disable() {
	i.cmd.Lock()
	i.on = false
	i.command(false)
	i.cmd.Unlock()
	i.clear(pci.AERRootSta)
}

// clear clears a status register, in which each bit may be set.
func (i *instance) clear(reg bus.Off) {
	if v := i.cfg.Read32(i.at + reg); v != 0 && !i.port.Gone() {
		i.cfg.Write32(i.at+reg, v)
	}
}

// command enables or disables the interrupts of all severities. It reads back what it wrote, since nothing may interrupt when a reset begins, and
// a port that was not enabled would be silent for good; so it tries twice. cmd is held.
func (i *instance) command(on bool) {
	want := uint32(0)
	if on {
		want = pci.RootCmdAll
	}
	for range 2 {
		old := i.cfg.Read32(i.at + pci.AERRootCmd)
		if old == 0xffffffff {
			continue
		}
		i.cfg.Write32(i.at+pci.AERRootCmd, old&^pci.RootCmdAll|want)
		if v := i.cfg.Read32(i.at + pci.AERRootCmd); v != 0xffffffff && v&pci.RootCmdAll == want {
			return
		}
	}
}

// Suspend keeps error messages of what is being suspended below from waking anybody up; bus.PowerHandler.
func (i *instance) Suspend(context.Context) error {
	i.sleep(true)
	i.disable()
	return nil
}

// sleep notes that the port is suspended, or not any more.
func (i *instance) sleep(on bool) {
	i.cmd.Lock()
	defer i.cmd.Unlock()
	i.asleep = on
}

// Resume begins anew; bus.PowerHandler.
func (i *instance) Resume(context.Context) error {
	i.sleep(false)
	return i.enable()
}

// SlotReset sets the registers up again after the port was reset, but lets no suspended port interrupt; portbus.Restorer.
func (i *instance) SlotReset(context.Context) error { return i.enable() }

// Check is portbus.Keeper's. A status that reads all-ones may be true, or the port gone: neither is for it to say.
func (i *instance) Check() (wrong, missed string) {
	if !i.cmd.TryLock() {
		return "", ""
	}
	defer i.cmd.Unlock()
	if !i.on || i.masked {
		return "", ""
	}
	exp := i.port.Express().At
	if v := i.cfg.Read32(i.at + pci.AERRootCmd); v != 0xffffffff && v&pci.RootCmdAll != pci.RootCmdAll {
		wrong = fmt.Sprintf("Root Error Command=%#x, want %#x", v, pci.RootCmdAll)
	} else if v := i.cfg.Read16(exp + pci.ExpDevCtl); v != 0xffff {
		if i.kept |= v & pci.DevCtlErrors; v&i.kept != i.kept {
			wrong = fmt.Sprintf("Device Control=%#x, want %#x", v, i.kept)
		}
	}
	if v := i.cfg.Read32(i.at + pci.AERRootSta); v != 0xffffffff && v&received != 0 {
		missed = fmt.Sprintf("Root Error Status=%#x", v)
	}
	return wrong, missed
}

// Repair is enable without forgetting what was recorded; portbus.Keeper.
func (i *instance) Repair(context.Context, bool) error {
	if _, err := i.d.Modify(pci.ExpRtCtl, pci.RtCtlSysErr, 0, false); err != nil {
		return err
	}
	if _, err := i.d.Modify(pci.ExpDevCtl, 0, pci.DevCtlErrors, false); err != nil {
		return err
	}
	i.cmd.Lock()
	defer i.cmd.Unlock()
	i.command(i.on)
	return nil
}

// Close lets a recovery that is under way end, since devices below wait for its end, and drops what is queued.
func (i *instance) Close() error {
	i.once.Do(func() {
		i.cmd.Lock()
		i.closed = true
		i.cmd.Unlock()
		i.disable()
		i.stop()
		<-i.done
	})
	return nil
}
