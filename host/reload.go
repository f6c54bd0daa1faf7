package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// opReload exchanges the worker of a device's group.
const opReload = "reload"

type reloadArgs struct {
	Device string `json:"device"`
	Binary string `json:"binary,omitempty"` // an absolute path; "": the one that it has
}

type reloadResult struct {
	Devices []string `json:"devices"` // that were exchanged together
	Outage  float64  `json:"outage_ms"`
	Version string   `json:"version"`
}

// reloadHandler answers opReload.
func (s *supervisor) reloadHandler(ctx context.Context, raw json.RawMessage, _ func(any) error) (any, error) {
	var a reloadArgs
	if err := json.Unmarshal(raw, &a); err != nil {
		return nil, fmt.Errorf("arguments: %v: %w", err, syscall.EINVAL)
	}
	ch := s.chargeOf(a.Device)
	if ch == nil {
		return nil, fmt.Errorf("no device is named %s: %w", a.Device, syscall.ENODEV)
	}
	if a.Binary != "" && !filepath.IsAbs(a.Binary) {
		return nil, fmt.Errorf("binary %q: want an absolute path: %w", a.Binary, syscall.EINVAL)
	}
	o := &order{reply: make(chan orderDone, 1)}
	if a.Binary != "" { // what runs later is this file, whatever its name is then
		var err error
		if o.program, err = os.OpenFile(a.Binary, unix.O_PATH, 0); err != nil {
			return nil, fmt.Errorf("the binary: %w", err)
		}
	}
	var err error
	select {
	case ch.orders <- o:
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-s.ctx.Done():
		err = fmt.Errorf("the instance ends: %w", syscall.ESHUTDOWN)
	case <-time.After(patience):
		err = fmt.Errorf("%s: it is recovering: %w", ch.Name, syscall.EBUSY)
	}
	if err != nil {
		if o.program != nil {
			o.program.Close()
		}
		return nil, err
	}
	var done orderDone
	select {
	case done = <-o.reply:
	case <-ctx.Done(): // it goes on; who asked is gone
		return nil, context.Cause(ctx)
	}
	if done.err != nil {
		return nil, done.err
	}
	ch.mu.Lock()
	defer ch.mu.Unlock()
	r := reloadResult{Outage: float64(done.outage.Microseconds()) / 1000, Version: ch.deaths.version}
	for _, d := range ch.infos {
		r.Devices = append(r.Devices, d.Name)
	}
	return r, nil
}

// exchange does what an order says: another worker, of another binary, in the place of w, or of none that is up. Where the new one does not come
// up, the old binary is started again.
func (ch *charge) exchange(w *worker, o *order) {
	outage, err := ch.exchanged(w, o.program)
	o.reply <- orderDone{outage, plain(err)}
}

// exchanged is exchange, to a program that becomes its own; nil: the group's.
func (ch *charge) exchanged(w *worker, program *os.File) (time.Duration, error) {
	ch.mu.Lock()
	old := ch.program
	ch.mu.Unlock()
	fresh := program != nil
	if !fresh {
		program = old
	}
	drop := func() { // the new one
		if fresh {
			program.Close()
		}
	}
	// Whether it can be had at all is known before anything changes.
	next, err := ch.s.spare.take(ch.s.ctx, program, ch.bare != nil)
	if err == nil {
		err = next.speaks()
	}
	if err == nil && w == nil {
		err = ch.freed()
	}
	if err != nil {
		what, after := "this program", "the driver goes on as it was"
		if program != nil {
			what = program.Name()
		}
		if w == nil {
			after = "it stays given up"
		}
		if next != nil {
			err = errors.Join(err, next.kill())
		}
		drop()
		return 0, fmt.Errorf("%s: a worker of %s: %w; %s", ch.Name, what, err, after)
	}
	began := time.Now()
	if w != nil {
		if err := ch.retire(w); err != nil {
			err = errors.Join(err, next.kill())
			drop()
			ch.recover(nil, err)
			return 0, err
		}
	}
	ch.set(func() { ch.state, ch.deaths.why = stateRecovering, "its driver is exchanged" })
	if err = ch.employ(ch.s.ctx, next); err == nil {
		outage := time.Since(began)
		if fresh {
			ch.setProgram(program)
		}
		ch.mu.Lock()
		ch.deaths.outage = outage
		ch.mu.Unlock()
		ch.s.log.Info(fmt.Sprintf("%s: its driver was exchanged within %s", ch.Name, milliseconds(outage)))
		ch.s.spare.refill()
		return outage, nil
	}
	err = fmt.Errorf("%s: the new driver does not come up: %w", ch.Name, plain(ch.startError(err)))
	drop()
	ch.recover(next, err)
	return 0, err
}

// retire ends a worker in order: what its successor needs it has said.
func (ch *charge) retire(w *worker) error {
	ctx, cancel := context.WithTimeout(ch.s.ctx, stopTime)
	defer cancel()
	stopped, err := w.stop(ctx)
	ch.part.Detach(errors.New("its driver is exchanged"))
	ch.set(func() {
		ch.cur, ch.speaker, ch.state, ch.deaths.why = nil, nil, stateRecovering, "its driver is exchanged"
		if err == nil {
			if b, e := json.Marshal(stopped.Saved); e == nil {
				ch.saved = b
			}
		}
	})
	unkilled := ch.end(w)
	if err != nil {
		ch.s.log.Warn(fmt.Sprintf("%s: it did not end in order: %v", ch.Name, plain(err)))
	}
	quiesce, cancel2 := context.WithTimeout(context.Background(), quiesceTime)
	defer cancel2()
	return errors.Join(unkilled, ch.out.Quiesce(quiesce))
}

func (a *app) reloadCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "reload NAME [BINARY]",
		Short: "Exchange the driver of a running device, under its open files",
		Long: `Exchange the process that drives a device, and all that is wired to it or stands under one port with it: the old one ends in order, the new one
goes on with what was configured. Files stay open, pktgen's run and kernel interfaces go on; the outage is printed.

BINARY is another ring3, that speaks the same protocol; without it the program is the one that the device has. If the new one does not
come up, the old program is started again. A device that was given up ('ring3 ls': failed) is tried again.`,
		Example: "  ring3 reload eth0\n  ring3 reload eth0 ./ring3-new",
		Args:    usageArgs(cobra.RangeArgs(1, 2)),
		RunE: func(c *cobra.Command, words []string) error {
			args := reloadArgs{Device: words[0]}
			if len(words) > 1 {
				abs, err := filepath.Abs(words[1])
				if err == nil {
					_, err = os.Stat(abs)
				}
				if err != nil {
					return fmt.Errorf("reload: %w", err)
				}
				args.Binary = abs
			}
			var r reloadResult
			if err := a.call(c.Context(), opReload, args, &r); err != nil {
				return err
			}
			if a.json {
				return a.printJSON(r)
			}
			for _, d := range r.Devices {
				fmt.Fprintf(a.stdout, "%s: exchanged, out of service for %.1f ms (version %s)\n", d, r.Outage, r.Version)
			}
			return nil
		},
	}
	a.instanceFlag(c, "the instance")
	return c
}
