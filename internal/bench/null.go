package bench

import (
	"context"
	"fmt"
	"runtime"
	"time"

	"github.com/ring3dev/ring3/bus/dma"
)

// null measures the driver and the generator alone, on a model that swallows what it gets at
// once and has no end of what it gives: time, allocations and, where they can be counted, CPU cycles a
// frame.
func null(ctx context.Context, o *Options, emit func(Row) error) error {
	for _, c := range []struct {
		name     string
		commands []string
	}{{"tx burst=32", nil}, {"tx burst=32 clone_skb", []string{"clone_skb 1000"}}, {"tx burst=32 random", randomFields}} {
		if !o.wantsAny("null", nullCases(c.name)) {
			continue
		}
		if err := nullTx(ctx, o, c.name, c.commands, emit); err != nil {
			return fmt.Errorf("null %s: %w", c.name, err)
		}
	}
	const rx = "rx burst=32"
	if !o.wantsAny("null", nullCases(rx)) {
		return nil
	}
	if err := nullRx(ctx, o, rx, emit); err != nil {
		return fmt.Errorf("null %s: %w", rx, err)
	}
	return nil
}

// nullCases are the rows of a case.
func nullCases(name string) []string { return []string{name, name + " allocations", name + " cycles"} }

// nullTx sends the smallest frames; every one gets a sequence number and a time, unless commands say otherwise.
func nullTx(ctx context.Context, o *Options, name string, commands []string, emit func(Row) error) error {
	r, err := newRigOf(ctx, o, rigSpec{sim: true, model: "null", options: ringOf(1024), n: 1})
	if err != nil {
		return err
	}
	defer r.close()
	err = r.write("eth0", append([]string{"clone_skb 0", fmt.Sprintf("pkt_size %d", frameSize), "burst 32", "dst 10.0.0.2", "dst_mac 02:00:00:00:00:02"}, commands...)...)
	if err != nil {
		return err
	}
	send := func(count uint64) (float64, error) {
		if err := r.write("eth0", fmt.Sprintf("count %d", count)); err != nil {
			return 0, err
		}
		pps, _, err := r.run(ctx)
		return pps, err
	}
	pps, err := send(1_000_000) // warm-up
	if err != nil {
		return err
	}
	count := uint64(pps * o.Time.Seconds())
	return cost(o, name, emit, func() (frames uint64, ns float64, err error) {
		pps, err := send(count)
		return count, 1e9 / pps, err
	})
}

// nullRx takes frames and frees them.
func nullRx(ctx context.Context, o *Options, name string, emit func(Row) error) error {
	r, err := newRigOf(ctx, o, rigSpec{sim: true, model: "null", props: []string{fmt.Sprintf("rx=%d", frameSize)}, options: ringOf(1024), n: 1})
	if err != nil {
		return err
	}
	defer r.close()
	q := r.nets[0].Rx(0)
	bufs := make([]*dma.Buf, 32)
	receive := func(d time.Duration) (n uint64, took time.Duration) {
		begin := time.Now()
		for took < d {
			for range 64 { // between two looks at the clock
				k := q.Burst(bufs)
				for _, b := range bufs[:k] {
					b.Free()
				}
				n += uint64(k)
			}
			took = time.Since(begin)
		}
		return n, took
	}
	receive(o.Time / 4) // warm-up
	err = cost(o, name, emit, func() (uint64, float64, error) {
		n, took := receive(o.Time)
		if n == 0 {
			return 0, 0, fmt.Errorf("nothing was received in %s", took)
		}
		return n, float64(took.Nanoseconds()) / float64(n), nil
	})
	q.Burst(nil)
	return err
}

// cost runs f some times and emits its time (the median), its allocations (the most) and its
// cycles (the median) a frame.
func cost(o *Options, name string, emit func(Row) error, f func() (frames uint64, ns float64, err error)) error {
	var times, cycles []float64
	allocs := 0.0
	for range o.Pairs {
		var before, after runtime.MemStats
		counter, counts := countCycles()
		runtime.ReadMemStats(&before)
		frames, ns, err := f()
		runtime.ReadMemStats(&after)
		n, ok := counter.stop()
		if err != nil {
			return err
		}
		times = append(times, ns)
		// A run begins and ends with some; a frame must not.
		allocs = max(allocs, float64(after.Mallocs-before.Mallocs)/float64(frames))
		if counts && ok {
			cycles = append(cycles, float64(n)/float64(frames))
		}
	}
	rows := []Row{{Case: name, Value: median(times), Unit: "ns"}, {Case: name + " allocations", Value: allocs, Unit: "1"}}
	if len(cycles) > 0 {
		rows = append(rows, Row{Case: name + " cycles", Value: median(cycles), Unit: "1"})
	}
	for _, row := range rows {
		row.Bench = "null"
		if !o.wants("null", row.Case) {
			continue
		}
		if err := emit(row); err != nil {
			return err
		}
	}
	return nil
}
