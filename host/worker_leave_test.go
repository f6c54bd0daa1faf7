package host

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// TestWorkerLeaves: a worker that ends in order under a run leaves it to the next one, which sends the rest; what either received is one account.
func TestWorkerLeaves(t *testing.T) {
	s := newTestSupervisor(t, []string{"eth0=sim:e1000e", "eth1=sim:e1000e"}, []string{"eth0-eth1"})
	s.up()
	s.write("/proc/net/pktgen/kpktgend_0", "add_device eth0")
	for _, c := range []string{"count 50000", "delay 20000", "dst_mac 52:54:00:12:34:57", "src_min 10.0.0.1", "dst_min 10.0.0.2"} {
		s.write("/proc/net/pktgen/eth0", c)
	}
	f, ctx := s.file("/proc/net/pktgen/pgctrl"), s.ctx()
	go func() { _, _ = f.Write(ctx, []byte("start\n")) }()
	s.until("frames", func() bool { return sofar(s.read("/proc/net/pktgen/eth0")) > 100 })
	reply, _, err := s.conn.Call(s.ctx(), lifeStop, nil)
	if err != nil {
		t.Fatal(err)
	}
	var stopped struct{ Saved json.RawMessage }
	if err := json.Unmarshal(reply, &stopped); err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	s.saved = stopped.Saved
	s.mu.Unlock()
	s.kill()
	s.up()
	s.until("the end", func() bool { return sofar(s.read("/proc/net/pktgen/eth0")) == 50000 })
	var text string
	s.until("what was received", func() bool {
		text = s.read("/proc/net/pktgen/eth1.rx")
		var received, lost int
		for _, x := range []struct {
			name string
			n    *int
		}{{"received", &received}, {"lost", &lost}} {
			*x.n = numberOf(text, x.name)
		}
		return received+lost == 50000
	})
	if !strings.Contains(text, "runs: 1 ") || !strings.Contains(text, "restarts: 1 ") || numberOf(text, "lost") > 64 {
		t.Errorf("an exchange lost more than little, or is not told:\n%s", text)
	}
}

// until is eventually for what asks the worker: events come meanwhile, so nothing is locked.
func (s *testSupervisor) until(what string, ok func() bool) {
	s.t.Helper()
	for end := time.Now().Add(testPatience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			s.t.Fatalf("not seen: %s", what)
		}
	}
}

// numberOf is the first number of a name in a file of pktgen's.
func numberOf(text, name string) (n int) {
	_, rest, _ := strings.Cut(text, " "+name+": ")
	for _, c := range rest {
		if c < '0' || c > '9' {
			break
		}
		n = 10*n + int(c-'0')
	}
	return n
}
