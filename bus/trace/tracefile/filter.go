package tracefile

import (
	"errors"
	"fmt"
	"strings"

	"github.com/expr-lang/expr"
	"github.com/expr-lang/expr/file"
	"github.com/expr-lang/expr/vm"

	"github.com/ring3dev/ring3/bus/trace"
)

// maxFilter bounds the text of a filter.
const maxFilter = 4096

// Filter says which entries are wanted. It belongs to one goroutine.
type Filter struct {
	src string
	p   *vm.Program
	vm  vm.VM
	env fields
}

// fields are what a filter knows of an entry.
type fields struct {
	Device  string  `expr:"device"`
	Address string  `expr:"address"`
	Kind    string  `expr:"kind"`
	Name    string  `expr:"name"`
	Reg     string  `expr:"reg"`
	Text    string  `expr:"text"`
	T       float64 `expr:"t"`
	DT      int     `expr:"dt"`
	Seq     int     `expr:"seq"`
	Index   int     `expr:"index"`
	Region  int     `expr:"region"`
	Off     int     `expr:"off"`
	Width   int     `expr:"width"`
	Value   int     `expr:"value"`
	Aux     int     `expr:"aux"`
	Count   int     `expr:"count"`
	US      int     `expr:"us"`
	MS      int     `expr:"ms"`
}

// ParseFilter compiles an expression. An empty one is a nil Filter, which wants everything.
func ParseFilter(s string) (*Filter, error) {
	if strings.TrimSpace(s) == "" {
		return nil, nil
	}
	if len(s) > maxFilter {
		return nil, fmt.Errorf("filter of %d characters, at most %d are taken", len(s), maxFilter)
	}
	p, err := compile(s)
	var fe *file.Error
	if errors.As(err, &fe) {
		// Its own text is three lines, with the place marked.
		return nil, fmt.Errorf("filter %q: character %d: %s", s, fe.Column+1, oneLine(fe.Message))
	}
	if err != nil {
		return nil, fmt.Errorf("filter %q: %s", s, oneLine(err.Error()))
	}
	return &Filter{src: s, p: p}, nil
}

// compile keeps what a hostile expression can do to the compiler an error.
func compile(s string) (p *vm.Program, err error) {
	defer func() {
		if r := recover(); r != nil {
			p, err = nil, fmt.Errorf("%v", r)
		}
	}()
	return expr.Compile(s, expr.Env(fields{}), expr.AsBool())
}

// Match says whether e is wanted. It fails where the expression cannot be evaluated: a division
// by zero, an index outside.
func (f *Filter) Match(e *trace.Entry) (bool, error) {
	if f == nil {
		return true, nil
	}
	f.env = fields{
		Device: e.Device, Address: e.Address, Kind: e.Kind.String(), Name: e.Name, Reg: e.Reg(), Text: e.Text,
		T: float64(e.Time) / 1e9, DT: int(e.DT), Seq: int(e.Seq), Index: e.Index(), Region: int(e.Region), Off: int(e.Off),
		Width: int(e.Width), Value: int(e.Value), Aux: int(e.Aux), Count: int(e.Count), US: 1e3, MS: 1e6,
	}
	v, err := f.vm.Run(f.p, f.env)
	if err != nil {
		var fe *file.Error
		if errors.As(err, &fe) {
			err = errors.New(fe.Message)
		}
		return false, fmt.Errorf("filter %q: record %d of %s: %s", f.src, e.Seq, e.Device, oneLine(err.Error()))
	}
	ok, _ := v.(bool)
	return ok, nil
}

// Keep moves the wanted of es to its front, and returns them. What says that records are
// missing is always wanted.
func (f *Filter) Keep(es []trace.Entry) ([]trace.Entry, error) {
	if f == nil {
		return es, nil
	}
	n := 0
	for i := range es {
		ok, err := f.Match(&es[i])
		if err != nil {
			return nil, err
		}
		if ok || es[i].Kind == trace.Lost {
			es[n] = es[i]
			n++
		}
	}
	return es[:n], nil
}

func oneLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	return s
}
