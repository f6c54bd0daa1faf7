package shm

import (
	"errors"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/ring3dev/ring3/rionet/rapidio"
)

// scribbleTime is how long each side is scribbled on.
func scribbleTime() time.Duration {
	if testing.Short() {
		return time.Second
	}
	return 10 * time.Second
}

// scribble writes nonsense all over memory, most of it where it hurts, until stop.
func scribble(b []byte, seed uint64, stop <-chan struct{}) {
	rnd := rand.New(rand.NewPCG(seed, 3))
	words := []uint32{0, 1, 2, 7, 8, 9, 15, 16, 17, 63, 64, 65, 4095, 4096, 4097, 1 << 15, 1 << 16, 1 << 31, ^uint32(0)}
	for {
		select {
		case <-stop:
			return
		default:
		}
		for range 64 {
			at := rnd.IntN(len(b)-4) &^ 3
			if rnd.IntN(2) == 0 { // near the beginning of a page, where control blocks and records are
				at = at&^(pageSize-1) + rnd.IntN(1024)&^3
			}
			switch rnd.IntN(4) {
			case 0:
				Mapped(b).Store32(at, rnd.Uint32())
			case 1:
				Mapped(b).Store32(at, words[rnd.IntN(len(words))])
			case 2:
				Mapped(b).Store32(at, Mapped(b).Load32(at)+uint32(rnd.IntN(5))-2)
			case 3:
				b[at] ^= 1 << rnd.IntN(8)
			}
		}
		if rnd.IntN(64) == 0 {
			runtime.Gosched()
		}
	}
}

// region of a plan of one node, mapped twice.
func scribbled(t *testing.T) (p *Plan, d *Daemon, a, b []byte) {
	t.Helper()
	p, err := NewPlan(small, rapidio.Small, []Member{{Peer: 1, Name: "pe0"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	a, b = shared(t, p.Size())
	ds, err := p.Format(a)
	if err != nil {
		t.Fatal(err)
	}
	return p, ds[0], a, b
}

// allocated is what a loop may allocate in all: it resets rings, and words errors, but keeps nothing.
const allocated = 64 << 20

func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// A node scribbles over its region: the daemon goes on, and what it carries for another node arrives.
func TestScribbledDaemon(t *testing.T) {
	_, d, _, b := scribbled(t)
	other, node, _ := pairOf(t, small, memories[0].of)
	begin(t, other, node, NumVectors)
	other.SetMailbox(0, 16)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { scribble(b, 1, stop) })
	before, end := heap(), time.Now().Add(scribbleTime())
	rnd := rand.New(rand.NewPCG(5, 6))
	var broke, took, carried int
	buf := make([]byte, rapidio.MaxMessage)
	for i := byte(0); time.Now().Before(end); i++ {
		var h Header
		for range 100 {
			data, ok := d.NextTx(&h)
			if !ok {
				break
			}
			took++
			if h.Kind == KindReset {
				d.Reset()
				d.SetMailbox(rnd.IntN(4), 1+rnd.IntN(16))
				continue
			}
			d.PutResult(h.Tag, rapidio.Done)
			copy(buf, data)
			d.PutMessage(h.Mbox, 2, data)
		}
		d.PutResponse(1, 2, rapidio.Done)
		d.PutDoorbell(1, 2)
		d.PutPortWrite(buf[:64])
		d.PutMessage(uint8(rnd.IntN(4)), 3, buf[:1+rnd.IntN(len(buf))])
		d.ReleaseTx()
		d.Flush()
		d.ArmTx()
		if d.Err() != nil {
			broke++
			d.Reset()
			d.SetMailbox(rnd.IntN(4), 1+rnd.IntN(16))
		}
		carry(t, other, node, i)
		carried++
	}
	close(stop)
	wg.Wait()
	t.Logf("broken %d times, %d records, %d messages for another", broke, took, carried)
	if broke == 0 || took == 0 {
		t.Errorf("broken %d times, with %d records, want the scribbling to have been noticed", broke, took)
	}
	if now := heap(); now > before+allocated {
		t.Errorf("%d bytes of heap after, %d before", now, before)
	}
}

// carry brings a message to a node that behaves.
func carry(t *testing.T, d *Daemon, n *Node, v byte) {
	t.Helper()
	msg := []byte{v, ^v, v}
	if s := d.PutMessage(0, 9, msg); s != rapidio.Done {
		t.Fatalf("PutMessage for another node = %v", s)
	}
	d.Flush()
	var h Header
	if got, ok := n.Mbox[0].Next(&h); !ok || string(got) != string(msg) || h.Peer != 9 {
		t.Fatalf("another node got % x (%v), want % x", got, ok, msg)
	}
	n.Mbox[0].Release()
}

// A daemon, or a peer of a direct link, scribbles over a node.
func TestScribbledNode(t *testing.T) {
	for _, m := range memories {
		t.Run(m.name, func(t *testing.T) {
			p, d, a, b := scribbled(t)
			stop := make(chan struct{})
			var wg sync.WaitGroup
			mem := m.of(t, b)
			before, end := heap(), time.Now().Add(scribbleTime()/2)
			broke, refused := 0, 0
			for seed := uint64(0); time.Now().Before(end); seed++ {
				n, err := OpenNode(mem, 1)
				if err != nil {
					refused++
					if _, err := p.Format(a); err != nil {
						t.Fatal(err)
					}
					continue
				}
				stop = make(chan struct{})
				wg.Go(func() { scribble(a, seed, stop) })
				if useNode(n, d) {
					broke++
				}
				close(stop)
				wg.Wait()
			}
			t.Logf("broken %d times, refused %d times", broke, refused)
			if broke == 0 || refused == 0 {
				t.Errorf("broken %d times, refused %d times, want the scribbling to have been noticed", broke, refused)
			}
			if now := heap(); now > before+allocated {
				t.Errorf("%d bytes of heap after, %d before", now, before)
			}
		})
	}
}

// useNode uses a node until it is broken, or for a while, and says which.
func useNode(n *Node, d *Daemon) bool {
	data := make([]byte, rapidio.MaxMessage)
	cs := append([]*Consumer{n.Answers, n.Events}, n.Mbox[:]...)
	for i := range 200 {
		for range 20 {
			n.Tx.Put(&Header{Kind: KindMessage, Tag: uint32(i)}, data[:1+i*20])
		}
		n.Tx.Publish()
		n.Tx.WantRoom()
		d.PutDoorbell(1, 2)
		d.PutMessage(0, 1, data[:1+i*20])
		d.Flush()
		for _, c := range cs {
			var h Header
			for got, ok := c.Next(&h); ok; got, ok = c.Next(&h) {
				copy(data, got)
			}
			c.Release()
			c.Arm()
			if c.Err() != nil || n.Tx.Err() != nil {
				return true
			}
		}
		n.Link()
		n.Config()
	}
	return false
}

// The same once more with what the fuzzer finds: a region of these bytes.
func FuzzOpenNode(f *testing.F) {
	p, err := NewPlan(Layout{Tx: 2, Mbox: 2, Events: 2, Direct: 2}, rapidio.Small, []Member{{Peer: 1, Name: "a"}, {Peer: 2, Name: "b"}}, [][2]int{{0, 1}})
	if err != nil {
		f.Fatal(err)
	}
	plain := make([]byte, p.Size())
	if _, err := p.Format(plain); err != nil {
		f.Fatal(err)
	}
	f.Add(plain[:2*pageSize])
	f.Fuzz(func(t *testing.T, page []byte) {
		b, _ := shared(t, p.Size())
		copy(b, plain)
		copy(b, page)
		n, err := OpenNode(Mapped(b), 1)
		if err != nil {
			return
		}
		ds, err := NewPlan(small, rapidio.Small, []Member{{Peer: 1}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		c, _ := shared(t, ds.Size())
		d, err := ds.Format(c)
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range n.Direct {
			x.Dest()
			for m := range x.Out {
				x.Out[m].adopt()
				x.Open(m, 2)
				x.Out[m].Limit()
				x.Out[m].Put(&Header{}, []byte{1})
				x.Out[m].Publish()
			}
		}
		useNode(n, d[0])
	})
}

// A ring of these bytes, for either end: an error or records, and nothing outside.
func FuzzRing(f *testing.F) {
	g := geometry{n: 4, slot: 64}
	ring := make([]byte, round(g.size()))
	f.Add([]byte{3}, []byte{0, 0, 0, 0})
	f.Add([]byte{0}, ring[ctlSize:ctlSize+4*descSize])
	f.Fuzz(func(t *testing.T, ctl, recs []byte) {
		a, _ := shared(t, len(ring))
		for _, m := range memories {
			clear(a)
			copy(a[ctlTail:], ctl[:min(4, len(ctl))])
			copy(a[ctlHead:], ctl[min(4, len(ctl)):min(8, len(ctl))])
			copy(a[ctlSize:], recs)
			mem := m.of(t, a)
			p, c := pair(t, g, mem, mem)
			p.adopt()
			p.Put(&Header{}, []byte{1, 2, 3})
			p.Publish()
			var h Header
			n := 0
			for data, ok := c.Next(&h); ok; data, ok = c.Next(&h) {
				if n++; len(data) > g.slot || n > g.n {
					t.Fatalf("record %d of a ring of %d has %d bytes of %d", n, g.n, len(data), g.slot)
				}
			}
			c.Release()
			if c.Waiting() > g.n || p.Room() > g.n {
				t.Errorf("Waiting, Room = %d, %d of %d", c.Waiting(), p.Room(), g.n)
			}
		}
	})
}

// A node that broke the ring of its events is no node that takes them later.
func TestBrokenEvents(t *testing.T) {
	for _, m := range memories {
		d, n, _ := pairOf(t, small, m.of)
		begin(t, d, n, NumVectors)
		n.Events.store(ctlHead, 1000)
		st := rapidio.Done
		for i := 0; st == rapidio.Done && i < 100; i++ {
			st = d.PutDoorbell(4, 1)
		}
		if st != rapidio.Error || d.PutDoorbell(4, 1) != rapidio.Error || d.PutPortWrite([]byte("0123")) != rapidio.Error {
			t.Errorf("%s: PutDoorbell into a broken ring = %v, want error", m.name, st)
		}
		if err := d.Err(); !errors.Is(err, ErrBroken) {
			t.Errorf("%s: Err = %v, want ErrBroken", m.name, err)
		}
	}
}
