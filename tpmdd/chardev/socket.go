package chardev

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/devfs"
	"github.com/ring3dev/ring3/tpmdd"
)

const (
	maxConns = 128                   // connections at once
	patience = 2 * time.Second       // how long an open that says EBUSY is tried again
	again    = 10 * time.Millisecond // between two tries
	backoff  = 50 * time.Millisecond // after an Accept that failed
)

// Results of the answers that a socket makes itself.
const (
	rcCommandSize = 0x142 // TPM_RC_COMMAND_SIZE
	rcFailure     = 0x101 // TPM_RC_FAILURE
	rc12ParamSize = 25    // TPM_BAD_PARAM_SIZE
	rc12Fail      = 9     // TPM_FAIL
)

// ServeSocket serves a device to the connections of a listener, until that is closed; it returns when
// all that it started has ended, with nil. A nil log discards.
//
// A connection is an open file, opened by its first whole command, so that a peer that has sent none has nothing.
// Commands come one after the other, each as long as its header says, in pieces or several in one write; each is answered,
// whole, in their order. Where open says EBUSY it is tried again for 2 s: some clients make a connection for each command,
// and the one before may still be closing. Then, or after another error of open, the connection is closed.
//
// A connection has no errno. A command that fails is answered with TPM_RC_FAILURE (TPM_FAIL, if it was one of TPM 1.2), the reason
// is logged, and the connection goes on: its next command may work, and a peer that waits for an answer gets one. After
// EPIPE, when the chip is gone, the connection is closed behind that answer. A header that says less than 10 or more than
// 4096 bytes is answered with TPM_RC_COMMAND_SIZE (TPM_BAD_PARAM_SIZE) and the connection closed, as nobody knows where the
// next command would begin.
//
// Each connection has a goroutine, and nothing in common with others but the device. Beyond 128 they are closed at once. When
// the listener is closed, a command that waits for the TPM is given up and one that the TPM has runs to its end.
func ServeSocket(l *net.UnixListener, open func() (devfs.Stream, error), log *slog.Logger) error {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &server{ctx: ctx, open: open, log: log, places: make(chan struct{}, maxConns)}
	defer s.conns.Wait()
	defer cancel()
	for {
		conn, err := l.AcceptUnix()
		switch {
		case errors.Is(err, net.ErrClosed):
			return nil
		case err != nil: // too many descriptors, as a rule
			log.Warn("tpm: accepting a connection", "err", err)
			s.pause(backoff)
			continue
		}
		select {
		case s.places <- struct{}{}:
			s.conns.Go(func() {
				defer func() { <-s.places }()
				s.serve(conn)
			})
		default:
			log.Warn("tpm: connection refused, there are too many", "max", maxConns)
			conn.Close()
		}
	}
}

// server is what the connections of one listener have in common.
type server struct {
	ctx    context.Context // ends with the listener
	open   func() (devfs.Stream, error)
	log    *slog.Logger
	places chan struct{}
	conns  sync.WaitGroup
}

// pause waits, or says false when all ends.
func (s *server) pause(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-s.ctx.Done():
		return false
	}
}

// serve serves one connection to its end.
func (s *server) serve(conn net.Conn) {
	stop := context.AfterFunc(s.ctx, func() { conn.Close() })
	defer conn.Close()
	defer stop()
	var f devfs.Stream
	defer func() {
		if f != nil {
			f.Close()
		}
	}()
	buf := make([]byte, tpmdd.MaxCommand)
	for {
		cmd, err := readCommand(conn, buf)
		if errors.Is(err, bus.ErrProtocol) {
			s.log.Warn("tpm: reading a command", "err", err)
			conn.Write(synthetic(cmd, rcCommandSize, rc12ParamSize))
		}
		if err != nil {
			return // the peer is gone, or all ends
		}
		if f == nil {
			if f, err = s.openPatiently(); err != nil {
				s.log.Warn("tpm: opening for a connection", "err", err)
				return
			}
		}
		rsp, err := exchange(s.ctx, f, cmd)
		if err != nil {
			s.log.Warn("tpm: a command from a connection", "err", err)
			rsp = synthetic(cmd, rcFailure, rc12Fail)
		}
		if _, werr := conn.Write(rsp); werr != nil || errors.Is(err, unix.EPIPE) {
			return
		}
	}
}

// openPatiently opens the device, and waits a while where somebody else has it.
func (s *server) openPatiently() (devfs.Stream, error) {
	for end := time.Now().Add(patience); ; {
		f, err := s.open()
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(end) || !s.pause(again) {
			return nil, err
		}
	}
}

// readCommand reads one command into buf. With bus.ErrProtocol it gives the bytes that it was told by.
func readCommand(r io.Reader, buf []byte) ([]byte, error) {
	if _, err := io.ReadFull(r, buf[:minWrite]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(buf[2:])
	if n < tpmdd.HeaderSize || n > uint32(len(buf)) {
		return buf[:minWrite], fmt.Errorf("a header says %d bytes: %w", n, bus.ErrProtocol)
	}
	_, err := io.ReadFull(r, buf[minWrite:n])
	return buf[:n], err
}

// exchange has a command executed.
func exchange(ctx context.Context, f devfs.Stream, cmd []byte) ([]byte, error) {
	if _, err := f.Write(ctx, cmd, 0); err != nil {
		return nil, err
	}
	rsp := make([]byte, tpmdd.MaxCommand)
	n, err := f.Read(ctx, rsp, 0)
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, fmt.Errorf("tpm: no answer: %w: %w", unix.EIO, bus.ErrProtocol)
	}
	return rsp[:n], nil
}

// synthetic answers in the language that a command is in.
func synthetic(cmd []byte, rc, rc12 uint32) []byte {
	if tag := binary.BigEndian.Uint16(cmd); tag == tpmdd.TagNoSessions || tag == tpmdd.TagSessions {
		return tpmdd.Answer(tpmdd.TagNoSessions, rc)
	}
	return tpmdd.Answer(tpmdd.TagResponse12, rc12)
}
