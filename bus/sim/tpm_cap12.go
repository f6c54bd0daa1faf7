package sim

// Areas and properties of TPM_GetCapability (TPM 1.2 part 2, 21.1 and 21.2).
const (
	cap12Ord        = 0x01
	cap12Flag       = 0x04
	cap12Property   = 0x05
	cap12Version    = 0x06
	cap12VersionVal = 0x1a

	flag12Permanent = 0x108
	flag12Volatile  = 0x109

	prop12PCR          = 0x101
	prop12Manufacturer = 0x103
	prop12TISTimeout   = 0x115
	prop12Owner        = 0x111
	prop12Duration     = 0x120
	prop12InputBuffer  = 0x124
)

// capability12 answers one area, for a sub-capability as it was sent. False: there is no such.
func (e *engine12) capability12(area uint32, sub []byte) ([]byte, bool) {
	switch area {
	case cap12Version:
		return []byte{1, 1, 0, 0}, true // whatever the TPM: TPM 1.2 part 2, 5.1
	case cap12VersionVal:
		b := append(put16(nil, 0x0030), 1, 2, 0, tpmFirmware) // TPM_TAG_CAP_VERSION_INFO
		b = append(put16(b, 2), 3)                            // level 2, errata revision 3
		return put16(put32(b, tpmManufacturer), 0), true      // nothing vendor-specific
	}
	if len(sub) != 4 {
		return nil, false
	}
	switch v := number(sub); area {
	case cap12Ord:
		return []byte{uint8(bit(command12(v) != nil, 1))}, true
	case cap12Flag:
		return e.flags12(v)
	case cap12Property:
		return property12(v)
	}
	return nil, false
}

func (e *engine12) flags12(which uint32) ([]byte, bool) {
	switch which {
	case flag12Permanent:
		b := make([]byte, 22) // TPM_PERMANENT_FLAGS: a tag and twenty booleans, TPM 1.2 part 2, 7.1
		b[1] = 0x1f
		const ownership, readPubek, lifetimeLock, hwEnable = 2 + 1, 2 + 3, 2 + 6, 2 + 7
		b[ownership], b[readPubek], b[lifetimeLock], b[hwEnable] = 1, 1, 1, 1
		return b, true
	case flag12Volatile:
		b := make([]byte, 7) // TPM_STCLEAR_FLAGS, 7.2
		b[1], b[2] = 0x20, uint8(bit(e.deact, 1))
		return b, true
	}
	return nil, false
}

func property12(which uint32) ([]byte, bool) {
	const second = 1000 * 1000 // in microseconds
	list := func(v ...uint32) ([]byte, bool) {
		var b []byte
		for _, x := range v {
			b = put32(b, x)
		}
		return b, true
	}
	switch which {
	case prop12PCR:
		return list(tpmPCRs)
	case prop12Manufacturer:
		return list(tpmManufacturer)
	case prop12TISTimeout:
		return list(second, second, second, second) // as swtpm says
	case prop12Duration:
		return list(second/2, second, 2*second) // about what chips say; swtpm says 100 times as much
	case prop12InputBuffer:
		return list(tpmMax)
	case prop12Owner:
		return []byte{0}, true
	}
	return nil, false
}

func (e *engine12) getCapability(r *tpmReader) ([]byte, uint32) {
	area := r.u32()
	n := r.u32()
	if n > uint32(len(r.b)) {
		return nil, rc12BadParamSize
	}
	sub := r.bytes(int(n))
	if rc := r.end12(); rc != 0 {
		return nil, rc
	}
	out, ok := e.capability12(area, sub)
	if !ok {
		return nil, rc12BadMode
	}
	return append(put32(nil, uint32(len(out))), out...), 0
}
