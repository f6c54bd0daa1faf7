package host

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus/trace"
	"github.com/ring3dev/ring3/bus/trace/tracefile"
)

// Operations of the control socket on traces. Results are pieces of a pcapng file.
const (
	opTrace     = "trace"
	opTraceLast = "trace-last"
	opTraceSet  = "trace-set" // turns recording on and off
)

// traceArgs are the arguments of all.
type traceArgs struct {
	Devices  []string      `json:"devices,omitempty"` // names; none: all
	Filter   string        `json:"filter,omitempty"`
	Duration time.Duration `json:"duration,omitempty"` // of opTrace; 0: until the client leaves
	Last     int           `json:"last,omitempty"`     // of opTraceLast
	On       bool          `json:"on,omitempty"`       // of opTraceSet
}

// tracePiece is a result.
type tracePiece struct {
	Pcapng []byte `json:"pcapng"`
}

// traced finds devices by name.
func (s *System) traced(names []string) ([]*trace.Device, error) {
	var out []*trace.Device
	for _, b := range s.bound() {
		if d := b.trace; d != nil && (len(names) == 0 || slices.Contains(names, d.Name())) {
			out = append(out, d)
		}
	}
	for _, n := range names {
		if !slices.ContainsFunc(out, func(d *trace.Device) bool { return d.Name() == n }) {
			return nil, fmt.Errorf("no device is named %s: %w", n, unix.ENODEV)
		}
	}
	return out, nil
}

func parseTraceArgs(s *System, raw json.RawMessage) (a traceArgs, ds []*trace.Device, err error) {
	if len(raw) > 0 {
		if err := json.Unmarshal(raw, &a); err != nil {
			return a, nil, fmt.Errorf("trace: arguments: %v: %w", err, syscall.EINVAL)
		}
	}
	if _, err := tracefile.ParseFilter(a.Filter); err != nil {
		return a, nil, err
	}
	ds, err = s.traced(a.Devices)
	return a, ds, err
}

// bound is a context that ends when as long was recorded as was asked for.
func (a *traceArgs) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if a.Duration <= 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, a.Duration)
}

// traceHandler streams what is recorded from now on.
func (s *System) traceHandler(ctx context.Context, raw json.RawMessage, send func(any) error) (any, error) {
	a, ds, err := parseTraceArgs(s, raw)
	if err != nil {
		return nil, err
	}
	ctx, cancel := a.bound(ctx)
	defer cancel()
	err = writeTrace(ctx, ds, sender(send), true, a.Filter, 0)
	if ctx.Err() != nil {
		err = nil // the end that was asked for
	}
	return nil, err
}

// sender is the client as a writer.
type sender func(any) error

func (s sender) Write(b []byte) (int, error) {
	if err := s(tracePiece{b}); err != nil {
		return 0, err
	}
	return len(b), nil
}

// traceLastHandler gives the last records.
func (s *System) traceLastHandler(_ context.Context, raw json.RawMessage, _ func(any) error) (any, error) {
	a, ds, err := parseTraceArgs(s, raw)
	if err != nil {
		return nil, err
	}
	f, err := tracefile.ParseFilter(a.Filter)
	if err != nil {
		return nil, err
	}
	es, err := f.Keep(trace.Snapshot(ds, recordedToFile))
	if err != nil {
		return nil, err
	}
	es = es[max(0, len(es)-max(a.Last, 0)):]
	var b bytes.Buffer
	w, err := newTraceWriter(ds, &b, true)
	if err == nil {
		err = writeEntries(w, es)
	}
	return tracePiece{b.Bytes()}, err
}

// traceSetHandler turns recording on and off.
func (s *System) traceSetHandler(_ context.Context, raw json.RawMessage, _ func(any) error) (any, error) {
	a, ds, err := parseTraceArgs(s, raw)
	for _, d := range ds {
		d.SetEnabled(a.On)
	}
	return nil, err
}

func (a *app) traceCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "trace",
		Short: "Record and show what drivers do to their devices: registers, doorbells, interrupts, DMA",
		Long: `Record and show what drivers do to their devices. docs/tracing.md has the formats, the
fields of filters, and recipes.

  ring3 trace last eth0                                   what eth0's driver did last
  ring3 trace record -o - | ring3 trace report -i -       all of it, live
  ring3 up --trace eth0=eth0.pcapng                       from the very first access on`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error { return usagef("trace: want record, report, last, on or off") },
	}
	c.AddCommand(a.traceRecordCmd(), a.traceReportCmd(), a.traceLastCmd(), a.traceSetCmd("on", true), a.traceSetCmd("off", false))
	return c
}

const filterHelp = "only what matches `EXPR`: reg == \"TDT\" && value > 10"

// checkFilter is for commands that leave the work to others.
func checkFilter(s string) error {
	if _, err := tracefile.ParseFilter(s); err != nil {
		return usagef("--filter: %v", err)
	}
	return nil
}

func (a *app) traceRecordCmd() *cobra.Command {
	var out string
	var args traceArgs
	c := &cobra.Command{
		Use:   "record [NAME...] -o FILE",
		Short: "Record what a running instance's drivers do, from now on until interrupted",
		Long: `Record what drivers of a running instance do, from now on until interrupted. FILE is pcapng
where its name ends in .pcapng or .pcap, else text; "-" is pcapng to standard output.`,
		Example: "  ring3 trace record eth0 -o eth0.pcapng --duration 1s\n  ring3 trace record -o - | ring3 trace report -i - --filter 'kind == \"irq\"'",
		RunE: func(c *cobra.Command, names []string) error {
			if err := checkFilter(args.Filter); err != nil {
				return err
			}
			if out == "" {
				return usagef("trace record: want -o FILE, or -o - for standard output")
			}
			if args.Duration < 0 {
				return usagef("--duration %v: want it positive", args.Duration)
			}
			args.Devices = names
			return a.traceRecord(c.Context(), args, out)
		},
	}
	c.Flags().StringVarP(&out, "output", "o", "", "write to `FILE`")
	c.Flags().StringVar(&args.Filter, "filter", "", filterHelp)
	c.Flags().DurationVar(&args.Duration, "duration", 0, "end after this `TIME`")
	a.instanceFlag(c, "the instance, where several run")
	return c
}

func (a *app) traceRecord(ctx context.Context, args traceArgs, path string) (err error) {
	w, pcapng := a.stdout, true
	if path == "-" && isTerminal(w) {
		return usagef("trace record: standard output is a terminal, which pcapng is not for: add '| ring3 trace report -i -'")
	}
	i, cl, err := a.dial()
	if err != nil {
		return err
	}
	defer cl.Close()
	out := traceFile{path: path}
	if path != "-" {
		if err := out.keep(); err != nil {
			return fmt.Errorf("trace record: %w", err)
		}
		w, pcapng = out.file, tracefile.IsPcapng(path)
	}
	end := func() error { return nil }
	if !pcapng {
		w, end = textOf(w)
	}
	err = cl.Stream(ctx, opTrace, args, func(raw json.RawMessage) error {
		var p tracePiece
		if err := json.Unmarshal(raw, &p); err != nil {
			return fmt.Errorf("%s: %w", i.Name, err)
		}
		if !out.used {
			if err := out.begin(); err != nil {
				return err
			}
		}
		_, err := w.Write(p.Pcapng)
		return err
	})
	if ctx.Err() != nil {
		err = nil // being interrupted is how it ends
	}
	// A text that could not be written says why itself.
	if e := end(); out.used && (err == nil || errors.Is(err, io.ErrClosedPipe)) {
		err = e
	}
	if e := out.close(); err == nil {
		err = e
	}
	if err != nil {
		err = fmt.Errorf("trace record: %w", err)
	}
	return err
}

// textOf makes text of the pcapng that is written to it.
func textOf(w io.Writer) (in io.Writer, end func() error) {
	r, p := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := report(r, tracefile.NewText(w, nil), nil)
		r.Close() // writing ends with io.ErrClosedPipe
		done <- err
	}()
	return p, func() error {
		p.Close()
		return <-done
	}
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

func (a *app) traceReportCmd() *cobra.Command {
	var in, filter string
	c := &cobra.Command{
		Use:     "report -i FILE",
		Short:   "Show a pcapng trace as text or as JSON, also while it is being recorded",
		Example: "  ring3 trace report -i eth0.pcapng --filter 'reg == \"TDT\" && value > 10'",
		Args:    usageArgs(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			f, err := tracefile.ParseFilter(filter)
			if err != nil {
				return usagef("--filter: %v", err)
			}
			r := a.stdin
			switch in {
			case "":
				return usagef("trace report: want -i FILE, or -i - for standard input")
			case "-":
			default:
				file, err := os.Open(in)
				if err != nil {
					return fmt.Errorf("trace report: %w", err)
				}
				defer file.Close()
				r = file
			}
			return report(r, a.traceOut(), f)
		},
	}
	c.Flags().StringVarP(&in, "input", "i", "", "read `FILE`")
	c.Flags().StringVar(&filter, "filter", "", filterHelp)
	return c
}

// traceOut is standard output, for entries.
func (a *app) traceOut() tracefile.Writer {
	if a.json {
		return tracefile.NewJSON(a.stdout)
	}
	return tracefile.NewText(a.stdout, nil)
}

// report shows the wanted entries of r, each as soon as it can be read.
func report(r io.Reader, w tracefile.Writer, f *tracefile.Filter) error {
	tr := tracefile.NewReader(r)
	// ended shows what there was before an error, which is told alone.
	ended := func(err error) error {
		if e := w.Flush(); err == nil || errors.Is(err, io.EOF) {
			return e
		}
		return err
	}
	for {
		e, err := tr.Next()
		if err != nil {
			return ended(err)
		}
		wanted, err := f.Match(&e)
		if err != nil {
			return ended(err)
		}
		if wanted || e.Kind == trace.Lost {
			if err := w.Write(&e); err != nil {
				return err
			}
		}
		if !tr.Buffered() {
			if err := w.Flush(); err != nil {
				return err
			}
		}
	}
}

func (a *app) traceLastCmd() *cobra.Command {
	args := traceArgs{}
	c := &cobra.Command{
		Use:   "last [NAME...]",
		Short: "Show what the drivers of a running instance did last",
		Long: fmt.Sprintf(`Show what the drivers of a running instance did last. The last %d records of each device
are always there.`, trace.DefaultRecords),
		Example: "  ring3 trace last eth0 -n 100 --filter 'kind != \"read\"'",
		RunE: func(c *cobra.Command, names []string) error {
			if err := checkFilter(args.Filter); err != nil {
				return err
			}
			if args.Last < 1 {
				return usagef("-n %d: want at least 1", args.Last)
			}
			args.Devices = names
			_, cl, err := a.dial()
			if err != nil {
				return err
			}
			defer cl.Close()
			var p tracePiece
			if err := cl.Call(c.Context(), opTraceLast, args, &p); err != nil {
				return fmt.Errorf("trace last: %w", err)
			}
			return report(bytes.NewReader(p.Pcapng), a.traceOut(), nil)
		},
	}
	c.Flags().IntVarP(&args.Last, "records", "n", 20, "show the last `N`")
	c.Flags().StringVar(&args.Filter, "filter", "", filterHelp)
	a.instanceFlag(c, "the instance, where several run")
	return c
}

func (a *app) traceSetCmd(name string, on bool) *cobra.Command {
	c := &cobra.Command{
		Use:   name + " [NAME...]",
		Short: "Turn recording " + name + ", which it is at first",
		RunE: func(c *cobra.Command, names []string) error {
			_, cl, err := a.dial()
			if err != nil {
				return err
			}
			defer cl.Close()
			if err := cl.Call(c.Context(), opTraceSet, traceArgs{Devices: names, On: on}, nil); err != nil {
				return fmt.Errorf("trace %s: %w", name, err)
			}
			return nil
		},
	}
	if !on {
		c.Short = "Turn recording off; an access then costs one branch more than without a trace"
	}
	a.instanceFlag(c, "the instance, where several run")
	return c
}
