//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/integration/benchvm/row"
	"github.com/ring3dev/ring3/uio"
	"github.com/ring3dev/ring3/vfio"
)

// configArg is what the child "config" is to do.
type configArg struct {
	Addr string        `json:"addr"`
	UIO  bool          `json:"uio"` // else by VFIO
	Time time.Duration `json:"time"`
}

// configCosts are nanoseconds an access to config space.
type configCosts struct {
	Read32  float64 `json:"read32"`  // the ID
	Write16 float64 `json:"write16"` // Device Control, as it is
}

func configMain(a configArg, _ func(func() uint64) error) (r configCosts, err error) {
	open := func() (bus.Device, error) { return vfio.Open(context.Background(), a.Addr, vfio.Options{}) }
	if a.UIO {
		open = func() (bus.Device, error) { return uio.Open(context.Background(), a.Addr, uio.Options{}) }
	}
	d, err := open()
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	c := d.Config()
	e, ok := pci.FindExpress(c)
	if !ok {
		return r, fmt.Errorf("%s has no PCI Express capability: %w", a.Addr, bus.ErrProtocol)
	}
	at := e.At + pci.ExpDevCtl
	ctl := c.Read16(at)
	r.Read32 = perAccess(a.Time, func() { c.Read32(pci.CfgVendor) })
	r.Write16 = perAccess(a.Time, func() { c.Write16(at, ctl) })
	return r, d.Err()
}

// perAccess is how long f takes, in ns.
func perAccess(d time.Duration, f func()) float64 {
	n := 0
	begin := time.Now()
	for ; time.Since(begin) < d; n += 64 {
		for range 64 {
			f()
		}
	}
	return float64(time.Since(begin).Nanoseconds()) / float64(n)
}

// configWays are the ways to config space. UIO's is root's.
var configWays = []struct {
	name, driver string
	uio          bool
}{{"vfio", "vfio-pci", false}, {"uio", "uio_pci_generic", true}}

// configSpace measures an access to config space of an 82574L.
func configSpace(s *session, emit func(...row.Row) error) error {
	set := s.set("config")
	for range s.Reps {
		for _, w := range configWays {
			if !set.Wants(w.name+" read32") && !set.Wants(w.name+" write16") {
				continue
			}
			if err := s.bind(row.Sender, w.driver); err != nil {
				return err
			}
			var r configCosts
			if err := ask(who{nobody: !w.uio, cpu: -1}, "config", configArg{row.Sender, w.uio, s.Time}, &r); err != nil {
				return fmt.Errorf("config %s: %w", w.name, err)
			}
			for _, x := range []struct {
				name string
				ns   float64
			}{{w.name + " read32", r.Read32}, {w.name + " write16", r.Write16}} {
				if set.Wants(x.name) {
					set.Add(x.name, "ns", x.ns)
				}
			}
		}
	}
	return emit(set.Rows()...)
}
