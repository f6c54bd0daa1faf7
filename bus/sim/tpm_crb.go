package sim

import (
	"encoding/binary"

	"github.com/ring3dev/ring3/bus"
)

var crbModel = model{
	name: "tpm-crb", about: "a TPM 2.0 behind a command response buffer, as QEMU's tpm-crb; a platform device",
	platform: true, tpm: true,
	props: map[string]string{"delay": delayAbout, "misbehave": badAbout},
	make:  newCRB,
}

// Registers (PTP, 6.5.3, table 25). What is not listed reads 0.
const (
	crbLocState  bus.Off = 0x00 // TPM_LOC_STATE, RO
	crbLocCtrl   bus.Off = 0x08 // TPM_LOC_CTRL, WO
	crbLocSts    bus.Off = 0x0c // TPM_LOC_STS, RO
	crbIntfID    bus.Off = 0x30 // TPM_CRB_INTF_ID, RO, low half
	crbIntfIDHi  bus.Off = 0x34
	crbCtrlReq   bus.Off = 0x40 // TPM_CRB_CTRL_REQ, RW
	crbCtrlSts   bus.Off = 0x44 // TPM_CRB_CTRL_STS, RO
	crbCancel    bus.Off = 0x48 // TPM_CRB_CTRL_CANCEL, RW
	crbStart     bus.Off = 0x4c // TPM_CRB_CTRL_START, RW
	crbCmdSize   bus.Off = 0x58 // TPM_CRB_CTRL_CMD_SIZE, RO
	crbCmdLaddr  bus.Off = 0x5c // TPM_CRB_CTRL_CMD_LADDR, RO
	crbRspSize   bus.Off = 0x64 // TPM_CRB_CTRL_RSP_SIZE, RO
	crbRspAddr   bus.Off = 0x68 // TPM_CRB_CTRL_RSP_ADDR, RO, low half
	crbBuffer    bus.Off = 0x80 // TPM_CRB_DATA_BUFFER: the command, then the answer
	crbSize              = 0x1000
	crbBufferLen         = crbSize - crbBuffer
)

// Bits and values of them.
const (
	locEstablished = 1 << 0 // of LOC_STATE: 1, as in TPM_ACCESS, while there was no measured launch
	locAssigned    = 1 << 1
	locValid       = 1 << 7
	locRequest     = 1 << 0 // of LOC_CTRL
	locRelinquish  = 1 << 1
	locGranted     = 1 << 0 // of LOC_STS
	crbReady       = 1 << 0 // of CTRL_REQ
	crbGoIdle      = 1 << 1
	crbError       = 1 << 0 // of CTRL_STS
	crbIdle        = 1 << 1
	crbInvoke      = 1 << 0 // of CTRL_START, and of CTRL_CANCEL

	// CRB, its version; 64 bytes at once; a CRB it can be, and is.
	crbID     = 1 | 1<<4 | 3<<11 | 1<<14 | 1<<17
	crbVendor = 0x1014 // QEMU's: IBM
)

// crb is a command response buffer with one locality. As QEMU's it starts a command also while it is idle, which a
// driver must not rely on, but not without its locality.
type crb struct {
	s   slot
	o   tpmOptions
	run tpmRun

	granted, ready, failed bool
	buf                    [crbBufferLen]byte
}

func newCRB(s slot, o options) (chip, header, error) {
	opts, err := tpmOptionsOf(o, crbKinds)
	if err != nil {
		return nil, header{}, err
	}
	c := &crb{s: s, o: opts}
	c.run = tpmRun{s: s, o: &c.o, done: c.completed}
	return c, c.o.header(crbSize, 1|2|4|8), nil
}

func (c *crb) reset() {
	c.run.reset()
	*c = crb{s: c.s, o: c.o, run: c.run}
}

func (c *crb) read(_ int, off bus.Off, width int) uint64 {
	if off >= crbBuffer {
		return loadBytes(c.buf[off-crbBuffer:], width)
	}
	if width == 8 {
		return uint64(c.register(off)) | uint64(c.register(off+4))<<32
	}
	return uint64(c.register(off&^3) >> (8 * uint(off&3)))
}

func (c *crb) register(reg bus.Off) uint32 {
	at := uint32(c.o.base) + uint32(crbBuffer)
	switch reg {
	case crbLocState:
		return bit(c.granted, locAssigned) | locValid | locEstablished
	case crbLocSts:
		return bit(c.granted, locGranted)
	case crbIntfID:
		return crbID
	case crbIntfIDHi:
		return crbVendor
	case crbCtrlSts:
		return bit(c.failed, crbError) | bit(!c.ready, crbIdle)
	case crbStart:
		return bit(c.run.busy, crbInvoke)
	case crbCmdSize, crbRspSize:
		return uint32(crbBufferLen)
	case crbCmdLaddr, crbRspAddr:
		return at
	}
	return 0
}

func bit(on bool, mask uint32) uint32 {
	if on {
		return mask
	}
	return 0
}

func (c *crb) write(_ int, off bus.Off, width int, v uint64) {
	switch {
	case off >= crbBuffer:
		storeBytes(c.buf[off-crbBuffer:], width, v)
	case width == 8:
		c.set(off, uint32(v))
		c.set(off+4, uint32(v>>32))
	default:
		c.set(off, uint32(v))
	}
}

// set writes a register. Those that can be written have their bits at the lowest byte, and one at a time.
func (c *crb) set(reg bus.Off, v uint32) {
	switch reg {
	case crbLocCtrl:
		if v == locRequest && !c.o.bad.is("locality", c.run.number+1) {
			c.granted = true
		} else if v == locRelinquish {
			c.granted = false
		}
	case crbCtrlReq:
		if v == crbReady || v == crbGoIdle {
			c.ready = v == crbReady
		}
	case crbCancel:
		if v == crbInvoke {
			c.run.cancel()
		}
	case crbStart:
		if v == crbInvoke && c.granted && !c.run.busy {
			c.invoke()
		}
	}
}

// invoke runs the command in the buffer: as many bytes as it says it has, where they fit.
func (c *crb) invoke() {
	c.run.number++
	n := min(uint64(binary.BigEndian.Uint32(c.buf[2:])), uint64(len(c.buf)))
	c.run.start(0, c.buf[:n])
}

// completed puts the answer where the command was; behind it stays what was there. One that does not fit is cut.
func (c *crb) completed(answer []byte) {
	if c.run.is("fatal") {
		c.failed = true
		return
	}
	copy(c.buf[:], answer)
}

// loadBytes and storeBytes are an access to memory, little-endian.
func loadBytes(b []byte, width int) (v uint64) {
	for i := range width {
		v |= uint64(b[i]) << (8 * i)
	}
	return v
}

func storeBytes(b []byte, width int, v uint64) {
	for i := range width {
		b[i] = byte(v >> (8 * i))
	}
}
