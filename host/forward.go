package host

import (
	"fmt"

	"github.com/ring3dev/ring3/netdev"
)

// addForwards adds what --forward says: pairs of devices, A-B.
func (p *Plan) addForwards(forwards []string) error {
	for _, s := range forwards {
		a, b, err := parsePair("--forward", s, "", p.Devices)
		if err != nil {
			return err
		}
		for _, n := range []string{a, b} {
			switch {
			case p.forwardOf(n) != "":
				return usagef("--forward %q: %s is forwarded to %s already", s, n, p.forwardOf(n))
			case p.tap(n) != nil:
				return usagef("--forward %q: %s is the kernel interface %s", s, n, p.tap(n).Interface)
			case p.nodeOf(n) != "":
				return usagef("--forward %q: %s is a node of a fabric, where a frame's destination is a device ID: have the kernel route (--tap %s)", s, n, n)
			}
		}
		p.Forwards = append(p.Forwards, [2]string{a, b})
	}
	return nil
}

// forwardOf is where a device's frames go; "" if it is not forwarded.
func (p *Plan) forwardOf(device string) string {
	for _, f := range p.Forwards {
		switch device {
		case f[0]:
			return f[1]
		case f[1]:
			return f[0]
		}
	}
	return ""
}

// forward sends what a device receives out of another one.
func (s *System) forward(b, to *boundDevice) (err error) {
	for _, d := range []*boundDevice{b, to} {
		if d.net == nil {
			return usagef("--forward %s-%s: %s is no network device", b.spec.Name, to.spec.Name, d.spec.Name)
		}
	}
	if b.forward, err = netdev.NewForwarder(b.net, to.net, s.rt); err != nil {
		return fmt.Errorf("%s: %w", b.spec.Name, err)
	}
	s.log.Info(fmt.Sprintf("%s: what it receives is sent by %s", b.spec.Name, to.spec.Name))
	return nil
}
