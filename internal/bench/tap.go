package bench

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/ring3dev/ring3/internal/netspace"
	"github.com/ring3dev/ring3/netdev"
	"github.com/ring3dev/ring3/netdev/tap"
)

// tapCase is two wired devices as kernel interfaces.
type tapCase struct {
	name string
	spec rigSpec
	cfg  tap.Config
	mtu  int // 0 means the devices' own
}

func tapCases() []tapCase {
	off := tap.Config{NoOffload: true}
	return []tapCase{
		{"tcp sim:e1000e", rigSpec{sim: true, model: "e1000e"}, tap.Config{}, 0},
		{"tcp sim:e1000e gro=off", rigSpec{sim: true, model: "e1000e"}, tap.Config{NoGRO: true}, 0},
		{"tcp sim:e1000e offload=off", rigSpec{sim: true, model: "e1000e"}, off, 0},
		{"tcp sim:e1000e mtu=9000", rigSpec{sim: true, model: "e1000e"}, tap.Config{}, 9000},
		{"tcp qemu:e1000e", rigSpec{model: "e1000e"}, tap.Config{}, 0},
		{"tcp qemu:e1000e offload=off", rigSpec{model: "e1000e"}, off, 0},
		{"tcp qemu:e1000e mtu=9000", rigSpec{model: "e1000e"}, tap.Config{}, 9000},
		{"tcp qemu:e1000", rigSpec{model: "e1000"}, tap.Config{}, 0},
	}
}

// taps compares TCP between two kernels' interfaces over two wired NICs with TCP over a veth
// pair, in turn, each pair in two network namespaces.
func taps(ctx context.Context, o *Options, emit func(Row) error) error {
	var wanted []tapCase
	for _, c := range tapCases() {
		if o.wants("tap", c.name) {
			wanted = append(wanted, c)
		}
	}
	if len(wanted) == 0 {
		return nil
	}
	if _, err := exec.LookPath("iperf3"); err != nil {
		o.Log.Warn("bench: tap is left out: iperf3 is not installed (Debian: apt-get install iperf3)")
		return nil
	}
	ends, err := newEnds()
	if err != nil {
		o.Log.Warn("bench: tap is left out: " + err.Error())
		return nil
	}
	defer ends.close()
	if err := ends.veth(); err != nil {
		o.Log.Warn("bench: tap is left out: making a veth pair: " + err.Error())
		return nil
	}
	for _, c := range wanted {
		row, err := tapRow(ctx, o, ends, c)
		var refused *tapRefused
		if errors.As(err, &refused) {
			o.Log.Warn("bench: tap is left out: " + err.Error())
			return nil
		}
		if err != nil {
			return fmt.Errorf("tap %s: %w", c.name, err)
		}
		if err := emit(row); err != nil {
			return err
		}
	}
	return nil
}

// tapRefused says that there can be no TAP here.
type tapRefused struct{ error }

// Addresses: of the veth pair, and of the NICs.
const (
	vethNet = "10.66.0."
	nicNet  = "10.66.1."
)

// tapRow measures one case.
func tapRow(ctx context.Context, o *Options, e *ends, c tapCase) (row Row, err error) {
	c.spec.n, c.spec.options = 2, ringOf(1024)
	r, err := newRigOf(ctx, o, c.spec)
	if err != nil {
		return Row{}, err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	for i, d := range r.nets {
		if m, ok := d.(netdev.MTUSetter); ok && c.mtu != 0 {
			if err := m.SetMTU(ctx, c.mtu); err != nil {
				return Row{}, err
			}
		}
		cfg := c.cfg
		cfg.Name, cfg.Up, cfg.Log = fmt.Sprintf("rt%d", i), true, o.Log
		var b *tap.Bridge
		e[i].Do(func() {
			if b, err = tap.Attach(d, cfg); err != nil {
				err = &tapRefused{err}
				return
			}
			err = address(b.Name(), nicNet+strconv.Itoa(i+1))
		})
		if b != nil {
			defer func() { err = errors.Join(err, b.Close()) }()
		}
		if err != nil {
			return Row{}, err
		}
	}
	row, err = e.besideVeth(ctx, o)
	row.Bench, row.Case = "tap", c.name
	return row, err
}

// besideVeth measures TCP over the NICs and over the veth pair, in turn.
func (e *ends) besideVeth(ctx context.Context, o *Options) (Row, error) {
	var limits, values, ratios []float64
	for i := range o.Pairs + 1 {
		limit, err := e.iperf(ctx, o, vethNet+"2")
		if err != nil {
			return Row{}, err
		}
		value, err := e.iperf(ctx, o, nicNet+"2")
		if err != nil {
			return Row{}, err
		}
		if i > 0 { // the first is a warm-up
			limits, values, ratios = append(limits, limit), append(values, value), append(ratios, value/limit)
		}
	}
	return Row{Value: median(values), Unit: "Mb/s", Limit: median(limits), Ratio: median(ratios), Samples: ratios}, nil
}

// ends are the two namespaces.
type ends [2]*netspace.Space

func newEnds() (*ends, error) {
	var e ends
	for i := range e {
		var err error
		if e[i], err = netspace.New(); err != nil {
			e.close()
			return nil, err
		}
	}
	return &e, nil
}

func (e *ends) close() {
	for _, s := range e {
		if s != nil {
			s.Close()
		}
	}
}

// veth makes a pair of interfaces, one in each namespace.
func (e *ends) veth() (err error) {
	e[0].Do(func() {
		a := netlink.NewLinkAttrs()
		a.Name = "veth0"
		if err = netlink.LinkAdd(&netlink.Veth{LinkAttrs: a, PeerName: "veth1", PeerNamespace: netlink.NsFd(e[1].FD())}); err == nil {
			err = address("veth0", vethNet+"1")
		}
	})
	if err != nil {
		return err
	}
	e[1].Do(func() { err = address("veth1", vethNet+"2") })
	return err
}

// address gives an interface of the thread's namespace an address and brings it up.
func address(name, ip string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	a, err := netlink.ParseAddr(ip + "/24")
	if err != nil {
		return err
	}
	if err := errors.Join(netlink.AddrAdd(l, a), netlink.LinkSetUp(l)); err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	return nil
}

// iperf runs iperf3 from the first namespace to an address of the second, and returns what
// arrived, in Mb/s.
func (e *ends) iperf(ctx context.Context, o *Options, to string) (float64, error) {
	server := exec.CommandContext(ctx, "iperf3", "-s", "-1", "-B", to, "--forceflush")
	out, err := server.StdoutPipe()
	if err == nil {
		e[1].Do(func() { err = server.Start() })
	}
	if err != nil {
		return 0, err
	}
	defer func() {
		_ = server.Process.Kill() // it has ended, where all went well
		_ = server.Wait()
	}()
	lines := bufio.NewScanner(out)
	for lines.Scan() && !strings.Contains(lines.Text(), "listening") {
	}
	drained := make(chan struct{})
	go func() { defer close(drained); _, _ = io.Copy(io.Discard, out) }()
	var answer, complaint bytes.Buffer
	client := exec.CommandContext(ctx, "iperf3", "-J", "-c", to, "-t", strconv.Itoa(max(1, int(o.Time.Seconds()+0.5))), "--connect-timeout", "5000")
	client.Stdout, client.Stderr = &answer, &complaint
	e[0].Do(func() { err = client.Start() })
	if err == nil {
		err = client.Wait()
	}
	if err != nil {
		_ = server.Process.Kill()
	}
	<-drained
	var result struct {
		Error string `json:"error"`
		End   struct {
			Received struct {
				Rate float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		} `json:"end"`
	}
	bad := json.Unmarshal(answer.Bytes(), &result)
	switch {
	case err != nil || bad != nil || result.Error != "":
		return 0, fmt.Errorf("iperf3 to %s: %w: %s%s", to, errors.Join(err, bad), result.Error, bytes.TrimSpace(complaint.Bytes()))
	case result.End.Received.Rate == 0:
		return 0, fmt.Errorf("iperf3 to %s: nothing arrived", to)
	}
	return result.End.Received.Rate / 1e6, nil
}
