package edu

import (
	"cmp"
	"context"
	"fmt"
	"sync"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// Driver serves QEMU's edu. The instance is a *Device.
var Driver = &pci.Driver{
	Name: "edu", IDs: []pci.ID{{Vendor: 0x1234, Device: 0x11e8}},
	Registers: func(pci.FunctionID) []bus.Register { return registers },
	Probe:     func(_ context.Context, dev bus.Device, env pci.Env) (pci.Instance, error) { return open(dev, env.Name) },
}

// Device is an edu in service. Safe for concurrent use.
type Device struct {
	dev     bus.Device
	regs    bus.Region
	handler *bus.Handler
	wake    chan struct{} // an interrupt came
	mu      sync.Mutex    // one operation at a time
	mem     *bus.Memory   // what DMA reads and writes; nil after Close
}

// open brings a device up: registers, liveness, memory, interrupt, and last bus mastering.
func open(dev bus.Device, name string) (_ *Device, err error) {
	d := &Device{dev: dev, wake: make(chan struct{}, 1)}
	if d.regs, err = dev.Region(0); err != nil {
		return nil, d.errorf("registers: %w", err)
	}
	if r := d.regs.Info(); r.Kind != bus.RegionMem || r.Size < regSpace {
		return nil, d.errorf("registers: region 0 is %s, %#x bytes, want mem, %#x: %w", r.Kind, r.Size, regSpace, bus.ErrProtocol)
	}
	if id := d.regs.Read32(regID); id&idMask != idMagic {
		return nil, d.errorf("identification: %#08x, want %#02x in the low half: %w", id, idMagic, cmp.Or(dev.Err(), bus.ErrProtocol))
	}
	d.regs.Write32(regLive, 0x12345678)
	if got := d.regs.Read32(regLive); got != ^uint32(0x12345678) {
		return nil, d.errorf("liveness: wrote 0x12345678, read %#08x, want its complement: %w", got, cmp.Or(dev.Err(), bus.ErrProtocol))
	}
	if d.mem, err = dev.DMA().Alloc(bus.DMARequest{Size: bufferLen, Mask: dmaMask}); err != nil {
		return nil, d.errorf("memory: %w", err)
	}
	mode := bus.MSI
	if dev.IRQVectors(mode) == 0 {
		mode = bus.INTx
	}
	irqs, err := dev.EnableIRQs(mode, 1)
	if err != nil {
		d.mem.Free()
		return nil, d.errorf("interrupt: %w", err)
	}
	d.handler = bus.Handle(irqs[0], name, func(uint64) { d.interrupt(irqs[0]) })
	pci.SetCommand(dev.Config(), pci.CmdMem|pci.CmdMaster, 0)
	return d, nil
}

func (d *Device) errorf(format string, args ...any) error {
	return fmt.Errorf(d.dev.Address()+" edu: "+format, args...)
}

// interrupt acknowledges whatever was raised, and signals.
func (d *Device) interrupt(irq *bus.IRQ) {
	d.regs.Write32(regIRQAck, d.regs.Read32(regIRQ))
	irq.Unmask()
	select {
	case d.wake <- struct{}{}:
	default: // it will look anyway
	}
}

// Factorial has the device compute n!, for n up to 12.
func (d *Device) Factorial(ctx context.Context, n uint32) (uint32, error) {
	if n > maxFactorial {
		return 0, d.errorf("factorial of %d: want at most %d: %w", n, maxFactorial, bus.ErrNotSupported)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.run(ctx, regStatus, statusComputing, func() {
		d.regs.Write32(regStatus, statusInterrupt)
		d.regs.Write32(regFactorial, n)
	}); err != nil {
		return 0, d.errorf("factorial of %d: %w", n, err)
	}
	result := d.regs.Read32(regFactorial)
	if err := d.dev.Err(); err != nil {
		return 0, d.errorf("factorial of %d: %w", n, err)
	}
	return result, nil
}

// Copy copies p, by DMA, to off in the device's buffer of 4095 bytes (bus.ToDevice), or from
// there into p (bus.FromDevice).
func (d *Device) Copy(ctx context.Context, p []byte, off int, dir bus.Direction) error {
	if len(p) == 0 || off < 0 || off > bufferLen || len(p) > bufferLen-off || dir == bus.Bidirectional {
		return d.errorf("DMA of %d bytes at %d: want 1 to %d bytes inside the buffer, one way: %w", len(p), off, bufferLen, bus.ErrNotSupported)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.run(ctx, regDMACmd, dmaRun, func() {
		src, dst, cmd := uint32(d.mem.IOVA), uint32(bufferAt+off), uint32(dmaRun|dmaInterrupt)
		if dir == bus.FromDevice {
			src, dst, cmd = dst, src, cmd|dmaFromEdu
		} else {
			copy(d.mem.Bytes, p)
		}
		d.regs.Write32(regDMASrc, src)
		d.regs.Write32(regDMADst, dst)
		d.regs.Write32(regDMACount, uint32(len(p)))
		d.regs.Write32(regDMACmd, cmd) // the doorbell: it starts
	}); err != nil {
		return d.errorf("DMA of %d bytes at %d: %w", len(p), off, err)
	}
	if dir == bus.FromDevice {
		copy(p, d.mem.Bytes)
	}
	return nil
}

// run starts an operation and waits, interrupt by interrupt, until bit busy of reg is clear.
func (d *Device) run(ctx context.Context, reg bus.Off, busy uint32, start func()) error {
	if d.mem == nil {
		return bus.ErrClosed
	}
	if v := d.regs.Read32(reg); v&busy != 0 && d.dev.Err() == nil {
		return fmt.Errorf("register %#x reads %#x: at work on an operation given up before: %w", reg, v, bus.ErrBusy)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("not done after 5 s: %w", bus.ErrTimeout))
	defer cancel()
	for start(); d.regs.Read32(reg)&busy != 0; {
		select {
		case <-d.wake:
		case <-d.dev.Done():
			return d.dev.Err()
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if v := d.regs.Read32(regLive); v != ^uint32(0x12345678) && d.dev.Err() == nil {
		return fmt.Errorf("liveness: %#08x: the device was reset meanwhile: %w", v, bus.ErrProtocol)
	}
	return d.dev.Err() // a transfer that was stopped on its way looks done
}

// IRQHandlers is for /proc/interrupts.
func (d *Device) IRQHandlers() []*bus.Handler { return []*bus.Handler{d.handler} }

// Close takes the device out of service. The memory is freed after bus mastering is off, so
// no transfer that is still under way can reach it.
func (d *Device) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.mem == nil {
		return nil
	}
	_ = d.handler.Close()
	err := d.dev.DisableIRQs()
	pci.SetCommand(d.dev.Config(), 0, pci.CmdMaster)
	d.dev.Config().Read16(pci.CfgCommand) // flushes the posted write
	d.mem.Free()
	d.mem = nil
	if err != nil {
		return d.errorf("disabling the interrupt: %w", err)
	}
	return nil
}
