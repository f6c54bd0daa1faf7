package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/aerinject"
	"github.com/ring3dev/ring3/bus/fault"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/qemu"
	"github.com/ring3dev/ring3/bus/sim"
	"github.com/ring3dev/ring3/bus/trace"
)

// configWrappers are what may stand around a device: recording as in `ring3 up`, a plan without a fault, and injected errors of which there are none.
var configWrappers = []struct {
	name string
	wrap func(o *Options, d bus.Device) bus.Device
}{
	{"trace", func(o *Options, d bus.Device) bus.Device { return trace.Wrap(d, traceOptions("eth0", d, o.Drivers)) }},
	{"fault", func(_ *Options, d bus.Device) bus.Device { return fault.Wrap(d, fault.Plan{}) }},
	{"aerinject", func(_ *Options, d bus.Device) bus.Device { return aerinject.Wrap(d) }},
}

// configAccess is an access to config space: the ID, and Device Control as it is.
type configAccess struct {
	name string
	make func(c bus.Config, at bus.Off, ctl uint16)
}

var configAccesses = []configAccess{
	{"read32", func(c bus.Config, _ bus.Off, _ uint16) { c.Read32(pci.CfgVendor) }},
	{"write16", func(c bus.Config, at bus.Off, ctl uint16) { c.Write16(at, ctl) }},
}

// configSpace measures an access to config space of an 82574L, by backend, and what each wrapper adds to it, whose limit is the bare device in turn. Writes
// that a backend posts count when they are done, many at a time.
func configSpace(ctx context.Context, o *Options, emit func(Row) error) error {
	for _, backend := range []string{"sim", "qemu"} {
		var cases []string
		for _, x := range configAccesses {
			cases = append(cases, backend+" "+x.name)
			for _, w := range configWrappers {
				cases = append(cases, backend+" "+x.name+" "+w.name)
			}
		}
		if !o.wantsAny("config", cases) {
			continue
		}
		if err := configOf(ctx, o, backend, emit); err != nil {
			return fmt.Errorf("config %s: %w", backend, err)
		}
	}
	return nil
}

// startCard starts a machine with an 82574L alone.
func startCard(ctx context.Context, o *Options, backend string) (machine, error) {
	if backend == "sim" {
		return sim.Start(ctx, sim.Config{Log: o.Log, Devices: []sim.DeviceSpec{{Name: "eth0", Model: "e1000e", Props: []string{"aer=on"}}}})
	}
	return qemu.Start(ctx, qemu.Config{Log: o.Log, Devices: []qemu.DeviceSpec{{Name: "eth0", Model: "e1000e"}}})
}

func configOf(ctx context.Context, o *Options, backend string, emit func(Row) error) (err error) {
	m, err := startCard(ctx, o, backend)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	dev, err := m.Device("eth0")
	if err != nil {
		return err
	}
	e, ok := pci.FindExpress(dev.Config())
	if !ok {
		return fmt.Errorf("an 82574L without the PCI Express capability: %w", bus.ErrProtocol)
	}
	at := e.At + pci.ExpDevCtl
	ctl := dev.Config().Read16(at)
	for _, x := range configAccesses {
		each := func(c bus.Config) float64 {
			return perAccess(o.Time, func() { x.make(c, at, ctl) }, func() { dev.Config().Read32(pci.CfgVendor) })
		}
		name := backend + " " + x.name
		if o.wants("config", name) {
			var v []float64
			for range o.Pairs {
				v = append(v, each(dev.Config()))
			}
			if err := emit(Row{Bench: "config", Case: name, Value: median(slices.Clone(v)), Unit: "ns", Samples: v}); err != nil {
				return err
			}
		}
		for _, w := range configWrappers {
			row := Row{Bench: "config", Case: name + " " + w.name, Unit: "ns"}
			if !o.wants(row.Bench, row.Case) {
				continue
			}
			wrapped := w.wrap(o, unclosed{dev})
			var values, limits []float64
			for range o.Pairs {
				limit, value := each(dev.Config()), each(wrapped.Config())
				values, limits, row.Samples = append(values, value), append(limits, limit), append(row.Samples, value/limit)
			}
			row.Value, row.Limit, row.Ratio = median(values), median(limits), median(slices.Clone(row.Samples))
			if err := errors.Join(emit(row), wrapped.Close()); err != nil {
				return err
			}
		}
	}
	return nil
}

// unclosed is a device that outlives what is around it.
type unclosed struct{ bus.Device }

// Close does nothing.
func (unclosed) Close() error { return nil }

// perAccess is how long f takes, in ns; wait waits for what was posted.
func perAccess(d time.Duration, f, wait func()) float64 {
	n := 0
	wait()
	begin := time.Now()
	for ; time.Since(begin) < d; n += 64 {
		for range 64 {
			f()
		}
	}
	wait()
	return float64(time.Since(begin).Nanoseconds()) / float64(n)
}
