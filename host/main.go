package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/drivers/portbus"
	"github.com/ring3dev/ring3/internal/instance"
	"github.com/ring3dev/ring3/internal/kernfs"
	"github.com/ring3dev/ring3/internal/profile"
	"github.com/ring3dev/ring3/internal/userns"
)

// Version is the program's version; the Makefile sets it.
var Version = "devel"

// Program is a ring3: the drivers it has, and what it can measure.
type Program struct {
	Drivers []*pci.Driver
	// Services are drivers of the services of PCI Express ports.
	Services []*portbus.ServiceDriver
	// Bench runs `ring3 bench`; nil: there is no such command.
	Bench func(ctx context.Context, o BenchOptions) error
	// BenchCompare runs `ring3 bench compare`; nil: there is no such command.
	BenchCompare func(before, after string, asJSON bool, w io.Writer) error

	// Fault runs `ring3 fault`; nil: there is no such command.
	Fault func(ctx context.Context, o FaultOptions) error

	passed *passed // what root opened for this process
}

// Main is the main function of a ring3 with these drivers. It does not return.
func Main(drivers ...*pci.Driver) { (&Program{Drivers: drivers}).Main() }

// Main runs the program on the process's own arguments and streams, and exits.
func (p *Program) Main() {
	// Other lives of the same binary come before anything else.
	instance.WatcherMain()
	kernfs.GuardMain()
	kernfs.MounterMain()
	userns.ChildMain()
	p.workerMain()
	left, err := takePassed()
	if err != nil {
		fmt.Fprintf(os.Stderr, "ring3: %v\n", err)
		os.Exit(1)
	}
	p.passed = left
	// A generator thread keeps its CPU busy; the files must be served meanwhile.
	runtime.GOMAXPROCS(runtime.NumCPU() + 2)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	code := p.Run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// app is what the commands share.
type app struct {
	*Program
	stdin          io.Reader
	stdout, stderr io.Writer
	json           bool
	name           string // -i
}

// exitError is a command's own exit status, with nothing left to say.
type exitError int

// interrupted is the exit status of a command that a signal ended.
const interrupted = 130

func (e exitError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// Run is one ring3 command. It returns the exit status.
func (p *Program) Run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &app{Program: p, stdin: stdin, stdout: stdout, stderr: stderr}
	root := a.root()
	root.SetArgs(singleDash(args))
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	var usage *usageError
	var many *instance.AmbiguousError
	code := 0
	for _, err := range flatten(err) {
		var exit exitError
		if errors.As(err, &exit) {
			code = max(code, int(exit))
			continue
		}
		fmt.Fprintf(stderr, "ring3: %s\n", strings.ReplaceAll(err.Error(), "\n", "; "))
		if errors.As(err, &usage) || errors.As(err, &many) {
			code = 2
		}
		code = max(code, 1)
	}
	return code
}

// flatten lists the errors that were joined, each of which is a line for the user.
func flatten(err error) []error {
	if j, ok := err.(interface{ Unwrap() []error }); ok && strings.Contains(err.Error(), "\n") {
		var all []error
		for _, e := range j.Unwrap() {
			all = append(all, flatten(e)...)
		}
		return all
	}
	if err == nil {
		return nil
	}
	return []error{err}
}

// singleDash lets "-json" stand for "--json", as every command documents it, and "-for" for "--for".
func singleDash(args []string) []string {
	out := make([]string, len(args))
	for i, s := range args {
		if s == "--" {
			copy(out[i:], args[i:])
			break
		}
		switch s {
		case "-json", "-for", "-seed", "-slice", "-backend", "-scenario":
			s = "-" + s
		}
		out[i] = s
	}
	return out
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "ring3",
		Short: "Device drivers as ordinary, unprivileged processes",
		Long: `ring3 runs device drivers as ordinary processes: on QEMU's device models without a
guest, or on devices of this machine, controlled through the files that the kernel's own drivers
would have.

  ring3 up                                 two e1000e NICs wired to each other
  ring3 shell                              a shell that sees them as the kernel's own
  $ echo add_device eth0 > /proc/net/pktgen/kpktgend_0
  ring3 plug eth2=qemu:e1000e,under=rp0    a card into the slot of a running instance's port
  ring3 ls --hw                            what this machine has, and who may use it`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          usageArgs(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			_ = c.Help()
			return exitError(2)
		},
		PersistentPreRunE: func(c *cobra.Command, _ []string) error {
			if a.forAnother(c) {
				return nil
			}
			// What a killed instance left is the next command's to clean up.
			return instance.Sweep(a.stderrLog())
		},
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usagef("%v", err) })
	root.PersistentFlags().BoolVar(&a.json, "json", false, "print JSON")
	root.AddCommand(a.upCmd(), a.runCmd(), a.serveCmd(), a.shellCmd(), a.tcsdCmd(), a.lsCmd(), a.getCmd(), a.setCmd(), a.dmesgCmd(), a.eventsCmd(), a.reloadCmd(),
		a.plugCmd(), a.unplugCmd(), a.suspendCmd(), a.resumeCmd(),
		a.statsCmd(), a.topCmd(), a.reportCmd(), a.ethtoolCmd(), a.pcapCmd(), a.traceCmd(), a.bindCmd(), a.unbindCmd(), a.tpmCmd(), a.fabricCmd(), a.doctorCmd(), a.versionCmd())
	if a.Bench != nil {
		root.AddCommand(a.benchCmd())
	}
	if a.Fault != nil {
		root.AddCommand(a.faultCmd())
	}
	return root
}

// usageArgs makes a wrong number of arguments a usage error.
func usageArgs(f cobra.PositionalArgs) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if err := f(c, args); err != nil {
			if c.Name() == "ring3" && len(args) > 0 {
				return usagef("unknown command %q: 'ring3 help' lists them", args[0])
			}
			return usagef("%s: %v: want %s", c.Name(), err, c.UseLine())
		}
		return nil
	}
}

// instanceFlag adds -i to a command that talks to a running instance, or names its own.
func (a *app) instanceFlag(c *cobra.Command, usage string) {
	c.Flags().StringVarP(&a.name, "instance", "i", "", usage)
}

// stderrLog shows warnings and errors of a short command.
func (a *app) stderrLog() *slog.Logger {
	return slog.New(newPlainHandler(a.stderr))
}

// printJSON prints one value, indented.
func (a *app) printJSON(v any) error {
	e := json.NewEncoder(a.stdout)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// versionInfo is what `ring3 version` prints.
type versionInfo struct {
	Version  string   `json:"version"`
	Go       string   `json:"go"`
	Platform string   `json:"platform"`
	Profile  string   `json:"profile"`  // the kernel whose texts are followed where nobody asks for another
	Profiles []string `json:"profiles"` // all that --profile takes
}

func (a *app) versionCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  usageArgs(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			v := versionInfo{Version: version(), Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
			for _, name := range profile.Names() {
				p, err := profile.Find(name)
				if err != nil {
					return err
				}
				v.Profiles = append(v.Profiles, p.String())
			}
			v.Profile = v.Profiles[0]
			if a.json {
				return a.printJSON(v)
			}
			fmt.Fprintf(a.stdout, "ring3 %s (%s, %s; kernel profile %s; there are %s)\n", v.Version, v.Go, v.Platform, v.Profile, strings.Join(profile.Names(), ", "))
			return nil
		},
	}
}

// version is Version, or what the build recorded.
func version() string {
	if Version != "devel" {
		return Version
	}
	if b, ok := debug.ReadBuildInfo(); ok && b.Main.Version != "" && b.Main.Version != "(devel)" {
		return b.Main.Version
	}
	return Version
}
