package portbus

import (
	"context"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// What a service changes of a function as a whole, be it its own port, whose config space it does not write otherwise, or one below.

// config is a function's whole config space.
func config(m *pci.Member) bus.Config {
	if o, ok := m.Device.(*ownDevice); ok {
		return o.dev.Config()
	}
	return m.Device.Config()
}

// gone says whether a function does not answer. All-ones in one register does not say so: each bit of a status can be set.
func gone(m *pci.Member) bool {
	return m.Device.Err() != nil || config(m).Read16(pci.CfgVendor) == 0xffff
}

// Gone says whether the port does not answer.
func (p *Port) Gone() bool { return p.dev.Err() != nil || p.cfg.Read16(pci.CfgVendor) == 0xffff }

// ClearStatus clears Device Status, and the uncorrectable errors of a function that are not fatal.
func ClearStatus(m *pci.Member) {
	ClearDevice(m)
	c := config(m)
	if at, ok := pci.FindExtCap(c, pci.ExtCapAER); ok {
		clearBits(m, at+pci.AERUncSta, ^c.Read32(at+pci.AERUncSev))
	}
}

// ClearErrors clears all errors of a kind that a function recorded, fatal or not. Bits are those to clear, all of them ^0.
func ClearErrors(m *pci.Member, sev pci.AERSeverity, bits uint32) {
	at, ok := pci.FindExtCap(config(m), pci.ExtCapAER)
	if !ok {
		return
	}
	if sev == pci.AERCorrectable {
		clearBits(m, at+pci.AERCorSta, bits)
	} else {
		clearBits(m, at+pci.AERUncSta, bits)
	}
}

// clearBits clears those bits of a status register that are set.
func clearBits(m *pci.Member, reg bus.Off, bits uint32) {
	c := config(m)
	if v := c.Read32(reg) & bits; v != 0 && !gone(m) {
		c.Write32(reg, v)
	}
}

// ClearDevice clears a function's Device Status.
func ClearDevice(m *pci.Member) {
	c := config(m)
	if e, ok := pci.FindExpress(c); ok {
		if v := c.Read16(e.At+pci.ExpDevSta) & pci.DevStaErrors; v != 0 && !gone(m) {
			c.Write16(e.At+pci.ExpDevSta, v)
		}
	}
}

// ResetFunction resets one function, for what has nothing below it.
func ResetFunction(ctx context.Context, m *pci.Member) error {
	if o, ok := m.Device.(*ownDevice); ok {
		return o.dev.Reset(ctx)
	}
	return m.Device.Reset(ctx)
}

// PowerControl reads a function's power management control and status; not ok where it has none, or does not answer.
func PowerControl(m *pci.Member) (v uint16, ok bool) {
	c := config(m)
	ctl, ok := pci.FindPowerControl(c)
	if !ok {
		return 0, false
	}
	v = c.Read16(ctl)
	return v, v != 0xffff
}

// TakePME acknowledges that a function asked for power, and keeps it from asking again (PME_Status, PME_En); false: it did not ask. What is left over from before
// it was let to is acknowledged too, and is no question.
func TakePME(m *pci.Member) (asked bool) {
	v, ok := PowerControl(m)
	if !ok || v&pci.PMCtlPMESta == 0 {
		return false
	}
	c := config(m)
	ctl, _ := pci.FindPowerControl(c)
	c.Write16(ctl, v&^pci.PMCtlPMEEn) // with the status, which a one clears
	return v&pci.PMCtlPMEEn != 0
}

// PowerUp asks a function to go to D0, and says whether it was not there: then it takes a while.
func PowerUp(m *pci.Member) (slept bool) {
	v, ok := PowerControl(m)
	if !ok || v&pci.PMCtlState == 0 {
		return false
	}
	c := config(m)
	ctl, _ := pci.FindPowerControl(c)
	c.Write16(ctl, v&^(pci.PMCtlState|pci.PMCtlPMESta))
	return true
}
