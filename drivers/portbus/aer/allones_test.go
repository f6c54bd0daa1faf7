package aer_test

import (
	"strings"
	"testing"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/aerinject"
	"github.com/ring3dev/ring3/bus/pci"
)

// Each bit of a status set is no function that is gone: it is reported, cleared, and the next error is seen.
func TestAllBits(t *testing.T) {
	reset := vote{bus.NeedReset, bus.NoVote, bus.Recovered}
	for _, c := range []struct {
		at string
		e  pci.AERError
	}{
		{"rp1", pci.AERError{Uncorrectable: ^uint32(0)}},
		{"rp1", pci.AERError{Correctable: ^uint32(0)}},
		{"eth2", pci.AERError{Uncorrectable: ^uint32(0)}},
		{"eth2", pci.AERError{Correctable: ^uint32(0)}},
	} {
		wrapped := map[string]*aerinject.Device{}
		r := newRig(t, options{votes: votes{"eth2": reset}, wrap: func(name string, dev bus.Device) bus.Device {
			wrapped[name] = aerinject.Wrap(dev)
			return wrapped[name]
		}})
		in := aerinject.NewInjector(aerinject.Options{})
		root := r.fn("rp1").Addr
		for _, name := range []string{"rp1", "eth2"} {
			in.Add(r.fn(name).Addr, wrapped[name], root)
		}
		read := func(reg bus.Off) uint32 { return wrapped[c.at].Config().Read32(r.reg(c.at, reg)) }
		sev := read(pci.AERUncSev)
		a := r.fn(c.at).Addr
		inject := func(e pci.AERError) {
			r.ForgetRecords()
			if err := in.Inject(aerinject.Record{Domain: a.Domain, Bus: a.Bus, Dev: a.Dev, Fn: a.Fn, Error: e}); err != nil {
				t.Fatal(err)
			}
		}
		done := "device recovery successful"
		inject(c.e)
		if c.e.Correctable != 0 {
			r.Await(t, c.at+" clear", func() bool { return read(pci.AERCorSta) == 0 })
		} else {
			r.AwaitLine(t, done)
		}
		want := uint32(0) // the root port's own fatal errors stay
		if c.at == "rp1" {
			want = c.e.Uncorrectable & sev
		}
		if got := read(pci.AERUncSta); got != want {
			t.Errorf("%s, %+v: status %#x afterwards, want %#x", c.at, c.e, got, want)
		}
		inject(pci.AERError{Uncorrectable: uncTO})
		r.AwaitLine(t, done)
		said := false
		for _, l := range r.Lines() {
			said = said || strings.Contains(l.Text, "[14] CmpltTO")
			if strings.Contains(l.Text, "found no error details") {
				t.Errorf("%s, %+v: the next error: %q", c.at, c.e, l.Text)
			}
		}
		if !said {
			t.Errorf("%s, %+v: the next error has no details", c.at, c.e)
		}
	}
}
