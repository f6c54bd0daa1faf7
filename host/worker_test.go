package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/internal/frame"
	"github.com/ring3dev/ring3/internal/ledger"
	"github.com/ring3dev/ring3/internal/link"
	"github.com/ring3dev/ring3/internal/mirror"
	"github.com/ring3dev/ring3/internal/node"
	"github.com/ring3dev/ring3/internal/sandbox"
)

// testSupervisor is as much of a supervisor as a test of workers needs: a group, its tree, what it has of the world.
type testSupervisor struct {
	t    *testing.T
	plan Plan
	out  outside
	tree *mirror.Tree
	part *mirror.Part
	book *os.File
	led  *ledger.Ledger

	mu       sync.Mutex
	saved    json.RawMessage
	logs     []string
	suspects []suspect
	reports  []workerReport
	hello    chan workerHello

	p    *sandbox.Process
	conn *link.Conn
}

// patience is for machines that are busy with something else.
const testPatience = 30 * time.Second

func newTestSupervisor(t *testing.T, devices, wires []string, more ...func(*Plan)) *testSupervisor {
	t.Helper()
	plan, err := ParsePlan(devices, wires, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range more {
		f(&plan)
	}
	s := &testSupervisor{t: t, plan: plan, tree: mirror.NewTree(mirror.TreeOptions{})}
	s.part = s.tree.Part("test")
	if s.out, err = newOutside(Config{Plan: plan, Drivers: testProgram.Drivers}, groupPlan{Name: "test", Plan: plan}); err != nil {
		t.Fatal(err)
	}
	if s.led, s.book, err = ledger.Create("test"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.kill()
		s.part.Remove()
		if err := errors.Join(s.out.Close(), s.book.Close(), s.led.Close()); err != nil {
			t.Error(err)
		}
	})
	return s
}

// start starts a worker and waits for its hello.
func (s *testSupervisor) start() {
	s.t.Helper()
	ours, theirs, err := link.Pair()
	if err != nil {
		s.t.Fatal(err)
	}
	s.hello = make(chan workerHello, 1)
	s.p, err = sandbox.Start(sandbox.Options{Args: []string{workerArg}, Files: []*os.File{theirs}, Stderr: testWriter{s.t}})
	theirs.Close()
	if err != nil {
		s.t.Fatal(err)
	}
	s.conn = link.New(ours, link.Mux{linkTree: s.part, linkOutside: s.out, linkLife: s}, link.Options{Name: "worker"})
	select {
	case h := <-s.hello:
		if h.Wire != wireVersion || h.PID == 0 {
			s.t.Errorf("the worker said %+v", h)
		}
	case <-s.conn.Done():
		s.t.Fatal(s.conn.Err())
	case <-time.After(testPatience):
		s.t.Fatal("no hello")
	}
}

// configure has it bring the devices up.
func (s *testSupervisor) configure(more ...func(*workerConfig)) (workerUp, error) {
	s.t.Helper()
	s.mu.Lock()
	c := workerConfig{Wire: wireVersion, Group: "test", Plan: wirePlan(s.plan), Numbers: Numbers{Domain: freeDomain(), FirstIRQ: firstIRQ(), Plugged: 64}, Facts: thisMachine(), Saved: s.saved}
	s.mu.Unlock()
	for _, f := range more {
		f(&c)
	}
	body, err := json.Marshal(c)
	if err != nil {
		s.t.Fatal(err)
	}
	s.part.Attach(s.conn)
	reply, _, err := s.conn.Call(s.ctx(), lifeConfigure, body, s.book)
	var up workerUp
	if err == nil {
		err = json.Unmarshal(reply, &up)
	}
	if err == nil {
		err = s.part.Sync(s.ctx())
	}
	return up, err
}

func (s *testSupervisor) ctx() context.Context {
	ctx, cancel := context.WithTimeout(s.t.Context(), testPatience)
	s.t.Cleanup(cancel)
	return ctx
}

// up is start and configure, which must succeed.
func (s *testSupervisor) up() workerUp {
	s.t.Helper()
	s.start()
	up, err := s.configure()
	if err != nil {
		s.t.Fatal(err)
	}
	return up
}

// kill ends the worker, and stops its devices.
func (s *testSupervisor) kill() {
	if s.p == nil {
		return
	}
	s.p.Kill()
	if err := s.p.Close(); err != nil {
		s.t.Error(err)
	}
	s.p = nil
	s.conn.Close()
	s.part.Detach(errors.New("killed"))
	if err := s.out.Quiesce(context.Background()); err != nil {
		s.t.Error(err)
	}
}

// control is one operation.
func (s *testSupervisor) control(op string, args, result any) error {
	raw, err := json.Marshal(args)
	if err != nil {
		s.t.Fatal(err)
	}
	body, err := json.Marshal(controlRequest{op, raw})
	if err != nil {
		s.t.Fatal(err)
	}
	reply, _, err := s.conn.Call(s.ctx(), controlCall, body)
	if err == nil && result != nil {
		err = json.Unmarshal(reply, result)
	}
	return err
}

// read and write are of files of the supervisor's tree.
func (s *testSupervisor) file(path string) *node.File {
	s.t.Helper()
	n, err := s.tree.Root().Walk(path)
	f, ok := n.(*node.File)
	if err != nil || !ok {
		s.t.Fatalf("%s: %v", path, err)
	}
	return f
}

func (s *testSupervisor) read(path string) string {
	s.t.Helper()
	b, err := s.file(path).ReadAll()
	if err != nil {
		s.t.Fatalf("%s: %v", path, err)
	}
	return string(b)
}

func (s *testSupervisor) write(path, text string) {
	s.t.Helper()
	if _, err := s.file(path).Write(s.ctx(), []byte(text+"\n")); err != nil {
		s.t.Fatalf("echo %s > %s: %v", text, path, err)
	}
}

// Call implements [link.Handler].
func (s *testSupervisor) Call(context.Context, link.Method, []byte, []*os.File, func([]byte) error) ([]byte, []*os.File, error) {
	return nil, nil, bus.ErrProtocol
}

// Event implements [link.Handler].
func (s *testSupervisor) Event(m link.Method, body []byte, _ []*os.File) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	switch m {
	case lifeHello:
		var h workerHello
		err = json.Unmarshal(body, &h)
		s.hello <- h
	case lifeState:
		s.saved = body
	case lifeLog:
		var r workerRecord
		err = json.Unmarshal(body, &r)
		s.logs = append(s.logs, r.Text)
	case lifeGone:
	case lifeSuspect:
		var v suspect
		err = json.Unmarshal(body, &v)
		s.suspects = append(s.suspects, v)
	case lifeReport:
		var r workerReport
		err = json.Unmarshal(body, &r)
		s.reports = append(s.reports, r)
	case lifeUevent:
	default:
		err = fmt.Errorf("event %#x: %w", uint16(m), bus.ErrProtocol)
	}
	return err
}

// eventually waits for something that is told without being asked for.
func (s *testSupervisor) eventually(what string, ok func() bool) {
	s.t.Helper()
	for end := time.Now().Add(testPatience); ; time.Sleep(5 * time.Millisecond) {
		s.mu.Lock()
		done := ok()
		s.mu.Unlock()
		if done {
			return
		}
		if time.Now().After(end) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.t.Fatalf("not seen: %s; suspects %+v, reports %+v, messages %q", what, s.suspects, s.reports, s.logs)
		}
	}
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("worker: %s", p)
	return len(p), nil
}

var _ io.Writer = testWriter{}

// TestWorker: a worker brings a wired pair up, its tree is the supervisor's, pktgen counts to its end, and it ends in order.
func TestWorker(t *testing.T) {
	s := newTestSupervisor(t, []string{"eth0=sim:e1000e", "eth1=sim:e1000e"}, []string{"eth0-eth1"})
	up := s.up()
	if len(up.Devices) != 2 || up.Devices[0].MAC != "52:54:00:12:34:56" || up.Devices[1].Wire != "eth0" || up.Devices[1].State != stateUp || len(up.Lost) != 0 {
		t.Errorf("the devices are %+v, lost %q", up.Devices, up.Lost)
	}
	s.write("/proc/net/pktgen/kpktgend_0", "add_device eth0")
	s.write("/proc/net/pktgen/eth0", "count 1000")
	s.write("/proc/net/pktgen/pgctrl", "start")
	if text := s.read("/proc/net/pktgen/eth0"); !strings.Contains(text, "pkts-sofar: 1000 ") {
		t.Errorf("after 1000 packets eth0 says\n%s", text)
	}
	var devices []DeviceInfo
	if err := s.control(opDevices, nil, &devices); err != nil || !slices.EqualFunc(devices, up.Devices, func(a, b DeviceInfo) bool { return a.Name == b.Name && a.Address == b.Address }) {
		t.Errorf("devices: %+v, %v", devices, err)
	}
	if err := s.control("nonsense", nil, nil); err == nil {
		t.Error("an operation that does not exist was done")
	}
	s.eventually("a heartbeat", func() bool { return s.led.Snapshot()["beat"] > 0 })
	reply, _, err := s.conn.Call(s.ctx(), lifeStop, nil)
	var stopped workerStopped
	if err == nil {
		err = json.Unmarshal(reply, &stopped)
	}
	if err != nil || stopped.Error != "" || stopped.Saved.Version != savedVersion {
		t.Errorf("stop: %+v, %v", stopped, err)
	}
}

// TestWorkerRefuses: what a worker is told and cannot do is an answer.
func TestWorkerRefuses(t *testing.T) {
	for _, c := range []struct {
		name, device string
		change       func(*workerConfig)
		want         string
	}{
		{"wire", "eth0=sim:e1000e", func(c *workerConfig) { c.Wire++ }, "version"},
		{"option", "eth0=sim:e1000e,ring=x", func(*workerConfig) {}, usagePrefix},
		{"model", "eth0=sim:nonsense", func(*workerConfig) {}, "nonsense"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newTestSupervisor(t, []string{c.device}, nil)
			s.start()
			if _, err := s.configure(c.change); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("configure = %v, want an error with %q", err, c.want)
			}
		})
	}
}

// TestWorkerAgain: the next worker has what the one before was told: settings, cards, affinities, names.
func TestWorkerAgain(t *testing.T) {
	s := newTestSupervisor(t, []string{"rp0=sim:pcie-root-port", "rp1=sim:pcie-root-port", "eth0=sim:e1000e,under=rp0"}, nil)
	s.up()
	var card DeviceInfo
	if err := s.control(opPlug, plugArgs{Device: "eth7=sim:e1000e,under=rp1"}, &card); err != nil {
		t.Fatal(err)
	}
	if err := s.control(opEthtool, ethtoolArgs{Device: "eth7", Op: "A", Words: []string{"rx", "on", "tx", "off"}}, nil); err != nil {
		t.Fatal(err)
	}
	addr := s.address("eth0")
	irq := strings.TrimSpace(s.read("/sys/bus/pci/devices/" + card.Address + "/irq"))
	s.write("/proc/irq/"+irq+"/smp_affinity_list", "0")
	s.write("/sys/bus/pci/devices/"+addr+"/driver_override", "none")
	s.write("/sys/bus/pci/drivers/e1000/unbind", addr)
	s.write("/sys/bus/pci/drivers_autoprobe", "0")
	before := s.devices()
	saved := s.saved
	s.kill()
	up := s.up()
	if len(up.Lost) != 0 {
		t.Errorf("lost: %q", up.Lost)
	}
	if after := s.devices(); !slices.Equal(after, before) {
		t.Errorf("the devices are\n%+v, before the death of the worker\n%+v", after, before)
	}
	if got := s.read("/proc/irq/" + irq + "/smp_affinity_list"); got != "0\n" {
		t.Errorf("the affinity of %s is %q, want 0", irq, got)
	}
	if got := s.read("/sys/bus/pci/devices/" + addr + "/driver_override"); got != "none\n" {
		t.Errorf("driver_override is %q, want none", got)
	}
	if got := s.read("/sys/bus/pci/drivers_autoprobe"); got != "0\n" {
		t.Errorf("drivers_autoprobe is %q, want 0", got)
	}
	var pause struct{ Rx, Tx bool }
	var raw json.RawMessage
	if err := s.control(opEthtool, ethtoolArgs{Device: "eth7", Op: "a"}, &raw); err != nil || json.Unmarshal(raw, &pause) != nil || !pause.Rx || pause.Tx {
		t.Errorf("pause is %s, %v, want rx on, tx off", raw, err)
	}
	if string(s.saved) != string(saved) {
		t.Errorf("the new worker would save\n%s, the old one\n%s", s.saved, saved)
	}
	s.write("/sys/bus/pci/devices/"+addr+"/driver_override", "")
	s.write("/sys/bus/pci/drivers/e1000/bind", addr)
	if err := s.control(opUnplug, plugArgs{Device: "eth7", Now: true}, nil); err != nil {
		t.Fatal(err)
	}
	s.kill()
	s.up()
	if now := s.devices(); len(now) != 3 || now[1].Driver != "e1000" {
		t.Errorf("after a card was unplugged and a driver bound there are %+v", now)
	}
}

// TestWorkerDistrusts: what was saved and cannot be used is lost with a line, and nothing else is.
func TestWorkerDistrusts(t *testing.T) {
	for _, c := range []struct{ name, saved string }{
		{"version", `{"version":99}`},
		{"type", `{"version":"x"}`},
		{"plan", `{"version":1,"plan":{"Devices":[{"Name":"../x","Backend":"sim"}]}}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newTestSupervisor(t, []string{"eth0=sim:e1000e"}, nil)
			s.start()
			up, err := s.configure(func(w *workerConfig) { w.Saved = json.RawMessage(c.saved) })
			if err != nil || len(up.Devices) != 1 || len(up.Lost) != 1 {
				t.Errorf("configure = %+v, %v, want the device and one line of what is lost", up, err)
			}
		})
	}
}

func (s *testSupervisor) devices() (d []DeviceInfo) {
	s.t.Helper()
	if err := s.control(opDevices, nil, &d); err != nil {
		s.t.Fatal(err)
	}
	return d
}

func (s *testSupervisor) address(name string) string {
	s.t.Helper()
	for _, d := range s.devices() {
		if d.Name == name {
			return d.Address
		}
	}
	s.t.Fatalf("no device %s", name)
	return ""
}

// TestWorkerFiles: traces and captures are opened by the supervisor, and each worker goes on where the one before ended; what pktgen replays is what the user
// named, and nothing else.
func TestWorkerFiles(t *testing.T) {
	dir := t.TempDir()
	pcap, text, past := filepath.Join(dir, "eth0.pcap"), filepath.Join(dir, "eth1.txt"), filepath.Join(dir, "past.pcap")
	if err := os.WriteFile(text, []byte("what was there before\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := newTestSupervisor(t, []string{"eth0=sim:e1000e", "eth1=sim:e1000e"}, []string{"eth0-eth1"}, func(p *Plan) {
		p.Captures = map[string]string{"eth0": pcap}
		if err := p.addTraces([]string{"eth1=" + text}, "", defaultCrash); err != nil {
			t.Fatal(err)
		}
	})
	frames := func(path string) (n int) {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		p, err := frame.NewPcap(f)
		if err != nil {
			t.Fatal(err)
		}
		for ; ; n++ {
			if _, _, err := p.Next(); err != nil {
				if !errors.Is(err, io.EOF) {
					t.Errorf("%s: %v after %d frames", path, err, n)
				}
				return n
			}
		}
	}
	send := func(count string) {
		s.write("/proc/net/pktgen/eth0", count)
		s.write("/proc/net/pktgen/pgctrl", "start")
	}
	s.up()
	s.until("what the driver did, in the trace", func() bool {
		fi, err := os.Stat(text)
		return err == nil && fi.Size() >= 1000
	})
	s.write("/proc/net/pktgen/kpktgend_0", "add_device eth0")
	send("count 10")
	if n := frames(pcap); n != 10 {
		t.Errorf("%d frames were captured, want 10", n)
	}
	b, err := os.ReadFile(pcap)
	if err == nil {
		err = os.WriteFile(past, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	s.kill()
	s.up()
	send("count 5")
	if n := frames(pcap); n != 15 {
		t.Errorf("%d frames were captured by two workers, want 15", n)
	}
	if b, err := os.ReadFile(text); err != nil || strings.Contains(string(b), "before\n") || strings.Count(string(b), "CTRL") < 2 {
		t.Errorf("the trace of two workers, %v, is\n%.500s", err, b)
	}
	replay := "pcap " + past
	f := s.file("/proc/net/pktgen/eth0")
	if _, err := f.Write(s.ctx(), []byte(replay+"\n")); err == nil {
		t.Error("a worker opened a file that its user did not name")
	}
	s.out.Wrote([]byte(replay + "\n"))
	s.write("/proc/net/pktgen/eth0", replay)
	s.write("/proc/net/pktgen/pgctrl", "start")
	if n := frames(pcap); n != 25 {
		t.Errorf("%d frames were captured after a replay, want 25", n)
	}
	s.kill()
	if up := s.up(); len(up.Lost) != 0 || !strings.Contains(s.read("/proc/net/pktgen/eth0"), past) {
		t.Errorf("the next worker lost %q, and its pktgen is\n%s", up.Lost, s.read("/proc/net/pktgen/eth0"))
	}
}

// TestWorkerAsks: a worker gets nothing that its plan does not say.
func TestWorkerAsks(t *testing.T) {
	s := newTestSupervisor(t, []string{"eth0=sim:e1000e"}, nil)
	for _, a := range []string{
		`{"use":"pcap","name":"eth0"}`, `{"use":"trace","name":"eth0"}`, `{"use":"trace","name":"../../etc/passwd"}`, `{"use":"replay","name":"/etc/passwd"}`,
		`{"use":"net/dev","name":"/etc/passwd"}`, `{"use":""}`, `{`, `null`, ``,
	} {
		for _, m := range []link.Method{outsideFile, outsideBegin, 0x03ff} {
			if _, files, err := s.out.Call(t.Context(), m, []byte(a), nil, nil); err == nil || len(files) != 0 {
				t.Errorf("method %#x of %s gave %v, %v, want an error", uint16(m), a, files, err)
			}
		}
	}
}

// TestWorkerPanics: last words name the cause, where, and what the device did last; and a fault that was made is not made again.
func TestWorkerPanics(t *testing.T) {
	s := newTestSupervisor(t, []string{"eth0=sim:e1000e", "eth1=sim:e1000e"}, []string{"eth0-eth1"}, func(p *Plan) {
		if err := p.addFaults([]string{"eth1=RDT#8:panic"}); err != nil {
			t.Fatal(err)
		}
	})
	s.up()
	s.write("/proc/net/pktgen/kpktgend_0", "add_device eth0")
	s.write("/proc/net/pktgen/eth0", "dst_mac "+s.devices()[1].MAC)
	s.write("/proc/net/pktgen/eth0", "count 100000")
	begun := make(chan error, 1)
	f, ctx := s.file("/proc/net/pktgen/pgctrl"), s.ctx()
	go func() {
		_, err := f.Write(ctx, []byte("start\n"))
		begun <- err
	}()
	select {
	case <-s.conn.Done():
	case <-time.After(testPatience):
		t.Fatal("it lives")
	}
	s.eventually("a report", func() bool { return len(s.reports) > 0 })
	r := s.reports[0]
	if !strings.Contains(r.Cause, "fault RDT#8:panic") || !strings.Contains(r.Stack, "e1000") || len(r.Devices) != 2 || len(r.Devices[1].Accesses) == 0 || r.Devices[1].Registers["RDT"] == "" {
		t.Errorf("the report is %+v", r)
	}
	s.kill()
	s.up()
	if d := s.devices(); d[1].State != stateUp {
		t.Errorf("eth1 is %+v", d[1])
	}
	if err := <-begun; err == nil {
		t.Error("a start whose worker died ended well")
	}
}

// TestWorkerLedger: what pktgen counted is counted on by the next worker, to the end that was asked for.
func TestWorkerLedger(t *testing.T) {
	s := newTestSupervisor(t, []string{"eth0=sim:e1000e", "eth1=sim:e1000e"}, []string{"eth0-eth1"})
	s.up()
	s.write("/proc/net/pktgen/kpktgend_0", "add_device eth0")
	s.write("/proc/net/pktgen/eth0", "count 50000")
	s.write("/proc/net/pktgen/eth0", "delay 20000") // a second in all
	f, ctx := s.file("/proc/net/pktgen/pgctrl"), s.ctx()
	go func() { _, _ = f.Write(ctx, []byte("start\n")) }()
	s.until("frames", func() bool { return sofar(s.read("/proc/net/pktgen/eth0")) > 100 })
	s.kill()
	s.up()
	s.until("the end", func() bool { return sofar(s.read("/proc/net/pktgen/eth0")) == 50000 })
}

func sofar(text string) (n int) {
	_, rest, _ := strings.Cut(text, "pkts-sofar: ")
	_, _ = fmt.Sscan(rest, &n)
	return n
}

// BenchmarkStore is a write to a file of a worker's, after which what is saved is compared with what was.
func BenchmarkStore(b *testing.B) {
	plan, err := ParsePlan([]string{"eth0=sim:e1000e", "eth1=sim:e1000e"}, []string{"eth0-eth1"}, nil)
	if err != nil {
		b.Fatal(err)
	}
	s, err := NewSystem(b.Context(), Config{Plan: plan, Drivers: testProgram.Drivers, Changed: func(Saved) {}})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	for b.Loop() {
		s.tell()
	}
}

// TestWorkerPanicsInCalls: a driver that panics in what it was asked is as dead as one that panics by itself, with its last words.
func TestWorkerPanicsInCalls(t *testing.T) {
	for _, c := range []struct {
		name, fault string
		ask         func(s *testSupervisor) error
	}{
		{"show", "GPRC#2:panic", func(s *testSupervisor) (err error) {
			for i := 0; err == nil && i < 40; i++ {
				_, err = s.file("/proc/net/dev").ReadAll()
			}
			return err
		}},
		{"store", "STATUS#9:panic", func(s *testSupervisor) (err error) {
			for i := 0; err == nil && i < 40; i++ {
				_, err = s.file("/sys/bus/pci/drivers/e1000/"+[]string{"unbind", "bind"}[i%2]).Write(s.ctx(), []byte(s.devices()[0].Address))
			}
			return err
		}},
		{"control", "GPRC#2:panic", func(s *testSupervisor) (err error) {
			for i := 0; err == nil && i < 40; i++ {
				err = s.control(opEthtool, ethtoolArgs{Device: "eth0", Op: "S"}, nil)
			}
			return err
		}},
		{"configure", "STATUS#2:panic", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newTestSupervisor(t, []string{"eth0=sim:e1000e"}, nil, func(p *Plan) {
				if err := p.addFaults([]string{"eth0=" + c.fault}); err != nil {
					t.Fatal(err)
				}
			})
			s.start()
			_, err := s.configure()
			if c.ask != nil && err == nil {
				go func() { <-s.conn.Done(); s.part.Fail(errors.New("it died")) }()
				err = c.ask(s)
			}
			if s.eventually("its death", s.over); err == nil {
				t.Error("what it was asked ended well")
			}
			s.eventually("a report", func() bool { return len(s.reports) > 0 })
			if r := s.reports[0]; !strings.Contains(r.Cause, "fault "+c.fault) || !strings.Contains(r.Stack, "e1000") {
				t.Errorf("the report is %+v", r)
			}
		})
	}
}

// over says whether the worker's link has ended.
func (s *testSupervisor) over() bool { return s.conn.Err() != nil }
