package qemu

import (
	"fmt"
	"slices"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// SaveState remembers config space, and where the interrupts go; bus.StateKeeper. restore brings both back after a reset of the
// bus that the device stands on, or after D3.
func (d *device) SaveState() (restore func() error) {
	if d.platform() {
		return func() error { return d.Err() }
	}
	saved := saveConfig(d.cfg)
	more := saveAER(d.cfg)
	return func() error {
		if err := d.Err(); err != nil {
			return err
		}
		restoreConfig(d.cfg, saved)
		for off, v := range more {
			d.cfg.Write32(off, v)
		}
		// Registers must be reached for the table, and no interrupt be sent before it is right.
		command := pci.Command(saved[pci.CfgCommand/4])
		d.cfg.Write16(pci.CfgCommand, uint16(command&^pci.CmdMaster))
		if err := d.restoreTable(); err != nil {
			return fmt.Errorf("%s %s: restoring its state: %w", d.Address(), d.spec.Name, err)
		}
		d.cfg.Write16(pci.CfgCommand, uint16(command))
		return d.Err()
	}
}

// restoreTable writes the MSI-X entries that were enabled. Those of MSI are in config space.
func (d *device) restoreTable() error {
	d.m.irqMu.Lock()
	defer d.m.irqMu.Unlock()
	s := &d.irq
	if s.msix == nil {
		return nil
	}
	for i := range s.irqs {
		if err := s.msix.Set(i, d.m.bell.addr, d.m.bell.message(s.base+i)); err != nil {
			return err
		}
		if err := s.msix.Unmask(i); err != nil {
			return err
		}
	}
	return nil
}

// saveConfig reads the 256 bytes that a reset changes.
func saveConfig(c bus.Config) (s [64]uint32) {
	for i := range s {
		s[i] = c.Read32(bus.Off(4 * i))
	}
	return s
}

// restoreConfig writes them back where they differ, all but Command, and no status: bits there are cleared by writing them. What a
// port's slot and its interrupts say changes while it is restored.
func restoreConfig(c bus.Config, s [64]uint32) {
	// Registers of 16 bits with a status above them.
	half := []bus.Off{}
	if s[pci.CfgHeader/4]>>16&0x7f == pci.HeaderBridge {
		half = append(half, 0x1c) // I/O base and limit; Secondary Status
	}
	if at, ok := pci.FindCap(c, pci.CapPM); ok {
		// First of all, since waking up from D3 may reset the rest.
		c.Write16(at+pci.PMCtl, uint16(s[(at+pci.PMCtl)/4])&^pci.PMCtlPMESta)
		half = append(half, at+pci.PMCtl)
	}
	if e, ok := pci.FindExpress(c); ok {
		for _, off := range []bus.Off{pci.ExpDevCtl, pci.ExpLnkCtl, pci.ExpSltCtl, pci.ExpDevCtl2, pci.ExpLnkCtl2} {
			half = append(half, e.At+off)
		}
	}
	for i, v := range s {
		off := bus.Off(4 * i)
		switch now := c.Read32(off); {
		case off == pci.CfgCommand || now == v:
		case !slices.Contains(half, off):
			c.Write32(off, v)
		case uint16(now) != uint16(v):
			c.Write16(off, uint16(v))
		}
	}
}

// saveAER reads what a driver has set of Advanced Error Reporting: masks, severities, what raises an interrupt.
func saveAER(c bus.Config) map[bus.Off]uint32 {
	at, ok := pci.FindExtCap(c, pci.ExtCapAER)
	if !ok {
		return nil
	}
	regs := []bus.Off{pci.AERUncMask, pci.AERUncSev, pci.AERCorMask, pci.AERCap}
	if e, ok := pci.FindExpress(c); ok && e.HasRoot() {
		regs = append(regs, pci.AERRootCmd)
	}
	m := map[bus.Off]uint32{}
	for _, r := range regs {
		if off := at + r; int(off)+4 <= c.Size() {
			m[off] = c.Read32(off)
		}
	}
	return m
}
