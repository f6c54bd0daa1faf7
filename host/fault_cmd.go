package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"regexp"
	"syscall"

	"github.com/spf13/cobra"
)

// FaultOptions is what `ring3 fault` was asked for.
type FaultOptions struct {
	Op       string   // "list", "run", "campaign", "sum"
	Scenario string   // of run
	Faults   []string // of run: specifications of package bus/fault, all at once
	Files    []string // of sum
	N        int      // of campaign: how many runs
	Seed     uint64
	Slice    string // "I/K"; empty: all
	Parallel int    // 0: what suits the backend
	Backend  string // "sim", "qemu", "vfio:ADDRESS", "up", "up-qemu"
	Only     *regexp.Regexp

	JSON           bool
	Log            *slog.Logger
	Stdout, Stderr io.Writer
}

// Usage marks an error as one of usage: exit status 2.
func Usage(err error) error { return usagef("fault: %v", err) }

// PrintJSON prints one value as all commands do.
func PrintJSON(to io.Writer, v any) error {
	e := json.NewEncoder(to)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func (a *app) faultCmd() *cobra.Command {
	var o FaultOptions
	var only string
	call := func(ctx context.Context, op string) error {
		if only != "" {
			re, err := regexp.Compile(only)
			if err != nil {
				return usagef("--scenario: %v", err)
			}
			o.Only = re
		}
		o.Op, o.JSON, o.Log, o.Stdout, o.Stderr = op, a.json, a.stderrLog(), a.stdout, a.stderr
		return a.Fault(ctx, o)
	}
	c := &cobra.Command{
		Use:   "fault",
		Short: "Have drivers live with devices that fail, and see what comes of it",
		Long: `Have drivers live with devices that fail: one run that is told in full, or a campaign of any number of them.
Each run brings a driver up on a device of which something goes wrong, uses and closes it, and then wants
the driver anew to work in full. It is harmless, recovered, corrupt (wrong data was given, and then right data by the same
driver), mute (who waits for the driver notices), wrong (it goes on with wrong data, which who compares notices), gone (on the backend up:
the device's link died, and 'ring3 ls' says so), or failed.`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			_ = c.Help()
			return exitError(2)
		},
	}
	backend := func(c *cobra.Command) *cobra.Command {
		c.Flags().StringVar(&o.Backend, "backend", "sim", "where devices come from: `sim`, qemu, or vfio:ADDRESS; or up, up-qemu: devices of sim or qemu, in workers of a 'ring3 up'")
		return c
	}
	list := &cobra.Command{
		Use: "list", Short: "List scenarios, and kinds of faults", Args: usageArgs(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error { return call(c.Context(), "list") },
	}
	run := backend(&cobra.Command{
		Use: "run SCENARIO", Short: "Make one run, and tell all that the driver did", Args: usageArgs(cobra.ExactArgs(1)),
		Example: "  ring3 fault run e1000e --fault 'TDT#2:gone'",
		RunE: func(c *cobra.Command, args []string) error {
			o.Scenario = args[0]
			return call(c.Context(), "run")
		},
	})
	run.Flags().StringArrayVar(&o.Faults, "fault", nil, "a `SPEC` of package bus/fault, such as STATUS#3:gone; none: a run without fault, to see the names of accesses")
	campaign := backend(&cobra.Command{
		Use: "campaign", Short: "Make many runs, and count what came of them", Args: usageArgs(cobra.NoArgs),
		Long: `Make many runs, and count what came of them. The same seed gives the same faults everywhere, and a slice I/K of
them: what slices print with -json 'ring3 fault sum' adds up. Short scenarios have every access fail in every way
first; others have faults at random. A failed run is shrunk, and told as one command that repeats it; then the
exit status is 1.`,
		Example: "  ring3 fault campaign -n 20000 -seed 7 -slice 1/4 -json >1.json",
		RunE: func(c *cobra.Command, _ []string) error {
			if o.N < 1 {
				return usagef("fault campaign: -n %d: want at least 1", o.N)
			}
			return call(c.Context(), "campaign")
		},
	})
	campaign.Flags().IntVarP(&o.N, "number", "n", 10000, "`N`, how many runs the whole campaign has")
	campaign.Flags().Uint64Var(&o.Seed, "seed", 1, "which faults")
	campaign.Flags().StringVar(&o.Slice, "slice", "", "only part `I/K`")
	campaign.Flags().IntVar(&o.Parallel, "parallel", 0, "how many runs at a time (default: what suits the backend)")
	campaign.Flags().StringVar(&only, "scenario", "", "only scenarios that match a `REGEXP`")
	sum := &cobra.Command{
		Use: "sum FILE...", Short: "Add up what slices of a campaign printed with -json", Args: usageArgs(cobra.MinimumNArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			o.Files = args
			return call(c.Context(), "sum")
		},
	}
	c.AddCommand(list, run, campaign, sum, a.faultArmCmd())
	return c
}

func (a *app) faultArmCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "arm NAME [SPEC]",
		Short: "Have a device of a running instance fail, which was started with --fault-arm; without SPEC: not any more",
		Long: `Have a device of a running instance fail, which was started with --fault-arm: SPEC is as for 'ring3 up --fault', and counts the
driver's accesses from now on. What became of the faults before is printed. Without SPEC nothing fails any more, and what was to last is over.`,
		Example: "  ring3 fault arm eth0 'TDT#20:panic'",
		Args:    usageArgs(cobra.RangeArgs(1, 2)),
		RunE: func(c *cobra.Command, args []string) error {
			_, cl, err := a.dial()
			if err != nil {
				return err
			}
			defer cl.Close()
			q := armArgs{Device: args[0]}
			if len(args) > 1 {
				q.Spec = args[1]
			}
			var r FaultArmed
			if err := cl.Call(c.Context(), opFault, q, &r); err != nil {
				if errors.Is(err, syscall.EOPNOTSUPP) {
					err = errors.New("the instance was not started with --fault-arm")
				}
				return fmt.Errorf("fault arm: %s: %w", args[0], err)
			}
			if a.json {
				return a.printJSON(r)
			}
			for _, o := range r.Outcomes {
				fmt.Fprintln(a.stdout, printable(o.Text))
			}
			return nil
		},
	}
	a.instanceFlag(c, "the instance, where several run")
	return c
}
