package faulttest

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"testing"
)

// runTB is the testing.TB of one run: its cleanups are run at its end, and what fails, fails the
// run.
type runTB struct {
	testing.TB

	mu       sync.Mutex
	cleanups []func()
	failed   bool
	skipped  bool
	said     string
	ctx      context.Context
}

// run calls f and the cleanups, and notes in r how they ended.
func (t *runTB) run(r *result, f func()) {
	var end func()
	t.ctx, end = context.WithCancel(context.Background())
	t.guard(r, f)
	end()
	for {
		t.mu.Lock()
		n := len(t.cleanups)
		if n == 0 {
			t.mu.Unlock()
			break
		}
		c := t.cleanups[n-1]
		t.cleanups = t.cleanups[:n-1]
		t.mu.Unlock()
		t.guard(r, c)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.failed:
		r.broken += t.said
	case t.skipped:
		r.skipped = t.said
	}
}

// guard calls f, which may panic or end its goroutine.
func (t *runTB) guard(r *result, f func()) {
	done := make(chan struct{})
	go func() { // FailNow ends it
		defer close(done)
		defer func() {
			if v := recover(); v != nil {
				r.broken += recovered(v)
			}
		}()
		f()
	}()
	<-done
}

func (t *runTB) say(s string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.said != "" {
		t.said += "\n"
	}
	t.said += s
}

func (t *runTB) Cleanup(f func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cleanups = append(t.cleanups, f)
}

func (t *runTB) Context() context.Context { return t.ctx }

func (t *runTB) Fail() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.failed = true
}

func (t *runTB) Failed() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.failed
}

func (t *runTB) Skipped() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.skipped
}

func (t *runTB) FailNow() {
	t.Fail()
	runtime.Goexit()
}

func (t *runTB) SkipNow() {
	t.mu.Lock()
	t.skipped = true
	t.mu.Unlock()
	runtime.Goexit()
}

func (t *runTB) Error(args ...any)                 { t.say(fmt.Sprint(args...)); t.Fail() }
func (t *runTB) Errorf(format string, args ...any) { t.say(fmt.Sprintf(format, args...)); t.Fail() }
func (t *runTB) Fatal(args ...any)                 { t.say(fmt.Sprint(args...)); t.FailNow() }
func (t *runTB) Fatalf(format string, args ...any) { t.say(fmt.Sprintf(format, args...)); t.FailNow() }
func (t *runTB) Skip(args ...any)                  { t.say(fmt.Sprint(args...)); t.SkipNow() }
func (t *runTB) Skipf(format string, args ...any)  { t.say(fmt.Sprintf(format, args...)); t.SkipNow() }
func (t *runTB) Log(...any)                        {}
func (t *runTB) Logf(string, ...any)               {}
func (t *runTB) Helper()                           {}
