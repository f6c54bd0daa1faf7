package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ring3dev/ring3/netdev"
)

// forward is the rate at which frames go from eth0 over a wire to eth1, through a forwarder to eth2, and over
// another wire to eth3, beside the rate over one wire (the limit): with nothing lost, else it is an error.
func forward(ctx context.Context, o *Options, emit func(Row) error) error {
	for _, c := range []struct {
		model string
		sim   bool
		size  int
	}{{"e1000e", true, frameSize}, {"e1000e", true, 1514}, {"e1000e", false, frameSize}, {"e1000e", false, 1514}, {"e1000", false, frameSize}} {
		backend := "qemu"
		if c.sim {
			backend = "sim"
		}
		name := fmt.Sprintf("%s:%s ring=1024 burst=32 size=%d", backend, c.model, c.size)
		if !o.wants("forward", name) {
			continue
		}
		row, err := forwardCase(ctx, o, rigSpec{sim: c.sim, model: c.model, options: ringOf(1024)}, c.size)
		if err != nil {
			return fmt.Errorf("forward %s: %w", name, err)
		}
		row.Case = name
		if err := emit(row); err != nil {
			return err
		}
	}
	return nil
}

func forwardCase(ctx context.Context, o *Options, s rigSpec, size int) (_ Row, err error) {
	var rigs [2]*rig
	var ends [2]*netdev.Sink
	var f *netdev.Forwarder
	defer func() {
		for _, e := range ends {
			if e != nil {
				err = errors.Join(err, e.Close())
			}
		}
		if f != nil {
			err = errors.Join(err, f.Close())
		}
		for _, r := range rigs {
			if r != nil {
				err = errors.Join(err, r.close())
			}
		}
	}()
	for i, n := range []int{2, 4} {
		s.n = n
		if rigs[i], err = newRigOf(ctx, o, s); err != nil {
			return Row{}, err
		}
		if ends[i], err = netdev.NewSink(rigs[i].nets[n-1]); err != nil {
			return Row{}, err
		}
		if err = rigs[i].write("eth0", fmt.Sprintf("count %d", uint64(400_000*o.Time.Seconds())), "clone_skb 0", fmt.Sprintf("pkt_size %d", size), "burst 32",
			"dst 10.0.0.2", "dst_mac ff:ff:ff:ff:ff:ff"); err != nil {
			return Row{}, err
		}
	}
	if f, err = netdev.NewForwarder(rigs[1].nets[1], rigs[1].nets[2], nil); err != nil {
		return Row{}, err
	}
	var v [3][]float64
	for i := range o.Pairs + 1 {
		var pps [2]float64
		for k, r := range rigs {
			if pps[k], err = through(ctx, r, ends[k]); err != nil {
				return Row{}, err
			}
		}
		if i > 0 { // the first warms up
			v[0], v[1], v[2] = append(v[0], pps[0]), append(v[1], pps[1]), append(v[2], pps[1]/pps[0])
		}
	}
	return Row{Bench: "forward", Value: median(v[1]), Unit: "pps", Limit: median(v[0]), Ratio: median(v[2]), Samples: v[2]}, nil
}

// through is how many frames a second arrive, from the first that is sent to the last that arrives.
func through(ctx context.Context, r *rig, end *netdev.Sink) (float64, error) {
	before, begin := end.Frames(), time.Now()
	_, sent, err := r.run(ctx)
	if err != nil {
		return 0, err
	}
	for deadline := time.Now().Add(3 * time.Second); end.Frames()-before < sent; time.Sleep(100 * time.Microsecond) {
		if time.Now().After(deadline) {
			return 0, fmt.Errorf("sent %d, received %d", sent, end.Frames()-before)
		}
	}
	return float64(sent) / time.Since(begin).Seconds(), nil
}
