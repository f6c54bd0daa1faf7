package host

import (
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/netdev"
	"github.com/ring3dev/ring3/netdev/tap"
	"github.com/ring3dev/ring3/pktgen"
)

// TapSpec makes a network device a kernel interface, as the user writes it:
// NAME[=IFNAME][,offload=off][,gro=off][,up=on][,pktgen_drop=on][,share=N]. Without IFNAME the interface is called as the device.
type TapSpec struct {
	Device    string
	Interface string
	NoOffload bool // offload=off: the kernel computes checksums and segments by itself
	NoGRO     bool // gro=off: received segments are not joined
	Up        bool // up=on: the interface is brought up
	Share     int  // share=N: what it may send beside pktgen, which has 1; 0: 1
	DropGen   bool // pktgen_drop=on: pktgen's frames are counted (NAME.rx), and the kernel does not get them
}

// String is what ParseTap reads.
func (t TapSpec) String() string {
	s := t.Device + "=" + t.Interface
	for _, o := range []struct {
		on   bool
		text string
	}{{t.NoOffload, ",offload=off"}, {t.NoGRO, ",gro=off"}, {t.Up, ",up=on"}, {t.DropGen, ",pktgen_drop=on"}} {
		if o.on {
			s += o.text
		}
	}
	if t.Share > 1 {
		s += ",share=" + strconv.Itoa(t.Share)
	}
	return s
}

// ParseTap reads a TAP specification. Errors are usage errors.
func ParseTap(s string) (TapSpec, error) {
	var t TapSpec
	parts := strings.Split(s, ",")
	var ok bool
	if t.Device, t.Interface, ok = strings.Cut(parts[0], "="); !ok { // under its own name
		t.Interface = t.Device
	}
	if t.Device == "" || t.Interface == "" {
		return t, usagef("--tap %q: want NAME=IFNAME, such as eth0=rt0, or NAME alone", s)
	}
	if err := checkName(t.Interface); err != nil {
		return t, usagef("--tap %q: %v", s, err)
	}
	for _, o := range parts[1:] {
		k, v, _ := strings.Cut(o, "=")
		if k == "share" {
			n, err := strconv.Atoi(v)
			if err != nil || n < 1 || n > netdev.MaxShare {
				return t, usagef("--tap %q: option %q: want share=1 to share=%d", s, o, netdev.MaxShare)
			}
			t.Share = n
			continue
		}
		if v != "on" && v != "off" {
			return t, usagef("--tap %q: option %q: want offload, gro, up or pktgen_drop, =on or =off, or share=N", s, o)
		}
		switch on := v == "on"; k {
		case "offload":
			t.NoOffload = !on
		case "gro":
			t.NoGRO = !on
		case "up":
			t.Up = on
		case "pktgen_drop":
			t.DropGen = on
		default:
			return t, usagef("--tap %q: unknown option %q: there is offload, gro, up, pktgen_drop and share", s, k)
		}
	}
	return t, nil
}

// addTaps adds what --tap says.
func (p *Plan) addTaps(taps []string) error {
	for _, s := range taps {
		t, err := ParseTap(s)
		if err != nil {
			return err
		}
		if p.find(t.Device) == nil {
			return usagef("--tap %q: no device is named %s", s, t.Device)
		}
		for _, other := range p.Taps {
			switch {
			case other.Device == t.Device:
				return usagef("--tap %q: %s is %s already", s, t.Device, other.Interface)
			case other.Interface == t.Interface:
				return usagef("--tap %q: %s is %s already", s, other.Device, t.Interface)
			}
		}
		p.Taps = append(p.Taps, t)
	}
	return nil
}

// tap is how a device is tapped; nil if it is not.
func (p *Plan) tap(device string) *TapSpec {
	for i := range p.Taps {
		if p.Taps[i].Device == device {
			return &p.Taps[i]
		}
	}
	return nil
}

// attach makes a device a kernel interface.
func (s *System) attach(b *boundDevice, t TapSpec) (err error) {
	if b.net == nil && b.rio != nil {
		return nil // later
	}
	if b.net == nil {
		return usagef("--tap %s: %s is no network device", t, b.spec.Name)
	}
	c := tap.Config{Name: t.Interface, NoOffload: t.NoOffload, NoGRO: t.NoGRO, Up: t.Up, Log: s.log, RT: s.rt}
	if s.outside != nil {
		c.Lender = s.outside.TAP(b.spec.Name)
	}
	if t.DropGen {
		c.Drop = pktgen.Generated
	}
	share, err := netdev.NewShare(b.net)
	if err != nil {
		return fmt.Errorf("%s: %w", b.spec.Name, err)
	}
	c.Tx = share.Client("tap", max(t.Share, 1)).Tx
	if b.tap, err = tap.Attach(b.net, c); err != nil {
		return fmt.Errorf("%s: %w", b.spec.Name, err)
	}
	b.share, b.gen = share, share.Client("pktgen", 1)
	s.log.Info(fmt.Sprintf("%s: kernel interface %s", b.spec.Name, b.tap.Name()))
	return nil
}

// busy is why the queues of a device cannot be had; nil where they can.
func (b *boundDevice) busy() error {
	if b.forward != nil {
		return fmt.Errorf("%s is forwarded to and from %s, which takes its queues: %w", b.spec.Name, b.forward.To().Info().Name, unix.EBUSY)
	}
	return nil
}

// sender is the network device as pktgen has it: what it sends shares the queues with a TAP.
func (b *boundDevice) sender() netdev.Device {
	if b.gen != nil {
		return b.gen.Device()
	}
	return b.net
}

// receive starts what takes a device's frames: its TAP, a forwarder, or a sink.
func (s *System) receive(b *boundDevice) (err error) {
	if to := s.plan.forwardOf(b.spec.Name); to != "" {
		return s.forward(b, s.boundOf(to))
	}
	if t := s.plan.tap(b.spec.Name); t != nil {
		return s.attach(b, *t)
	}
	if b.net != nil {
		b.sink, err = netdev.NewSinkOn(b.net, s.rt)
	}
	return err
}
