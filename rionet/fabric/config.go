package fabric

import "github.com/ring3dev/ring3/rionet/rapidio"

// valid tells whether an access is one that a maintenance transaction can make.
func (m *Maint) valid() bool {
	switch m.Width {
	case 1, 2, 4:
		return m.Off < rapidio.ConfigSize && m.Off%rapidio.Off(m.Width) == 0
	}
	return false
}

// access does a config access of a device, which came in through a port; remote tells that it was not the device's own node. The
// caller holds f.mu, and checked m.
func (d *device) access(m *Maint, in *port, remote bool) uint32 {
	// Registers are big-endian: the first byte of one is its highest.
	shift := 8 * (4 - uint32(m.Width) - uint32(m.Off&3))
	mask := uint32(1<<(8*uint64(m.Width)) - 1)
	if !m.Write {
		return d.read(m.Off&^3, in) >> shift & mask
	}
	d.write(m.Off&^3, m.Value<<shift, mask<<shift, in)
	if remote && d.sw == nil {
		d.f.noteConfigWritten(d)
	}
	return 0
}

// read is a register's value. What there is not reads as 0.
func (d *device) read(off rapidio.Off, in *port) uint32 {
	if off < efSerial {
		return d.readStandard(off, in)
	}
	if p, rel, ok := d.blockPort(off, efSerial, serialPortBegin, rapidio.PHYPortStride); ok && d.serial {
		if p != nil {
			return p.read(rel)
		}
		return d.readSerial(rel)
	}
	if p, rel, ok := d.blockPort(off, efErrMgmt, rapidio.EMPortDetect, rapidio.EMPortStride); ok {
		return d.readErrMgmt(p, rel)
	}
	if t, r, ok := tsiCell(off); ok && d.sw != nil && d.sw.tsi500 {
		return d.sw.nibbles[t][r]
	}
	return 0
}

// blockPort splits an offset in an extended features block, whose registers for each port begin at first: rel is from the block's
// beginning as for port 0, and p the port, nil for what belongs to all.
func (d *device) blockPort(off, block, first, stride rapidio.Off) (p *port, rel rapidio.Off, ok bool) {
	if off < block {
		return nil, 0, false
	}
	rel = off - block
	if rel < first {
		return nil, rel, true
	}
	n := (rel - first) / stride
	if int(n) >= len(d.ports) {
		return nil, 0, false
	}
	return d.ports[n], rel - n*stride, true
}

func (d *device) readStandard(off rapidio.Off, in *port) uint32 {
	switch off {
	case rapidio.RegDeviceID, rapidio.RegDeviceInfo, rapidio.RegAsmID, rapidio.RegAsmInfo:
		return d.identity(off)
	case rapidio.RegPEF:
		return uint32(d.features())
	case rapidio.RegSrcOps:
		return d.sourceOps()
	case rapidio.RegDstOps:
		return d.destOps()
	case rapidio.RegHostLock:
		return d.regs.lock
	case rapidio.RegComponentTag:
		return d.regs.tag
	}
	if d.sw != nil {
		return d.readSwitch(off, in)
	}
	switch off {
	case rapidio.RegMbox:
		return d.mboxState()
	case rapidio.RegDoorbell:
		if n := d.node.Load(); n != nil && n.doorbells.Load() {
			return rapidio.MboxAvailable << rapidio.DoorbellShift
		}
	case rapidio.RegPELL:
		return d.regs.pell
	case rapidio.RegLCSBase0:
		return d.regs.lcs0
	case rapidio.RegLCSBase1:
		return d.regs.lcs1
	case rapidio.RegBaseDeviceID:
		return d.baseID.Load()
	}
	return 0
}

func (d *device) identity(off rapidio.Off) uint32 {
	switch off {
	case rapidio.RegDeviceID:
		switch {
		case d.sw == nil:
			return EndpointDevice<<16 | Vendor
		case d.sw.tsi500:
			return Tsi500Device<<16 | Tsi500Vendor
		}
		return SwitchDevice<<16 | Vendor
	case rapidio.RegDeviceInfo:
		return deviceRevision
	case rapidio.RegAsmID:
		return asmDevice<<16 | Vendor
	}
	if d.serial {
		return asmRevision<<16 | uint32(efSerial)
	}
	return asmRevision<<16 | uint32(efErrMgmt)
}

func (d *device) readSwitch(off rapidio.Off, in *port) uint32 {
	switch off {
	case rapidio.RegSwitchPort:
		return uint32(len(d.ports))<<8 | uint32(in.n)
	case rapidio.RegRTLimit:
		return uint32(d.f.ids.Any())
	}
	t := d.sw
	if t.tsi500 {
		return 0
	}
	switch off {
	case rapidio.RegRouteDestID:
		return t.sel
	case rapidio.RegRoutePort:
		return uint32(t.routes[t.sel])
	case rapidio.RegRouteDefault:
		return t.fallback
	}
	return 0
}

func (d *device) mboxState() uint32 {
	n := d.node.Load()
	if n == nil {
		return 0
	}
	var v uint32
	for i := range n.mbox {
		v = v<<8 | n.mbox[i].Load()
	}
	return v
}

func (d *device) readSerial(rel rapidio.Off) uint32 {
	switch rel {
	case 0:
		if d.sw != nil {
			return uint32(efErrMgmt)<<16 | rapidio.EFSerialSwitchRec
		}
		return uint32(efErrMgmt)<<16 | rapidio.EFSerialEndpoint
	case rapidio.PHYLinkTimeout:
		return d.regs.linkTimeout
	case rapidio.PHYRespTimeout:
		if d.sw == nil {
			return d.regs.respTimeout
		}
	case rapidio.PHYGenControl:
		return d.regs.genC
	}
	return 0
}

// read is a register of a port in the LP-serial block.
func (p *port) read(rel rapidio.Off) uint32 {
	switch rel {
	case rapidio.PHYPortLinkReq:
		return p.linkReq
	case rapidio.PHYPortLinkResp:
		v := p.linkResp
		p.linkResp &^= linkRespValid
		return v
	case rapidio.PHYPortControl2:
		speed := laneSpeed(p.rate(), p.width())
		return uint32(speed)<<28 | 0b11<<(26-2*speed)
	case rapidio.PHYPortErrStat:
		if p.up() {
			return p.errs | rapidio.PortOK
		}
		return p.errs | rapidio.PortUninit
	case rapidio.PHYPortControl:
		return p.control | p.widths() | rapidio.PortSerial
	}
	return 0 // the model's links have no ackIDs: they are at 0 for ever
}

func (p *port) rate() int64 {
	if p.link == nil {
		return 0
	}
	return p.link.Rate
}

func (p *port) width() int {
	if p.link == nil {
		return 1
	}
	return p.link.Width
}

// widths are the bits of Port n Control that tell of a port's width.
func (p *port) widths() uint32 {
	w := p.width()
	var v uint32
	for _, s := range [...]struct {
		lanes     int
		can, uses uint32
	}{{2, ctlWidth2, 3}, {4, ctlWidth4, 2}, {8, ctlWidth8, 4}, {16, ctlWidth16, 5}} {
		if w >= s.lanes {
			v |= s.can
		}
		if w == s.lanes && p.up() {
			v |= s.uses << 27
		}
	}
	return v
}

func (d *device) readErrMgmt(p *port, rel rapidio.Off) uint32 {
	if p != nil {
		switch rel {
		case rapidio.EMPortDetect:
			return p.detect
		case rapidio.EMPortRateEn:
			return p.rateEn
		}
		return 0
	}
	switch rel {
	case 0:
		return rapidio.EFErrorMgmt // the last block
	case rapidio.EMLogDetect:
		return d.regs.logDetect
	case rapidio.EMLogEnable:
		return d.regs.logEnable
	case emCapDeviceID:
		return d.regs.capID
	case emCapControl:
		return d.regs.capControl
	case rapidio.EMPortWriteTgt:
		return d.regs.pwTarget
	case emTTL:
		return d.regs.ttl
	}
	return 0
}
