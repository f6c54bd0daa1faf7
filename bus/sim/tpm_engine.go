package sim

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
)

// The built-in TPM: as much of one as a driver, a resource manager and their tests need, and nothing by
// chance. It keeps no secrets and no keys.

// Tags and result codes that both families have, or that interfaces make themselves (TPM 2.0 part 2, 6.6 and
// 6.9; TPM 1.2 part 2, 6 and 16).
const (
	tpmHeader = 10

	tagRequest12  = 0x00c1
	tagAnswer12   = 0x00c4
	tagNoSessions = 0x8001
	tagSessions   = 0x8002

	tpmFail12  = 0x09
	badTagCode = 0x1e // TPM_BADTAG and TPM_RC_BAD_TAG
	rcCanceled = 0x909
	rcTesting  = 0x90a
	rcRetry    = 0x922
)

// Both families.
const (
	tpmPCRs         = 24
	tpmManufacturer = 0x52494e33 // RIN3
	tpmFirmware     = 1
)

// tpmAnswer is an answer with its parameters.
func tpmAnswer(tag uint16, rc uint32, params ...byte) []byte {
	b := binary.BigEndian.AppendUint16(make([]byte, 0, tpmHeader+len(params)), tag)
	b = binary.BigEndian.AppendUint32(b, uint32(tpmHeader+len(params)))
	b = binary.BigEndian.AppendUint32(b, rc)
	return append(b, params...)
}

// tpmReader takes a command's parameters apart. After the first that is missing it gives zeros, and says which one
// that was.
type tpmReader struct {
	b       []byte
	n       int // parameters so far
	missing int // number of the first that was missing, 0: none
}

func (r *tpmReader) bytes(n int) []byte {
	r.n++
	return r.more(n)
}

// more is the rest of a parameter that has several parts.
func (r *tpmReader) more(n int) []byte {
	if n > len(r.b) || r.missing != 0 {
		if r.missing == 0 {
			r.missing = max(r.n, 1)
		}
		r.b = nil
		return nil
	}
	b := r.b[:n:n]
	r.b = r.b[n:]
	return b
}

func number(b []byte) (v uint32) {
	for _, x := range b {
		v = v<<8 | uint32(x)
	}
	return v
}

func (r *tpmReader) u8() uint8        { return uint8(number(r.bytes(1))) }
func (r *tpmReader) u16() uint16      { return uint16(number(r.bytes(2))) }
func (r *tpmReader) u32() uint32      { return number(r.bytes(4)) }
func (r *tpmReader) more8() uint8     { return uint8(number(r.more(1))) }
func (r *tpmReader) more16() uint16   { return uint16(number(r.more(2))) }
func (r *tpmReader) sized() []byte    { return r.bytes(int(r.more16())) } // TPM2B
func (r *tpmReader) moreSize() []byte { return r.more(int(r.more16())) }

// Appending to an answer.
func put16(b []byte, v uint16) []byte { return binary.BigEndian.AppendUint16(b, v) }
func put32(b []byte, v uint32) []byte { return binary.BigEndian.AppendUint32(b, v) }
func putSized(b, v []byte) []byte     { return append(put16(b, uint16(len(v))), v...) }

// engine is the built-in TPM, of either family.
type engine struct {
	tpm12 bool
	e12   engine12
	e20   engine20
}

func newEngine(tpm12, noEK bool) *engine {
	return &engine{tpm12: tpm12, e12: engine12{noEK: noEK}, e20: engine20{pcrs: map[uint16]*pcrBank{}}}
}

// PowerOn is TPM's.
func (e *engine) PowerOn() {
	if e.tpm12 {
		e.e12.powerOn()
	} else {
		e.e20.powerOn()
	}
}

// Command is TPM's.
func (e *engine) Command(locality int, cmd []byte) []byte {
	if e.tpm12 {
		return e.e12.command(cmd)
	}
	return e.e20.command(locality, cmd)
}

// random is a stream of numbers that anybody can foretell.
type random struct {
	n   uint64
	buf []byte
}

func (r *random) take(n int) []byte {
	for len(r.buf) < n {
		block := sha256.Sum256(binary.BigEndian.AppendUint64([]byte("ring3 sim tpm"), r.n))
		r.n++
		r.buf = append(r.buf, block[:]...)
	}
	out := bytes.Clone(r.buf[:n])
	r.buf = r.buf[n:]
	return out
}
