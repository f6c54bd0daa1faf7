package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/ring3dev/ring3/bus"
)

// How a worker is watched.
const (
	beatTick   = 50 * time.Millisecond
	beatSilent = 20 // ticks without a beat: it hangs. A tick that came late is one tick: then this process did not run either
	beatLoaded = 10 // times as many where its threads wait for a CPU: the machine is loaded
	usageTicks = 10
	// maxMemory is what a worker may have resident beyond DMA memory, which is shared.
	maxMemory = 4 << 30
)

// watch waits until something is to be done about the worker: cause says why it has to be replaced; o is somebody's order. Neither: ctx ended.
func (w *worker) watch(ctx context.Context, orders <-chan *order) (o *order, cause error) {
	tick := time.NewTicker(beatTick)
	defer tick.Stop()
	ch := w.charge()
	beat, err := ch.ledger.Counter("beat")
	if err != nil {
		return nil, err
	}
	last, silent, n := beat.Load(), 0, 0
	for {
		select {
		case <-ctx.Done():
			return nil, nil
		case o := <-orders:
			return o, nil
		case err := <-w.fatal:
			return nil, err
		case <-w.conn.Done():
			return nil, w.conn.Err()
		case <-w.p.Done():
			return nil, fmt.Errorf("it ended: %w", bus.ErrGone)
		case <-tick.C:
		}
		now := beat.Load()
		if now != last {
			last, silent = now, 0
		} else {
			silent++
		}
		if silent >= beatSilent && !w.p.Traced() && (silent >= beatSilent*beatLoaded || !w.starved()) {
			return nil, fmt.Errorf("it hangs: no sign of life for %v: %w", beatTick*time.Duration(silent), bus.ErrTimeout)
		}
		if n++; n%usageTicks == 0 {
			if rss, _, err := w.p.Usage(); err == nil && rss > maxMemory {
				return nil, fmt.Errorf("its memory grew to %d MiB, want at most %d", rss>>20, maxMemory>>20)
			}
		}
	}
}

// askTimeout is how long a worker that has to be ended may take to say how it is. One that hangs says nothing, and is waited for by its clients.
const askTimeout = 100 * time.Millisecond

// ask has a worker that still answers say what its devices did last, for the report of its death.
func (w *worker) ask() {
	if w.over() {
		return
	}
	done := make(chan *workerReport, 1)
	go func() { // it ends with the link
		defer close(done)
		reply, files, err := w.conn.Call(context.Background(), lifeAsk, nil)
		closeFiles(files)
		var r workerReport
		if err == nil && json.Unmarshal(reply, &r) == nil {
			r.Cause = ""
			done <- &r
		}
	}()
	select {
	case r := <-done:
		w.mu.Lock()
		if w.report == nil {
			w.report = r
		}
		w.mu.Unlock()
	case <-time.After(askTimeout):
	}
}

// ended says how its process ended, or that it did not.
func (w *worker) ended() string { return w.p.State().String() }

// exitTime is how long a worker whose link ended may take to end: what it died of is in its exit status.
const exitTime = 2 * time.Second

// explain says more of why it died, by its exit status and last words, if err is that its link ended.
func (w *worker) explain(err error) error {
	if errors.Is(err, bus.ErrProtocol) || !errors.Is(err, bus.ErrGone) {
		return err
	}
	select {
	case <-w.p.Done():
	case <-time.After(exitTime):
		return err
	}
	w.mu.Lock()
	report := w.report
	w.mu.Unlock()
	if report != nil && report.Cause != "" {
		return errors.New(line(report.Cause))
	}
	if why := panicOf(w.p.Stderr()); why != "" {
		return errors.New(line(why))
	}
	return errors.New(w.p.State().String())
}

// line is the first line of a text, of a bearable length.
func line(s string) string {
	s, _, _ = strings.Cut(strings.TrimSpace(s), "\n")
	return s[:min(len(s), 200)]
}

// panicOf finds in what a Go program wrote last why it ended.
func panicOf(stderr []byte) string {
	for l := range strings.Lines(string(stderr)) {
		for _, mark := range []string{"panic: ", "fatal error: ", "SIGSEGV: ", "runtime: out of memory"} {
			if strings.HasPrefix(l, mark) {
				return l
			}
		}
	}
	return ""
}

// starved says whether its threads waited for a CPU, mostly, since it was asked last: then it is the machine that is slow. The kernel counts a wait
// once it is over: until then there is a thread that could run, and none that did.
func (w *worker) starved() bool {
	var ran, waited uint64
	runnable := false
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", w.p.PID()))
	for _, t := range tasks {
		var r, q uint64
		b, _ := os.ReadFile(t + "/schedstat")
		_, _ = fmt.Sscan(string(b), &r, &q)
		ran, waited = ran+r, waited+q
		b, _ = os.ReadFile(t + "/stat")
		_, state, _ := strings.Cut(string(b), ") ") // the name before is this program's
		runnable = runnable || strings.HasPrefix(state, "R")
	}
	more, did := waited-min(waited, w.waited), ran-min(ran, w.ran)
	w.waited, w.ran = waited, ran
	return more > uint64(beatTick.Nanoseconds()/2) || runnable && did < uint64(beatTick.Nanoseconds()/10)
}
