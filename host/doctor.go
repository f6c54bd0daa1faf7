package host

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ring3dev/ring3/bus/qemu"
	"github.com/ring3dev/ring3/internal/instance"
	"github.com/ring3dev/ring3/internal/kernfs"
	"github.com/ring3dev/ring3/internal/swtpm"
	"github.com/ring3dev/ring3/internal/userns"
)

// Finding is one line of `ring3 doctor`.
type Finding struct {
	Check string `json:"check"`
	OK    bool   `json:"ok"`
	// Says is what was found, or what is wrong and what to do about it.
	Says string `json:"says"`
	// Needed is what does not work without it.
	Needed string `json:"needed"`
	// Optional is what only some want: real hardware.
	Optional bool `json:"optional,omitempty"`
}

func (a *app) doctorCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Tell what this machine lacks, with the remedy",
		Args:  usageArgs(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			findings := examine(c.Context())
			if a.json {
				if err := a.printJSON(findings); err != nil {
					return err
				}
			} else {
				for _, f := range findings {
					mark := "ok     "
					switch {
					case !f.OK && f.Optional:
						mark = "no     "
					case !f.OK:
						mark = "missing"
					}
					fmt.Fprintf(a.stdout, "%s %-11s %s\n", mark, f.Check, f.Says)
					if !f.OK {
						fmt.Fprintf(a.stdout, "                    without it: %s\n", f.Needed)
					}
				}
			}
			if len(needed(findings)) > 0 {
				return exitError(1)
			}
			return nil
		},
	}
}

// examine looks at everything that a ring3 needs of its machine.
func examine(ctx context.Context) []Finding {
	check := func(name, needed string, f func() (string, error)) Finding {
		says, err := f()
		if err != nil {
			says = strings.ReplaceAll(err.Error(), "\n", "; ")
		}
		return Finding{Check: name, OK: err == nil, Says: says, Needed: needed}
	}
	return append([]Finding{
		check("qemu", "no device of the backend qemu; sim has models that need nothing, such as sim:e1000e", func() (string, error) { return versionOf(ctx, qemu.Binary, "qemu-system-x86") }),
		optional(check("swtpm", "no TPM of the backend qemu; sim:tpm-tis needs nothing", func() (string, error) { return versionOf(ctx, swtpm.Binary, "swtpm") })),
		check("fuse", "no mounted tree: only 'ring3 get' and 'ring3 set' work, with 'ring3 up --no-mount'", func() (string, error) {
			return "the tree can be mounted", kernfs.Probe()
		}),
		check("namespaces", "'ring3 shell' and 'ring3 run' are refused; the tree of 'ring3 up' can be used where it is mounted", func() (string, error) {
			return "a private user and mount namespace can be made", userns.Probe()
		}),
		check("run folder", "nothing can be started", func() (string, error) { return instance.Base(true) }),
	}, doctorHardware(check)...)
}

// optional marks what only some want.
func optional(f Finding) Finding {
	f.Optional = true
	return f
}

// versionOf runs a program for its version line.
func versionOf(ctx context.Context, program, pkg string) (string, error) {
	path, err := exec.LookPath(program)
	if err != nil {
		return "", fmt.Errorf("%s is not installed: Debian, Ubuntu: apt-get install %s", program, pkg)
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("%s --version: %w: install it anew", path, err)
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return fmt.Sprintf("%s (%s)", strings.TrimSpace(line), path), nil
}
