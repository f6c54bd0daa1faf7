package scan

import (
	"fmt"

	"github.com/ring3dev/ring3/rionet/rapidio"
)

// latched are the bits of a port's status that stay set until software writes a 1.
const latched = rapidio.PortWritePend | rapidio.PortOutFailed | rapidio.PortOutDegraded | rapidio.PortError

// portReg is a register of a port in the LP-serial block; map II has 64 bytes a port.
func portReg(d *rapidio.Device, reg rapidio.Off, port int) rapidio.Off {
	stride := rapidio.PHYPortStride
	if d.PHYMap2 {
		stride *= 2
	}
	return d.PHY + reg + rapidio.Off(port)*stride
}

// linked tells whether a port has a link, and clears what was latched of it, so that its next event is told again. Without an LP-serial
// block only trying tells: all may have one.
func linked(t target, d *rapidio.Device, port int) (bool, error) {
	if d.PHY == 0 {
		return true, nil
	}
	reg := portReg(d, rapidio.PHYPortErrStat, port)
	v, err := t.read(reg)
	if err != nil {
		return false, err
	}
	if v&latched != 0 {
		if err := t.write(reg, v&latched); err != nil {
			return false, err
		}
		if d.ErrMgmt != 0 {
			err = t.write(d.ErrMgmt+rapidio.EMPortDetect+rapidio.Off(port)*rapidio.EMPortStride, 0)
		}
	}
	return v&rapidio.PortOK != 0, err
}

// open lets packets through a port that has a link, and shuts one that has none where there is error management, whose port-write
// tells when a link comes. What is right already is left alone.
func open(t target, d *rapidio.Device, port int, up bool) error {
	if d.PHY == 0 {
		return nil
	}
	reg := portReg(d, rapidio.PHYPortControl, port)
	if up {
		return t.update(reg, rapidio.PortLockout|rapidio.PortInputEn|rapidio.PortOutputEn, rapidio.PortInputEn|rapidio.PortOutputEn)
	}
	if d.ErrMgmt == 0 {
		return nil
	}
	return t.update(reg, rapidio.PortLockout, rapidio.PortLockout)
}

// discovered tells whether enumeration of an endpoint is complete: by its LP-serial block, or else by the 2005 magic.
func discovered(t target, d *rapidio.Device) (bool, error) {
	if d.PHY != 0 {
		v, err := t.read(d.PHY + rapidio.PHYGenControl)
		return v&rapidio.GenDiscovered != 0, err
	}
	tag, err := t.read(rapidio.RegComponentTag)
	return tag == rapidio.EnumComplete, err
}

// reportTo makes a device send its port-writes to a host, where it has error management. It is written in any case: an ID of 0 may stand
// there because nobody has written one.
func reportTo(t target, d *rapidio.Device, host rapidio.DestID) error {
	if d.ErrMgmt == 0 {
		return nil
	}
	v := uint32(host) << 16
	if t.a.ids == rapidio.Large {
		v |= largeTarget
	}
	return t.write(d.ErrMgmt+rapidio.EMPortWriteTgt, v)
}

// largeTarget in a port-write target says that its ID has 16 bits.
const largeTarget = 1 << 15

// identify reads who a device is, and chooses how a switch's tables are written.
func identify(t target) (*rapidio.Device, error) {
	d, err := rapidio.ReadDevice(t.a.ctx, t)
	if err != nil {
		return nil, err
	}
	if id := uint32(d.DID)<<16 | uint32(d.VID); id == 0 || id == ^uint32(0) {
		return nil, fmt.Errorf("its identity is %#08x, which nobody has", id)
	}
	if d.Switch == nil {
		return d, nil
	}
	if in := inPort(d); in >= d.Ports() {
		return nil, fmt.Errorf("a switch of %d ports that was reached by its port %d", d.Ports(), in)
	}
	if d.Switch.Ops = switchOps(d.VID, d.DID, d.PEF); d.Switch.Ops == nil {
		return nil, fmt.Errorf("switch %04x:%04x: no standard routing tables, and no others that are known", d.VID, d.DID)
	}
	return d, nil
}

// inPort is the port by which a switch was reached when its registers were read.
func inPort(d *rapidio.Device) int { return int(d.SwitchPorts & 0xff) }

// alike tells whether two readings may be of one device.
func alike(a, b *rapidio.Device) bool {
	return a.DID == b.DID && a.VID == b.VID && a.Rev == b.Rev && a.AsmDID == b.AsmDID && a.AsmVID == b.AsmVID && a.AsmRev == b.AsmRev &&
		a.PEF == b.PEF && a.PHY == b.PHY && a.ErrMgmt == b.ErrMgmt && a.Ports() == b.Ports()
}
