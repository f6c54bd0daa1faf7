package figures

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/ring3dev/ring3/netdev"
	"github.com/ring3dev/ring3/pktgen"
)

func TestMetricsAddr(t *testing.T) {
	for _, c := range []struct{ in, want, err string }{
		{":9100", "127.0.0.1:9100", ""},
		{":0", "127.0.0.1:0", ""},
		{"0.0.0.0:9100", "0.0.0.0:9100", ""},
		{"localhost:80", "localhost:80", ""},
		{"[::1]:9100", "[::1]:9100", ""},
		{"[::]:9100", "[::]:9100", ""},
		{"9100", "", `"9100": want HOST:PORT or :PORT, such as :9100`},
		{"::1:9100", "", "want HOST:PORT"},
		{":", "", `port "": want 0 to 65535`},
		{":65536", "", `port "65536": want 0 to 65535`},
		{":-1", "", "want 0 to 65535"},
		{":http", "", "want 0 to 65535"},
		{"http://localhost:80", "", "want HOST:PORT"},
		{"a b:80", "", `host "a b"`},
	} {
		got, err := MetricsAddr(c.in)
		if c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) || c.err == "" && err != nil || err == nil && got != c.want {
			t.Errorf("MetricsAddr(%q) = %q, %v, want %q, %q", c.in, got, err, c.want, c.err)
		}
	}
}

// serve serves metrics of a snapshot.
func serve(t *testing.T, snapshot func() *Snapshot) *Server {
	t.Helper()
	s, err := ListenMetrics("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	s.Serve(snapshot, "v1", slog.New(slog.DiscardHandler))
	return s
}

// scrape gets the page, in the format that accept asks for.
func scrape(t *testing.T, url, accept string) (code int, text string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	q.Header.Set("Accept", accept)
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	r, err := client.Do(q)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(b)
}

func TestMetrics(t *testing.T) {
	s := at(0, 1100)
	s.Pktgen[0].Name = "eth0@\xff\x1b"
	again := s.Pktgen[0]
	again.Name = "eth0@\xfe\x1b" // which is the same when it is printed
	again.Packets = 7
	s.Pktgen = append(s.Pktgen, again)
	srv := serve(t, func() *Snapshot { return s })
	code, text := scrape(t, srv.URL(), "")
	if code != http.StatusOK {
		t.Fatalf("GET = %d, %s", code, text)
	}
	for _, want := range []string{
		`ring3_info{instance="r0",version="v1"} 1`,
		`ring3_device_up{device="eth0",driver="e1000",model="82574L"} 1`,
		`ring3_device_up{device="edu0",driver="edu",model=""} 0`,
		`ring3_device_interrupts_total{device="eth0",irq="100",vector="eth0-rx-0"} 110`,
		`ring3_netdev_link_up{device="eth1"} 0`,
		`ring3_netdev_link_speed_bytes_per_second{device="eth0"} 1.25e+08`,
		`ring3_netdev_transmit_packets_total{device="eth0"} 1100`,
		`ring3_netdev_receive_bytes_total{device="eth1"} 110000`,
		`ring3_netdev_receive_errors_total{device="eth1"} 3`,
		`ring3_netdev_receive_multicast_total{device="eth1"} 0`,
		`ring3_pktgen_packets_total{device="eth0@??",thread="kpktgend_0"} 1100`,
		`ring3_pktgen_running{device="eth0@??",thread="kpktgend_0"} 1`,
		`ring3_pktgen_packets_total{device="eth0@??#2",thread="kpktgend_0"} 7`,
		`ring3_pktgen_receive_packets_total{device="eth1"} 1100`,
		`ring3_pktgen_receive_lost_packets{device="eth1"} 2`,
		`ring3_pktgen_receive_corrupted_packets_total{device="eth1",reason="length"} 0`,
		`ring3_pktgen_latency_seconds_bucket{device="eth1",le="1.024e-06"} 0`,
		`ring3_pktgen_latency_seconds_bucket{device="eth1",le="2.048e-06"} 1099`,
		`ring3_pktgen_latency_seconds_bucket{device="eth1",le="4.096e-06"} 1100`,
		`ring3_pktgen_latency_seconds_bucket{device="eth1",le="+Inf"} 1100`,
		`ring3_pktgen_latency_seconds_sum{device="eth1"} 0.00165`,
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("no line %s", want)
		}
	}
	if n := strings.Count(text, "\nring3_pktgen_running{"); n != 2 {
		t.Errorf("%d lines of two generators, want 2", n)
	}
	kernel := 0
	new(netdev.Stats).Each(func(string, uint64) { kernel++ })
	if n := strings.Count(text, "# HELP ring3_netdev_"); n != kernel+4 {
		t.Errorf("%d metrics of network devices, want %d counters of the kernel's and 4", n, kernel)
	}
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("promlint: %v, %v", problems, err)
	}
	if code, text := scrape(t, srv.URL(), "application/openmetrics-text; version=1.0.0"); code != http.StatusOK || !strings.HasSuffix(text, "# EOF\n") ||
		!strings.Contains(text, "# TYPE ring3_netdev_transmit_packets counter\n") {
		t.Errorf("OpenMetrics: %d, %s", code, text)
	}
	if code, _ := scrape(t, strings.TrimSuffix(srv.URL(), MetricsPath)+"/debug/pprof/", ""); code != http.StatusNotFound {
		t.Errorf("GET /debug/pprof/ = %d, want %d", code, http.StatusNotFound)
	}
}

// TestMetricsNothing: an instance whose devices are of other kinds.
func TestMetricsNothing(t *testing.T) {
	srv := serve(t, func() *Snapshot { return &Snapshot{Instance: "r0"} })
	if code, text := scrape(t, srv.URL(), ""); code != http.StatusOK || !strings.Contains(text, `ring3_info{instance="r0",version="v1"} 1`) {
		t.Errorf("GET = %d, %s", code, text)
	}
}

// TestMetricsNames: a name that is no text ends nothing.
func TestMetricsNames(t *testing.T) {
	s := at(0, 10)
	s.Receivers[0].Name = "eth1\xff"
	srv := serve(t, func() *Snapshot { return s })
	if code, text := scrape(t, srv.URL(), ""); code != http.StatusOK || !strings.Contains(text, `ring3_pktgen_latency_seconds_count{device="eth1?"} 10`) {
		t.Errorf("GET = %d, %s", code, text)
	}
	seen, got := map[string]bool{}, []string{}
	for _, name := range []string{"a", "a", "a#2", "b", "a", "a#2"} {
		got = append(got, unique(seen, name))
	}
	if names := strings.Join(got, " "); names != "a a#2 a#2#2 b a#3 a#2#3" {
		t.Errorf("unique names are %s", names)
	}
}

// TestMetricsBusy: a port that somebody has is an error at once.
func TestMetricsBusy(t *testing.T) {
	srv := serve(t, func() *Snapshot { return &Snapshot{} })
	addr := strings.TrimSuffix(strings.TrimPrefix(srv.URL(), "http://"), MetricsPath)
	if s, err := ListenMetrics(addr); err == nil || strings.Contains(err.Error(), addr) {
		t.Errorf("listening where somebody does: %v, %v", s, err)
	}
}

// TestMetricsClose: it ends though a device does not answer, or a client does not read.
func TestMetricsClose(t *testing.T) {
	s, err := ListenMetrics("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	asked, answer := make(chan struct{}), make(chan struct{})
	s.Serve(func() *Snapshot {
		close(asked)
		<-answer
		return &Snapshot{}
	}, "v1", slog.New(slog.DiscardHandler))
	c, err := net.Dial("tcp", s.ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", MetricsPath)
	<-asked
	if err := s.Close(); err != nil {
		t.Errorf("Close = %v", err)
	}
	close(answer)
	unused, err := ListenMetrics("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := unused.Close(); err != nil {
		t.Errorf("Close of a server that served nothing = %v", err)
	}
}

func TestCumulative(t *testing.T) {
	l := pktgen.Latency{Buckets: []pktgen.LatencyBucket{{From: 0, To: 1, N: 1}, {From: 896, To: 1024, N: 2}, {From: 1024, To: 1280, N: 4}, {From: 1792, To: 2048, N: 8}, {From: 2048, To: 2560, N: 16},
		{From: 60 << 30, To: 64 << 30, N: 32}}}
	m := cumulative(&l)
	for bound, want := range map[float64]uint64{1.024e-6: 3, 2.048e-6: 15, 4.096e-6: 31, 34.359738368: 31, 68.719476736: 63} {
		if m[bound] != want {
			t.Errorf("%d latencies up to %g s, want %d", m[bound], bound, want)
		}
	}
	if len(m) != 27 {
		t.Errorf("%d bounds, want 27", len(m))
	}
}
