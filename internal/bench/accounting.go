package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"runtime"
	"strconv"
	"time"

	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/internal/frame"
	"github.com/ring3dev/ring3/netdev"
	"github.com/ring3dev/ring3/pktgen"
)

// accounting measures pktgen's receive side: what it costs the rate of two wired NICs, what a frame costs, and the
// latency that it finds on a wire with little load.
func accounting(ctx context.Context, o *Options, emit func(Row) error) error {
	for _, s := range []rigSpec{{sim: true, model: "e1000e"}, {model: "e1000e"}, {model: "e1000"}} {
		if err := accountingWired(ctx, o, s, emit); err != nil {
			return err
		}
	}
	for _, c := range []struct {
		name  string
		other bool
	}{{"null", false}, {"null other frames", true}} {
		if !o.wantsAny("rx", []string{c.name, c.name + " allocations"}) {
			continue
		}
		if err := accountingNull(ctx, o, c.name, c.other, emit); err != nil {
			return fmt.Errorf("rx %s: %w", c.name, err)
		}
	}
	return nil
}

// latencies are the figures of a receiver's file that are rows.
var latencies = []string{"p50", "p99", "p99.9", "max"}

// latencyCases are the rows of a model, without and with a collector that is busy.
func latencyCases(name string) (quiet, collecting []string) {
	for _, l := range latencies {
		c := fmt.Sprintf("%s at 10%% %s", name, l)
		quiet, collecting = append(quiet, c), append(collecting, c+" collecting")
	}
	return quiet, collecting
}

// accountingWired measures two wired NICs.
func accountingWired(ctx context.Context, o *Options, s rigSpec, emit func(Row) error) error {
	name := s.model
	if s.sim {
		name = "sim:" + name
	}
	wired := fmt.Sprintf("wired %s burst=256", name)
	delays, collecting := latencyCases(name)
	if !o.wants("rx", wired) && !o.wantsAny("latency", delays) && !o.wantsAny("latency", collecting) {
		return nil
	}
	w, err := newWired(ctx, o, s)
	if err != nil {
		return err
	}
	defer w.close()
	if o.wants("rx", wired) {
		row, err := w.inTurn(ctx, o)
		if err != nil {
			return fmt.Errorf("rx %s: %w", wired, err)
		}
		row.Case = wired
		if err := emit(row); err != nil {
			return err
		}
	}
	if !o.wantsAny("latency", delays) && !o.wantsAny("latency", collecting) {
		return nil
	}
	values, err := w.latency(ctx, o)
	if err != nil {
		return fmt.Errorf("latency %s: %w", name, err)
	}
	for i, v := range values {
		if o.wants("latency", delays[i]) {
			if err := emit(Row{Bench: "latency", Case: delays[i], Value: median(v), Unit: "us", Samples: v}); err != nil {
				return err
			}
		}
	}
	return w.collected(ctx, o, collecting, values, emit)
}

// collected measures the same latencies while something else in the process keeps Go's collector busy. The limit is the
// row without that.
func (w *wiredRig) collected(ctx context.Context, o *Options, cases []string, quiet [][]float64, emit func(Row) error) error {
	if !o.wantsAny("latency", cases) {
		return nil
	}
	stop := litter()
	defer stop()
	values, err := w.latency(ctx, o)
	if err != nil {
		return fmt.Errorf("latency while collecting: %w", err)
	}
	for i, v := range values {
		limit, value := median(quiet[i]), median(v)
		if !o.wants("latency", cases[i]) {
			continue
		}
		if err := emit(Row{Bench: "latency", Case: cases[i], Value: value, Unit: "us", Limit: limit, Ratio: value / limit, Samples: v}); err != nil {
			return err
		}
	}
	return nil
}

// litter allocates some 100 MB a second, of which a little lives for a while, until it is stopped: a collection every few
// dozen milliseconds.
func litter() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		kept := make([][]byte, 256)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for i := 0; ctx.Err() == nil; {
			for range 25 {
				kept[i%len(kept)] = make([]byte, 4096)
				i++
			}
			<-tick.C
		}
	}()
	return func() { cancel(); <-done }
}

// wiredRig is two wired NICs, one of which sends, while the other receives and, if that is wanted, accounts.
type wiredRig struct {
	*rig
	sink *netdev.Sink
	rx   *pktgen.Rx
}

func newWired(ctx context.Context, o *Options, s rigSpec) (*wiredRig, error) {
	s.n, s.options = 2, ringOf(4096)
	r, err := newRigOf(ctx, o, s)
	if err != nil {
		return nil, err
	}
	w := &wiredRig{rig: r}
	if w.rx, err = r.gen.AddRx("eth1"); err == nil {
		w.sink, err = netdev.NewSink(r.nets[1])
	}
	if err != nil {
		return nil, errors.Join(err, r.close())
	}
	return w, r.write("eth0", "clone_skb 0", fmt.Sprintf("pkt_size %d", frameSize), "dst 10.0.0.2", "dst_mac "+r.nets[1].MAC().String())
}

func (w *wiredRig) close() {
	_ = w.sink.Close()
	_ = w.rig.close()
}

// send sends and waits until everything was received.
func (w *wiredRig) send(ctx context.Context, count uint64, account bool, commands ...string) (pps float64, err error) {
	w.sink.Watch(nil)
	if account {
		w.sink.Watch(w.rx.Take)
	}
	if err := w.write("eth0", append(commands, fmt.Sprintf("count %d", count))...); err != nil {
		return 0, err
	}
	if err := w.write("eth1.rx", "clear_counters"); err != nil {
		return 0, err
	}
	before := w.sink.Frames()
	pps, sent, err := w.run(ctx)
	if err != nil {
		return 0, err
	}
	for end := time.Now().Add(3 * time.Second); w.sink.Frames()-before < sent; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			return 0, fmt.Errorf("sent %d, received %d", sent, w.sink.Frames()-before)
		}
	}
	if account {
		lost, err := w.figure("lost")
		if err != nil {
			return 0, err
		}
		got, err := w.figure("received")
		if err != nil {
			return 0, err
		}
		if uint64(got) != sent || lost != 0 {
			return 0, fmt.Errorf("sent %d, accounted for %v, lost %v", sent, got, lost)
		}
	}
	return pps, nil
}

// figure is a number of the receiver's file.
func (w *wiredRig) figure(name string) (float64, error) {
	f, err := w.file("eth1.rx")
	if err != nil {
		return 0, err
	}
	b, err := f.ReadAll()
	if err != nil {
		return 0, err
	}
	m := regexp.MustCompile(`[ \n]` + regexp.QuoteMeta(name) + `: ([0-9.]+)`).FindSubmatch(b)
	if m == nil {
		return 0, fmt.Errorf("bench: no %s in %s", name, b)
	}
	return strconv.ParseFloat(string(m[1]), 64)
}

// inTurn sends without and with accounting; the limit is the rate without.
func (w *wiredRig) inTurn(ctx context.Context, o *Options) (Row, error) {
	count := uint64(100_000)
	var limits, values, ratios []float64
	for i := range o.Pairs + 1 {
		limit, err := w.send(ctx, count, false, "burst 256", "delay 0")
		if err != nil {
			return Row{}, err
		}
		value, err := w.send(ctx, count, true)
		if err != nil {
			return Row{}, err
		}
		if i > 0 {
			limits, values, ratios = append(limits, limit), append(values, value), append(ratios, value/limit)
		}
		count = max(uint64(limit*o.Time.Seconds()), 1000)
	}
	return Row{Bench: "rx", Value: median(values), Unit: "pps", Limit: median(limits), Ratio: median(ratios), Samples: ratios}, nil
}

// latency sends one frame at a time, a tenth as fast as it can, and returns the latencies found, in us, several of each.
func (w *wiredRig) latency(ctx context.Context, o *Options) ([][]float64, error) {
	full, count := 0.0, uint64(10_000)
	for range 2 { // the first is a warm-up
		var err error
		if full, err = w.send(ctx, count, true, "burst 1", "delay 0"); err != nil {
			return nil, err
		}
		count = max(uint64(full*o.Time.Seconds()), 1000)
	}
	all := make([][]float64, len(latencies))
	for range o.Pairs {
		if _, err := w.send(ctx, max(count/10, 1000), true, fmt.Sprintf("ratep %d", int(full/10))); err != nil {
			return nil, err
		}
		for i, l := range latencies {
			v, err := w.figure(l + "_us")
			if err != nil {
				return nil, err
			}
			all[i] = append(all[i], v)
		}
	}
	return all, nil
}

// accountingNull measures what a frame costs, as the difference between receiving with and without, on a model that
// always has some; and the allocations.
func accountingNull(ctx context.Context, o *Options, name string, other bool, emit func(Row) error) error {
	r, err := newRigOf(ctx, o, rigSpec{sim: true, model: "null", props: []string{fmt.Sprintf("rx=%d", frameSize)}, options: ringOf(1024), n: 1})
	if err != nil {
		return err
	}
	defer r.close()
	rx, err := r.gen.AddRx("eth0")
	if err != nil {
		return err
	}
	f, err := pktgenFrame(time.Now())
	if err != nil {
		return err
	}
	if other {
		f[42]++
	}
	q := r.nets[0].Rx(0)
	defer q.Burst(nil)
	bufs := make([]*dma.Buf, 32)
	seq := uint32(0)
	receive := func(d time.Duration, account bool) (n uint64, took time.Duration) {
		begin := time.Now()
		for took < d {
			for range 64 { // between two looks at the clock
				k := q.Burst(bufs)
				for _, b := range bufs[:k] {
					if len(b.Data) == len(f) {
						copy(b.Data, f)
						seq++
						binary.BigEndian.PutUint32(b.Data[46:], seq)
					}
				}
				if account {
					rx.Take(bufs[:k])
				}
				dma.FreeAll(bufs[:k])
				n += uint64(k)
			}
			took = time.Since(begin)
		}
		return n, took
	}
	var costs []float64
	allocs := 0.0
	for i := range o.Pairs + 1 {
		n0, t0 := receive(o.Time, false)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		n1, t1 := receive(o.Time, true)
		runtime.ReadMemStats(&after)
		if n0 == 0 || n1 == 0 {
			return errors.New("nothing was received")
		}
		if i > 0 { // the first was a warm-up
			costs = append(costs, float64(t1.Nanoseconds())/float64(n1)-float64(t0.Nanoseconds())/float64(n0))
			allocs = max(allocs, float64(after.Mallocs-before.Mallocs)/float64(n1))
		}
	}
	for _, row := range []Row{{Case: name, Value: median(costs), Unit: "ns", Samples: costs}, {Case: name + " allocations", Value: allocs, Unit: "1"}} {
		row.Bench = "rx"
		if o.wants("rx", row.Case) {
			if err := emit(row); err != nil {
				return err
			}
		}
	}
	return nil
}

// pktgenFrame is one of pktgen's smallest frames.
func pktgenFrame(at time.Time) ([]byte, error) {
	p := make([]byte, frameSize-14-28)
	binary.BigEndian.PutUint32(p, frame.Magic)
	binary.BigEndian.PutUint32(p[8:], uint32(at.Unix()))
	f, err := frame.Build(frame.Spec{TTL: 32, SrcIP: netip.MustParseAddr("10.0.0.1"), DstIP: netip.MustParseAddr("10.0.0.2"), SrcPort: 9, DstPort: 9, Payload: p, NoUDPChecksum: true})
	return f.Bytes, err
}
