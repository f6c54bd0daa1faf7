package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/ring3dev/ring3/bus/aerinject"
	"github.com/ring3dev/ring3/internal/figures"
	"github.com/ring3dev/ring3/internal/instance"
	"github.com/ring3dev/ring3/internal/uevent"
	"github.com/ring3dev/ring3/pktgen"
)

// opInject gives a worker a record that was written to /dev/aer_inject: it is for the supervisor only.
const opInject = "inject"

// askWorker bounds a question that a worker answers at once, so that one that hangs delays nobody for long.
const askWorker = 2 * time.Second

// maxQueue bounds what a worker streams and nobody has taken yet, in bytes.
const maxQueue = 64 << 20

// maxAgain is how many more workers are asked what killed one that was asked it: it may be the question that kills them.
const maxAgain = 2

// control has the group's worker do an operation of the control socket. send takes what it streams, and may block. again: it changes nothing, so where the
// worker dies meanwhile the next ones are asked, maxAgain at most. Of a worker that died, or is recovering for long, the error is errDied.
func (ch *charge) control(ctx context.Context, op string, args json.RawMessage, send func(json.RawMessage) error, again bool) (json.RawMessage, error) {
	for asked := 0; ; asked++ {
		w, err := ch.await(ctx)
		if err != nil {
			return nil, err
		}
		reply, err := w.stream(ctx, op, args, send)
		switch {
		case err == nil || !w.over():
			return reply, err
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case !again || asked == maxAgain:
			ch.replaced(ctx, w)
			return nil, fmt.Errorf("%s: its driver died meanwhile: %w%w", ch.Name, syscall.EIO, silent{errDied})
		}
		ch.replaced(ctx, w)
	}
}

// replaced waits until it is known that a worker is over.
func (ch *charge) replaced(ctx context.Context, w *worker) {
	for {
		ch.mu.Lock()
		cur, changed := ch.cur, ch.changed
		ch.mu.Unlock()
		if cur != w {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		case <-ch.s.ctx.Done():
			return
		}
	}
}

// stream is worker.control for a send that may block.
func (w *worker) stream(ctx context.Context, op string, args json.RawMessage, send func(json.RawMessage) error) (json.RawMessage, error) {
	if send == nil {
		return w.control(ctx, op, args, nil)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var mu sync.Mutex
	var queue [][]byte
	waiting := 0
	wake := make(chan struct{}, 1)
	var reply json.RawMessage
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		reply, err = w.control(ctx, op, args, func(b []byte) {
			mu.Lock()
			defer mu.Unlock()
			if waiting += len(b); waiting > maxQueue {
				cancel(fmt.Errorf("%s: what it streams comes faster than it is taken: %w", op, syscall.ENOBUFS))
				return
			}
			queue = append(queue, b)
			select {
			case wake <- struct{}{}:
			default:
			}
		})
	}()
	flush := func() error {
		mu.Lock()
		parts := queue
		queue, waiting = nil, 0
		mu.Unlock()
		for _, p := range parts {
			if !json.Valid(p) {
				return fmt.Errorf("%s: a part is no JSON: %w", op, syscall.EPROTO)
			}
			if err := send(p); err != nil {
				return err
			}
		}
		return nil
	}
	for {
		select {
		case <-wake:
			if e := flush(); e != nil {
				cancel(e)
				<-done
				return nil, e
			}
		case <-done:
			return reply, errors.Join(flush(), err)
		}
	}
}

// quiet has what generates traffic end, as `stop` of pgctrl does.
func (ch *charge) quiet(ctx context.Context) {
	if w := ch.worker(); w != nil {
		args, _ := json.Marshal(map[string]any{"path": "/proc/net/pktgen/pgctrl", "data": []byte("stop\n")})
		_, _ = w.control(ctx, "set", args, nil)
	}
}

// describe is the group's devices as they are now, or were last.
func (ch *charge) describe(ctx context.Context) []DeviceInfo {
	ctx, cancel := context.WithTimeout(ctx, askWorker)
	defer cancel()
	if w := ch.worker(); w != nil {
		var infos []DeviceInfo
		reply, err := w.control(ctx, opDevices, nil, nil)
		if err == nil && json.Unmarshal(reply, &infos) == nil {
			ch.mu.Lock()
			ch.infos = ch.bounded(infos)
			ch.mu.Unlock()
		}
	}
	ch.mu.Lock()
	defer ch.mu.Unlock()
	out := slices.Clone(ch.infos)
	d := &ch.deaths
	pid := 0
	if ch.cur != nil {
		pid = ch.cur.p.PID()
	}
	for i := range out {
		v := &out[i]
		v.Supervised, v.Worker, v.Restarts, v.LastCause, v.Report = true, pid, d.count, d.last, d.report
		v.Uncontained = ""
		if ch.bare != nil {
			v.Uncontained = ch.bare.Error()
		}
		v.Recovery = float64(d.took.Microseconds()) / 1000
		if ch.state != stateUp {
			v.State, v.Link = ch.state, downLink(v.Link)
			if v.Cause = d.why; ch.state == stateFailed {
				v.Cause = d.gave
			}
		}
	}
	return out
}

// downLink is the link of a device that nobody drives.
func downLink(l string) string {
	if l != "" {
		l = "down"
	}
	return l
}

// known is what is known of all devices, without asking anybody.
func (s *supervisor) known() (all []DeviceInfo) {
	for _, ch := range s.charges {
		ch.mu.Lock()
		all = append(all, ch.infos...)
		ch.mu.Unlock()
	}
	return all
}

// Devices describes the devices as they are now.
func (s *supervisor) Devices() []DeviceInfo {
	infos := make([][]DeviceInfo, len(s.charges))
	s.each(func(ch *charge) { infos[ch.index] = ch.describe(s.ctx) })
	return inPlanOrder(s, slices.Concat(infos...), func(d DeviceInfo) string { return d.Name })
}

// inPlanOrder puts what is of devices into the order that one System would have: machine by machine, and what came later at the end.
func inPlanOrder[T any](s *supervisor, all []T, name func(T) string) []T {
	place := map[string]int{}
	for _, m := range s.c.Plan.groups() {
		for _, d := range m {
			place[d.Name] = len(place) + 1
		}
	}
	slices.SortStableFunc(all, func(a, b T) int {
		x, y := place[name(a)], place[name(b)]
		if x == 0 {
			x = len(place) + 1
		}
		if y == 0 {
			y = len(place) + 1
		}
		return x - y
	})
	return all
}

// Figures are what there is to count, now. A group that does not answer is left out.
func (s *supervisor) Figures() *figures.Snapshot {
	f := &figures.Snapshot{Time: time.Now(), Mono: pktgen.Now(), Devices: []figures.Device{}, Pktgen: []figures.Generator{}, Receivers: []figures.Receiver{}}
	ctx, cancel := context.WithTimeout(s.ctx, askWorker)
	defer cancel()
	args, _ := json.Marshal(statsArgs{Interval: time.Second, Count: 1})
	all := make([]*figures.Snapshot, len(s.charges))
	s.each(func(ch *charge) {
		w := ch.worker()
		if w == nil {
			return
		}
		_, _ = w.stream(ctx, opStats, args, func(raw json.RawMessage) error {
			one := &figures.Snapshot{}
			if err := json.Unmarshal(raw, one); err != nil {
				return err
			}
			one.Devices = slices.DeleteFunc(one.Devices, func(d figures.Device) bool { return !ch.mayName(d.Name) })
			tame(reflect.ValueOf(one))
			all[ch.index] = one
			return nil
		})
	})
	for _, one := range all {
		if one != nil {
			f.Devices, f.Pktgen, f.Receivers = append(f.Devices, one.Devices...), append(f.Pktgen, one.Pktgen...), append(f.Receivers, one.Receivers...)
		}
	}
	f.Devices = inPlanOrder(s, f.Devices, func(d figures.Device) string { return d.Name })
	return f
}

// handlers are what the instance answers, but for what is its own: its messages and its name.
func (s *supervisor) handlers() instance.Handlers {
	h := instance.TreeHandlers(s.Tree())
	h[opDevices] = func(context.Context, json.RawMessage, func(any) error) (any, error) { return s.Devices(), nil }
	h[opCollisions] = func(context.Context, json.RawMessage, func(any) error) (any, error) { return s.collisions(), nil }
	h[opStats] = func(ctx context.Context, raw json.RawMessage, send func(any) error) (any, error) {
		return nil, sendFigures(ctx, raw, send, s.Figures)
	}
	h[opEthtool] = s.route(opEthtool, ethtoolReads, func(raw json.RawMessage) (string, error) {
		var a ethtoolArgs
		err := json.Unmarshal(raw, &a)
		return a.Device, err
	})
	h[opTrace], h[opTraceLast], h[opTraceSet] = s.traceHandler, s.traceLastHandler, s.traceSetHandler
	h[opEvents] = func(context.Context, json.RawMessage, func(any) error) (any, error) {
		events, _ := s.events.Read(0)
		return append([]uevent.Event{}, events...), nil
	}
	h[opEventsFollow] = follower(s.events.Follow)
	h[opPlug] = s.changing(s.route(opPlug, nil, func(raw json.RawMessage) (string, error) {
		var a plugArgs
		if err := json.Unmarshal(raw, &a); err != nil {
			return "", err
		}
		// What is wrong with it any worker says, and where its port is only that port's.
		d, err := ParseDevice(a.Device)
		if err != nil || s.chargeOf(d.under()) == nil {
			return s.charges[0].devices[0], nil
		}
		if other := s.chargeOf(d.Name); other != nil && other != s.chargeOf(d.under()) {
			return "", errNamed(d)
		}
		return d.under(), nil
	}))
	for _, op := range []string{opUnplug, opSuspend, opResume} {
		h[op] = s.changing(s.route(op, nil, func(raw json.RawMessage) (string, error) {
			var a plugArgs
			err := json.Unmarshal(raw, &a)
			return a.Device, err
		}))
	}
	h[opReload] = s.reloadHandler
	if s.c.Plan.Arm {
		h[opFault] = s.route(opFault, nil, faultRoute)
	}
	return h
}

// route sends an operation to the group of the device that its arguments name. again says of which arguments it changes nothing; nil: of none. A device that no group has is any group's to refuse.
func (s *supervisor) route(op string, again func(raw json.RawMessage) bool, device func(raw json.RawMessage) (string, error)) instance.Handler {
	return func(ctx context.Context, raw json.RawMessage, _ func(any) error) (any, error) {
		name, err := device(raw)
		var errno syscall.Errno
		switch {
		case errors.As(err, &errno):
			return nil, err
		case err != nil:
			return nil, fmt.Errorf("arguments: %v: %w", err, syscall.EINVAL)
		}
		ch := s.chargeOf(name)
		if ch == nil { // it may have come since anybody looked
			s.Devices()
			ch = s.chargeOf(name)
		}
		if ch == nil {
			ch = s.charges[0]
		}
		return ch.control(ctx, op, raw, nil, again != nil && again(raw))
	}
}

// ethtoolReads says whether an operation of ethtool's changes nothing.
func ethtoolReads(raw json.RawMessage) bool {
	var a ethtoolArgs
	if err := json.Unmarshal(raw, &a); err != nil {
		return false
	}
	op, ok := ethtoolOps[a.Op]
	return ok && !op.words
}

// changing is for operations after which there are other devices.
func (s *supervisor) changing(h instance.Handler) instance.Handler {
	return func(ctx context.Context, raw json.RawMessage, send func(any) error) (any, error) {
		v, err := h(ctx, raw, send)
		s.Devices()
		return v, err
	}
}

// injectHandler answers opInject.
func (s *System) injectHandler(ctx context.Context, raw json.RawMessage, _ func(any) error) (any, error) {
	var r aerinject.Record
	if err := json.Unmarshal(raw, &r); err != nil {
		return nil, fmt.Errorf("arguments: %v: %w", err, syscall.EINVAL)
	}
	return nil, s.injectError(ctx, r)
}
