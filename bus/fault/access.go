package fault

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/ring3dev/ring3/bus"
)

// Op is what a driver did.
type Op uint8

// What counts as an access.
const (
	Read Op = iota + 1
	Write
	ConfigRead
	ConfigWrite
	OpenRegion
	Alloc
	Map
	EnableIRQs
	DisableIRQs
	Reset
	Interrupt // the device did
)

var (
	reads      = []Op{Read, ConfigRead}
	writes     = []Op{Write, ConfigWrite}
	calls      = []Op{OpenRegion, Alloc, Map, EnableIRQs, DisableIRQs, Reset}
	interrupts = []Op{Interrupt}

	readsAndWrites = []Op{Read, ConfigRead, Write, ConfigWrite}
	accesses       = []Op{Read, ConfigRead, Write, ConfigWrite, Interrupt}
)

func (o Op) String() string {
	switch o {
	case Read, ConfigRead:
		return "read"
	case Write, ConfigWrite:
		return "write"
	case Interrupt:
		return "interrupt"
	}
	return "call"
}

// Access is one step of a driver, or an interrupt.
type Access struct {
	N     int    // its number, from 1, in the order in which they began
	Place string // the register's name, or Where, or what was called
	Nth   int    // its number among those of that place
	Op    Op
	Where string // "BAR0+0x8", "cfg+0x4"; "" for others
	Width int    // bytes of a read or write
	Value uint64 // read or written; of a call: region, bytes, vectors; of an interrupt: how often it fired
	Fault string // what was done to it; "" for nothing
}

// At is where the access is, in terms that hold as well when other goroutines' accesses fall
// otherwise between.
func (a Access) At() Point { return Point{Place: a.Place, Nth: a.Nth} }

// what is "read BAR0+0x8 (STATUS)".
func (a Access) what() string {
	switch {
	case a.Where == "":
		return fmt.Sprintf("%s(%d)", a.Place, a.Value)
	case a.Place != a.Where:
		return fmt.Sprintf("%s %s (%s)", a.Op, a.Where, a.Place)
	}
	return fmt.Sprintf("%s %s", a.Op, a.Where)
}

// String is "read BAR0+0x8 (STATUS) = 0x80080783", and in brackets what was done to it.
func (a Access) String() string {
	s := a.what()
	if a.Where != "" {
		s += fmt.Sprintf(" = %#x", a.Value)
	}
	if a.Fault != "" {
		s += " [" + a.Fault + "]"
	}
	return s
}

// class is a kind of place.
type class uint8

const (
	inRegion class = iota + 1
	inConfig
	vector
	call
)

// ops are what can happen at a place of the class; for a call more than one of them can.
func (c class) ops() []Op {
	switch c {
	case inRegion:
		return []Op{Read, Write}
	case inConfig:
		return []Op{ConfigRead, ConfigWrite}
	case vector:
		return interrupts
	}
	return calls
}

// place is where an access goes: a register, whatever the width; a vector; a function.
type place struct {
	class class
	n     int // the region, the vector, the Op
	off   bus.Off
}

// callNames are the functions that count.
var callNames = map[string]Op{
	"Region": OpenRegion, "Alloc": Alloc, "Map": Map, "EnableIRQs": EnableIRQs, "DisableIRQs": DisableIRQs, "Reset": Reset,
}

// places knows the names of places.
type places struct {
	regs  []bus.Register
	start map[place]place // of what lies in a register: where that begins
}

func newPlaces(regs []bus.Register) places {
	return places{regs: regs, start: map[place]place{}}
}

// canonical is the place for counting: a register counts as one wherever in it an access
// begins. Not safe for concurrent use.
func (t *places) canonical(p place) place {
	if p.class != inRegion || len(t.regs) == 0 {
		return p
	}
	if c, ok := t.start[p]; ok {
		return c
	}
	c := p
	if r, i := t.register(p); r != nil {
		c.off = r.At(i)
	}
	t.start[p] = c
	return c
}

// register is the first of the table that holds a place.
func (t *places) register(p place) (*bus.Register, int) {
	for i := range t.regs {
		if n, ok := t.regs[i].Find(p.n, p.off); ok {
			return &t.regs[i], n
		}
	}
	return nil, 0
}

// where is a place by numbers.
func (p place) where() string {
	switch p.class {
	case inRegion:
		return fmt.Sprintf("BAR%d+%#x", p.n, uint64(p.off))
	case inConfig:
		return fmt.Sprintf("cfg+%#x", uint64(p.off))
	}
	return ""
}

// name is what a place is called, so that find finds it.
func (t *places) name(p place) string {
	switch p.class {
	case vector:
		return "irq" + strconv.Itoa(p.n)
	case call:
		for name, op := range callNames {
			if op == Op(p.n) {
				return name
			}
		}
	case inRegion:
		if r, i := t.register(p); r != nil {
			// Where two registers have one name, or one no name for us, it is the place.
			if found, ok := t.find(r.Label(i)); ok && found == t.canonical(p) && validPlace(r.Label(i)) {
				return r.Label(i)
			}
		}
	}
	return p.where()
}

// find is the place of a name.
func (t *places) find(name string) (place, bool) {
	if op, ok := callNames[name]; ok {
		return place{class: call, n: int(op)}, true
	}
	for i := range t.regs {
		r := &t.regs[i]
		at, ok := 0, name == r.Name && r.Count <= 1
		if s, is := strings.CutPrefix(name, r.Name+"["); is && r.Count > 1 {
			n, err := number(strings.TrimSuffix(s, "]"), 0, r.Count-1)
			at, ok = n, err == nil && strings.HasSuffix(s, "]")
		}
		if ok {
			return t.canonical(place{class: inRegion, n: r.Region, off: r.At(at)}), true
		}
	}
	if s, ok := strings.CutPrefix(name, "irq"); ok {
		n, err := number(s, 0, 2047)
		return place{class: vector, n: n}, err == nil
	}
	base, off, ok := strings.Cut(name, "+0x")
	if !ok {
		return place{}, false
	}
	v, err := strconv.ParseUint(off, 16, 64)
	if err != nil || strconv.FormatUint(v, 16) != off {
		return place{}, false
	}
	if base == "cfg" {
		return place{class: inConfig, off: bus.Off(v)}, true
	}
	s, ok := strings.CutPrefix(base, "BAR")
	n, err := number(s, 0, 1<<16)
	return t.canonical(place{class: inRegion, n: n, off: bus.Off(v)}), ok && err == nil
}

// record is an access in the log.
type record struct {
	op     Op
	width  uint8
	nth    int
	place  place
	value  uint64
	faults []Kind // that were made
}

// maxLog is how many accesses the log keeps, the first ones; later ones are only counted.
const maxLog = 1 << 16

// Log is what the driver did, in the order in which it began; the first 65,536 accesses.
func (d *Device) Log() []Access {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := make([]Access, len(d.log))
	for i := range d.log {
		out[i] = d.access(i+1, &d.log[i])
	}
	return out
}

// access is what a record says. Called with mu held.
func (d *Device) access(n int, r *record) Access {
	a := Access{N: n, Nth: r.nth, Op: r.op, Place: d.places.name(r.place), Where: r.place.where(), Width: int(r.width), Value: r.value}
	var made []string
	for _, k := range r.faults {
		made = append(made, k.String())
	}
	a.Fault = strings.Join(slices.Compact(made), ", ")
	return a
}
