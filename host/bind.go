package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/internal/hwbind"
)

// bindFlags are what bind is told besides addresses.
type bindFlags struct {
	driver, owner       string
	dry, udev, takeover bool
}

func (a *app) bindCmd() *cobra.Command {
	var f bindFlags
	c := &cobra.Command{
		Use:   "bind ADDRESS... --driver vfio-pci|uio_pci_generic",
		Short: "Give PCI functions of this machine to drivers in user space",
		Long: `Give PCI functions of this machine to drivers in user space: take them from the kernel's
drivers, which are remembered, and give them to vfio-pci (confined by the IOMMU, for an
ordinary user) or uio_pci_generic (bridges, machines without an IOMMU). It takes root, once;
ring3 unbind undoes it, and so does a restart of the machine.

What is in use is refused: an interface that is up, a disk that is mounted, is swap or carries
something that is. A bind that fails leaves everything as it was. The functions of one IOMMU
group change hands together.`,
		Example: `  ring3 ls --hw
  ring3 bind -n 0000:03:00.0 --driver vfio-pci --owner $USER
  sudo ring3 bind 0000:03:00.0 --driver vfio-pci --owner $USER
  ring3 up eth0=vfio:0000:03:00.0`,
		Args: usageArgs(cobra.MinimumNArgs(1)),
		RunE: func(c *cobra.Command, args []string) error { return a.bind(c.Context(), args, f) },
	}
	c.Flags().StringVar(&f.driver, "driver", "", "the kernel's `DRIVER` that hands them out: vfio-pci, uio_pci_generic")
	c.Flags().StringVar(&f.owner, "owner", "", "the `USER` who may open them; otherwise root alone")
	c.Flags().BoolVarP(&f.dry, "dry-run", "n", false, "print what would be done, as lines of shell")
	c.Flags().BoolVar(&f.udev, "udev", false, "print the udev rules that bind them whenever the machine starts")
	c.Flags().BoolVar(&f.takeover, "takeover", false, "also take what is in use")
	return c
}

func (a *app) unbindCmd() *cobra.Command {
	var dry, takeover bool
	c := &cobra.Command{
		Use:     "unbind ADDRESS...",
		Short:   "Give PCI functions back to the kernel's drivers",
		Long:    "Give PCI functions back to the drivers that had them before ring3 bind. Where nothing is\nremembered the kernel finds a driver.",
		Example: "  sudo ring3 unbind 0000:03:00.0",
		Args:    usageArgs(cobra.MinimumNArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			list, err := parseAddrs("unbind", args)
			if err != nil {
				return err
			}
			plan, err := hwbind.This().PlanUnbind(list, takeover)
			if err != nil {
				return err
			}
			return a.change(c.Context(), plan, dry, "sudo ring3 unbind "+strings.Join(args, " "))
		},
	}
	c.Flags().BoolVarP(&dry, "dry-run", "n", false, "print what would be done, as lines of shell")
	c.Flags().BoolVar(&takeover, "takeover", false, "also ask them back from processes that have them open")
	return c
}

// parseAddrs reads PCI addresses, each once.
func parseAddrs(cmd string, args []string) ([]pci.Addr, error) {
	var list []pci.Addr
	for _, s := range args {
		addr, err := pci.ParseAddr(s)
		if err != nil {
			return nil, usagef("%s: %q: want a PCI address as in 0000:03:00.0 ('ring3 ls --hw' lists them)", cmd, s)
		}
		if slices.Contains(list, addr) {
			return nil, usagef("%s: %s is given twice", cmd, addr)
		}
		list = append(list, addr)
	}
	return list, nil
}

// request reads what is to be bound.
func (f *bindFlags) request(args []string) (hwbind.Request, error) {
	r := hwbind.Request{Driver: f.driver, Takeover: f.takeover}
	if !slices.Contains(hwbind.Drivers(), f.driver) {
		return r, usagef("bind: --driver %q: want one of %s", f.driver, strings.Join(hwbind.Drivers(), ", "))
	}
	var err error
	if r.Addrs, err = parseAddrs("bind", args); err != nil {
		return r, err
	}
	if f.owner != "" {
		if r.Owner, err = hwbind.FindUser(f.owner); err != nil {
			return r, fmt.Errorf("bind: --owner: %w", err)
		}
	}
	return r, nil
}

func (a *app) bind(ctx context.Context, args []string, f bindFlags) error {
	r, err := f.request(args)
	if err != nil {
		return err
	}
	m := hwbind.This()
	if f.udev {
		// Whether it is in use now says nothing about the next start.
		r.Takeover = true
	}
	plan, err := m.PlanBind(r)
	if err != nil {
		return err
	}
	if f.udev {
		rules := m.Udev(r)
		if a.json {
			return a.printJSON(map[string]string{"rules": rules})
		}
		_, err := fmt.Fprint(a.stdout, rules)
		return err
	}
	return a.change(ctx, plan, f.dry, hwbind.BindCommand(r.Addrs, r.Driver, r.Owner))
}

// change does what a plan says, or prints it. command is how root does it.
func (a *app) change(ctx context.Context, plan *hwbind.Plan, dry bool, command string) error {
	if dry {
		if a.json {
			return a.printJSON(map[string][]string{"steps": plan.Steps(), "took": plan.Took()})
		}
		for _, t := range plan.Took() {
			fmt.Fprintln(a.stdout, "# takes away: "+t)
		}
		for _, s := range plan.Steps() {
			fmt.Fprintln(a.stdout, s)
		}
		return nil
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("only root may change which driver has a device: %s", command)
	}
	for _, t := range plan.Took() {
		fmt.Fprintln(a.stderr, "ring3: taking away: "+t)
	}
	results, err := plan.Run(ctx)
	if ctx.Err() != nil {
		return errors.Join(err, exitError(interrupted))
	}
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(results)
	}
	for _, r := range results {
		fmt.Fprintln(a.stdout, boundLine(r))
		for _, n := range r.Notes {
			fmt.Fprintf(a.stdout, "%s: note: %s\n", r.Address, n)
		}
	}
	return nil
}

// boundLine says what became of a function: "0000:03:00.0: from e1000e to vfio-pci, IOMMU group 7,
// /dev/vfio/7 is alice's".
func boundLine(r hwbind.Result) string {
	none := func(s string) string {
		if s == "" {
			return "no driver"
		}
		return s
	}
	s := fmt.Sprintf("%s: from %s to %s", r.Address, none(r.Was), none(r.Driver))
	if r.Was == r.Driver {
		s = fmt.Sprintf("%s: with %s as before", r.Address, r.Driver)
	}
	if len(r.Nodes) == 0 {
		return s
	}
	if r.Driver == hwbind.VFIO {
		s += fmt.Sprintf(", IOMMU group %d", r.Group)
	}
	owner := r.Owner
	if owner == "" {
		owner = "root"
	}
	return s + ", " + strings.Join(r.Nodes, " and ") + " for " + owner
}
