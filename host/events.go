package host

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/ring3dev/ring3/internal/instance"
	"github.com/ring3dev/ring3/internal/klog"
	"github.com/ring3dev/ring3/internal/uevent"
)

// What happens in an instance, as it happens: ring3 events, and ring3 dmesg -w.

// Operations of the control socket that give what is kept, and those that go on with what comes. Their results are
// batches.
const (
	opEvents       = "events"
	opEventsFollow = "events-follow"
	opDmesgFollow  = "dmesg-follow"
)

// batch is what came since the one before.
type batch[T any] struct {
	Items []T    `json:"items"`
	Lost  uint64 `json:"lost,omitempty"` // before these, since the client was too slow
}

// eventHandlers are the operations on events.
func (s *System) eventHandlers(h instance.Handlers) {
	h[opEvents] = func(context.Context, json.RawMessage, func(any) error) (any, error) {
		events, _ := s.events.Read(0)
		return append([]uevent.Event{}, events...), nil // a list where there is none, too
	}
	h[opEventsFollow] = follower(s.events.Follow)
}

// logHandlers are those on messages.
func (u *up) logHandlers(h instance.Handlers) {
	h[opDmesg] = func(context.Context, json.RawMessage, func(any) error) (any, error) {
		records, _ := u.log.Read(0)
		return records, nil
	}
	h[opDmesgFollow] = follower(u.log.Follow)
}

// follower sends what a ring keeps and then what comes, until the client leaves or the instance ends.
func follower[T any](follow func(context.Context, uint64, func([]T, uint64) error) error) instance.Handler {
	return func(ctx context.Context, _ json.RawMessage, send func(any) error) (any, error) {
		err := follow(ctx, 0, func(items []T, lost uint64) error { return send(batch[T]{items, lost}) })
		if ctx.Err() != nil {
			err = nil
		}
		return nil, err
	}
}

// follow gives each what the operation op streams. It ends with the instance, which is no error, or with ctx.
func follow[T any](ctx context.Context, a *app, op string, each func(T) error) error {
	i, cl, err := a.dial()
	if err != nil {
		return err
	}
	defer cl.Close()
	err = cl.Stream(ctx, op, nil, func(raw json.RawMessage) error {
		var b batch[T]
		if err := json.Unmarshal(raw, &b); err != nil {
			return fmt.Errorf("%s of %s: %w", op, i.Name, err)
		}
		if b.Lost > 0 {
			fmt.Fprintf(a.stderr, "ring3: %d lost: they came faster than they were printed\n", b.Lost)
		}
		for _, v := range b.Items {
			if err := each(v); err != nil {
				return err
			}
		}
		return nil
	})
	if ctx.Err() != nil {
		return exitError(interrupted)
	}
	return err
}

// followDmesg is ring3 dmesg -w.
func (a *app) followDmesg(ctx context.Context) error {
	return follow(ctx, a, opDmesgFollow, func(r klog.Record) error {
		if a.json {
			return json.NewEncoder(a.stdout).Encode(r)
		}
		_, err := fmt.Fprintln(a.stdout, r)
		return err
	})
}

func (a *app) eventsCmd() *cobra.Command {
	var keep, property bool
	c := &cobra.Command{
		Use:   "events [-w]",
		Short: "Print the kernel's uevents of an instance's devices: add, remove, bind, change",
		Long: `Print the events by which the kernel would tell udev of the devices of a running instance, as
'udevadm monitor --kernel' prints them. Those that are kept, which is a thousand or so; with -w also
what comes, until interrupted (exit status 130) or until the instance ends (0).

With -json, one object an event: a list, or with -w one a line.`,
		Example: `  ring3 events -w
  ring3 events -w -json | jq -c 'select(.action == "add") | .devpath'`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			if keep {
				return follow(c.Context(), a, opEventsFollow, func(e uevent.Event) error { return a.printEvent(e, property) })
			}
			return a.printEvents(c.Context(), property)
		},
	}
	c.Flags().BoolVarP(&keep, "watch", "w", false, "go on with what comes")
	c.Flags().BoolVarP(&property, "property", "p", false, "print all variables of each")
	a.instanceFlag(c, "the instance, where several run")
	return c
}

// printEvents prints what is kept.
func (a *app) printEvents(ctx context.Context, property bool) error {
	_, cl, err := a.dial()
	if err != nil {
		return err
	}
	defer cl.Close()
	var events []uevent.Event
	if err := cl.Call(ctx, opEvents, nil, &events); err != nil {
		return fmt.Errorf("events: %w", err)
	}
	if a.json {
		return a.printJSON(events)
	}
	for _, e := range events {
		if err := a.printEvent(e, property); err != nil {
			return err
		}
	}
	return nil
}

// printEvent prints one, on a line of its own in JSON.
func (a *app) printEvent(e uevent.Event, property bool) error {
	switch {
	case a.json:
		return json.NewEncoder(a.stdout).Encode(e)
	case property:
		return e.WriteProperties(a.stdout)
	}
	_, err := fmt.Fprintln(a.stdout, e)
	return err
}
