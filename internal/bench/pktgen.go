package bench

import (
	"context"
	"errors"
	"fmt"

	"github.com/ring3dev/ring3/drivers/e1000"
)

// randomFields makes every field of a packet random.
var randomFields = []string{
	"src_mac 02:00:00:00:00:01", "src_mac_count 1000", "dst_mac_count 1000", "flag MACSRC_RND", "flag MACDST_RND",
	"src_min 10.1.0.1", "src_max 10.1.255.254", "flag IPSRC_RND", "dst_min 10.2.0.1", "dst_max 10.2.255.254", "flag IPDST_RND",
	"udp_src_min 1024", "udp_src_max 65535", "flag UDPSRC_RND", "udp_dst_min 1024", "udp_dst_max 65535", "flag UDPDST_RND",
}

// pktgenCase is a way to use the generator.
type pktgenCase struct {
	name             string
	devices, threads int
	size, burst      int
	commands         []string
}

func pktgenCases() (cs []pktgenCase) {
	for _, b := range []int{256, 1024} {
		cs = append(cs, pktgenCase{name: fmt.Sprintf("clone_skb=1000 burst=%d", b), burst: b, commands: []string{"clone_skb 1000"}})
	}
	cs = append(cs, pktgenCase{name: "every field random burst=256", commands: randomFields})
	for _, n := range []int{512, 1514, 9014} {
		cs = append(cs, pktgenCase{name: fmt.Sprintf("size=%d burst=256", n), size: n})
	}
	cs = append(cs, pktgenCase{name: "1 device 2 threads burst=256", threads: 2},
		pktgenCase{name: "2 devices 1 thread burst=256", devices: 2}, pktgenCase{name: "2 devices 2 threads burst=256", devices: 2, threads: 2})
	for i := range cs {
		c := &cs[i]
		c.devices, c.threads = max(c.devices, 1), max(c.threads, 1)
		if c.size == 0 {
			c.size = frameSize
		}
		if c.burst == 0 {
			c.burst = 256
		}
	}
	return cs
}

// pktgenUses compares pktgen in its various uses with the model's limit for that size of frames, one device and one
// thread: devices of one QEMU share its CPU.
func pktgenUses(ctx context.Context, o *Options, emit func(Row) error) error {
	for _, model := range models {
		for _, c := range pktgenCases() {
			name := model + " " + c.name
			if !o.wants("pktgen", name) {
				continue
			}
			row, err := pktgenUse(ctx, o, model, c)
			if errors.Is(err, errOneCPU) {
				continue
			}
			if err != nil {
				return fmt.Errorf("pktgen %s: %w", name, err)
			}
			row.Case = name
			if err := emit(row); err != nil {
				return err
			}
		}
	}
	return nil
}

var errOneCPU = errors.New("there is but one CPU")

func pktgenUse(ctx context.Context, o *Options, model string, c pktgenCase) (_ Row, err error) {
	options := ringOf(4096)
	if c.size > 1514 {
		options["mtu"] = "9000"
	}
	r, err := newRigOf(ctx, o, rigSpec{model: model, options: options, n: c.devices, apart: true})
	if err != nil {
		return Row{}, err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	names, err := r.spread(c)
	if err != nil {
		return Row{}, err
	}
	for _, n := range names {
		if err := r.write(n, append([]string{"clone_skb 0", fmt.Sprintf("pkt_size %d", c.size), fmt.Sprintf("burst %d", c.burst), "dst 10.0.0.2", "dst_mac 02:00:00:00:00:02"}, c.commands...)...); err != nil {
			return Row{}, err
		}
	}
	var limits, values, ratios []float64
	for i := range o.Pairs + 1 {
		limit, err := e1000.BareTransmit(ctx, r.insts[0], make([]byte, c.size), c.burst, o.Time)
		if err != nil {
			return Row{}, err
		}
		for _, n := range names {
			if err := r.write(n, fmt.Sprintf("count %d", max(uint64(limit*o.Time.Seconds())/uint64(len(names)), 1000))); err != nil {
				return Row{}, err
			}
		}
		if _, _, err := r.run(ctx); err != nil {
			return Row{}, err
		}
		sum := 0.0
		for _, n := range names {
			pps, _, err := r.result(n)
			if err != nil {
				return Row{}, err
			}
			sum += pps
		}
		if i > 0 { // the first warms up
			limits, values, ratios = append(limits, limit), append(values, sum), append(ratios, sum/limit)
		}
	}
	return Row{Bench: "pktgen", Value: median(values), Unit: "pps", Limit: median(limits), Ratio: median(ratios), Samples: ratios}, nil
}

// spread adds a case's devices to its threads, and returns their names.
func (r *rig) spread(c pktgenCase) ([]string, error) {
	names := []string{"eth0"}
	if c.threads > 1 {
		if _, err := r.file("kpktgend_1"); err != nil {
			return nil, errOneCPU
		}
	}
	thread := fmt.Sprintf("kpktgend_%d", c.threads-1)
	switch {
	case c.devices > 1:
		names = append(names, "eth1")
	case c.threads > 1:
		names = append(names, "eth0@1")
	default:
		return names, nil
	}
	return names, r.write(thread, "add_device "+names[1])
}
