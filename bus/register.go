package bus

import (
	"fmt"
	"strings"
)

// Access says how a register may be used, in the datasheets' words.
type Access uint8

// Kinds of access. A dump reads RW, RO and W1C registers only: reading the others is a
// command, or gives nothing.
const (
	RW  Access = iota // read and write
	RO                // read only
	WO                // write only
	RC                // cleared when read
	W1C               // a bit is cleared by writing 1 to it
)

func (a Access) String() string {
	if int(a) < len(accessNames) {
		return accessNames[a]
	}
	return fmt.Sprintf("Access(%d)", uint8(a))
}

var accessNames = [...]string{"RW", "RO", "WO", "RC", "W1C"}

// Dumpable says whether reading the register has no effect.
func (a Access) Dumpable() bool { return a == RW || a == RO || a == W1C }

// Register describes a register, or an array of equal ones, of a device: the table that a
// driver gives away so that traces, dumps and fault reports can use the datasheet's
// names.
type Register struct {
	Region int    // index of the region
	Off    Off    // of the first
	Name   string // the datasheet's mnemonic: "CTRL"
	Access Access
	Width  int // bytes; 0 means 4
	Count  int // of an array; 0 and 1: a single register
	Stride Off // of an array, from one to the next; 0 means Width
	// Bits names what is set in a value: "FD|LU"; nil: hexadecimal.
	Bits func(v uint64) string
	// Ring is set in a register whose write gives descriptors to the device: a doorbell.
	Ring *RingInfo
}

// RingInfo says where the descriptors are that a doorbell publishes. The doorbell's value is the
// index of the first descriptor that is not the device's.
type RingInfo struct {
	Low, High Off // registers (of the same region) with the ring's IOVA; High 0: none
	Len       Off // register with the ring's size in bytes
	Size      int // of a descriptor, in bytes
	// Desc renders a descriptor as it is published; nil: hexadecimal.
	Desc func(d []byte) string
}

// size is the width in bytes.
func (r *Register) size() Off {
	if r.Width == 0 {
		return 4
	}
	return Off(r.Width)
}

// Find says whether off of a region is one of these registers, and its index in an array.
func (r *Register) Find(region int, off Off) (i int, ok bool) {
	if region != r.Region || off < r.Off {
		return 0, false
	}
	stride := max(r.Stride, r.size())
	n := (off - r.Off) / stride
	if n >= Off(max(r.Count, 1)) || off-r.Off-n*stride >= r.size() {
		return 0, false
	}
	return int(n), true
}

// At is the offset of register i of an array.
func (r *Register) At(i int) Off { return r.Off + Off(i)*max(r.Stride, r.size()) }

// Label is the name of register i: "CTRL", or of an array "RAL[3]".
func (r *Register) Label(i int) string {
	if r.Count > 1 {
		return fmt.Sprintf("%s[%d]", r.Name, i)
	}
	return r.Name
}

// Format renders a value: named bits where there are names, else hexadecimal.
func (r *Register) Format(v uint64) string {
	if r.Bits != nil {
		return r.Bits(v)
	}
	return fmt.Sprintf("%#x", v)
}

// Bit is a bit, or a field, of a register's value, and its mnemonic.
type Bit struct {
	Mask uint64
	Name string
}

// BitNames makes Register.Bits of a table: the names of what is set, joined by |, and what is left in
// hexadecimal.
func BitNames(table ...Bit) func(v uint64) string {
	return func(v uint64) string {
		var s []string
		for _, b := range table {
			if v&b.Mask != 0 {
				s = append(s, b.Name)
				v &^= b.Mask
			}
		}
		if v != 0 || len(s) == 0 {
			s = append(s, fmt.Sprintf("%#x", v))
		}
		return strings.Join(s, "|")
	}
}
