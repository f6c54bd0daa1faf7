package sim

import "encoding/binary"

// Command codes (TPM 2.0 part 2, 6.5.2).
const (
	ccPCRReset          = 0x13d
	ccSequenceComplete  = 0x13e
	ccSelfTest          = 0x143
	ccStartup           = 0x144
	ccShutdown          = 0x145
	ccSequenceUpdate    = 0x15c
	ccContextLoad       = 0x161
	ccContextSave       = 0x162
	ccFlushContext      = 0x165
	ccStartAuthSession  = 0x176
	ccGetCapability     = 0x17a
	ccGetRandom         = 0x17b
	ccGetTestResult     = 0x17c
	ccPCRRead           = 0x17e
	ccPCRExtend         = 0x182
	ccHashSequenceStart = 0x186
	ccPolicyGetDigest   = 0x189
)

// Response codes (TPM 2.0 part 2, 6.6.3), and what is added to one that is about a handle, a parameter or a session,
// with its number from 1 at rcNumber.
const (
	rcInitialize     = 0x100
	rcAuthMissing    = 0x125
	rcCommandSize    = 0x142
	rcCommandCode    = 0x143
	rcAuthSize       = 0x144
	rcAuthContext    = 0x145
	rcNeedsTest      = 0x153
	rcAttributes     = 0x082
	rcHash           = 0x083
	rcValue          = 0x084
	rcHandle         = 0x08b
	rcAuthFail       = 0x08e
	rcSize           = 0x095
	rcSymmetric      = 0x096
	rcInsufficient   = 0x09a
	rcKey            = 0x09c
	rcIntegrity      = 0x09f
	rcBadAuth        = 0x0a2
	rcObjectMemory   = 0x902
	rcSessionMemory  = 0x903
	rcMemory         = 0x904
	rcSessionHandles = 0x905
	rcLocality       = 0x907
	rcReferenceH0    = 0x910
	rcReferenceS0    = 0x918

	rcParam   = 0x040
	rcSession = 0x800
	rcNumber  = 8 // shift
)

func inParam(rc uint32, n int) uint32  { return rc | rcParam | uint32(n)<<rcNumber }
func inHandle(rc uint32, n int) uint32 { return rc | uint32(n)<<rcNumber }

// Attributes of a command (TPMA_CC, TPM 2.0 part 2, 8.9).
const (
	ccNV      = 1 << 22
	ccFlushed = 1 << 24
	ccHandles = 25 // shift
	ccRHandle = 1 << 28
)

// Handles (TPM 2.0 part 2, 7).
const (
	rhNull       = 0x40000007
	rhPW         = 0x40000009 // TPM_RS_PW: a password
	htPCR        = 0x00
	htHMAC       = 0x02 // and loaded sessions of any kind
	htPolicy     = 0x03 // and saved sessions of any kind
	htPermanent  = 0x40
	htTransient  = 0x80
	handleType   = 24 // shift
	firstObject  = htTransient << handleType
	handleNumber = 1<<handleType - 1
)

// tpmCommand is a command that there is.
type tpmCommand struct {
	code    uint32
	attrs   uint32
	handles int
	auth    bool // the first handle needs authorization
	bare    bool // it takes no sessions
	run     func(*engine20, *tpmCall) uint32
}

func (c *tpmCommand) cca() uint32 { return c.code | c.attrs | uint32(c.handles)<<ccHandles }

// commands20 are the commands that there are, in order. A function, since GetCapability asks it.
func commands20() []tpmCommand {
	return []tpmCommand{
		{code: ccPCRReset, attrs: ccNV, handles: 1, auth: true, run: (*engine20).pcrReset},
		{code: ccSequenceComplete, attrs: ccFlushed, handles: 1, auth: true, run: (*engine20).sequenceComplete},
		{code: ccSelfTest, attrs: ccNV, run: (*engine20).selfTest},
		{code: ccStartup, attrs: ccNV, bare: true, run: (*engine20).startup},
		{code: ccShutdown, attrs: ccNV, run: (*engine20).shutdown},
		{code: ccSequenceUpdate, handles: 1, auth: true, run: (*engine20).sequenceUpdate},
		{code: ccContextLoad, attrs: ccRHandle, bare: true, run: (*engine20).contextLoad},
		{code: ccContextSave, handles: 1, bare: true, run: (*engine20).contextSave},
		{code: ccFlushContext, bare: true, run: (*engine20).flushContext},
		{code: ccStartAuthSession, attrs: ccRHandle, handles: 2, run: (*engine20).startAuthSession},
		{code: ccGetCapability, run: (*engine20).getCapability},
		{code: ccGetRandom, run: (*engine20).getRandom},
		{code: ccGetTestResult, run: (*engine20).getTestResult},
		{code: ccPCRRead, run: (*engine20).pcrRead},
		{code: ccPCRExtend, attrs: ccNV, handles: 1, auth: true, run: (*engine20).pcrExtend},
		{code: ccHashSequenceStart, attrs: ccRHandle, run: (*engine20).hashSequenceStart},
		{code: ccPolicyGetDigest, handles: 1, run: (*engine20).policyGetDigest},
	}
}

// tpmCall is a command that is executed.
type tpmCall struct {
	cmd      *tpmCommand
	locality int
	handles  []uint32
	sessions []tpmAuth
	in       tpmReader
	handle   uint32 // of the answer, where the command gives one
	out      []byte
}

// end is what is wrong with the parameters, before any of them has an effect.
func (c *tpmCall) end() uint32 {
	switch {
	case c.in.missing != 0:
		return inParam(rcInsufficient, c.in.missing)
	case len(c.in.b) > 0:
		return rcSize
	}
	return 0
}

// engine20 is a TPM 2.0.
type engine20 struct {
	started  bool
	resets   uint64 // since it was made: contexts of before are no more
	pcrs     map[uint16]*pcrBank
	updates  uint32 // pcrUpdateCounter
	saved    map[uint16]pcrBank
	rng      random
	objects  [maxObjects]*tpmObject
	sessions [maxSessions]*tpmSession
	sequence uint64 // of contexts
}

func (e *engine20) powerOn() {
	e.started = false
	e.resets++
	e.objects, e.sessions = [maxObjects]*tpmObject{}, [maxSessions]*tpmSession{}
}

// command checks in the order of TPM 2.0 part 3, 5: header, mode, handles, sessions, parameters.
func (e *engine20) command(locality int, cmd []byte) []byte {
	fail := func(rc uint32) []byte { return tpmAnswer(tagNoSessions, rc) }
	if len(cmd) < 2 {
		return fail(rcCommandSize)
	}
	tag := binary.BigEndian.Uint16(cmd)
	if tag != tagNoSessions && tag != tagSessions {
		return tpmAnswer(tagAnswer12, badTagCode)
	}
	if len(cmd) < tpmHeader || uint64(binary.BigEndian.Uint32(cmd[2:])) != uint64(len(cmd)) {
		return fail(rcCommandSize)
	}
	c := tpmCall{locality: locality, in: tpmReader{b: cmd[tpmHeader:]}}
	code := binary.BigEndian.Uint32(cmd[6:])
	for _, x := range commands20() {
		if x.code == code {
			c.cmd = &x
		}
	}
	switch {
	case c.cmd == nil:
		return fail(rcCommandCode)
	case e.started == (code == ccStartup):
		return fail(rcInitialize)
	}
	if rc := e.prepare(&c, tag); rc != 0 {
		return fail(rc)
	}
	if rc := c.cmd.run(e, &c); rc != 0 {
		return fail(rc)
	}
	return c.answer(tag)
}

// prepare reads handles and sessions, and checks them.
func (e *engine20) prepare(c *tpmCall, tag uint16) uint32 {
	for i := range c.cmd.handles {
		if len(c.in.b) < 4 {
			return inHandle(rcInsufficient, i+1)
		}
		h := c.in.u32()
		if rc := e.checkHandle(c.cmd, h, i); rc != 0 {
			return rc
		}
		c.handles = append(c.handles, h)
	}
	c.in.n = 0
	if tag == tagNoSessions {
		if c.cmd.auth {
			return rcAuthMissing
		}
		return 0
	}
	return e.readSessions(c)
}

// checkHandle checks that there is what a handle names, and that the command takes that kind.
func (e *engine20) checkHandle(cmd *tpmCommand, h uint32, i int) uint32 {
	kind := h >> handleType
	switch cmd.code {
	case ccPCRReset, ccPCRExtend:
		if h >= tpmPCRs && (h != rhNull || cmd.code == ccPCRReset) {
			return inHandle(rcValue, i+1)
		}
		return 0
	case ccStartAuthSession:
		switch {
		case h == rhNull:
			return 0
		case kind != htTransient:
			return inHandle(rcValue, i+1)
		case e.object(h) == nil:
			return rcReferenceH0 + uint32(i)
		}
		return inHandle(rcKey, i+1) // there are none
	}
	switch kind {
	case htTransient:
		if e.object(h) == nil {
			return rcReferenceH0 + uint32(i)
		}
		if cmd.code == ccPolicyGetDigest {
			return inHandle(rcValue, i+1)
		}
		return 0
	case htHMAC, htPolicy:
		if s := e.session(h); s == nil || !s.loaded {
			return rcReferenceH0 + uint32(i)
		}
		if cmd.code == ccContextSave || cmd.code == ccPolicyGetDigest && kind == htPolicy {
			return 0
		}
	}
	return inHandle(rcValue, i+1)
}

// answer is that of a command that succeeded.
func (c *tpmCall) answer(tag uint16) []byte {
	var b []byte
	if c.cmd.attrs&ccRHandle != 0 {
		b = put32(b, c.handle)
	}
	if tag == tagNoSessions {
		return tpmAnswer(tag, 0, append(b, c.out...)...)
	}
	b = append(put32(b, uint32(len(c.out))), c.out...)
	for _, a := range c.sessions {
		b = append(putSized(b, nil), a.attrs|uint8(bit(a.handle == rhPW, sessionContinue)))
		b = putSized(b, nil)
	}
	return tpmAnswer(tag, 0, b...)
}

// Kinds of Startup and Shutdown (TPM_SU, TPM 2.0 part 2, 6.10).
const (
	suClear = 0
	suState = 1
)

func (e *engine20) startup(c *tpmCall) uint32 {
	kind := c.in.u16()
	if rc := c.end(); rc != 0 {
		return rc
	}
	switch {
	case kind == suClear:
		e.resetPCRs()
	case kind == suState && e.saved != nil:
		for alg, b := range e.saved {
			*e.pcrs[alg] = b
		}
	default:
		return inParam(rcValue, 1)
	}
	e.started, e.saved = true, nil
	return 0
}

func (e *engine20) shutdown(c *tpmCall) uint32 {
	kind := c.in.u16()
	if rc := c.end(); rc != 0 {
		return rc
	}
	switch kind {
	case suClear:
		e.saved = nil
	case suState:
		e.saved = map[uint16]pcrBank{}
		for alg, b := range e.pcrs {
			e.saved[alg] = *b
		}
	default:
		return inParam(rcValue, 1)
	}
	return 0
}

func (e *engine20) selfTest(c *tpmCall) uint32 {
	full := c.in.u8()
	if rc := c.end(); rc != 0 {
		return rc
	}
	if full > 1 {
		return inParam(rcValue, 1)
	}
	return 0
}

func (e *engine20) getTestResult(c *tpmCall) uint32 {
	c.out = put32(putSized(nil, nil), 0)
	return c.end()
}

func (e *engine20) getRandom(c *tpmCall) uint32 {
	n := c.in.u16()
	if rc := c.end(); rc != 0 {
		return rc
	}
	c.out = putSized(nil, e.rng.take(min(int(n), maxDigest)))
	return 0
}
