package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"

	"github.com/ring3dev/ring3/internal/figures"
)

// watched is a `ring3 up` with figures to look at.
type watched struct {
	*station
	up *running
}

func startWatched(t *testing.T, args ...string) *watched {
	t.Helper()
	run := folder(t)
	w := &watched{station: &station{dir: run, env: append(os.Environ(), "XDG_RUNTIME_DIR="+run, "TMPDIR="+run, "TERM=xterm-256color")}}
	w.up = startRing3(t, nil, w.env, append([]string{"up", "--no-mount", "eth0=sim:e1000e", "eth1=sim:e1000e", "--wire", "eth0-eth1"}, args...)...)
	return w
}

// ring3 runs a command that is to succeed.
func (w *watched) ring3(t *testing.T, args ...string) []byte {
	t.Helper()
	cmd := w.command(t, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil || stderr.Len() > 0 {
		t.Fatalf("ring3 %s: %v, %s", strings.Join(args, " "), err, &stderr)
	}
	return out
}

// send has pktgen send so many packets from eth0 to eth1, and waits until they are there.
func (w *watched) send(t *testing.T, n int) {
	t.Helper()
	w.ring3(t, "set", "/proc/net/pktgen/kpktgend_0", "add_device eth0")
	for _, c := range []string{"count " + strconv.Itoa(n), "burst 32", "dst_mac 52:54:00:12:34:57", "pkt_size 60"} {
		w.ring3(t, "set", "/proc/net/pktgen/eth0", c)
	}
	w.ring3(t, "set", "/proc/net/pktgen/pgctrl", "start")
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if s := w.snapshots(t, "stats", "-json")[0]; s.Receivers[1].Received == uint64(n) {
			return
		} else if time.Now().After(deadline) {
			t.Fatalf("eth1 received %+v, want %d", s.Receivers[1], n)
		}
	}
}

// snapshots are what a command prints.
func (w *watched) snapshots(t *testing.T, args ...string) (out []*figures.Snapshot) {
	t.Helper()
	for d := json.NewDecoder(bytes.NewReader(w.ring3(t, args...))); ; {
		s := &figures.Snapshot{}
		if err := d.Decode(s); errors.Is(err, io.EOF) {
			return out
		} else if err != nil {
			t.Fatal(err)
		}
		out = append(out, s)
	}
}

// url is where the metrics are.
func (w *watched) url(t *testing.T) string {
	t.Helper()
	for _, l := range w.up.said {
		if u, ok := strings.CutPrefix(l, "metrics: "); ok {
			return u
		}
	}
	t.Fatalf("ring3 up does not say where the metrics are: %q", w.up.said)
	return ""
}

func scrape(t *testing.T, url string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	r, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(q)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode != http.StatusOK {
		t.Fatalf("GET %s = %s, %v, %s", url, r.Status, err, b)
	}
	return string(b)
}

// TestMetrics: Prometheus gets what ring3 stats prints, from loopback, for as long as the instance is there.
func TestMetrics(t *testing.T) {
	t.Parallel()
	w := startWatched(t, "--metrics", ":0")
	url := w.url(t)
	if !strings.HasPrefix(url, "http://127.0.0.1:") {
		t.Errorf("the metrics are at %s, want loopback", url)
	}
	w.send(t, 3000)
	text, s := scrape(t, url), w.snapshots(t, "stats", "-json")[0]
	for _, want := range []string{
		`ring3_info{instance="` + s.Instance + `",version="`,
		`ring3_netdev_transmit_packets_total{device="eth0"} 3000`,
		`ring3_netdev_receive_bytes_total{device="eth1"} ` + strconv.FormatUint(s.Devices[1].Net.Statistics.RxBytes, 10),
		`ring3_pktgen_packets_total{device="eth0",thread="kpktgend_0"} 3000`,
		`ring3_pktgen_running{device="eth0",thread="kpktgend_0"} 0`,
		`ring3_pktgen_receive_packets_total{device="eth1"} 3000`,
		`ring3_pktgen_receive_lost_packets{device="eth1"} 0`,
		`ring3_pktgen_latency_seconds_bucket{device="eth1",le="+Inf"} 3000`,
	} {
		if !strings.Contains(text, "\n"+want) {
			t.Errorf("no line %s in\n%s", want, text)
		}
	}

	// Somebody else's port, told before anything starts.
	addr := strings.TrimSuffix(strings.TrimPrefix(url, "http://"), "/metrics")
	out, err := w.command(t, "up", "--metrics", addr, "eth0=sim:null").CombinedOutput()
	if want := "ring3: --metrics " + addr + ": listening: bind: address already in use\n"; err == nil || string(out) != want {
		t.Errorf("ring3 up with a busy port: %v, %q, want %q", err, out, want)
	}
	if dirs, _ := filepath.Glob(w.dir + "/ring3/*"); len(dirs) != 1 {
		t.Errorf("instances: %q, want one", dirs)
	}
	w.up.stop(t)
	if r, err := http.Get(url); err == nil {
		r.Body.Close()
		t.Error("the metrics are still there when the instance is not")
	}
}

// TestReport: a page is well-formed, and has lines for everything, whatever ended it.
func TestReport(t *testing.T) {
	t.Parallel()
	w := startWatched(t)
	w.send(t, 1000)
	file := filepath.Join(w.dir, "r.html")
	w.ring3(t, "report", "-o", file, "-n", "0.05", "-for", "0.2s")
	checkReport(t, file)
	for _, end := range []struct {
		name string
		do   func(c *terminal)
	}{{"Ctrl-C", func(c *terminal) { _, _ = c.Write([]byte{3}) }}, {"the end of the instance", func(*terminal) { w.up.stop(t) }}} {
		c, cmd := w.onTerminal(t, "report", "-o", file, "-n", "0.02")
		c.shows(t, "ring3: report: recording; Ctrl-C ends it and draws")
		end.do(c)
		if err := cmd.Wait(); err != nil {
			t.Errorf("ring3 report after %s: %v: %s", end.name, err, c.all())
		}
		checkReport(t, file)
		os.Remove(file)
	}
}

func checkReport(t *testing.T, file string) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	lines := 0
	for d := xml.NewDecoder(bytes.NewReader(b)); ; {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("the page is not well-formed: %v", err)
		}
		if e, ok := tok.(xml.StartElement); ok && e.Name.Local == "polyline" {
			lines++
		}
	}
	if lines < 8 {
		t.Errorf("%d lines are drawn, want those of eth0 and eth1, both ways, packets and bits: %s", lines, b)
	}
}

// terminal is what a program shows on a terminal.
type terminal struct {
	*os.File
	mu   sync.Mutex
	text strings.Builder
	end  chan struct{}
}

func (c *terminal) read() {
	defer close(c.end)
	b := make([]byte, 4096)
	for {
		n, err := c.Read(b)
		c.mu.Lock()
		c.text.Write(b[:n])
		c.mu.Unlock()
		if err != nil {
			return // EIO: the program has ended
		}
	}
}

// shows waits for texts, which may come anywhere and in any order.
func (c *terminal) shows(t *testing.T, texts ...string) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		c.mu.Lock()
		shown := c.text.String()
		c.mu.Unlock()
		missing := ""
		for _, s := range texts {
			if !strings.Contains(shown, s) {
				missing = s
			}
		}
		if missing == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%q is not on the terminal: %q", missing, shown)
		}
	}
}

// all is what was shown until the program's end.
func (c *terminal) all() string {
	<-c.end
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text.String()
}

// onTerminal runs a ring3 on a terminal of its own.
func (w *watched) onTerminal(t *testing.T, args ...string) (*terminal, *exec.Cmd) {
	t.Helper()
	cmd := w.command(t, args...)
	f, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 40, Cols: 160})
	if err != nil {
		t.Skipf("no terminal to be had: %v", err)
	}
	c := &terminal{File: f, end: make(chan struct{})}
	t.Cleanup(func() { f.Close() })
	go c.read()
	return c, cmd
}

// TestTop: it shows the devices, follows the size of the terminal, and gives the terminal back.
func TestTop(t *testing.T) {
	t.Parallel()
	w := startWatched(t)
	w.send(t, 1234)
	c, cmd := w.onTerminal(t, "top", "-n", "0.1")
	c.shows(t, "\x1b[?1049h", "ring3 top", "DEVICE", "eth0", "eth1", "1234", "kpktgend_0", "LATENCY", "rates of the last", "PACKETS/S")
	if err := pty.Setsize(c.File, &pty.Winsize{Rows: 8, Cols: 100}); err != nil {
		t.Fatal(err)
	}
	c.shows(t, "scroll")
	if _, err := c.WriteString("q"); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("ring3 top after q: %v", err)
	}
	c.shows(t, "\x1b[?1049l")

	// Who ends it with a signal gets the terminal back, too.
	c, cmd = w.onTerminal(t, "top")
	c.shows(t, "DEVICE")
	_ = cmd.Process.Signal(syscall.SIGTERM)
	if err := cmd.Wait(); err != nil {
		t.Errorf("ring3 top after SIGTERM: %v", err)
	}
	c.shows(t, "\x1b[?1049l")

	// Ctrl-C is a key there; the end of the instance is an end; and not every terminal can be drawn on.
	c, cmd = w.onTerminal(t, "top")
	c.shows(t, "DEVICE")
	_, _ = c.Write([]byte{3})
	if err := cmd.Wait(); err != nil {
		t.Errorf("ring3 top after Ctrl-C: %v", err)
	}
	known := w.env
	w.env = append(w.env[:len(w.env):len(w.env)], "TERM=nosuch")
	c, cmd = w.onTerminal(t, "top")
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("ring3 top on a terminal that nobody knows: %v", err)
	}
	c.shows(t, "ring3: top: the terminal (TERM=nosuch): ")
	w.env = known
	c, cmd = w.onTerminal(t, "top")
	c.shows(t, "DEVICE")
	w.up.stop(t)
	if err := cmd.Wait(); err != nil {
		t.Errorf("ring3 top after the instance: %v", err)
	}
	c.shows(t, "ring3: top: r0 has ended")

	// Without an instance.
	c, cmd = w.onTerminal(t, "top")
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("ring3 top without an instance: %v", err)
	}
	c.shows(t, "ring3: no ring3 is running")
}
