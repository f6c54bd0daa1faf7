package sim

import (
	"bytes"
	"crypto"
	_ "crypto/sha1"   // a bank's
	_ "crypto/sha256" // a bank's
	_ "crypto/sha512" // two banks'
)

// Hash algorithms (TPM_ALG_ID, TPM 2.0 part 2, 6.3).
const (
	algSHA1   = 0x0004
	algSHA256 = 0x000b
	algSHA384 = 0x000c
	algSHA512 = 0x000d
	algNull   = 0x0010

	maxDigest = 64
	// maxDigests is the most in one TPML_DIGEST.
	maxDigests = 8
)

// algs are the hash algorithms that there are, in the order of banks.
var algs = []uint16{algSHA1, algSHA256, algSHA384, algSHA512}

// hashOf is a hash algorithm, 0 where there is none.
func hashOf(alg uint16) crypto.Hash {
	switch alg {
	case algSHA1:
		return crypto.SHA1
	case algSHA256:
		return crypto.SHA256
	case algSHA384:
		return crypto.SHA384
	case algSHA512:
		return crypto.SHA512
	}
	return 0
}

// pcrBank are the PCRs of one algorithm, which uses as many bytes as it needs.
type pcrBank [tpmPCRs][maxDigest]byte

// resetPCRs is what a reset of the TPM does: ones where only a measured launch begins with zeros
// (PTP, 4.6.2, table 3).
func (e *engine20) resetPCRs() {
	e.updates = 0
	for _, alg := range algs {
		b := &pcrBank{}
		for i := 17; i <= 22; i++ {
			copy(b[i][:], bytes.Repeat([]byte{0xff}, maxDigest))
		}
		e.pcrs[alg] = b
	}
}

// pcrLocalities are the localities, a bit each, that may extend and reset a PCR (PTP, 4.6.2, table 3).
func pcrLocalities(pcr uint32) (extend, reset uint8) {
	const all = 1<<5 - 1
	switch pcr {
	case pcrDebug, pcrApp:
		return all, all
	case 17, 18:
		return 0b11100, 0 // reset by a measured launch
	case 19:
		return 0b01100, 0
	case 20:
		return 0b01110, 0b10100
	case 21, 22:
		return 0b00100, 0b10100
	}
	return all, 0
}

func (e *engine20) pcrExtend(c *tpmCall) uint32 {
	type value struct {
		alg    uint16
		digest []byte
	}
	var values []value
	n := c.in.u32()
	if c.in.missing == 0 && n > uint32(len(algs)) {
		return inParam(rcSize, 1)
	}
	for range n {
		alg := c.in.more16()
		if c.in.missing != 0 {
			break
		}
		if hashOf(alg) == 0 {
			return inParam(rcHash, 1)
		}
		values = append(values, value{alg, c.in.more(hashOf(alg).Size())})
	}
	if rc := c.end(); rc != 0 {
		return rc
	}
	pcr := c.handles[0]
	if pcr == rhNull {
		return 0
	}
	if may, _ := pcrLocalities(pcr); may>>c.locality&1 == 0 {
		return rcLocality
	}
	for _, v := range values {
		h := hashOf(v.alg).New()
		at := e.pcrs[v.alg][pcr][:h.Size()]
		h.Write(at)
		h.Write(v.digest)
		copy(at, h.Sum(nil))
	}
	e.updates++
	return 0
}

func (e *engine20) pcrReset(c *tpmCall) uint32 {
	if rc := c.end(); rc != 0 {
		return rc
	}
	pcr := c.handles[0]
	if pcr == rhNull {
		return 0
	}
	if _, may := pcrLocalities(pcr); may>>c.locality&1 == 0 {
		return rcLocality
	}
	for _, b := range e.pcrs {
		b[pcr] = [maxDigest]byte{}
	}
	e.updates++
	return 0
}

// pcrRead gives as many digests as fit, and says which those are.
func (e *engine20) pcrRead(c *tpmCall) uint32 {
	type selection struct {
		alg uint16
		pcr [tpmPCRs / 8]byte
	}
	var in []selection
	n := c.in.u32()
	if c.in.missing == 0 && n > uint32(len(algs)) {
		return inParam(rcSize, 1)
	}
	for range n {
		s := selection{alg: c.in.more16()}
		size := c.in.more8()
		if c.in.missing != 0 {
			break
		}
		switch {
		case hashOf(s.alg) == 0:
			return inParam(rcHash, 1)
		case int(size) != len(s.pcr):
			return inParam(rcValue, 1)
		}
		copy(s.pcr[:], c.in.more(len(s.pcr)))
		in = append(in, s)
	}
	if rc := c.end(); rc != 0 {
		return rc
	}
	c.out = put32(put32(nil, e.updates), n)
	var digests []byte
	count := uint32(0)
	for _, s := range in {
		size := hashOf(s.alg).Size()
		for i := range tpmPCRs {
			switch is := s.pcr[i/8]>>(i%8)&1 != 0; {
			case is && count < maxDigests:
				digests = putSized(digests, e.pcrs[s.alg][i][:size])
				count++
			case is:
				s.pcr[i/8] &^= 1 << (i % 8)
			}
		}
		c.out = append(append(put16(c.out, s.alg), uint8(len(s.pcr))), s.pcr[:]...)
	}
	c.out = append(put32(c.out, count), digests...)
	return 0
}
