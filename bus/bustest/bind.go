package bustest

import (
	"bytes"
	"errors"
	"log/slog"
	"sync"
	"testing"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// Bind brings a device into service with a driver, or fails the test with the driver's error.
// The instance is closed at the end of the test, before the device. Its name is "dut".
func Bind(t testing.TB, dev bus.Device, d *pci.Driver, options map[string]string) pci.Instance {
	t.Helper()
	r := pci.Bind(t.Context(), dev, pci.Env{Name: "dut", Log: Log(t), Options: options}, []*pci.Driver{d})
	if r.Outcome != pci.Bound {
		t.Fatalf("binding %s to %s: %s: %v", dev.Address(), d.Name, r.Outcome, r.Err)
	}
	t.Cleanup(func() {
		if err := r.Instance.Close(); err != nil && !errors.Is(err, bus.ErrGone) {
			t.Errorf("closing what %s brought up: %v", d.Name, err)
		}
	})
	return r.Instance
}

// Log is a logger that writes to the test's log, until the test ends.
func Log(t testing.TB) *slog.Logger {
	w := &writer{t: t}
	t.Cleanup(w.end)
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{
		Level: slog.LevelDebug,
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey && len(groups) == 0 {
				return slog.Attr{} // a test's log is compared with another's
			}
			return a
		},
	}))
}

// writer passes lines to a test. One that comes after its end would make the whole test
// binary panic.
type writer struct {
	mu sync.Mutex
	t  testing.TB // nil once it ended
}

func (w *writer) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.t != nil {
		w.t.Log(string(bytes.TrimSuffix(b, []byte("\n"))))
	}
	return len(b), nil
}

func (w *writer) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.t = nil
}
