package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ring3dev/ring3/internal/figures"
	"github.com/ring3dev/ring3/internal/klog"
	"github.com/ring3dev/ring3/internal/node"
)

// supervise starts the devices under a supervisor, as `ring3 up` does, without a mount.
func supervise(t testing.TB, wires []string, devices ...string) (*supervisor, *klog.Ring) {
	t.Helper()
	t.Setenv("XDG_STATE_HOME", t.TempDir())
	plan, err := ParsePlan(devices, wires, nil)
	if err != nil {
		t.Fatal(err)
	}
	ring := klog.New(klog.Options{})
	s, err := newSupervisor(t.Context(), superviseConfig{Args: []string{workerArg}, Deaths: 1 << 30,
		Config: Config{Plan: plan, Drivers: testProgram.Drivers, Services: testProgram.Services, Log: ring.Logger()}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			records, _ := ring.Read(0)
			for _, r := range records {
				if r.Prio < klog.PrioDebug {
					t.Log(r)
				}
			}
		}
	})
	return s, ring
}

// file is a file of the tree.
func (s *supervisor) file(t testing.TB, path string) *node.File {
	t.Helper()
	n, err := s.Tree().Walk(path)
	f, ok := n.(*node.File)
	if err != nil || !ok {
		t.Fatalf("%s: %T, %v", path, n, err)
	}
	return f
}

func (s *supervisor) set(t testing.TB, path, value string) {
	t.Helper()
	if _, err := s.file(t, path).Write(t.Context(), []byte(value+"\n")); err != nil {
		t.Fatalf("%s: %q: %v", path, value, err)
	}
}

func (s *supervisor) get(t testing.TB, path string) string {
	t.Helper()
	b, err := s.file(t, path).ReadAll()
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return string(b)
}

// has says whether a worker waits, or is on its way.
func (p *spares) has() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.next != nil
}

// awaitUp waits until a group has died n times and is up.
func awaitUp(t testing.TB, ch *charge, n int) deaths {
	t.Helper()
	for end := time.Now().Add(testPatience); ; {
		ch.mu.Lock()
		d, state, changed := ch.deaths, ch.state, ch.changed
		ch.mu.Unlock()
		switch {
		case d.count >= n && state == stateUp:
			return d
		case state == stateFailed || time.Now().After(end):
			t.Fatalf("%s: %s after %d deaths, want it up after %d: %s %s", ch.Name, state, d.count, n, d.last, d.gave)
		}
		select {
		case <-changed:
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// A driver that is killed, one that hangs and one that says nonsense is replaced, and another group does not notice.
func TestSupervise(t *testing.T) {
	s, _ := supervise(t, []string{"eth0-eth1"}, "eth0=sim:e1000e", "eth1=sim:e1000e", "edu0=sim:edu")
	ch, other := s.chargeOf("eth1"), s.chargeOf("edu0")
	if ch == other || ch != s.chargeOf("eth0") {
		t.Fatal("the groups are not what they should be")
	}
	beside := other.worker().p.PID()
	mac := s.file(t, "/sys/class/net/eth0/address")
	for i, c := range []struct {
		what, want string
		do         func(w *worker) error
	}{
		{"killed", "killed by SIGKILL", func(w *worker) error { return syscall.Kill(w.p.PID(), syscall.SIGKILL) }},
		{"stopped", "it hangs: no sign of life", func(w *worker) error { return syscall.Kill(w.p.PID(), syscall.SIGSTOP) }},
		{"condemned", "that is enough", func(w *worker) error { w.condemn(errors.New("that is enough")); return nil }},
		{"nonsense", "protocol violation", func(w *worker) error { w.conn.End(w.Event(0x4ff, nil, nil)); return nil }},
	} {
		w := ch.worker()
		if err := c.do(w); err != nil {
			t.Fatal(err)
		}
		d := awaitUp(t, ch, i+1)
		if !strings.Contains(d.last, c.want) || d.took <= 0 {
			t.Errorf("%s: the cause is %q after %v, want %q", c.what, d.last, d.took, c.want)
		}
		for end := time.Now().Add(testPatience); !s.spare.has(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s: no worker waits for the next death", c.what)
			}
		}
		if b, err := os.ReadFile(d.report); err != nil || !bytes.Contains(b, []byte(c.want)) {
			t.Errorf("%s: its report: %v, %.200s", c.what, err, b)
		}
		if b, err := mac.ReadAll(); err != nil || string(b) != "52:54:00:12:34:56\n" {
			t.Errorf("%s: a file that was open shows %q, %v", c.what, b, err)
		}
		ch.mu.Lock()
		ch.deaths.early = 0 // as if it had worked for long
		ch.mu.Unlock()
	}
	if w := other.worker(); w == nil || w.p.PID() != beside || w.over() {
		t.Error("the other group's worker was replaced")
	}
	for _, d := range s.Devices() {
		if want := map[bool]int{true: 4}[d.Name != "edu0"]; d.State != stateUp || d.Restarts != want {
			t.Errorf("%s: %s after %d restarts, want up after %d", d.Name, d.State, d.Restarts, want)
		}
	}
}

// A driver that dies again and again is given up: who uses its files is told so, and a reload tries again.
func TestSuperviseGivesUp(t *testing.T) {
	s, _ := supervise(t, nil, "edu0=sim:edu", "edu1=sim:edu")
	ch := s.chargeOf("edu0")
	failed := func() bool {
		ch.mu.Lock()
		defer ch.mu.Unlock()
		return ch.state == stateFailed
	}
	for ch.worker() != nil || !failed() {
		if w := ch.worker(); w != nil {
			_ = syscall.Kill(w.p.PID(), syscall.SIGKILL)
		}
		time.Sleep(time.Millisecond)
	}
	vendor := "/sys/devices/pci" + fmt.Sprintf("%04x:00/%04x:00:03.0/vendor", ch.Numbers.Domain, ch.Numbers.Domain)
	if _, err := s.file(t, vendor).ReadAll(); !errors.Is(err, syscall.EIO) {
		t.Errorf("reading a file of it: %v, want EIO", err)
	}
	if _, err := ch.control(t.Context(), opDevices, nil, nil, true); !errors.Is(err, syscall.EIO) {
		t.Errorf("asking it: %v, want EIO", err)
	}
	select {
	case <-s.Done():
		t.Error("Done, though another group lives")
	default:
	}
	v, err := s.reloadHandler(t.Context(), []byte(`{"device":"edu0"}`), nil)
	if r, ok := v.(reloadResult); err != nil || !ok || len(r.Devices) != 1 || r.Outage <= 0 {
		t.Errorf("reload = %+v, %v", v, err)
	}
	if got := s.get(t, vendor); got != "0x1234\n" {
		t.Errorf("its vendor is %q", got)
	}
}

// long says how often something is done that takes long: a few times, with RING3_LONG as often as it is promised, or RING3_KILLS times.
func long(few, many int) int {
	if n, err := strconv.Atoi(os.Getenv("RING3_KILLS")); err == nil && n > 0 {
		return min(n, many)
	}
	if os.Getenv("RING3_LONG") != "" {
		return many
	}
	return few
}

// spread is how times of a kind lie, for people.
func spread(times []time.Duration) string {
	slices.Sort(times)
	ms := func(t time.Duration) string { return fmt.Sprintf("%.1f ms", float64(t.Microseconds())/1000) }
	n := len(times)
	return fmt.Sprintf("p50 %s, p90 %s, p99 %s, at most %s", ms(times[n/2]), ms(times[n*9/10]), ms(times[n*99/100]), ms(times[n-1]))
}

// A sending driver is killed over and over, then exchanged: pktgen goes on until its count is reached, and what the receiver lacks is what was lost.
func TestSuperviseKills(t *testing.T) {
	for _, backend := range []string{"sim", "qemu"} {
		t.Run(backend, func(t *testing.T) {
			if backend == "qemu" {
				if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
					t.Skip(err)
				}
			}
			s, _ := supervise(t, []string{"eth0-eth1"}, "eth0="+backend+":e1000e", "eth1="+backend+":e1000e")
			ch := s.chargeOf("eth0")
			s.set(t, "/proc/net/pktgen/kpktgend_0", "add_device eth0")
			for _, c := range []string{"count 1000000000000", "burst 8", "pkt_size 60", "delay 500000", "dst_mac 52:54:00:12:34:57"} {
				s.set(t, "/proc/net/pktgen/eth0", c)
			}
			ctx, cancel := context.WithCancel(t.Context())
			started := make(chan error, 1)
			go func() {
				_, err := s.file(t, "/proc/net/pktgen/pgctrl").Write(ctx, []byte("start\n"))
				started <- err
			}()
			defer cancel()
			var took, outages []time.Duration
			for i := range long(3, 1000) {
				awaitSending(t, s)
				time.Sleep(workedTime - time.Since(ch.worker().since)) // or it would be given up
				if err := syscall.Kill(ch.worker().p.PID(), syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
				took = append(took, awaitUp(t, ch, i+1).took)
				if (i+1)%100 == 0 {
					t.Logf("%d deaths: recovered within %s", i+1, spread(slices.Clone(took)))
				}
			}
			for range long(2, 100) {
				awaitSending(t, s)
				v, err := s.reloadHandler(t.Context(), []byte(`{"device":"eth1"}`), nil)
				if err != nil {
					t.Fatal(err)
				}
				outages = append(outages, time.Duration(v.(reloadResult).Outage*float64(time.Millisecond)))
			}
			awaitSending(t, s)
			t.Logf("%d deaths: recovered within %s", len(took), spread(took))
			t.Logf("%d exchanges: out of service for %s", len(outages), spread(outages))
			s.set(t, "/proc/net/pktgen/eth0", "delay 10000000") // so that it does not get there
			count := s.Figures().Pktgen[0].Packets + 3000       // which it is to reach by itself
			for _, c := range []string{fmt.Sprintf("count %d", count), "delay 0"} {
				s.set(t, "/proc/net/pktgen/eth0", c)
			}
			if err := <-started; err != nil {
				t.Errorf("start: %v", err)
			}
			sent, rx := awaitAccount(t, s, "eth1")
			if sent != count {
				t.Errorf("sent %d of %d", sent, count)
			}
			t.Logf("sent %d, received %d, lost %d, of these %d in %d restarts", sent, rx.Received, rx.Lost, rx.LostInRestarts, rx.Restarts)
		})
	}
}

// sends has pktgen send from a device without end; the channel gives what became of its start.
func sends(t testing.TB, s *supervisor, device, mac string, delay time.Duration) <-chan error {
	t.Helper()
	s.set(t, "/proc/net/pktgen/kpktgend_0", "add_device "+device)
	for _, c := range []string{"count 0", "pkt_size 60", fmt.Sprintf("delay %d", delay.Nanoseconds()), "dst_mac " + mac} {
		s.set(t, "/proc/net/pktgen/"+device, c)
	}
	started := make(chan error, 1)
	go func() {
		_, err := s.file(t, "/proc/net/pktgen/pgctrl").Write(context.Background(), []byte("start\n"))
		started <- err
	}()
	return started
}

// receivedBy is what a device has received; nothing where there is none of that name.
func receivedBy(s *supervisor, device string) figures.Receiver {
	f := s.Figures()
	if i := slices.IndexFunc(f.Receivers, func(r figures.Receiver) bool { return r.Name == device }); i >= 0 {
		return f.Receivers[i]
	}
	return figures.Receiver{}
}

// awaitReceives waits until it has received more.
func awaitReceives(t *testing.T, s *supervisor, device, what string) {
	t.Helper()
	before := receivedBy(s, device).Received
	await(t, what+": frames arrive", func() bool { return receivedBy(s, device).Received > before })
}

// awaitSending waits until pktgen has sent some more.
func awaitSending(t testing.TB, s *supervisor) {
	t.Helper()
	first := uint64(0)
	for end := time.Now().Add(testPatience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		f := s.Figures()
		if len(f.Pktgen) == 0 {
			continue
		}
		switch n := f.Pktgen[0].Packets; {
		case first == 0:
			first = n
		case n > first:
			return
		}
	}
	t.Fatal("pktgen sends nothing")
}

// awaitAccount waits until a device has received or lost each frame that pktgen's one device has sent, and looks that none came twice. The last ones are under way when a run ends.
func awaitAccount(t testing.TB, s *supervisor, device string) (sent uint64, rx figures.Receiver) {
	t.Helper()
	for end := time.Now().Add(testPatience); ; time.Sleep(5 * time.Millisecond) {
		f := s.Figures()
		i := slices.IndexFunc(f.Receivers, func(r figures.Receiver) bool { return r.Name == device })
		if len(f.Pktgen) == 1 && i >= 0 {
			sent, rx = f.Pktgen[0].Packets, f.Receivers[i]
		}
		if rx.Received+rx.Lost == sent && sent > 0 && rx.Duplicated == 0 {
			return sent, rx
		}
		if time.Now().After(end) || rx.Duplicated > 0 {
			t.Fatalf("sent %d, received %d, lost %d, twice %d: want each sent one received or lost; there is %+v and %+v", sent, rx.Received, rx.Lost, rx.Duplicated, f.Pktgen, f.Receivers)
		}
	}
}

// What a supervisor refuses to run in workers it says in one line.
func TestSupervisable(t *testing.T) {
	p, err := ParsePlan([]string{"eth0=sim:e1000e", "rp0=uio:0000:00:05.0", "eth1=vfio:0000:00:06.0,noiommu=unsafe", "eth2=vfio-user:/x.sock", "rio0=fabric:/f.sock,node=pe0"}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := supervisable(&p, false); err != nil {
		t.Errorf("supervisable = %v, want nil", err)
	}
	if err := supervisable(&p, true); err == nil {
		t.Error("supervisable with passed files = nil, want an error")
	}
	p.RT = 1
	if err := supervisable(&p, false); err == nil || strings.Contains(err.Error(), "\n") {
		t.Errorf("supervisable with --rt = %v, want a line", err)
	}
}
