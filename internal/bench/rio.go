package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const rioBench = "rio"

// rioTopology has two pairs of endpoints: one whose messages go through the fabric, and one with a direct link.
const rioTopology = `switches: [{name: sw0, ports: 4}]
endpoints: [{name: pe0}, {name: pe1}, {name: pe2}, {name: pe3}]
links: [[pe0, "sw0:0"], [pe1, "sw0:1"], [pe2, "sw0:2"], [pe3, "sw0:3"], {ends: [pe2, pe3], trust: true}]
`

// rioWays are how messages go between two processes. The limit of the first two is the socket for messages, and the ring for bytes.
var rioWays = []string{"fabric", "direct", "socket", "ring"}

var rioSizes = []int{64, 256, 1024, 4096}

// rioWanted are the ratios that are wanted: fabric and direct, to the limit.
func rioWanted(way, limit string, size int) float64 {
	switch fmt.Sprintf("%s/%s %d", way, limit, size) {
	case "fabric/socket 64":
		return 2
	case "direct/socket 64":
		return 5
	case "fabric/ring 4096":
		return 0.4
	case "direct/ring 4096":
		return 0.8
	}
	return 0
}

// rio is RapidIO: messages between two processes beside other ways, TCP over it, and enumeration.
func rio(ctx context.Context, o *Options, emit func(Row) error) error {
	for _, f := range []func(context.Context, *Options, func(Row) error) error{rioMessages, rioTCP, rioEnumerate} {
		if err := f(ctx, o, emit); err != nil {
			return fmt.Errorf("rio: %w", err)
		}
	}
	return nil
}

// rioMessages measures bursts at each size, and round trips.
func rioMessages(ctx context.Context, o *Options, emit func(Row) error) error {
	var all, trips []string
	for _, size := range rioSizes {
		all = append(all, rioCases(size)...)
	}
	for _, way := range rioWays {
		trips = append(trips, rioTrip(way, "p50"), rioTrip(way, "p99"))
	}
	if !o.wantsAny(rioBench, append(all, trips...)) {
		return nil
	}
	r, err := newRIORig(ctx, o)
	if err != nil {
		return err
	}
	defer r.close()
	for _, size := range rioSizes {
		if !o.wantsAny(rioBench, rioCases(size)) {
			continue
		}
		if err := r.bursts(o, size, emit); err != nil {
			return err
		}
	}
	if !o.wantsAny(rioBench, trips) {
		return nil
	}
	return r.trips(o, emit)
}

func rioCase(what, way string, size int) string { return fmt.Sprintf("%s size=%d %s", what, size, way) }
func rioTrip(way, quantile string) string {
	return fmt.Sprintf("round trip size=64 %s %s", way, quantile)
}

// rioCases are the rows of a size.
func rioCases(size int) (out []string) {
	for _, way := range rioWays {
		for _, what := range []string{"messages", "bytes", "cpu"} {
			out = append(out, rioCase(what, way, size))
		}
	}
	return out
}

// rioChild is a process of the rig's.
type rioChild struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// rioRig is a fabric, and two processes that are its nodes.
type rioRig struct {
	ctx    context.Context
	dir    *scratch
	daemon *rioChild
	nodes  [2]*rioChild
}

func newRIORig(ctx context.Context, o *Options) (_ *rioRig, err error) {
	r := &rioRig{ctx: ctx}
	defer func() {
		if err != nil {
			r.close()
		}
	}()
	var socket string
	if r.dir, r.daemon, socket, err = rioFabric(ctx, o, rioTopology); err != nil {
		return nil, err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("a pair of sockets: %w", err)
	}
	memory, err := unix.MemfdCreate("ring3-bench", unix.MFD_CLOEXEC)
	files := []*os.File{os.NewFile(uintptr(pair[0]), "socket"), os.NewFile(uintptr(pair[1]), "socket"), os.NewFile(uintptr(memory), "rings")}
	defer func() {
		for _, f := range files {
			if f != nil {
				f.Close()
			}
		}
	}()
	if err == nil {
		err = unix.Ftruncate(memory, ringsBytes)
	}
	if err != nil {
		return nil, fmt.Errorf("memory for rings: %w", err)
	}
	for i, nodes := range [][2]string{{"pe0", "pe2"}, {"pe1", "pe3"}} {
		text, err := json.Marshal(rioSpec{Socket: socket, Nodes: nodes, First: i == 0})
		if err != nil {
			return nil, err
		}
		if r.nodes[i], err = startRIO(ctx, o, []string{rioEnv + "=" + string(text)}, []*os.File{files[i], files[2]}, "bench"); err != nil {
			return nil, err
		}
	}
	return r, r.introduce()
}

// introduce has the nodes find each other.
func (r *rioRig) introduce() error {
	a, b, err := r.both(rioRequest{Op: "ids"}, rioRequest{Op: "ids"})
	if err != nil {
		return err
	}
	_, _, err = r.both(rioRequest{Op: "peer", Peer: b.IDs}, rioRequest{Op: "peer", Peer: a.IDs})
	return err
}

// rioFabric starts the daemon.
func rioFabric(ctx context.Context, o *Options, topology string) (dir *scratch, daemon *rioChild, socket string, err error) {
	if dir, err = newScratch(); err != nil {
		return nil, nil, "", err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, dir.remove())
		}
	}()
	file := filepath.Join(dir.path, "fabric.yaml")
	if err = os.WriteFile(file, []byte(topology), 0o600); err != nil {
		return nil, nil, "", err
	}
	socket = filepath.Join(dir.path, "fabric.sock")
	if daemon, err = startRIO(ctx, o, nil, nil, "fabric", "up", file, "--socket", socket); err != nil {
		return nil, nil, "", err
	}
	for {
		line, err := daemon.out.ReadString('\n')
		if err != nil {
			daemon.stop()
			return dir, nil, "", fmt.Errorf("ring3 fabric up: %w", err)
		}
		if strings.Contains(line, "is ready") {
			return dir, daemon, socket, nil
		}
	}
}

// startRIO starts this program as another process.
func startRIO(ctx context.Context, o *Options, env []string, files []*os.File, args ...string) (*rioChild, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c := &rioChild{cmd: exec.CommandContext(ctx, self, args...)}
	c.cmd.Cancel = func() error { return c.cmd.Process.Signal(unix.SIGTERM) }
	c.cmd.WaitDelay = 10 * time.Second
	c.cmd.Stderr, c.cmd.ExtraFiles, c.cmd.Env = o.Stderr, files, append(os.Environ(), env...)
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	c.out = bufio.NewReader(out)
	return c, c.cmd.Start()
}

func (c *rioChild) stop() {
	if c == nil || c.cmd.Process == nil {
		return
	}
	c.in.Close()
	_ = c.cmd.Process.Signal(unix.SIGTERM)
	_ = c.cmd.Wait()
}

func (r *rioRig) close() {
	for _, n := range r.nodes {
		n.stop()
	}
	r.daemon.stop()
	_ = r.dir.remove()
}

// both has each node do something, at the same time.
func (r *rioRig) both(first, second rioRequest) (a, b rioAnswer, err error) {
	ended := make(chan error, 1)
	go func() {
		var err error
		b, err = r.nodes[1].do(second)
		ended <- err
	}()
	a, err = r.nodes[0].do(first)
	if err != nil { // the other may wait for what never comes
		_ = r.nodes[1].cmd.Process.Kill()
	}
	err = errors.Join(err, <-ended)
	return a, b, errors.Join(err, r.ctx.Err())
}

func (c *rioChild) do(q rioRequest) (rioAnswer, error) {
	if err := json.NewEncoder(c.in).Encode(q); err != nil {
		return rioAnswer{}, err
	}
	line, err := c.out.ReadBytes('\n')
	if err != nil {
		return rioAnswer{}, fmt.Errorf("a node's process: %w", err)
	}
	var a rioAnswer
	if err := json.Unmarshal(line, &a); err != nil {
		return rioAnswer{}, fmt.Errorf("a node's process: %w", err)
	}
	if a.Error != "" {
		return a, errors.New(a.Error)
	}
	return a, nil
}

// cpu is the time that processes took of the CPUs, all that take part in messages together.
func (r *rioRig) cpu() (sum time.Duration) {
	for _, c := range []*rioChild{r.daemon, r.nodes[0], r.nodes[1]} {
		var t unix.Timespec
		if unix.ClockGettime(int32(^c.cmd.Process.Pid<<3|2), &t) == nil { // clock_getcpuclockid(3)
			sum += time.Duration(t.Nano())
		}
	}
	return sum
}

// rioRate is what a way does.
type rioRate struct {
	perSecond float64
	cpu       float64 // ns a message
}

// run sends messages one way, in bursts.
func (r *rioRig) run(way string, size, count int) (rioRate, error) {
	before := r.cpu()
	a, b, err := r.both(rioRequest{Op: "send", Way: way, Size: size, Count: count}, rioRequest{Op: "receive", Way: way, Size: size, Count: count})
	if err != nil {
		return rioRate{}, err
	}
	return rioRate{float64(count) / (float64(max(b.End, a.End)-a.Begin) / 1e9), float64((r.cpu() - before).Nanoseconds()) / float64(count)}, nil
}

// bursts measures all ways at one size, in turn.
func (r *rioRig) bursts(o *Options, size int, emit func(Row) error) error {
	counts := make(map[string]int)
	for _, way := range rioWays { // warms up, and says how many make a measurement
		n := 2048
		for range 2 {
			rate, err := r.run(way, size, n)
			if err != nil {
				return err
			}
			n = max(2048, int(rate.perSecond*o.Time.Seconds()))
		}
		counts[way] = n
	}
	v := make(map[string][]rioRate)
	for range o.Pairs {
		for _, way := range rioWays {
			rate, err := r.run(way, size, counts[way])
			if err != nil {
				return err
			}
			v[way] = append(v[way], rate)
		}
	}
	return rioRows(o, size, v, emit)
}

// rioRows makes rows of samples.
func rioRows(o *Options, size int, v map[string][]rioRate, emit func(Row) error) error {
	perSecond := func(x rioRate) float64 { return x.perSecond }
	for _, k := range []struct {
		what, unit, limit string
		f                 func(rioRate) float64
	}{
		{"messages", "/s", "socket", perSecond},
		{"bytes", "MB/s", "ring", func(x rioRate) float64 { return x.perSecond * float64(size) / 1e6 }},
		{"cpu", "ns", "socket", func(x rioRate) float64 { return x.cpu }},
	} {
		for _, way := range rioWays {
			if !o.wants(rioBench, rioCase(k.what, way, size)) {
				continue
			}
			limit := k.limit
			if way == "socket" || way == "ring" {
				limit = ""
			}
			row := beside(v[way], v[limit], k.f)
			row.Bench, row.Case, row.Unit = rioBench, rioCase(k.what, way, size), k.unit
			if k.what != "cpu" {
				row.Wanted = rioWanted(way, limit, size)
			}
			if err := emit(row); err != nil {
				return err
			}
		}
	}
	return nil
}

// beside is a row of samples, and of the limit's that were taken in turn with them.
func beside[T any](v, limit []T, f func(T) float64) Row {
	var values, limits, ratios []float64
	for i, x := range v {
		values = append(values, f(x))
		if limit != nil {
			limits, ratios = append(limits, f(limit[i])), append(ratios, f(x)/f(limit[i]))
		}
	}
	if limit == nil {
		return Row{Value: median(values), Samples: values}
	}
	return Row{Value: median(values), Limit: median(limits), Ratio: median(ratios), Samples: ratios}
}

// trips measures round trips of all ways, in turn.
func (r *rioRig) trips(o *Options, emit func(Row) error) error {
	const size = 64
	count := max(200, int(o.Time.Seconds()*1e4))
	v := make(map[string][]rioAnswer)
	for i := range o.Pairs + 1 {
		for _, way := range rioWays {
			a, _, err := r.both(rioRequest{Op: "ask", Way: way, Size: size, Count: count}, rioRequest{Op: "echo", Way: way, Size: size, Count: count})
			if err != nil {
				return err
			}
			if i > 0 { // the first warms up
				v[way] = append(v[way], a)
			}
		}
	}
	for _, q := range []struct {
		name string
		f    func(rioAnswer) float64
	}{{"p50", func(a rioAnswer) float64 { return a.P50 }}, {"p99", func(a rioAnswer) float64 { return a.P99 }}} {
		for _, way := range rioWays {
			if !o.wants(rioBench, rioTrip(way, q.name)) {
				continue
			}
			limit := v["socket"]
			if way == "socket" {
				limit = nil
			}
			row := beside(v[way], limit, q.f)
			row.Bench, row.Case, row.Unit = rioBench, rioTrip(way, q.name), "us"
			if err := emit(row); err != nil {
				return err
			}
		}
	}
	return nil
}
