package integration

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ring3dev/ring3/integration/vm"
)

// samples copies the scripts that come with the kernel to dir, where nobody may read them, too. They are fetched the
// first time.
func samples(t *testing.T, dir string) {
	t.Helper()
	cmd := exec.Command("../hack/pktgen-samples")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	switch {
	case err == nil:
	case os.Getenv(vm.NeedVM) != "":
		t.Fatalf("no scripts here: hack/pktgen-samples: %v\n%s", err, &stderr)
	default:
		t.Skipf("no scripts here: hack/pktgen-samples: %v\n%s", err, &stderr)
	}
	files, err := filepath.Glob(filepath.Join(strings.TrimSpace(string(out)), "*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("hack/pktgen-samples says %q, where there are %d files, %v", out, len(files), err)
	}
	for _, f := range files {
		copyFile(t, f, filepath.Join(dir, filepath.Base(f)))
	}
}

// TestPktgenSamples runs the scripts that come with the kernel, unmodified, in ring3 shell.
func TestPktgenSamples(t *testing.T) {
	t.Parallel()
	dir := folder(t)
	samples(t, dir)
	for _, c := range []struct {
		name, device string
		as           []string
		cases        []sampleCase
	}{
		{"sim", "sim:e1000e,queues=2", nil, sampleCases()},
		{"user", "sim:e1000e", asNobody(), sampleCases()[:2]},
		{"qemu", "qemu:e1000e", nil, sampleCases()[:2]},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.name == "user" && c.as == nil {
				t.Skip("not root, so all of it runs as a user")
			}
			if _, err := exec.LookPath("qemu-system-x86_64"); err != nil && c.name == "qemu" {
				t.Skip(err)
			}
			s := startStation(t, dir, c.as, "eth0="+c.device, "eth1="+c.device, "--wire", "eth0-eth1")
			for _, sc := range c.cases {
				t.Run(sc.String(), func(t *testing.T) { sc.run(t, s) })
			}
			if c.name == "sim" {
				t.Run("Ctrl-C", s.interrupted)
				t.Run("append", s.appended)
				t.Run("wrong", s.wrong)
				t.Run("modprobe", s.modprobe)
			}
		})
	}
}

// TestPktgenConf runs the kernel's older scripts, pktgen.conf-*, where the sources have them (6.1's do not): they
// send ten million packets, which a Ctrl-C ends here.
func TestPktgenConf(t *testing.T) {
	dir := folder(t)
	samples(t, dir)
	files, _ := filepath.Glob(filepath.Join(dir, "pktgen.conf-*"))
	if len(files) == 0 {
		t.Skip("these sources have no pktgen.conf-*")
	}
	s := startStation(t, dir, nil, "eth1=sim:null", "eth2=sim:null")
	for _, f := range files {
		t.Run(filepath.Base(f), func(t *testing.T) {
			// Their first line asks for sh, and they for bash.
			stdout, stderr, status := s.shell(t, `set -m
bash ./`+filepath.Base(f)+` &
until [ "$(sed -n 's/.*pkts-sofar: \([0-9]*\) .*/\1/p' /proc/net/pktgen/eth1 2>&1)" -gt 1000 ] 2>/dev/null; do sleep 0.02; done
kill -INT -- -$!
wait $!
cat /proc/net/pktgen/eth*
echo reset > /proc/net/pktgen/pgctrl`)
			results := parseResults(stdout)
			if status != 0 || len(results) != strings.Count(stdout, "ifname: ") || len(results) == 0 || strings.Contains(stdout, "ERROR") {
				t.Errorf("exit status %d, want 0, and a result of each device:\n%s%s", status, stdout, stderr)
			}
		})
	}
}

// sampleCase is one script with its options, beside the device (-i) and the receiver's address (-m).
type sampleCase struct {
	script  string
	args    string
	device  string // eth0
	packets int    // of one device
	devices int
	size    int
	shows   string // on stderr
}

func (c sampleCase) String() string { return strings.TrimSpace(c.script + " " + c.args) }

func sampleCases() []sampleCase {
	// Each thread has a CPU, and an interrupt of the device's for itself.
	n := min(runtime.NumCPU(), 2)
	t := fmt.Sprintf(" -t %d", n)
	return []sampleCase{
		{script: "pktgen_sample03_burst_single_flow.sh", args: "-n 5000", packets: 5000, devices: 1},
		{script: "pktgen_sample06_numa_awared_queue_irq_affinity.sh", args: "-v -n 2000", packets: 2000, devices: 1, shows: "is set affinity to 0\n"},
		{script: "pktgen_sample01_simple.sh", args: "-n 3000", packets: 3000, devices: 1},
		{script: "pktgen_sample01_simple.sh", args: "-6 -k -s 100 -p 433-444 -d FD00::/120 -n 3000", packets: 3000, devices: 1, size: 100},
		{script: "pktgen_sample02_multiqueue.sh", args: "-w 1000 -n 2000" + t, packets: 2000, devices: n},
		{script: "pktgen_sample03_burst_single_flow.sh", args: "-b 8 -c 10 -x -n 4000", packets: 4000, devices: 1},
		{script: "pktgen_sample04_many_flows.sh", args: "-d 198.18.0.0/15 -n 3000", packets: 3000, devices: 1},
		{script: "pktgen_sample05_flow_per_thread.sh", args: "-n 5000" + t, packets: 5000, devices: n},
		{script: "pktgen_sample06_numa_awared_queue_irq_affinity.sh", args: "-v -n 2000" + t, packets: 2000, devices: n,
			shows: fmt.Sprintf("is set affinity to %d\n", n-1)},
		{script: "pktgen_bench_xmit_mode_netif_receive.sh", args: "-n 20000" + t, packets: 20000, devices: n},
		{script: "pktgen_bench_xmit_mode_queue_xmit.sh", args: "-n 3000", packets: 3000, devices: 1},
		{script: "pktgen_sample01_simple.sh", args: "-n 3000", device: "lo", packets: 3000, devices: 1},
		{script: "pktgen_bench_xmit_mode_netif_receive.sh", args: "-n 20000", device: "lo", packets: 20000, devices: 1},
		{script: "pktgen_bench_xmit_mode_queue_xmit.sh", args: "-n 3000", device: "lo", packets: 3000, devices: 1},
	}
}

func (c sampleCase) run(t *testing.T, s *station) {
	device, to := "eth0", "eth1"
	if c.device != "" {
		device, to = c.device, c.device
	}
	sent, received := s.packets(t, device, "tx"), s.packets(t, to, "rx")
	stdout, stderr, status := s.shell(t, fmt.Sprintf("./%s -i %s -m 52:54:00:12:34:57 %s", c.script, device, c.args))
	results := parseResults(stdout)
	if status != 0 || len(results) != c.devices || !strings.Contains(stderr, c.shows) {
		t.Fatalf("exit status %d, %d results, want 0, %d, and %q on stderr:\n%s%s", status, len(results), c.devices, c.shows, stdout, stderr)
	}
	size := c.size
	if size == 0 {
		size = 60
	}
	// Only a queue discipline refuses frames: how often it was full, the machine decides.
	queue := strings.Contains(c.script, "queue_xmit")
	for _, r := range results {
		if r.packets != c.packets || r.size != size || r.errors != 0 && !queue || r.pps == 0 || r.bps != r.pps*8*size || r.mbps != r.bps/1e6 {
			t.Errorf("result %+v, want %d packets of %d bytes, no errors, rates that fit each other:\n%s", r, c.packets, size, stdout)
		}
	}
	want := c.packets * c.devices
	if strings.Contains(c.script, "netif_receive") {
		want = 0 // past the device
	}
	s.wait(t, to, received+want)
	// The machine's own traffic is in lo's counters, too.
	if n := s.packets(t, device, "tx") - sent; n != want && device != "lo" || n < want {
		t.Errorf("%s counts %d sent frames, want %d", device, n, want)
	}
}

// A result is the two lines that a script prints of a device's run.
type result struct{ packets, size, pps, mbps, bps, errors int }

var resultLines = regexp.MustCompile(`(?m)^Result: OK: \d+\(c\d+\+d\d+\) usec, (\d+) \((\d+)byte,0frags\)\n  (\d+)pps (\d+)Mb/sec \((\d+)bps\) errors: (\d+)$`)

func parseResults(text string) (rs []result) {
	for _, m := range resultLines.FindAllStringSubmatch(text, -1) {
		var r result
		for i, to := range []*int{&r.packets, &r.size, &r.pps, &r.mbps, &r.bps, &r.errors} {
			*to, _ = strconv.Atoi(m[i+1])
		}
		rs = append(rs, r)
	}
	return rs
}

// station is a `ring3 up` with its tree mounted, and where its shells begin.
type station struct {
	dir string
	as  []string
	env []string
}

// startStation starts one that is gone when the test ends.
func startStation(t *testing.T, dir string, as []string, devices ...string) *station {
	t.Helper()
	run := folder(t)
	s := &station{dir: dir, as: as, env: append(os.Environ(), "LC_ALL=C", "XDG_RUNTIME_DIR="+run, "TMPDIR="+run)}
	startRing3(t, as, s.env, append([]string{"up"}, devices...)...)
	return s
}

// command is a ring3 that talks to the station.
func (s *station) command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	argv := append(slices.Clone(s.as), append([]string{ring3}, args...)...)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir, cmd.Env = s.dir, s.env
	return cmd
}

// shell runs a command line of bash's in ring3 shell.
func (s *station) shell(t *testing.T, line string) (stdout, stderr string, status int) {
	t.Helper()
	cmd := s.command(t, "shell", "--", "bash", "-c", line)
	var out, err bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &err
	if e := cmd.Run(); cmd.ProcessState == nil || cmd.ProcessState.ExitCode() < 0 {
		t.Fatalf("%s: %v\n%s%s", line, e, &out, &err)
	}
	return out.String(), err.String(), cmd.ProcessState.ExitCode()
}

// packets is a counter of an interface.
func (s *station) packets(t *testing.T, device, direction string) int {
	t.Helper()
	out, err := s.command(t, "get", fmt.Sprintf("/sys/class/net/%s/statistics/%s_packets", device, direction)).Output()
	n, bad := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil || bad != nil {
		t.Fatalf("%s_packets of %s: %q, %v, %v", direction, device, out, err, bad)
	}
	return n
}

// wait waits until a device has received that much, and no more; of lo at least that much.
func (s *station) wait(t *testing.T, device string, want int) {
	t.Helper()
	n := 0
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if n = s.packets(t, device, "rx"); n >= want {
			break
		}
	}
	if n < want || n > want && device != "lo" {
		t.Errorf("%s counts %d received frames, want %d", device, n, want)
	}
}

// interrupted presses Ctrl-C while a script sends without end: it shows its result, and takes its devices away.
func (s *station) interrupted(t *testing.T) {
	received := s.packets(t, "eth1", "rx")
	stdout, stderr, status := s.shell(t, `set -m
./pktgen_sample03_burst_single_flow.sh -i eth0 -m 52:54:00:12:34:57 &
until [ "$(sed -n 's/.*pkts-sofar: \([0-9]*\) .*/\1/p' /proc/net/pktgen/eth0@0 2>&1)" -gt 1000 ] 2>/dev/null; do sleep 0.02; done
kill -INT -- -$!
wait $!; echo status $?
[ -e /proc/net/pktgen/eth0@0 ] || echo gone`)
	results := parseResults(stdout)
	if status != 0 || !strings.HasSuffix(stdout, "status 0\ngone\n") || len(results) != 1 || results[0].packets <= 1000 || results[0].errors != 0 {
		t.Fatalf("exit status %d, want 0, a result of more than 1000 packets, status 0 of the script, and no device left:\n%s%s", status, stdout, stderr)
	}
	s.wait(t, "eth1", received+results[0].packets)
}

// appended is what the scripts' README says of several flows at once: -a, then a start by hand.
func (s *station) appended(t *testing.T) {
	received := s.packets(t, "eth1", "rx")
	stdout, stderr, status := s.shell(t, `export APPEND=yes
source ./functions.sh
pg_ctrl reset
./pktgen_sample01_simple.sh -a -i eth0 -m 52:54:00:12:34:57 -n 2000
./pktgen_sample05_flow_per_thread.sh -a -i eth0 -m 52:54:00:12:34:57 -n 3000
cat /proc/net/pktgen/kpktgend_0
pg_ctrl start
cat /proc/net/pktgen/eth0 /proc/net/pktgen/eth0@0
pg_ctrl reset
ls /proc/net/pktgen`)
	results := parseResults(stdout)
	if status != 0 || !strings.Contains(stdout, "\nStopped: eth0@0 eth0 \n") || len(results) != 2 || results[0].packets != 2000 || results[1].packets != 3000 || !strings.HasSuffix(stdout, "\npgctrl\n") {
		t.Fatalf("exit status %d, want 0, two devices, then their results, then none:\n%s%s", status, stdout, stderr)
	}
	s.wait(t, "eth1", received+5000)
}

// wrong is how the scripts fail, as they do on a kernel.
func (s *station) wrong(t *testing.T) {
	for _, c := range []struct {
		line, want string
		status     int
	}{
		{"./pktgen_sample01_simple.sh -i eth0", "ERROR: Must specify -m dst_mac\n", 2},
		{"./pktgen_sample01_simple.sh -m 52:54:00:12:34:57", "ERROR: Please specify output device\n", 2},
		{"./pktgen_sample02_multiqueue.sh -i eth9", "Result: ERROR: can not add device eth9@0\nERROR: Write error(1) occurred cmd: ", 5},
		{"./pktgen_sample02_multiqueue.sh -i eth0 -f 999", "ERROR: proc file:/proc/net/pktgen/kpktgend_999 does not exists (dev added to thread?)\n", 3},
		{"./pktgen_sample06_numa_awared_queue_irq_affinity.sh -i eth0 -t 999", "ERROR: Thread number 999 exceeds: min (", 1},
		// A packet of lo's is its receiver's when it was sent.
		{"./pktgen_sample01_simple.sh -i lo -m 00:00:00:00:00:00 -c 10", "write error: Operation not supported\n", 5},
		{"./pktgen_sample03_burst_single_flow.sh -i lo", "write error: Operation not supported\n", 5},
	} {
		stdout, stderr, status := s.shell(t, c.line+"; status=$?; ls /proc/net/pktgen; exit $status")
		if status != c.status || !strings.Contains(stderr, c.want) || !strings.HasSuffix(stdout, "\npgctrl\n") {
			t.Errorf("%s: exit status %d, want %d, %q on stderr, and no device left:\n%s%s", c.line, status, c.status, c.want, stdout, stderr)
		}
	}
}

// modprobe: what scripts load first is there.
func (s *station) modprobe(t *testing.T) {
	for line, want := range map[string]string{
		"modprobe pktgen; echo $?; cat /sys/module/pktgen/version":                                "0\n2.75\n",
		"modprobe -q e1000; echo $?":                                                              "0\n",
		"modprobe -r pktgen 2>&1; echo $?":                                                        "modprobe: FATAL: Module pktgen is builtin.\n1\n",
		"PATH=${PATH%%:*}:/bin modprobe no-such-module-at-all 2>/dev/null; [ $? = 0 ] || echo no": "no\n",
	} {
		if stdout, stderr, _ := s.shell(t, line); stdout != want {
			t.Errorf("%s says %q, want %q; %s", line, stdout, want, stderr)
		}
	}
}
