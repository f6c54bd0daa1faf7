package pciehp

import (
	"testing"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/drivers/portbus"
	"github.com/ring3dev/ring3/drivers/portbus/porttest"
)

// FuzzFiles writes anything to a slot's files.
func FuzzFiles(f *testing.F) {
	for _, s := range []string{"0", "1\n", "2", "x", "-1", "256", "12345678901234567890123", "\x00", "1 1"} {
		f.Add(s, s)
	}
	b, err := portbus.New(Driver(Options{}))
	if err != nil {
		f.Fatal(err)
	}
	r := rig(f, porttest.Options{Bus: b}, port("rp0"))
	s := slotOf(f, r, "rp0")
	f.Fuzz(func(t *testing.T, power, attention string) {
		for path, text := range map[string]string{"1/power": power, "1/attention": attention} {
			if text != "" {
				_ = write(r, b, path, text)
			}
		}
		is(t, r, s, off) // nothing is in it
	})
}

// noisy is a port whose Slot Status says anything, now and then.
type noisy struct {
	bus.Device
	noise *noise
}

type noise struct {
	at    bus.Off
	words []byte // the next reads, two bytes each
}

func (d *noisy) Config() bus.Config { return &noisyConfig{d.Device.Config(), d.noise} }
func (d *noisy) Clock() bus.Clock   { return bus.ClockOf(d.Device) }

type noisyConfig struct {
	bus.Config
	n *noise
}

var noiseMu = make(chan struct{}, 1) // held while noise is read or written

func (c *noisyConfig) Read16(o bus.Off) uint16 {
	v := c.Config.Read16(o)
	noiseMu <- struct{}{}
	defer func() { <-noiseMu }()
	if o == c.n.at && len(c.n.words) >= 2 {
		v = uint16(c.n.words[0]) | uint16(c.n.words[1])<<8
		c.n.words = c.n.words[2:]
	}
	return v
}

// FuzzStatus has Slot Status say anything for a while. After the noise a card comes up as ever.
func FuzzStatus(f *testing.F) {
	f.Add([]byte{0xff, 0xff, 0x1f, 0x01, 0x00, 0x00})
	f.Add([]byte{0x01, 0x00, 0x48, 0x01, 0x08, 0x00, 0x00, 0x01, 0x40, 0x00, 0x02, 0x00})
	f.Add([]byte{0x49, 0x00, 0x49, 0x00, 0x49, 0x00, 0x49, 0x00, 0x49, 0x00, 0x49, 0x00, 0x49, 0x00, 0x49, 0x00, 0x49, 0x00, 0x49, 0x00, 0x49, 0x00, 0x49, 0x00, 0x49, 0x00, 0x49, 0x00, 0x49, 0x00, 0x49, 0x00, 0x49, 0x00})
	b, err := portbus.New(Driver(Options{}))
	if err != nil {
		f.Fatal(err)
	}
	n := &noise{}
	r := rig(f, porttest.Options{Bus: b, Wrap: func(name string, dev bus.Device) bus.Device {
		if name != "rp0" {
			return dev
		}
		e, _ := pci.FindExpress(dev.Config())
		n.at = e.At + pci.ExpSltSta
		return &noisy{dev, n}
	}}, port("rp0"))
	s := slotOf(f, r, "rp0")
	f.Fuzz(func(t *testing.T, words []byte) {
		r.ForgetRecords()
		if len(words) > 100 {
			return
		}
		noiseMu <- struct{}{}
		n.words = words
		<-noiseMu
		for quiet := false; !quiet; { // the noise is heard to its end
			s.collect()
			noiseMu <- struct{}{}
			quiet = len(n.words) < 2
			n.words = n.words[:len(n.words):len(n.words)]
			<-noiseMu
		}
		r.Await(t, "the slot being at rest", func() bool { return s.idle() && (s.is(off) || s.is(on)) })
		if s.is(on) { // it was told of a card, and found none
			t.Fatalf("the slot is on, and nothing is in it")
		}
		if err := r.Sim().Plug(t.Context(), card("c0", "rp0")); err != nil {
			t.Fatal(err)
		}
		is(t, r, s, on)
		if err := s.Switch(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		is(t, r, s, off)
	})
}
