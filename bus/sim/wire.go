package sim

import "fmt"

// wires are what is between network devices. Guarded by Machine.mu.
//
// A frame is delivered before send returns. Only one that is sent while another is being
// delivered (a pause frame that says: no more) waits until that is done, so that no chip is
// called inside itself; it is delivered before the access that began it all returns.
type wires struct {
	busy    bool
	waiting []waiting
}

// waiting is a frame that was sent during a delivery. Its buffer is used again.
type waiting struct {
	to    *device
	frame []byte
}

// maxWaiting ends an exchange in which each frame brings forth another.
const maxWaiting = 256

// linkChip is a netChip that can tell whether it has a link.
type linkChip interface {
	netChip
	// setLink tells that the cable was plugged in or pulled out.
	setLink(up bool)
}

// send is slot's.
func (d *device) send(frame []byte) {
	if d.cut || d.gone {
		return
	}
	d.capture(frame)
	if d.far == nil {
		return
	}
	w := &d.m.wires
	if w.busy {
		w.add(d.far, frame)
		return
	}
	w.busy = true
	d.far.deliver(frame)
	for i := 0; i < len(w.waiting); i++ {
		x := w.waiting[i] // delivering may add to the list, and move it
		x.to.deliver(x.frame)
	}
	w.waiting = w.waiting[:0]
	w.busy = false
}

func (w *wires) add(to *device, frame []byte) {
	n := len(w.waiting)
	switch {
	case n == maxWaiting:
		return // lost, as on a wire that is full
	case n == cap(w.waiting):
		w.waiting = append(w.waiting, waiting{})
	default:
		w.waiting = w.waiting[:n+1]
	}
	x := &w.waiting[n]
	x.to, x.frame = to, append(x.frame[:0], frame...)
}

func (d *device) deliver(frame []byte) {
	if !d.cut && !d.gone {
		d.capture(frame)
		d.net.receive(frame)
	}
}

// capture shows a frame on the device's side of its wire to whoever asked for it.
func (d *device) capture(frame []byte) {
	if d.spec.Capture != nil {
		d.spec.Capture(frame)
	}
}

// SetLink pulls the cable out of a network device (up false) or plugs it in again. Without one
// no frame leaves or arrives, and the device reports the loss as its datasheet says. What is at
// the other end of the cable loses its link too.
func (m *Machine) SetLink(name string, up bool) error {
	d, err := m.named(name)
	if err != nil {
		return err
	}
	if d.net == nil {
		return fmt.Errorf("sim: %s: model %s has no link", d.spec.Name, d.spec.Model)
	}
	m.lock()
	defer m.unlock()
	d.setLink(up)
	return nil
}

// setLink tells both ends of a cable. Called with Machine.mu held.
func (d *device) setLink(up bool) {
	for _, x := range []*device{d, d.far} {
		if x == nil || x.gone || x.cut == !up {
			continue
		}
		x.cut = !up
		if c, ok := x.net.(linkChip); ok {
			c.setLink(up)
		}
	}
}
