package bench

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/trace"
	"github.com/ring3dev/ring3/bus/trace/tracefile"
)

// traceModes are what is compared with a device that is not wrapped at all: recording off, on
// (as it is in `ring3 up`), and with a reader who makes pcapng of everything.
var traceModes = []string{"off", "on", "read"}

// tracing compares transmitting on a traced device with transmitting on a bare one, each in
// turn: on the null model, where the driver is all there is, and on QEMU's.
func tracing(ctx context.Context, o *Options, emit func(Row) error) error {
	for _, c := range []struct {
		name string
		spec rigSpec
	}{
		{"null", rigSpec{sim: true, model: "null", options: ringOf(1024), n: 1}},
		{"e1000e", rigSpec{model: "e1000e", options: ringOf(1024), n: 1}},
	} {
		var names []string
		for _, mode := range traceModes {
			names = append(names, fmt.Sprintf("tx %s burst=32 %s", c.name, mode))
		}
		if !o.wantsAny("trace", names) {
			continue
		}
		if err := traceRig(ctx, o, c.spec, names, emit); err != nil {
			return fmt.Errorf("trace %s: %w", c.name, err)
		}
	}
	return nil
}

// traceRig measures the modes on a pair of rigs.
func traceRig(ctx context.Context, o *Options, spec rigSpec, names []string, emit func(Row) error) (err error) {
	bare, err := newRigOf(ctx, o, spec)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bare.close()) }()
	var traced *trace.Device
	spec.wrap = func(name string, d bus.Device) bus.Device {
		traced = trace.Wrap(d, traceOptions(name, d, o.Drivers))
		return traced
	}
	wrapped, err := newRigOf(ctx, o, spec)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, wrapped.close(), traced.Close()) }()
	for i, mode := range traceModes {
		if !o.wants("trace", names[i]) {
			continue
		}
		traced.SetEnabled(mode != "off")
		row, err := traceTx(ctx, o, [2]*rig{bare, wrapped}, traced, mode == "read")
		if err != nil {
			return err
		}
		row.Case = names[i]
		if err := emit(row); err != nil {
			return err
		}
	}
	return nil
}

// traceOptions are what `ring3 up` traces a device with.
func traceOptions(name string, d bus.Device, drivers []*pci.Driver) trace.Options {
	o := trace.Options{Name: name}
	id := pci.ReadID(d.Config())
	for _, drv := range drivers {
		if drv.Serves(id) && drv.Registers != nil {
			o.Driver, o.Registers = drv.Name, drv.Registers(id)
		}
	}
	return o
}

// traceTx is pktgen's rate on a bare device (the limit) and on a traced one.
func traceTx(ctx context.Context, o *Options, rigs [2]*rig, traced *trace.Device, read bool) (Row, error) {
	var limits, values, ratios []float64
	count := uint64(100_000)
	for i := range o.Pairs + 1 {
		var pps [2]float64
		for j, r := range rigs {
			if err := r.write("eth0", fmt.Sprintf("count %d", max(count, 1000)), "clone_skb 0", "delay 0", fmt.Sprintf("pkt_size %d", frameSize),
				"burst 32", "dst 10.0.0.2", "dst_mac 02:00:00:00:00:02"); err != nil {
				return Row{}, err
			}
			stop := func() error { return nil }
			if j == 1 && read {
				stop = readTrace(traced)
			}
			var err error
			pps[j], _, err = r.run(ctx)
			if err = errors.Join(err, stop()); err != nil {
				return Row{}, err
			}
		}
		if i == 0 { // warm-up
			count = uint64(pps[0] * o.Time.Seconds())
			continue
		}
		limits, values, ratios = append(limits, pps[0]), append(values, pps[1]), append(ratios, pps[1]/pps[0])
	}
	return Row{Bench: "trace", Value: median(values), Unit: "pps", Limit: median(limits), Ratio: median(ratios), Samples: ratios}, nil
}

// readTrace makes pcapng of all that is recorded until stop.
func readTrace(d *trace.Device) (stop func() error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		w, err := tracefile.NewPcapng(io.Discard, []tracefile.Source{tracefile.SourceOf(d)})
		if err == nil {
			err = trace.Follow(ctx, []*trace.Device{d}, 0, func(es []trace.Entry) error {
				for i := range es {
					if err := w.Write(&es[i]); err != nil {
						return err
					}
				}
				return w.Flush()
			})
		}
		done <- err
	}()
	return func() error { cancel(); return <-done }
}
