package mport

import (
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/rionet/rapidio"
	"github.com/ring3dev/ring3/rionet/shm"
)

// rogue is a daemon that makes a node begin anew, and then does as it likes.
type rogue struct {
	d    *shm.Daemon
	mem  []byte
	conn *net.UnixConn // the node's end
	fd   int           // its own end
	vecs []int
	kick int
}

func newRogue(t testing.TB) *rogue {
	t.Helper()
	p, err := shm.NewPlan(shm.Layout{Tx: 16, Mbox: 16, Events: 16}, rapidio.Small, []shm.Member{{Peer: 1, Name: "pe0"}}, nil)
	must(t, err)
	r := &rogue{}
	memfd, err := unix.MemfdCreate("rogue", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	must(t, err)
	defer unix.Close(memfd)
	must(t, unix.Ftruncate(memfd, int64(p.Size())))
	_, err = unix.FcntlInt(uintptr(memfd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK)
	must(t, err)
	r.mem, err = unix.Mmap(memfd, 0, p.Size(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	ds, err := p.Format(r.mem)
	must(t, err)
	r.d = ds[0]
	for range 1 + shm.NumVectors {
		fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
		must(t, err)
		r.vecs = append(r.vecs, fd)
	}
	r.kick, r.vecs = r.vecs[0], r.vecs[1:]
	r.connect(t, memfd)
	t.Cleanup(func() {
		r.hangUp()
		for _, fd := range append(r.vecs, r.kick) {
			unix.Close(fd)
		}
		_ = unix.Munmap(r.mem)
	})
	return r
}

// connect does the ivshmem server's part.
func (r *rogue) connect(t testing.TB, memfd int) {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	f := os.NewFile(uintptr(pair[0]), "node")
	defer f.Close()
	c, err := net.FileConn(f)
	must(t, err)
	r.conn, r.fd = c.(*net.UnixConn), pair[1]
	send := func(v int64, fds ...int) {
		var b [8]byte
		binary.LittleEndian.PutUint64(b[:], uint64(v))
		var oob []byte
		if len(fds) > 0 {
			oob = unix.UnixRights(fds...)
		}
		must(t, unix.Sendmsg(r.fd, b[:], oob, nil, 0))
	}
	send(0)
	send(1)
	send(-1, memfd)
	send(0, r.kick)
	for _, fd := range r.vecs {
		send(1, fd)
	}
}

func (r *rogue) hangUp() {
	if r.fd >= 0 {
		unix.Close(r.fd)
		r.fd = -1
	}
}

func (r *rogue) signal(vectors uint32) {
	one := [8]byte{0: 1}
	for i, fd := range r.vecs {
		if vectors>>i&1 != 0 {
			_, _ = unix.Write(fd, one[:])
		}
	}
}

// port joins, with the rogue on its best behaviour.
func (r *rogue) port(t testing.TB, options map[string]string) *Port {
	t.Helper()
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			var h shm.Header
			if _, ok := r.d.NextTx(&h); ok && h.Kind == shm.KindReset {
				r.d.Reset()
			}
			select {
			case <-stop:
				return
			case <-time.After(100 * time.Microsecond):
			}
		}
	}()
	p := bind(t, opened(t, r.conn), options)
	close(stop)
	<-ended
	return p
}

// A daemon that answers nothing: everything ends after the time-out, and says so.
func TestNoAnswer(t *testing.T) {
	bustest.NoLeaks(t)
	r := newRogue(t)
	p := r.port(t, map[string]string{"timeout": "20ms"})
	out, err := p.OpenOutbox(0, 4)
	must(t, err)
	if n := out.Add([]rapidio.Message{{Peer: 1, Data: []byte{1}}, {Peer: 2, Data: []byte{2}}}); n != 2 {
		t.Errorf("Add = %d, want 2", n)
	}
	statuses(t, "from a daemon that does not answer", results(t, out, 2), rapidio.Error, rapidio.Error)
	_, err = p.LocalRead(t.Context(), 0, 4)
	wantErr(t, "LocalRead", err, rapidio.ErrNoReply)
	wantErr(t, "Doorbell", p.Doorbell(t.Context(), 1, 1), rapidio.ErrNoReply)
	_, err = p.OpenInbox(0, 4)
	wantErr(t, "OpenInbox", err, rapidio.ErrNoReply)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(5*time.Millisecond, cancel)
	_, err = p.LocalRead(ctx, 0, 4)
	if !errors.Is(err, context.Canceled) && !errors.Is(err, rapidio.ErrNoReply) {
		t.Errorf("LocalRead with a ctx that ends = %v", err)
	}
	// The ring is full, and stays so.
	for err = nil; err == nil; err = p.PortWrite(t.Context(), 1, make([]byte, 4)) {
	}
	wantErr(t, "PortWrite with no room", err, bus.ErrTimeout)
	// Answers that come too late, or were never asked for, are nobody's.
	var h shm.Header
	for _, ok := r.d.NextTx(&h); ok; _, ok = r.d.NextTx(&h) {
		r.d.PutResult(h.Tag, rapidio.Done)
		r.d.PutResponse(h.Tag, 5, rapidio.Done)
		r.d.PutResult(h.Tag+1<<20, rapidio.Done)
		r.d.PutResponse(^h.Tag, 5, rapidio.Done)
	}
	r.d.ReleaseTx()
	r.signal(r.d.Flush() | 1<<shm.VecAnswers)
	if n := out.Add([]rapidio.Message{{Peer: 1, Data: []byte{1}}}); n != 1 {
		t.Errorf("Add after late answers = %d, want 1", n)
	}
	if n := out.Results(make([]rapidio.Status, 1)); n != 0 {
		t.Errorf("Results after late answers = %d, want 0: it was not answered", n)
	}
}

// Answers come faster than they are taken, then no more, and drain has left the ring without asking for a signal: whoever sleeps until one
// comes is signalled all the same. The goroutine of the events cannot see to that: it waits for an answer itself.
func TestAnswersWithoutEnd(t *testing.T) {
	bustest.NoLeaks(t)
	r := newRogue(t)
	p := r.port(t, nil)
	in, out := make(chan struct{}), make(chan struct{})
	p.Start(&recorder{bell: func(rapidio.DestID, uint16) { close(in); <-out }})
	r.d.PutDoorbell(1, 1)
	r.signal(r.d.Flush())
	<-in
	defer close(out)
	p.rest(1)
	defer p.rest(-1)
	p.ansMu.Lock()
	p.node.Answers.Disarm()
	p.notArmed()
	p.ansMu.Unlock()
	eventually(t, "the port asks for a signal", func() bool {
		r.d.PutResult(1, rapidio.Done)
		v := r.d.Flush()
		r.signal(v)
		return v>>shm.VecAnswers&1 != 0
	})
}

// A message that waited too long is no reason to give up one that was just sent.
func TestOneExpires(t *testing.T) {
	bustest.NoLeaks(t)
	r := newRogue(t)
	p := r.port(t, map[string]string{"timeout": "10m"})
	box, err := p.OpenOutbox(0, 4)
	must(t, err)
	if n := box.Add([]rapidio.Message{{Peer: 1, Data: []byte{1}}, {Peer: 1, Data: []byte{2}}}); n != 2 {
		t.Fatalf("Add = %d, want 2", n)
	}
	out := box.(*outbox)
	out.when[out.taken&3] = time.Now().Add(-time.Hour)
	st := make([]rapidio.Status, 4)
	if n := box.Results(st); n != 1 || st[0] != rapidio.Error {
		t.Errorf("Results after one of two waited too long = %d, %v, want 1, an error", n, st[:n])
	}
}

// scribbleTime is how long a daemon scribbles.
func scribbleTime() time.Duration {
	if testing.Short() {
		return time.Second
	}
	return 10 * time.Second
}

// A daemon, or whoever shares the memory, scribbles over it: the port works, fails or is gone, and nothing else.
func TestScribbled(t *testing.T) {
	bustest.NoLeaks(t)
	gone, alive := 0, 0
	for end, seed := time.Now().Add(scribbleTime()), uint64(1); time.Now().Before(end); seed++ {
		w := ways[seed%2]
		if scribbled(t, w, seed) {
			gone++
		} else {
			alive++
		}
	}
	t.Logf("%d ports were gone after it, %d were not", gone, alive)
	if gone == 0 {
		t.Error("no port noticed")
	}
}

func scribbled(t *testing.T, w way, seed uint64) (gone bool) {
	r := newRogue(t)
	defer r.hangUp()
	var d bus.Device
	p := func() *Port {
		stop := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() { r.behave(stop) })
		defer wg.Wait()
		defer close(stop)
		d = w.wrap(opened(t, r.conn))
		p := bind(t, d, map[string]string{"timeout": "10ms"})
		p.Start(&recorder{})
		return p
	}()
	stop := make(chan struct{})
	var daemon, users sync.WaitGroup
	daemon.Go(func() { r.scribble(seed, stop) })
	for _, use := range []func(*Port, <-chan struct{}){useCalls, useOut, useIn} {
		users.Go(func() { use(p, stop) })
	}
	select {
	case <-p.Done():
		gone = true
	case <-time.After(100 * time.Millisecond):
	}
	close(stop)
	daemon.Wait()
	ended := make(chan struct{})
	go func() { users.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(patience):
		buf := make([]byte, 1<<20)
		t.Fatalf("a user of the port hangs\n%s", buf[:runtime.Stack(buf, true)])
	}
	if gone {
		wantErr(t, "Err", p.Err(), bus.ErrGone)
	}
	must(t, errors.Join(p.Close(), d.Close()))
	return gone
}

// behave answers all with Done.
func (r *rogue) behave(stop <-chan struct{}) {
	for {
		var h shm.Header
		_, ok := r.d.NextTx(&h)
		switch {
		case ok && h.Kind == shm.KindReset:
			r.d.Reset()
		case ok && h.Kind == shm.KindMailbox:
			r.d.SetMailbox(int(h.Mbox&3), int(h.Value))
			r.d.PutResponse(h.Tag, 0, rapidio.Done)
		case ok && (h.Kind == shm.KindMessage || h.Kind == shm.KindDoorbell):
			r.d.PutResult(h.Tag, rapidio.Done)
		case ok:
			r.d.PutResponse(h.Tag, 1, rapidio.Done)
		}
		r.d.ReleaseTx()
		r.signal(r.d.Flush())
		select {
		case <-stop:
			return
		default:
			runtime.Gosched()
		}
	}
}

// scribble answers, sends, and writes nonsense.
func (r *rogue) scribble(seed uint64, stop chan struct{}) {
	rnd := rand.New(rand.NewPCG(seed, 1))
	data := make([]byte, rapidio.MaxMessage)
	once := make(chan struct{})
	close(once)
	for {
		select {
		case <-stop:
			return
		default:
		}
		for range rnd.IntN(8) {
			r.behave(once)
		}
		r.d.PutMessage(uint8(rnd.IntN(4)), 1, data[:1+rnd.IntN(len(data))])
		r.d.PutDoorbell(1, 2)
		r.d.PutPortWrite(data[:rnd.IntN(65)])
		r.signal(r.d.Flush() | rnd.Uint32()&rnd.Uint32()&rnd.Uint32())
		if rnd.IntN(4) != 0 {
			continue
		}
		for range rnd.IntN(20) {
			at := rnd.IntN(len(r.mem)-4) &^ 3
			if rnd.IntN(4) != 0 {
				at = at&^4095 + rnd.IntN(1024)&^3
			}
			binary.LittleEndian.PutUint32(r.mem[at:], [...]uint32{rnd.Uint32(), uint32(rnd.IntN(20)), binary.LittleEndian.Uint32(r.mem[at:]) + 1}[rnd.IntN(3)])
		}
	}
}

func over(p *Port, stop <-chan struct{}) bool {
	select {
	case <-stop:
		return true
	default:
		return p.Err() != nil
	}
}

// until is a context that ends with stop.
func until(stop <-chan struct{}) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		select {
		case <-stop:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

func useCalls(p *Port, stop <-chan struct{}) {
	for !over(p, stop) {
		_, _ = p.LocalRead(context.Background(), 0, 4)
		_ = p.Doorbell(context.Background(), 1, 2)
		_ = p.PortWrite(context.Background(), 1, make([]byte, 8))
	}
}

func useOut(p *Port, stop <-chan struct{}) {
	out, err := p.OpenOutbox(1, 8)
	if err != nil {
		return
	}
	st := make([]rapidio.Status, 8)
	msgs := []rapidio.Message{{Peer: 1, Data: make([]byte, 4096)}, {Peer: 2, Mbox: 3, Data: make([]byte, 7)}}
	ctx, cancel := until(stop) // room may never come
	defer cancel()
	for !over(p, stop) {
		out.Add(msgs)
		out.Results(st)
		_ = out.Wait(ctx)
	}
	_ = out.Close()
}

func useIn(p *Port, stop <-chan struct{}) {
	ctx, cancel := until(stop)
	defer cancel()
	for !over(p, stop) {
		in, err := p.OpenInbox(1, 8)
		if err != nil {
			continue
		}
		for i := 0; i < 50 && !over(p, stop); i++ {
			msgs := rooms(4, 100)
			in.Get(msgs)
			in.Free()
			_ = in.Wait(ctx)
		}
		_ = in.Close()
	}
}
