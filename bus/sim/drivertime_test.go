package sim

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
)

// TestDriverClock: a driver waits by the machine's time, and not at all for a machine that is closed.
func TestDriverClock(t *testing.T) {
	m, err := Start(t.Context(), Config{Clock: Stepped, Devices: []DeviceSpec{{Name: "edu0", Model: "edu"}}})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	dev, err := m.Device("edu0")
	if err != nil {
		t.Fatal(err)
	}
	c := bus.ClockOf(dev)
	slept := make(chan error, 1)
	sleep := func(ctx context.Context) { slept <- bus.Sleep(ctx, c, time.Hour) }
	go sleep(t.Context())
	for d, ok := m.Next(); ; d, ok = m.Next() { // until it sleeps
		if ok {
			m.Advance(d)
			break
		}
	}
	if err := <-slept; err != nil || c.Now() < time.Hour {
		t.Errorf("Sleep = %v, at %v, want nil at 1h0m0s", err, c.Now())
	}
	stop := c.AfterFunc(time.Hour, func() { t.Error("f was called after stop") })
	if !stop() {
		t.Error("stop() = false, want true")
	}
	if stop() {
		t.Error("second stop() = true, want false")
	}
	m.Advance(2 * time.Hour)

	ctx, cancel := context.WithCancel(t.Context())
	go sleep(ctx)
	cancel()
	if err := <-slept; !errors.Is(err, context.Canceled) {
		t.Errorf("Sleep(ended ctx) = %v, want context.Canceled", err)
	}
	go sleep(t.Context())
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if err := <-slept; err != nil {
		t.Errorf("Sleep on a closed machine = %v, want nil", err)
	}
}
