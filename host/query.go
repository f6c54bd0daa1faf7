package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/internal/instance"
	"github.com/ring3dev/ring3/internal/klog"
)

// Device states.
const (
	stateUp     = "up"
	stateGone   = "gone"
	stateAsleep = "suspended"
	// stateJoining: the fabric that it is a node of is gone.
	stateJoining = "joining"
)

// DeviceInfo is a line of `ring3 ls`.
type DeviceInfo struct {
	Instance string `json:"instance"`
	Name     string `json:"name"`
	Driver   string `json:"driver"`
	Model    string `json:"model,omitempty"`
	Backend  string `json:"backend"`
	Address  string `json:"address"`
	ID       string `json:"id"` // vendor:device
	MAC      string `json:"mac,omitempty"`
	Link     string `json:"link,omitempty"`    // "1000Mb/s full", "down"
	Wire     string `json:"wire,omitempty"`    // name of the far end
	Tap      string `json:"tap,omitempty"`     // the kernel interface that it is
	Forward  string `json:"forward,omitempty"` // the device that sends what it receives
	IRQ      string `json:"irq,omitempty"`     // "MSI-X 3"
	State    string `json:"state"`             // up, suspended, gone, joining, recovering, failed
	Cause    string `json:"cause,omitempty"`

	// Supervised: its driver runs in a worker, with those of its group. What follows is of that.
	Supervised bool    `json:"supervised,omitempty"`
	Worker     int     `json:"worker,omitempty"`      // its process; 0: none is up
	Restarts   int     `json:"restarts"`              // since the instance came up
	LastCause  string  `json:"last_cause,omitempty"`  // of the last death
	Recovery   float64 `json:"recovery_ms,omitempty"` // from that death until the device was in service again; 0: it is not, yet
	Report     string  `json:"report,omitempty"`      // file with what was known of it
	// Uncontained is why its worker keeps its user's rights, and is not replaced by itself; "": it does not, and is.
	Uncontained string `json:"uncontained,omitempty"`
}

// line is what up prints of a device.
func (d DeviceInfo) line() string {
	s := d.Name + ": " + d.Driver
	if d.Driver == "" {
		s = d.Name + ": no driver"
	}
	if d.Model != "" {
		s += " " + d.Model
	}
	s += fmt.Sprintf(" at %s (%s)", d.Address, d.Backend)
	if d.MAC != "" {
		s += fmt.Sprintf(", %s, link %s", d.MAC, d.Link)
	}
	if d.Wire != "" {
		s += ", wired to " + d.Wire
	}
	if d.Tap != "" {
		s += ", kernel interface " + d.Tap
	}
	if d.Forward != "" {
		s += ", forwarded to " + d.Forward
	}
	return s
}

// id is what a device is to who matches drivers: "8086:10d3", or what firmware calls it.
func (b *boundDevice) id() string {
	_, what := pci.Match(b.dev)
	return what
}

// Devices describes the devices as they are now.
func (s *System) Devices() []DeviceInfo {
	var out []DeviceInfo
	for _, b := range s.bound() {
		d := DeviceInfo{Name: b.spec.Name, Backend: b.dev.Backend(), Address: b.dev.Address(), ID: b.id(), State: stateUp, Driver: b.driverName()}
		if err := b.dev.Err(); err != nil {
			d.State, d.Cause = stateGone, err.Error()
		}
		if b.asleep != nil && d.State == stateUp {
			d.State = stateAsleep
		}
		if b.rio != nil && (d.State == stateUp || b.spec.Backend == onFabric) {
			d.State, d.Cause = b.rio.state(b)
		}
		d.IRQ = s.irqs.describe(b)
		if b.tpm != nil {
			d.Model = "TPM " + b.tpm.chip.Family().String()
		}
		if b.net != nil {
			d.Model, d.MAC = b.net.Info().Model, b.net.MAC().String()
			if b.rio != nil { // what is under it is no network device
				d.Driver = b.net.Info().Driver
			}
			d.Link = "down"
			if l := b.net.Link(); l.Up && d.State == stateUp {
				duplex := "half"
				if l.FullDuplex {
					duplex = "full"
				}
				d.Link = fmt.Sprintf("%dMb/s %s", l.Speed, duplex)
			}
		}
		if b.tap != nil {
			d.Tap = b.tap.Name()
		}
		d.Forward = s.plan.forwardOf(b.spec.Name)
		for _, w := range s.plan.Wires {
			switch b.spec.Name {
			case w.A:
				d.Wire = w.B
			case w.B:
				d.Wire = w.A
			}
		}
		out = append(out, d)
	}
	return out
}

// Operations of the control socket that are not of the tree.
const (
	opDevices = "devices"
	opDmesg   = "dmesg"
	// opCollisions lists the machine's network interfaces that have one of our names.
	opCollisions = "collisions"
)

// handlers are what a running instance answers.
func (u *up) handlers() instance.Handlers {
	h := u.sys.handlers()
	h[opStats] = u.statsHandler
	u.logHandlers(h)
	return h
}

// handlers are what a System answers, which is all but what is the instance's: its messages and its name.
func (s *System) handlers() instance.Handlers {
	h := instance.TreeHandlers(s.Tree())
	h[opDevices] = func(context.Context, json.RawMessage, func(any) error) (any, error) {
		return s.Devices(), nil
	}
	h[opCollisions] = func(context.Context, json.RawMessage, func(any) error) (any, error) {
		return s.collisions(), nil
	}
	h[opEthtool] = s.ethtoolHandler
	h[opStats] = func(ctx context.Context, raw json.RawMessage, send func(any) error) (any, error) {
		return nil, sendFigures(ctx, raw, send, s.Figures)
	}
	h[opTrace], h[opTraceLast], h[opTraceSet] = s.traceHandler, s.traceLastHandler, s.traceSetHandler
	h[opInject] = s.injectHandler
	if s.plan.Arm {
		h[opFault] = s.faultHandler
	}
	s.eventHandlers(h)
	s.plugHandlers(h)
	return h
}

func (a *app) lsCmd() *cobra.Command {
	var hw bool
	c := &cobra.Command{
		Use:   "ls",
		Short: "List the devices of a running instance, or the machine's PCI functions, and why they are as they are",
		Long: `List the devices of a running instance. Once a driver has died there is also how often, how long it took until the device was in
service again, and what the driver died of last (-json: and the file with a report of it). Functions of this machine that were given to drivers
in user space (ring3 bind) follow; --hw lists all that it has: IOMMU group and its members, driver,
who may open it, and why not.`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			if hw {
				return a.hardware()
			}
			return a.ls(c.Context())
		},
	}
	c.Flags().BoolVar(&hw, "hw", false, "the PCI functions of this machine")
	a.instanceFlag(c, "only this instance")
	return c
}

func (a *app) ls(ctx context.Context) error {
	devices := []DeviceInfo{}
	i, cl, err := a.dial()
	switch {
	case errors.Is(err, instance.ErrNone) && a.json:
		return a.printJSON(devices)
	case errors.Is(err, instance.ErrNone) && a.name == "":
		if bound := a.boundHardware(); len(bound) > 0 {
			return printHardware(a.stdout, bound)
		}
		return err
	case err != nil:
		return err
	}
	defer cl.Close()
	if err := cl.Call(ctx, opDevices, nil, &devices); err != nil {
		return fmt.Errorf("ls: %s: %w", i.Name, err)
	}
	for k := range devices {
		devices[k].Instance = i.Name
	}
	if a.json {
		return a.printJSON(devices)
	}
	w := tabwriter.NewWriter(a.stdout, 0, 8, 2, ' ', 0)
	// What only a driver that died has is shown only where one did.
	died := slices.ContainsFunc(devices, func(d DeviceInfo) bool { return d.Restarts > 0 })
	head := "INSTANCE\tNAME\tDRIVER\tMODEL\tADDRESS\tBACKEND\tMAC\tLINK\tWIRE\tTAP\tFORWARD\tIRQ\t"
	if died {
		head += "RESTARTS\tRECOVERY\tLAST CAUSE\t"
	}
	fmt.Fprintln(w, head+"STATE")
	for _, d := range devices {
		state := d.State
		if d.Cause != "" {
			state += ": " + d.Cause
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t", d.Instance, d.Name, dash(d.Driver), dash(d.Model), d.Address, d.Backend,
			dash(d.MAC), dash(d.Link), dash(d.Wire), dash(d.Tap), dash(d.Forward), dash(d.IRQ))
		if died {
			took := "-"
			if d.Recovery > 0 {
				took = fmt.Sprintf("%.1f ms", d.Recovery)
			}
			fmt.Fprintf(w, "%d\t%s\t%s\t", d.Restarts, took, dash(d.LastCause))
		}
		fmt.Fprintln(w, state)
	}
	if err := w.Flush(); err != nil || a.name != "" {
		return err
	}
	if bound := a.boundHardware(); len(bound) > 0 {
		fmt.Fprintln(a.stdout)
		return printHardware(a.stdout, bound)
	}
	return nil
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// treePath is a path as the user types it, "/proc/net/dev" or "proc/net/dev", in the tree.
func treePath(s string) (string, error) {
	p := path.Clean("/" + s)
	for _, top := range []string{"/proc", "/sys", "/dev"} {
		if p == top || strings.HasPrefix(p, top+"/") {
			return p, nil
		}
	}
	return "", usagef("path %q: want a path below /proc, /sys or /dev", s)
}

// dial connects to the instance that the user means. The caller closes the client.
func (a *app) dial() (instance.Info, *instance.Client, error) {
	i, err := instance.Pick(a.name)
	if err != nil {
		return i, nil, err
	}
	cl, err := instance.Dial(i)
	return i, cl, err
}

// onTree does something at a path of the instance that the user means. op is for errors.
func (a *app) onTree(ctx context.Context, op, arg string, f func(cl *instance.Client, p string) error) error {
	p, err := treePath(arg)
	if err != nil {
		return err
	}
	i, cl, err := a.dial()
	if err != nil {
		return err
	}
	defer cl.Close()
	err = f(cl, p)
	if err != nil && ctx.Err() != nil {
		return errors.Join(fmt.Errorf("%s %s: interrupted; %s does not answer: is it stopped?", op, p, i.Name), exitError(interrupted))
	}
	if err != nil {
		return fmt.Errorf("%s %s: %s", op, p, instance.Strerror(err))
	}
	return nil
}

func (a *app) getCmd() *cobra.Command {
	c := &cobra.Command{
		Use:     "get PATH",
		Short:   "Print a file of the tree, or list a directory, without a mount",
		Example: "  ring3 get /proc/net/pktgen/eth0",
		Args:    usageArgs(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			return a.onTree(c.Context(), "get", args[0], func(cl *instance.Client, p string) error {
				b, err := cl.Get(c.Context(), p)
				switch {
				case errors.Is(err, unix.EISDIR):
					return a.list(c.Context(), cl, p)
				case err != nil:
					return err
				case a.json:
					return a.printJSON(map[string]string{"path": p, "value": string(b)})
				}
				_, err = a.stdout.Write(b)
				return err
			})
		},
	}
	a.instanceFlag(c, "the instance, where several run")
	return c
}

func (a *app) list(ctx context.Context, cl *instance.Client, p string) error {
	entries, err := cl.Readdir(ctx, p)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(entries)
	}
	for _, e := range entries {
		e.Name, e.Target = printable(strings.ReplaceAll(e.Name, "\n", "?")), printable(e.Target)
		switch e.Type {
		case "dir":
			fmt.Fprintln(a.stdout, e.Name+"/")
		case "link":
			fmt.Fprintln(a.stdout, e.Name+" -> "+e.Target)
		default:
			fmt.Fprintln(a.stdout, e.Name)
		}
	}
	return nil
}

func (a *app) setCmd() *cobra.Command {
	c := &cobra.Command{
		Use:     "set PATH VALUE",
		Short:   "Write a value and a newline to a file of the tree, without a mount",
		Example: "  ring3 set /proc/net/pktgen/kpktgend_0 'add_device eth0'",
		Args:    usageArgs(cobra.ExactArgs(2)),
		RunE: func(c *cobra.Command, args []string) error {
			return a.onTree(c.Context(), "set", args[0], func(cl *instance.Client, p string) error {
				return cl.Set(c.Context(), p, []byte(args[1]+"\n"))
			})
		},
	}
	a.instanceFlag(c, "the instance, where several run")
	return c
}

func (a *app) dmesgCmd() *cobra.Command {
	var keep bool
	c := &cobra.Command{
		Use:   "dmesg [-w]",
		Short: "Print the messages of the drivers; with -w also those that come, until interrupted or the instance ends",
		Args:  usageArgs(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			if keep {
				return a.followDmesg(c.Context())
			}
			_, cl, err := a.dial()
			if err != nil {
				return err
			}
			defer cl.Close()
			var records []klog.Record
			if err := cl.Call(c.Context(), opDmesg, nil, &records); err != nil {
				return fmt.Errorf("dmesg: %w", err)
			}
			if a.json {
				return a.printJSON(records)
			}
			for _, r := range records {
				fmt.Fprintln(a.stdout, r)
			}
			return nil
		},
	}
	c.Flags().BoolVarP(&keep, "follow", "w", false, "go on with what comes")
	a.instanceFlag(c, "the instance, where several run")
	return c
}
