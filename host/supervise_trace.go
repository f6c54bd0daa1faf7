package host

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"syscall"

	"github.com/ring3dev/ring3/bus/trace"
	"github.com/ring3dev/ring3/bus/trace/tracefile"
)

// traced is the devices that arguments of a trace name, by group.
func (s *supervisor) traced(raw json.RawMessage) (a traceArgs, by map[*charge][]string, infos []DeviceInfo, err error) {
	if len(raw) > 0 {
		if err := json.Unmarshal(raw, &a); err != nil {
			return a, nil, nil, fmt.Errorf("trace: arguments: %v: %w", err, syscall.EINVAL)
		}
	}
	if _, err := tracefile.ParseFilter(a.Filter); err != nil {
		return a, nil, nil, err
	}
	by = map[*charge][]string{}
	for _, d := range s.Devices() {
		if ch := s.chargeOf(d.Name); ch != nil && (len(a.Devices) == 0 || slices.Contains(a.Devices, d.Name)) {
			by[ch] = append(by[ch], d.Name)
			infos = append(infos, d)
		}
	}
	for _, n := range a.Devices {
		if !slices.ContainsFunc(infos, func(d DeviceInfo) bool { return d.Name == n }) {
			return a, nil, nil, fmt.Errorf("no device is named %s: %w", n, syscall.ENODEV)
		}
	}
	return a, by, infos, nil
}

// ask has each of some groups do an operation of traces for its own devices.
func ask(by map[*charge][]string, a traceArgs, f func(ch *charge, args json.RawMessage) error) error {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	for ch, names := range by {
		own := a
		own.Devices = names
		args, err := json.Marshal(own)
		if err != nil {
			return err
		}
		wg.Go(func() {
			if err := f(ch, args); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// traceHandler streams what is recorded from now on. Of several groups it makes one file, and goes on with the next worker of one that dies.
func (s *supervisor) traceHandler(ctx context.Context, raw json.RawMessage, send func(any) error) (any, error) {
	a, by, infos, err := s.traced(raw)
	if err != nil {
		return nil, err
	}
	ctx, cancel := a.bound(ctx)
	defer cancel()
	a.Duration = 0
	out, err := newTraceJoin(sender(send), infos)
	if err == nil {
		err = ask(by, a, func(ch *charge, args json.RawMessage) error {
			for {
				err := out.take(func(send func(json.RawMessage) error) error {
					_, err := ch.control(ctx, opTrace, args, send, false)
					return err
				})
				if ctx.Err() != nil || s.ctx.Err() != nil || err == nil || !errors.Is(err, errDied) {
					return err
				}
			}
		})
	}
	if ctx.Err() != nil {
		err = nil // the end that was asked for
	}
	return nil, err
}

// traceJoin makes one trace of several.
type traceJoin struct {
	mu sync.Mutex
	w  tracefile.Writer
}

func newTraceJoin(w io.Writer, infos []DeviceInfo) (*traceJoin, error) {
	var sources []tracefile.Source
	for _, d := range infos {
		sources = append(sources, tracefile.Source{Name: d.Name, Address: d.Address, Backend: d.Backend, Driver: d.Driver})
	}
	out, err := tracefile.NewPcapng(w, sources)
	if err != nil {
		return nil, err
	}
	return &traceJoin{w: out}, out.Flush()
}

// take adds one trace, whose pieces f sends.
func (j *traceJoin) take(f func(send func(json.RawMessage) error) error) error {
	r, w := io.Pipe()
	read := make(chan error, 1)
	go func() {
		err := j.entries(r, nil)
		r.CloseWithError(err)
		read <- err
	}()
	err := f(func(raw json.RawMessage) error {
		var p tracePiece
		if err := json.Unmarshal(raw, &p); err != nil {
			return err
		}
		_, err := w.Write(p.Pcapng)
		return err
	})
	w.Close()
	if e := <-read; err == nil {
		err = e
	}
	return err
}

// entries writes what is in a trace; each, where given, gets it instead.
func (j *traceJoin) entries(r io.Reader, each func(trace.Entry)) error {
	in := tracefile.NewReader(r)
	for {
		e, err := in.Next()
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return err
		}
		if each != nil {
			each(e)
			continue
		}
		j.mu.Lock()
		err = j.w.Write(&e)
		if err == nil && !in.Buffered() {
			err = j.w.Flush()
		}
		j.mu.Unlock()
		if err != nil {
			return err
		}
	}
}

// traceLastHandler gives the last records.
func (s *supervisor) traceLastHandler(ctx context.Context, raw json.RawMessage, _ func(any) error) (any, error) {
	a, by, infos, err := s.traced(raw)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	out, err := newTraceJoin(&b, infos)
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex
	var all []trace.Entry
	err = ask(by, a, func(ch *charge, args json.RawMessage) error {
		reply, err := ch.control(ctx, opTraceLast, args, nil, true)
		var p tracePiece
		if err == nil {
			err = json.Unmarshal(reply, &p)
		}
		if err != nil {
			return err
		}
		return out.entries(bytes.NewReader(p.Pcapng), func(e trace.Entry) {
			mu.Lock()
			defer mu.Unlock()
			all = append(all, e)
		})
	})
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(all, func(a, b trace.Entry) int { return int(a.Time - b.Time) })
	all = all[max(0, len(all)-max(a.Last, 0)):]
	err = writeEntries(out.w, all)
	return tracePiece{b.Bytes()}, err
}

// traceSetHandler turns recording on and off.
func (s *supervisor) traceSetHandler(ctx context.Context, raw json.RawMessage, _ func(any) error) (any, error) {
	a, by, _, err := s.traced(raw)
	if err != nil {
		return nil, err
	}
	return nil, ask(by, a, func(ch *charge, args json.RawMessage) error {
		_, err := ch.control(ctx, opTraceSet, args, nil, true)
		return err
	})
}
