package sim

import (
	"bytes"
	"crypto/sha1"
	"encoding/binary"
)

// Ordinals (TPM 1.2 part 2, 17).
const (
	ord12Extend           = 0x14
	ord12PCRRead          = 0x15
	ord12GetRandom        = 0x46
	ord12SelfTestFull     = 0x50
	ord12ContinueSelfTest = 0x53
	ord12GetTestResult    = 0x54
	ord12GetCapability    = 0x65
	ord12ReadPubek        = 0x7c
	ord12SaveState        = 0x98
	ord12Startup          = 0x99
	ord12PCRReset         = 0xc8
)

// Result codes (TPM 1.2 part 2, 16).
const (
	rc12BadIndex        = 0x02
	rc12BadParameter    = 0x03
	rc12BadOrdinal      = 0x0a
	rc12InvalidPCRInfo  = 0x10
	rc12BadParamSize    = 0x19
	rc12NoEndorsement   = 0x23
	rc12InvalidPostInit = 0x26
	rc12BadMode         = 0x2c
	rc12NotResetable    = 0x32
	rc12Retry           = 0x800
	rc12DoingSelfTest   = 0x802
)

// Kinds of Startup (TPM 1.2 part 2, 5.5).
const (
	st12Clear       = 1
	st12State       = 2
	st12Deactivated = 3
)

// What can be reset by anybody: the debug PCR, and one for applications (TCG PC Client
// Implementation for BIOS 1.21, 4.2).
const (
	pcrDebug = 16
	pcrApp   = 23
)

// engine12 is a TPM 1.2 that is enabled, activated and has no owner.
type engine12 struct {
	noEK    bool
	started bool
	deact   bool // until the next start
	saved   *[tpmPCRs][sha1.Size]byte
	pcrs    [tpmPCRs][sha1.Size]byte
	rng     random
}

func (e *engine12) powerOn() { e.started, e.deact = false, false }

// handler12 executes a command: its parameters to an answer's, or a result code.
type handler12 func(*engine12, *tpmReader) ([]byte, uint32)

// command12 is a command by its ordinal, nil where there is none.
func command12(ord uint32) handler12 {
	switch ord {
	case ord12Extend:
		return (*engine12).extend
	case ord12PCRRead:
		return (*engine12).pcrRead
	case ord12GetRandom:
		return (*engine12).getRandom
	case ord12SelfTestFull, ord12ContinueSelfTest:
		return (*engine12).nothing
	case ord12GetTestResult:
		return (*engine12).getTestResult
	case ord12GetCapability:
		return (*engine12).getCapability
	case ord12ReadPubek:
		return (*engine12).readPubek
	case ord12SaveState:
		return (*engine12).saveState
	case ord12Startup:
		return (*engine12).startup
	case ord12PCRReset:
		return (*engine12).pcrReset
	}
	return nil
}

// command checks the header (TPM 1.2 part 1, 22: tag, size, ordinal) and executes.
func (e *engine12) command(cmd []byte) []byte {
	fail := func(rc uint32) []byte { return tpmAnswer(tagAnswer12, rc) }
	if len(cmd) < 2 || binary.BigEndian.Uint16(cmd) != tagRequest12 {
		return fail(badTagCode) // no command here takes authorization
	}
	if len(cmd) < tpmHeader || uint64(binary.BigEndian.Uint32(cmd[2:])) != uint64(len(cmd)) {
		return fail(rc12BadParamSize)
	}
	ord := binary.BigEndian.Uint32(cmd[6:])
	run := command12(ord)
	switch {
	case run == nil:
		return fail(rc12BadOrdinal)
	case e.started == (ord == ord12Startup):
		return fail(rc12InvalidPostInit)
	}
	r := &tpmReader{b: cmd[tpmHeader:]}
	out, rc := run(e, r)
	if rc != 0 {
		return fail(rc)
	}
	return tpmAnswer(tagAnswer12, 0, out...)
}

// end12 says what is wrong with a command's length, before it has any effect.
func (r *tpmReader) end12() uint32 {
	if r.missing != 0 || len(r.b) > 0 {
		return rc12BadParamSize
	}
	return 0
}

// nothing is to test what always works.
func (e *engine12) nothing(r *tpmReader) ([]byte, uint32) { return nil, r.end12() }

// getTestResult gives what the vendor says of its tests, as sized bytes: none.
func (e *engine12) getTestResult(r *tpmReader) ([]byte, uint32) {
	return put32(nil, 0), r.end12()
}

func (e *engine12) startup(r *tpmReader) ([]byte, uint32) {
	kind := r.u16()
	if rc := r.end12(); rc != 0 {
		return nil, rc
	}
	switch kind {
	case st12Clear, st12Deactivated:
		e.pcrs = [tpmPCRs][sha1.Size]byte{}
		for i := 17; i <= 22; i++ {
			copy(e.pcrs[i][:], bytes.Repeat([]byte{0xff}, sha1.Size)) // there was no measured launch
		}
	case st12State:
		if e.saved == nil {
			return nil, tpmFail12
		}
		e.pcrs = *e.saved
	default:
		return nil, rc12BadParameter
	}
	e.started, e.deact, e.saved = true, kind == st12Deactivated, nil
	return nil, 0
}

func (e *engine12) saveState(r *tpmReader) ([]byte, uint32) {
	if rc := r.end12(); rc != 0 {
		return nil, rc
	}
	pcrs := e.pcrs
	e.saved = &pcrs
	return nil, 0
}

func (e *engine12) getRandom(r *tpmReader) ([]byte, uint32) {
	n := r.u32()
	if rc := r.end12(); rc != 0 {
		return nil, rc
	}
	n = min(n, tpmMax-tpmHeader-4)
	return append(put32(nil, n), e.rng.take(int(n))...), 0
}

func (e *engine12) pcrRead(r *tpmReader) ([]byte, uint32) {
	i := r.u32()
	switch rc := r.end12(); {
	case rc != 0:
		return nil, rc
	case i >= tpmPCRs:
		return nil, rc12BadIndex
	}
	return bytes.Clone(e.pcrs[i][:]), 0
}

func (e *engine12) extend(r *tpmReader) ([]byte, uint32) {
	i, digest := r.u32(), r.bytes(sha1.Size)
	switch rc := r.end12(); {
	case rc != 0:
		return nil, rc
	case i >= tpmPCRs:
		return nil, rc12BadIndex
	}
	e.saved = nil // TPM 1.2 part 3, 3.3: what comes after it undoes it
	e.pcrs[i] = sha1.Sum(append(e.pcrs[i][:], digest...))
	return bytes.Clone(e.pcrs[i][:]), 0
}

func (e *engine12) pcrReset(r *tpmReader) ([]byte, uint32) {
	sel := r.sized()
	if rc := r.end12(); rc != 0 {
		return nil, rc
	}
	if len(sel) == 0 || len(sel) > tpmPCRs/8 {
		return nil, rc12InvalidPCRInfo
	}
	var which []int
	for i := range 8 * len(sel) {
		if sel[i/8]>>(i%8)&1 == 0 {
			continue
		}
		if i != pcrDebug && i != pcrApp {
			return nil, rc12NotResetable
		}
		which = append(which, i)
	}
	if len(which) == 0 {
		return nil, rc12InvalidPCRInfo
	}
	for _, i := range which {
		e.pcrs[i] = [sha1.Size]byte{}
	}
	return nil, 0
}

// readPubek gives the public part of the endorsement key, which is nobody's, and a checksum
// (TPM 1.2 part 3, 14.4).
func (e *engine12) readPubek(r *tpmReader) ([]byte, uint32) {
	nonce := r.bytes(sha1.Size)
	if rc := r.end12(); rc != 0 {
		return nil, rc
	}
	if e.noEK {
		return nil, rc12NoEndorsement
	}
	key := pubek()
	sum := sha1.Sum(append(bytes.Clone(key), nonce...))
	return append(key, sum[:]...), 0
}

// pubek is a TPM_PUBKEY: RSA, OAEP with SHA-1 and MGF1, no signatures, 2048 bits, two primes, the usual
// exponent (TPM 1.2 part 2, 10.4 and 10.5).
func pubek() []byte {
	const bits = 2048
	b := put16(put16(put32(nil, 1), 3), 1)
	b = put32(b, 12)
	b = put32(put32(put32(b, bits), 2), 0)
	b = put32(b, bits/8)
	modulus := (&random{n: 1 << 32}).take(bits / 8)
	modulus[0] |= 0x80
	modulus[len(modulus)-1] |= 1
	return append(b, modulus...)
}
