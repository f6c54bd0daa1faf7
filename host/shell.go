package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ring3dev/ring3/internal/instance"
	"github.com/ring3dev/ring3/internal/userns"
)

func (a *app) shellCmd() *cobra.Command {
	tcsd := false
	c := &cobra.Command{
		Use:   "shell [-- COMMAND...]",
		Short: "Run a shell, or a command, that sees the devices as the kernel's own",
		Long: `Run a shell (or a command) in a private user and mount namespace in which the files of a
running instance stand at /proc and /sys, beside the kernel's own. Nothing outside it changes.
The exit status is the command's.`,
		RunE: func(c *cobra.Command, args []string) error {
			cmd, rest, err := splitDash(c, args)
			if err != nil || len(rest) > 0 {
				return errors.Join(err, usageIf(len(rest) > 0, "shell: %q: want 'ring3 shell -- COMMAND...'", strings.Join(rest, " ")))
			}
			i, err := instance.Pick(a.name)
			if err != nil {
				return err
			}
			if i.Mount == "" {
				return fmt.Errorf("shell: %s has no mounted tree: it was started with --no-mount", i.Name)
			}
			return a.enter(c.Context(), i, cmd, tcsd)
		},
	}
	c.Flags().BoolVar(&tcsd, "tcsd", false, "start a private tcsd, for TPM 1.2's programs (Debian: trousers, tpm-tools); inside is no network but lo")
	a.instanceFlag(c, "the instance, where several run")
	return c
}

func (a *app) runCmd() *cobra.Command {
	var f upFlags
	tcsd := false
	c := &cobra.Command{
		Use:   "run [DEVICE...] -- COMMAND...",
		Short: "Bring devices up, run a command that sees them as the kernel's own, take them down",
		Long: `Bring devices up, run a command as 'ring3 shell' does, and take everything down again. The
exit status is the command's: one line of CI.

` + devicesHelp,
		Example: "  ring3 run eth0=qemu:e1000e eth1=qemu:e1000e --wire eth0-eth1 -- ./test.sh",
		RunE: func(c *cobra.Command, args []string) error {
			cmd, devices, err := splitDash(c, args)
			if err != nil {
				return err
			}
			if len(cmd) == 0 {
				return usagef("run: want a command after --: %s", c.UseLine())
			}
			plan, err := f.plan(devices)
			if err != nil {
				return err
			}
			u, err := a.bringUp(c.Context(), plan, f)
			if err != nil {
				return err
			}
			err = a.enter(c.Context(), u.in.Info(), cmd, tcsd)
			if down := u.close(); down != nil {
				return errors.Join(down, err)
			}
			return err
		},
	}
	f.add(c)
	c.Flags().BoolVar(&tcsd, "tcsd", false, "start a private tcsd for the command, without other network, as 'ring3 shell --tcsd' does")
	a.instanceFlag(c, "the instance's `NAME` (default: r0, r1, ...)")
	return c
}

// splitDash gives what stands behind "--", and what before it.
func splitDash(c *cobra.Command, args []string) (cmd, before []string, err error) {
	at := c.ArgsLenAtDash()
	if at < 0 {
		return nil, args, nil
	}
	if at == len(args) {
		return nil, nil, usagef("%s: no command after --", c.Name())
	}
	return args[at:], args[:at], nil
}

func usageIf(wrong bool, format string, a ...any) error {
	if !wrong {
		return nil
	}
	return usagef(format, a...)
}

// enter runs a command (nil: the user's shell) among the files of an instance. Its exit
// status comes back as an exitError. tcsd: the command has a tcsd of its own.
func (a *app) enter(ctx context.Context, i instance.Info, argv []string, tcsd bool) error {
	if ctx.Err() != nil {
		return exitError(interrupted)
	}
	// The process that serves the tree must not look into its mount, and run is that
	// process; so the names are asked for over the control socket.
	if both, err := a.collisions(ctx, i); err == nil && len(both) > 0 {
		fmt.Fprintf(a.stderr, "ring3: the machine has %s too; inside, the name is ring3's\n", strings.Join(both, ", "))
	}
	if ctx.Err() != nil {
		return exitError(interrupted)
	}
	// From here on a signal is passed to the command, whose end ends this.
	plan := userns.DefaultPlan(i.Mount, i.Old())
	if tcsd {
		var err error
		plan.OwnNet = true // whoever reaches its port has the TPM
		if plan.Files, err = tcsdFiles(); err == nil {
			argv, err = underTCSD(tcsdStore(i.Devices), argv)
		}
		if err != nil {
			return err
		}
	}
	status, err := userns.Run(context.WithoutCancel(ctx), userns.Command{Plan: plan, Argv: argv, Env: append(os.Environ(), i.Env())})
	if err != nil {
		fmt.Fprintf(a.stderr, "ring3: %s\n", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	if status != 0 {
		return exitError(status)
	}
	return nil
}

// askTime bounds a question that can go unanswered: the process may be stopped.
const askTime = 300 * time.Millisecond

// collisions are the network interfaces that both the machine and the instance have.
func (a *app) collisions(ctx context.Context, i instance.Info) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	cl, err := instance.Dial(i)
	if err != nil {
		return nil, err
	}
	defer cl.Close()
	var names []string
	return names, cl.Call(ctx, opCollisions, nil, &names)
}
