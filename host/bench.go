package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"regexp"
	"time"

	"github.com/spf13/cobra"

	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/drivers/portbus"
)

// BenchOptions is what `ring3 bench` was asked for.
type BenchOptions struct {
	Only           *regexp.Regexp // nil for all
	Time           time.Duration  // of one measurement; 0 for the default
	Pairs          int            // measurements of each row; 0 for the default
	JSON           bool
	Drivers        []*pci.Driver
	Services       []*portbus.ServiceDriver // of PCI Express ports
	Log            *slog.Logger
	Stdout, Stderr io.Writer
	// FirstFrame measures a start: see Program.firstFrame.
	FirstFrame func(ctx context.Context) (ready, frame time.Duration, err error)
	// PlugFrame measures a device that is plugged in: see Program.plugFrame.
	PlugFrame func(ctx context.Context, backend string) (PlugTimes, error)
}

func (a *app) benchCmd() *cobra.Command {
	var only string
	o := BenchOptions{Drivers: a.Drivers, Services: a.Services}
	c := &cobra.Command{
		Use:   "bench",
		Short: "Measure what this machine does, as ratios to what the device models can do",
		Long: `Measure, one row a case: register access, interrupt latency (and with --rt), start, memory, two wired
NICs without loss, and forwarding between two such pairs, pktgen beside a bare loop that only rings
the doorbell; the driver alone on a model that swallows at once; what accounting for pktgen's frames
costs, and the latency that it finds; drivers in workers beside drivers in one process, and how soon one that is killed or exchanged is back; receiving by weight and by interrupt moderation; what tracing
and the IOMMU cost; TCP over TAP beside veth; interrupts of PCI Express ports until their services have
handled them, a device that is plugged in until its first frame, config space and enumeration; RapidIO
messages between two processes beside a socket pair and a bare ring, TCP over rionet beside veth, and
enumeration. About eight minutes for all. Machines are noisy: compare rows of one run.`,
		Example: "  ring3 bench --only 'pktgen-tx e1000e ring=4096'",
		Args:    usageArgs(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			if only != "" {
				re, err := regexp.Compile(only)
				if err != nil {
					return usagef("--only: %v", err)
				}
				o.Only = re
			}
			o.JSON, o.Log, o.Stdout, o.Stderr, o.FirstFrame, o.PlugFrame = a.json, a.stderrLog(), a.stdout, a.stderr, a.firstFrame, a.plugFrame
			return a.Bench(c.Context(), o)
		},
	}
	c.Flags().StringVar(&only, "only", "", "only rows whose \"BENCH CASE\" matches this `REGEXP`")
	c.Flags().DurationVar(&o.Time, "time", 0, "length of one measurement (default 300ms)")
	c.Flags().IntVar(&o.Pairs, "pairs", 0, "measurements of each row (default 3)")
	if a.BenchCompare != nil {
		c.AddCommand(a.benchCompareCmd())
	}
	return c
}

func (a *app) benchCompareCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "compare OLD NEW",
		Short: "Compare what two runs of 'ring3 bench -json' measured",
		Long: `Compare two files of what 'ring3 bench -json' printed, each of one run or of several, one after the other.
Rows with a ratio are compared by it, the others by their value. A difference that chance makes
in more than one of twenty cases is shown as ~ (Mann-Whitney U-test).`,
		Example: `  ring3 bench -json --pairs 10 --only pktgen-tx >old.json
  ring3 bench compare old.json new.json`,
		Args: usageArgs(cobra.ExactArgs(2)),
		RunE: func(_ *cobra.Command, args []string) error {
			return a.BenchCompare(args[0], args[1], a.json, a.stdout)
		},
	}
}

// firstFrame brings up what `ring3 up` without arguments does, sends one frame from eth0,
// and takes all down again. It returns the time until everything was ready, and until the
// frame was received.
func (a *app) firstFrame(ctx context.Context) (ready, frame time.Duration, err error) {
	plan, err := ParsePlan(nil, nil, nil)
	if err != nil {
		return 0, 0, err
	}
	start := time.Now()
	u, err := a.bringUp(ctx, plan, upFlags{})
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, u.close()) }()
	ready = time.Since(start)
	bound := u.sys.(*System).bound()
	from, to := bound[0], bound[1]
	pool, err := from.net.Tx(0).NewPool(1)
	if err != nil {
		return 0, 0, err
	}
	defer pool.Close()
	b := pool.Get()
	b.Data = b.Mem[:60]
	copy(b.Data, to.net.MAC())
	if n := from.net.Tx(0).Burst([]*dma.Buf{b}); n != 1 {
		return 0, 0, fmt.Errorf("bench: start: Burst took %d frames, want 1", n)
	}
	for to.sink.Frames() == 0 {
		if time.Since(start) > 10*time.Second {
			return 0, 0, errors.New("bench: start: the first frame did not arrive within 10s")
		}
		time.Sleep(50 * time.Microsecond)
	}
	frame = time.Since(start)
	return ready, frame, from.net.Tx(0).Drain(ctx)
}
