package scan

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ring3dev/ring3/rionet/fabric"
	"github.com/ring3dev/ring3/rionet/rapidio"
)

// patience is how long a test waits for what must come.
const patience = 60 * time.Second

// newFabric makes a fabric of a topology.
func newFabric(t testing.TB, yaml string) *fabric.Fabric {
	t.Helper()
	topo, err := fabric.Parse("test.yaml", []byte(yaml))
	if err != nil {
		t.Fatal(err)
	}
	return fabric.New(topo, fabric.Options{})
}

// topology builds YAML.
type topology struct {
	ids                        int
	switches, endpoints, links []string
}

func (y *topology) sw(name string, ports int, kind string) {
	y.switches = append(y.switches, fmt.Sprintf("- {name: %s, ports: %d, kind: %s}\n", name, ports, kind))
}

func (y *topology) pe(names ...string) {
	for _, n := range names {
		y.endpoints = append(y.endpoints, fmt.Sprintf("- {name: %s}\n", n))
	}
}

func (y *topology) link(a, b string) {
	y.links = append(y.links, fmt.Sprintf("- ['%s', '%s']\n", a, b))
}

func (y *topology) String() string {
	s := ""
	if y.ids != 0 {
		s = fmt.Sprintf("ids: %d\n", y.ids)
	}
	if len(y.switches) > 0 {
		s += "switches:\n" + strings.Join(y.switches, "")
	}
	return s + "endpoints:\n" + strings.Join(y.endpoints, "") + "links:\n" + strings.Join(y.links, "")
}

// star is a switch with so many endpoints.
func star(n int, kind string) *topology {
	y := &topology{}
	y.sw("sw0", n, kind)
	for i := range n {
		y.pe(fmt.Sprintf("pe%d", i))
		y.link(fmt.Sprintf("pe%d", i), fmt.Sprintf("sw0:%d", i))
	}
	return y
}

// logs is a log that tests read.
type logs struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// peer is a node of a fabric: a bus with one master port.
type peer struct {
	t     testing.TB
	ops   rapidio.Ops
	inner *fabric.Mport
	bus   *rapidio.Bus
	scan  *Scanner
	m     *rapidio.Mport
	log   *logs
	once  sync.Once
}

// quick are the times of tests: nothing is waited for that nothing tells of, unless the test is about that.
var quick = Options{Settle: 2 * time.Millisecond, Check: time.Hour, LockTimeout: time.Minute, DiscoverTimeout: patience}

// join attaches a node, -1: an agent, without scanning.
func join(t testing.TB, f *fabric.Fabric, node string, host int, o Options) *peer {
	t.Helper()
	inner, err := f.Mport(node)
	if err != nil {
		t.Fatal(err)
	}
	return joinOps(t, inner, inner, host, o)
}

func joinOps(t testing.TB, inner *fabric.Mport, ops rapidio.Ops, host int, o Options) *peer {
	t.Helper()
	p := &peer{t: t, inner: inner, ops: ops, log: &logs{}}
	log := slog.New(slog.NewTextHandler(p.log, &slog.HandlerOptions{Level: slog.LevelInfo, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
	p.bus = rapidio.NewBus(rapidio.BusOptions{Log: log})
	o.Log = log
	p.scan = New(p.bus, o)
	var err error
	if p.m, err = p.bus.AddMport(context.Background(), ops, rapidio.MportOptions{Host: host, Scan: p.scan}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.close)
	return p
}

// close takes the node away, as if its process had ended.
func (p *peer) close() {
	p.once.Do(func() {
		p.inner.Close()
		p.bus.Close()
		p.scan.Wait()
	})
}

func (p *peer) mustScan() {
	p.t.Helper()
	if err := p.tryScan(); err != nil {
		p.t.Fatalf("Scan: %v\n%s", err, p.log)
	}
}

func (p *peer) tryScan() error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return p.bus.Scan(ctx, -1)
}

// seen lists the devices of a node's net: names, IDs of endpoints.
func (p *peer) seen() string {
	var b strings.Builder
	for _, d := range p.bus.Devices() {
		b.WriteString(d.Name())
		if !d.IsSwitch() {
			fmt.Fprintf(&b, "=%d", d.DestID)
		}
		b.WriteByte(' ')
	}
	return strings.TrimSpace(b.String())
}

// endpoints lists the IDs of the endpoints that a node knows, sorted.
func (p *peer) endpoints() string {
	var ids [1 << 16]bool
	for _, d := range p.bus.Devices() {
		if !d.IsSwitch() {
			ids[d.DestID] = true
		}
	}
	s := ""
	for id, is := range ids {
		if is {
			s += fmt.Sprintf("%d ", id)
		}
	}
	return strings.TrimSpace(s)
}

// until waits for a condition.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not in %v", what, patience)
		}
	}
}

// eventually waits for a value.
func eventually(t testing.TB, what string, got func() string, want string) {
	t.Helper()
	var last string
	for end := time.Now().Add(patience); ; time.Sleep(2 * time.Millisecond) {
		if last = got(); last == want {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s = %s, want %s", what, last, want)
		}
	}
}

// routes is a switch's table as "id>port", in a fabric.
func routes(f *fabric.Fabric, name string) string {
	s := ""
	for _, sw := range f.Switches() {
		if sw.Name == name {
			for _, r := range sw.Routes {
				s += fmt.Sprintf("%d>%d ", r.Dest, r.Port)
			}
		}
	}
	return strings.TrimSpace(s)
}

// connected checks that every node whose ID is known reaches every other one, by routes alone, and answers with its ID.
func connected(t testing.TB, peers ...*peer) {
	t.Helper()
	ctx := context.Background()
	ids := make([]rapidio.DestID, len(peers))
	seen := map[rapidio.DestID]int{}
	for i, p := range peers {
		id, err := p.m.DestID(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if j, dup := seen[id]; dup || id == p.m.IDs().Any() {
			t.Errorf("node %d has ID %d, as node %d", i, id, j)
		}
		ids[i], seen[id] = id, i
	}
	for i, p := range peers {
		for j, id := range ids {
			if i == j {
				continue
			}
			v, err := p.m.Read32(ctx, id, rapidio.MaxHops, rapidio.RegBaseDeviceID)
			if err != nil {
				t.Errorf("node %d (ID %d) to ID %d: %v", i, ids[i], id, err)
			} else if got := p.m.IDs().Of(v); got != ids[j] {
				t.Errorf("node %d (ID %d) to ID %d: ID %d answers", i, ids[i], id, got)
			}
		}
	}
}

// unlocked checks that no device of the fabric stays locked, as its nodes see it.
func unlocked(t testing.TB, p *peer) {
	t.Helper()
	ctx := context.Background()
	eventually(t, "what is locked", func() string {
		s := ""
		for _, d := range p.bus.Devices() {
			if v, err := d.Read32(ctx, rapidio.RegHostLock); err != nil || v != rapidio.LockFree {
				s += fmt.Sprintf("%s: %#x %v ", d.Name(), v, err)
			}
		}
		if v, err := p.m.LocalRead32(ctx, rapidio.RegHostLock); err != nil || v != rapidio.LockFree {
			s += fmt.Sprintf("own: %#x %v", v, err)
		}
		return s
	}, "")
}
