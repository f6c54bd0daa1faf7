package host

import (
	"fmt"
	"runtime"

	"github.com/ring3dev/ring3/bus/trace"
	"github.com/ring3dev/ring3/internal/crash"
)

// Bounds of a report: accesses of a device, and bytes of a stack.
const (
	reportAccesses = 64
	reportStack    = 64 << 10
)

// lastWords tells what the devices did last, while the process is dying of a panic.
func (w *workerSide) lastWords() {
	r := w.report("panic", nil)
	if why := crash.Why(); why != nil {
		r.Cause, r.Stack = fmt.Sprintf("panic: %v", why.Value), cutStack(why.Stack)
	}
	w.tell(lifeReport, r)
	w.logs.flush()
}

func cutStack(b []byte) string { return string(b[:min(len(b), reportStack)]) }

// allStacks are those of all goroutines, as far as there is room.
func allStacks() []byte {
	b := make([]byte, reportStack)
	return b[:runtime.Stack(b, true)]
}

// report is what is known of the devices without asking them.
func (w *workerSide) report(cause string, stack []byte) workerReport {
	r := workerReport{Cause: cause, Stack: cutStack(stack)}
	if !w.mu.TryLock() { // whoever panics may have it
		return r
	}
	sys := w.sys
	w.mu.Unlock()
	if sys != nil {
		r.Devices = sys.deviceReports()
	}
	return r
}

func (s *System) deviceReports() (out []deviceReport) {
	for _, b := range s.bound() {
		d := deviceReport{Name: b.spec.Name, Driver: b.driverName(), Backend: b.dev.Backend(), Address: b.dev.Address()}
		if err := b.dev.Err(); err != nil {
			d.Error = err.Error()
		}
		if b.trace != nil {
			d.Registers = map[string]string{}
			for _, e := range trace.Snapshot([]*trace.Device{b.trace}, trace.DefaultRecords) {
				d.Accesses = append(d.Accesses, e.String())
				switch e.Kind {
				case trace.Read, trace.Write, trace.Doorbell:
					if e.Name != "" {
						d.Registers[e.Name] = registerText(&e)
					}
				}
			}
			d.Accesses = d.Accesses[max(0, len(d.Accesses)-reportAccesses):]
		}
		out = append(out, d)
	}
	return out
}

// registerText is a value with what it means.
func registerText(e *trace.Entry) string {
	s := fmt.Sprintf("%#x", e.Value)
	if e.Text != "" {
		s += " " + e.Text
	}
	return s
}
