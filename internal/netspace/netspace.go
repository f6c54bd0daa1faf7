// Package netspace gives tests and measurements network namespaces of their own, in which
// they make interfaces, and sends data between them.
//
// A [Space] is a thread in its own namespace. What a function that it runs opens, listens on
// or starts belongs to that namespace for good; what other goroutines do stays outside. It
// takes CAP_SYS_ADMIN: root's, or a user's in a user namespace (unshare -Ur).
package netspace

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/internal/osthread"
)

// Space is a network namespace. Do is safe for concurrent use.
type Space struct {
	fd   int
	work chan func()
	gone chan struct{}
}

// New makes a namespace, with nothing in it but a loopback interface that is down.
func New() (*Space, error) {
	s := &Space{work: make(chan func()), gone: make(chan struct{})}
	opened := make(chan error)
	osthread.Go(func() { s.run(opened) })
	if err := <-opened; err != nil {
		return nil, fmt.Errorf("making a network namespace (needs root, or unshare -Urn): %w", err)
	}
	return s, nil
}

// run has a thread of its own, which ends with it.
func (s *Space) run(opened chan<- error) {
	defer close(s.gone)
	err := unix.Unshare(unix.CLONE_NEWNET)
	if err == nil {
		s.fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	}
	opened <- err
	if err != nil {
		return
	}
	defer unix.Close(s.fd)
	for f := range s.work {
		f()
	}
}

// FD names the namespace to the kernel, until Close.
func (s *Space) FD() int { return s.fd }

// Do runs f in the namespace and waits for it. A goroutine that f starts runs outside. An f
// that ends its goroutine (a test's Fatal) ends the thread with it, and Do does nothing from then on.
func (s *Space) Do(f func()) {
	done := make(chan struct{})
	select {
	case s.work <- func() { defer close(done); f() }:
		<-done
	case <-s.gone:
	}
}

// Close leaves the namespace, which ends with what else holds it. No Do may run.
func (s *Space) Close() {
	close(s.work)
	<-s.gone
}

// patience bounds a transfer that makes no progress.
const patience = 30 * time.Second

// Send sends n bytes over TCP from one namespace to addr in another ("10.0.0.2:0"), and
// compares what arrived by its checksum. Where one of
// them is nil, that is the caller's. It returns how long that took.
func Send(from, to *Space, addr string, n int64) (time.Duration, error) {
	var l net.Listener
	var err error
	in(to, func() { l, err = net.Listen("tcp", addr) })
	if err != nil {
		return 0, err
	}
	defer l.Close()
	type result struct {
		n   int64
		sum [sha256.Size]byte
		err error
	}
	got := make(chan result, 1)
	go func() {
		var r result
		r.n, r.sum, r.err = receive(l)
		got <- r
	}()
	start := time.Now()
	var c net.Conn
	in(from, func() {
		c, err = (&net.Dialer{Timeout: patience, FallbackDelay: -1}).Dial("tcp", l.Addr().String())
	})
	if err != nil {
		l.Close()
		<-got
		return 0, err
	}
	sum, err := send(c, n)
	err = errors.Join(err, c.Close())
	if err != nil {
		l.Close()
	}
	r := <-got
	took := time.Since(start)
	switch err = errors.Join(err, r.err); {
	case err != nil:
	case r.n != n:
		err = fmt.Errorf("sent %d bytes to %s, received %d", n, l.Addr(), r.n)
	case r.sum != sum:
		err = fmt.Errorf("sent %d bytes to %s, received others", n, l.Addr())
	}
	return took, err
}

// in runs f in a namespace, or here.
func in(s *Space, f func()) {
	if s == nil {
		f()
		return
	}
	s.Do(f)
}

// receive takes one connection to its end.
func receive(l net.Listener) (n int64, sum [sha256.Size]byte, err error) {
	c, err := l.Accept()
	if err != nil {
		return 0, sum, err
	}
	defer c.Close()
	h := sha256.New()
	n, err = io.CopyBuffer(h, impatient{c}, make([]byte, 256<<10))
	if err == nil {
		_, err = c.Write([]byte{1}) // all has arrived
	}
	return n, [sha256.Size]byte(h.Sum(nil)), err
}

// send sends n bytes and waits for the answer.
func send(c net.Conn, n int64) (sum [sha256.Size]byte, err error) {
	h := sha256.New()
	block := make([]byte, 256<<10)
	for i := range block {
		block[i] = byte(i * i >> 3)
	}
	for left, turn := n, byte(0); left > 0; turn++ {
		b := block[:min(left, int64(len(block)))]
		b[0] = turn
		h.Write(b)
		if _, err := (impatient{c}).Write(b); err != nil {
			return sum, err
		}
		left -= int64(len(b))
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return sum, err
	}
	if _, err := (impatient{c}).Read(block[:1]); err != nil {
		return sum, fmt.Errorf("waiting for the far end: %w", err)
	}
	return [sha256.Size]byte(h.Sum(nil)), nil
}

// impatient is a connection on which nothing takes longer than patience.
type impatient struct{ net.Conn }

func (c impatient) Read(b []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return 0, err
	}
	return c.Conn.Read(b)
}

func (c impatient) Write(b []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(patience)); err != nil {
		return 0, err
	}
	return c.Conn.Write(b)
}
