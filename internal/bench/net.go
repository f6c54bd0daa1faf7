package bench

import (
	"context"
	"fmt"
	"time"

	"github.com/ring3dev/ring3/drivers/e1000"
	"github.com/ring3dev/ring3/netdev"
)

var (
	models = []string{"e1000e", "e1000"}
	bursts = []int{1, 8, 32, 64, 256, 1024}
	rings  = []int{256, 4096}
)

// frameSize is the smallest frame, without its check sequence.
const frameSize = 60

// pktgenTx compares pktgen with the model's own limit: a sequence number and a timestamp
// in every packet against a loop that only rings the doorbell.
func pktgenTx(ctx context.Context, o *Options, emit func(Row) error) error {
	for _, model := range models {
		for _, ring := range rings {
			var cases []string
			for _, b := range bursts {
				cases = append(cases, fmt.Sprintf("%s ring=%d burst=%d", model, ring, b))
			}
			if !o.wantsAny("pktgen-tx", cases) {
				continue
			}
			r, err := newRig(ctx, o, model, ring, 1)
			if err != nil {
				return err
			}
			for i, b := range bursts {
				if !o.wants("pktgen-tx", cases[i]) {
					continue
				}
				row, err := txCase(ctx, o, r, b)
				if err == nil {
					row.Case = cases[i]
					err = emit(row)
				}
				if err != nil {
					_ = r.close()
					return err
				}
			}
			if err := r.close(); err != nil {
				return err
			}
		}
	}
	return nil
}

// txCase measures one burst size in pairs.
func txCase(ctx context.Context, o *Options, r *rig, burst int) (Row, error) {
	var limits, values, ratios []float64
	for i := range o.Pairs + 1 {
		limit, err := e1000.BareTransmit(ctx, r.insts[0], make([]byte, frameSize), burst, o.Time)
		if err != nil {
			return Row{}, err
		}
		count := uint64(limit * o.Time.Seconds())
		if err := r.write("eth0", fmt.Sprintf("count %d", max(count, 1000)), "clone_skb 0", "delay 0", fmt.Sprintf("pkt_size %d", frameSize),
			fmt.Sprintf("burst %d", burst), "dst 10.0.0.2", "dst_mac 02:00:00:00:00:02"); err != nil {
			return Row{}, err
		}
		pps, _, err := r.run(ctx)
		if err != nil {
			return Row{}, err
		}
		if i == 0 {
			continue // warm-up
		}
		limits, values, ratios = append(limits, limit), append(values, pps), append(ratios, pps/limit)
	}
	return Row{Bench: "pktgen-tx", Value: median(values), Unit: "pps", Limit: median(limits), Ratio: median(ratios), Samples: ratios}, nil
}

// wire measures the rate that two wired devices send and receive at once, with nothing
// lost; a run that lost a frame is an error.
func wire(ctx context.Context, o *Options, emit func(Row) error) error {
	for _, model := range models {
		for _, burst := range []int{32, 256} {
			name := fmt.Sprintf("%s ring=%d burst=%d", model, 4096, burst)
			if !o.wants("wire", name) {
				continue
			}
			pps, err := wireCase(ctx, o, model, burst)
			if err != nil {
				return fmt.Errorf("wire %s: %w", name, err)
			}
			if err := emit(Row{Bench: "wire", Case: name, Value: pps, Unit: "pps"}); err != nil {
				return err
			}
		}
	}
	return nil
}

func wireCase(ctx context.Context, o *Options, model string, burst int) (best float64, err error) {
	r, err := newRig(ctx, o, model, 4096, 2)
	if err != nil {
		return 0, err
	}
	defer r.close()
	sink, err := netdev.NewSink(r.nets[1])
	if err != nil {
		return 0, err
	}
	defer sink.Close()
	count := uint64(400_000 * o.Time.Seconds())
	if err := r.write("eth0", fmt.Sprintf("count %d", count), "clone_skb 0", fmt.Sprintf("pkt_size %d", frameSize), fmt.Sprintf("burst %d", burst),
		"dst 10.0.0.2", "dst_mac "+r.nets[1].MAC().String()); err != nil {
		return 0, err
	}
	for range o.Pairs {
		before := sink.Frames()
		pps, sent, err := r.run(ctx)
		if err != nil {
			return 0, err
		}
		got := uint64(0)
		for deadline := time.Now().Add(3 * time.Second); ; time.Sleep(time.Millisecond) {
			if got = sink.Frames() - before; got >= sent || time.Now().After(deadline) {
				break
			}
		}
		if got != sent {
			return 0, fmt.Errorf("sent %d, received %d", sent, got)
		}
		best = max(best, pps)
	}
	return best, nil
}
