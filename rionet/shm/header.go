package shm

import (
	"fmt"

	"github.com/ring3dev/ring3/rionet/rapidio"
)

// Kind is what a record is about.
type Kind uint8

// Kinds of what a node sends. All but KindPortWrite are answered.
const (
	KindMessage   Kind = 1 + iota // Peer, Mbox, Tag, Info (a rapidio.Order), data; answered by a result
	KindDoorbell                  // Peer, Info, Tag; a result
	KindPortWrite                 // Peer, data
	KindLocal                     // a config access to the own registers: Width, Write, Off, Value, Tag; a response
	KindMaint                     // the same to Peer, Hop switches away; a response
	KindMailbox                   // inbound mailbox Mbox has Value entries, 0: it is closed; Tag; a response
	KindDoorbells                 // doorbells are let in (Value 1) or not; Tag; a response
	// KindReset is not sent: NextTx makes it of a node that begins anew.
	KindReset
)

// Kinds of what a node receives.
const (
	KindResult   Kind = 32 + iota // Status of Len messages or doorbells, the first Tag
	KindResponse                  // Status and Value of Tag
)

func (k Kind) String() string {
	switch k {
	case KindMessage:
		return "message"
	case KindDoorbell:
		return "doorbell"
	case KindPortWrite:
		return "port-write"
	case KindLocal:
		return "local access"
	case KindMaint:
		return "maintenance"
	case KindMailbox:
		return "mailbox"
	case KindDoorbells:
		return "doorbells"
	case KindReset:
		return "reset"
	case KindResult:
		return "result"
	case KindResponse:
		return "response"
	}
	return fmt.Sprintf("Kind(%d)", uint8(k))
}

// Header is a record, but for its data.
type Header struct {
	Kind   Kind
	Mbox   uint8
	Hop    uint8
	Width  rapidio.Width
	Status rapidio.Status
	Write  bool
	Peer   rapidio.DestID
	Len    uint16 // of the data, in bytes; of a KindResult how many there are
	Info   uint16
	Tag    uint32
	Off    uint32
	Value  uint32
	slot   uint16
}

// descSize is what a record takes in the ring, beside its data.
const descSize = 32

// noSlot stands in a record without data.
const noSlot = 0xffff

// words are a header as it stands in the ring: four little-endian words of 64 bits.
func (h *Header) words() (a, b, c, d uint64) {
	a = uint64(h.Kind) | uint64(h.Mbox)<<8 | uint64(h.Hop)<<16 | uint64(h.Width)<<24 | uint64(h.Status)<<32 | uint64(h.Peer)<<48
	if h.Write {
		a |= 1 << 40
	}
	b = uint64(h.Len) | uint64(h.Info)<<16 | uint64(h.Tag)<<32
	c = uint64(h.Off) | uint64(h.Value)<<32
	return a, b, c, uint64(h.slot)
}

// set is the reverse.
func (h *Header) set(a, b, c, d uint64) {
	h.Kind, h.Mbox, h.Hop, h.Width = Kind(a), uint8(a>>8), uint8(a>>16), rapidio.Width(a>>24)
	h.Status, h.Write, h.Peer = rapidio.Status(a>>32), a>>40&1 != 0, rapidio.DestID(a>>48)
	h.Len, h.Info, h.Tag = uint16(b), uint16(b>>16), uint32(b>>32)
	h.Off, h.Value = uint32(c), uint32(c>>32)
	h.slot = uint16(d)
}
