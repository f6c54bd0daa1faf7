package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/qemu"
	"github.com/ring3dev/ring3/bus/sim"
)

// enumWindows are where BARs are placed, as both backends do.
var enumWindows = pci.Windows{
	IO:    pci.Range{Base: 0x2000, Size: 0xe000},
	Mem:   pci.Range{Base: 0xc0000000, Size: 0x3e000000},
	Mem64: pci.Range{Base: 1 << 36, Size: 1 << 36},
}

// enumReserve is what hot-plug ports keep for later: no bus numbers, or they would not be enough for many of them.
var enumReserve = pci.Reserve{Buses: 1}

// enumSizes are how many functions there are, and in how many switches (switchPorts each) they are.
var enumSizes = []struct{ functions, switches, ports int }{{1, 0, 0}, {32, 1, 15}, {256, 4, 31}}

// enumCases are what is measured of a size; each has a row of accesses too.
func enumCases(backend string, functions int) []string {
	out := []string{fmt.Sprintf("%s functions=%d", backend, functions)}
	if functions == 256 {
		one := fmt.Sprintf("%s %dth ", backend, functions)
		out = append(out, one+"behind its port", one+"anywhere")
	}
	return out
}

// enumTree are the devices: with switches a root port each, an upstream port, downstream ports, and an edu below each of these.
func enumTree(switches, ports int) (out []sim.DeviceSpec) {
	if switches == 0 {
		return []sim.DeviceSpec{{Name: "edu0", Model: "edu"}}
	}
	for s := range switches {
		rp, up := fmt.Sprintf("rp%d", s), fmt.Sprintf("up%d", s)
		out = append(out, sim.DeviceSpec{Name: rp, Model: "pcie-root-port"}, sim.DeviceSpec{Name: up, Model: "x3130-upstream", Bus: rp})
		for p := range ports {
			dn := fmt.Sprintf("dn%d-%d", s, p)
			out = append(out, sim.DeviceSpec{Name: dn, Model: "xio3130-downstream", Bus: up}, sim.DeviceSpec{Name: fmt.Sprintf("edu%d-%d", s, p), Model: "edu", Bus: dn})
		}
	}
	return out
}

// enumMachine is a machine whose config space is reached.
type enumMachine interface {
	machine
	pci.Access
	Topology() *pci.Topology
	Named(f *pci.Function) (name string, dev bus.Device, ok bool)
}

func (o *Options) wantsEnum(name string) bool {
	return o.wantsAny("enum", []string{name, name + " accesses"})
}

// startEnum starts a machine with that tree.
func startEnum(ctx context.Context, o *Options, backend string, tree []sim.DeviceSpec) (enumMachine, error) {
	if backend == "sim" {
		return sim.Start(ctx, sim.Config{Log: o.Log, Devices: tree, Reserve: enumReserve})
	}
	c := qemu.Config{Log: o.Log, Reserve: enumReserve}
	for _, d := range tree {
		c.Devices = append(c.Devices, qemu.DeviceSpec{Name: d.Name, Model: d.Model, Bus: d.Bus})
	}
	return qemu.Start(ctx, c)
}

// enumerate measures the enumeration of a machine that runs: numbering buses, sizing and placing BARs, opening windows; and finding one more
// function beside those that are known. Starting the machine is no part of it. The limit is the same accesses to config space, in the same
// order, and nothing else.
func enumerate(ctx context.Context, o *Options, emit func(Row) error) error {
	for _, backend := range []string{"sim", "qemu"} {
		for _, s := range enumSizes {
			cases := enumCases(backend, s.functions)
			if !slices.ContainsFunc(cases, o.wantsEnum) {
				continue
			}
			if err := enumerateTree(ctx, o, backend, enumTree(s.switches, s.ports), cases, emit); err != nil {
				return fmt.Errorf("enum %s functions=%d: %w", backend, s.functions, err)
			}
		}
	}
	return nil
}

func enumerateTree(ctx context.Context, o *Options, backend string, tree []sim.DeviceSpec, cases []string, emit func(Row) error) (err error) {
	m, err := startEnum(ctx, o, backend, tree)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	a := &enumAccess{m: m, hidden: map[pci.Addr]bool{}}
	found := m.Topology()
	var fns []*pci.Function
	for _, f := range found.Functions {
		if _, _, ok := m.Named(f); ok {
			fns = append(fns, f)
		} else {
			a.hidden[f.Addr] = true // the machine's own
		}
	}
	var t *pci.Topology
	all := func() (err error) {
		t, err = pci.EnumerateReserving(a, found.Domain, enumWindows, enumReserve)
		if err == nil && len(t.Functions) != len(tree) {
			err = fmt.Errorf("%d functions were found, want %d: %w", len(t.Functions), len(tree), bus.ErrProtocol)
		}
		return err
	}
	// As after power-on, nothing decodes: where something does, each write to a window costs QEMU more.
	if err := a.measure(o, cases[0], all, func() { stopDecoding(fns...) }, emit); err != nil || len(cases) == 1 {
		return err
	}
	if t == nil { // it was not wanted
		if err := all(); err != nil {
			return err
		}
	}
	last := t.Functions[len(t.Functions)-1]
	for i, port := range []*pci.Function{last.Parent, nil} {
		if err := a.measure(o, cases[1+i], func() error { return rescanOne(t, port) }, func() { forget(t, last) }, emit); err != nil {
			return err
		}
	}
	return nil
}

func stopDecoding(fns ...*pci.Function) {
	for _, f := range fns {
		pci.SetCommand(f.Config, 0, pci.CmdIO|pci.CmdMem|pci.CmdMaster)
	}
}

// rescanOne finds the one function that was forgotten.
func rescanOne(t *pci.Topology, port *pci.Function) error {
	found, err := t.Rescan(port)
	if err == nil && (len(found) != 1 || found[0].Err != nil) {
		err = fmt.Errorf("rescanning found %d functions, want 1 without an error: %w", len(found), bus.ErrProtocol)
	}
	return err
}

// forget makes a function one that is not known, and does nothing.
func forget(t *pci.Topology, last *pci.Function) {
	if f := t.Find(last.Addr); f != nil {
		t.Forget(f)
	}
	stopDecoding(last) // also where it was not found by its topology: the accesses alone were made
}

// enumAccess is the config space of a machine but for functions that are hidden, in whose place is nothing: an access to one of them is
// made where nothing answers, so that it takes the time of one to an empty slot.
type enumAccess struct {
	m      pci.Access
	hidden map[pci.Addr]bool
	record bool
	made   []enumOp // while record was set
}

// Config is a pci.Access's.
func (a *enumAccess) Config(at pci.Addr) bus.Config {
	if a.hidden[at] {
		at = pci.Addr{Domain: at.Domain, Bus: at.Bus, Dev: emptySlot}
	}
	return &enumConfig{a.m.Config(at), a}
}

// tooLong is what is done once only, and its accesses once again, in ms.
const tooLong = 5000

// emptySlot is where no backend puts anything on bus 0.
const emptySlot = 30

// measure measures f beside its accesses alone. undo is called before each.
func (a *enumAccess) measure(o *Options, name string, f func() error, undo func(), emit func(Row) error) error {
	if !o.wantsEnum(name) {
		return nil
	}
	a.record, a.made = true, nil
	first, err := a.average(0, f, undo)
	a.record = false
	if err != nil {
		return err
	}
	pairs := o.Pairs
	if first > tooLong {
		pairs = 1
	}
	row := Row{Bench: "enum", Case: name, Unit: "ms"}
	var values, limits []float64
	for range pairs {
		value := first
		if pairs > 1 {
			if value, err = a.average(o.Time, f, undo); err != nil {
				return err
			}
		}
		limit, err := a.average(o.Time, func() error { a.replay(); return nil }, undo)
		if err != nil {
			return err
		}
		values, limits, row.Samples = append(values, value), append(limits, limit), append(row.Samples, value/limit)
	}
	row.Value, row.Limit, row.Ratio = median(values), median(limits), median(slices.Clone(row.Samples))
	for _, r := range []Row{row, {Bench: "enum", Case: name + " accesses", Value: float64(len(a.made)), Unit: "1"}} {
		if !o.wants(r.Bench, r.Case) {
			continue
		}
		if err := emit(r); err != nil {
			return err
		}
	}
	return nil
}

// average is how long f takes, in ms, after undo. Writes are posted: what was written is waited for.
func (a *enumAccess) average(d time.Duration, f func() error, undo func()) (float64, error) {
	var sum time.Duration
	n := 0
	for begin := time.Now(); n == 0 || time.Since(begin) < d; n++ {
		undo()
		a.sync()
		start := time.Now()
		if err := f(); err != nil {
			return 0, err
		}
		a.sync()
		sum += time.Since(start)
	}
	return sum.Seconds() * 1000 / float64(n), nil
}

// sync waits for what was written.
func (a *enumAccess) sync() { a.m.Config(pci.Addr{Dev: emptySlot}).Read32(pci.CfgVendor) }

// replay makes the accesses that were recorded.
func (a *enumAccess) replay() {
	for i := range a.made {
		switch x := &a.made[i]; {
		case x.write && x.width == 1:
			x.cfg.Write8(x.off, uint8(x.v))
		case x.write && x.width == 2:
			x.cfg.Write16(x.off, uint16(x.v))
		case x.write:
			x.cfg.Write32(x.off, x.v)
		case x.width == 1:
			x.cfg.Read8(x.off)
		case x.width == 2:
			x.cfg.Read16(x.off)
		default:
			x.cfg.Read32(x.off)
		}
	}
}

// enumOp is an access to config space.
type enumOp struct {
	cfg   bus.Config
	off   bus.Off
	v     uint32 // of a write
	width uint8  // in bytes
	write bool
}

// enumConfig records accesses while it is told to.
type enumConfig struct {
	bus.Config
	a *enumAccess
}

func (c *enumConfig) note(off bus.Off, width uint8, write bool, v uint32) {
	if c.a.record {
		c.a.made = append(c.a.made, enumOp{c.Config, off, v, width, write})
	}
}

// Read8 is a bus.Config's, and so are the others.
func (c *enumConfig) Read8(o bus.Off) uint8 {
	c.note(o, 1, false, 0)
	return c.Config.Read8(o)
}

func (c *enumConfig) Read16(o bus.Off) uint16 {
	c.note(o, 2, false, 0)
	return c.Config.Read16(o)
}

func (c *enumConfig) Read32(o bus.Off) uint32 {
	c.note(o, 4, false, 0)
	return c.Config.Read32(o)
}

func (c *enumConfig) Write8(o bus.Off, v uint8) {
	c.note(o, 1, true, uint32(v))
	c.Config.Write8(o, v)
}

func (c *enumConfig) Write16(o bus.Off, v uint16) {
	c.note(o, 2, true, uint32(v))
	c.Config.Write16(o, v)
}

func (c *enumConfig) Write32(o bus.Off, v uint32) {
	c.note(o, 4, true, v)
	c.Config.Write32(o, v)
}
