package pktgen

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// How much of what there is is shown.
const (
	shownFlows = 64
	shownRuns  = 16
)

// rxView is what a receiver's file shows, copied under the lock.
type rxView struct {
	active  bool
	verify  int
	result  string
	seen    [verdicts]uint64
	sum     totals
	runs    []run // with frames, in the order in which they began
	begun   uint64
	flows   []rxFlow // the other flows are the last
	fresh   bool     // no frame of pktgen's yet
	bytes   uint64
	from    int64
	to      int64
	noStamp uint64
	bad     uint64
	latency span
	hist    histogram

	restarts, gap uint64
}

// view copies what is shown.
func (r *Rx) view() *rxView {
	v := &rxView{}
	r.mu.Lock()
	n := 0
	if r.state != nil {
		n = r.state.table.n + 1
	}
	r.mu.Unlock()
	v.flows = make([]rxFlow, n+n/8+16) // with some room, and not while frames wait
	r.mu.Lock()
	defer r.mu.Unlock()
	r.keepAll() // what was seen stays
	v.active, v.verify, v.result, v.seen = r.active.Load(), r.verify, r.result, r.seen
	s := r.state
	if s == nil {
		v.flows, v.fresh = nil, true
		return v
	}
	v.sum, v.begun = s.past, s.begun
	v.restarts, v.gap = s.restarts, s.gap
	v.bytes, v.from, v.to = s.bytes, s.started, s.ended
	v.noStamp, v.bad, v.latency, v.hist = s.noStamp, s.badStamp, s.latency, s.histogram
	flows := v.flows[:0]
	flows = append(flows, s.table.flows[:s.table.n]...)
	for i := range s.runs {
		x := &s.runs[i]
		if x.frames == 0 {
			continue
		}
		v.sum.add(x)
		v.runs = append(v.runs, *x)
		_, doubled := x.pending()
		if x.at != noFlow && int(x.at) < len(flows) {
			flows[x.at].doubled += doubled
		}
		if !x.mixed && x.flow != noFlow && int(x.flow) < len(flows) {
			flows[x.flow].lost += x.lost()
		}
	}
	v.flows = append(flows, s.table.flows[otherFlow])
	return v
}

// show writes the receiver's file.
func (r *Rx) show(w *bytes.Buffer) error {
	v := r.view()
	fmt.Fprintf(w, "Params: active: %d  verify: %d\n", number01(v.active), v.verify)
	fmt.Fprintf(w, "     ifname: %s\n", r.name)
	v.showCurrent(w)
	v.showLatency(w)
	v.showRuns(w)
	v.showFlows(w)
	fmt.Fprintf(w, "Result: %s\n", cmp.Or(v.result, "Idle"))
	return nil
}

func number01(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (v *rxView) showCurrent(w *bytes.Buffer) {
	n := &v.seen
	w.WriteString("Current:\n")
	fmt.Fprintf(w, "     received: %d  bytes: %d  other: %d\n", n[rxGood], v.bytes, n[rxOther])
	fmt.Fprintf(w, "     lost: %d  duplicated: %d  reordered: %d  clones: %d\n", v.sum.lost, v.sum.doubled, v.sum.reordered, v.sum.clones)
	fmt.Fprintf(w, "     corrupted: %d  checksum: %d  header: %d  length: %d  payload: %d\n",
		n[rxSum]+n[rxHeader]+n[rxLength]+n[rxPayload], n[rxSum], n[rxHeader], n[rxLength], n[rxPayload])
	fmt.Fprintf(w, "     no_timestamp: %d  bad_timestamp: %d\n", v.noStamp, v.bad)
	pps := uint64(0)
	if took := v.to - v.from; took > 0 && n[rxGood] > 1 {
		pps = uint64(float64(n[rxGood]-1) * 1e9 / float64(took))
	}
	fmt.Fprintf(w, "     started: %dus  stopped: %dus  pps: %d\n", v.from/1000, v.to/1000, pps)
	fmt.Fprintf(w, "     runs: %d  flows: %d\n", v.begun, max(len(v.flows)-1, 0))
	if v.restarts > 0 {
		fmt.Fprintf(w, "     restarts: %d  lost_in_restarts: %d\n", v.restarts, v.gap)
	}
}

// us is a time of so many ns as it is shown.
func us(ns uint64) string { return fmt.Sprintf("%d.%03d", ns/1000, ns%1000) }

// show writes what is known of latencies; nothing where there are none.
func (s *span) show(w *bytes.Buffer) {
	if s.n > 0 {
		fmt.Fprintf(w, "  min_us: %s  mean_us: %s  max_us: %s", us(s.min), us(s.sum/s.n), us(s.max))
	}
}

// show writes a line with quantiles.
func (h *histogram) show(w *bytes.Buffer, s *span) {
	w.WriteString("    ")
	for _, q := range []struct {
		name string
		q    float64
	}{{"p50", 0.5}, {"p90", 0.9}, {"p99", 0.99}, {"p99.9", 0.999}} {
		fmt.Fprintf(w, " %s_us: %s ", q.name, us(h.quantile(q.q, s)))
	}
	w.Truncate(w.Len() - 1)
	w.WriteByte('\n')
}

func (v *rxView) showLatency(w *bytes.Buffer) {
	fmt.Fprintf(w, "Latency:\n     samples: %d", v.latency.n)
	v.latency.show(w)
	w.WriteByte('\n')
	if v.latency.n == 0 {
		return
	}
	v.hist.show(w, &v.latency)
	for _, p := range v.hist.powers() {
		fmt.Fprintf(w, "     bucket_us: %s  frames: %d\n", us(p.from), p.n)
	}
}

// showRuns writes the runs that had frames last.
func (v *rxView) showRuns(w *bytes.Buffer) {
	if v.fresh {
		return
	}
	w.WriteString("Runs:\n")
	slices.SortStableFunc(v.runs, func(a, b run) int { return cmp.Compare(b.last, a.last) })
	shown := v.runs[:min(len(v.runs), shownRuns)]
	slices.SortStableFunc(shown, func(a, b run) int { return cmp.Compare(a.begun, b.begun) })
	for i := range shown {
		x := &shown[i]
		var t totals
		t.add(x)
		fmt.Fprintf(w, "     seq: %d  received: %d  lost: %d  duplicated: %d  reordered: %d  clones: %d  started: %dus  stopped: %dus\n",
			x.newest, t.frames, t.lost, t.doubled, t.reordered, t.clones, x.begun/1000, x.last/1000)
	}
}

// showFlows writes the flows with most frames, and the sum of those that the table had no room for.
func (v *rxView) showFlows(w *bytes.Buffer) {
	if v.fresh {
		return
	}
	w.WriteString("Flows:\n")
	flows, others := v.flows[:len(v.flows)-1], &v.flows[len(v.flows)-1]
	order := make([]*rxFlow, len(flows))
	for i := range flows {
		order[i] = &flows[i]
	}
	slices.SortFunc(order, byFrames)
	for _, f := range order[:min(len(order), shownFlows)] {
		src, dst, vlans := f.key.addrs()
		fmt.Fprintf(w, "     src: %s  dst: %s", src, dst)
		for i, id := range vlans {
			fmt.Fprintf(w, "%s%d", []string{"  vlan: ", ","}[min(i, 1)], id)
		}
		f.show(w)
	}
	if others.frames > 0 {
		w.WriteString("     others:")
		others.mixed = true
		others.show(w)
	}
}

// show writes the numbers of a flow.
func (f *rxFlow) show(w *bytes.Buffer) {
	fmt.Fprintf(w, "  received: %d  bytes: %d  lost: ", f.frames, f.bytes)
	if f.mixed {
		w.WriteByte('-')
	} else {
		fmt.Fprintf(w, "%d", f.lost)
	}
	fmt.Fprintf(w, "  duplicated: %d  reordered: %d", f.doubled, f.reordered)
	f.latency.show(w)
	w.WriteByte('\n')
}

// store takes one write to the receiver's file.
func (r *Rx) store(_ context.Context, p []byte) (int, error) {
	if len(p) == 0 {
		return 0, unix.EINVAL
	}
	s, name := scan(p, r.eng.prof, nameLen)
	r.mu.Lock()
	defer r.mu.Unlock()
	switch name {
	case "clear_counters":
		r.clear()
		r.keepAll()
		r.result, _ = ok("Clearing counters.")
	case "active":
		on := s.num(digits) != 0
		r.active.Store(on)
		r.result, _ = ok("active=%d", number01(on))
	case "verify":
		r.verify = int(min(s.num(digits), maxVerify))
		r.result, _ = ok("verify=%d", r.verify)
	default:
		r.result = `No such parameter "` + name + `"`
		return 0, unix.EINVAL
	}
	return len(p), nil
}

// maxVerify is the length of the longest frame that there could be.
const maxVerify = 1 << 16
