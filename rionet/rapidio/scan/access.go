package scan

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/rionet/rapidio"
)

// tries is how often an access is made that has no response, or an error response, which is what a master port may make of a lost
// one. Then the device counts as not there.
const tries = 3

// unanswered tells that an access may have been lost on the way, there or back.
func unanswered(err error) bool {
	return errors.Is(err, rapidio.ErrNoReply) || errors.Is(err, rapidio.ErrResponse)
}

// errBudget ends a walk that has taken far more accesses than a fabric of this width may need.
var errBudget = errors.New("too many accesses: what is there keeps showing more")

// access makes the accesses of one round, and counts them.
type access struct {
	ctx  context.Context
	ops  rapidio.Ops
	ids  rapidio.IDSize
	left int // how many may still be made

	waited time.Duration // for locks that others had
}

// target is a device that a round reaches: by a route and a number of hops, or the port's own registers.
type target struct {
	a     *access
	local bool
	dest  rapidio.DestID
	hop   uint8
	ports int
}

// target implements rapidio.SwitchAccess, so that tables are written before there is a Device.
var _ rapidio.SwitchAccess = target{}

func (t target) IDs() rapidio.IDSize { return t.a.ids }
func (t target) Ports() int          { return t.ports }

func (t target) Read32(_ context.Context, off rapidio.Off) (uint32, error) { return t.read(off) }
func (t target) Write32(_ context.Context, off rapidio.Off, v uint32) error {
	return t.write(off, v)
}

// read reads a register.
func (t target) read(off rapidio.Off) (v uint32, err error) {
	for range tries {
		if err = t.a.spend(); err != nil {
			return 0, err
		}
		if t.local {
			v, err = t.a.ops.LocalRead(t.a.ctx, off, 4)
		} else {
			v, err = t.a.ops.Read(t.a.ctx, t.dest, t.hop, off, 4)
		}
		if err == nil {
			return v, nil
		}
		if !unanswered(err) {
			break
		}
	}
	return 0, fmt.Errorf("reading %#x: %w", off, err)
}

// write writes a register; it may be written several times, and is never for the lock.
func (t target) write(off rapidio.Off, v uint32) (err error) {
	for range tries {
		if err = t.writeOnce(off, v); err == nil {
			return nil
		}
		if !unanswered(err) {
			break
		}
	}
	return fmt.Errorf("writing %#x to %#x: %w", v, off, err)
}

func (t target) writeOnce(off rapidio.Off, v uint32) error {
	if err := t.a.spend(); err != nil {
		return err
	}
	if t.local {
		return t.a.ops.LocalWrite(t.a.ctx, off, 4, v)
	}
	return t.a.ops.Write(t.a.ctx, t.dest, t.hop, off, 4, v)
}

// update makes a register's masked bits v, and leaves it alone where they are so already.
func (t target) update(off rapidio.Off, mask, v uint32) error {
	was, err := t.read(off)
	if err != nil || was&mask == v {
		return err
	}
	return t.write(off, was&^mask|v)
}

// budget is how many accesses a walk may take.
func budget(ids rapidio.IDSize) int {
	if ids == rapidio.Small {
		return smallBudget
	}
	return largeBudget
}

// spend counts an access that is about to be made.
func (a *access) spend() error {
	if err := context.Cause(a.ctx); err != nil {
		return err
	}
	if a.left <= 0 {
		return errBudget
	}
	a.left--
	return nil
}

// fatal tells errors after which nothing more can be reached from those of one device.
func (a *access) fatal(err error) bool {
	return a.ctx.Err() != nil || errors.Is(err, bus.ErrGone) || errors.Is(err, bus.ErrClosed)
}

// any is the device so many hops away on the path that the routes of the "any" ID make.
func (a *access) any(hop int) target { return target{a: a, dest: a.ids.Any(), hop: uint8(hop)} }

// own is the master port's own endpoint.
func (a *access) own() target { return target{a: a, local: true} }
