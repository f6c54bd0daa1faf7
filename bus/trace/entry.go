package trace

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/ring3dev/ring3/bus"
)

// Entry is a record with its names: what is shown, filtered and kept in files.
type Entry struct {
	Record
	Device  string // "eth0"
	Address string // "1000:00:02.0"
	DT      int64  // nanoseconds since the device's record before; 0 for the first of a trace
	Name    string // the register's, "TDT" or in an array "RAL[3]"; else what was acted on; "" if it has none
	Text    string // the value in words; "" where there are none

	wall time.Time // of an entry that was read from a file
}

// Reg is Name without the index.
func (e *Entry) Reg() string {
	s, _, _ := strings.Cut(e.Name, "[")
	return s
}

// Index is the index in Name, 0 where there is none.
func (e *Entry) Index() int {
	_, s, _ := strings.Cut(e.Name, "[")
	n, _ := strconv.Atoi(strings.TrimSuffix(s, "]"))
	return n
}

// Wall is when it was.
func (e *Entry) Wall() time.Time {
	if !e.wall.IsZero() {
		return e.wall
	}
	return epoch.Add(time.Duration(e.Time))
}

// SetWall is for readers of files, whose program began at another time than this.
func (e *Entry) SetWall(t time.Time) { e.wall = t }

// SetData is for readers of files: it sets Data, cut to what a record holds.
func (e *Entry) SetData(b []byte) { e.failed, e.n = false, uint8(copy(e.data[:], b)) }

// Entries appends a record of this device with its names: one entry, or two, where a doorbell
// published something.
func (d *Device) Entries(es []Entry, r *Record) []Entry {
	return d.names.entries(es, r)
}

// namer knows what names and words are.
type namer struct {
	name, address string
	regs          []bus.Register // the driver's, and config space's
}

func (d *namer) entries(es []Entry, r *Record) []Entry {
	es = append(es, d.entry(r))
	if r.Kind == Doorbell && r.Count > 0 {
		p := *r
		first, size := uint32(r.Aux), uint32(r.Aux>>32)
		p.Kind, p.Width = Publish, r.desc
		p.Value, p.Aux = uint64(first), uint64(uint32(r.Value)+size-1)%uint64(size)
		es = append(es, d.entry(&p))
		e := &es[len(es)-2]
		e.Aux, e.Count, e.desc, e.n = 0, 0, 0, 0
	}
	return es
}

// entry names a record.
func (d *namer) entry(r *Record) Entry {
	e := Entry{Record: *r, Device: d.name, Address: d.address}
	switch r.Kind {
	case Read, Write, Doorbell, Publish:
		reg, i := d.register(r)
		if reg != nil {
			e.Name = reg.Label(i)
		}
		switch {
		case r.Kind == Publish:
			e.Text = publishText(reg, r)
		case reg != nil && reg.Bits != nil && r.Off == reg.At(i):
			e.Text = safely(func() string { return reg.Bits(r.Value) })
		}
	case IRQ, Unmask:
		e.Name = fmt.Sprintf("%s[%d]", r.Mode, r.Aux)
	case IRQs:
		e.Name = r.Op.String()
		if r.Op == OpEnable {
			e.Text = r.Mode.String()
		}
	case DMA:
		e.Name = r.Op.String()
		e.Text = fmt.Sprintf("%d bytes", r.Aux)
	case Open:
		e.Text = fmt.Sprintf("%d bytes", r.Aux)
	case Lost:
		e.Text = "records lost: the reader was too slow"
	}
	if f := r.Failed(); f != "" {
		e.Text = "failed: " + f
		if r.Kind == Died {
			e.Text = f
		}
	}
	e.Text = Clean(e.Text)
	return e
}

// register finds the register of an access, also one in its middle.
func (d *namer) register(r *Record) (*bus.Register, int) {
	var near *bus.Register
	at := 0
	for k := range d.regs {
		g := &d.regs[k]
		i, ok := g.Find(int(r.Region), r.Off)
		switch {
		case ok && g.At(i) == r.Off:
			return g, i
		case ok && near == nil:
			near, at = g, i
		}
	}
	return near, at
}

// publishText says which descriptors were published, and what is in the first of them.
func publishText(reg *bus.Register, r *Record) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d..%d (%d)", r.Value, r.Aux, r.Count)
	size := int(r.Width)
	rest, n := r.Data(), 0
	for ; size > 0 && len(rest) >= size; n++ {
		desc := rest[:size]
		rest = rest[size:]
		text := ""
		if reg != nil && reg.Ring != nil && reg.Ring.Desc != nil {
			text = safely(func() string { return reg.Ring.Desc(desc) })
		}
		if text == "" {
			text = hex.EncodeToString(desc)
		}
		b.WriteString(" {" + text + "}")
	}
	if n < int(r.Count) {
		b.WriteString(" ...")
	}
	return b.String()
}

// safely calls a driver's renderer. What it is given may be anything, and a trace is no reason
// to die.
func safely(f func() string) (s string) {
	defer func() {
		if recover() != nil {
			s = ""
		}
	}()
	return f()
}

// Clean makes a text one line without control characters.
func Clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return ' '
		}
		return r
	}, s)
}

// Where is the place of an access: "bar0+0x3818/4", "cfg+0x4/2" (region, offset, width in
// bytes), "-" for what has none.
func (e *Entry) Where() string {
	switch {
	case e.Kind == Open:
		return fmt.Sprintf("bar%d", e.Region)
	case e.Region == ConfigSpace:
		return fmt.Sprintf("cfg+%#x/%d", uint64(e.Off), e.Width)
	case e.Region < 0:
		return "-"
	}
	return fmt.Sprintf("bar%d+%#x/%d", e.Region, uint64(e.Off), e.Width)
}

// String is a line of a text trace, without its end: see the package's comment.
func (e *Entry) String() string {
	name := e.Name
	if name == "" {
		name = "-"
	}
	s := fmt.Sprintf("%5d.%09d %-6s %7d %-8s %-16s %-14s %#-14x %s", e.Time/1e9, e.Time%1e9, e.Device, e.Seq, e.Kind, e.Where(), name, e.Value, e.Text)
	return strings.TrimRight(s, " ")
}

// MarshalJSON is a line of `ring3 trace report -json`.
func (e *Entry) MarshalJSON() ([]byte, error) {
	type entry struct {
		Device  string    `json:"device"`
		Address string    `json:"address"`
		Seq     uint64    `json:"seq"`
		Wall    time.Time `json:"wall"`
		Time    int64     `json:"time_ns"`
		DT      int64     `json:"dt_ns"`
		Kind    string    `json:"kind"`
		Name    string    `json:"name,omitempty"`
		Region  int8      `json:"region"`
		Off     uint64    `json:"off"`
		Width   uint8     `json:"width,omitempty"`
		Value   uint64    `json:"value"`
		Aux     uint64    `json:"aux,omitempty"`
		Count   uint32    `json:"count,omitempty"`
		Data    string    `json:"data,omitempty"`
		Text    string    `json:"text,omitempty"`
	}
	return json.Marshal(entry{e.Device, e.Address, e.Seq, e.Wall(), e.Time, e.DT, e.Kind.String(), e.Name, e.Region, uint64(e.Off), e.Width, e.Value, e.Aux, e.Count,
		hex.EncodeToString(e.Data()), e.Text})
}
