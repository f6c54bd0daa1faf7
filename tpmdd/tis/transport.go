package tis

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/tpmdd"
)

// Bounds of this driver's own.
const (
	startTime = 750 * time.Millisecond // for the registers to become valid, before there are timeouts
	retries   = 50                     // of a command that was not taken, and of an answer with bytes left over
)

// transport is locality 0 of a FIFO interface; tpmdd.Transport.
type transport struct {
	dev  bus.Device
	regs bus.Region
	log  *slog.Logger

	didvid uint32
	rid    uint8
	caps   uint32 // INTF_CAPABILITY
	words  bool   // the FIFO takes accesses of 32 bits

	timeouts tpmdd.Timeouts
	canceled atomic.Bool // the command in flight
	aborting bool        // a command that took too long was aborted, and may not have ended yet
	odd      bool        // a senseless STS was told of

	interrupts
}

func (t *transport) errorf(format string, args ...any) error {
	return fmt.Errorf(t.dev.Address()+" tpm_tis: "+format, args...)
}

// SetTimeouts is tpmdd.Transport's.
func (t *transport) SetTimeouts(to tpmdd.Timeouts) { t.timeouts = to }

// MaxCommand is what a command may have, in bytes.
func (t *transport) MaxCommand() int { return tpmdd.MaxCommand }

// access reads ACCESS. Registers of a device that is gone are no values.
func (t *transport) access() access {
	a := access(t.regs.Read8(regACCESS))
	if a&(accSeize|accSeized) == accSeize|accSeized { // Seize reads 0: all ones, or nonsense
		return 0
	}
	return a
}

// status reads STS; 0 where what was read cannot be one.
func (t *transport) status() sts {
	s := sts(t.regs.Read32(regSTS))
	if s&stsZero == 0 {
		return s
	}
	if !t.odd && t.dev.Err() == nil {
		t.odd = true
		t.log.Error(fmt.Sprintf("tpm_tis %s: invalid TPM_STS.x 0x%02x", t.dev.Address(), uint8(s)))
	}
	return 0
}

// poll looks until done, and says false when limit is over.
func (t *transport) poll(limit time.Duration, done func() bool) bool {
	return tpmdd.Poll(limit, t.dev.Done(), done)
}

// waitValid waits until the registers mean something.
func (t *transport) waitValid() error {
	var a access
	if !t.poll(t.timeouts.A, func() bool { a = t.access(); return a&accValid != 0 }) {
		return tpmdd.Late(t.dev, "waiting for valid registers", t.timeouts.A, "ACCESS", a, unix.EPIPE)
	}
	return nil
}

// Begin makes the locality active.
func (t *transport) Begin(context.Context) error {
	active := func() bool {
		const want = accActive | accValid
		return t.access()&(want|accRequestUse) == want
	}
	t.regs.Write8(regACCESS, uint8(accRequestUse))
	if active() {
		return nil
	}
	if err := t.waitValid(); err != nil {
		return err
	}
	t.regs.Write8(regACCESS, uint8(accRequestUse)) // the first may have come too early
	if !t.poll(t.timeouts.A, active) {
		a := t.access()
		t.regs.Write8(regACCESS, uint8(accActive)) // the request is withdrawn
		return tpmdd.Late(t.dev, "requesting locality 0", t.timeouts.A, "ACCESS", a, unix.EPIPE)
	}
	return nil
}

// End gives the locality back. A command that is being aborted keeps it: what locality is active afterwards
// would be decided when the abort ends, and the next Begin could lose it again.
func (t *transport) End() {
	if !t.aborting {
		t.regs.Write8(regACCESS, uint8(accActive))
	}
}

// ready brings the TPM to where it takes a command, whatever it did before.
func (t *transport) ready() { t.regs.Write8(regSTS, uint8(stsReady)) }

// Send writes a command, again where it is not taken, and starts it.
func (t *transport) Send(cmd []byte) (err error) {
	t.canceled.Store(false)
	for range retries {
		if err = t.fill(cmd); err == nil {
			t.expectInterrupt()
			t.regs.Write8(regSTS, uint8(stsGo))
			return nil
		}
		t.ready()
		if !errors.Is(err, unix.EIO) || t.dev.Err() != nil {
			break
		}
	}
	return err
}

// fill writes a command into the FIFO. EIO says that the TPM lost count of it.
func (t *transport) fill(cmd []byte) error {
	s := t.status()
	if !s.has(stsReady) {
		t.ready()
		if !t.poll(t.timeouts.B, func() bool { s = t.status(); return s.has(stsReady) }) {
			return tpmdd.Late(t.dev, "becoming ready", t.timeouts.B, "STS", s, unix.ETIME)
		}
	}
	t.aborting = false
	// All but the last bytes; then the TPM must expect those, and nothing afterwards.
	last := (len(cmd) - 1) &^ 3
	for done := 0; done < len(cmd); {
		if done > 0 || s.burst() == 0 {
			var err error
			if s, err = t.waitBurst(); err != nil {
				return err
			}
			if done > 0 && !s.has(stsExpect) {
				return fmt.Errorf("writing the command: no more bytes are expected after %d of %d (STS=%v): %w (%w)", done, len(cmd), s, unix.EIO, bus.ErrProtocol)
			}
		}
		end := last
		if done >= last {
			end = len(cmd)
		}
		n := min(end-done, s.burst())
		t.write(cmd[done : done+n])
		done += n
	}
	if !t.poll(t.timeouts.C, func() bool { s = t.status(); return s.has(stsValid) }) {
		return tpmdd.Late(t.dev, "writing the command", t.timeouts.C, "STS", s, unix.ETIME)
	}
	if s.has(stsExpect) {
		return fmt.Errorf("writing the command: more bytes are expected after all %d (STS=%v): %w (%w)", len(cmd), s, unix.EIO, bus.ErrProtocol)
	}
	return nil
}

// waitBurst waits until bytes may be moved, and the other bits are valid.
func (t *transport) waitBurst() (s sts, err error) {
	limit := t.timeouts.A
	if !t.poll(limit, func() bool { s = t.status(); return s.burst() != 0 && s.has(stsValid) }) {
		e := unix.EBUSY
		if s.burst() != 0 {
			e = unix.ETIME
		}
		return s, tpmdd.Late(t.dev, "waiting for a burst count", limit, "STS", s, e)
	}
	return s, nil
}

// write moves bytes into the FIFO.
func (t *transport) write(p []byte) {
	if t.words {
		for ; len(p) >= 4; p = p[4:] {
			t.regs.Write32(regFIFO, binary.LittleEndian.Uint32(p))
		}
	}
	for _, b := range p {
		t.regs.Write8(regFIFO, b)
	}
}

// read moves bytes out of the FIFO.
func (t *transport) read(p []byte) {
	if t.words {
		var words [tpmdd.MaxCommand / 4]uint32
		run := words[:min(len(p)/4, len(words))]
		bus.ReadRun32(t.regs, regFIFO, 0, run)
		for _, w := range run {
			binary.LittleEndian.PutUint32(p, w)
			p = p[4:]
		}
	}
	for i := range p {
		p[i] = t.regs.Read8(regFIFO)
	}
}

// Wait waits for the answer.
func (t *transport) Wait(d time.Duration) error {
	var s sts
	canceled, forgot := false, false
	var since time.Time // when it was cancelled
	done := t.waitAnswer(d, func() bool {
		s = t.status()
		// Registers of a locality that is not active read as nothing: a TPM that was reset meanwhile has forgotten the command too, and it
		// would be waited for in vain, for minutes.
		forgot = s == 0 && t.access()&(accValid|accActive) == accValid
		// What was aborted is ready for the next command, or never will be.
		if canceled = t.canceled.Load(); canceled && !s.has(stsReady) {
			if since.IsZero() {
				since = time.Now()
			}
			canceled = time.Since(since) > t.timeouts.B
		}
		return s.has(stsDataAvail|stsValid) || canceled || forgot
	})
	switch {
	case forgot:
		return fmt.Errorf("waiting for the answer: the TPM works for nobody (ACCESS=%s): it was reset: %w (%w)", t.access(), unix.EIO, bus.ErrProtocol)
	case canceled:
		return fmt.Errorf("cancelled: %w", unix.ECANCELED)
	case done:
		t.ahead = s.burst()
		return nil
	}
	err := tpmdd.Late(t.dev, "waiting for the answer", d, "STS", s, unix.ETIME)
	t.ready() // which aborts it
	t.aborting = true
	return err
}

// Receive reads the answer, again where it was not read whole.
func (t *transport) Receive(p []byte) (n int, err error) {
	for range retries {
		if n, err = t.drain(p); !errors.Is(err, unix.EIO) || t.dev.Err() != nil {
			break
		}
		t.ahead = 0
		t.regs.Write8(regSTS, uint8(stsResponseRetry))
	}
	t.ready()
	if err != nil {
		if gone := tpmdd.Gone(t.dev); gone != nil {
			err = gone // all ones are no answer
		}
	}
	return n, err
}

// drain reads an answer once. EIO says that the FIFO held another number of bytes than its header says, or that
// the header cannot be one.
func (t *transport) drain(p []byte) (int, error) {
	// Two words have the length; what is behind them is there too, or the answer is none.
	const first = 8
	if err := t.take(p[:first]); err != nil {
		return 0, fmt.Errorf("reading the header: %w", err)
	}
	n := int(binary.BigEndian.Uint32(p[2:]))
	if n < tpmdd.HeaderSize || n > len(p) {
		return 0, fmt.Errorf("reading the header: it says %d bytes, want %d to %d: %w (%w)", uint32(n), tpmdd.HeaderSize, len(p), unix.EIO, bus.ErrProtocol)
	}
	if err := t.take(p[first:n]); err != nil {
		t.log.Error(fmt.Sprintf("tpm_tis %s: Unable to read remainder of result", t.dev.Address()))
		return 0, fmt.Errorf("reading %d bytes: %w", n, err)
	}
	var s sts
	if !t.poll(t.timeouts.C, func() bool { s = t.status(); return s.has(stsValid) }) {
		return 0, tpmdd.Late(t.dev, "reading the answer", t.timeouts.C, "STS", s, unix.ETIME)
	}
	if s.has(stsDataAvail) {
		return 0, fmt.Errorf("reading the answer: bytes are left over after the %d of its header (STS=%v): %w (%w)", n, s, unix.EIO, bus.ErrProtocol)
	}
	return n, nil
}

// take reads exactly len(p) bytes, burst by burst.
func (t *transport) take(p []byte) error {
	for len(p) > 0 {
		if t.ahead == 0 {
			var s sts
			if !t.poll(t.timeouts.C, func() bool { s = t.status(); return s.has(stsDataAvail|stsValid) && s.burst() != 0 }) {
				return tpmdd.Late(t.dev, "waiting for bytes", t.timeouts.C, "STS", s, unix.ETIME)
			}
			t.ahead = s.burst()
		}
		n := min(len(p), t.ahead)
		t.read(p[:n])
		p, t.ahead = p[n:], t.ahead-n
	}
	return nil
}

// Cancel aborts the command in flight; anybody may call it.
func (t *transport) Cancel() {
	t.canceled.Store(true)
	t.ready()
	t.signal()
}
