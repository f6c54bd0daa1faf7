package fabric

import (
	"context"
	"encoding/binary"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ring3dev/ring3/rionet/rapidio"
)

func TestDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, ports := starred(t, 2, ", delay: 5ms")
		in := ports[1].inbox(2)
		out := ports[0].outbox(2)
		start := time.Now()
		out.Add([]rapidio.Message{{Peer: 1, Data: []byte("x")}})
		if out.InFlight() != 1 || out.Results(make([]rapidio.Status, 1)) != 0 {
			t.Error("a message over a link with a delay was answered at once")
		}
		receive(t, in)
		if got := time.Since(start); got != 10*time.Millisecond {
			t.Errorf("a message over two links of 5 ms took %v", got)
		}
		if st := result1(t, out); st != rapidio.Done {
			t.Errorf("message: %v, want done", st)
		}
		if got := time.Since(start); got != 20*time.Millisecond {
			t.Errorf("there and back took %v, want 20ms", got)
		}
		start = time.Now()
		ports[0].read(1, 1, 0)
		if got := time.Since(start); got != 20*time.Millisecond {
			t.Errorf("a config read took %v, want 20ms", got)
		}
		ports[1].OpenDoorbells(true)
		start = time.Now()
		if err := ports[0].Doorbell(context.Background(), 1, 3); err != nil {
			t.Error(err)
		}
		if got := time.Since(start); got != 20*time.Millisecond {
			t.Errorf("a doorbell took %v, want 20ms", got)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 15*time.Millisecond)
		defer cancel()
		if _, err := ports[0].Read(ctx, 1, 1, 0, 4); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a read with too little time: %v, want %v", err, context.DeadlineExceeded)
		}
		var rec recorder
		ports[1].Start(&rec)
		rec.take()
		if err := ports[0].PortWrite(context.Background(), 1, []byte{1, 2, 3, 4}); err != nil {
			t.Error(err)
		}
		rec.expect(t, "port-write, too early")
		time.Sleep(10 * time.Millisecond)
		rec.expect(t, "port-write", "portwrite 01020304")
	})
}

func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// 8 bits a microsecond; only one of the links is slow.
		f := newFabric(t, "endpoints: [{name: a}, {name: b}]\nlinks: [{ends: [a, b], rate: 8M}]")
		a, b := attach(t, f, "a"), attach(t, f, "b")
		b.setID(1)
		in, out := b.inbox(64), a.outbox(64)
		var msgs []rapidio.Message
		for range 32 {
			msgs = append(msgs, rapidio.Message{Peer: 1, Data: make([]byte, 980)})
		}
		a.setID(0)
		start := time.Now()
		out.Add(msgs)
		for range msgs {
			receive(t, in)
		}
		// Each has 980 bytes in 4 segments with 20 bytes besides.
		if got, want := time.Since(start), 32*1060*time.Microsecond; got < want || got > want+time.Microsecond {
			t.Errorf("32 messages of 980 bytes at 8 Mbit/s took %v, want %v", got, want)
		}
		for range msgs {
			if st := result1(t, out); st != rapidio.Done {
				t.Errorf("message: %v, want done", st)
			}
		}
	})
}

func TestLoss(t *testing.T) {
	lose := func(t *testing.T) (lost int, errs [2]PortCounts) {
		f := newFabric(t, "endpoints: [{name: a}, {name: b}]\nlinks: [{ends: [a, b], loss: 0.1}]")
		a, b := attach(t, f, "a"), attach(t, f, "b")
		a.setID(0)
		b.setID(1)
		in, out := b.inbox(1024), a.outbox(1024)
		start := time.Now()
		for range 1000 {
			out.Add([]rapidio.Message{{Peer: 1, Data: []byte{1}}})
		}
		for range 1000 {
			if result1(t, out) == rapidio.Error {
				lost++
			}
		}
		if got := time.Since(start); got < 9*time.Millisecond || got > 11*time.Millisecond {
			t.Errorf("the last of the lost was reported after %v, want 10ms", got)
		}
		if n := 1024 - in.Free(); n < 1000-lost || n > 1000 {
			t.Errorf("%d of 1000 arrived, %d were reported lost", n, lost)
		}
		return lost, f.Links()[0].Counts
	}
	synctest.Test(t, func(t *testing.T) {
		n, counts := lose(t)
		// 19 of 100 lose the request or the response.
		if n < 150 || n > 230 {
			t.Errorf("lost %d of 1000, want about 190", n)
		}
		if got := counts[0].Lost + counts[1].Lost; got != uint64(n) {
			t.Errorf("counted as lost %d, want %d", got, n)
		}
		if counts[0].Errors != uint64(n) {
			t.Errorf("errors = %d, want %d", counts[0].Errors, n)
		}
		if again, _ := lose(t); again != n {
			t.Errorf("lost %d, and %d when run again", n, again)
		}
	})
}

func TestLostForGood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFabric(t, "endpoints: [{name: a}, {name: b}]\nlinks: [{ends: [a, b], loss: 1}]")
		a, b := attach(t, f, "a"), attach(t, f, "b")
		a.setID(0)
		b.setID(1)
		b.OpenDoorbells(true)
		a.setLocal(phy+rapidio.PHYRespTimeout, 1000000<<8) // 300 ms
		start := time.Now()
		if err := a.Doorbell(context.Background(), 1, 1); !errors.Is(err, rapidio.ErrResponse) {
			t.Errorf("doorbell over a link that loses all: %v, want %v", err, rapidio.ErrResponse)
		}
		if _, err := a.Read(context.Background(), 1, 0, 0, 4); !errors.Is(err, rapidio.ErrResponse) {
			t.Errorf("read over a link that loses all: %v, want %v", err, rapidio.ErrResponse)
		}
		if got := time.Since(start); got != 600*time.Millisecond {
			t.Errorf("two timeouts of 300ms took %v", got)
		}
		if got := a.local(em + rapidio.EMLogDetect); got != logTimeout {
			t.Errorf("LOG_DETECT = %#x, want %#x", got, logTimeout)
		}
	})
}

// TestOrder changes the way from a slow to an ideal one while messages are on it.
func TestOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFabric(t, "switches: [{name: x, ports: 3}, {name: y, ports: 3}]\nendpoints: [{name: a}, {name: b}]\n"+
			"links: [[a, 'x:0'], [b, 'y:0'], {ends: ['x:1', 'y:1'], delay: 1ms}, ['x:2', 'y:2']]")
		a, b := attach(t, f, "a"), attach(t, f, "b")
		a.setID(0)
		b.setID(1)
		set := func(p testPort, port uint32) {
			for id, to := range []uint32{port, 0} {
				p.write(0, 0, rapidio.RegRouteDestID, uint32(id)^1^uint32(p.dev().index))
				p.write(0, 0, rapidio.RegRoutePort, to)
			}
		}
		const n = 300
		in, out := b.inbox(512), a.outbox(512)
		for i := range n {
			if i%50 == 0 {
				set(a, 1+uint32(i/50%2))
				set(b, 1+uint32(i/50%2))
			}
			if i%7 == 0 {
				time.Sleep(20 * time.Microsecond)
			}
			var data [4]byte
			binary.BigEndian.PutUint32(data[:], uint32(i))
			if out.Add([]rapidio.Message{{Peer: 1, Data: data[:]}}) != 1 {
				t.Fatal("outbox full")
			}
		}
		for i := range n {
			if _, data := receive(t, in); binary.BigEndian.Uint32(data) != uint32(i) {
				t.Fatalf("message %d came as the %dth", binary.BigEndian.Uint32(data), i)
			}
			if st := result1(t, out); st != rapidio.Done {
				t.Errorf("message %d: %v", i, st)
			}
		}
	})
}

func (p testPort) dev() *device { return p.port.dev }

func TestLinkFailsOnTheWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, ports := starred(t, 2, ", delay: 1ms")
		ports[1].inbox(2)
		out := ports[0].outbox(2)
		out.Add([]rapidio.Message{{Peer: 1, Data: []byte{1}}})
		f.SetLink("pe1", "sw0:1", false)
		if st := result1(t, out); st != rapidio.Error {
			t.Errorf("message on its way when the link failed: %v, want error", st)
		}
		f.SetLink("pe1", "sw0:1", true)
		if st := send(t, out, 1, []byte{1}); st != rapidio.Done {
			t.Errorf("message after the link came back: %v, want done", st)
		}
		ch := make(chan error)
		go func() {
			_, err := ports[0].Read(context.Background(), 1, 1, 0, 4)
			ch <- err
		}()
		time.Sleep(time.Millisecond / 2)
		ports[1].Close()
		if err := <-ch; !errors.Is(err, rapidio.ErrResponse) {
			t.Errorf("read whose target left: %v, want %v", err, rapidio.ErrResponse)
		}
	})
}

func TestTooManyOnTheWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFabric(t, "endpoints: [{name: a}, {name: b}]\nlinks: [{ends: [a, b], delay: 1s}]")
		b := attach(t, f, "b")
		b.setID(1)
		p, err := f.Attach("a", quietSink{})
		if err != nil {
			t.Fatal(err)
		}
		m := &rapidio.Message{Peer: 1, Data: []byte{1}}
		for i := range maxInFlight + 10 {
			want := rapidio.Pending
			if i >= maxInFlight {
				want = rapidio.Retry
			}
			if st := p.Message(uint32(i), m); st != want {
				t.Fatalf("message %d: %v, want %v", i, st, want)
			}
		}
		time.Sleep(3 * time.Second)
		if st := p.Message(0, m); st != rapidio.Pending {
			t.Errorf("message after the others arrived: %v, want pending", st)
		}
		p.Detach()
		time.Sleep(3 * time.Second)
	})
}
