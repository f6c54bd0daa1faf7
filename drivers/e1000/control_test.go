package e1000_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/drivers/e1000"
	"github.com/ring3dev/ring3/netdev"
)

// control is two wired devices whose settings a test changes, on models in this process or in
// QEMU.
type control struct {
	a, b netdev.Device
	dev  bus.Device // b's
	link func(up bool) error
	log  *lines // b's messages
}

// lines collects messages.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// onEach runs a test on every chip, on both kinds of models.
func onEach(t *testing.T, options map[string]string, f func(t *testing.T, c *control)) {
	for _, model := range []string{"e1000e", "e1000", "e1000-82545em"} {
		t.Run("sim-"+model, func(t *testing.T) {
			m := simMachine(t, model)
			f(t, newControl(t, m.Device, options, func(up bool) error { return m.SetLink("eth1", up) }))
		})
		if model == "e1000-82545em" && testing.Short() {
			continue
		}
		t.Run("qemu-"+model, func(t *testing.T) {
			m := machine(t, model, 2)
			f(t, newControl(t, m.Device, options, func(up bool) error {
				_, err := m.Execute("set_link", map[string]any{"name": "net1", "up": up})
				return err
			}))
		})
	}
}

func newControl(t *testing.T, device func(string) (bus.Device, error), options map[string]string, link func(bool) error) *control {
	t.Helper()
	c := &control{link: link, log: &lines{}}
	for i, d := range []*netdev.Device{&c.a, &c.b} {
		name := fmt.Sprintf("eth%d", i)
		dev, err := device(name)
		if err != nil {
			t.Fatal(err)
		}
		c.dev = dev
		o := map[string]string{"ring": "64"}
		for k, v := range options {
			o[k] = v
		}
		env := pci.Env{Name: name, Options: o}
		if i == 1 {
			env.Log = slog.New(slog.NewTextHandler(c.log, nil))
		}
		r := pci.Bind(context.Background(), dev, env, []*pci.Driver{e1000.Driver})
		if r.Outcome != pci.Bound {
			t.Fatalf("Bind of %s = %s, %v", name, r.Outcome, r.Err)
		}
		t.Cleanup(func() {
			if err := r.Instance.Close(); err != nil {
				t.Errorf("Close of %s = %v", name, err)
			}
		})
		*d = r.Instance.(netdev.Device)
	}
	if err := netdev.Wire(c.a, c.b); err != nil {
		t.Fatal(err)
	}
	return c
}

// reg reads one of b's registers.
func (c *control) reg(t *testing.T, off bus.Off) uint32 {
	t.Helper()
	r, err := c.dev.Region(0)
	if err != nil {
		t.Fatal(err)
	}
	return r.Read32(off)
}

// eventually waits until ok.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 20 s", what)
		}
	}
}

// arrive sends a frame from a to each address, and one to b, and returns which of the addresses b
// received frames to.
func (c *control) arrive(t *testing.T, to []net.HardwareAddr) []string {
	t.Helper()
	pool, err := c.a.Tx(0).NewPool(64)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	for _, addr := range append(slices.Clone(to), c.b.MAC()) {
		b := pool.Get()
		b.Data = b.Mem[:60]
		clear(b.Data)
		copy(b.Data, addr)
		copy(b.Data[6:], c.a.MAC())
		b.Data[12], b.Data[13] = 0x88, 0xb5
		eventually(t, "sending", func() bool { return c.a.Tx(0).Burst([]*dma.Buf{b}) == 1 })
	}
	var got []string
	var bufs [64]*dma.Buf
	eventually(t, "receiving", func() (last bool) {
		for _, b := range bufs[:c.b.Rx(0).Burst(bufs[:])] {
			addr := net.HardwareAddr(b.Data[:6]).String()
			if addr == c.b.MAC().String() {
				last = true
			} else {
				got = append(got, addr)
			}
			b.Free()
		}
		return last
	})
	c.b.Rx(0).Burst(nil) // nothing is held any more
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := c.a.Tx(0).Drain(ctx); err != nil {
		t.Fatal(err)
	}
	return got
}

func mac(t *testing.T, s string) net.HardwareAddr {
	t.Helper()
	a, err := net.ParseMAC(s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// TestFilters: what passes in each mode.
func TestFilters(t *testing.T) {
	onEach(t, nil, func(t *testing.T, c *control) {
		other, bcast := mac(t, "02:00:00:00:00:99"), mac(t, "ff:ff:ff:ff:ff:ff")
		var groups []net.HardwareAddr
		for i := range 40 {
			// Far apart in the multicast table.
			groups = append(groups, mac(t, fmt.Sprintf("01:00:5e:00:%02x:%02x", i*0x10&0xf0, i)))
		}
		all := append([]net.HardwareAddr{other, bcast}, groups...)
		strs := func(addrs ...net.HardwareAddr) (out []string) {
			for _, a := range addrs {
				out = append(out, a.String())
			}
			return out
		}
		f := c.b.(netdev.RxModer)
		for _, x := range []struct {
			name string
			mode netdev.RxMode
			want []string
		}{
			{"default", netdev.RxMode{}, strs(bcast)},
			{"one group", netdev.RxMode{Multicast: groups[3:4]}, strs(bcast, groups[3])},
			{"30 groups", netdev.RxMode{Multicast: groups[:30]}, strs(append([]net.HardwareAddr{bcast}, groups[:30]...)...)},
			{"others", netdev.RxMode{Multicast: groups[20:]}, strs(append([]net.HardwareAddr{bcast}, groups[20:]...)...)},
			{"all groups", netdev.RxMode{AllMulti: true}, strs(append([]net.HardwareAddr{bcast}, groups...)...)},
			{"promiscuous", netdev.RxMode{Promisc: true}, strs(all...)},
			{"two groups", netdev.RxMode{Multicast: groups[:2]}, strs(bcast, groups[0], groups[1])},
			{"default again", netdev.RxMode{}, strs(bcast)},
		} {
			if err := f.SetRxMode(t.Context(), x.mode); err != nil {
				t.Fatalf("%s: %v", x.name, err)
			}
			if got := f.RxMode(); got.Promisc != x.mode.Promisc || got.AllMulti != x.mode.AllMulti || len(got.Multicast) != len(x.mode.Multicast) {
				t.Errorf("%s: RxMode = %+v, want %+v", x.name, got, x.mode)
			}
			if got := c.arrive(t, all); !slices.Equal(got, x.want) {
				t.Errorf("%s: frames to %v arrived, want %v", x.name, got, x.want)
			}
		}
	})
}

// TestLinkChange pulls the cable and plugs it in again.
func TestLinkChange(t *testing.T) {
	onEach(t, nil, func(t *testing.T, c *control) {
		const up = "NIC Link is Up 1000 Mbps Full Duplex, Flow Control: None"
		if !c.b.Link().Up || strings.Count(c.log.String(), up) != 1 {
			t.Errorf("at first: link %+v, messages %s", c.b.Link(), c.log)
		}
		if err := c.link(false); err != nil {
			t.Fatal(err)
		}
		eventually(t, "link down", func() bool { return !c.b.Link().Up && strings.Contains(c.log.String(), "NIC Link is Down") })
		if err := c.link(true); err != nil {
			t.Fatal(err)
		}
		eventually(t, "link up", func() bool { return strings.Count(c.log.String(), up) == 2 })
		if l := c.b.Link(); !l.Up || l.Speed != 1000 || !l.FullDuplex {
			t.Errorf("Link = %+v, want 1000 Mb/s, full duplex", l)
		}
		eventually(t, "far link up", func() bool { return c.a.Link().Up })
		c.arrive(t, nil)
	})
}

// TestPause: flow control is what was asked for, also after the link was away.
func TestPause(t *testing.T) {
	const rfce, tfce = 1 << 27, 1 << 28
	onEach(t, map[string]string{"flow": "full"}, func(t *testing.T, c *control) {
		p := c.b.(netdev.Pauser)
		for _, x := range []struct {
			pause netdev.Pause
			ctrl  uint32
			word  string
		}{
			{netdev.Pause{Rx: true, Tx: true}, rfce | tfce, "RX/TX"}, {netdev.Pause{Rx: true}, rfce, "RX"}, {netdev.Pause{Tx: true}, tfce, "TX"}, {netdev.Pause{}, 0, "None"},
		} {
			if x.word != "RX/TX" { // which the option has set
				if err := p.SetPause(t.Context(), x.pause); err != nil {
					t.Fatal(err)
				}
			}
			if got := p.Pause(); got != x.pause {
				t.Errorf("Pause = %+v, want %+v", got, x.pause)
			}
			if got := c.reg(t, 0) & (rfce | tfce); got != x.ctrl {
				t.Errorf("%s: CTRL has %#x, want %#x", x.word, got, x.ctrl)
			}
		}
		if err := p.SetPause(t.Context(), netdev.Pause{Rx: true}); err != nil {
			t.Fatal(err)
		}
		if err := c.link(false); err != nil {
			t.Fatal(err)
		}
		eventually(t, "link down", func() bool { return !c.b.Link().Up })
		if err := c.link(true); err != nil {
			t.Fatal(err)
		}
		eventually(t, "message", func() bool { return strings.Contains(c.log.String(), "Full Duplex, Flow Control: RX\"") })
		if got := c.reg(t, 0) & (rfce | tfce); got != rfce {
			t.Errorf("after a link change CTRL has %#x, want %#x", got, rfce)
		}
	})
}

// TestPauseAgreed: what is agreed needs a partner who can; the link is away for as long as that takes.
func TestPauseAgreed(t *testing.T) {
	onEach(t, nil, func(t *testing.T, c *control) {
		p := c.b.(netdev.Pauser)
		want := netdev.Pause{Autoneg: true, Tx: true}
		if err := p.SetPause(t.Context(), want); err != nil {
			t.Fatal(err)
		}
		eventually(t, "link up again", func() bool { return c.b.Link().Up && strings.Count(c.log.String(), "Link is Up") == 2 })
		if got := p.Pause(); got != want {
			t.Errorf("Pause = %+v, want %+v", got, want)
		}
		// Of QEMU's models none has a partner that can pause.
		if got := c.log.String(); strings.Contains(t.Name(), "/sim-") != strings.Contains(got, "Flow Control: TX\"") {
			t.Errorf("messages: %s", got)
		}
		c.arrive(t, nil)
	})
}

// TestEEPROMContent: the whole content, with the station address and a good checksum.
func TestEEPROMContent(t *testing.T) {
	onEach(t, nil, func(t *testing.T, c *control) {
		b, err := c.b.(interface {
			EEPROM(context.Context) ([]byte, error)
		}).EEPROM(t.Context())
		if err != nil || len(b) < 128 {
			t.Fatalf("EEPROM = %d bytes, %v, want 128 or more", len(b), err)
		}
		var sum uint16
		for i := range 64 {
			sum += binary.LittleEndian.Uint16(b[2*i:])
		}
		if sum != 0xbaba || !bytes.Equal(b[:6], c.b.MAC()) {
			t.Errorf("EEPROM of %s begins with % x, the checksum is %#x, want 0xbaba", c.b.MAC(), b[:6], sum)
		}
	})
}

// send puts a frame to b into a's ring.
func (c *control) send(t *testing.T, pool *dma.Pool) {
	t.Helper()
	var b *dma.Buf
	eventually(t, "a buffer", func() bool { c.a.Tx(0).Reap(); b = pool.Get(); return b != nil })
	b.Data = b.Mem[:60]
	clear(b.Data)
	copy(b.Data, c.b.MAC())
	copy(b.Data[6:], c.a.MAC())
	b.Data[12], b.Data[13] = 0x88, 0xb5
	eventually(t, "sending", func() bool { return c.a.Tx(0).Burst([]*dma.Buf{b}) == 1 })
}

// interrupts is how often b's first vector was served.
func (c *control) interrupts() (sum uint64) {
	for _, k := range c.b.(pci.IRQUser).IRQHandlers()[0].Counts() {
		sum += k
	}
	return sum
}

// TestDeferred: with deferred interrupts a steady trickle of frames is received by sleeping, with next to no
// interrupts; without, each frame costs one.
func TestDeferred(t *testing.T) {
	onEach(t, nil, func(t *testing.T, c *control) {
		sink, err := netdev.NewSink(c.b)
		if err != nil {
			t.Fatal(err)
		}
		pool, err := c.a.Tx(0).NewPool(16)
		if err != nil {
			t.Fatal(err)
		}
		defer pool.Close()
		u := c.b.(netdev.NAPIUser)
		c.send(t, pool)
		eventually(t, "the first frame", func() bool { return sink.Frames() == 1 })
		trickle := func() uint64 {
			before, frames := c.interrupts(), sink.Frames()
			for i := range uint64(50) {
				c.send(t, pool)
				eventually(t, "a frame", func() bool { return sink.Frames() == frames+i+1 })
				time.Sleep(2 * time.Millisecond)
			}
			return c.interrupts() - before
		}
		plain := trickle()
		if err := u.SetNAPI(netdev.NAPI{DeferHardIRQs: 1000, GROFlushTimeout: time.Millisecond}); err != nil {
			t.Fatal(err)
		}
		c.send(t, pool) // wakes the poll, which sees the new settings
		eventually(t, "that frame", func() bool { return sink.Frames() == 52 })
		deferred := trickle()
		if plain < 25 || deferred > 5 {
			t.Errorf("50 frames cost %d interrupts, and deferred %d; want about 50, and next to none", plain, deferred)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := c.a.Tx(0).Drain(ctx); err != nil {
			t.Error(err)
		}
		if err := sink.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestDelays: delayed interrupts come, and frames with them.
func TestDelays(t *testing.T) {
	onEach(t, map[string]string{"bus": "intx"}, func(t *testing.T, c *control) {
		for _, d := range []netdev.Device{c.a, c.b} {
			for _, p := range d.(pci.ParamUser).Params() {
				if strings.HasSuffix(p.Name, "Delay") {
					if err := p.Set(t.Context(), "1000"); err != nil { // a millisecond
						t.Fatal(err)
					}
				}
			}
		}
		sink, err := netdev.NewSink(c.b)
		if err != nil {
			t.Fatal(err)
		}
		pool, err := c.a.Tx(0).NewPool(16)
		if err != nil {
			t.Fatal(err)
		}
		defer pool.Close()
		for range 20 {
			c.send(t, pool)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := c.a.Tx(0).Drain(ctx); err != nil {
			t.Error(err)
		}
		eventually(t, "20 frames", func() bool { return sink.Frames() == 20 })
		if err := sink.Close(); err != nil {
			t.Error(err)
		}
	})
}
