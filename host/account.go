package host

import (
	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/pktgen"
)

// watchable is what takes a device's frames: a sink, a forwarder, a TAP.
type watchable interface {
	Watch(f func(frames []*dma.Buf))
}

// receiver accounts for the frames of a network device.
type receiver struct {
	name string
	*pktgen.Rx
}

// account has what takes the frames of each network device, lo among them, show them to pktgen's receive side.
func (s *System) account() error {
	for _, b := range s.bound() {
		if err := s.accountFor(b); err != nil {
			return err
		}
	}
	if s.lo != nil {
		return s.accountTo(loopbackName, s.lo.Sink())
	}
	return nil
}

// accountFor does that for one device, which may be no network device.
func (s *System) accountFor(b *boundDevice) error {
	if b.net == nil {
		return nil
	}
	var w watchable = b.sink
	switch {
	case b.forward != nil:
		w = b.forward
	case b.tap != nil:
		w = b.tap
	}
	return s.accountTo(b.spec.Name, w)
}

func (s *System) accountTo(name string, w watchable) error {
	rx, err := s.pktgen.AddRx(name)
	if err == nil {
		s.figuring.Lock()
		s.receivers = append(s.receivers, receiver{name, rx})
		s.figuring.Unlock()
		w.Watch(rx.Take)
	}
	return err
}
