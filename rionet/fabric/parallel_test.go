package fabric

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ring3dev/ring3/rionet/rapidio"
)

// TestParallel has all nodes send to all others at once, while somebody writes routes and reads statistics: each message arrives once,
// whole, and in the order of its sender.
func TestParallel(t *testing.T) {
	t.Run("ideal", func(t *testing.T) { parallel(t, 4, 2000, "") })
	t.Run("delayed", func(t *testing.T) { parallel(t, 4, 100, ", delay: 100us, rate: 10G") })
}

func parallel(t *testing.T, n, each int, more string) {
	f, ports := starred(t, n, more)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var boxes []rapidio.Inbox
	for _, p := range ports {
		boxes = append(boxes, p.inbox(64))
	}
	var wg sync.WaitGroup
	for i, p := range ports {
		out := p.outbox(16)
		wg.Go(func() { sendAll(t, ctx, out, i, n, each) })
		wg.Go(func() { receiveAll(t, ctx, boxes[i], i, n, each) })
	}
	stop := make(chan struct{})
	var others sync.WaitGroup
	others.Go(func() {
		for i := uint32(0); ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			// Makes all paths anew, without changing them.
			f.gen.Add(1)
			f.Nodes()
			f.Links()
			time.Sleep(50 * time.Microsecond)
		}
	})
	wg.Wait()
	close(stop)
	others.Wait()
	for i, s := range f.Nodes() {
		var bytes uint64
		for k := range each * (n - 1) {
			bytes += uint64(sizeOf(k / (n - 1)))
		}
		if s.Counts.RxBytes < bytes {
			t.Errorf("pe%d counted %d bytes in, want %d or, with retries, more", i, s.Counts.RxBytes, bytes)
		}
	}
}

// sizeOf is the size of the kth message to each.
func sizeOf(k int) int { return 8 + k*37%512 }

func sendAll(t *testing.T, ctx context.Context, out rapidio.Outbox, me, n, each int) {
	buf := make([]byte, 1024)
	var st [1]rapidio.Status
	for k := range each {
		for to := range n {
			if to == me {
				continue
			}
			m := []rapidio.Message{{Peer: rapidio.DestID(to), Data: buf[:sizeOf(k)]}}
			binary.BigEndian.PutUint64(buf, uint64(k))
			for j := 8; j < len(m[0].Data); j++ {
				buf[j] = byte(k)
			}
			// One at a time: what is sent behind one that is to be repeated would overtake it.
			for st[0] = rapidio.Retry; st[0] == rapidio.Retry; {
				out.Add(m)
				if err := out.Wait(ctx); err != nil {
					t.Error(err)
					return
				}
				out.Results(st[:])
				if st[0] == rapidio.Retry {
					time.Sleep(100 * time.Microsecond)
				}
			}
			if st[0] != rapidio.Done {
				t.Errorf("message %d from %d to %d: %v", k, me, to, st[0])
				return
			}
		}
	}
}

func receiveAll(t *testing.T, ctx context.Context, in rapidio.Inbox, me, n, each int) {
	next := make([]uint64, n)
	msgs := make([]rapidio.Message, 8)
	bufs := make([]byte, 8*rapidio.MaxMessage)
	for got := 0; got < each*(n-1); {
		if err := in.Wait(ctx); err != nil {
			t.Errorf("node %d after %d messages: %v", me, got, err)
			return
		}
		for i := range msgs {
			msgs[i].Data = bufs[i*rapidio.MaxMessage:][:rapidio.MaxMessage]
		}
		for _, m := range msgs[:in.Get(msgs)] {
			got++
			k := binary.BigEndian.Uint64(m.Data)
			if k != next[m.Peer] || len(m.Data) != sizeOf(int(k)) || m.Data[len(m.Data)-1] != byte(k) && len(m.Data) > 8 {
				t.Errorf("node %d: message %d of %d bytes from %d, want number %d", me, k, len(m.Data), m.Peer, next[m.Peer])
				return
			}
			next[m.Peer]++
		}
	}
}

// strictSink fails the test where it is called after its port was detached.
type strictSink struct {
	quietSink
	t    *testing.T
	gone atomic.Bool
	n    atomic.Int64
}

func (s *strictSink) check() {
	if s.gone.Load() {
		s.t.Error("a sink was called after Detach")
	}
	s.n.Add(1)
}

func (s *strictSink) Message(*rapidio.Message) rapidio.Status { s.check(); return rapidio.Done }
func (s *strictSink) Doorbell(rapidio.DestID, uint16) rapidio.Status {
	s.check()
	return rapidio.Done
}
func (s *strictSink) Flush()                          { s.check() }
func (s *strictSink) Link(bool)                       { s.check() }
func (s *strictSink) ConfigWritten()                  { s.check() }
func (s *strictSink) Complete(uint32, rapidio.Status) { s.check() }

// TestDetachWhileMessagesFlow attaches and detaches the receiver of messages that never stop.
func TestDetachWhileMessagesFlow(t *testing.T) {
	for _, more := range []string{"", "- {ends: ['sw0:1', pe1], delay: 20us}"} {
		f := newFabric(t, "switches: [{name: sw0, ports: 3}]\nendpoints: [{name: pe0}, {name: pe1}, {name: pe2}]\n"+
			"links:\n- [pe0, 'sw0:0']\n- [pe2, 'sw0:2']\n"+cmp.Or(more, "- [pe1, 'sw0:1']"))
		host := attach(t, f, "pe0")
		host.setID(0)
		for id := range uint32(3) {
			host.write(0, 0, rapidio.RegRouteDestID, id)
			host.write(0, 0, rapidio.RegRoutePort, id)
		}
		stop := make(chan struct{})
		var wg sync.WaitGroup
		var done atomic.Int64
		wg.Go(func() { flood(t, f, &done, stop) })
		for range 200 {
			s := &strictSink{t: t}
			p, err := f.Attach("pe1", s)
			if err != nil {
				t.Fatal(err)
			}
			p.Maint(&Maint{Local: true, Off: rapidio.RegBaseDeviceID, Width: 4, Write: true, Value: 1 << 16})
			p.SetMailbox(0, true, false)
			p.SetDoorbells(true)
			for deadline := time.Now().Add(time.Minute); s.n.Load() < 20 && time.Now().Before(deadline); {
				time.Sleep(10 * time.Microsecond)
			}
			p.Detach()
			s.gone.Store(true)
		}
		close(stop)
		wg.Wait()
		if done.Load() == 0 {
			t.Error("no message arrived")
		}
	}
}

func flood(t *testing.T, f *Fabric, done *atomic.Int64, stop chan struct{}) {
	p, err := f.Attach("pe2", quietSink{})
	if err != nil {
		t.Error(err)
		return
	}
	defer p.Detach()
	p.Maint(&Maint{Local: true, Off: rapidio.RegBaseDeviceID, Width: 4, Write: true, Value: 2 << 16})
	m := &rapidio.Message{Peer: 1, Data: make([]byte, 64)}
	for i := uint32(0); ; i++ {
		select {
		case <-stop:
			return
		default:
		}
		if st := p.Message(i, m); st == rapidio.Done || st == rapidio.Pending {
			done.Add(1)
		} else if i%64 == 0 {
			time.Sleep(time.Microsecond)
		}
		p.Doorbell(i, 1, 7)
		if i%8 == 0 {
			p.Flush()
		}
	}
}

func TestNoAllocs(t *testing.T) {
	f, ports := starred(t, 3, "")
	ports[1].Close()
	if _, err := f.Attach("pe1", quietSink{}); err != nil {
		t.Fatal(err)
	}
	ports[0].write(1, 1, rapidio.RegBaseDeviceID, 1<<16)
	f.endpoints[1].node.Load().SetMailbox(0, true, false)
	p := ports[0].port
	m := &rapidio.Message{Peer: 1, Data: make([]byte, 256)}
	send := func() {
		for i := range uint32(8) {
			if st := p.Message(i, m); st != rapidio.Done {
				t.Fatalf("message: %v", st)
			}
		}
		p.Flush()
	}
	send()
	if n := testing.AllocsPerRun(100, send); n != 0 {
		t.Errorf("a burst of 8 messages allocates %v times", n)
	}
}

// BenchmarkMessage moves messages between two master ports of one process, in bursts of 32.
func BenchmarkMessage(b *testing.B) {
	for _, size := range []int{64, 256, 1024, 4096} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			_, ports := starred(b, 2, "")
			out, in := ports[0].outbox(64), ports[1].inbox(64)
			const burst = 32
			var tx, rx [burst]rapidio.Message
			var st [burst]rapidio.Status
			data, room := make([]byte, size), make([]byte, burst*rapidio.MaxMessage)
			for i := range tx {
				tx[i] = rapidio.Message{Peer: 1, Data: data}
			}
			b.SetBytes(int64(size))
			b.ReportAllocs()
			b.ResetTimer()
			for n := 0; n < b.N; n += burst {
				out.Add(tx[:])
				for i := range rx {
					rx[i].Data = room[i*rapidio.MaxMessage:][:rapidio.MaxMessage]
				}
				if got := in.Get(rx[:]); got != burst {
					b.Fatalf("received %d of %d", got, burst)
				}
				out.Results(st[:])
			}
		})
	}
}

// BenchmarkPort is the fabric's own part of it: a sink that does nothing.
func BenchmarkPort(b *testing.B) {
	f, ports := starred(b, 2, "")
	ports[1].Close()
	if _, err := f.Attach("pe1", quietSink{}); err != nil {
		b.Fatal(err)
	}
	ports[0].write(1, 1, rapidio.RegBaseDeviceID, 1<<16)
	f.endpoints[1].node.Load().SetMailbox(0, true, false)
	p := ports[0].port
	m := &rapidio.Message{Peer: 1, Data: make([]byte, 64)}
	b.ReportAllocs()
	for i := range b.N {
		p.Message(uint32(i), m)
	}
}

// BenchmarkMaint is a config read through so many switches.
func BenchmarkMaint(b *testing.B) {
	for _, n := range []int{1, 8} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			f := newFabric(b, chain(n, ""))
			p, q := attach(b, f, "a"), attach(b, f, "b")
			p.setID(1)
			q.setID(2)
			routed(p, n)
			b.ReportAllocs()
			for b.Loop() {
				p.read(2, 0xff, 0)
			}
		})
	}
}
