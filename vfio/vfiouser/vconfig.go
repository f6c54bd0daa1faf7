package vfiouser

import (
	"context"
	"encoding/binary"
	"errors"
	"sync"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// lockedBytes are bytes that both of a session's goroutines may use.
type lockedBytes struct {
	sync.Mutex
	b []byte
}

// vconfig is the configuration space that the client sees. What the bus owns (where BARs are, which
// messages the device sends) is the server's, so the client has a copy of it that can be written
// and read back, as the kernel's VFIO does it. The rest is the device's. Safe for concurrent use.
type vconfig struct {
	x   *session
	c   bus.Config
	exp uint64 // offset of the PCI Express capability, 0: none

	device sync.Mutex // from reading a register of the device's to writing it, and while it is reset; before mu

	mu      sync.Mutex
	own     []byte // the copy
	virt    []byte // bits of it that are the copy's
	rw      []byte // and of those, the ones that can be written
	off     bool   // the client disabled INTx
	masked  bool   // or masked it
	line    bool   // INTx is enabled
	command uint16 // the device's, before the client came
}

// Offsets in capabilities (PCI Local Bus 3.0, 6.8; PCI Express Base 3.0, 7.8).
const (
	msiControl  = 0x02
	msiEnable   = 1 << 0
	msiMME      = 0b111 << 4
	msi64       = 1 << 7
	msiMaskable = 1 << 8 >> 8 // in the second byte
	msiAddr     = 0x04
	msixControl = 0x02
	msixBits    = 0b11 << 14   // enable, mask all
	expDevCap   = 0x04         // Device Capabilities
	expDevCtl   = 0x08         // Device Control
	expFLR      = 1 << 28      // of the capabilities
	expInitFLR  = 15           // number of the bit of the control register
	intxOff     = 1 << 10 >> 8 // of the second byte of Command
)

func newVConfig(x *session) *vconfig {
	c := x.dev.Config()
	n := c.Size()
	v := &vconfig{x: x, c: c, own: make([]byte, n), virt: make([]byte, n), rw: make([]byte, n)}
	v.command = c.Read16(pci.CfgCommand)
	v.virtual(int(pci.CfgBAR0), 4*regionROM)
	v.virtual(int(pci.CfgROM), 4) // none is served
	for _, r := range x.dev.Regions() {
		if r.Index >= 0 && r.Index < regionROM {
			v.bar(r)
		}
	}
	v.virt[pci.CfgCommand+1], v.rw[pci.CfgCommand+1] = intxOff, intxOff
	if at, ok := pci.FindCap(c, pci.CapMSI); ok {
		v.msi(int(at))
	}
	if at, ok := pci.FindCap(c, pci.CapMSIX); ok {
		v.control(int(at)+msixControl, msixBits)
	}
	if at, ok := pci.FindCap(c, pci.CapPCIe); ok && int(at)+expDevCtl+2 <= n && c.Read32(at+expDevCap)&expFLR != 0 {
		v.exp = uint64(at)
	}
	return v
}

// virtual makes bytes the copy's, that read as 0 and cannot be written.
func (v *vconfig) virtual(at, n int) {
	for i := at; i < at+n && i < len(v.virt); i++ {
		v.virt[i] = 0xff
	}
}

// control makes a message control register the copy's: it has bits that can be written, and others
// that say what there is.
func (v *vconfig) control(at int, rw uint16) {
	if at+2 > len(v.own) {
		return
	}
	binary.LittleEndian.PutUint16(v.own[at:], v.c.Read16(bus.Off(at))&^rw)
	v.virtual(at, 2)
	binary.LittleEndian.PutUint16(v.rw[at:], rw)
}

// bar lays out a base address register, which says at first where the device has it.
func (v *vconfig) bar(r bus.RegionInfo) {
	at := int(pci.CfgBAR0) + 4*r.Index
	mask := ^(r.Size - 1)
	if r.Size&(r.Size-1) != 0 {
		mask = ^uint64(pageSize - 1)
	}
	n := 4
	if r.Is64 {
		n = 8
	}
	for i := range n {
		v.own[at+i] = v.c.Read8(bus.Off(at + i))
		v.rw[at+i] = byte(mask >> (8 * i))
	}
	if r.Kind == bus.RegionIO {
		v.rw[at] &^= 0b11
	} else {
		v.rw[at] &^= 0xf
	}
}

// msi makes what is written to a MSI capability the copy's.
func (v *vconfig) msi(at int) {
	ctl := v.c.Read16(bus.Off(at + msiControl))
	v.control(at+msiControl, msiEnable|msiMME)
	n := 4 + 2
	if ctl&msi64 != 0 {
		n += 4
	}
	if ctl>>8&msiMaskable != 0 {
		n += 2 + 4 + 4
	}
	v.virtual(at+msiAddr, n)
	for i := at + msiAddr; i < at+msiAddr+n && i < len(v.rw); i++ {
		v.rw[i] = 0xff
	}
}

// real is what the device has.
func (v *vconfig) real(off uint64, n int) uint64 {
	switch n {
	case 1:
		return uint64(v.c.Read8(bus.Off(off)))
	case 2:
		return uint64(v.c.Read16(bus.Off(off)))
	}
	return uint64(v.c.Read32(bus.Off(off)))
}

// word is n bytes of one of the tables.
func word(b []byte, off uint64, n int) uint64 {
	var w [8]byte
	copy(w[:n], b[off:])
	return binary.LittleEndian.Uint64(w[:])
}

func (v *vconfig) read(off uint64, n int) uint64 {
	if n == 8 {
		return v.read(off, 4) | v.read(off+4, 4)<<32
	}
	v.mu.Lock()
	virt, own := word(v.virt, off, n), word(v.own, off, n)
	v.mu.Unlock()
	if virt == ^uint64(0)>>(64-8*n) {
		return own
	}
	return v.real(off, n)&^virt | own&virt
}

func (v *vconfig) write(off uint64, n int, value uint64) {
	if n == 8 {
		v.write(off, 4, value&0xffffffff)
		v.write(off+4, 4, value>>32)
		return
	}
	v.mu.Lock()
	for i := range n {
		at, b := int(off)+i, byte(value>>(8*i))
		v.own[at] = v.own[at]&^v.rw[at] | b&v.rw[at]
	}
	virt := word(v.virt, off, n)
	v.off = v.own[pci.CfgCommand+1]&intxOff != 0
	v.mu.Unlock()
	if v.writeReal(off, n, value, virt); off <= uint64(pci.CfgCommand)+1 && off+uint64(n) > uint64(pci.CfgCommand)+1 {
		v.applyINTx()
	}
}

// writeReal writes the device's bits: those that are not virt.
func (v *vconfig) writeReal(off uint64, n int, value, virt uint64) {
	v.device.Lock()
	defer v.device.Unlock()
	if bit := 8*(int(v.exp)+expDevCtl-int(off)) + expInitFLR; v.exp != 0 && bit >= 0 && bit < 8*n && value>>bit&1 != 0 {
		// Function-level reset loses where the function is: it is done as the bus does it.
		v.functionReset()
		value &^= 1 << bit
	}
	if virt == ^uint64(0)>>(64-8*n) {
		return
	}
	if virt != 0 {
		value = value&^virt | v.real(off, n)&virt
	}
	switch n {
	case 1:
		v.c.Write8(bus.Off(off), uint8(value))
	case 2:
		v.c.Write16(bus.Off(off), uint16(value))
	default:
		v.c.Write32(bus.Off(off), uint32(value))
	}
}

func (v *vconfig) functionReset() {
	ctx, cancel := context.WithTimeout(context.Background(), resetTimeout)
	defer cancel()
	if err := v.x.dev.Reset(ctx); err != nil && !errors.Is(err, bus.ErrNotSupported) {
		v.x.srv.o.Log.Debug(v.x.srv.errorf("function-level reset: %w", err).Error())
	}
}

// setLine tells whether INTx is enabled, and setMasked whether the client masked it: the device's
// Interrupt Disable follows while it is.
func (v *vconfig) setLine(on bool) {
	v.mu.Lock()
	v.line, v.masked = on, v.masked && on
	v.mu.Unlock()
	v.applyINTx()
}

func (v *vconfig) setMasked(on bool) {
	v.mu.Lock()
	was := v.masked
	v.masked = on
	v.mu.Unlock()
	if was != on {
		v.applyINTx()
	}
}

// applyINTx is called beside the message loop, too: by whoever resumes the line.
func (v *vconfig) applyINTx() {
	v.device.Lock()
	defer v.device.Unlock()
	v.mu.Lock()
	line, off := v.line, v.off || v.masked
	v.mu.Unlock()
	if !line {
		return // it is as the mode that is enabled wants it
	}
	if is := v.c.Read16(pci.CfgCommand)&uint16(pci.CmdINTxDisable) != 0; is == off {
		return
	}
	if off {
		pci.SetCommand(v.c, pci.CmdINTxDisable, 0)
	} else {
		pci.SetCommand(v.c, 0, pci.CmdINTxDisable)
	}
}

// restore puts back what the client may have changed of where the device answers.
func (v *vconfig) restore() {
	const keep = uint16(pci.CmdIO | pci.CmdMem | pci.CmdINTxDisable)
	v.c.Write16(pci.CfgCommand, v.c.Read16(pci.CfgCommand)&^keep|v.command&keep)
}
