package tis

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/tpmdd"
)

// Driver serves TPMs with a FIFO. The instance is a *Device.
var Driver = &pci.Driver{
	Name:      "tpm_tis",
	Platform:  []string{"MSFT0101", "PNP0C31"},
	Prefixed:  true,
	Options:   map[string]string{"interrupts": "on (default) or off: poll"},
	Registers: func(pci.FunctionID) []bus.Register { return registers },
	Probe:     open,
}

// Device is a TPM in service; tpmdd.Instance, pci.IRQUser, bus.PowerHandler.
type Device struct {
	dev  bus.Device
	t    *transport
	chip *tpmdd.Chip
}

// open brings a TPM up.
func open(ctx context.Context, dev bus.Device, env pci.Env) (_ pci.Instance, err error) {
	t := &transport{dev: dev, log: env.Log}
	t.wake = make(chan struct{}, 1)
	if t.regs, err = dev.Region(0); err != nil {
		return nil, t.errorf("registers: %w", err)
	}
	if r := t.regs.Info(); r.Kind != bus.RegionMem || r.Size < regsSize {
		return nil, t.errorf("registers: region 0 is %s, %#x bytes, want mem, %#x: %w", r.Kind, r.Size, regsSize, bus.ErrProtocol)
	}
	interrupts := true
	switch v := cmp.Or(env.Options["interrupts"], "on"); v {
	case "on", "off":
		interrupts = v == "on"
	default:
		return nil, t.errorf("interrupts=%s: want on or off: %w", v, pci.ErrOption)
	}
	if err := t.identify(); err != nil {
		return nil, err
	}
	if interrupts {
		if err := t.enable(env.Name); err != nil {
			return nil, err
		}
	}
	d := &Device{dev: dev, t: t}
	found := func(f tpmdd.Family) {
		env.Log.Info(fmt.Sprintf("tpm_tis %s: %s TPM (device-id 0x%X, rev-id %d)", dev.Address(), f, t.didvid>>16, t.rid))
	}
	d.chip, err = tpmdd.New(ctx, t, tpmdd.Options{Name: env.Name, Where: dev.Address() + " tpm_tis", Log: env.Log, Found: found, Died: dev.Done()})
	if err != nil {
		return nil, errors.Join(err, t.disable())
	}
	return d, nil
}

// Chip is the TPM behind the registers.
func (d *Device) Chip() *tpmdd.Chip { return d.chip }

// IRQHandlers is for /proc/interrupts.
func (d *Device) IRQHandlers() []*bus.Handler {
	if d.t.handler == nil {
		return nil
	}
	return []*bus.Handler{d.t.handler}
}

// Suspend saves the TPM's state; bus.PowerHandler.
func (d *Device) Suspend(ctx context.Context) error { return d.chip.Suspend(ctx) }

// Resume lets it be used again; bus.PowerHandler.
func (d *Device) Resume(ctx context.Context) error { return d.chip.Resume(ctx) }

// Close shuts the TPM down and releases it.
func (d *Device) Close() error {
	err := d.chip.Close()
	if errors.Is(err, bus.ErrTimeout) {
		// A command still has the interface; what can be taken from it is the interrupt.
		return errors.Join(err, d.t.cut())
	}
	return errors.Join(err, d.t.disable())
}

// identify waits until the registers are valid, and reads what the interface can do.
func (t *transport) identify() error {
	t.SetTimeouts(tpmdd.Timeouts{A: startTime, B: startTime, C: startTime, D: startTime})
	if err := t.waitValid(); err != nil {
		return t.errorf("looking at the interface: %w", err)
	}
	if id := t.regs.Read32(regINTFID); id != ^uint32(0) && id&0xf == intfCRB {
		return fmt.Errorf("%s tpm_tis: INTERFACE_ID is %#x, which is a command response buffer: %w", t.dev.Address(), id, pci.ErrSkip)
	}
	t.didvid = t.regs.Read32(regDIDVID)
	t.rid = t.regs.Read8(regRID)
	t.caps = t.regs.Read32(regINTFCAP)
	if err := t.dev.Err(); err != nil {
		return t.errorf("looking at the interface: %w", err)
	}
	if t.didvid == ^uint32(0) || t.didvid == 0 {
		return t.errorf("DID_VID is %#x, which is no TPM: %w", t.didvid, bus.ErrProtocol)
	}
	t.words = t.caps&capTransfer != 0
	return nil
}
