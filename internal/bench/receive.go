package bench

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/internal/frame"
	"github.com/ring3dev/ring3/netdev"
)

// What "Improvements in the e1000 driver" (Ottawa Linux Symposium 2005) observed of that
// driver in the kernel, as rows: frames dropped and received by weight, interrupts and latency by
// moderation, and where polling that falls back to interrupts hurts.

// receiver is the second device's end: it takes frames until it is closed.
type receiver struct {
	frames  atomic.Uint64
	arrived chan struct{} // there were some
	cancel  context.CancelFunc
	done    chan error
}

// newReceiver polls; work is done to each frame.
func newReceiver(d netdev.Device, work func(frame []byte)) *receiver {
	ctx, cancel := context.WithCancel(context.Background())
	r := &receiver{arrived: make(chan struct{}, 1), cancel: cancel, done: make(chan error, 1)}
	go func() {
		r.done <- netdev.Poll(ctx, d.Rx(0), func(frames []*dma.Buf) {
			for _, b := range frames {
				work(b.Data)
				b.Free()
			}
			r.frames.Add(uint64(len(frames)))
			select {
			case r.arrived <- struct{}{}:
			default:
			}
		})
	}()
	return r
}

func (r *receiver) close() error {
	r.cancel()
	return <-r.done
}

// settled waits until nothing arrives any more and returns how many frames did.
func (r *receiver) settled() uint64 {
	n := r.frames.Load()
	for {
		time.Sleep(20 * time.Millisecond)
		if m := r.frames.Load(); m == n {
			return n
		} else {
			n = m
		}
	}
}

// weight sends more to a device than its driver, which works a little on each frame, takes from a small ring: what is received of
// what was sent, by how many frames are taken at a time. The wire loses what finds no
// descriptor.
func weight(ctx context.Context, o *Options, emit func(Row) error) error {
	for _, w := range []int{64, 32, 16} {
		name := fmt.Sprintf("weight=%d ring=64", w)
		if !o.wants("weight", name) {
			continue
		}
		row, err := weightCase(ctx, o, w)
		if err != nil {
			return fmt.Errorf("weight %s: %w", name, err)
		}
		row.Case = name
		if err := emit(row); err != nil {
			return err
		}
	}
	return nil
}

func weightCase(ctx context.Context, o *Options, w int) (_ Row, err error) {
	r, err := newRigOf(ctx, o, rigSpec{sim: true, model: "e1000e", n: 2, lossy: true, options: map[string]string{"ring": "64", "weight": strconv.Itoa(w)}})
	if err != nil {
		return Row{}, err
	}
	defer r.close()
	var sum uint16
	rx := newReceiver(r.nets[1], func(f []byte) {
		for range 8 { // what a small network stack would look at
			sum ^= frame.Sum(f)
		}
	})
	defer func() { err = errors.Join(err, rx.close()) }()
	count := uint64(1_000_000 * o.Time.Seconds())
	if err := r.write("eth0", fmt.Sprintf("count %d", count), "clone_skb 0", fmt.Sprintf("pkt_size %d", frameSize), "burst 32", "delay 28000",
		"dst 10.0.0.2", "dst_mac "+r.nets[1].MAC().String()); err != nil {
		return Row{}, err
	}
	var limits, values, ratios []float64
	for i := range o.Pairs + 1 {
		before := rx.settled()
		pps, sent, err := r.run(ctx)
		if err != nil {
			return Row{}, err
		}
		part := float64(rx.settled()-before) / float64(sent)
		if i > 0 {
			limits, values, ratios = append(limits, pps), append(values, part*pps), append(ratios, part)
		}
	}
	return Row{Bench: "weight", Value: median(values), Unit: "pps", Limit: median(limits), Ratio: median(ratios), Samples: ratios}, nil
}

// interrupts is how often the receive queue of a device interrupted.
func interrupts(inst pci.Instance) (n uint64) {
	u, ok := inst.(pci.IRQUser)
	if !ok {
		return 0
	}
	for _, h := range u.IRQHandlers() {
		if h.Name() == "eth1-rx-0" || h.Name() == "eth1" && len(u.IRQHandlers()) == 1 {
			for _, c := range h.Counts() {
				n += c
			}
		}
	}
	return n
}

// moderation sends frames at a steady pace, and then one at a time, by the driver's setting: how often
// the receiver interrupts, and how long a frame takes.
func moderation(ctx context.Context, o *Options, emit func(Row) error) error {
	for _, itr := range []string{"0", "20000", "8000", "2000", "adaptive"} {
		rate, latency := fmt.Sprintf("itr=%s interrupts", itr), fmt.Sprintf("itr=%s latency p90", itr)
		if !o.wantsAny("itr", []string{rate, latency}) {
			continue
		}
		rows, err := moderationCase(ctx, o, itr)
		if err != nil {
			return fmt.Errorf("itr=%s: %w", itr, err)
		}
		rows[0].Case, rows[1].Case = rate, latency
		for _, row := range rows {
			if o.wants("itr", row.Case) {
				if err := emit(row); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func moderationCase(ctx context.Context, o *Options, itr string) (rows []Row, err error) {
	r, err := newRigOf(ctx, o, rigSpec{model: "e1000e", n: 2, options: map[string]string{"ring": "1024", "itr": itr}})
	if err != nil {
		return nil, err
	}
	defer r.close()
	rx := newReceiver(r.nets[1], func([]byte) {})
	defer func() { err = errors.Join(err, rx.close()) }()
	perSecond, _, err := r.paced(ctx, o, rx, 100*time.Microsecond)
	if err != nil {
		return nil, err
	}
	p90, err := r.oneByOne(ctx, rx, 300)
	if err != nil {
		return nil, err
	}
	return []Row{{Bench: "itr", Value: perSecond, Unit: "1/s"}, {Bench: "itr", Value: p90, Unit: "us"}}, nil
}

// paced sends a frame every gap and returns the receiver's interrupts a second and a frame.
func (r *rig) paced(ctx context.Context, o *Options, rx *receiver, gap time.Duration) (perSecond, perFrame float64, err error) {
	count := max(uint64(o.Time/gap), 100)
	if err := r.write("eth0", fmt.Sprintf("count %d", count), "clone_skb 0", fmt.Sprintf("pkt_size %d", frameSize), "burst 1", fmt.Sprintf("delay %d", gap.Nanoseconds()),
		"dst 10.0.0.2", "dst_mac "+r.nets[1].MAC().String()); err != nil {
		return 0, 0, err
	}
	before, begin := interrupts(r.insts[1]), time.Now()
	if _, _, err := r.run(ctx); err != nil {
		return 0, 0, err
	}
	took := time.Since(begin)
	if got := rx.settled(); got < count {
		return 0, 0, fmt.Errorf("sent %d, received %d", count, got)
	}
	n := float64(interrupts(r.insts[1]) - before)
	return n / took.Seconds(), n / float64(count), nil
}

// oneByOne sends frames, each a little after the one before has arrived, and returns the 90th percentile of the
// times they took, in microseconds.
func (r *rig) oneByOne(ctx context.Context, rx *receiver, times int) (float64, error) {
	q := r.nets[0].Tx(0)
	pool, err := netdev.NewTxPool(q, 4, frameSize)
	if err != nil {
		return 0, err
	}
	var took []time.Duration
	for range times {
		b := pool.Get()
		if b == nil {
			q.Reap()
			if b = pool.Get(); b == nil {
				return 0, errors.New("no buffer came back")
			}
		}
		b.Data = b.Mem[:frameSize]
		clear(b.Data)
		copy(b.Data, r.nets[1].MAC())
		// The receiver goes to sleep. This does not: it would for longer than most intervals last.
		for end := time.Now().Add(50 * time.Microsecond); time.Now().Before(end); {
			runtime.Gosched()
		}
		select {
		case <-rx.arrived: // left over
		default:
		}
		begin := time.Now()
		if q.Burst([]*dma.Buf{b}) != 1 {
			return 0, errors.New("the queue took no frame")
		}
		select {
		case <-rx.arrived:
		case <-time.After(5 * time.Second):
			return 0, errors.New("a frame did not arrive within 5s")
		}
		took = append(took, time.Since(begin))
	}
	if err := q.Drain(ctx); err != nil {
		return 0, err
	}
	pool.Close()
	slices.Sort(took)
	return float64(quantile(took, 0.9).Nanoseconds()) / 1e3, nil
}

// polling is where polling hurts: frames come slower than the driver polls, so it finds nothing,
// arms the interrupt, and is interrupted for nearly every frame. napi_defer_hard_irqs with
// gro_flush_timeout keeps it polling; moderation makes it wait.
func polling(ctx context.Context, o *Options, emit func(Row) error) error {
	for _, c := range []struct {
		name    string
		napi    netdev.NAPI
		options map[string]string
	}{
		{"every 100 us", netdev.NAPI{}, nil},
		{"every 100 us deferred", netdev.NAPI{DeferHardIRQs: 2, GROFlushTimeout: 200 * time.Microsecond}, nil},
		{"every 100 us itr=4000", netdev.NAPI{}, map[string]string{"itr": "4000"}},
	} {
		name := "interrupts a frame, " + c.name
		if !o.wants("polling", name) {
			continue
		}
		perFrame, err := pollingCase(ctx, o, c.napi, c.options)
		if err != nil {
			return fmt.Errorf("polling %s: %w", name, err)
		}
		if err := emit(Row{Bench: "polling", Case: name, Value: perFrame, Unit: "1"}); err != nil {
			return err
		}
	}
	return nil
}

func pollingCase(ctx context.Context, o *Options, n netdev.NAPI, options map[string]string) (perFrame float64, err error) {
	r, err := newRigOf(ctx, o, rigSpec{model: "e1000e", n: 2, options: options})
	if err != nil {
		return 0, err
	}
	defer r.close()
	if u, ok := r.nets[1].(netdev.NAPIUser); ok {
		if err := u.SetNAPI(n); err != nil {
			return 0, err
		}
	}
	rx := newReceiver(r.nets[1], func([]byte) {})
	defer func() { err = errors.Join(err, rx.close()) }()
	_, perFrame, err = r.paced(ctx, o, rx, 100*time.Microsecond)
	return perFrame, err
}
