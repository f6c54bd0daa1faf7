package sim

// tpmAuth is a session of a command.
type tpmAuth struct {
	handle uint32
	attrs  uint8
}

const (
	sessionContinue = 1 << 0 // TPMA_SESSION, continueSession
	maxAuths        = 3
	minAuth         = 9 // bytes of the shortest: a handle, no nonce, attributes, no authorization
)

// readSessions reads the authorization area. Authorizations are passwords, and all passwords are empty.
func (e *engine20) readSessions(c *tpmCall) uint32 {
	n := c.in.u32()
	switch {
	case c.in.missing != 0:
		return rcInsufficient
	case n > uint32(len(c.in.b)) || n < minAuth:
		return rcSize
	case c.cmd.bare:
		return rcAuthContext
	}
	r := tpmReader{b: c.in.b[:n]}
	c.in = tpmReader{b: c.in.b[n:]}
	for i := 1; len(r.b) > 0; i++ {
		if i > maxAuths {
			return rcAuthSize
		}
		a := tpmAuth{handle: r.u32()}
		r.sized() // nonceCaller
		a.attrs = r.u8()
		hmac := r.sized()
		if r.missing != 0 {
			return inHandle(rcSession|rcInsufficient, i)
		}
		if rc := e.checkAuth(c, a, hmac, i); rc != 0 {
			return rc
		}
		c.sessions = append(c.sessions, a)
	}
	return 0
}

func (e *engine20) checkAuth(c *tpmCall, a tpmAuth, hmac []byte, i int) uint32 {
	authorizes := i == 1 && c.cmd.auth
	if a.handle == rhPW {
		switch {
		case !authorizes:
			return inHandle(rcSession|rcHandle, i)
		case len(hmac) > 0:
			return inHandle(rcSession|rcBadAuth, i)
		}
		return 0
	}
	s := e.session(a.handle)
	switch {
	case a.handle>>handleType != htHMAC && a.handle>>handleType != htPolicy:
		return inHandle(rcSession|rcValue, i)
	case s == nil || !s.loaded:
		return rcReferenceS0 + uint32(i-1)
	case authorizes:
		return inHandle(rcSession|rcAuthFail, i) // no object here has a policy, and no session a key
	}
	return 0
}
