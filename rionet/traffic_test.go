package rionet

import (
	"bytes"
	"context"
	"encoding/binary"
	"testing"

	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/netdev"
	"github.com/ring3dev/ring3/rionet/rapidio"
)

// allKnow waits until all know each other.
func allKnow(t testing.TB, devs []*Device, want string) {
	t.Helper()
	for i, d := range devs {
		for j := range devs {
			if i != j {
				knows(t, d, rapidio.DestID(j+1), want)
			}
		}
	}
}

// A multicast goes to every active peer, a unicast to one, other addresses nowhere.
func TestWhere(t *testing.T) {
	bustest.NoLeaks(t)
	nodes := stars(t, 4, "")
	var devs []*Device
	for _, n := range nodes[:3] { // the fourth never joins
		devs = append(devs, n.open(Options{}))
	}
	allKnow(t, devs, "active exact")
	a, b, c := devs[0], devs[1], devs[2]
	s := newSender(t, a, 64)
	want := func(d *Device, f []byte, n int) {
		t.Helper()
		receive(t, d, 1, func(got []byte) {
			if len(got) != n || !bytes.Equal(got[:6], f) {
				t.Errorf("%s received %d bytes to %x, want %d to %x", d.name, len(got), got[:6], n, f)
			}
		})
	}
	for i, to := range [][]byte{broadcast[:], {0x33, 0x33, 0, 0, 0, 1}, {1, 0, 0x5e, 0, 0, 1}} {
		s.send(to, i, 60+i)
		s.drain()
		want(b, to, 60+i)
		want(c, to, 60+i)
	}
	s.send(addr(3), 1, 14)
	s.drain()
	want(c, addr(3), 14)
	s.send(addr(4), 2, 100)                  // not active
	s.send(addr(200), 2, 100)                // nobody
	s.send(addr(1), 2, 100)                  // itself
	s.send([]byte{2, 1, 0, 1, 0, 3}, 3, 100) // no address of rionet's
	s.send([]byte{0, 1, 0, 2, 0, 3}, 3, 100) // no address of rionet's
	s.send(broadcast[:], 0, 4096)            // the longest
	s.drain()
	want(b, broadcast[:], 4096)
	want(c, broadcast[:], 4096)
	for _, d := range devs {
		silence(t, d)
	}
	st := a.Stats()
	if st.TxPackets != 2*4+1+3 || st.TxDropped != 2 || st.TxErrors != 0 {
		t.Errorf("Stats = %+v, want 12 packets (8 of multicasts, 1 to a peer, 3 to nobody) and 2 dropped", st)
	}
	if st := b.Stats(); st.RxPackets != 4 || st.Multicast != 2 || st.RxBytes != 60+61+62+4096 {
		t.Errorf("Stats of b = %+v, want 4 packets with %d bytes, 2 multicasts", st, 60+61+62+4096)
	}
	if err := b.Close(); err != nil {
		t.Errorf("Close = %v", err)
	}
	knows(t, a, 2, "inactive")
	s.send(broadcast[:], 0, 99)
	s.drain()
	want(c, broadcast[:], 99)
}

// A classic end and an exact one: both deliver 4096 bytes, zeros behind what was sent.
func TestClassic(t *testing.T) {
	nodes := stars(t, 2, "")
	devs := []*Device{nodes[0].open(Options{Classic: true}), nodes[1].open(Options{})}
	allKnow(t, devs, "active")
	for i, d := range devs {
		to := rapidio.DestID(2 - i)
		s := newSender(t, d, 8)
		s.send(addr(to), 7, 100)
		s.drain()
		receive(t, devs[1-i], 1, func(f []byte) {
			if len(f) != 4096 || !bytes.Equal(f[100:], make([]byte, 3996)) || !bytes.Equal(f[:6], addr(to)) || f[99] != 7+99 {
				t.Errorf("%s received %d bytes, want 4096 that begin with the frame", devs[1-i].name, len(f))
			}
		})
	}
	if n := devs[1].Stats().RxBytes; n != 4096 {
		t.Errorf("RxBytes = %d, want 4096", n)
	}
}

// Messages that are no frames are counted.
func TestShortMessages(t *testing.T) {
	nodes := stars(t, 2, "")
	a := nodes[0].open(Options{})
	out, err := nodes[1].port.RequestOutbMbox("test", mailbox, 32)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	for n := 1; n <= headerLen; n++ {
		if k := out.Add([]rapidio.Message{{Peer: 1, Data: make([]byte, n)}}); k != 1 {
			t.Fatalf("Add of a message = %d, want 1", k)
		}
	}
	receive(t, a, 1, func(f []byte) {
		if len(f) != 4096 { // from who never said EXACT
			t.Errorf("a frame of %d bytes, want 4096", len(f))
		}
	})
	if st := a.Stats(); st.RxLengthErrors != headerLen-1 || st.RxErrors != headerLen-1 || st.RxPackets != 1 {
		t.Errorf("Stats = %+v, want %d length errors and one packet", st, headerLen-1)
	}
}

// What a peer has no room for is sent again while nobody calls the sender's queue.
func TestRetry(t *testing.T) {
	nodes := stars(t, 2, "")
	a, b := nodes[0].open(Options{Ring: 32}), nodes[1].open(Options{Ring: 8})
	allKnow(t, []*Device{a, b}, "active exact")
	s := newSender(t, a, 64)
	var bufs []*dma.Buf
	for i := range 20 {
		x := s.pool.Get()
		frame(x, addr(2), addr(1), i, 60)
		bufs = append(bufs, x)
	}
	if n := a.Tx(0).Burst(bufs); n != 20 {
		t.Fatalf("Burst of 20 = %d, want 20", n)
	}
	eventually(t, "a message is sent again", func() bool { tx, _, _ := a.counters(); return tx.retries > 0 })
	next := uint32(0)
	receive(t, b, 20, func(f []byte) {
		if got := binary.BigEndian.Uint32(f[headerLen:]); got != next {
			t.Errorf("frame %d, want %d", got, next)
		}
		next++
	})
	s.drain()
	tx, _, _ := a.counters()
	if tx.retries == 0 || tx.packets != 20 || tx.dropped != 0 {
		t.Errorf("counted %+v, want 20 packets, some of them sent again, none dropped", tx)
	}
}

// A peer that does not receive holds the others up for a while, once.
func TestCongested(t *testing.T) {
	nodes := stars(t, 3, "")
	devs := []*Device{nodes[0].open(Options{}), nodes[1].open(Options{Ring: 8}), nodes[2].open(Options{})}
	allKnow(t, devs, "active exact")
	a, b, c := devs[0], devs[1], devs[2]
	s := newSender(t, a, 256)
	for i := range 50 {
		s.send(addr(2), i, 60)
		s.send(addr(3), i, 60)
		s.drain()
		receive(t, c, 1, func([]byte) {})
	}
	tx, _, _ := a.counters()
	if tx.packets != 50+8 || tx.dropped != 42 || tx.congested != 42 {
		t.Errorf("counted %+v, want 58 packets and 42 dropped", tx)
	}
	receive(t, b, 8, func([]byte) {})
	s.send(addr(2), 0, 60)
	s.drain()
	receive(t, b, 1, func([]byte) {})
	if got := state(a, 2); got != "active exact" {
		t.Errorf("the slow peer is %s, want active exact", got)
	}
}

// More peers than the ring has messages: a multicast goes to all of them.
func TestManyPeers(t *testing.T) {
	nodes := stars(t, 10, "")
	devs := []*Device{nodes[0].open(Options{Ring: 4})}
	for _, n := range nodes[1:] {
		devs = append(devs, n.open(Options{}))
	}
	allKnow(t, devs, "active exact")
	s := newSender(t, devs[0], 16)
	const frames = 10
	for i := range frames {
		s.send(broadcast[:], i, 60)
	}
	s.drain()
	for _, d := range devs[1:] {
		i := uint32(0)
		receive(t, d, frames, func(f []byte) {
			if got := binary.BigEndian.Uint32(f[headerLen:]); got != i {
				t.Errorf("%s received frame %d, want %d", d.name, got, i)
			}
			i++
		})
		silence(t, d)
	}
}

// Neither unicast nor multicast allocates, nor does sleeping in between.
func TestNoAllocs(t *testing.T) {
	nodes := stars(t, 3, "")
	devs := []*Device{nodes[0].open(Options{}), nodes[1].open(Options{}), nodes[2].open(Options{Classic: true})}
	knows(t, devs[0], 2, "active exact")
	knows(t, devs[0], 3, "active")
	a := devs[0]
	s := newSender(t, a, 128)
	var out, in [netdev.Budget]*dma.Buf
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for _, c := range []struct {
		what string
		to   []byte
	}{{"unicast", addr(2)}, {"multicast", broadcast[:]}} {
		got := testing.AllocsPerRun(100, func() {
			for i := range out {
				out[i] = s.pool.Get()
				frame(out[i], c.to, addr(1), i, 60)
			}
			for k := 0; k < len(out); {
				k += a.Tx(0).Burst(out[k:])
			}
			for _, d := range devs[1:] {
				if d != devs[1] && c.to[0] == 0 {
					continue // nothing is for it
				}
				if err := d.Rx(0).Wait(ctx); err != nil {
					t.Errorf("Wait = %v", err)
				}
				for _, b := range in[:d.Rx(0).Burst(in[:])] {
					b.Free()
				}
			}
			a.Tx(0).Reap()
		})
		if got != 0 {
			t.Errorf("%s: %v allocations in a burst of %d, want 0", c.what, got, len(out))
		}
	}
	s.drain()
}

// FuzzMessage receives any message from any source: it is a frame or counted.
func FuzzMessage(f *testing.F) {
	f.Add([]byte{}, uint16(2))
	f.Add(make([]byte, 13), uint16(2))
	f.Add(append(bytes.Clone(broadcast[:]), make([]byte, 54)...), uint16(3))
	f.Add(make([]byte, 4096), uint16(0xffff))
	nodes := stars(f, 2, "")
	a, b := nodes[0].open(Options{}), nodes[1].open(Options{})
	knows(f, a, 2, "active exact")
	knows(f, b, 1, "active exact")
	pool, err := dma.NewPool(ordinary{}, 1, rapidio.MaxMessage, 0)
	if err != nil {
		f.Fatal(err)
	}
	q := &a.rx
	f.Fuzz(func(t *testing.T, data []byte, src uint16) {
		q.mu.Lock()
		defer q.mu.Unlock()
		x, before := pool.Get(), q.c
		defer x.Free()
		m := rapidio.Message{Peer: rapidio.DestID(src), Data: data}
		if len(data) <= len(x.Mem) {
			m.Data = x.Mem[:copy(x.Mem, data)]
		}
		switch ok := q.frame(x, &m); {
		case ok != (len(data) >= headerLen && len(data) <= rapidio.MaxMessage):
			t.Errorf("frame of %d bytes = %t", len(data), ok)
		case !ok:
			if q.c.lengthErrors != before.lengthErrors+1 {
				t.Errorf("%d length errors, want %d", q.c.lengthErrors, before.lengthErrors+1)
			}
		case src == 2 && !bytes.Equal(x.Data, data):
			t.Errorf("a frame of the exact peer differs: %d bytes, want %d", len(x.Data), len(data))
		case src != 2 && (len(x.Data) != 4096 || !bytes.Equal(x.Data[:len(data)], data)):
			t.Errorf("a frame of another differs: %d bytes, want 4096", len(x.Data))
		}
	})
}

// FuzzDoorbell: any doorbells from anybody leave the device whole.
func FuzzDoorbell(f *testing.F) {
	f.Add([]byte{0x10, 0, 0, 2, 0x10, 1, 0, 2})
	f.Add([]byte{0x10, 2, 0, 2, 0x10, 0, 0, 2, 0x10, 3, 0, 9})
	nodes := stars(f, 2, "")
	a := nodes[0].open(Options{})
	f.Fuzz(func(t *testing.T, p []byte) {
		for ; len(p) >= 4; p = p[4:] {
			a.doorbell(rapidio.DestID(binary.BigEndian.Uint16(p[2:])), binary.BigEndian.Uint16(p))
		}
		a.mu.Lock()
		defer a.mu.Unlock()
		if n := len(a.activePeers()); n > 1 || len(a.all) != 1 || (n == 1) != a.all[0].active.Load() {
			t.Errorf("%d active peers, %d peers", n, len(a.all))
		}
	})
}

// Speeds by the registers of part 6.
func TestSpeed(t *testing.T) {
	for _, c := range []struct {
		ctl, ctl2 uint32
		want      int
	}{
		{0, 0, defaultSpeed}, {2 << 27, 3 << 28, 10000}, {0, 1 << 28, 1000}, {3 << 27, 5 << 28, 10000}, {5 << 27, 4 << 28, 64000},
		{0, 15 << 28, defaultSpeed}, {0xffffffff, 0xffffffff, defaultSpeed},
	} {
		if got := speed(c.ctl, c.ctl2); got != c.want {
			t.Errorf("speed(%#x, %#x) = %d, want %d", c.ctl, c.ctl2, got, c.want)
		}
	}
}

// The table finds what was put in, at any ID.
func TestPeerTable(t *testing.T) {
	var table peerTable
	ids := []rapidio.DestID{0, 1, 0xff, 0x100, 0xabcd, 0xffff}
	for _, id := range ids {
		table.set(id, &peer{id: id})
	}
	for id := range rapidio.DestID(0xffff) {
		p, want := table.get(id), false
		for _, i := range ids {
			want = want || i == id
		}
		if (p != nil) != want || p != nil && p.id != id {
			t.Fatalf("get(%#x) = %+v", id, p)
		}
	}
	table.set(0x100, nil)
	if p := table.get(0x100); p != nil {
		t.Errorf("get of a peer that went = %+v, want nil", p)
	}
}
