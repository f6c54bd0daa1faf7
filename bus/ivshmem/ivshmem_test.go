package ivshmem

import (
	"encoding/binary"
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
)

var (
	_ bus.Platform = (*Device)(nil)
	_ bus.Copier   = (*memory)(nil)
	_ bus.Holder   = (*memory)(nil)
)

const ownID, vectors, memSize = 7, 3, 64 << 10

// server is the other end of the protocol.
type server struct {
	t    testing.TB
	fd   int
	file *os.File // the memory
	own  []int    // eventfds
	zero []int    // of peer 0
}

// pair is a server and the connection of its client.
func pair(t testing.TB) (*server, *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fds[0]), "client")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, fd: fds[1]}
	s.file = memfd(t, memSize, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW)
	s.own, s.zero = eventfds(t, vectors), eventfds(t, 1)
	t.Cleanup(func() {
		s.close()
		c.Close()
		s.file.Close()
		for _, fd := range append(s.own, s.zero...) {
			unix.Close(fd)
		}
	})
	return s, c.(*net.UnixConn)
}

func (s *server) close() {
	if s.fd >= 0 {
		unix.Close(s.fd)
		s.fd = -1
	}
}

func memfd(t testing.TB, size int64, seals int) *os.File {
	t.Helper()
	fd, err := unix.MemfdCreate("memory", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "memory")
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		t.Fatal(err)
	}
	return f
}

func eventfds(t testing.TB, n int) (fds []int) {
	t.Helper()
	for range n {
		fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		fds = append(fds, fd)
	}
	return fds
}

// send sends a message, in pieces of n bytes, whose first carries the descriptors.
func (s *server) send(v int64, n int, fds ...int) {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], uint64(v))
	for p := b[:]; len(p) > 0; p = p[min(n, len(p)):] {
		var oob []byte
		if len(fds) > 0 {
			oob = unix.UnixRights(fds...)
		}
		// The client may have gone.
		_ = unix.Sendmsg(s.fd, p[:min(n, len(p))], oob, nil, unix.MSG_NOSIGNAL)
		fds = nil
	}
}

// greet sends what a server sends first.
func (s *server) greet(piece int) {
	s.send(0, piece)
	s.send(ownID, piece)
	s.send(-1, piece, int(s.file.Fd()))
	for _, fd := range s.zero {
		s.send(0, piece, fd)
	}
	for _, fd := range s.own {
		s.send(ownID, piece, fd)
	}
}

func open(t testing.TB) (*server, *Device) {
	t.Helper()
	s, c := pair(t)
	s.greet(8)
	d, err := Open(t.Context(), c, Options{Vectors: vectors, Backend: "fabric"})
	if err != nil {
		t.Fatal(err)
	}
	return s, d
}

func signal(fd int) { _, _ = unix.Write(fd, one[:]) }

// fired is how often an eventfd was signalled since.
func fired(fd int) uint64 {
	var b [8]byte
	if _, err := unix.Read(fd, b[:]); err != nil {
		return 0
	}
	return binary.NativeEndian.Uint64(b[:])
}

func TestConform(t *testing.T) {
	bustest.All(t, func(t *testing.T) bustest.Subject {
		s, d := open(t)
		return bustest.Subject{
			Device:  d,
			Scratch: &bustest.Scratch{Region: 0, Off: regIntrMask, Reads: func(v uint32) uint32 { return v }},
			Raise:   func() { signal(s.own[0]) },
			Lower:   func() {},
			Kill:    s.close,
		}
	})
	t.Run("Memory", func(t *testing.T) {
		bustest.NoLeaks(t)
		_, d := open(t)
		r, err := d.Region(1)
		if err != nil {
			t.Fatal(err)
		}
		bustest.Memory(t, r)
		if err := d.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
	})
}

func TestDevice(t *testing.T) {
	bustest.NoLeaks(t)
	s, c := pair(t)
	s.greet(3) // in pieces, as a stream may give them
	d, err := Open(t.Context(), c, Options{Vectors: vectors})
	if err != nil {
		t.Fatal(err)
	}
	if d.Peer() != ownID || d.Address() != "IVSHMEM:0007" || d.Backend() != "ivshmem" || d.IRQVectors(bus.MSIX) != vectors || d.IRQVectors(bus.INTx) != 0 {
		t.Errorf("Peer, Address, Backend, IRQVectors = %d, %s, %s, %d", d.Peer(), d.Address(), d.Backend(), d.IRQVectors(bus.MSIX))
	}
	regs, _ := d.Region(0)
	mem, _ := d.Region(1)
	if id := regs.Read32(regIVPosition); id != ownID || regs.Read16(regIVPosition) != ownID || regs.Read8(regIVPosition+1) != 0 || regs.Read64(regIVPosition) != ownID {
		t.Errorf("IVPosition = %#x, want %#x in every width", id, ownID)
	}
	// The memory is the server's.
	mem.Write32(0x100, 0x11223344)
	var b [4]byte
	if _, err := s.file.ReadAt(b[:], 0x100); err != nil || binary.LittleEndian.Uint32(b[:]) != 0x11223344 {
		t.Errorf("the server reads % x (%v), want what was written", b, err)
	}
	regs.Write32(regDoorbell, 0)   // peer 0, vector 0
	regs.Write64(regIVPosition, 0) // the upper half is a doorbell: peer 0, vector 0
	if n := fired(s.zero[0]); n != 2 {
		t.Errorf("peer 0 was signalled %d times, want 2", n)
	}
	for _, v := range []uint32{1, 1 << 16, 0xffffffff} {
		regs.Write32(regDoorbell, v) // nobody there
	}
	irqs, err := d.EnableIRQs(bus.MSIX, vectors)
	if err != nil {
		t.Fatal(err)
	}
	for i, fd := range s.own {
		signal(fd)
		if n, err := irqs[i].Wait(t.Context()); n != 1 || err != nil {
			t.Errorf("vector %d: Wait = %d, %v", i, n, err)
		}
	}
	peers(t, s, d, regs)
	if err := d.Close(); err != nil {
		t.Errorf("Close = %v", err)
	}
}

// peers come and go.
func peers(t *testing.T, s *server, d *Device, regs bus.Region) {
	t.Helper()
	other := eventfds(t, 2)
	defer unix.Close(other[0])
	defer unix.Close(other[1])
	known := func(n int) bool {
		d.bells.RLock()
		defer d.bells.RUnlock()
		return len(d.peers[9]) == n
	}
	s.send(9, 8, other[0])
	s.send(9, 8, other[1])
	await(t, "a peer", func() bool { return known(2) })
	regs.Write32(regDoorbell, 9<<16|1)
	if fired(other[0]) != 0 || fired(other[1]) != 1 {
		t.Error("vector 1 of a peer that came was not signalled, or another was")
	}
	s.send(9, 8)
	await(t, "a peer that left", func() bool { return known(0) })
	if regs.Write32(regDoorbell, 9<<16|1); fired(other[1]) != 0 {
		t.Error("a peer that left was signalled")
	}
}

func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited 10 s for %s", what)
		}
	}
}

// Memory that is held outlives the device.
func TestHold(t *testing.T) {
	bustest.NoLeaks(t)
	s, d := open(t)
	mem, _ := d.Region(1)
	b, release := bus.Hold(mem)
	c, again := bus.Hold(mem)
	if len(b) != memSize || &b[0] != &c[0] {
		t.Fatalf("Hold = %d bytes, want the %d of the region, twice the same", len(b), memSize)
	}
	again()
	s.close()
	<-d.Done()
	if x, _ := bus.Hold(mem); x != nil || mem.Read32(0) != 0xffffffff {
		t.Error("the memory of a dead device can be held, or read")
	}
	b[5] = 1
	if err := d.Close(); err != nil {
		t.Errorf("Close = %v", err)
	}
	if b[5]++; b[5] != 2 {
		t.Error("memory that is held changed")
	}
	release()
	release()
	if d.mem.b != nil {
		t.Error("memory that nobody holds is still mapped")
	}
}

func TestServerGoes(t *testing.T) {
	bustest.NoLeaks(t)
	s, d := open(t)
	s.close()
	<-d.Done()
	if err := d.Err(); !errors.Is(err, bus.ErrGone) || !strings.Contains(err.Error(), "the server closed the connection") {
		t.Errorf("Err = %v, want it gone, and why", err)
	}
	if err := d.Close(); err != nil {
		t.Errorf("Close = %v", err)
	}
}
