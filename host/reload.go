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
	o := &order{path: a.Binary, reply: make(chan orderDone, 1)}
	select {
	case ch.orders <- o:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-s.ctx.Done():
		return nil, fmt.Errorf("the instance ends: %w", syscall.ESHUTDOWN)
	case <-time.After(patience):
		return nil, fmt.Errorf("%s: it is recovering: %w", ch.Name, syscall.EBUSY)
	}
	done := <-o.reply // each step of it is bounded
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
	outage, err := ch.exchanged(w, o.path)
	o.reply <- orderDone{outage, err}
}

func (ch *charge) exchanged(w *worker, path string) (time.Duration, error) {
	ch.mu.Lock()
	old := ch.path
	ch.mu.Unlock()
	if path == "" {
		path = old
	}
	// Whether it can be had at all is known before anything changes.
	next, err := ch.s.spare.take(ch.s.ctx, path)
	if err == nil {
		err = next.speaks()
	}
	if err != nil {
		ch.end(next)
		what := "this program"
		if path != "" {
			what = path
		}
		return 0, fmt.Errorf("%s: a worker of %s: %w; the driver goes on as it was", ch.Name, what, err)
	}
	began := time.Now()
	if w != nil {
		if err := ch.retire(w); err != nil {
			ch.end(next)
			ch.recover(nil, err)
			return 0, err
		}
	}
	ch.set(func() { ch.path, ch.state = path, stateRecovering })
	if err = ch.employ(ch.s.ctx, next); err == nil {
		outage := time.Since(began)
		ch.mu.Lock()
		ch.deaths.outage = outage
		ch.mu.Unlock()
		ch.s.log.Info(fmt.Sprintf("%s: its driver was exchanged within %s", ch.Name, milliseconds(outage)))
		ch.s.spare.refill()
		return outage, nil
	}
	err = fmt.Errorf("%s: the new driver does not come up: %w", ch.Name, ch.startError(err))
	ch.mu.Lock()
	ch.path = old
	ch.mu.Unlock()
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
		ch.cur, ch.state = nil, stateRecovering
		if err == nil {
			if b, e := json.Marshal(stopped.Saved); e == nil {
				ch.saved = b
			}
		}
	})
	ch.end(w)
	if err != nil {
		ch.s.log.Warn(fmt.Sprintf("%s: it did not end in order: %v", ch.Name, err))
	}
	quiesce, cancel2 := context.WithTimeout(context.Background(), quiesceTime)
	defer cancel2()
	return ch.out.Quiesce(quiesce)
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
