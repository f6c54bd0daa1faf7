package host

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/ring3dev/ring3/rionet/fabric"
	"github.com/ring3dev/ring3/rionet/fabricd"
)

func (a *app) fabricShowCmd() *cobra.Command {
	var at fabricAt
	c := &cobra.Command{
		Use:   "show",
		Short: "Print a running fabric: endpoints and who is there, links, switches and their routes",
		Args:  usageArgs(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			f, err := askFabric(c.Context(), at, (*fabricd.Client).Show)
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(f)
			}
			return showFabric(a.stdout, f)
		},
	}
	fabricFlags(c, &at)
	return c
}

// askFabric asks the fabric that the user means.
func askFabric[T any](ctx context.Context, at fabricAt, ask func(*fabricd.Client, context.Context) (T, error)) (T, error) {
	c, err := dialFabric(ctx, at)
	if err != nil {
		var none T
		return none, interruptedOr(ctx, err)
	}
	v, err := ask(c, ctx)
	return v, interruptedOr(ctx, err)
}

// interruptedOr is an error, or that a signal ended the command.
func interruptedOr(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return exitError(interrupted)
	}
	return err
}

// showFabric prints a fabric for people.
func showFabric(out io.Writer, f *fabricd.Fabric) error {
	fmt.Fprintf(out, "fabric at %s: pid %d, %d-bit IDs, up for %v\n\n", f.Socket, f.PID, int(f.IDs), time.Since(f.Started).Round(time.Second))
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "ENDPOINT\tID\tLINK\tTO\tMAILBOXES\tDOORBELLS\tNODE")
	for _, n := range f.Nodes {
		id := "-"
		if n.DestID != f.IDs.Any() {
			id = fmt.Sprintf("0x%04x", n.DestID)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", n.Name, id, upDown(n.Up), dash(n.Peer), openBoxes(n.Mailboxes), openClosed(n.Doorbells), nodeText(n))
	}
	fmt.Fprintln(w, "\nLINK\t\tSTATE\tWIDTH\tRATE\tDELAY\tLOSS")
	for _, l := range f.Links {
		fmt.Fprintf(w, "%s\t%s\t%s\tx%d\t%s\t%s\t%s\n", l.Ends[0], l.Ends[1], linkState(l), l.Width, rateText(l.Rate), delayText(l.Delay), lossText(l.Loss))
	}
	for _, t := range f.Trusts {
		fmt.Fprintf(w, "%s\t%s\ttrust\t-\t-\t-\t-\n", t[0], t[1])
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, s := range f.Switches {
		fmt.Fprintf(out, "\nSWITCH %s, %s, tag 0x%08x\n", s.Name, s.Kind, s.Tag)
		for _, p := range s.Ports {
			if p.Peer == "" {
				continue
			}
			fmt.Fprintf(out, "  port %-3d %-4s to %s: %s\n", p.Port, upDown(p.Up), p.Peer, routesBy(s, p.Port))
		}
	}
	return nil
}

// nodeText says who has joined as an endpoint.
func nodeText(n fabricd.Node) string {
	switch {
	case !n.Joined:
		return "-"
	case n.PID == 0 && n.QEMU:
		return "a machine"
	case n.PID == 0:
		return "a process"
	case n.QEMU:
		return fmt.Sprintf("machine, pid %d", n.PID)
	}
	return fmt.Sprintf("pid %d", n.PID)
}

// routesBy are the IDs that a switch sends out of a port, runs of them as one: "0x0000-0x0003,0x0007".
func routesBy(s fabric.SwitchStats, port int) string {
	var out []string
	for i := 0; i < len(s.Routes); i++ {
		if int(s.Routes[i].Port) != port {
			continue
		}
		first := s.Routes[i].Dest
		last := first
		for i+1 < len(s.Routes) && int(s.Routes[i+1].Port) == port && s.Routes[i+1].Dest == last+1 {
			i++
			last++
		}
		text := fmt.Sprintf("0x%04x", first)
		if last != first {
			text += fmt.Sprintf("-0x%04x", last)
		}
		out = append(out, text)
	}
	if len(out) == 0 {
		return "no routes"
	}
	return strings.Join(out, ",")
}

func openBoxes(open [4]bool) string {
	s := ""
	for i, o := range open {
		if o {
			s += strconv.Itoa(i)
		}
	}
	return dash(s)
}

func openClosed(open bool) string {
	if open {
		return "open"
	}
	return "closed"
}

func upDown(up bool) string {
	if up {
		return "up"
	}
	return "down"
}

// linkState is a link's: one that was made to fail is told from one with nobody at an end.
func linkState(l fabric.LinkStats) string {
	if l.Failed {
		return "failed"
	}
	return upDown(l.Up)
}

// rateText is a rate in bits a second as it is written in a topology.
func rateText(r int64) string {
	if r == 0 {
		return "-"
	}
	for _, u := range []struct {
		of   int64
		name string
	}{{1e9, "G"}, {1e6, "M"}, {1e3, "k"}} {
		if r >= u.of {
			return strconv.FormatFloat(float64(r)/float64(u.of), 'g', 6, 64) + u.name
		}
	}
	return strconv.FormatInt(r, 10)
}

func delayText(d time.Duration) string {
	if d == 0 {
		return "-"
	}
	return d.String()
}

func lossText(p float64) string {
	if p == 0 {
		return "-"
	}
	return strconv.FormatFloat(p, 'g', 4, 64)
}

func (a *app) fabricLinkCmd() *cobra.Command {
	var at fabricAt
	c := &cobra.Command{
		Use:   "link up|down A B",
		Short: "Make the link between two ends work or fail",
		Long: `Make the link between two ends work or fail. An end is an endpoint's name, or a switch's and a port. The
switches at its ends tell the host, as they would of a cable.`,
		Example: "  ring3 fabric link down pe1 sw0:1",
		Args:    usageArgs(cobra.ExactArgs(3)),
		RunE: func(c *cobra.Command, args []string) error {
			if args[0] != "up" && args[0] != "down" {
				return usagef("fabric link: %q: want up or down", args[0])
			}
			f, err := dialFabric(c.Context(), at)
			if err == nil {
				err = f.SetLink(c.Context(), args[1], args[2], args[0] == "up")
			}
			return interruptedOr(c.Context(), err)
		},
		ValidArgsFunction: func(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			return completeLink(c.Context(), at, args), cobra.ShellCompDirectiveNoFileComp
		},
	}
	fabricFlags(c, &at)
	return c
}

// completeLink lists what may stand as the next word of link.
func completeLink(ctx context.Context, at fabricAt, args []string) (out []string) {
	if len(args) == 0 {
		return []string{"up", "down"}
	}
	if ctx == nil {
		ctx = context.Background()
	}
	f, err := askFabric(ctx, at, (*fabricd.Client).Show)
	if err != nil || len(args) > 2 {
		return nil
	}
	for _, l := range f.Links {
		for i, e := range l.Ends {
			if len(args) == 1 {
				out = append(out, e)
			} else if e == args[1] {
				out = append(out, l.Ends[1-i])
			}
		}
	}
	return out
}

func (a *app) fabricStatsCmd() *cobra.Command {
	var at fabricAt
	c := &cobra.Command{
		Use:   "stats",
		Short: "Print what a running fabric counts: packets and bytes of each port, what was lost and why",
		Args:  usageArgs(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := askFabric(c.Context(), at, (*fabricd.Client).Stats)
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(s)
			}
			return showFabricStats(a.stdout, s)
		},
	}
	fabricFlags(c, &at)
	return c
}

// showFabricStats prints a fabric's counters for people.
func showFabricStats(out io.Writer, s *fabricd.Stats) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "PORT\tTX PACKETS\tTX BYTES\tRX PACKETS\tRX BYTES\tLOST\tERRORS\tRETRIES\tUNROUTED\tLOOPED\tWRONG ID\t")
	line := func(name string, c fabric.PortCounts, unrouted, looped, wrong string) {
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%s\t%s\t%s\t\n", name, c.TxPackets, c.TxBytes, c.RxPackets, c.RxBytes, c.Lost, c.Errors, c.Retries, unrouted, looped, wrong)
	}
	for _, n := range s.Nodes {
		line(n.Name, n.Counts, "-", "-", strconv.FormatUint(n.WrongID, 10))
	}
	for _, sw := range s.Switches {
		unrouted, looped := strconv.FormatUint(sw.Unrouted, 10), strconv.FormatUint(sw.Looped, 10) // of the whole switch
		for _, p := range sw.Ports {
			if p.Peer == "" {
				continue
			}
			line(fmt.Sprintf("%s:%d", sw.Name, p.Port), p.Counts, unrouted, looped, "-")
			unrouted, looped = "-", "-"
		}
	}
	return w.Flush()
}
