package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/ring3dev/ring3/internal/figures"
)

// Who draws the stream of figures: ring3 top, ring3 report, and --metrics of ring3 up.

func (a *app) topCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "top",
		Short: "Show what a running instance counts, live",
		Long: `Show what a running instance counts, live, on a terminal. q, Escape or Ctrl-C ends it, the space
bar stops and goes on, the arrows scroll. 'ring3 stats -w' prints the same figures.`,
		Args: usageArgs(cobra.NoArgs),
	}
	n := intervalFlag(c)
	a.instanceFlag(c, "the instance, where several run")
	c.RunE = func(c *cobra.Command, _ []string) error {
		every, err := interval(*n).check("top")
		if err != nil {
			return err
		}
		if a.json || !isTerminal(a.stdout) {
			return usagef("top: standard output is no terminal to draw on: 'ring3 stats -w' prints the same figures")
		}
		return a.top(c.Context(), every)
	}
	return c
}

func (a *app) top(ctx context.Context, every time.Duration) error {
	// Whatever is wrong with the instance is said before the screen is taken.
	i, cl, err := a.dial()
	if err != nil {
		return err
	}
	cl.Close()
	a.name = i.Name
	view, err := figures.OpenTop()
	if err != nil {
		return fmt.Errorf("top: %w", err)
	}
	left := false
	err = view.Run(ctx, func(ctx context.Context, each func(*figures.Snapshot) error) error {
		err := a.watch(ctx, statsArgs{Interval: every}, each)
		left = ctx.Err() != nil
		return err
	})
	if err == nil && !left {
		fmt.Fprintf(a.stderr, "ring3: top: %s has ended\n", i.Name)
	}
	return err
}

func (a *app) reportCmd() *cobra.Command {
	var in, out string
	var length time.Duration
	c := &cobra.Command{
		Use:   "report -o FILE.html [-for TIME | -i FILE]",
		Short: "Draw what an instance counts as a page of HTML: rates over time, latencies, a table",
		Long: `Draw what a running instance counts, from now on until interrupted, until it ends, or for so long,
as one page of HTML: rates over time, a histogram of latencies, the figures at the end. The page
needs no other file and no script.

With -i, draw what 'ring3 stats -w -json' wrote to a file, "-" for standard input.`,
		Example: `  ring3 report -o report.html -for 10s
  ring3 stats -w -n 0.1 -json > figures.json
  ring3 report -i figures.json -o report.html`,
		Args: usageArgs(cobra.NoArgs),
	}
	n := intervalFlag(c)
	c.Flags().StringVarP(&out, "output", "o", "", "write to `FILE`, \"-\" for standard output")
	c.Flags().StringVarP(&in, "input", "i", "", "draw what is in `FILE`")
	c.Flags().DurationVar(&length, "for", 0, "end after this `TIME`")
	c.Flags().StringVar(&a.name, "instance", "", "the instance, where several run")
	c.RunE = func(c *cobra.Command, _ []string) error {
		args := statsArgs{}
		var err error
		switch {
		case out == "":
			return usagef("report: want -o FILE, or -o - for standard output")
		case a.json:
			return usagef("report: a report is HTML: 'ring3 stats -w -json' prints the figures")
		case in != "" && (c.Flags().Changed("for") || c.Flags().Changed("interval") || a.name != ""):
			return usagef("report: -i draws what is in a file: -for, -n and --instance are of a running instance")
		case c.Flags().Changed("for") && length <= 0:
			return usagef("report: -for %v: want it positive", length)
		case in == "":
			if args.Interval, err = interval(*n).check("report"); err != nil {
				return err
			}
		}
		return a.report(c.Context(), in, args, length, out)
	}
	return c
}

func (a *app) report(ctx context.Context, in string, args statsArgs, length time.Duration, path string) (err error) {
	var record figures.Record
	if in != "" {
		// First of all: it may be the file to be written to.
		if err := a.readFigures(&record, in); err != nil {
			return err
		}
	}
	out := traceFile{path: path, w: a.stdout}
	if path != "-" {
		// A place that cannot be written to is told before anything takes time.
		if err := out.keep(); err != nil {
			return fmt.Errorf("report: %w", err)
		}
	}
	var broken error
	if in == "" {
		broken = a.record(ctx, &record, args, length)
	}
	if record.Snapshots() > 0 {
		if err = out.begin(); err == nil {
			err = record.Report(out.w, version())
		}
		if err != nil {
			err = fmt.Errorf("report: %w", err)
		}
	} else if broken == nil {
		err = errors.New("report: the instance ended before there was anything to draw")
	}
	return errors.Join(broken, err, out.close())
}

// record takes snapshots for as long as asked for.
func (a *app) record(ctx context.Context, record *figures.Record, args statsArgs, length time.Duration) error {
	if length > 0 {
		args.Interval = min(args.Interval, max(length, minInterval))
		args.Count = int(length/args.Interval) + 1
	}
	return a.watch(ctx, args, func(f *figures.Snapshot) error {
		err := record.Add(f)
		if err == nil && record.Snapshots() == 2 && length == 0 && isTerminal(a.stderr) {
			fmt.Fprintln(a.stderr, "ring3: report: recording; Ctrl-C ends it and draws")
		}
		return err
	})
}

// readFigures reads a saved stream.
func (a *app) readFigures(record *figures.Record, in string) error {
	r := a.stdin
	if in != "-" {
		f, err := os.Open(in)
		if err != nil {
			return fmt.Errorf("report: %w", err)
		}
		defer f.Close()
		r = f
	}
	if err := record.Read(r); err != nil {
		return fmt.Errorf("report: %s: %w", in, err)
	}
	if record.Snapshots() == 0 {
		return fmt.Errorf("report: %s: there is no snapshot in it", in)
	}
	return nil
}

// keep opens the file for what will be written, and keeps what is in it until then.
func (f *traceFile) keep() (err error) {
	_, e := os.Stat(f.path)
	f.made = errors.Is(e, fs.ErrNotExist)
	if f.file, err = os.OpenFile(f.path, os.O_WRONLY|os.O_CREATE, 0o644); err == nil {
		f.w = f.file
	}
	return err
}

// checkMetrics reads what --metrics says.
func (f *upFlags) checkMetrics() (err error) {
	if f.metrics == "" {
		return nil
	}
	if f.metrics, err = figures.MetricsAddr(f.metrics); err != nil {
		return usagef("--metrics %v", err)
	}
	return nil
}

// listenMetrics opens the port, before anything costs time.
func (u *up) listenMetrics(addr string) (err error) {
	if addr == "" {
		return nil
	}
	if u.metrics, err = figures.ListenMetrics(addr); err != nil {
		return fmt.Errorf("--metrics %s: listening: %w", addr, err)
	}
	return nil
}
