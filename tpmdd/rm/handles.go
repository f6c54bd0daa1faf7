package rm

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/tpmdd"
)

// Kinds of handles: their first byte (part 2, 7.2).
const (
	kindMask      = 0xff000000
	kindHMAC      = 0x02000000 // a session, or any loaded one
	kindPolicy    = 0x03000000 // a policy session, or any saved one
	kindTransient = 0x80000000
)

// lastVirtual is the virtual handle of slot 0; they go down from there, away from the TPM's own.
const lastVirtual = kindTransient | 0x00ffffff

// be reads and be32 writes handles.
var be = binary.BigEndian

// virtual is the handle under which the program knows a slot.
func virtual(slot int) uint32 { return lastVirtual - uint32(slot) }

// mapCommand replaces the transient ones among the n handles of a command by those that real gives for them.
// A handle that the command is too short for is the TPM's to complain about.
func mapCommand(cmd []byte, n int, real func(uint32) (uint32, bool)) error {
	for off := tpmdd.HeaderSize; n > 0 && off+4 <= len(cmd); n, off = n-1, off+4 {
		h := be.Uint32(cmd[off:])
		if h&kindMask != kindTransient {
			continue
		}
		r, ok := real(h)
		if !ok {
			return fmt.Errorf("tpmrm: no object 0x%08x here: %w", h, unix.EINVAL)
		}
		be.PutUint32(cmd[off:], r)
	}
	return nil
}

// capabilityHead is moreData, capability and count, in an answer without sessions.
const capabilityHead = 1 + 4 + 4

// parseCapability takes the answer to GetCapability apart. list is its elements, of four bytes each, where
// the capability has such: it fails for one that has not.
func parseCapability(rsp []byte) (more bool, capability uint32, list []byte, err error) {
	if len(rsp) < tpmdd.HeaderSize+capabilityHead {
		return false, 0, nil, fmt.Errorf("an answer to GetCapability of %d bytes", len(rsp))
	}
	p := rsp[tpmdd.HeaderSize:]
	more, capability = p[0] != 0, be.Uint32(p[1:])
	count, list := uint64(be.Uint32(p[5:])), p[capabilityHead:]
	if uint64(len(list)) != 4*count {
		return more, capability, nil, fmt.Errorf("%d elements in %d bytes", count, len(list))
	}
	return more, capability, list, nil
}

// filterHandles rewrites an answer to GetCapability that lists handles: transient ones become what virt gives, those that it
// does not know are left out. Any other capability stays as it is.
func filterHandles(rsp []byte, virt func(uint32) (uint32, bool)) ([]byte, error) {
	if h, _ := tpmdd.ParseHeader(rsp); h.Tag == tpmdd.TagSessions {
		return rsp, nil
	}
	_, capability, list, err := parseCapability(rsp)
	if err != nil && (capability == tpmdd.CapHandles || len(rsp) < tpmdd.HeaderSize+capabilityHead) {
		return nil, fmt.Errorf("tpmrm: reading a list of handles: %w: %w: %w", err, unix.EFAULT, bus.ErrProtocol)
	}
	if capability != tpmdd.CapHandles {
		return rsp, nil
	}
	out := rsp[:tpmdd.HeaderSize+capabilityHead] // over itself: it never gets longer
	for ; len(list) > 0; list = list[4:] {
		h := be.Uint32(list)
		if h&kindMask == kindTransient {
			v, ok := virt(h)
			if !ok {
				continue
			}
			h = v
		}
		out = be.AppendUint32(out, h)
	}
	be.PutUint32(out[2:], uint32(len(out)))
	be.PutUint32(out[tpmdd.HeaderSize+5:], uint32(len(out)-tpmdd.HeaderSize-capabilityHead)/4)
	return out, nil
}

// answerHandle is the handle that an answer begins with.
func answerHandle(rsp []byte) (uint32, error) {
	if len(rsp) < tpmdd.HeaderSize+4 {
		return 0, errors.New("no handle in it")
	}
	return be.Uint32(rsp[tpmdd.HeaderSize:]), nil
}
