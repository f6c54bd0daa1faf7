package bench

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"time"

	"github.com/ring3dev/ring3/rionet/fabric"
	"github.com/ring3dev/ring3/rionet/rapidio"
	"github.com/ring3dev/ring3/rionet/rapidio/scan"
)

var rioEndpoints = []int{10, 100, 1000}

// rioEnumerate is the time that a host takes to find and number all that a fabric has, in one process; "fabric" is the memory of the
// fabric with all its nodes, "host" that of what the host found.
func rioEnumerate(ctx context.Context, o *Options, emit func(Row) error) error {
	for _, n := range rioEndpoints {
		name := fmt.Sprintf("enumerate endpoints=%d", n)
		what := []string{name, name + " fabric", name + " host"}
		if !o.wantsAny(rioBench, what) {
			continue
		}
		var v [3][]float64
		for i := range o.Pairs + 1 {
			x, err := enumerateOnce(ctx, n)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			for k := range x {
				if i > 0 { // the first warms up
					v[k] = append(v[k], x[k])
				}
			}
		}
		for k, unit := range []string{"ms", "MiB", "MiB"} {
			if !o.wants(rioBench, what[k]) {
				continue
			}
			samples := slices.Clone(v[k])
			if err := emit(Row{Bench: rioBench, Case: what[k], Value: median(v[k]), Unit: unit, Samples: samples}); err != nil {
				return err
			}
		}
	}
	return nil
}

func rioSwitches(endpoints int) int { return (endpoints + 15) / 16 }

// rioTree is so many endpoints behind switches of which each, but for the first, stands below another, four by four.
func rioTree(endpoints int) *fabric.Topology {
	n := rioSwitches(endpoints)
	t := &fabric.Topology{IDs: rapidio.Large}
	used := make([]int, n)
	port := func(i int) string { used[i]++; return fmt.Sprintf("sw%d:%d", i, used[i]-1) }
	for i := range n {
		t.Switches = append(t.Switches, fabric.Switch{Name: fmt.Sprintf("sw%d", i), Ports: 5 + (endpoints+n-1)/n})
		if i > 0 {
			t.Links = append(t.Links, fabric.Link{Ends: [2]string{port(i), port((i - 1) / 4)}})
		}
	}
	for i := range endpoints {
		name := fmt.Sprintf("pe%d", i)
		t.Endpoints = append(t.Endpoints, fabric.Endpoint{Name: name})
		t.Links = append(t.Links, fabric.Link{Ends: [2]string{name, port(i % n)}})
	}
	return t
}

// enumerateOnce returns milliseconds, and MiB.
func enumerateOnce(ctx context.Context, n int) (x [3]float64, err error) {
	t := rioTree(n)
	if err := t.Check(); err != nil {
		return x, err
	}
	before := heap()
	f := fabric.New(t, fabric.Options{})
	ports := make([]*fabric.Mport, n)
	defer func() {
		for _, p := range ports {
			if p != nil {
				err = errors.Join(err, p.Close())
			}
		}
	}()
	for i := range ports {
		if ports[i], err = f.Mport(t.Endpoints[i].Name); err != nil {
			return x, err
		}
	}
	fabrics := heap()
	b := rapidio.NewBus(rapidio.BusOptions{})
	s := scan.New(b, scan.Options{})
	defer func() {
		b.Close()
		s.Wait()
	}()
	if _, err := b.AddMport(ctx, ports[0], rapidio.MportOptions{Host: 0, Scan: s}); err != nil {
		return x, err
	}
	begin := time.Now()
	if err := b.Scan(ctx, -1); err != nil {
		return x, err
	}
	took := time.Since(begin)
	hosts := heap()
	if got, want := len(b.Devices()), n-1+rioSwitches(n); got != want {
		return x, fmt.Errorf("%d devices were found, want %d", got, want)
	}
	return [3]float64{took.Seconds() * 1e3, (fabrics - before) / (1 << 20), (hosts - fabrics) / (1 << 20)}, nil
}

// heap is what is alive, in bytes.
func heap() float64 {
	runtime.GC()
	runtime.GC() // what finalizers let go
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc)
}
