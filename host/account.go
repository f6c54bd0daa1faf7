package host

import "github.com/ring3dev/ring3/bus/dma"

// watchable is what takes a device's frames: a sink, a forwarder, a TAP.
type watchable interface {
	Watch(f func(frames []*dma.Buf))
}

// account has what takes the frames of each network device, lo among them, show them to pktgen's receive side.
func (s *System) account() error {
	for _, b := range s.bound {
		if b.net == nil {
			continue
		}
		var w watchable = b.sink
		switch {
		case b.forward != nil:
			w = b.forward
		case b.tap != nil:
			w = b.tap
		}
		if err := s.accountFor(b.spec.Name, w); err != nil {
			return err
		}
	}
	if s.lo != nil {
		return s.accountFor(loopbackName, s.lo.Sink())
	}
	return nil
}

func (s *System) accountFor(name string, w watchable) error {
	rx, err := s.pktgen.AddRx(name)
	if err == nil {
		s.receivers = append(s.receivers, rx)
		w.Watch(rx.Take)
	}
	return err
}
