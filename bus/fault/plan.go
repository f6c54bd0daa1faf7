package fault

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/ring3dev/ring3/bus"
)

// Plan says what goes wrong, and when: what Parse makes of a specification, and what Wrap needs
// besides.
type Plan struct {
	Faults []Fault
	// Registers names the device's registers: a driver's table. Without it they are called by
	// where they are: "BAR0+0x8".
	Registers []bus.Register
	// Reset is how the device resets by itself; nil: by Device.Reset. It must not use the wrapper.
	Reset func() error
	// NoLog: nobody will ask for Log, so that nothing is written down, and accesses are counted only where a fault may want it.
	NoLog bool
	// Process allows kinds that happen to this process and not to the device: whoever wraps a device in a worker that is
	// there to be killed sets it. Without, they do nothing, which Outcomes tells.
	Process bool
	// Violate is what the kind violate does; nil: nothing.
	Violate func()
	// OnHit, if not nil, is called each time a fault is made, by the goroutine whose access it
	// hits, before that goes on; where the link is to die, after it did. It must not use the
	// device.
	OnHit func(Fault, Access)
}

// Fault is one thing that goes wrong.
type Fault struct {
	At   Point
	Kind Kind
	// Arg is what the kind's argument is: a bit, milliseconds, a number. 0 is the kind's own
	// choice, except where it is a bit.
	Arg int
}

// Point says which access is meant: with a Place, the Nth there; without, the Nth of all.
type Point struct {
	Place string // "STATUS", "BAR0+0x8", "cfg+0x4", "irq0", "Alloc"; "" for any
	Nth   int    // from 1
}

// Kind is a kind of fault. Its name is what a specification says.
type Kind uint8

// The kinds of faults.
const (
	Ones       Kind = iota + 1 // this read gives all-ones
	Zero                       // this read gives 0
	Flip                       // this read has a bit inverted
	Stuck                      // a bit reads from here on as the opposite of what it is now
	LostWrite                  // this write does not arrive
	Deny                       // this Region, Alloc, Map, EnableIRQs, DisableIRQs or Reset fails
	IRQLost                    // this interrupt is not delivered
	IRQLate                    // it is delivered later
	IRQAgain                   // it is delivered once more
	IRQStorm                   // it is delivered many times
	Garbage                    // rings in DMA memory have random contents after this access
	Gone                       // the link is dead from here on
	SelfReset                  // the device resets by itself
	ConfigGone                 // config space reads as all-ones from here on, and takes no writes
	Stall                      // this access takes long
	IRQDead                    // this vector delivers nothing from here on
	DMAFlip                    // a bit of a ring in DMA memory is inverted
	DMATorn                    // of what the device wrote in this access half arrived, in each descriptor
	DMALost                    // none of it arrived
	DMALength                  // a number in it, such as a length, is another one

	// What happens to the process that makes the access, if Plan.Process says so.

	Panic
	Hang        // the access never returns
	Lock        // nor does any other of the device
	Spin        // it uses a CPU for ever
	LeakMemory  // in MB
	LeakRoutine // goroutines
	LeakFile    // descriptors
	Kill        // SIGKILL
	Stop        // SIGSTOP
	Exit        // with a status
	NoFiles     // no descriptor can be opened any more
	NoMemory    // no memory can be had from the kernel any more
	Violate     // the process breaks the protocol by which it is supervised
)

// kinds is what a specification may say of each.
var kinds = [...]struct {
	name string
	arg  string // what the argument is; "": there is none
	min  int
	max  int
	def  int // what 0 stands for; -1: the argument must be given
	ops  []Op
}{
	Ones:      {name: "ones", ops: reads},
	Zero:      {name: "zero", ops: reads},
	Flip:      {name: "flip", arg: "a bit", max: 63, def: -1, ops: reads},
	Stuck:     {name: "stuck", arg: "a bit", max: 63, def: -1, ops: reads},
	LostWrite: {name: "lostwrite", ops: writes},
	Deny:      {name: "deny", ops: calls},
	IRQLost:   {name: "irq-lost", ops: interrupts},
	IRQLate:   {name: "irq-late", arg: "milliseconds", min: 1, max: 60000, def: 5, ops: interrupts},
	IRQAgain:  {name: "irq-again", ops: interrupts},
	IRQStorm:  {name: "irq-storm", arg: "a count", min: 1, max: 100000, def: 100, ops: interrupts},
	Garbage:   {name: "garbage", arg: "a seed", min: 1, max: 1<<31 - 1},
	Gone:      {name: "gone"},

	SelfReset:  {name: "reset", ops: accesses},
	ConfigGone: {name: "cfg-gone"},
	Stall:      {name: "stall", arg: "milliseconds", min: 1, max: 60000, def: 20, ops: readsAndWrites},
	IRQDead:    {name: "irq-dead", ops: interrupts},
	DMAFlip:    {name: "dma-flip", arg: "a seed", min: 1, max: 1<<31 - 1, def: 1},
	DMATorn:    {name: "dma-torn", arg: "a seed", min: 1, max: 1<<31 - 1, def: 1, ops: accesses},
	DMALost:    {name: "dma-lost", ops: accesses},
	DMALength:  {name: "dma-length", arg: "a seed", min: 1, max: 1<<31 - 1, def: 1, ops: accesses},

	Panic:       {name: "panic"},
	Hang:        {name: "hang"},
	Lock:        {name: "lock"},
	Spin:        {name: "spin"},
	LeakMemory:  {name: "leak", arg: "megabytes", min: 1, max: 1 << 20, def: 1 << 14},
	LeakRoutine: {name: "leak-goroutines", arg: "a count", min: 1, max: 1 << 24, def: 1 << 20},
	LeakFile:    {name: "leak-files", arg: "a count", min: 1, max: 1 << 20, def: 1 << 16},
	Kill:        {name: "kill"},
	Stop:        {name: "stop"},
	Exit:        {name: "exit", arg: "a status", min: 1, max: 125, def: 1},
	NoFiles:     {name: "no-files"},
	NoMemory:    {name: "no-memory"},
	Violate:     {name: "violate"},
}

// abouts are a line for each kind, for whoever looks for one.
var abouts = [...]string{
	Ones: "a read gives all-ones", Zero: "a read gives 0", Flip: "a read has one bit inverted", Stuck: "a bit reads as one value from here on",
	LostWrite: "a write does not arrive", Deny: "Region, Alloc, Map, EnableIRQs, DisableIRQs or Reset fails",
	IRQLost: "an interrupt is not delivered", IRQLate: "an interrupt comes late", IRQAgain: "an interrupt comes twice", IRQStorm: "an interrupt comes many times",
	Garbage: "rings in DMA memory hold random bytes", Gone: "the link is dead from here on", SelfReset: "the device resets by itself",
	ConfigGone: "config space is gone from here on", Stall: "an access takes long", IRQDead: "a vector delivers nothing from here on",
	DMAFlip: "a bit of a descriptor is inverted", DMATorn: "descriptors are half written, an old and a new half",
	DMALost: "what the device wrote does not arrive", DMALength: "a length that the device wrote is another one",
	Panic: "the driver panics", Hang: "the driver never returns", Lock: "nor does anything else that uses the device", Spin: "the driver takes a CPU and never returns",
	LeakMemory: "memory is lost", LeakRoutine: "goroutines are lost", LeakFile: "descriptors are lost", Kill: "SIGKILL", Stop: "SIGSTOP", Exit: "the process exits",
	NoFiles: "opening anything fails from here on", NoMemory: "the kernel gives no memory from here on", Violate: "the worker breaks its protocol",
}

// About is one line.
func (k Kind) About() string {
	if !k.known() {
		return ""
	}
	return abouts[k]
}

// Kinds are all that happen to a device, in order.
func Kinds() []Kind { return span(Ones, DMALength) }

// ProcessKinds are those that happen to the process that drives it.
func ProcessKinds() []Kind { return span(Panic, Violate) }

func span(from, to Kind) []Kind {
	var all []Kind
	for k := from; k <= to; k++ {
		all = append(all, k)
	}
	return all
}

func (k Kind) known() bool { return k >= Ones && k <= Violate }

// ToProcess says whether the kind happens to the process and not to the device.
func (k Kind) ToProcess() bool { return k >= Panic && k <= Violate }

// NeedsMemory says whether the kind happens to DMA memory, and so to nothing before there is some.
func (k Kind) NeedsMemory() bool {
	return k == Garbage || k >= DMAFlip && k <= DMALength
}

// Seeded says whether the argument is a seed, of which each value is another fault.
func (k Kind) Seeded() bool { return k.known() && kinds[k].arg == "a seed" }

func (k Kind) String() string {
	if !k.known() {
		return fmt.Sprintf("Kind(%d)", uint8(k))
	}
	return kinds[k].name
}

// Applies says whether an access can go wrong in this way.
func (k Kind) Applies(op Op) bool {
	return k.known() && (kinds[k].ops == nil || slices.Contains(kinds[k].ops, op))
}

// NeedsBit says whether the argument is a bit, which has to be given.
func (k Kind) NeedsBit() bool { return k.known() && kinds[k].def < 0 }

// arg is the argument, or what stands for it.
func (f Fault) arg() int {
	if f.Arg == 0 {
		return max(kinds[f.Kind].def, 0)
	}
	return f.Arg
}

func (f Fault) String() string {
	s := f.At.String() + ":" + f.Kind.String()
	if f.Kind.NeedsBit() || f.Arg != 0 {
		s += ":" + strconv.Itoa(f.Arg)
	}
	return s
}

func (p Point) String() string {
	if p.Place == "" {
		return strconv.Itoa(p.Nth)
	}
	return p.Place + "#" + strconv.Itoa(p.Nth)
}

// String is the specification, exactly as Parse takes it.
func (p Plan) String() string {
	s := make([]string, len(p.Faults))
	for i, f := range p.Faults {
		s[i] = f.String()
	}
	return strings.Join(s, "+")
}

// Limits of a specification.
const (
	maxFaults = 64
	maxNth    = 1_000_000_000
	maxPlace  = 64
)

// Parse reads a specification; the package comment has the grammar. Its errors are one line.
func Parse(spec string) (Plan, error) {
	var p Plan
	bad := func(format string, args ...any) (Plan, error) {
		return Plan{}, fmt.Errorf("fault %s: "+format, append([]any{shorten(spec)}, args...)...)
	}
	for rest := spec; ; {
		at, tail, ok := strings.Cut(rest, ":")
		if !ok {
			return bad("want POINT:KIND after %s, for example 17:ones or STATUS#3:gone", quoteEnd(rest))
		}
		point, err := parsePoint(at)
		if err != nil {
			return bad("%w", err)
		}
		// No kind and no argument holds a plus sign, which a place may.
		what, more, again := strings.Cut(tail, "+")
		f, err := parseKind(what)
		if err != nil {
			return bad("%w", err)
		}
		f.At = point
		if p.Faults = append(p.Faults, f); len(p.Faults) > maxFaults {
			return bad("more than %d faults", maxFaults)
		}
		if !again {
			return p, nil
		}
		rest = more
	}
}

// shorten quotes a specification for a message.
func shorten(s string) string {
	if len(s) > 80 {
		return strconv.Quote(s[:80]) + "..."
	}
	return strconv.Quote(s)
}

// quoteEnd is what the parser stands before.
func quoteEnd(s string) string {
	if s == "" {
		return "the last +"
	}
	return shorten(s)
}

func parsePoint(s string) (Point, error) {
	place, nth, named := strings.Cut(s, "#")
	if !named {
		place, nth = "", s
	}
	n, err := number(nth, 1, maxNth)
	if err != nil {
		return Point{}, fmt.Errorf("%s: want the number of an access (17) or a place and a number (STATUS#3), from 1 to %d", shorten(s), maxNth)
	}
	if named && !validPlace(place) {
		return Point{}, fmt.Errorf("%s: %s is no place: want a register's name, BAR0+0x8, cfg+0x4, irq0, Region, Alloc, Map, EnableIRQs, DisableIRQs or Reset", shorten(s), shorten(place))
	}
	return Point{Place: place, Nth: n}, nil
}

// validPlace says whether s can be the name of a place: whether it is one only a table of
// registers can tell (Check).
func validPlace(s string) bool {
	if s == "" || len(s) > maxPlace {
		return false
	}
	for _, c := range []byte(s) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case strings.IndexByte("_.+-[]/()", c) >= 0:
		default:
			return false
		}
	}
	return true
}

func parseKind(s string) (Fault, error) {
	name, arg, given := strings.Cut(s, ":")
	for k := Ones; k.known(); k++ {
		about := kinds[k]
		if about.name != name {
			continue
		}
		switch {
		case !given && about.def < 0:
			return Fault{}, fmt.Errorf("%s wants %s: %s:%d to %s:%d", name, about.arg, name, about.min, name, about.max)
		case !given:
			return Fault{Kind: k}, nil
		case about.arg == "":
			return Fault{}, fmt.Errorf("%s takes no argument, and has %s", name, shorten(arg))
		}
		n, err := number(arg, about.min, about.max)
		if err != nil {
			return Fault{}, fmt.Errorf("%s:%s: want %s from %d to %d", name, shorten(arg), about.arg, about.min, about.max)
		}
		return Fault{Kind: k, Arg: n}, nil
	}
	var names []string
	for k := Ones; k.known(); k++ {
		names = append(names, k.String())
	}
	return Fault{}, fmt.Errorf("%s is no kind of fault: want one of %s", shorten(name), strings.Join(names, ", "))
}

// number reads a decimal number as it is printed: no sign, no leading zero.
func number(s string, low, high int) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < low || n > high || strconv.Itoa(n) != s {
		return 0, strconv.ErrRange
	}
	return n, nil
}

// Check says whether all places of the plan exist, as far as the table of registers can
// tell. Wrap does not: a place that does not exist is never reached.
func (p Plan) Check() error {
	t := newPlaces(p.Registers)
	for _, f := range p.Faults {
		if f.At.Place == "" {
			continue
		}
		k, ok := t.find(f.At.Place)
		if !ok {
			return fmt.Errorf("fault %s: the device has no %s: want a register's name, BAR0+0x8, cfg+0x4, irq0, Region, Alloc, Map, EnableIRQs, DisableIRQs or Reset", f, f.At.Place)
		}
		if !slices.ContainsFunc(k.class.ops(), f.Kind.Applies) {
			return fmt.Errorf("fault %s: %s cannot happen to %s", f, f.Kind, f.At.Place)
		}
	}
	return nil
}
