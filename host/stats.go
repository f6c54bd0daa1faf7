package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/ring3dev/ring3/internal/figures"
	"github.com/ring3dev/ring3/pktgen"
)

// opStats streams snapshots of what there is to count.
const opStats = "stats"

// statsArgs are its arguments.
type statsArgs struct {
	Interval time.Duration `json:"interval"` // between one snapshot and the next
	Count    int           `json:"count"`    // how many; 0: until the client leaves
}

// Bounds of the interval. A snapshot reads registers of the devices, which are not there for that.
const (
	minInterval = 10 * time.Millisecond
	maxInterval = 24 * time.Hour
)

func (a statsArgs) check() error {
	if a.Interval < minInterval || a.Interval > maxInterval {
		return fmt.Errorf("an interval of %v: want %v to %v", a.Interval, minInterval, maxInterval)
	}
	if a.Count < 0 {
		return fmt.Errorf("%d snapshots: want at least 0", a.Count)
	}
	return nil
}

// Figures are what there is to count, now. Counters are read, and nothing is held up for longer than by a look into
// pktgen's files. Safe for concurrent use, also with Close, after which there is nothing to count.
func (s *System) Figures() *figures.Snapshot {
	s.figuring.RLock()
	defer s.figuring.RUnlock()
	f := &figures.Snapshot{Time: time.Now(), Mono: pktgen.Now(), Devices: []figures.Device{}, Pktgen: []figures.Generator{}, Receivers: []figures.Receiver{}}
	if s.closed {
		return f
	}
	f.Devices = make([]figures.Device, len(s.bound()))
	for i, b := range s.bound() {
		d := &f.Devices[i]
		*d = figures.Device{Name: b.spec.Name, Driver: b.driverName(), Up: b.dev.Err() == nil, Interrupts: []figures.Interrupt{}}
		for _, r := range s.irqs.rowsOf(b) {
			n := uint64(0)
			for _, c := range r.handler.Counts() {
				n += c
			}
			d.Interrupts = append(d.Interrupts, figures.Interrupt{Number: r.number, Name: r.handler.Name(), Count: n})
		}
		if b.net == nil {
			continue
		}
		d.Model = b.net.Info().Model
		d.Net = &figures.Net{Statistics: b.net.Stats()}
		if b.share != nil {
			d.Net.Share = b.share.Figures()
		}
		if l := b.net.Link(); l.Up && d.Up {
			d.Net.Link, d.Net.Speed, d.Net.FullDuplex = true, l.Speed, l.FullDuplex
		}
	}
	for _, r := range s.receivers {
		f.Receivers = append(f.Receivers, figures.Receiver{RxFigures: r.Figures()})
	}
	for _, g := range s.pktgen.Figures() {
		f.Pktgen = append(f.Pktgen, figures.Generator{DeviceFigures: g})
	}
	return f
}

// figures are those of the instance.
func (u *up) figures() *figures.Snapshot {
	f := u.sys.Figures()
	f.Instance = u.in.Name()
	return f
}

// statsHandler answers opStats.
func (u *up) statsHandler(ctx context.Context, raw json.RawMessage, send func(any) error) (any, error) {
	return nil, sendFigures(ctx, raw, send, u.figures)
}

// sendFigures sends what snapshot returns, as often as raw asks for.
func sendFigures(ctx context.Context, raw json.RawMessage, send func(any) error, snapshot func() *figures.Snapshot) error {
	var a statsArgs
	if err := json.Unmarshal(raw, &a); err != nil {
		return fmt.Errorf("stats: arguments: %v: %w", err, syscall.EINVAL)
	}
	if err := a.check(); err != nil {
		return fmt.Errorf("stats: %v: %w", err, syscall.EINVAL)
	}
	tick := time.NewTicker(a.Interval)
	defer tick.Stop()
	var rates figures.Stream
	for n := 1; ; n++ {
		f := snapshot()
		rates.Next(f)
		err := send(f)
		switch over := ctx.Err() != nil; { // the client has left, or the instance ends
		case err != nil && over && n == 1:
			return fmt.Errorf("stats: the instance ends: %w", syscall.ESHUTDOWN)
		case over, n == a.Count && err == nil:
			return nil
		case err != nil:
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// watch gives each the snapshots of the instance that the user means, until there were as many as asked for, ctx ends or the
// instance does. None of that is an error, once there was one.
func (a *app) watch(ctx context.Context, args statsArgs, each func(*figures.Snapshot) error) error {
	i, cl, err := a.dial()
	if err != nil {
		return err
	}
	defer cl.Close()
	answered := false
	err = cl.Stream(ctx, opStats, args, func(raw json.RawMessage) error {
		f := &figures.Snapshot{}
		if err := json.Unmarshal(raw, f); err != nil {
			return fmt.Errorf("a snapshot of %s: %w", i.Name, err)
		}
		answered = true
		return each(f)
	})
	switch {
	case ctx.Err() == nil:
		return err
	case !answered:
		return errors.Join(fmt.Errorf("interrupted before %s answered: is it stopped?", i.Name), exitError(interrupted))
	}
	return nil
}

// interval is the value of -n, in seconds as the user writes them.
type interval float64

func (n interval) check(command string) (time.Duration, error) {
	d := time.Duration(float64(n) * float64(time.Second))
	// Written so that NaN is none of them.
	if !(float64(n) >= minInterval.Seconds() && float64(n) <= maxInterval.Seconds()) {
		return 0, usagef("%s: -n %v: want %v to %v seconds", command, float64(n), minInterval.Seconds(), maxInterval.Seconds())
	}
	return d, nil
}

// intervalFlag adds -n to a command that watches.
func intervalFlag(c *cobra.Command) *float64 {
	return c.Flags().Float64P("interval", "n", 1, "the time between two snapshots, in `SECONDS`")
}

func (a *app) statsCmd() *cobra.Command {
	var keep bool
	var count int
	c := &cobra.Command{
		Use:   "stats [-w [-n SECONDS] [-c COUNT]]",
		Short: "Print what a running instance counts: devices, pktgen, what was received and how late; again and again with -w",
		Long: `Print what a running instance counts: packets, bytes, errors and interrupts of its devices; what
pktgen sends; what was received of that, lost, duplicated, reordered, corrupted, and how late.

With -w, print it every second (-n) until interrupted, or COUNT times, with the rates in between.
With -json, one object a line. docs/metrics.md has its fields. 'ring3 top' and 'ring3 report' draw
the same.`,
		Example: `  ring3 stats
  ring3 stats -w -n 0.5 -c 10
  ring3 stats -w -json | jq -c '.devices[] | [.name, .net.rx_rate.pps]'
  ring3 stats -w -json > figures.json; ring3 report -i figures.json -o report.html`,
		Args: usageArgs(cobra.NoArgs),
	}
	n := intervalFlag(c)
	c.Flags().BoolVarP(&keep, "watch", "w", false, "again and again, with rates")
	c.Flags().IntVarP(&count, "count", "c", 0, "end after `COUNT` times")
	a.instanceFlag(c, "the instance, where several run")
	c.RunE = func(c *cobra.Command, _ []string) error {
		args := statsArgs{Interval: time.Second, Count: 1}
		switch {
		case keep && c.Flags().Changed("count") && count < 1:
			return usagef("stats: -c %d: want at least 1", count)
		case keep:
			var err error
			if args.Interval, err = interval(*n).check("stats"); err != nil {
				return err
			}
			args.Count = count
		case c.Flags().Changed("interval") || c.Flags().Changed("count"):
			return usagef("stats: -n and -c say how to repeat it: add -w")
		}
		return a.stats(c.Context(), args)
	}
	return c
}

func (a *app) stats(ctx context.Context, args statsArgs) error {
	printed := 0
	return a.watch(ctx, args, func(f *figures.Snapshot) error {
		if a.json {
			return json.NewEncoder(a.stdout).Encode(f)
		}
		if printed++; printed > 1 {
			fmt.Fprintln(a.stdout)
		}
		return f.Text(a.stdout)
	})
}
