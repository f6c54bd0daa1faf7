package rapidio

import (
	"context"
	"fmt"

	"github.com/ring3dev/ring3/bus"
)

// Access reads 32-bit registers of one device, or of the port itself.
type Access interface {
	Read32(ctx context.Context, off Off) (uint32, error)
}

// Remote is the device that is Hop switches away on the route to Dest, whatever it is: what enumeration has before there is a Device.
type Remote struct {
	Mport *Mport
	Dest  DestID
	Hop   uint8
}

// Read32 reads a register of it.
func (r Remote) Read32(ctx context.Context, off Off) (uint32, error) {
	return r.Mport.Read32(ctx, r.Dest, r.Hop, off)
}

// Write32 writes one.
func (r Remote) Write32(ctx context.Context, off Off, v uint32) error {
	return r.Mport.Write32(ctx, r.Dest, r.Hop, off, v)
}

// IDs is the width of device IDs there.
func (r Remote) IDs() IDSize { return r.Mport.IDs() }

// Local is the port itself, as Access.
type Local struct{ Mport *Mport }

// Read32 reads one of its registers.
func (l Local) Read32(ctx context.Context, off Off) (uint32, error) {
	return l.Mport.LocalRead32(ctx, off)
}

// Write32 writes one.
func (l Local) Write32(ctx context.Context, off Off, v uint32) error {
	return l.Mport.LocalWrite32(ctx, off, v)
}

// check refuses accesses that no device takes.
func check(off Off, w Width) error {
	if w != 1 && w != 2 && w != 4 {
		return fmt.Errorf("%d bytes wide, want 1, 2 or 4: %w", w, ErrRange)
	}
	if off >= ConfigSize || off%Off(w) != 0 {
		return fmt.Errorf("%d bytes at %#x, want a multiple below %#x: %w", w, off, ConfigSize, ErrRange)
	}
	return nil
}

// Features are the extended feature blocks of a device that the subsystem uses.
type Features struct {
	EFPtr   Off // the first block, whatever it is; 0: there is none
	PHY     Off // LP-serial; 0: none
	PHYMap2 bool
	ErrMgmt Off // error management; 0: none
	Routing Off // routing tables (part 3); 0: none
	// Malformed is where the chain of blocks led out of its space or back; what was found before that counts. 0: nowhere.
	Malformed Off
}

// efMax bounds a chain of blocks. It has room for thousands (part 3, 3.4.1), and no device has a dozen; but one that means ill shall not
// keep its host busy.
const efMax = 256

// FindFeatures walks the extended features of a device. A chain that is broken ends the walk and is no error.
func FindFeatures(ctx context.Context, a Access) (Features, error) {
	var f Features
	pef, err := a.Read32(ctx, RegPEF)
	if err != nil {
		return f, fmt.Errorf("reading its features: %w", err)
	}
	if PEF(pef)&PEFExtValid == 0 {
		return f, nil
	}
	info, err := a.Read32(ctx, RegAsmInfo)
	if err != nil {
		return f, fmt.Errorf("reading where its extended features begin: %w", err)
	}
	f.EFPtr = Off(info & 0xffff)
	at := f.EFPtr
	seen := map[Off]bool{}
	for range efMax {
		if at == 0 {
			return f, nil
		}
		if at < RegExtFeatures || at%8 != 0 || seen[at] {
			break
		}
		seen[at] = true
		v, err := a.Read32(ctx, at)
		if err != nil {
			return f, fmt.Errorf("reading the extended feature at %#x: %w", at, err)
		}
		if v == 0xffffffff || v == 0 {
			break // nothing is there
		}
		f.note(at, v&0xffff)
		at = Off(v >> 16)
	}
	f.Malformed = at
	return f, nil
}

// note takes a block, the first of its kind.
func (f *Features) note(at Off, id uint32) {
	first := func(where *Off) bool {
		if *where != 0 {
			return false
		}
		*where = at
		return true
	}
	switch {
	case id >= 0x01 && id <= 0x06 || id == EFSerialSwitchRec: // 4 to 6 as revision 1.2 numbers them
		first(&f.PHY)
	case id >= 0x11 && id <= 0x13 || id == 0x19:
		if first(&f.PHY) {
			f.PHYMap2 = true
		}
	case id == EFErrorMgmt:
		first(&f.ErrMgmt)
	case id == EFRoutingTables:
		first(&f.Routing)
	}
}

// ReadDevice reads what identifies a device: its capability registers, and its extended features. What the reader must add is where it is: Mport,
// DestID, Hop, Prev, its component tag, and a switch's operations.
func ReadDevice(ctx context.Context, a Access) (*Device, error) {
	d := &Device{}
	var regs [RegDstOps/4 + 1]uint32
	for _, off := range [...]Off{RegDeviceID, RegDeviceInfo, RegAsmID, RegAsmInfo, RegPEF, RegSrcOps, RegDstOps} {
		v, err := a.Read32(ctx, off)
		if err != nil {
			return nil, fmt.Errorf("reading capability register %#x: %w", off, err)
		}
		regs[off/4] = v
	}
	d.DID, d.VID = uint16(regs[RegDeviceID/4]>>16), uint16(regs[RegDeviceID/4])
	d.Rev = regs[RegDeviceInfo/4]
	d.AsmDID, d.AsmVID = uint16(regs[RegAsmID/4]>>16), uint16(regs[RegAsmID/4])
	d.AsmRev = uint16(regs[RegAsmInfo/4] >> 16)
	d.PEF = PEF(regs[RegPEF/4])
	d.SrcOps, d.DstOps = regs[RegSrcOps/4], regs[RegDstOps/4]
	d.Hop = MaxHops
	if d.PEF&(PEFSwitch|PEFMultiport) != 0 {
		v, err := a.Read32(ctx, RegSwitchPort)
		if err != nil {
			return nil, fmt.Errorf("reading its ports: %w", err)
		}
		d.SwitchPorts = v
	}
	if d.PEF&PEFSwitch != 0 {
		if d.Ports() == 0 {
			return nil, fmt.Errorf("it is a switch without ports (register %#x = %#08x): %w", RegSwitchPort, d.SwitchPorts, bus.ErrProtocol)
		}
		d.Switch = &Switch{}
	}
	f, err := FindFeatures(ctx, a)
	if err != nil {
		return nil, err
	}
	d.EFPtr, d.PHY, d.PHYMap2, d.ErrMgmt = f.EFPtr, f.PHY, f.PHYMap2, f.ErrMgmt
	return d, nil
}
