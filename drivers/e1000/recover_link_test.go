package e1000_test

import (
	"sync"
	"testing"

	"github.com/ring3dev/ring3/bus"
)

// TestRecoveryLink: whoever looks at the link while the device recovers finds it up, or the device stopped, and never a link that is down,
// which would end what it sends.
func TestRecoveryLink(t *testing.T) {
	m := recoveryMachine(t, "e1000e")
	n := simBind(t, m, "eth0", nil).(recoverable)
	var looks sync.WaitGroup
	done := make(chan struct{})
	looks.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			if l := n.Link(); !l.Up && !l.Stopped {
				t.Errorf("Link of a device that recovers = %+v, want it up or stopped", l)
				return
			}
		}
	})
	for range 2000 {
		restore := keepState(t, n.Info().Bus)
		n.ErrorDetected(true)
		if err := m.Reset(t.Context(), "eth0"); err != nil {
			t.Fatal(err)
		}
		restore()
		if v := n.SlotReset(t.Context()); v != bus.Recovered {
			t.Fatalf("SlotReset = %s", v)
		}
		n.ErrorResume()
	}
	close(done)
	looks.Wait()
}
