package bench

import (
	"context"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// rates measures how exact pktgen's ratep is over ten times the length of a measurement, how late packets were, and how
// much of a CPU waiting for them took.
func rates(ctx context.Context, o *Options, emit func(Row) error) error {
	for _, pps := range []int{100, 10_000, 100_000, 1_000_000} {
		name := fmt.Sprintf("ratep=%d", pps)
		cases := []string{name + " error", name + " late p50", name + " late p99", name + " CPU"}
		if !o.wantsAny("rate", cases) {
			continue
		}
		values, err := rate(ctx, o, pps)
		if err != nil {
			return fmt.Errorf("rate %s: %w", name, err)
		}
		for i, unit := range []string{"%", "us", "us", "%"} {
			if o.wants("rate", cases[i]) {
				if err := emit(Row{Bench: "rate", Case: cases[i], Value: values[i], Unit: unit}); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

var lateness = regexp.MustCompile(`late: .*\n +p50_us: ([0-9.]+)  p90_us: [0-9.]+  p99_us: ([0-9.]+)`)

// rate is one run: its error in percent, the median and the 99th percentile of how late packets were in us, and the
// process's CPU time in percent.
func rate(ctx context.Context, o *Options, pps int) (v [4]float64, err error) {
	r, err := newRigOf(ctx, o, rigSpec{sim: true, model: "null", options: ringOf(1024), n: 1})
	if err != nil {
		return v, err
	}
	defer r.close()
	count := max(int(10*o.Time.Seconds()*float64(pps)), 10)
	if err := r.write("eth0", fmt.Sprintf("ratep %d", pps), fmt.Sprintf("count %d", count), fmt.Sprintf("pkt_size %d", frameSize), "dst 10.0.0.2"); err != nil {
		return v, err
	}
	begin, cpu := time.Now(), cpuTime()
	if _, _, err := r.run(ctx); err != nil {
		return v, err
	}
	v[3] = 100 * (cpuTime() - cpu).Seconds() / time.Since(begin).Seconds()
	f, err := r.file("eth0")
	if err != nil {
		return v, err
	}
	b, err := f.ReadAll()
	if err != nil {
		return v, err
	}
	took, late := resultTook.FindSubmatch(b), lateness.FindSubmatch(b)
	if took == nil || late == nil {
		return v, fmt.Errorf("unexpected result: %s", b)
	}
	us, _ := strconv.ParseFloat(string(took[1]), 64)
	// The first packet is sent when the run begins, so there is one interval less than packets.
	v[0] = 100 * math.Abs(float64(count-1)*1e6/us/float64(pps)-1)
	v[1], _ = strconv.ParseFloat(string(late[1]), 64)
	v[2], err = strconv.ParseFloat(string(late[2]), 64)
	return v, err
}

var resultTook = regexp.MustCompile(`Result: OK: ([0-9]+)\(`)

// cpuTime is what this process has used.
func cpuTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
