package sim

import "slices"

// Capabilities (TPM_CAP, TPM 2.0 part 2, 6.12).
const (
	capAlgs          = 0
	capHandles       = 1
	capCommands      = 2
	capPPCommands    = 3
	capAuditCommands = 4
	capPCRs          = 5
	capTPMProperties = 6
)

// Properties (TPM_PT, TPM 2.0 part 2, 6.13).
const (
	ptFamily           = 0x100
	ptLevel            = 0x101
	ptRevision         = 0x102
	ptDayOfYear        = 0x103
	ptYear             = 0x104
	ptManufacturer     = 0x105
	ptVendorString     = 0x106 // and the next three
	ptVendorType       = 0x10a
	ptFirmware1        = 0x10b
	ptFirmware2        = 0x10c
	ptInputBuffer      = 0x10d
	ptTransientMin     = 0x10e
	ptPersistentMin    = 0x10f
	ptLoadedMin        = 0x110
	ptSessionsMax      = 0x111
	ptPCRCount         = 0x112
	ptPCRSelectMin     = 0x113
	ptContextGapMax    = 0x114
	ptContextHash      = 0x11a
	ptMaxCommand       = 0x11e
	ptMaxResponse      = 0x11f
	ptMaxDigest        = 0x120
	ptTotalCommands    = 0x129
	ptLibraryCommands  = 0x12a
	ptVendorCommands   = 0x12b
	ptPermanent        = 0x200
	ptStartupClear     = 0x201
	ptHRLoaded         = 0x203
	ptHRLoadedAvail    = 0x204
	ptHRActive         = 0x205
	ptHRActiveAvail    = 0x206
	ptHRTransientAvail = 0x207
)

const (
	maxInputBuffer = 1024
	// maxListed is the most of one list that an answer holds (TPM 2.0 part 2, 6.12: MAX_CAP_BUFFER).
	maxListed = 127
)

// properties are all, in order.
func (e *engine20) properties() [][2]uint32 {
	objects, loaded, active := 0, e.loadedSessions(), 0
	for _, o := range e.objects {
		if o != nil {
			objects++
		}
	}
	for _, s := range e.sessions {
		if s != nil {
			active++
		}
	}
	commands := uint32(len(commands20()))
	text := func(s string) uint32 { return number([]byte(s)) }
	return [][2]uint32{
		{ptFamily, text("2.0\x00")}, {ptLevel, 0}, {ptRevision, 159}, {ptDayOfYear, 1}, {ptYear, 2026},
		{ptManufacturer, tpmManufacturer},
		{ptVendorString, text("ring")}, {ptVendorString + 1, text("3 si")}, {ptVendorString + 2, text("m\x00\x00\x00")}, {ptVendorString + 3, 0},
		{ptVendorType, 1}, {ptFirmware1, tpmFirmware << 16}, {ptFirmware2, 0},
		{ptInputBuffer, maxInputBuffer},
		{ptTransientMin, maxObjects}, {ptPersistentMin, 0}, {ptLoadedMin, maxLoaded}, {ptSessionsMax, maxSessions},
		{ptPCRCount, tpmPCRs}, {ptPCRSelectMin, tpmPCRs / 8}, {ptContextGapMax, 0xffff},
		{ptContextHash, algSHA256}, {ptMaxCommand, tpmMax}, {ptMaxResponse, tpmMax}, {ptMaxDigest, maxDigest},
		{ptTotalCommands, commands}, {ptLibraryCommands, commands}, {ptVendorCommands, 0},
		{ptPermanent, 0}, {ptStartupClear, 0},
		{ptHRLoaded, uint32(loaded)}, {ptHRLoadedAvail, uint32(maxLoaded - loaded)},
		{ptHRActive, uint32(active)}, {ptHRActiveAvail, uint32(maxSessions - active)},
		{ptHRTransientAvail, uint32(maxObjects - objects)},
	}
}

// handlesFrom are the handles of first's kind, from first on.
func (e *engine20) handlesFrom(first uint32) ([]uint32, bool) {
	var all []uint32
	switch kind := first >> handleType; kind {
	case htPCR:
		for i := range uint32(tpmPCRs) {
			all = append(all, i)
		}
	case htPermanent:
		all = []uint32{rhNull, rhPW}
	case htTransient:
		for i, o := range e.objects {
			if o != nil {
				all = append(all, firstObject+uint32(i))
			}
		}
	case htHMAC, htPolicy:
		return e.sessionsFrom(first), true
	case 0x01, 0x81: // NV indices, persistent objects
	default:
		return nil, false
	}
	return slices.DeleteFunc(all, func(h uint32) bool { return h < first }), true
}

// sessionsFrom are loaded sessions, or saved ones, by their numbers. Of those that are saved the reference
// implementation does not tell which kind they are.
func (e *engine20) sessionsFrom(first uint32) (all []uint32) {
	loaded := first>>handleType == htHMAC
	for i, s := range e.sessions {
		if s != nil && s.loaded == loaded && uint32(i) >= first&handleNumber {
			if all = append(all, s.handle); !loaded {
				all[len(all)-1] = htHMAC<<handleType | uint32(i)
			}
		}
	}
	return all
}

// entries is one capability's list, each entry encoded, from a property on.
func (e *engine20) entries(capability, first uint32) (list [][]byte, rc uint32) {
	switch capability {
	case capAlgs:
		for _, alg := range algs {
			const isHash = 1 << 2
			if uint32(alg) >= first {
				list = append(list, put32(put16(nil, alg), isHash))
			}
		}
	case capHandles:
		all, ok := e.handlesFrom(first)
		if !ok {
			return nil, inParam(rcHandle, 2)
		}
		for _, h := range all {
			list = append(list, put32(nil, h))
		}
	case capCommands:
		for _, x := range commands20() {
			if x.code >= first {
				list = append(list, put32(nil, x.cca()))
			}
		}
	case capPPCommands, capAuditCommands:
	case capPCRs:
		if first != 0 {
			return nil, inParam(rcValue, 2)
		}
		for _, alg := range algs {
			list = append(list, append(put16(nil, alg), tpmPCRs/8, 0xff, 0xff, 0xff))
		}
	case capTPMProperties:
		for _, p := range e.properties() {
			if p[0] >= first {
				list = append(list, put32(put32(nil, p[0]), p[1]))
			}
		}
	default:
		return nil, inParam(rcValue, 1)
	}
	return list, 0
}

func (e *engine20) getCapability(c *tpmCall) uint32 {
	capability, first, count := c.in.u32(), c.in.u32(), c.in.u32()
	if rc := c.end(); rc != 0 {
		return rc
	}
	list, rc := e.entries(capability, first)
	if rc != 0 {
		return rc
	}
	n := min(len(list), int(min(count, maxListed)))
	if capability == capPCRs {
		n = len(list) // whole, whatever the count: TPM 2.0 part 3, 30.2
	}
	c.out = append(c.out, uint8(bit(n < len(list), 1)))
	c.out = put32(put32(c.out, capability), uint32(n))
	for _, x := range list[:n] {
		c.out = append(c.out, x...)
	}
	return 0
}
