package pci

import (
	"errors"
	"fmt"

	"github.com/ring3dev/ring3/bus"
)

// ErrSkip is what a Probe wraps to say that a matching device is not for it.
var ErrSkip = errors.New("skipped")

func isSkip(err error) bool { return errors.Is(err, ErrSkip) }

// FunctionID is what identifies a function (PCI Local Bus 3.0, 6.2.1 and 6.2.4).
type FunctionID struct {
	Vendor, Device       uint16
	SubVendor, SubDevice uint16
	Class                uint32 // 24 bits
	Revision             uint8
}

// String is "8086:10d3", as lspci prints it.
func (f FunctionID) String() string { return fmt.Sprintf("%04x:%04x", f.Vendor, f.Device) }

// ReadID reads a function's identification.
func ReadID(c bus.Config) FunctionID {
	cr := c.Read32(CfgRevision)
	return FunctionID{
		Vendor: c.Read16(CfgVendor), Device: c.Read16(CfgDevice),
		SubVendor: c.Read16(CfgSubVendor), SubDevice: c.Read16(CfgSubDevice),
		Class: cr >> 8, Revision: uint8(cr),
	}
}

// Serves says whether one of the driver's IDs matches.
func (d *Driver) Serves(f FunctionID) bool {
	for _, id := range d.IDs {
		if (id.Vendor == Any || id.Vendor == f.Vendor) &&
			(id.Device == Any || id.Device == f.Device) &&
			(id.SubVendor == 0 || id.SubVendor == f.SubVendor) &&
			(id.SubDevice == 0 || id.SubDevice == f.SubDevice) &&
			f.Class&id.ClassMask == id.Class&id.ClassMask {
			return true
		}
	}
	return false
}
