package trace

import (
	"fmt"
	"time"

	"github.com/ring3dev/ring3/bus"
)

// Kind says what a record is of.
type Kind uint8

// Kinds of records. The comments say what Value, Aux and Op hold.
const (
	Read     Kind = iota + 1 // of a register or of config space: the value read
	Write                    // of a register or of config space: the value written
	Doorbell                 // a write that gives descriptors to the device: the value written
	Publish                  // what that gave: first index; Aux: last index; Count: how many; only in entries
	IRQ                      // consumed by the driver: how often it fired; Aux: vector
	Unmask                   // of an INTx line; Aux: vector
	IRQs                     // enabled or disabled (Op): how many vectors
	DMA                      // allocated, mapped or freed (Op): IOVA; Aux: size
	Open                     // a region was opened
	Reset                    // the function was reset by the bus
	Died                     // the link died
	Close                    // the driver's side was closed
	Lost                     // how many records a reader lost here; only in entries
	lastKind = Lost
)

var kindNames = [...]string{
	Read: "read", Write: "write", Doorbell: "doorbell", Publish: "publish", IRQ: "irq", Unmask: "unmask",
	IRQs: "irqs", DMA: "dma", Open: "open", Reset: "reset", Died: "died", Close: "close", Lost: "lost",
}

func (k Kind) String() string {
	if k > 0 && int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("kind-%d", uint8(k))
}

// Op tells records of one kind apart.
type Op uint8

// Ops: of DMA the first three, of IRQs the next.
const (
	OpNone Op = iota
	OpAlloc
	OpMap
	OpFree
	OpEnable
	OpDisable
)

var opNames = [...]string{OpAlloc: "alloc", OpMap: "map", OpFree: "free", OpEnable: "enable", OpDisable: "disable"}

func (o Op) String() string {
	if int(o) < len(opNames) {
		return opNames[o]
	}
	return fmt.Sprintf("op-%d", uint8(o))
}

// Numbers of regions that are none.
const (
	NoRegion    = -2
	ConfigSpace = -1
)

// maxData is how much of descriptors or of an error's text a record holds.
const maxData = 64

// Record is one thing that a driver did to its device, or the device to it. It is of fixed
// size, and made without any formatting.
type Record struct {
	Seq    uint64  // counts a device's records from 0
	Time   int64   // nanoseconds since Epoch
	Off    bus.Off // of a register
	Value  uint64
	Aux    uint64
	Count  uint32 // descriptors: of a Doorbell, that it gave; Aux is then the first, and above it the ring's size
	Kind   Kind
	Op     Op
	Width  uint8 // bytes of a register access, or of a descriptor
	Mode   bus.IRQMode
	Region int8 // index of the region, ConfigSpace, NoRegion

	failed bool  // data is the error's text
	desc   uint8 // size of a descriptor
	n      uint8
	data   [maxData]byte
}

// Data is the first descriptors of a Publish; nil for most. It is valid as long as r.
func (r *Record) Data() []byte {
	if r.failed {
		return nil
	}
	return r.data[:r.n]
}

// Failed says why what was tried failed, cut to what a record holds; "" if it did not.
func (r *Record) Failed() string {
	if !r.failed {
		return ""
	}
	return string(r.data[:r.n])
}

// setErr notes that it failed. The bus's errors begin with the address, which the reader knows.
func (r *Record) setErr(addr string, err error) {
	if err == nil {
		return
	}
	s := err.Error()
	if len(s) > len(addr)+2 && s[:len(addr)] == addr {
		s = s[len(addr)+1:]
	}
	r.failed = true
	r.n = uint8(copy(r.data[:], s))
}

// epoch is where Time counts from; its monotonic reading makes that cheap.
var epoch = time.Now()

// Epoch is what a record's Time counts from: about when the process began. It is the same for
// all devices, so that records of several can be put in order.
func Epoch() time.Time { return epoch }
