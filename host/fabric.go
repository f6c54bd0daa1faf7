package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/ring3dev/ring3/internal/hwbind"
	"github.com/ring3dev/ring3/internal/instance"
	"github.com/ring3dev/ring3/internal/klog"
	"github.com/ring3dev/ring3/rionet/fabric"
	"github.com/ring3dev/ring3/rionet/fabricd"
)

// fabricSocket is the name of the default socket, in the folder of the running instances.
const fabricSocket = "fabric.sock"

// maxTopology is how long a topology's file may be: that of 65,534 endpoints is a tenth of it.
const maxTopology = 64 << 20

func (a *app) fabricCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "fabric",
		Short: "Run a RapidIO fabric, whose nodes are processes and virtual machines",
		Long: `Run a RapidIO fabric, whose nodes are processes (ring3 up rio0=fabric:PATH,node=NAME) and virtual
machines (-device ivshmem-doorbell), look at it, and make its links fail. docs/rapidio.md has a tour.

A fabric is described in YAML:

  ids: 8                                     # 8 or 16, the width of device IDs
  switches: [{name: sw0, ports: 4, kind: standard}]   # or tsi500
  endpoints: [{name: pe0}, {name: pe1}]
  links:
    - [pe0, "sw0:0"]
    - {ends: [pe1, "sw0:1"], width: 4, rate: 10G, delay: 5us, loss: 0.01}

A link with trust: true, between two endpoints, lets their nodes share memory beside the switches.

Where no socket is named it is ` + fabricSocket + ` in the folder of the running instances:
$XDG_RUNTIME_DIR/ring3.`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			_ = c.Help()
			return exitError(2)
		},
	}
	c.AddCommand(a.fabricUpCmd(), a.fabricShowCmd(), a.fabricLinkCmd(), a.fabricStatsCmd())
	return c
}

// fabricAt is which fabric a command is about.
type fabricAt struct{ socket, owner string }

// socketFlag adds the flag that says at which socket.
func socketFlag(c *cobra.Command, socket *string) {
	c.Flags().StringVar(socket, "socket", "", "the fabric's Unix socket at `PATH` (default: "+fabricSocket+" in the run folder)")
}

// fabricFlags add those that say which fabric that runs.
func fabricFlags(c *cobra.Command, at *fabricAt) {
	socketFlag(c, &at.socket)
	c.Flags().StringVar(&at.owner, "owner", "", "the `USER` who may run it; otherwise only this user, or root")
}

// errNoFabric is what commands say that find no default socket.
var errNoFabric = errors.New("no fabric is running; start one with 'ring3 fabric up FILE', or say which with --socket")

// fabricPath is the socket that the user means. Where it is to be made, so is the run folder.
func fabricPath(socket string, create bool) (string, error) {
	if socket != "" {
		return filepath.Abs(socket)
	}
	base, err := instance.Base(create)
	if !create && errors.Is(err, fs.ErrNotExist) {
		return "", errNoFabric
	}
	return filepath.Join(base, fabricSocket), err
}

// dialFabric finds the fabric that the user means.
func dialFabric(ctx context.Context, at fabricAt) (*fabricd.Client, error) {
	path, err := fabricPath(at.socket, false)
	if err != nil {
		return nil, err
	}
	var owners []int
	if at.owner != "" {
		o, err := hwbind.FindUser(at.owner)
		if err != nil {
			return nil, usagef("--owner: %v", err)
		}
		owners = append(owners, o.UID)
	}
	c, err := fabricd.Dial(ctx, path, owners...)
	if at.socket == "" && errors.Is(err, fs.ErrNotExist) {
		return nil, errNoFabric
	}
	return c, err
}

func (a *app) fabricUpCmd() *cobra.Command {
	var socket string
	c := &cobra.Command{
		Use:   "up FILE",
		Short: "Run the fabric that FILE describes until interrupted",
		Long: `Run the fabric that FILE describes (YAML; - is standard input) until SIGINT or SIGTERM. Then its nodes are told,
and join again when it is back.

Nodes join it at its socket, and virtual machines at the one of their endpoint, PATH.d/NAME. Only who
started it may connect.`,
		Example: `  ring3 fabric up lab.yaml
  ring3 fabric up lab.yaml --socket /run/user/1000/lab.sock
  qemu-system-x86_64 ... -chardev socket,id=rio,path=/run/user/1000/lab.sock.d/pe1 \
      -device ivshmem-doorbell,chardev=rio,vectors=8`,
		Args: usageArgs(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, args []string) error { return a.fabricUp(c.Context(), args[0], socket) },
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return []string{"yaml", "yml"}, cobra.ShellCompDirectiveFilterFileExt
		},
	}
	socketFlag(c, &socket)
	return c
}

func (a *app) fabricUp(ctx context.Context, file, socket string) error {
	started := time.Now()
	text, err := a.readInput(file, maxTopology)
	if err != nil {
		return err
	}
	t, err := fabric.Parse(file, text)
	if err != nil {
		return err
	}
	path, err := fabricPath(socket, true)
	if err != nil {
		return err
	}
	log := klog.New(klog.Options{Stderr: a.stderr}).Logger()
	return fabricd.Serve(ctx, fabricd.Config{Topology: t, Socket: path, Log: log, Ready: func() {
		fmt.Fprintf(a.stdout, "fabric of %s and %s at %s is ready after %d ms; 'ring3 fabric show' shows it, Ctrl-C ends it\n",
			count(len(t.Endpoints), "endpoint"), count(len(t.Switches), "switch"), path, time.Since(started).Milliseconds())
	}})
}

// count is a number of things in words.
func count(n int, what string) string {
	switch {
	case n == 1:
	case what == "switch":
		what += "es"
	default:
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}
