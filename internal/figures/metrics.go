package figures

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// MetricsPath is where the page for Prometheus is.
const MetricsPath = "/metrics"

// MetricsAddr reads where to listen: HOST:PORT. Without HOST it is 127.0.0.1.
func MetricsAddr(s string) (string, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return "", fmt.Errorf("%q: want HOST:PORT or :PORT, such as :9100", s)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil {
		return "", fmt.Errorf("%q: port %q: want 0 to 65535", s, port)
	} else {
		port = strconv.FormatUint(n, 10)
	}
	if host == "" {
		host = "127.0.0.1"
	}
	if strings.ContainsAny(host, "/ ") {
		return "", fmt.Errorf("%q: host %q: want a name or an address", s, host)
	}
	return net.JoinHostPort(host, port), nil
}

// Bounds of what a client may take. Nobody needs more than one scrape at a time.
const (
	metricsReadTime  = 5 * time.Second
	metricsWriteTime = 15 * time.Second
	metricsAskTime   = 10 * time.Second // for the figures
	metricsIdleTime  = 2 * time.Minute
	metricsInFlight  = 4
	metricsHeader    = 16 << 10
	metricsEndTime   = time.Second
)

// Server is a page for Prometheus. Close it.
type Server struct {
	ln   net.Listener
	http *http.Server
	done chan struct{}
}

// ListenMetrics listens at an address of [MetricsAddr]; who connects waits until Serve.
func ListenMetrics(addr string) (*Server, error) {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		// The address is named once, as the user wrote it.
		var op *net.OpError
		if errors.As(err, &op) {
			err = op.Err
		}
		return nil, err
	}
	return &Server{ln: ln}, nil
}

// URL is where the page is.
func (s *Server) URL() string { return "http://" + s.ln.Addr().String() + MetricsPath }

// Serve answers with what snapshot returns, which any goroutine may call. It returns at once.
func (s *Server) Serve(snapshot func() *Snapshot, version string, log *slog.Logger) {
	reg := prometheus.NewPedanticRegistry()
	// Of this process, too: who watches an instance for long wants to see that it does not grow.
	goroutines := collectors.NewGoCollector(collectors.WithGoCollectorMemStatsMetricsDisabled())
	reg.MustRegister(&collector{snapshot: snapshot, version: version}, goroutines, collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	mux.Handle("GET "+MetricsPath, promhttp.HandlerFor(reg, promhttp.HandlerOpts{
		EnableOpenMetrics: true, MaxRequestsInFlight: metricsInFlight, Timeout: metricsAskTime, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}))
	s.http = &http.Server{
		Handler: mux, ReadTimeout: metricsReadTime, ReadHeaderTimeout: metricsReadTime, WriteTimeout: metricsWriteTime, IdleTimeout: metricsIdleTime,
		MaxHeaderBytes: metricsHeader, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	s.done = make(chan struct{})
	go func() {
		defer close(s.done)
		if err := s.http.Serve(s.ln); !errors.Is(err, http.ErrServerClosed) {
			log.Error("metrics: they are served no more: " + err.Error())
		}
	}()
}

// Close ends it. Who is being answered has a second for it; a snapshot that was asked for may still be taken after that.
func (s *Server) Close() error {
	if s.http == nil {
		return s.ln.Close()
	}
	ctx, cancel := context.WithTimeout(context.Background(), metricsEndTime)
	defer cancel()
	err := s.http.Shutdown(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		err = s.http.Close() // it reads slowly, or a device does not answer
	}
	<-s.done
	if err != nil {
		return fmt.Errorf("closing the metrics server: %w", err)
	}
	return nil
}
