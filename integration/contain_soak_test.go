package integration

import (
	"bufio"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ring3dev/ring3/internal/figures"
)

// soak is an instance of several groups, of which everything is asked at once while its workers are killed.
type soak struct {
	*portsRun
	url    string
	groups []string // a device of each
	over   chan struct{}

	slowest                               atomic.Int64 // ms that a group needed to be in service again, as `ring3 ls` said
	kills, plugs, refused, commands, lost atomic.Int64 // what was done, and what was refused since a worker died meanwhile
}

// soakTime is how long that goes on.
func soakTime(t *testing.T) time.Duration {
	t.Helper()
	text := os.Getenv("RING3_SOAK")
	if text == "" {
		return time.Duration(long(1800, 6)) * time.Second
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatalf("RING3_SOAK: %v", err)
	}
	return d
}

// TestContainSoak has an instance send, plug cards in and out and ask its TPM while its workers are killed, one after the other and for RING3_SOAK (30m with
// RING3_LONG): nothing grows, and in the end everything works, and each frame that was sent was received or is counted as lost.
func TestContainSoak(t *testing.T) {
	args := []string{"--deaths", "1000000", "--metrics", ":0", "eth0=sim:e1000e", "eth1=sim:e1000e", "--wire", "eth0-eth1", "rp0=sim:root-port", "tpm0=sim:tpm-tis"}
	s := &soak{groups: []string{"eth0", "rp0", "tpm0"}, over: make(chan struct{})}
	senders := []string{"eth0"}
	if _, err := exec.LookPath("qemu-system-x86_64"); err == nil || os.Getenv("RING3_NEED_QEMU") != "" {
		args = append(args, "eth2=qemu:e1000e", "eth3=qemu:e1000e", "--wire", "eth2-eth3")
		s.groups, senders = append(s.groups, "eth2"), append(senders, "eth2")
	}
	s.portsRun = startPorts(t, args...)
	for _, l := range s.up.said {
		if u, ok := strings.CutPrefix(l, "metrics: "); ok {
			s.url = u
		}
	}
	macs := map[string]string{"eth0": "52:54:00:12:34:57", "eth2": "52:54:00:12:34:59"}
	for _, name := range senders {
		s.pktgen(t, 0, name, macs[name], 0)
		s.set(t, "proc/net/pktgen/"+name, "burst 8")
		s.set(t, "proc/net/pktgen/"+name, "delay 1000000")
	}
	started := s.start()
	var all sync.WaitGroup
	for _, f := range []func(){s.kill, s.plug, s.askTPM} {
		all.Go(f)
	}
	samples := s.watch(t, soakTime(t))
	close(s.over)
	all.Wait()
	t.Logf("%d workers were killed; %d cards plugged in and out, %d times not, as a worker died; %d commands to the TPM, %d without an answer",
		s.kills.Load(), s.plugs.Load(), s.refused.Load(), s.commands.Load(), s.lost.Load())
	s.works(t)
	t.Logf("the longest recovery took %d ms", s.slowest.Load())
	s.counted(t, started, senders)
	if s.kills.Load() == 0 || s.plugs.Load() == 0 || s.commands.Load() == 0 {
		t.Error("something was not done at all")
	}
	flat(t, samples)
	s.end(t)
}

// ls is what `ring3 ls` says, by device.
func (s *soak) ls() (map[string]deviceNow, error) {
	cmd := exec.Command(ring3, "ls", "-json")
	cmd.Dir, cmd.Env = s.dir, s.env
	out, err := cmd.Output()
	var all []deviceNow
	if err == nil {
		err = json.Unmarshal(out, &all)
	}
	by := map[string]deviceNow{}
	for _, d := range all {
		by[d.Name] = d
	}
	return by, err
}

// deviceNow is what the test wants to know of a device.
type deviceNow struct {
	Name, State, Cause string
	Worker, Restarts   int
	Recovery           float64 `json:"recovery_ms"`
}

// kill ends a worker after the other. Each has worked for longer than a second, or its group would be given up after a few.
func (s *soak) kill() {
	const worked = 1300 * time.Millisecond
	type life struct {
		worker int
		since  time.Time
	}
	lives := map[string]life{}
	var plugs int64 // when the port's was killed
	at := time.Now()
	for turn := 0; s.pause(100 * time.Millisecond); {
		all, err := s.ls()
		if err != nil {
			continue
		}
		for _, name := range s.groups {
			s.slowest.Store(max(s.slowest.Load(), int64(all[name].Recovery)))
			if d := all[name]; d.State == "up" && d.Worker != lives[name].worker {
				lives[name] = life{d.Worker, time.Now()}
			}
		}
		name := s.groups[turn%len(s.groups)]
		if name == "rp0" && s.plugs.Load() == plugs && time.Since(at) < 10*time.Second {
			turn++ // a card takes some seconds to come and go, and shall now and then
			continue
		}
		l := lives[name]
		if all[name].State != "up" || time.Since(l.since) < worked || l.worker == 0 {
			continue
		}
		s.pause(time.Duration(rand.IntN(100)) * time.Millisecond) // what the others do at that moment is to be another thing each time
		if syscall.Kill(l.worker, syscall.SIGKILL) == nil {
			s.kills.Add(1)
			if name == "rp0" {
				plugs, at = s.plugs.Load(), time.Now()
			}
		}
		turn++
	}
}

// pause waits, and says whether it goes on.
func (s *soak) pause(d time.Duration) bool {
	select {
	case <-s.over:
		return false
	case <-time.After(d):
		return true
	}
}

// run runs a command that may fail.
func (s *soak) run(args ...string) error {
	cmd := exec.Command(ring3, args...)
	cmd.Dir, cmd.Env = s.dir, s.env
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ring3 %s: %w, %s", strings.Join(args, " "), err, out)
	}
	return nil
}

// plug has a card come and go: pulled out, and every third time by the button, which takes its five seconds.
func (s *soak) plug() {
	for n := 0; s.pause(50 * time.Millisecond); n++ {
		in := s.run("plug", "nic0=sim:e1000e,under=rp0")
		out := s.run("unplug", fmt.Sprintf("--now=%t", n%3 != 2), "nic0")
		if in == nil && out == nil {
			s.plugs.Add(1)
		} else {
			s.refused.Add(1)
		}
	}
}

// askTPM asks the TPM.
func (s *soak) askTPM() {
	for s.pause(20 * time.Millisecond) {
		if s.random() == nil {
			s.commands.Add(1)
		} else {
			s.lost.Add(1)
		}
	}
}

// random asks the TPM for 8 bytes.
func (s *soak) random() error {
	f, err := os.OpenFile(filepath.Join(s.tree, "dev/tpmrm0"), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteString("\x80\x01\x00\x00\x00\x0c\x00\x00\x01\x7b\x00\x08"); err != nil {
		return err
	}
	b := make([]byte, 4096)
	n, err := f.Read(b)
	if err == nil && (n != 20 || string(b[6:10]) != "\x00\x00\x00\x00") {
		err = fmt.Errorf("the TPM answers % x", b[:n])
	}
	return err
}

// works wants everything to work, once nobody kills any more.
func (s *soak) works(t *testing.T) {
	t.Helper()
	eventually(t, "all devices", func() bool {
		all, err := s.ls()
		for _, name := range s.groups {
			if all[name].State == "failed" {
				t.Fatalf("%s: %s: %s", name, all[name].State, all[name].Cause)
			}
			if err != nil || all[name].State != "up" {
				return false
			}
		}
		return true
	})
	if all, err := s.ls(); err != nil {
		t.Fatal(err)
	} else if _, in := all["nic0"]; in {
		s.ring3(t, "unplug", "--now", "nic0") // it was put in by a command that heard nothing of it
	}
	s.ring3(t, "plug", "nic0=sim:e1000e,under=rp0")
	s.ring3(t, "unplug", "--now", "nic0")
	if err := s.random(); err != nil {
		t.Errorf("the TPM, in the end: %v", err)
	}
}

// counted wants each frame received or lost, once the run has been stopped.
func (s *soak) counted(t *testing.T, started <-chan error, senders []string) {
	t.Helper()
	snapshot := func() (f figures.Snapshot) {
		if err := json.Unmarshal([]byte(s.ring3(t, "stats", "-json")), &f); err != nil {
			t.Fatal(err)
		}
		return f
	}
	packets := func(f figures.Snapshot, name string) uint64 {
		i := slices.IndexFunc(f.Pktgen, func(g figures.Generator) bool { return g.Name == name })
		if i < 0 {
			t.Fatalf("pktgen has no %s: %+v", name, f.Pktgen)
		}
		return f.Pktgen[i].Packets
	}
	before := snapshot()
	eventually(t, "traffic", func() bool { // what was lost is known once something came after it
		f := snapshot()
		return !slices.ContainsFunc(senders, func(name string) bool { return packets(f, name) < packets(before, name)+100 })
	})
	s.set(t, "proc/net/pktgen/pgctrl", "stop")
	if err := <-started; err != nil {
		t.Errorf("start: %v", err)
	}
	for _, name := range senders {
		to := map[string]string{"eth0": "eth1", "eth2": "eth3"}[name]
		var sent uint64
		var rx figures.Receiver
		eventually(t, name+"'s frames", func() bool {
			f := snapshot()
			sent, rx = packets(f, name), f.Receivers[slices.IndexFunc(f.Receivers, func(r figures.Receiver) bool { return r.Name == to })]
			return rx.Received-rx.Duplicated+rx.Lost >= sent
		})
		t.Logf("%s sent %d, received %d, lost %d, of these %d in %d restarts, twice %d", name, sent, rx.Received, rx.Lost, rx.LostInRestarts, rx.Restarts, rx.Duplicated)
		if rx.Received-rx.Duplicated+rx.Lost != sent {
			t.Errorf("%s: want each sent one received or lost", name)
		}
	}
}

// soakUsage is what the instance uses.
type soakUsage map[string]int

// watch looks at it until the time is over.
func (s *soak) watch(t *testing.T, length time.Duration) (samples []soakUsage) {
	t.Helper()
	every := min(max(length/200, 250*time.Millisecond), 5*time.Second)
	told := time.Now()
	idle := func() bool { return s.kills.Load() == 0 || s.plugs.Load() == 0 || s.commands.Load() == 0 }
	for end := time.Now().Add(length); time.Now().Before(end) || idle() && time.Since(end) < time.Minute; time.Sleep(every) {
		u := s.usageNow(t)
		samples = append(samples, u)
		if time.Since(told) > time.Minute {
			told = time.Now()
			t.Logf("%d killed, %d plugged, %d commands: %v", s.kills.Load(), s.plugs.Load(), s.commands.Load(), u)
		}
	}
	return samples
}

// usageNow is what it uses now; what cannot be had, since a worker that is asked has just died, is left out.
func (s *soak) usageNow(t *testing.T) soakUsage {
	t.Helper()
	u := s.portsRun.usage(t)
	pid := s.up.cmd.Process.Pid
	mounts, _ := os.ReadFile(fmt.Sprintf("/proc/%d/mounts", pid))
	out := soakUsage{"descriptors": u.descriptors, "descriptors of QEMU": u.qemu, "threads": u.threads, "KiB": u.rss,
		"mounts": strings.Count(string(mounts), " "+s.dir), "processes": descendants(pid)}
	files := 0
	_ = filepath.WalkDir(filepath.Join(s.dir, "ring3"), func(string, os.DirEntry, error) error { files++; return nil })
	out["files"] = files
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	if r, err := client.Get(s.url); err == nil {
		defer r.Body.Close()
		for lines := bufio.NewScanner(r.Body); lines.Scan(); {
			if v, ok := strings.CutPrefix(lines.Text(), "go_goroutines "); ok {
				out["goroutines"], _ = strconv.Atoi(v)
			}
		}
	}
	return out
}

// descendants counts the processes below one.
func descendants(pid int) (n int) {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, f := range tasks {
		b, _ := os.ReadFile(f)
		for _, child := range strings.Fields(string(b)) {
			below, _ := strconv.Atoi(child)
			n += 1 + descendants(below)
		}
	}
	return n
}

// room is how much more there may be in the second half of the time than in the first; the memory of a Go program comes and goes.
var room = soakUsage{"descriptors": 8, "descriptors of QEMU": 2, "threads": 6, "KiB": 16 << 10, "mounts": 0, "processes": 1, "files": 2, "goroutines": 10}

// flat wants the second half of the time to use what the first did, by the medians, which a worker that is just coming or going does not change.
func flat(t *testing.T, samples []soakUsage) {
	t.Helper()
	samples = samples[len(samples)/6:] // what is made once is made then
	half := func(what string, samples []soakUsage) int {
		var all []int
		for _, s := range samples {
			if v, ok := s[what]; ok {
				all = append(all, v)
			}
		}
		if len(all) == 0 {
			t.Fatalf("nothing is known of the %s", what)
		}
		slices.Sort(all)
		return all[len(all)/2]
	}
	for what, more := range room {
		was, is := half(what, samples[:len(samples)/2]), half(what, samples[len(samples)/2:])
		t.Logf("%s: %d in the first half, %d in the second", what, was, is)
		if is > was+more {
			t.Errorf("%s: %d in the first half of the time, %d in the second, want at most %d more", what, was, is, more)
		}
	}
}
