package shm

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/ring3dev/ring3/rionet/rapidio"
)

func TestHeader(t *testing.T) {
	full := Header{Kind: 0xa1, Mbox: 0xb2, Hop: 0xc3, Width: 0xd4, Status: 0xe5, Write: true, Peer: 0xf6a7, Len: 0xb8c9, Info: 0xdaeb, Tag: 0xfc0d1e2f, Off: 0x30415263, Value: 0x74859607, slot: 0x1829}
	var b [descSize]byte
	putRecord(b[:], &full)
	var got Header
	if got.get(b[:]); got != full {
		t.Errorf("get(put(%+v)) = %+v", full, got)
	}
	// Each field is its own: of one alone nothing is seen in another.
	for _, h := range []Header{{Kind: 1}, {Mbox: 1}, {Hop: 1}, {Width: 1}, {Status: 1}, {Write: true}, {Peer: 1}, {Len: 1}, {Info: 1}, {Tag: 1}, {Off: 1}, {Value: 1}, {slot: 1}} {
		putRecord(b[:], &h)
		if got.get(b[:]); got != h {
			t.Errorf("get(put(%+v)) = %+v", h, got)
		}
	}
}

func TestGeometry(t *testing.T) {
	for _, x := range []struct {
		g  geometry
		ok bool
	}{
		{geometry{0, 2, 0}, true},
		{geometry{64, 128, 4096}, true},
		{geometry{0, maxRing, 0}, true},
		{geometry{0, 0, 0}, false},
		{geometry{0, 1, 0}, false},
		{geometry{0, 3, 0}, false},
		{geometry{0, maxRing * 2, 0}, false},
		{geometry{0, -2, 0}, false},
		{geometry{-64, 2, 0}, false},
		{geometry{32, 2, 0}, false},
		{geometry{1 << 21, 2, 0}, false},
		{geometry{1<<21 - 64, 2, 0}, false},
		{geometry{0, 1024, 4096}, false}, // larger than the memory
		{geometry{0, 2, 1 << 16}, false},
		{geometry{0, 2, -1}, false},
		{geometry{1 << 62, 2, 0}, false},
	} {
		if err := x.g.check(1 << 21); err == nil != x.ok {
			t.Errorf("check(%+v) = %v, want ok %v", x.g, err, x.ok)
		}
	}
	if s := (geometry{slot: 4096}).stride(); s != 4096+line {
		t.Errorf("stride of 4096 = %d, want a line more", s)
	}
}

// Bursts of any length through a ring, with data of any length: all arrives, in order, and no more than the ring holds.
func TestRing(t *testing.T) {
	g := geometry{n: 16, slot: 200}
	for _, pm := range memories {
		for _, cm := range memories {
			t.Run(pm.name+" to "+cm.name, func(t *testing.T) {
				a, b := shared(t, round(g.size()))
				p, c := pair(t, g, pm.of(t, a), cm.of(t, b))
				testRing(t, p, c)
			})
		}
	}
}

func testRing(t *testing.T, p *Producer, c *Consumer) {
	rnd := rand.New(rand.NewPCG(1, 2))
	data := make([]byte, p.slot)
	put, got := uint32(0), uint32(0)
	for range 2000 {
		for range rnd.IntN(p.n + 4) {
			n := rnd.IntN(p.slot + 1)
			for i := range data[:n] {
				data[i] = byte(put) + byte(i)
			}
			ok := p.Put(&Header{Kind: KindMessage, Tag: put, Info: uint16(n)}, data[:n])
			if room := put-got < uint32(p.n); ok != room {
				t.Fatalf("Put with %d of %d in the ring = %v, want %v", put-got, p.n, ok, room)
			}
			if !ok {
				break
			}
			put++
		}
		if c.Ready(); int32(c.tail-p.published) > 0 {
			t.Fatal("the consumer sees what was not published")
		}
		p.Publish()
		for range rnd.IntN(p.n + 1) {
			var h Header
			d, ok := c.Next(&h)
			if ok != (got < put) {
				t.Fatalf("Next = %v with %d put and %d taken (%v)", ok, put, got, c.Err())
			}
			if !ok {
				break
			}
			if h.Tag != got || int(h.Info) != len(d) || len(d) > 0 && (d[0] != byte(got) || d[len(d)-1] != byte(got)+byte(len(d)-1)) {
				t.Fatalf("record %d = %+v with %d bytes, want what was put", got, h, len(d))
			}
			got++
		}
		c.Release()
	}
	if put < 2000 || p.Err() != nil || c.Err() != nil {
		t.Errorf("%d records put, %v, %v", put, p.Err(), c.Err())
	}
	// The last in is the first to be used again.
	for c.Ready() {
		c.Next(new(Header))
	}
	c.Release()
	if p.Room() != p.n || len(p.free) != p.n {
		t.Errorf("Room of an empty ring = %d with %d slots free, want %d", p.Room(), len(p.free), p.n)
	}
}

func TestRefuses(t *testing.T) {
	g := geometry{n: 2, slot: 64}
	a, b := shared(t, round(g.size()))
	p, c := pair(t, g, Mapped(a), Mapped(b))
	if p.Put(&Header{}, make([]byte, 65)) {
		t.Error("Put of more than a slot = true")
	}
	if p.Publish() {
		t.Error("Publish of nothing wakes")
	}
	if _, ok := c.Next(new(Header)); ok || c.Release() {
		t.Error("Next of nothing gives something, or its Release wakes")
	}
	if _, err := newProducer(Mapped(a[:512]), g); err == nil {
		t.Error("newProducer of memory that is too small = nil")
	}
}

// Who breaks the rules breaks the ring, and nothing else.
func TestBroken(t *testing.T) {
	g := geometry{n: 4, slot: 64}
	for _, m := range memories {
		for _, x := range []struct {
			name   string
			break_ func(b []byte, p *Producer, c *Consumer)
			ofProd bool
		}{
			{"head beyond tail", func(b []byte, p *Producer, c *Consumer) { c.store(ctlHead, 3) }, true},
			{"head goes back", func(b []byte, p *Producer, c *Consumer) { c.store(ctlHead, ^uint32(0)) }, true},
			{"head of what is staged", func(b []byte, p *Producer, c *Consumer) { p.Put(&Header{}, nil); c.store(ctlHead, 3) }, true},
			{"tail too far", func(b []byte, p *Producer, c *Consumer) { p.store(ctlTail, 5) }, false},
			{"tail goes back", func(b []byte, p *Producer, c *Consumer) { p.store(ctlTail, ^uint32(0)) }, false},
			{"slot that is not there", func(b []byte, p *Producer, c *Consumer) { b[ctlSize+24] = 4 }, false},
			{"data longer than a slot", func(b []byte, p *Producer, c *Consumer) { b[ctlSize+8] = 65 }, false},
		} {
			t.Run(m.name+"/"+x.name, func(t *testing.T) {
				a, b := shared(t, round(g.size()))
				p, c := pair(t, g, m.of(t, a), m.of(t, b))
				p.Put(&Header{}, []byte{1})
				p.Put(&Header{}, []byte{2})
				p.Publish()
				x.break_(a, p, c)
				for range 8 {
					c.Next(new(Header))
				}
				for range 8 {
					p.Put(&Header{}, nil)
				}
				ok := c.err != nil
				if x.ofProd {
					ok = p.err != nil
				}
				if !ok {
					t.Fatalf("Err of the producer %v, of the consumer %v, want ErrBroken", p.Err(), c.Err())
				}
				for _, err := range []error{p.Err(), c.Err()} {
					if err != nil && !errors.Is(err, ErrBroken) {
						t.Errorf("Err = %v, want ErrBroken", err)
					}
				}
				if x.ofProd && (p.Put(&Header{}, nil) || p.Publish() || p.Room() != 0 || !p.WantRoom()) {
					t.Error("a broken ring takes records, or lets somebody wait for it")
				}
				if _, ok := c.Next(new(Header)); !x.ofProd && (ok || !c.Arm()) {
					t.Error("a broken ring gives records, or lets somebody sleep on it")
				}
			})
		}
	}
}

// Both ends sleep whenever they may. Nobody sleeps for good.
func TestWake(t *testing.T) {
	g := geometry{n: 8, slot: 64}
	for _, m := range memories {
		t.Run(m.name, func(t *testing.T) {
			a, b := shared(t, round(g.size()))
			p, c := pair(t, g, m.of(t, a), m.of(t, b))
			const n = 20000
			data, room := make(chan struct{}, 1), make(chan struct{}, 1)
			signal := func(ch chan struct{}, wake bool) {
				if wake {
					select {
					case ch <- struct{}{}:
					default:
					}
				}
			}
			go func() {
				for i := uint32(0); i < n; {
					burst := 1 + int(i%5)
					for ; burst > 0 && i < n && p.Put(&Header{Tag: i}, []byte{byte(i)}); burst-- {
						i++
					}
					signal(data, p.Publish())
					if burst > 0 && i < n && !p.WantRoom() {
						<-room
					}
				}
			}()
			for want := uint32(0); want < n; {
				var h Header
				d, ok := c.Next(&h)
				if ok {
					if h.Tag != want || len(d) != 1 || d[0] != byte(want) {
						t.Fatalf("record %d = %+v % x", want, h, d)
					}
					want++
					continue
				}
				signal(room, c.Release())
				if err := c.Err(); err != nil {
					t.Fatal(err)
				}
				if !c.Arm() {
					<-data
				}
				c.Disarm()
			}
		})
	}
}

// Two wait for room at one end. The second finds some, which the consumer has just made and not told of yet: the first is told all the same.
func TestRoomForTwo(t *testing.T) {
	g := geometry{n: 2, slot: 64}
	for _, m := range memories {
		t.Run(m.name, func(t *testing.T) {
			a, b := shared(t, round(g.size()))
			p, c := pair(t, g, m.of(t, a), m.of(t, b))
			for p.Put(&Header{}, nil) {
			}
			p.Publish()
			if p.WantRoom() {
				t.Fatal("WantRoom of a full ring = true")
			}
			c.Next(new(Header))
			c.store(ctlHead, c.head) // the first half of Release
			if !p.WantRoom() {
				t.Fatal("WantRoom of a ring with room = false")
			}
			if c.load(ctlRoom) == 0 {
				t.Error("the consumer has nobody to tell of the room, want the one who sleeps")
			}
		})
	}
}

// A producer that takes over what another left uses no slot that is under way.
func TestAdopt(t *testing.T) {
	g := geometry{n: 8, slot: 64}
	a, b := shared(t, round(g.size()))
	p, c := pair(t, g, Mapped(a), Mapped(b))
	for i := range byte(5) {
		p.Put(&Header{}, []byte{i})
	}
	p.Publish()
	c.Next(new(Header))
	c.Next(new(Header))
	c.Release()
	q, err := newProducer(Mapped(a), g)
	if err != nil {
		t.Fatal(err)
	}
	q.adopt()
	for i := byte(5); q.Put(&Header{}, []byte{i}); i++ {
	}
	q.Publish()
	want := byte(2)
	for d, ok := c.Next(new(Header)); ok; d, ok = c.Next(new(Header)) {
		if !bytes.Equal(d, []byte{want}) {
			t.Errorf("record %d has % x", want, d)
		}
		want++
	}
	if want != 10 {
		t.Errorf("%d records arrived, want 8 more than the 2 taken before", want)
	}
	q.store(ctlTail, 100)
	if q.adopt(); !errors.Is(q.Err(), ErrBroken) {
		t.Errorf("Err after adopting 98 records of 8 = %v, want ErrBroken", q.Err())
	}
}

func TestAllocs(t *testing.T) {
	g := geometry{n: 64, slot: rapidio.MaxMessage}
	for _, m := range memories {
		a, b := shared(t, round(g.size()))
		p, c := pair(t, g, m.of(t, a), m.of(t, b))
		data := make([]byte, 1000)
		var h, got Header
		if n := testing.AllocsPerRun(100, func() {
			for range 32 {
				h = Header{Kind: KindMessage}
				p.Put(&h, data)
			}
			p.Publish()
			for range 32 {
				c.Next(&got)
			}
			c.Release()
			c.Arm()
			p.Room()
		}); n != 0 {
			t.Errorf("%s: a burst allocates %v times, want 0", m.name, n)
		}
	}
	runtime.KeepAlive(memories)
}

func BenchmarkRing(b *testing.B) {
	for _, size := range []int{64, 256, 1024, 4096} {
		b.Run(sizeName(size), func(b *testing.B) {
			g := geometry{n: 256, slot: rapidio.MaxMessage}
			m, n := shared(b, round(g.size()))
			p, c := pair(b, g, Mapped(m), Mapped(n))
			data, room := make([]byte, size), make([]byte, size)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for i := 0; i < b.N; i += 32 {
				for k := range uint32(32) {
					p.Put(&Header{Kind: KindMessage, Tag: k}, data)
				}
				p.Publish()
				var h Header
				for range 32 {
					d, _ := c.Next(&h)
					copy(room, d)
				}
				c.Release()
			}
		})
	}
}

func sizeName(n int) string {
	return map[int]string{64: "64", 256: "256", 1024: "1024", 4096: "4096"}[n]
}
