package tpmdd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
)

// Options say what a Chip is.
type Options struct {
	Name  string       // "tpm0", for messages
	Where string       // how errors begin: address and driver
	Log   *slog.Logger // nil discards; messages are the kernel's
	// Found, where set, is called when it is known which family answers, before the TPM is started.
	Found func(Family)
	// Died is closed when the device is gone. nil: it never is.
	Died <-chan struct{}
}

// Chip is a TPM in service. Safe for concurrent use.
type Chip struct {
	t    Transport
	o    Options
	log  *slog.Logger
	turn chan struct{} // holds a value while somebody has the chip: whoever waits is served in order

	closing   chan struct{} // closed by Close
	closeOnce sync.Once
	closeErr  error
	asleep    atomic.Bool
	flight    sync.Mutex
	inFlight  bool // guarded by flight
	step      atomic.Pointer[step]

	// identity is what was found out at the start, before anybody else has the chip.
	identity Identity
}

// Identity is what a chip said of itself at the start.
type Identity struct {
	Family    Family
	Banks     []Bank // PCR banks that are in use; of a TPM 1.2: SHA-1
	PCRs      int    // how many registers a bank has
	Timeouts  Timeouts
	Durations Durations
	// Of a TPM 1.2: whether the chip's own times had to be corrected.
	TimeoutsAdjusted, DurationsAdjusted bool
}

// Bank is a PCR bank.
type Bank struct {
	Alg  uint16 // TPM_ALG_ID
	Name string // "sha256"; "" where the algorithm is not known here
	Size int    // of a digest, in bytes
}

// New finds out what the TPM behind t is, and starts it as the kernel's driver does. A TPM that answers, but with an
// error to everything, is refused. Errors name the chip, the step, what was seen.
func New(ctx context.Context, t Transport, o Options) (*Chip, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Where == "" {
		o.Where = o.Name
	}
	c := &Chip{t: t, o: o, log: o.Log, turn: make(chan struct{}, 1), closing: make(chan struct{})}
	c.identity.Durations = durations20 // until more is known
	t.SetTimeouts(timeoutsAny)
	if err := c.Do(ctx, c.start); err != nil {
		return nil, c.named("starting", err)
	}
	return c, nil
}

// named makes an error say where, if it does not.
func (c *Chip) named(step string, err error) error {
	var refused *TPMError
	switch {
	case err == nil || strings.HasPrefix(err.Error(), c.o.Where+": "):
		return err
	case errors.As(err, &refused):
		return c.errorf("%s: %w (%w)", step, err, bus.ErrProtocol)
	}
	return c.errorf("%s: %w", step, err)
}

// errorf makes an error that says where.
func (c *Chip) errorf(format string, args ...any) error {
	return fmt.Errorf(c.o.Where+": "+format, args...)
}

// Family is the language that the chip speaks.
func (c *Chip) Family() Family { return c.identity.Family }

// Identity is what the chip said of itself.
func (c *Chip) Identity() Identity { return c.identity }

// gone is the error of a chip that can be used no more.
func (c *Chip) gone() error {
	select {
	case <-c.closing:
		return c.errorf("%w (%w)", unix.EPIPE, bus.ErrClosed)
	case <-c.o.Died:
		return c.errorf("%w (%w)", unix.EPIPE, bus.ErrGone)
	default:
	}
	if c.asleep.Load() {
		return c.errorf("suspended: %w", unix.EPIPE)
	}
	return nil
}

// take waits for the chip.
func (c *Chip) take(ctx context.Context) error {
	select {
	case c.turn <- struct{}{}:
		return nil
	default:
	}
	select {
	case c.turn <- struct{}{}:
		return nil
	case <-c.closing:
	case <-c.o.Died:
	case <-ctx.Done():
		return c.errorf("waiting for the TPM: %w (%w)", unix.EINTR, ctx.Err())
	}
	return c.gone()
}

func (c *Chip) release() { <-c.turn }

// Transmit sends one command and returns its answer. ctx ends the wait for the chip's turn; a command that was
// sent is waited for.
func (c *Chip) Transmit(ctx context.Context, cmd []byte) (answer []byte, err error) {
	err = c.Do(ctx, func(x Exchanger) error {
		answer, err = x.Transmit(ctx, cmd)
		return err
	})
	return answer, err
}

// Do keeps the chip for f, whose commands go through the Exchanger that f is given and which is of no use
// afterwards. It returns f's error, or its own.
func (c *Chip) Do(ctx context.Context, f func(x Exchanger) error) error {
	if err := c.take(ctx); err != nil {
		return err
	}
	defer c.release()
	if err := c.gone(); err != nil {
		return err
	}
	return c.hold(ctx, 0, f)
}

// hold is Do for who has the chip already. limit bounds each command, 0: by its own duration.
func (c *Chip) hold(ctx context.Context, limit time.Duration, f func(x Exchanger) error) error {
	x := &exchange{c: c, limit: limit}
	defer x.end()
	end := c.begin("claiming the interface", c.identity.Timeouts.A)
	err := c.t.Begin(ctx)
	if end(); err != nil {
		return c.explain("claiming the interface", err)
	}
	x.begun = true
	return f(x)
}

// explain names the chip, and prefers the end of the device to what follows from it.
func (c *Chip) explain(step string, err error) error {
	if c.gone() != nil && !c.asleep.Load() {
		return c.gone()
	}
	return c.errorf("%s: %w", step, err)
}

// step is what the chip is asked for now, and until when that must be done.
type step struct {
	what string
	due  time.Time
}

// begin notes a step that takes so long at most, until end. They have each their own end.
func (c *Chip) begin(what string, d time.Duration) (end func()) {
	s := &step{what, time.Now().Add(d)}
	c.step.Store(s)
	return func() { c.step.CompareAndSwap(s, nil) }
}

// Overdue says what the chip is asked for, "command 0x17b", and for how long that should have been done by now, by what the command may take and by nothing else: the process may have
// stood still, and accesses to the chip may be slow. 0: nothing is. It never waits.
func (c *Chip) Overdue() (what string, by time.Duration) {
	s := c.step.Load()
	if s == nil {
		return "", 0
	}
	return s.what, max(0, time.Since(s.due))
}

// exchange is the chip while it is kept.
type exchange struct {
	c     *Chip
	limit time.Duration // of each command; 0: its own
	begun bool
	over  atomic.Bool
}

func (x *exchange) end() {
	x.over.Store(true)
	if x.begun {
		defer x.c.begin("letting the interface go", x.c.identity.Timeouts.A)()
		x.c.t.End()
	}
}

// Retries of what the TPM could not do yet (TPM 2.0 part 1, 37.1): waits begin with the first and double, up to the
// last.
const (
	firstRetry = 20 * time.Millisecond
	lastRetry  = 2 * time.Second
)

// Transmit sends one command, again where the TPM says so.
func (x *exchange) Transmit(_ context.Context, cmd []byte) ([]byte, error) {
	c := x.c
	if x.over.Load() {
		return nil, c.errorf("the chip is somebody else's by now: %w", unix.EPIPE)
	}
	h, err := c.check(cmd)
	if err != nil {
		return nil, err
	}
	cmd = cmd[:h.Length]
	for wait := firstRetry; ; wait *= 2 {
		answer, err := c.once(h, cmd, x.limit)
		if err != nil {
			return nil, err
		}
		a, _ := ParseHeader(answer)
		if a.Code != RCRetry && a.Code != RCTesting || a.Code == RCTesting && h.Code == CCSelfTest || wait > lastRetry {
			return answer, nil
		}
		select {
		case <-time.After(wait):
		case <-c.closing:
			return nil, c.gone()
		case <-c.o.Died:
			return nil, c.gone()
		}
	}
}

// check is for a command's own length.
func (c *Chip) check(cmd []byte) (Header, error) {
	h, ok := ParseHeader(cmd)
	switch {
	case !ok:
		return h, c.errorf("a command of %d bytes, want %d or more: %w", len(cmd), HeaderSize, unix.EINVAL)
	case h.Length == 0:
		return h, c.errorf("a command whose header says 0 bytes: %w", unix.ENODATA)
	case h.Length > MaxCommand || int(h.Length) > c.t.MaxCommand():
		if h.Length <= MaxCommand { // the kernel's transport says so, and then the kernel
			c.log.Error(fmt.Sprintf("tpm %s: invalid command count value %d %d", c.o.Name, h.Length, c.t.MaxCommand()))
			c.log.Error(fmt.Sprintf("tpm %s: tpm_try_transmit: send(): error %d", c.o.Name, -int(unix.E2BIG)))
		}
		return h, c.errorf("a command of %d bytes, want %d or less: %w", h.Length, min(MaxCommand, c.t.MaxCommand()), unix.E2BIG)
	case h.Length < HeaderSize || int64(h.Length) > int64(len(cmd)):
		return h, c.errorf("a command of %d bytes whose header says %d: %w", len(cmd), h.Length, unix.EINVAL)
	}
	return h, nil
}

// once sends a command and checks that what came back is an answer.
func (c *Chip) once(h Header, cmd []byte, limit time.Duration) ([]byte, error) {
	c.flying(true)
	defer c.flying(false)
	what := fmt.Sprintf("command %#x", h.Code)
	d := c.Duration(h.Code)
	if limit > 0 {
		d = min(d, limit)
	}
	defer c.begin(what, d)()
	if err := c.t.Send(cmd); err != nil {
		c.log.Error(fmt.Sprintf("tpm %s: tpm_try_transmit: send(): error %d", c.o.Name, -int(errno(err))))
		return nil, c.explain(what+": sending", err)
	}
	if err := c.t.Wait(d); err != nil {
		switch errno(err) {
		case unix.ECANCELED:
			c.log.Error(fmt.Sprintf("tpm %s: Operation Canceled", c.o.Name))
		case unix.ETIME:
			c.log.Error(fmt.Sprintf("tpm %s: Operation Timed out", c.o.Name))
		}
		return nil, c.explain(what, err)
	}
	var buf [MaxCommand]byte
	n, err := c.t.Receive(buf[:])
	if err != nil {
		c.log.Error(fmt.Sprintf("tpm %s: tpm_transmit: tpm_recv: error %d", c.o.Name, -int(errno(err))))
		return nil, c.explain(what+": receiving", err)
	}
	if a, ok := ParseHeader(buf[:n]); !ok || int64(a.Length) != int64(n) {
		return nil, c.explain(what, fmt.Errorf("an answer of %d bytes whose header says %d: %w (%w)", n, a.Length, unix.EFAULT, bus.ErrProtocol))
	}
	return append([]byte(nil), buf[:n]...), nil
}

// errno is the errno that err carries, EIO where it carries none.
func errno(err error) unix.Errno {
	var e unix.Errno
	if errors.As(err, &e) {
		return e
	}
	return unix.EIO
}

// Cancel aborts the command in flight, if there is one: its sender gets ECANCELED. The TPM decides how soon.
func (c *Chip) Cancel() {
	c.flight.Lock()
	defer c.flight.Unlock()
	if c.inFlight {
		c.t.Cancel()
	}
}

// takeForGood waits for the chip at its end.
func (c *Chip) takeForGood() bool {
	for range 2 {
		select {
		case c.turn <- struct{}{}:
			return true
		case <-time.After(closeTime):
			c.Cancel()
		}
	}
	select {
	case c.turn <- struct{}{}:
		return true
	default:
		return false
	}
}

// flying notes whether a command is in flight, between which and the next nobody's Cancel falls.
func (c *Chip) flying(is bool) {
	c.flight.Lock()
	c.inFlight = is
	c.flight.Unlock()
}

// closeTime is what a command in flight has to end, when it is cancelled to end once more, and a TPM to save its state. One
// that does not answer must not keep the process.
const closeTime = 5 * time.Second

// Close shuts the TPM down, with its state saved, and gives it to nobody any more. A command in flight may end first, for
// 5 s; then it is cancelled. ErrTimeout: it does not end even so, and still has the interface. It is idempotent.
func (c *Chip) Close() error {
	c.closeOnce.Do(func() {
		close(c.closing)
		if !c.takeForGood() {
			c.closeErr = c.errorf("closing: a command does not end: %w (%w)", unix.ETIME, bus.ErrTimeout)
			return
		}
		select {
		case <-c.o.Died:
		default:
			if !c.asleep.Load() {
				c.closeErr = c.named("closing", c.hold(context.Background(), closeTime, c.stop))
			}
		}
		if errors.Is(c.closeErr, bus.ErrGone) {
			c.closeErr = nil
		}
	})
	return c.closeErr
}
