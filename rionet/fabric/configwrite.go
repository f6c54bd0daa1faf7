package fabric

import "github.com/ring3dev/ring3/rionet/rapidio"

// put writes the bits of v that are in mask and that software may write.
func put(reg *uint32, v, mask, writable uint32) {
	mask &= writable
	*reg = *reg&^mask | v&mask
}

// clear0 is put for a register whose bits a write of 0 clears, and nothing sets.
func clear0(reg *uint32, v, mask uint32) { *reg &= v | ^mask }

// write changes the bits of a register that are in mask. What is read only stays.
func (d *device) write(off rapidio.Off, v, mask uint32, in *port) {
	if off < efSerial {
		d.writeStandard(off, v, mask)
		return
	}
	if p, rel, ok := d.blockPort(off, efSerial, serialPortBegin, rapidio.PHYPortStride); ok && d.serial {
		if p != nil {
			p.write(rel, v, mask)
			return
		}
		d.writeSerial(rel, v, mask)
		return
	}
	if p, rel, ok := d.blockPort(off, efErrMgmt, rapidio.EMPortDetect, rapidio.EMPortStride); ok {
		d.writeErrMgmt(p, rel, v, mask)
		return
	}
	if t, r, ok := tsiCell(off); ok && d.sw != nil && d.sw.tsi500 {
		old := d.sw.nibbles[t][r]
		put(&d.sw.nibbles[t][r], v, mask, 0xffffffff)
		if d.sw.nibbles[t][r] != old {
			d.f.gen.Add(1)
		}
	}
}

func (d *device) writeStandard(off rapidio.Off, v, mask uint32) {
	r := &d.regs
	switch off {
	case rapidio.RegHostLock:
		d.writeLock(v, mask)
		return
	case rapidio.RegComponentTag:
		put(&r.tag, v, mask, 0xffffffff)
		return
	}
	if d.sw != nil {
		d.writeSwitch(off, v, mask)
		return
	}
	switch off {
	case rapidio.RegLCSBase0:
		put(&r.lcs0, v, mask, 0x7fffffff)
	case rapidio.RegLCSBase1:
		put(&r.lcs1, v, mask, 0xffffffff)
	case rapidio.RegBaseDeviceID:
		id := d.baseID.Load()
		put(&id, v, mask, d.baseIDMask())
		if d.baseID.Swap(id) != id {
			d.f.gen.Add(1)
		}
	}
}

// writeLock is the rule of the Host Base Device ID Lock (part 3, 3.5.2): a free one takes what is written, and only the same value
// frees it again. Half of an ID locks nothing.
func (d *device) writeLock(v, mask uint32) {
	const id = rapidio.LockFree
	if mask&id != id {
		return
	}
	switch d.regs.lock {
	case rapidio.LockFree:
		d.regs.lock = v & id
	case v & id:
		d.regs.lock = rapidio.LockFree
	}
}

func (d *device) writeSwitch(off rapidio.Off, v, mask uint32) {
	t := d.sw
	if t.tsi500 {
		return
	}
	switch off {
	case rapidio.RegRouteDestID:
		put(&t.sel, v, mask, uint32(d.f.ids.Any()))
	case rapidio.RegRoutePort:
		port := uint32(t.routes[t.sel])
		put(&port, v, mask, 0xff)
		if uint8(port) != t.routes[t.sel] {
			t.routes[t.sel] = uint8(port)
			d.f.gen.Add(1)
		}
	case rapidio.RegRouteDefault:
		old := t.fallback
		put(&t.fallback, v, mask, 0xff)
		if t.fallback != old {
			d.f.gen.Add(1)
		}
	}
}

func (d *device) writeSerial(rel rapidio.Off, v, mask uint32) {
	switch rel {
	case rapidio.PHYLinkTimeout:
		put(&d.regs.linkTimeout, v, mask, timeoutMask)
	case rapidio.PHYRespTimeout:
		if d.sw == nil {
			put(&d.regs.respTimeout, v, mask, timeoutMask)
		}
	case rapidio.PHYGenControl:
		if d.sw == nil {
			put(&d.regs.genC, v, mask, genRWEndpoint)
		} else {
			put(&d.regs.genC, v, mask, genRWSwitch)
		}
	}
}

// write changes a register of a port in the LP-serial block.
func (p *port) write(rel rapidio.Off, v, mask uint32) {
	f := p.dev.f
	switch rel {
	case rapidio.PHYPortLinkReq:
		if mask&linkReqMask != 0 {
			put(&p.linkReq, v, mask, linkReqMask)
			p.linkRequest()
		}
	case rapidio.PHYPortErrStat:
		p.errs &^= v & mask & statW1C
	case rapidio.PHYPortControl:
		old := p.control
		put(&p.control, v, mask, ctlRW)
		if p.control != old {
			f.gen.Add(1)
			f.linkChanged(p)
		}
	}
}

// linkRequest does a link maintenance request: it asks the port at the other end how it is, or resets the device there.
func (p *port) linkRequest() {
	if p.linkReq != linkReqReset {
		p.resets = 0
	}
	p.linkResp = 0
	if !p.up() {
		return // no answer
	}
	switch p.linkReq {
	case linkReqStatus:
		p.linkResp = linkRespValid | linkRespOK
	case linkReqReset:
		if p.resets++; p.resets == resetRequests {
			p.resets = 0
			p.peer().dev.resetByLink()
		}
	}
}

// resetByLink resets a device in service.
func (d *device) resetByLink() {
	d.reset()
	if d.sw == nil {
		d.f.noteConfigWritten(d)
	}
	for _, p := range d.ports {
		d.f.linkChanged(p) // it may have been disabled
	}
}

func (d *device) writeErrMgmt(p *port, rel rapidio.Off, v, mask uint32) {
	if p != nil {
		switch rel {
		case rapidio.EMPortDetect:
			clear0(&p.detect, v, mask)
		case rapidio.EMPortRateEn:
			put(&p.rateEn, v, mask, detectAll)
		}
		return
	}
	switch rel {
	case rapidio.EMLogDetect:
		clear0(&d.regs.logDetect, v, mask)
	case rapidio.EMLogEnable:
		put(&d.regs.logEnable, v, mask, logAll)
	case rapidio.EMPortWriteTgt:
		put(&d.regs.pwTarget, v, mask, d.pwTargetMask())
		d.regs.pwTold = true
	case emTTL:
		put(&d.regs.ttl, v, mask, 0xffff0000)
	}
}

func (d *device) pwTargetMask() uint32 {
	if d.f.ids == rapidio.Large {
		return 0xffff0000 | pwTargetLarge
	}
	return 0x00ff0000
}
