package bustest

import (
	"context"
	"errors"
	"testing"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

var allModes = []bus.IRQMode{bus.INTx, bus.MSI, bus.MSIX}

// modes lists what the device and backend offer, or skips.
func modes(t *testing.T, d bus.Device) []bus.IRQMode {
	t.Helper()
	var out []bus.IRQMode
	for _, m := range allModes {
		if d.IRQVectors(m) > 0 {
			out = append(out, m)
		}
	}
	if len(out) == 0 {
		t.Skip("the device has no interrupt")
	}
	return out
}

func enable(t *testing.T, d bus.Device, mode bus.IRQMode, n int) []*bus.IRQ {
	t.Helper()
	q, err := d.EnableIRQs(mode, n)
	if err != nil {
		t.Fatalf("EnableIRQs(%s, %d) = %v (Err = %v)", mode, n, err, d.Err())
	}
	if len(q) != n {
		t.Fatalf("EnableIRQs(%s, %d) gave %d vectors", mode, n, len(q))
	}
	for i, x := range q {
		if x.Mode() != mode || x.Vector() != i {
			t.Errorf("vector %d of %s says %s, %d", i, mode, x.Mode(), x.Vector())
		}
	}
	return q
}

// What IRQVectors offers can be enabled, and no more.
func irqCounts(t *testing.T, s Subject) {
	d := s.Device
	for _, m := range append(allModes, bus.IRQMode(99)) {
		n := d.IRQVectors(m)
		if n < 0 || m == bus.INTx && n > 1 || m == bus.MSI && n > 32 || n > 2048 {
			t.Errorf("IRQVectors(%s) = %d", m, n)
		}
		if n > 0 {
			enable(t, d, m, n)
			if got := d.IRQVectors(m); got != n {
				t.Errorf("IRQVectors(%s) = %d while enabled, want %d as before", m, got, n)
			}
			enable(t, d, m, 1)
		}
		for _, bad := range []int{n + 1, 0, -1, 1 << 30} {
			q, err := d.EnableIRQs(m, bad)
			if q != nil {
				t.Errorf("EnableIRQs(%s, %d) gave %d vectors of %d", m, bad, len(q), n)
			}
			wantErr(t, "EnableIRQs of too many or none", err, bus.ErrNotSupported)
		}
	}
	for range 2 {
		if err := d.DisableIRQs(); err != nil {
			t.Errorf("DisableIRQs = %v, want nil, enabled or not", err)
		}
	}
}

// An interrupt arrives, once, in each mode and after each change of mode.
func irqFires(t *testing.T, s Subject) {
	if s.Raise == nil {
		t.Skip("the subject cannot raise an interrupt by itself")
	}
	ms := modes(t, s.Device)
	for range 2 {
		for _, m := range ms {
			q := enable(t, s.Device, m, 1)[0]
			quiet(t, q, "nothing was raised")
			for range 3 {
				s.Raise()
				if n := wait(t, q); n < 1 {
					t.Errorf("%s: Wait = %d, want at least 1", m, n)
				}
				s.Lower()
				q.Unmask()
			}
			quiet(t, q, "all was acknowledged")
			if m == bus.INTx {
				continue
			}
			// Messages are not lost while nobody waits.
			for range 3 {
				s.Raise()
				s.Lower()
			}
			s.Device.Config().Read16(pci.CfgCommand) // all three were sent
			if n := wait(t, q); n > 3 {
				t.Errorf("%s: Wait after three = %d, want 1 to 3", m, n)
			}
		}
	}
}

// Enabling replaces what was enabled: its waiters end.
func irqReplace(t *testing.T, s Subject) {
	ms := modes(t, s.Device)
	for _, from := range ms {
		for _, to := range ms {
			old := enable(t, s.Device, from, 1)[0]
			ended := make(chan error, 1)
			go func() {
				_, err := old.Wait(context.Background())
				ended <- err
			}()
			q := enable(t, s.Device, to, 1)[0]
			wantErr(t, "Wait of a vector that was replaced", <-ended, bus.ErrClosed)
			if s.Raise != nil {
				s.Raise()
				wait(t, q)
				s.Lower()
				q.Unmask()
			}
		}
	}
}

func irqDisable(t *testing.T, s Subject) {
	for _, m := range modes(t, s.Device) {
		q := enable(t, s.Device, m, 1)[0]
		ended := make(chan error, 1)
		go func() {
			_, err := q.Wait(context.Background())
			ended <- err
		}()
		if err := s.Device.DisableIRQs(); err != nil {
			t.Errorf("DisableIRQs = %v", err)
		}
		wantErr(t, "Wait after DisableIRQs", <-ended, bus.ErrClosed)
		q.Signal()
		q.Unmask()
		if s.Raise != nil {
			s.Raise()
			s.Lower()
		}
		if err := q.Close(); err != nil {
			t.Errorf("Close of a vector that is closed = %v, want nil", err)
		}
	}
}

// A line that was not lowered fires again after Unmask, and not before.
func intxLevel(t *testing.T, s Subject) {
	if s.Raise == nil || s.Device.IRQVectors(bus.INTx) == 0 {
		t.Skip("the subject cannot raise INTx by itself")
	}
	q := enable(t, s.Device, bus.INTx, 1)[0]
	s.Raise()
	wait(t, q)
	quiet(t, q, "the line is masked since it fired")
	q.Unmask()
	wait(t, q)
	config := s.Device.Config() // a platform device has no Status
	if !isPlatform(s.Device) && !pci.INTxPending(config) {
		t.Error("the Interrupt Status bit is clear while the line is high")
	}
	s.Lower()
	q.Unmask()
	quiet(t, q, "the line was lowered")
	if !isPlatform(s.Device) && pci.INTxPending(config) {
		t.Error("the Interrupt Status bit is set after the line was lowered")
	}
	// Raised before it was enabled: it is high when it is.
	if err := s.Device.DisableIRQs(); err != nil {
		t.Fatal(err)
	}
	s.Raise()
	q = enable(t, s.Device, bus.INTx, 1)[0]
	wait(t, q)
	s.Lower()
	q.Unmask()
	quiet(t, q, "the line was lowered")
}

// errIs says whether err wraps any of these.
func errIs(err error, any ...error) bool {
	for _, a := range any {
		if errors.Is(err, a) {
			return true
		}
	}
	return false
}
