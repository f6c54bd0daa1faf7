package pktgen

import (
	"bytes"
	"fmt"
)

// pace is how late bursts were that had to wait for their time, in ns: the jitter of a rate. It is kept from when each
// was due, which does not depend on those before it.
type pace struct {
	late span
	hist histogram
}

// sentAt counts a burst that is sent now. Under a strict profile there is no such thing.
func (d *device) sentAt(now, due int64) {
	if p := d.pace; p != nil {
		ns := min(uint64(max(now-due, 0)), maxLatency-1)
		p.late.add(ns)
		p.hist.add(ns)
	}
}

func (p *pace) show(w *bytes.Buffer) {
	if p == nil || p.late.n == 0 {
		return
	}
	fmt.Fprintf(w, "     late: %d bursts", p.late.n)
	p.late.show(w)
	w.WriteByte('\n')
	p.hist.show(w, &p.late)
}
