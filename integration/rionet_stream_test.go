package integration

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// stream is a TCP connection between two nodes that carries numbers, one after the other, for as long as the test wants.
type stream struct {
	from, to *node
	stop     chan struct{}
	out      *net.TCPConn
	finish   func()        // ends both sides
	sent     atomic.Uint64 // numbers
	got      atomic.Uint64
	running  sync.WaitGroup

	mu   sync.Mutex // guards what follows
	errs []error
	gap  time.Duration // the longest time without a number
}

// One number in 8 bytes, a block of them in a write, and a pause: a few MiB/s, which leaves the machine to others.
const (
	streamBlock = 32 << 10
	streamPause = 2 * time.Millisecond
	// streamWait is how long nothing may arrive: a retransmission of TCP's may wait for that long on a machine that does much else.
	streamWait = 30 * time.Second
)

func startStream(t *testing.T, from, to *node) *stream {
	t.Helper()
	s := &stream{from: from, to: to, stop: make(chan struct{})}
	var l net.Listener
	var err error
	to.space.Do(func() { l, err = net.Listen("tcp", to.ip+":0") })
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var out net.Conn
	from.space.Do(func() {
		out, err = (&net.Dialer{Timeout: streamWait, FallbackDelay: -1}).Dial("tcp", l.Addr().String())
	})
	if err != nil {
		t.Fatalf("TCP from %s to %s: %v", from.name, to.name, err)
	}
	in, err := l.Accept()
	if err != nil {
		out.Close()
		t.Fatal(err)
	}
	s.out = out.(*net.TCPConn)
	s.running.Go(func() { s.note(s.send(s.out)) })
	s.running.Go(func() { s.note(s.receive(in)) })
	s.finish = sync.OnceFunc(func() {
		close(s.stop)
		s.running.Wait()
		out.Close()
		in.Close()
	})
	t.Cleanup(s.finish)
	return s
}

func (s *stream) note(err error) {
	if err == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.errs = append(s.errs, err)
}

func (s *stream) failed() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return errors.Join(s.errs...)
}

func (s *stream) send(c *net.TCPConn) error {
	b := make([]byte, streamBlock)
	for n := uint64(0); ; {
		select {
		case <-s.stop:
			return c.CloseWrite()
		case <-time.After(streamPause):
		}
		for i := 0; i < len(b); i += 8 {
			binary.LittleEndian.PutUint64(b[i:], n)
			n++
		}
		if err := c.SetWriteDeadline(time.Now().Add(streamWait)); err != nil {
			return err
		}
		if _, err := c.Write(b); err != nil {
			return fmt.Errorf("sending: %w", err)
		}
		s.sent.Store(n)
	}
}

func (s *stream) receive(c net.Conn) error {
	r := bufio.NewReaderSize(c, streamBlock)
	var b [8]byte
	last := time.Now()
	for n := uint64(0); ; n++ {
		if r.Buffered() < len(b) {
			if err := c.SetReadDeadline(time.Now().Add(streamWait)); err != nil {
				return err
			}
		}
		_, err := io.ReadFull(r, b[:])
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("receiving: %w", err)
		}
		if got := binary.LittleEndian.Uint64(b[:]); got != n {
			return fmt.Errorf("received %#x, want %#x", got, n)
		}
		s.got.Store(n + 1)
		if n%(streamBlock/8) == 0 {
			now := time.Now()
			s.mu.Lock()
			s.gap = max(s.gap, now.Sub(last))
			s.mu.Unlock()
			last = now
		}
	}
}

// moves waits until what was not sent yet has arrived.
func (s *stream) moves(t *testing.T) {
	t.Helper()
	from := s.sent.Load()
	eventually(t, fmt.Sprintf("the connection from %s to %s", s.from.name, s.to.name), func() bool {
		if err := s.failed(); err != nil {
			t.Fatalf("the connection from %s to %s: %v", s.from.name, s.to.name, err)
		}
		return s.got.Load() > from+streamBlock
	})
}

// again is how many segments TCP has sent again: what it thought was lost.
func (s *stream) again() (n uint32) {
	rc, err := s.out.SyscallConn()
	if err == nil {
		err = rc.Control(func(fd uintptr) {
			if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
				n = info.Total_retrans
			}
		})
	}
	s.note(err)
	return n
}

// end ends the connection, and wants that all has arrived.
func (s *stream) end(t *testing.T) {
	t.Helper()
	again := s.again()
	s.finish()
	if err := s.failed(); err != nil {
		t.Errorf("the connection from %s to %s: %v", s.from.name, s.to.name, err)
	}
	if sent, got := s.sent.Load(), s.got.Load(); sent != got {
		t.Errorf("%d numbers were sent from %s to %s, %d received", sent, s.from.name, s.to.name, got)
	}
	t.Logf("%d MiB from %s to %s, %d segments sent again, at most %v without any", s.got.Load()*8>>20, s.from.name, s.to.name, again, s.gap.Round(time.Millisecond))
}
