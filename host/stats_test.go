package host

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/drivers/e1000"
	"github.com/ring3dev/ring3/drivers/edu"
	"github.com/ring3dev/ring3/internal/figures"
	"github.com/ring3dev/ring3/internal/node"
)

// newFiguresSystem is eth0 wired to eth1, and edu0.
func newFiguresSystem(t *testing.T) *System {
	t.Helper()
	plan, err := ParsePlan([]string{"eth0=sim:e1000e", "eth1=sim:e1000e", "edu0=sim:edu"}, []string{"eth0-eth1"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewSystem(t.Context(), Config{Plan: plan, Drivers: []*pci.Driver{e1000.Driver, edu.Driver}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// write writes lines to a file of the tree.
func write(t *testing.T, s *System, file string, lines ...string) {
	t.Helper()
	n, err := s.Tree().Walk(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range lines {
		if _, err := n.(*node.File).Write(t.Context(), []byte(l+"\n")); err != nil {
			t.Fatalf("writing %q to %s: %v", l, file, err)
		}
	}
}

// TestFigures: everything that counts is in a snapshot.
func TestFigures(t *testing.T) {
	s := newFiguresSystem(t)
	f := s.Figures()
	if len(f.Devices) != 3 || f.Devices[2].Net != nil || f.Devices[2].Driver != "edu" || len(f.Pktgen) != 0 || f.Pktgen == nil || f.Time.IsZero() {
		t.Errorf("figures of what has done nothing: %+v", f)
	}
	if d := f.Devices[0]; d.Name != "eth0" || d.Driver != "e1000" || d.Model != "82574L" || !d.Up || !d.Net.Link || d.Net.Speed != 1000 || !d.Net.FullDuplex || len(d.Interrupts) == 0 {
		t.Errorf("figures of eth0: %+v", d)
	}
	var names []string
	for _, r := range f.Receivers {
		names = append(names, r.Name)
	}
	if got := strings.Join(names, " "); got != "eth0 eth1 lo" {
		t.Errorf("receivers are %s, want eth0 eth1 lo", got)
	}
	const pktgen = "/proc/net/pktgen/"
	write(t, s, pktgen+"kpktgend_0", "add_device eth0")
	write(t, s, pktgen+"eth0", "count 500", "pkt_size 60", "dst_mac 52:54:00:12:34:57")
	write(t, s, pktgen+"pgctrl", "start")
	for deadline := time.Now().Add(20 * time.Second); f.Receivers[1].Received < 500 && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		f = s.Figures()
	}
	st, r, g := f.Devices[0].Net.Statistics, f.Receivers[1], f.Pktgen[0]
	if st.TxPackets != 500 || f.Devices[1].Net.Statistics.RxPackets != 500 || r.Received != 500 || r.Latency.Samples != 500 || g.Packets != 500 || g.State() != "stopped" {
		t.Errorf("figures after 500 packets: %+v", f)
	}
}

// TestFiguresClose: devices stay until figures have been read, and are not read after that.
func TestFiguresClose(t *testing.T) {
	s := newFiguresSystem(t)
	s.figuring.RLock() // as Figures does
	closed := make(chan error, 1)
	go func() { closed <- s.Close() }()
	for len(closed) == 0 && s.figuring.TryRLock() { // until Close waits
		s.figuring.RUnlock()
		time.Sleep(time.Millisecond)
	}
	select {
	case err := <-closed:
		t.Fatalf("Close = %v while figures were read, want it to wait", err)
	default:
	}
	for _, b := range s.bound() {
		if err := b.dev.Err(); err != nil {
			t.Errorf("%s while figures were read: %v", b.spec.Name, err)
		}
	}
	s.figuring.RUnlock()
	if err := <-closed; err != nil {
		t.Errorf("Close = %v", err)
	}
	if f := s.Figures(); len(f.Devices) != 0 || f.Devices == nil || len(f.Receivers) != 0 {
		t.Errorf("figures after Close: %+v", f)
	}
}

// TestSendFigures: so many snapshots, or until the client leaves.
func TestSendFigures(t *testing.T) {
	s := newFiguresSystem(t)
	ask := func(ctx context.Context, args any, send func(any) error) error {
		raw, err := json.Marshal(args)
		if err != nil {
			t.Fatal(err)
		}
		return sendFigures(ctx, raw, send, s.Figures)
	}
	for _, c := range []struct {
		args any
		want string
	}{
		{"", "stats: arguments: "},
		{statsArgs{}, "stats: an interval of 0s: want 10ms to 24h0m0s"},
		{statsArgs{Interval: -time.Second}, "stats: an interval of -1s"},
		{statsArgs{Interval: 48 * time.Hour}, "stats: an interval of 48h0m0s"},
		{statsArgs{Interval: time.Second, Count: -1}, "stats: -1 snapshots: want at least 0"},
	} {
		err := ask(t.Context(), c.args, func(any) error { t.Error("a snapshot was sent"); return nil })
		if !errors.Is(err, syscall.EINVAL) || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("stats %+v: %v, want %s", c.args, err, c.want)
		}
	}
	var got []*figures.Snapshot
	if err := ask(t.Context(), statsArgs{Interval: minInterval, Count: 3}, func(v any) error { got = append(got, v.(*figures.Snapshot)); return nil }); err != nil || len(got) != 3 {
		t.Errorf("three snapshots: %v, %v", got, err)
	} else if got[0].Interval != 0 || got[2].Interval != got[2].Mono-got[1].Mono || got[2].Devices[0].Net.Tx == nil {
		t.Errorf("snapshots without rates: %+v", got[2])
	}
	ctx, cancel := context.WithCancel(t.Context())
	if err := ask(ctx, statsArgs{Interval: minInterval}, func(any) error { cancel(); return nil }); err != nil {
		t.Errorf("a client that leaves: %v", err)
	}
	broken := errors.New("broken")
	if err := ask(t.Context(), statsArgs{Interval: minInterval}, func(any) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("a client that takes nothing: %v", err)
	}
}
