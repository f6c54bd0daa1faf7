package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ring3dev/ring3/bus"
)

// iommu compares transmitting through QEMU's IOMMU with transmitting past it, on two machines
// in turn, and says what taking and giving back DMA memory costs.
func iommu(ctx context.Context, o *Options, emit func(Row) error) error {
	var cases []string
	for _, ring := range rings {
		for _, b := range []int{32, 256} {
			cases = append(cases, fmt.Sprintf("pktgen-tx e1000e ring=%d burst=%d", ring, b))
		}
	}
	const memory = "alloc and free 64 KiB"
	if !o.wantsAny("iommu", append(cases, memory)) {
		return nil
	}
	for _, ring := range rings {
		var rigs [2]*rig
		err := func() (err error) {
			for i := range rigs {
				if rigs[i], err = newRigOf(ctx, o, rigSpec{model: "e1000e", iommu: i == 1, options: ringOf(ring), n: 1}); err != nil {
					return err
				}
			}
			for _, burst := range []int{32, 256} {
				name := fmt.Sprintf("pktgen-tx e1000e ring=%d burst=%d", ring, burst)
				if !o.wants("iommu", name) {
					continue
				}
				row, err := pairTx(ctx, o, rigs, burst, 500_000)
				if err != nil {
					return fmt.Errorf("iommu %s: %w", name, err)
				}
				row.Bench, row.Case = "iommu", name
				if err := emit(row); err != nil {
					return err
				}
			}
			if ring == rings[0] && o.wants("iommu", memory) {
				row, err := iommuMemory(rigs)
				if err != nil {
					return fmt.Errorf("iommu %s: %w", memory, err)
				}
				row.Case = memory
				return emit(row)
			}
			return nil
		}()
		for _, r := range rigs {
			if r != nil {
				err = errors.Join(err, r.close())
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// pairTx is pktgen's rate on the first rig (the limit) and on the second, in turn; about pps of frames
// are expected.
func pairTx(ctx context.Context, o *Options, rigs [2]*rig, burst int, pps float64) (Row, error) {
	var limits, values, ratios []float64
	count := uint64(pps * o.Time.Seconds())
	for i := range o.Pairs + 1 {
		var rate [2]float64
		for j, r := range rigs {
			if err := r.write("eth0", fmt.Sprintf("count %d", max(count, 1000)), "clone_skb 0", "delay 0", fmt.Sprintf("pkt_size %d", frameSize),
				fmt.Sprintf("burst %d", burst), "dst 10.0.0.2", "dst_mac 02:00:00:00:00:02"); err != nil {
				return Row{}, err
			}
			var err error
			if rate[j], _, err = r.run(ctx); err != nil {
				return Row{}, err
			}
		}
		if i == 0 {
			continue // warm-up
		}
		limits, values, ratios = append(limits, rate[0]), append(values, rate[1]), append(ratios, rate[1]/rate[0])
	}
	return Row{Value: median(values), Unit: "pps", Limit: median(limits), Ratio: median(ratios), Samples: ratios}, nil
}

// iommuMemory is how long it takes to get 64 KiB and give it back: with an IOMMU it waits
// until the device cannot reach it any more.
func iommuMemory(rigs [2]*rig) (Row, error) {
	var us [2]float64
	const times = 200
	for i, r := range rigs {
		dev, err := r.m.Device("eth0")
		if err != nil {
			return Row{}, err
		}
		begin := time.Now()
		for range times {
			m, err := dev.DMA().Alloc(bus.DMARequest{Size: 64 << 10})
			if err != nil {
				return Row{}, err
			}
			m.Free()
		}
		us[i] = float64(time.Since(begin).Microseconds()) / times
	}
	return Row{Bench: "iommu", Value: us[1], Unit: "us", Limit: us[0], Ratio: us[1] / us[0]}, nil
}
