package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus/ivshmem"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/rionet/fabricd"
	"github.com/ring3dev/ring3/rionet/mport"
	"github.com/ring3dev/ring3/rionet/rapidio"
	"github.com/ring3dev/ring3/rionet/rapidio/scan"
	"github.com/ring3dev/ring3/rionet/shm"
)

// rioEnv makes of `ring3 bench` one of the two processes that send each other messages: it has a rioSpec in JSON.
const rioEnv = "RING3_INTERNAL_BENCH_NODE"

// Descriptors that such a process has.
const (
	rioSocketFD = 3 + iota // its end of a pair of sockets
	rioRingFD              // memory with a ring in each direction
)

// rioSpec is what a process is to be.
type rioSpec struct {
	Socket string    // of the fabric
	Nodes  [2]string // the endpoint whose messages go through the fabric, and the one with a direct link
	First  bool      // enumerates, and has the first ring
}

// rioRequest is what it is to do; requests come as JSON on its standard input, and each has an answer on its standard output.
type rioRequest struct {
	Op    string // "ids", "peer", "send", "receive", "ask", "echo"
	Way   string
	Size  int
	Count int
	Peer  [2]rapidio.DestID // of "peer"
}

type rioAnswer struct {
	Error      string            `json:",omitempty"`
	IDs        [2]rapidio.DestID // of "ids"
	Begin, End int64             // ns of the machine's clock
	P50, P99   float64           // of "ask": us
}

// monotonic is the machine's clock, which all processes share.
func monotonic() int64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		return 0
	}
	return t.Nano()
}

// rioNode is such a process.
type rioNode struct {
	bus   *rapidio.Bus
	scan  *scan.Scanner
	ports [2]*rioPort
	ways  map[string]rioWay
	buf   []byte
}

// rioPort is one of its endpoints.
type rioPort struct {
	dev  *ivshmem.Device
	port *mport.Port
	m    *rapidio.Mport
	box  *mailWay
}

// runRIONode is the process's life: until its standard input ends.
func runRIONode(ctx context.Context, text string, log *slog.Logger, in io.Reader, out io.Writer) error {
	var spec rioSpec
	if err := json.Unmarshal([]byte(text), &spec); err != nil {
		return fmt.Errorf("bench: %s: %w", rioEnv, err)
	}
	n, err := newRIONode(ctx, spec, log)
	if err != nil {
		return err
	}
	defer n.close()
	requests, answers := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var q rioRequest
		if err := requests.Decode(&q); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("bench: a request: %w", err)
		}
		a, err := n.do(ctx, q)
		if err != nil {
			a.Error = err.Error()
		}
		if err := answers.Encode(a); err != nil {
			return fmt.Errorf("bench: an answer: %w", err)
		}
	}
}

func newRIONode(ctx context.Context, spec rioSpec, log *slog.Logger) (_ *rioNode, err error) {
	n := &rioNode{bus: rapidio.NewBus(rapidio.BusOptions{Log: log}), buf: make([]byte, rapidio.MaxMessage)}
	n.scan = scan.New(n.bus, scan.Options{Log: log})
	defer func() {
		if err != nil {
			n.close()
		}
	}()
	for i, name := range spec.Nodes {
		p := new(rioPort)
		n.ports[i] = p
		host := -1
		if spec.First && i == 0 {
			host = 0
		}
		if err := p.open(ctx, n, spec.Socket, name, host, log); err != nil {
			return nil, err
		}
	}
	here, there := 0, 1
	if !spec.First {
		here, there = 1, 0
	}
	ring, err := openRings(rioRingFD, here, there)
	if err != nil {
		return nil, err
	}
	n.ways = map[string]rioWay{"fabric": n.ports[0].box, "direct": n.ports[1].box, "socket": socketWay(rioSocketFD), "ring": ring}
	return n, nil
}

func (p *rioPort) open(ctx context.Context, n *rioNode, path, name string, host int, log *slog.Logger) error {
	conn, _, err := fabricd.Join(ctx, path, fabricd.Request{Node: name})
	if err != nil {
		return err
	}
	if p.dev, err = ivshmem.Open(ctx, conn, ivshmem.Options{Vectors: shm.NumVectors, Backend: "fabric", Log: log}); err != nil {
		return err
	}
	r := pci.Bind(ctx, p.dev, pci.Env{Name: name, Log: log}, []*pci.Driver{mport.Driver})
	if r.Outcome != pci.Bound {
		return r.Err
	}
	p.port = r.Instance.(*mport.Port)
	if p.m, err = n.bus.AddMport(ctx, p.port, rapidio.MportOptions{Host: host, Scan: n.scan}); err != nil {
		return err
	}
	p.box, err = openMail(ctx, p.m)
	return err
}

func (n *rioNode) close() {
	for _, p := range n.ports {
		if p == nil {
			continue
		}
		if p.port != nil {
			_ = p.port.Close()
		}
		if p.dev != nil {
			_ = p.dev.Close()
		}
	}
	n.bus.Close()
	n.scan.Wait()
}

// do is one request.
func (n *rioNode) do(ctx context.Context, q rioRequest) (a rioAnswer, err error) {
	switch q.Op {
	case "ids":
		a.IDs, err = n.ids(ctx)
		return a, err
	case "peer":
		for i, p := range n.ports {
			p.box.to = q.Peer[i]
		}
		return a, nil
	}
	way := n.ways[q.Way]
	if way == nil || q.Size < 1 || q.Size > len(n.buf) {
		return a, fmt.Errorf("bench: a request for %q, %d bytes", q.Way, q.Size)
	}
	p := n.buf[:q.Size]
	a.Begin = monotonic()
	switch q.Op {
	case "send":
		if err = way.send(p, q.Count); err == nil {
			err = way.finish(p)
		}
	case "receive":
		err = way.receive(q.Count)
	case "ask":
		a.P50, a.P99, err = ask(way, p, q.Count)
	case "echo":
		for i := 0; i < q.Count && err == nil; i++ {
			if err = way.receive(1); err == nil {
				err = way.send(p, 1)
			}
		}
		err = errors.Join(err, way.finish(p))
	default:
		err = fmt.Errorf("bench: a request for %q", q.Op)
	}
	a.End = monotonic()
	if err != nil {
		err = fmt.Errorf("%s %s: %w", q.Way, q.Op, err)
	}
	return a, err
}

// ids finds the others, and says which device IDs the ports have.
func (n *rioNode) ids(ctx context.Context) (ids [2]rapidio.DestID, err error) {
	if err := n.bus.Scan(ctx, -1); err != nil {
		return ids, err
	}
	for i, p := range n.ports {
		if ids[i], err = p.m.DestID(ctx); err != nil {
			return ids, err
		}
	}
	return ids, nil
}

// ask measures round trips.
func ask(way rioWay, p []byte, count int) (p50, p99 float64, err error) {
	took := make([]time.Duration, count)
	for i := range took {
		begin := time.Now()
		if err = way.send(p, 1); err == nil {
			err = way.receive(1)
		}
		if err != nil {
			return 0, 0, err
		}
		took[i] = time.Since(begin)
	}
	slices.Sort(took)
	us := func(q float64) float64 { return float64(quantile(took, q).Nanoseconds()) / 1000 }
	return us(0.5), us(0.99), way.finish(p)
}

// rioNodeOf says whether this process is one, and what it is to be.
func rioNodeOf() (string, bool) {
	text, ok := os.LookupEnv(rioEnv)
	if ok {
		_ = os.Unsetenv(rioEnv)
	}
	return text, ok
}
