package sim

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding"
	"encoding/binary"
	"hash"
)

// What a resource manager juggles: objects, of which few fit, and sessions, of which few are loaded. The objects
// are hash sequences, the only ones that need no key.

const (
	maxObjects  = 3
	maxLoaded   = 3  // sessions in the TPM's memory
	maxSessions = 64 // and all that there are, saved ones included
)

// tpmObject is a transient object: a sequence.
type tpmObject struct {
	alg uint16
	sum hash.Hash
}

// tpmSession is a session, loaded or saved.
type tpmSession struct {
	handle uint32
	loaded bool
	saved  uint64 // sequence number of the context that loads it again
}

// object is a transient object, nil where there is none.
func (e *engine20) object(h uint32) *tpmObject {
	if i := h & handleNumber; h>>handleType == htTransient && i < maxObjects {
		return e.objects[i]
	}
	return nil
}

func (e *engine20) session(h uint32) *tpmSession {
	if i := h & handleNumber; i < maxSessions && e.sessions[i] != nil && e.sessions[i].handle == h {
		return e.sessions[i]
	}
	return nil
}

// put takes a free slot for an object.
func (e *engine20) put(o *tpmObject) (handle uint32, ok bool) {
	for i := range e.objects {
		if e.objects[i] == nil {
			e.objects[i] = o
			return firstObject + uint32(i), true
		}
	}
	return 0, false
}

func (e *engine20) loadedSessions() (n int) {
	for _, s := range e.sessions {
		if s != nil && s.loaded {
			n++
		}
	}
	return n
}

func (e *engine20) hashSequenceStart(c *tpmCall) uint32 {
	c.in.sized() // authorization: only an empty one can be given here, and is taken as that
	alg := c.in.u16()
	if rc := c.end(); rc != 0 {
		return rc
	}
	if hashOf(alg) == 0 {
		return inParam(rcHash, 2)
	}
	var ok bool
	if c.handle, ok = e.put(&tpmObject{alg, hashOf(alg).New()}); !ok {
		return rcObjectMemory
	}
	return 0
}

func (e *engine20) sequenceUpdate(c *tpmCall) uint32 {
	data := c.in.sized()
	if rc := c.end(); rc != 0 {
		return rc
	}
	e.object(c.handles[0]).sum.Write(data)
	return 0
}

// sequenceComplete gives the digest, and no ticket worth anything, and flushes the sequence.
func (e *engine20) sequenceComplete(c *tpmCall) uint32 {
	data := c.in.sized()
	hierarchy := c.in.u32()
	if rc := c.end(); rc != 0 {
		return rc
	}
	o := e.object(c.handles[0])
	o.sum.Write(data)
	c.out = putSized(nil, o.sum.Sum(nil))
	const ticket = 0x8024 // TPM_ST_HASHCHECK
	c.out = putSized(put32(put16(c.out, ticket), hierarchy), nil)
	e.objects[c.handles[0]&handleNumber] = nil
	return 0
}

// Kinds of sessions (TPM_SE, TPM 2.0 part 2, 6.11).
const (
	seHMAC   = 0
	sePolicy = 1
	seTrial  = 3
)

func (e *engine20) startAuthSession(c *tpmCall) uint32 {
	nonce := c.in.sized()
	salt := c.in.sized()
	kind := c.in.u8()
	symmetric := c.in.u16()
	alg := c.in.u16()
	if rc := c.end(); rc != 0 {
		return rc
	}
	switch {
	case len(nonce) < 16 || len(nonce) > maxDigest:
		return inParam(rcSize, 1)
	case len(salt) > 0:
		return inParam(rcValue, 2)
	case kind != seHMAC && kind != sePolicy && kind != seTrial:
		return inParam(rcValue, 3)
	case symmetric != algNull:
		return inParam(rcSymmetric, 4)
	case hashOf(alg) == 0:
		return inParam(rcHash, 5)
	case e.loadedSessions() == maxLoaded:
		return rcSessionMemory
	}
	for i := range e.sessions {
		if e.sessions[i] != nil {
			continue
		}
		c.handle = htPolicy<<handleType | uint32(i)
		if kind == seHMAC {
			c.handle = htHMAC<<handleType | uint32(i)
		}
		e.sessions[i] = &tpmSession{handle: c.handle, loaded: true}
		c.out = putSized(nil, e.rng.take(len(nonce)))
		return 0
	}
	return rcSessionHandles
}

// policyGetDigest gives the digest of a policy that nothing was added to.
func (e *engine20) policyGetDigest(c *tpmCall) uint32 {
	c.out = putSized(nil, make([]byte, sha256.Size))
	return c.end()
}

func (e *engine20) flushContext(c *tpmCall) uint32 {
	h := c.in.u32()
	if rc := c.end(); rc != 0 {
		return rc
	}
	switch kind := h >> handleType; {
	case kind != htTransient && kind != htHMAC && kind != htPolicy:
		return inParam(rcValue, 1)
	case e.object(h) != nil:
		e.objects[h&handleNumber] = nil
	case e.session(h) != nil:
		e.sessions[h&handleNumber] = nil
	default:
		return inParam(rcHandle, 1)
	}
	return 0
}

// Kinds of saved contexts (TPMS_CONTEXT, TPM 2.0 part 2, 14.5).
const savedSequence = firstObject + 1

// contextSave gives a context: of a session, which is saved then; of an object, which stays.
func (e *engine20) contextSave(c *tpmCall) uint32 {
	if rc := c.end(); rc != 0 {
		return rc
	}
	e.sequence++
	h := c.handles[0]
	if s := e.session(h); s != nil {
		s.loaded, s.saved = false, e.sequence
		c.out = e.context(h, nil)
		return 0
	}
	o := e.object(h)
	m, ok := o.sum.(encoding.BinaryMarshaler)
	if !ok {
		return rcMemory
	}
	state, err := m.MarshalBinary()
	if err != nil {
		return rcMemory
	}
	c.out = e.context(savedSequence, append(put16(nil, o.alg), state...))
	return 0
}

// context is a TPMS_CONTEXT: readable by anybody, but nobody can make another.
func (e *engine20) context(saved uint32, state []byte) []byte {
	b := binary.BigEndian.AppendUint64(nil, e.sequence)
	b = put32(put32(b, saved), rhNull)
	return putSized(b, append(putSized(nil, e.sign(b, state)), state...))
}

func (e *engine20) sign(head, state []byte) []byte {
	m := hmac.New(sha256.New, binary.BigEndian.AppendUint64(nil, e.resets))
	m.Write(head)
	m.Write(state)
	return m.Sum(nil)
}

func (e *engine20) contextLoad(c *tpmCall) uint32 {
	head := bytes.Clone(c.in.bytes(16)) // sequence, savedHandle, hierarchy
	blob := c.in.moreSize()
	if rc := c.end(); rc != 0 {
		return rc
	}
	r := tpmReader{b: blob}
	sign := r.sized()
	switch {
	case r.missing != 0 || len(sign) == 0:
		return inParam(rcSize, 1)
	case !hmac.Equal(sign, e.sign(head, r.b)):
		return inParam(rcIntegrity, 1)
	}
	sequence, saved := binary.BigEndian.Uint64(head), number(head[8:12])
	if saved != savedSequence {
		return e.loadSession(c, saved, sequence)
	}
	alg := r.u16()
	o := &tpmObject{alg, hashOf(alg).New()}
	m, ok := o.sum.(encoding.BinaryUnmarshaler)
	if !ok || m.UnmarshalBinary(r.b) != nil {
		return inParam(rcIntegrity, 1)
	}
	if c.handle, ok = e.put(o); !ok {
		return rcObjectMemory
	}
	return 0
}

// loadSession loads the last context that was saved of a session, once.
func (e *engine20) loadSession(c *tpmCall, h uint32, sequence uint64) uint32 {
	s := e.session(h)
	switch {
	case s == nil || s.loaded || s.saved != sequence:
		return inParam(rcHandle, 1)
	case e.loadedSessions() == maxLoaded:
		return rcSessionMemory
	}
	s.loaded = true
	c.handle = h
	return 0
}
