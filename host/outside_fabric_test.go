package host

import (
	"errors"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/ring3dev/ring3/internal/node"
	"github.com/ring3dev/ring3/rionet/fabricd"
)

// nodeInfo is the one device of a supervisor's that is a node.
func nodeInfo(s *supervisor) DeviceInfo {
	for _, d := range s.Devices() {
		if d.Name == "rio0" {
			return d
		}
	}
	return DeviceInfo{}
}

// TestSuperviseFabric: nodes of a fabric have workers, which come back as the nodes that they were, and pktgen's run between them goes on, whoever dies.
func TestSuperviseFabric(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "f.sock")
	runFabric(t, socket, "8")
	host, _ := supervise(t, nil, "rio0=fabric:"+socket+",node=pe0,host=0,window=64K")
	agent, _ := supervise(t, nil, "rio0=fabric:"+socket+",node=pe1,window=64K")
	up := func(what string) {
		t.Helper()
		await(t, what+": both have their IDs", func() bool {
			h, a := nodeInfo(host), nodeInfo(agent)
			return h.State == stateUp && a.State == stateUp && h.MAC == "00:01:00:01:00:00" && a.MAC == "00:01:00:01:00:01" && h.Link != "down" && a.Link != "down"
		})
	}
	up("first")
	started := sends(t, host, "rio0", "00:01:00:01:00:01", time.Millisecond)
	receives := func(what string) { awaitReceives(t, agent, "rio0", what) }
	receives("first")
	for i, s := range []*supervisor{agent, host, agent} {
		what := []string{"the receiver died", "the sender died", "the receiver died again"}[i]
		ch := s.chargeOf("rio0")
		n := ch.deaths.count
		if err := syscall.Kill(ch.worker().p.PID(), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		awaitUp(t, ch, n+1)
		up(what)
		receives(what)
		await(t, what+": each sees the other's memory", func() bool {
			return windowLinks(host) == 1 && windowLinks(agent) == 1
		})
	}
	select {
	case err := <-started:
		t.Fatalf("start was answered before the end: %v", err)
	default:
	}
	host.set(t, "/proc/net/pktgen/pgctrl", "stop")
	if err := <-started; err != nil {
		t.Errorf("start: %v", err)
	}
	sent, rx := host.Figures().Pktgen[0].Packets, receivedBy(agent, "rio0")
	if rx.Received+rx.Lost > sent || rx.Received == 0 || rx.Lost == 0 || rx.Duplicated != 0 {
		t.Errorf("sent %d, received %d, lost %d, twice %d: want some of each received and lost, and none more than sent", sent, rx.Received, rx.Lost, rx.Duplicated)
	}
	t.Logf("sent %d, received %d, lost %d", sent, rx.Received, rx.Lost)
}

// windowLinks counts the links to memory of other nodes.
func windowLinks(s *supervisor) (n int) {
	const all = "/sys/bus/rapidio/devices"
	l, err := s.Tree().Walk(all)
	dir, ok := l.(*node.Dir)
	if err != nil || !ok {
		return 0
	}
	for _, name := range dir.Names() {
		if d, _ := s.Tree().Walk(all + "/" + name); d != nil {
			if d, ok := d.(*node.Dir); ok && d.Lookup("window0") != nil { // a link out of the tree
				n++
			}
		}
	}
	return n
}

// TestSuperviseFabricGone: a fabric that dies is no death of a worker; and one that dies while the fabric is away is replaced once that is back.
func TestSuperviseFabricGone(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "f.sock")
	f := runFabric(t, socket, "8")
	s, _ := supervise(t, nil, "rio0=fabric:"+socket+",node=pe0,host=0")
	ch := s.chargeOf("rio0")
	await(t, "it has its ID", func() bool { return nodeInfo(s).MAC != "" })
	mac := nodeInfo(s).MAC
	f.Close()
	await(t, "it joins again", func() bool { return nodeInfo(s).State == stateJoining })
	f = runFabric(t, socket, "8")
	await(t, "it is back", func() bool { d := nodeInfo(s); return d.State == stateUp && d.MAC == mac && d.Restarts == 0 })
	f.Close()
	await(t, "it joins again", func() bool { return nodeInfo(s).State == stateJoining })
	if err := syscall.Kill(ch.worker().p.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	await(t, "it waits for the fabric", func() bool {
		d := nodeInfo(s)
		return d.State == stateRecovering && d.Restarts == 1 && d.Cause != d.LastCause
	})
	runFabric(t, socket, "8")
	awaitUp(t, ch, 1)
	await(t, "it is back", func() bool { d := nodeInfo(s); return d.State == stateUp && d.MAC == mac && d.Restarts == 1 })
}

// A worker joins as the node that the plan names, and as no other.
func TestFabricRefused(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "f.sock")
	runFabric(t, socket, "8")
	plan, err := ParsePlan([]string{"rio0=fabric:" + socket + ",node=pe0", "edu0=sim:edu"}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := holdFabrics(Config{}, groupPlan{Plan: plan})
	if err != nil {
		t.Fatal(err)
	}
	h := b.(*heldFabrics)
	for _, body := range []string{`{"device":"edu0"}`, `{"device":"pe1"}`, `{}`} {
		for what, f := range map[string]outsideCall{"join": h.join, "wait": h.wait} {
			if _, files, err := f(t.Context(), []byte(body), nil); !errors.Is(err, syscall.EACCES) || len(files) > 0 {
				t.Errorf("%s %s: %d files, %v, want EACCES", what, body, len(files), err)
			}
		}
	}
	joined := func() string {
		c, err := fabricd.Dial(t.Context(), socket)
		if err != nil {
			t.Fatal(err)
		}
		v, err := c.Show(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range v.Nodes {
			if n.PID != 0 {
				return n.Name
			}
		}
		return ""
	}
	for range 2 { // again: the one before ends
		_, files, err := h.join(t.Context(), []byte(`{"device":"rio0"}`), nil)
		if err != nil || len(files) != 1 {
			t.Fatalf("join: %d files, %v", len(files), err)
		}
		defer closeOpen(files)
		await(t, "it joined", func() bool { return joined() == "pe0" })
	}
	if err := h.Quiesce(t.Context()); err != nil {
		t.Error(err)
	}
	await(t, "it left, though its connection is open elsewhere", func() bool { return joined() == "" })
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	if _, files, err := h.join(t.Context(), []byte(`{"device":"rio0"}`), nil); err == nil || len(files) > 0 {
		t.Errorf("join after Close: %d files, %v", len(files), err)
	}
}
