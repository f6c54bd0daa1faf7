package crb

import (
	"context"
	"fmt"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/tpmdd"
)

// Driver serves TPMs with a command response buffer. The instance is a *Device.
var Driver = &pci.Driver{
	Name:      "tpm_crb",
	Platform:  []string{"MSFT0101"},
	Prefixed:  true,
	Registers: func(pci.FunctionID) []bus.Register { return registers },
	Probe:     open,
}

// Device is a TPM in service; tpmdd.Instance, bus.PowerHandler.
type Device struct {
	chip *tpmdd.Chip
}

// open brings a TPM up.
func open(ctx context.Context, dev bus.Device, env pci.Env) (_ pci.Instance, err error) {
	t := &transport{dev: dev}
	if t.regs, err = dev.Region(0); err != nil {
		return nil, t.errorf("registers: %w", err)
	}
	if r := t.regs.Info(); r.Kind != bus.RegionMem || r.Size < regsSize {
		return nil, t.errorf("registers: region 0 is %s, %#x bytes, want mem, more than %#x: %w", r.Kind, r.Size, regsSize, bus.ErrProtocol)
	}
	if id := t.regs.Read32(regINTFID); id&intfType != typeCRB {
		return nil, fmt.Errorf("%s tpm_crb: INTF_ID is %#x, which is no command response buffer: %w", dev.Address(), id, pci.ErrSkip)
	}
	if err := t.buffers(); err != nil {
		return nil, t.errorf("looking at the buffers: %w", err)
	}
	chip, err := tpmdd.New(ctx, t, tpmdd.Options{Name: env.Name, Where: dev.Address() + " tpm_crb", Log: env.Log, Died: dev.Done()})
	if err != nil {
		return nil, err
	}
	return &Device{chip: chip}, nil
}

// Chip is the TPM behind the registers.
func (d *Device) Chip() *tpmdd.Chip { return d.chip }

// Suspend saves the TPM's state; bus.PowerHandler.
func (d *Device) Suspend(ctx context.Context) error { return d.chip.Suspend(ctx) }

// Resume lets it be used again; bus.PowerHandler.
func (d *Device) Resume(ctx context.Context) error { return d.chip.Resume(ctx) }

// Close shuts the TPM down.
func (d *Device) Close() error { return d.chip.Close() }
