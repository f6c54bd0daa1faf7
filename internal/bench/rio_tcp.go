package bench

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/ring3dev/ring3/internal/instance"
)

// rioTCPWays are how the two nodes are connected.
var rioTCPWays = []struct{ name, link string }{
	{"tcp fabric", ""},
	{"tcp direct", ", {ends: [pe0, pe1], trust: true}"},
}

// rioTCP compares TCP between two kernels' interfaces that are rionets of two `ring3 up`, with TCP over a veth pair, in turn.
func rioTCP(ctx context.Context, o *Options, emit func(Row) error) error {
	if !o.wantsAny(rioBench, []string{rioTCPWays[0].name, rioTCPWays[1].name}) {
		return nil
	}
	if _, err := exec.LookPath("iperf3"); err != nil {
		o.Log.Warn("bench: rio tcp is left out: iperf3 is not installed (Debian: apt-get install iperf3)")
		return nil
	}
	ends, err := newEnds()
	if err != nil {
		o.Log.Warn("bench: rio tcp is left out: " + err.Error())
		return nil
	}
	defer ends.close()
	if err := ends.veth(); err != nil {
		o.Log.Warn("bench: rio tcp is left out: making a veth pair: " + err.Error())
		return nil
	}
	for _, way := range rioTCPWays {
		if !o.wants(rioBench, way.name) {
			continue
		}
		row, err := rioTCPRow(ctx, o, ends, way.link)
		var refused *tapRefused
		if errors.As(err, &refused) {
			o.Log.Warn("bench: rio tcp is left out: " + err.Error())
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", way.name, err)
		}
		row.Case = way.name
		if err := emit(row); err != nil {
			return err
		}
	}
	return nil
}

// rioTCPRow measures one way.
func rioTCPRow(ctx context.Context, o *Options, e *ends, link string) (row Row, err error) {
	topology := "switches: [{name: sw0, ports: 2}]\nendpoints: [{name: pe0}, {name: pe1}]\nlinks: [[pe0, \"sw0:0\"], [pe1, \"sw0:1\"]" + link + "]\n"
	dir, daemon, socket, err := rioFabric(ctx, o, topology)
	if err != nil {
		return Row{}, err
	}
	defer func() { daemon.stop(); err = errors.Join(err, dir.remove()) }()
	for i, host := range []string{",host=0", ""} {
		name := fmt.Sprintf("rb%d", i)
		var node *rioChild
		e[i].Do(func() { // the process is born in the namespace
			node, err = startRIO(ctx, o, []string{instance.BaseEnv + "=" + filepath.Join(dir.path, "run")}, nil, "up", "-i", name, "--no-mount",
				fmt.Sprintf("%s=fabric:%s,node=pe%d%s", name, socket, i, host), "--tap", name+",up=on")
		})
		if err != nil {
			return Row{}, err
		}
		defer node.stop()
		if err := node.ready(); err != nil {
			return Row{}, &tapRefused{fmt.Errorf("ring3 up --tap: %w", err)}
		}
	}
	for i := range e {
		name := fmt.Sprintf("rb%d", i)
		e[i].Do(func() { err = address(name, fmt.Sprintf("%s%d", nicNet, i+1)) })
		if err != nil {
			return Row{}, err
		}
	}
	row, err = e.besideVeth(ctx, o)
	row.Bench = rioBench
	return row, err
}

// ready waits until a `ring3 up` says that it is.
func (c *rioChild) ready() error {
	for {
		line, err := c.out.ReadString('\n')
		if err != nil {
			return errors.Join(err, c.cmd.Wait())
		}
		if strings.Contains(line, "is ready") {
			return nil
		}
	}
}
