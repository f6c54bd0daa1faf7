package tap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/internal/netspace"
	"github.com/ring3dev/ring3/netdev"
)

// newSpace makes another network namespace, for as long as the test runs.
func newSpace(t testing.TB) *netspace.Space {
	t.Helper()
	s, err := netspace.New()
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(s.Close)
	return s
}

// link finds an interface of the thread's namespace.
func link(t testing.TB, name string) netlink.Link {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatalf("interface %s: %v", name, err)
	}
	return l
}

// waitFor waits until ok.
func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after 20s: no %s", what)
		}
	}
}

// up gives an interface of the thread's namespace an address and brings it up.
func up(t testing.TB, name, addr string) {
	t.Helper()
	a, err := netlink.ParseAddr(addr)
	if err != nil {
		t.Fatal(err)
	}
	if a.IP.To4() == nil {
		a.Flags = unix.IFA_F_NODAD
	}
	l := link(t, name)
	if err := errors.Join(netlink.AddrAdd(l, a), netlink.LinkSetUp(l)); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// twoSides bridges two devices (c.Tx is of the first): x0 here, x1 in another namespace, 10.1.0.1 and .2, fd00:1::1 and ::2.
func twoSides(t testing.TB, a, b netdev.Device, c Config) (ba, bb *Bridge, there *netspace.Space) {
	t.Helper()
	there = newSpace(t)
	c.Name = "x0"
	ba = attachT(t, a, c)
	c.Name, c.Tx = "x1", nil
	bb = attachT(t, b, c)
	if err := netlink.LinkSetNsFd(link(t, "x1"), there.FD()); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"1", "2"} {
		f := func() {
			up(t, "x"+string(n[0]-1), "10.1.0."+n+"/24")
			up(t, "x"+string(n[0]-1), "fd00:1::"+n+"/64")
		}
		if n == "1" {
			f()
		} else {
			there.Do(f)
		}
	}
	return ba, bb, there
}

// transfer sends n bytes over TCP to the other namespace, and compares.
func transfer(t testing.TB, there *netspace.Space, addr string, n int64) {
	t.Helper()
	if _, err := netspace.Send(nil, there, addr, n); err != nil {
		t.Error(err)
	}
}

// echo sends datagrams there and back.
func echo(t testing.TB, there *netspace.Space, addr string, sizes ...int) {
	t.Helper()
	at, stop, err := netspace.Echo(there, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	c, err := net.Dial("udp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	b := make([]byte, 65536)
	for _, n := range sizes {
		want := pattern(n, n)
		for try := 0; ; try++ {
			if _, err := c.Write(want); err != nil && try == 20 {
				t.Fatalf("%d bytes to %s: %v", n, addr, err)
			}
			_ = c.SetReadDeadline(time.Now().Add(time.Second))
			k, err := c.Read(b)
			if err == nil && bytes.Equal(b[:k], want) {
				break
			}
			if try == 20 {
				t.Fatalf("%d bytes to %s and back: %d bytes, %v", n, addr, k, err)
			}
		}
	}
}

func TestTraffic(t *testing.T) {
	needTap(t)
	for _, queues := range []int{1, 2} {
		for _, c := range []Config{{}, {NoOffload: true}, {NoGRO: true}} {
			t.Run(fmt.Sprintf("queues=%d offload=%t gro=%t", queues, !c.NoOffload, !c.NoGRO), func(t *testing.T) {
				bustest.NoLeaks(t)
				x0, x1 := wired(queues)
				b0, b1, there := twoSides(t, x0, x1, c)
				echo(t, there, "10.1.0.2:0", 0, 1, 17, 1000, 1472, 1473, 9000, 60000)
				echo(t, there, "[fd00:1::2]:0", 0, 1, 17, 1000, 1452, 1453, 9000, 60000)
				for range 2 * queues {
					transfer(t, there, "10.1.0.2:0", 4<<20)
					transfer(t, there, "[fd00:1::2]:0", 4<<20)
				}
				s0, s1 := b0.Stats(), b1.Stats()
				t.Logf("x0 %+v\nx1 %+v", s0, s1)
				if s0.TxDropped+s1.TxDropped != 0 || x0.wrong.Load()+x1.wrong.Load() != 0 {
					t.Errorf("dropped %d and %d, wrong %d and %d, want none", s0.TxDropped, s1.TxDropped, x0.wrong.Load(), x1.wrong.Load())
				}
				if (s0.TxGSO > 0) != !c.NoOffload {
					t.Errorf("%d frames to be segmented with offloads %t", s0.TxGSO, !c.NoOffload)
				}
				if joins := !c.NoOffload && !c.NoGRO; (s1.RxJoined > 0) != joins {
					t.Errorf("%d frames were joined, want any: %t", s1.RxJoined, joins)
				}
				for i, q := range b0.tx {
					t.Logf("queue %d sent %d", i, q.frames.Load())
				}
			})
		}
	}
}

// TestFeatures: what is switched off at the device is done by the kernel from then on.
func TestFeatures(t *testing.T) {
	needTap(t)
	bustest.NoLeaks(t)
	x0, x1 := wired(1)
	b0, _, there := twoSides(t, x0, x1, Config{})
	for _, on := range []netdev.Feature{cardFeatures, netdev.TxCsum, 0, netdev.TxTSO4, cardFeatures} {
		if err := x0.SetFeatures(t.Context(), on); err != nil {
			t.Fatal(err)
		}
		want := on &^ netdev.RxCsum
		if on&netdev.TxCsum == 0 {
			want = 0
		}
		waitFor(t, "change of offloads", func() bool { return netdev.Feature(b0.tuned.Load()) == want })
		before := b0.Stats().TxGSO
		transfer(t, there, "10.1.0.2:0", 1<<20)
		if gso := b0.Stats().TxGSO - before; (gso > 0) != (want&netdev.TxTSO4 != 0) {
			t.Errorf("with %s: %d frames to be segmented", on, gso)
		}
	}
	if n := x0.wrong.Load(); n != 0 {
		t.Errorf("%d frames asked for what was off", n)
	}
}

// TestLate: frames that were read before a feature was switched off.
func TestLate(t *testing.T) {
	x := newCard("x0", 1)
	pool, err := x.tx[0].NewPoolOf(4, maxGSO)
	if err != nil {
		t.Fatal(err)
	}
	s := &sender{b: &Bridge{dev: x, ctx: context.Background()}, tx: x.tx[0], pool: pool}
	frames := stream(t, tcp{flow: 1}, 1, 100)
	var got []byte
	x.peer = newCard("x1", 1)
	for _, gso := range []byte{gsoNone, gsoTCP4} {
		s.spare = pool.Get()
		n := copy(s.spare.Mem, append(header(1, gso, 0, 50, 34, 16), frames[0]...))
		f := s.spare.Mem[headerLen:n]
		seg, _ := parse(f)
		f[34+16], f[34+17] = 0, 0
		v := fold(seg.pseudo(f, seg.end-seg.tcp))
		f[34+16], f[34+17] = byte(v>>8), byte(v)
		s.take(n)
	}
	if x.on = 0; !s.send() {
		t.Fatal("send = false")
	}
	if in := x.peer.rx[0].frames; len(in) == 1 {
		got = in[0]
	}
	if !bytes.Equal(got, frames[0]) || s.dropped.Load() != 1 || x.wrong.Load() != 0 {
		t.Errorf("arrived %x, dropped %d, wrong %d, want %x, 1, 0", got, s.dropped.Load(), x.wrong.Load(), frames[0])
	}
	if pool.Free() != pool.Len() {
		t.Errorf("%d buffers were not freed", pool.Len()-pool.Free())
	}
}

// TestFull: a device with a full ring makes the kernel queue, nothing is lost, and a bridge
// can be closed then.
func TestFull(t *testing.T) {
	needTap(t)
	bustest.NoLeaks(t)
	x0, x1 := wired(1)
	b0, _, there := twoSides(t, x0, x1, Config{})
	echo(t, there, "10.1.0.2:0", 100)
	x0.stall.Store(true)
	c, err := net.Dial("udp", "10.1.0.2:9")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	before := b0.Stats().TxFrames
	for range 600 {
		_, _ = c.Write([]byte("x"))
	}
	time.Sleep(20 * time.Millisecond)
	sent := x0.sent.Load()
	if n := b0.Stats().TxFrames - before; n > burst {
		t.Errorf("%d frames were read while the ring was full, want at most %d", n, burst)
	}
	x0.stall.Store(false)
	waitFor(t, "600 frames", func() bool { return x0.sent.Load() >= sent+600 })
	x0.stall.Store(true)
	for range 600 {
		_, _ = c.Write([]byte("x"))
	}
	if err := b0.Close(); err != nil {
		t.Errorf("Close = %v, want nil", err)
	}
}

// TestDown: the kernel takes nothing while the interface is down. Who watches sees the frames all the same.
func TestDown(t *testing.T) {
	needTap(t)
	bustest.NoLeaks(t)
	x, _ := wired(1)
	b := attachT(t, x, Config{Name: "x0"})
	var watched atomic.Int64
	b.Watch(func(frames []*dma.Buf) { watched.Add(int64(len(frames))) })
	for _, f := range stream(t, tcp{flow: 1}, 5, 100) {
		x.rx[0].arrive(f)
	}
	waitFor(t, "5 dropped frames", func() bool { return b.Stats().RxDropped == 5 })
	if b.Watch(nil); watched.Load() != 5 {
		t.Errorf("%d frames watched, want 5", watched.Load())
	}
	if s := b.Stats(); s.RxFrames != 5 || s.RxWrites != 0 {
		t.Errorf("Stats = %+v, want 5 received and none written", s)
	}
}

// TestDeath: the interface is deleted, or the device dies.
func TestDeath(t *testing.T) {
	needTap(t)
	t.Run("interface", func(t *testing.T) {
		bustest.NoLeaks(t)
		x, _ := wired(2)
		log, said := newLog()
		b := attachT(t, x, Config{Name: "x0", Log: log})
		if err := netlink.LinkDel(link(t, "x0")); err != nil {
			t.Fatal(err)
		}
		<-b.Done()
		if err := b.Err(); !errors.Is(err, bus.ErrGone) || err.Error() != "tap x0: the interface was deleted: device gone" {
			t.Errorf("Err = %v, want that the interface was deleted", err)
		}
		if err := b.Close(); err != nil {
			t.Errorf("Close = %v, want nil", err)
		}
		if n := strings.Count(said.String(), "the interface was deleted"); n != 1 {
			t.Errorf("the log says %q, want it once", said)
		}
	})
	t.Run("device", func(t *testing.T) {
		bustest.NoLeaks(t)
		x, _ := wired(2)
		log, said := newLog()
		b := attachT(t, x, Config{Name: "x0", Log: log})
		why := errors.New("pulled out")
		x.die(why)
		<-b.Done()
		if err := b.Err(); !errors.Is(err, why) {
			t.Errorf("Err = %v, want %v", err, why)
		}
		waitFor(t, "interface without carrier", func() bool { return link(t, "x0").Attrs().RawFlags&unix.IFF_LOWER_UP == 0 })
		if err := b.Close(); err != nil || said.Len() > 0 {
			t.Errorf("Close = %v, the log says %q, want nothing", err, said)
		}
		if _, err := netlink.LinkByName("x0"); err == nil {
			t.Error("the interface is still there")
		}
	})
}

func TestClosed(t *testing.T) {
	needTap(t)
	x, _ := wired(1)
	b := attachT(t, x, Config{})
	if b.Name() != "tap0" || b.Device() != netdev.Device(x) {
		t.Errorf("Name, Device = %s, %v, want tap0 and the card", b.Name(), b.Device())
	}
	for range 2 {
		if err := b.Close(); err != nil {
			t.Errorf("Close = %v, want nil", err)
		}
	}
	<-b.Done()
	if !errors.Is(b.Err(), bus.ErrClosed) {
		t.Errorf("Err = %v, want %v", b.Err(), bus.ErrClosed)
	}
}

// TestSenderAllocs: nothing is allocated for a frame that is read and sent.
func TestSenderAllocs(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fds[0]), "tap")
	defer f.Close()
	defer unix.Close(fds[1])
	raw, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	x := newCard("x0", 1)
	b := &Bridge{dev: plain{x}, tap: &Tap{name: "x", queues: []*file{{f, raw}}}, ctx: context.Background()}
	s, err := newSender(b, 0)
	if err != nil {
		t.Fatal(err)
	}
	s.tx = null{s.tx}
	b.tx = []*sender{s}
	frame := append(header(0, 0, 0, 0, 0, 0), stream(t, tcp{flow: 1}, 1, 100)[0]...)
	n := testing.AllocsPerRun(100, func() {
		for range 8 {
			if _, err := unix.Write(fds[1], frame); err != nil {
				t.Fatal(err)
			}
		}
		if !s.room() || s.q.raw.Read(s.some) != nil || b.tune() != nil || !s.send() {
			t.Fatal("sending ended")
		}
	})
	if n != 0 || s.frames.Load() != 8*101 {
		t.Errorf("8 frames allocate %v times, %d frames in all, want 0 and %d", n, s.frames.Load(), 8*101)
	}
}

// null is a transmit queue that swallows.
type null struct{ netdev.TxQueue }

func (null) Burst(bufs []*dma.Buf) int {
	for _, b := range bufs {
		b.Free()
	}
	return len(bufs)
}
