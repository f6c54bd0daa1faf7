package sim

import (
	"fmt"
	"slices"
	"testing"
)

// talker is a chip that says what it hears, and answers.
type talker struct {
	chip
	s      slot
	name   string
	log    *[]string
	answer int // how many frames it answers
	inside bool
	up     []bool
}

func (c *talker) receive(f []byte) bool {
	if c.inside {
		panic("a chip is called inside itself")
	}
	c.inside = true
	defer func() { c.inside = false }()
	*c.log = append(*c.log, fmt.Sprintf("%s hears %s", c.name, f))
	if c.answer > 0 {
		c.answer--
		b := []byte(fmt.Sprintf("%s's %d", c.name, c.answer))
		c.s.send(b)
		clear(b) // it is the chip's again
	}
	return true
}

func (c *talker) setLink(up bool) { c.up = append(c.up, up) }

// talk wires two of them.
func talk(t *testing.T) (m *Machine, a, b *device, log *[]string) {
	m = started(t, Config{
		Devices: []DeviceSpec{{Name: "a", Model: "e1000e"}, {Name: "b", Model: "e1000e"}},
		Wires:   [][2]string{{"a", "b"}}, Clock: Stepped,
	})
	log = new([]string)
	for _, d := range m.devices {
		c := &talker{chip: d.chip, s: d, name: d.spec.Name, log: log}
		d.net = c
	}
	return m, m.devices[0], m.devices[1], log
}

// A frame is there when send returns; an answer comes after the frame that it answers, and no chip
// is called inside itself.
func TestWire(t *testing.T) {
	_, a, b, log := talk(t)
	a.net.(*talker).answer, b.net.(*talker).answer = 2, 2
	under(a, func() { a.send([]byte("hello")) })
	want := []string{"b hears hello", "a hears b's 1", "b hears a's 1", "a hears b's 0", "b hears a's 0"}
	if !slices.Equal(*log, want) {
		t.Errorf("heard %q, want %q", *log, want)
	}
	// An exchange that does not end by itself is ended, and the next one works.
	*log = nil
	a.net.(*talker).answer, b.net.(*talker).answer = 1<<30, 1<<30
	under(a, func() { a.send([]byte("hello")) })
	if n := len(*log); n != 1+maxWaiting {
		t.Errorf("%d frames heard, want %d", n, 1+maxWaiting)
	}
	b.net = quiet{b.net}
	frame := make([]byte, 60)
	if n := testing.AllocsPerRun(10, func() { under(a, func() { a.send(frame) }) }); n != 0 {
		t.Errorf("send allocates %v times, want 0", n)
	}
}

// quiet is a chip that says nothing.
type quiet struct{ netChip }

func (quiet) receive([]byte) bool { return true }

func TestCable(t *testing.T) {
	m, a, b, log := talk(t)
	both := func(up bool) {
		t.Helper()
		if err := m.SetLink("b", up); err != nil {
			t.Fatal(err)
		}
	}
	both(true) // it is in already
	both(false)
	both(false)
	under(a, func() { a.send([]byte("lost")) })
	both(true)
	under(a, func() { a.send([]byte("heard")) })
	if err := m.Unplug("b"); err != nil {
		t.Fatal(err)
	}
	under(a, func() { a.send([]byte("lost")) })
	if want := []string{"b hears heard"}; !slices.Equal(*log, want) {
		t.Errorf("heard %q, want %q", *log, want)
	}
	if got, want := a.net.(*talker).up, []bool{false, true, false}; !slices.Equal(got, want) {
		t.Errorf("a's link went %v, want %v", got, want)
	}
	if got, want := b.net.(*talker).up, []bool{false, true}; !slices.Equal(got, want) {
		t.Errorf("b's link went %v, want %v", got, want)
	}
}
