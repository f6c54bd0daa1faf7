package sim

import "github.com/ring3dev/ring3/bus"

var tisModel = model{
	name: "tpm-tis", about: "a TPM behind the FIFO of the TPM Interface Specification, as QEMU's tpm-tis; a platform device",
	platform: true, tpm: true,
	props: map[string]string{
		"family":    "1.2 or 2.0: the language that the TPM speaks (default 2.0)",
		"burst":     "the FIFO's depth, from 1 to 4096 bytes: it announces no more, and what goes beyond is lost (default: all the room of its buffer)",
		"delay":     delayAbout,
		"irq":       "off: no interrupt ever comes, though they can be enabled (default on)",
		"ek":        "off: a TPM 1.2 has no endorsement key (default on)",
		"misbehave": badAbout,
	},
	make: newTIS,
}

// Registers of a locality (TIS 1.3, 5.6, table 7; PTP, 6.5.2). The region has five, one after the other.
const (
	tisAccess  bus.Off = 0x000 // TPM_ACCESS, 8 bits, RW
	tisIntEn   bus.Off = 0x008 // TPM_INT_ENABLE, RW
	tisVector  bus.Off = 0x00c // TPM_INT_VECTOR, 8 bits, RO here
	tisIntSta  bus.Off = 0x010 // TPM_INT_STATUS, W1C
	tisIntfCap bus.Off = 0x014 // TPM_INTF_CAPABILITY, RO
	tisSts     bus.Off = 0x018 // TPM_STS, RW
	tisFIFO    bus.Off = 0x024 // TPM_DATA_FIFO, 8 to 32 bits, RW
	tisIntfID  bus.Off = 0x030 // TPM_INTERFACE_ID, RW
	tisXFIFO   bus.Off = 0x080 // TPM_XDATA_FIFO: the same as TPM_DATA_FIFO, 64 bytes wide
	tisXEnd    bus.Off = 0x0c0
	tisDIDVID  bus.Off = 0xf00 // TPM_DID_VID, RO
	tisRID     bus.Off = 0xf04 // TPM_RID, 8 bits, RO

	tisLocality   = 0x1000
	tisLocalities = 5
	tisHardware   = 4 // the locality that software cannot write to
	noLocality    = -1
)

// Bits of TPM_ACCESS (TIS 1.3, table 10).
const (
	accessValid       = 1 << 7 // tpmRegValidSts, RO
	accessActive      = 1 << 5 // activeLocality: 1 gives it up
	accessSeized      = 1 << 4 // beenSeized, W1C
	accessSeize       = 1 << 3 // Seize, WO
	accessPending     = 1 << 2 // pendingRequest, RO
	accessRequest     = 1 << 1 // requestUse
	accessEstablished = 1 << 0 // tpmEstablishment, RO: 0 after a measured launch
)

// Interrupts: bits of TPM_INT_ENABLE, TPM_INT_STATUS and TPM_INTF_CAPABILITY (TIS 1.3, tables 17 to 21).
const (
	tisIntData     = 1 << 0 // data is available
	tisIntValid    = 1 << 1 // stsValid was set
	tisIntLocality = 1 << 2 // another locality became active
	tisIntReady    = 1 << 7 // commandReady was set
	tisIntAll      = tisIntData | tisIntValid | tisIntLocality | tisIntReady
	tisIntPolarity = 0b11 << 3 // RW and without effect: the line is level-triggered
	tisIntLow      = 0b01 << 3 // its reset value: low level
	tisIntGlobal   = 1 << 31
)

// Values that are fixed.
const (
	tisCap20  = 3<<28 | 3<<9 | tisIntAll | 1<<4 // PTP, 64 bytes at once, low level
	tisCap12  = 2<<28 | 3<<9 | tisIntAll | 1<<4 // TIS 1.3
	tisID20   = 1<<13 | 1<<8                    // FIFO, five localities
	tisID12   = ^uint32(0)                      // TIS 1.3; the rest says nothing
	tisIDLock = 1 << 19                         // IntfSelLock
	tpmDIDVID = 0x00011014                      // QEMU's: IBM, 1
	tpmRID    = 1
)

// Bits of TPM_STS (TIS 1.3, table 15; PTP, table 22).
const (
	stsValid    = 1 << 7
	stsReady    = 1 << 6  // commandReady
	stsGo       = 1 << 5  // tpmGo, WO
	stsData     = 1 << 4  // dataAvail
	stsExpect   = 1 << 3  // Expect
	stsTested   = 1 << 2  // selfTestDone
	stsRetry    = 1 << 1  // responseRetry, WO
	stsCancel   = 1 << 24 // commandCancel, WO, TPM 2.0
	stsFamily20 = 1 << 26
	stsBurst    = 8 // shift of burstCount
	tisNoData   = 0xff
)

type tisState uint8

// States of a locality (TIS 1.3, 5.6.11, figure 3).
const (
	tisIdle tisState = iota
	tisReady
	tisReception
	tisExecution
	tisCompletion
)

// tisLoc is what each locality has of its own.
type tisLoc struct {
	access       uint8 // Active, Seized, Request, and Seize while one is under way
	sts          uint32
	state        tisState
	inten, insta uint32
}

// tis is a FIFO interface. Like QEMU's it has one buffer, which is a command's and then its answer's.
type tis struct {
	s   slot
	o   tpmOptions
	run tpmRun

	loc      [tisLocalities]tisLoc
	active   int  // the command that runs, if one does, is this one's
	aborting bool // something is to end before next is active
	next     int
	locked   bool
	tested   bool // selfTestDone: the TPM is one, whoever asks

	command [tpmMax]byte
	got     int // bytes of it
	answer  []byte
	given   int  // bytes of it
	credit  int  // with a burst count of ours: what the last read of TPM_STS announced
	refused bool // it announced none, by misbehaviour
}

func newTIS(s slot, o options) (chip, header, error) {
	opts, err := tpmOptionsOf(o, tisKinds)
	if err != nil {
		return nil, header{}, err
	}
	t := &tis{s: s, o: opts}
	t.run = tpmRun{s: s, o: &t.o, done: t.completed}
	h := t.o.header(tisLocality*tisLocalities, 1|2|4)
	h.intx = true
	return t, h, nil
}

func (t *tis) reset() {
	t.run.reset()
	*t = tis{s: t.s, o: t.o, run: t.run, active: noLocality}
	for i := range t.loc {
		t.loc[i].inten = tisIntLow
	}
	t.s.line(false)
}

// word is where the register begins that an access is to, and how many bits of it lie below.
func word(off bus.Off) (reg bus.Off, shift uint) {
	return off % tisLocality &^ 3, uint(off&3) * 8
}

func isFIFO(reg bus.Off) bool { return reg == tisFIFO || reg >= tisXFIFO && reg < tisXEnd }

func (t *tis) read(_ int, off bus.Off, width int) uint64 {
	l := int(off / tisLocality)
	reg, shift := word(off)
	if isFIFO(reg) {
		return t.readFIFO(l, width)
	}
	return uint64(t.register(l, reg, width) >> shift)
}

// register is what a register of a locality says; all-ones where there is none.
func (t *tis) register(l int, reg bus.Off, width int) uint32 {
	switch reg {
	case tisAccess:
		return t.readAccess(l)
	case tisIntEn:
		return t.loc[l].inten
	case tisVector:
		return platformLine
	case tisIntSta:
		return t.loc[l].insta
	case tisIntfCap:
		if t.o.tpm12 {
			return tisCap12
		}
		return tisCap20
	case tisSts:
		return t.readSts(l, width)
	case tisIntfID:
		id := uint32(tisID20)
		if t.o.tpm12 {
			id = tisID12
		}
		if t.locked {
			id |= tisIDLock
		}
		return id
	case tisDIDVID:
		return tpmDIDVID
	case tisRID:
		return tpmRID
	}
	return ^uint32(0)
}

func (t *tis) write(_ int, off bus.Off, width int, v uint64) {
	l := int(off / tisLocality)
	if l == tisHardware {
		return
	}
	reg, shift := word(off)
	if isFIFO(reg) {
		t.writeFIFO(l, width, uint32(v))
		return
	}
	val, mask := uint32(v)<<shift, uint32(1<<(8*width)-1)<<shift
	switch {
	case reg == tisAccess:
		t.writeAccess(l, uint8(val))
	case reg == tisIntfID:
		t.locked = t.locked || val&tisIDLock != 0
	case l != t.active:
		// the rest is the active locality's
	case reg == tisIntEn:
		t.loc[l].inten = t.loc[l].inten&^mask | val&(tisIntGlobal|tisIntPolarity|tisIntAll)
	case reg == tisIntSta:
		t.loc[l].insta &^= val
		t.drive()
	case reg == tisSts:
		t.writeSts(l, val)
	}
}

// raise sets those interrupts of a locality that are enabled.
func (t *tis) raise(l int, what uint32) {
	if x := &t.loc[l]; x.inten&tisIntGlobal != 0 {
		x.insta |= what & x.inten & tisIntAll
		t.drive()
	}
}

// drive sets the line. In a storm it is high whatever the registers say, so that nobody finds a cause, from the first
// byte of a command until another begins.
func (t *tis) drive() {
	high := t.run.is("storm")
	for i := range t.loc {
		high = high || t.loc[i].insta != 0
	}
	t.s.line(high && !t.o.noIRQ)
}
