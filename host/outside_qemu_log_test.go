package host

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
)

// TestPaced: somebody who complains without end is heard fifty times, and counted; what is no complaint goes through.
func TestPaced(t *testing.T) {
	var b bytes.Buffer
	log := paced(slog.New(slog.NewTextHandler(&b, &slog.HandlerOptions{Level: slog.LevelDebug})), "eth0")
	for range 1000 {
		log.Warn("flood")
		log.With("a", 1).WithGroup("g").Error("flood")
		log.Debug("quiet")
	}
	if n := strings.Count(b.String(), "flood"); n < qemuWords || n > qemuWords+100 { // a slow machine's seconds bring more
		t.Errorf("%d of 2000 complaints are heard, want some %d", n, qemuWords)
	}
	if n := strings.Count(b.String(), "quiet"); n != 1000 {
		t.Errorf("%d of 1000 others are heard, want all", n)
	}
}
