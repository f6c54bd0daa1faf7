// Package rttest is for tests of what runs on real-time threads.
package rttest

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/internal/rt"
)

// Policy makes one, for as long as the test runs. The test is skipped where this process may have no such threads.
func Policy(t testing.TB, priority int) *rt.Policy {
	t.Helper()
	p, err := rt.New(rt.Config{Priority: priority})
	if err != nil {
		t.Skipf("real-time threads are to be had by root, or with the limits raised: %v", err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// Threads lists the names of this process's threads under SCHED_FIFO with that priority, in byte order.
func Threads(t testing.TB, priority int) []string {
	t.Helper()
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	names := []string{}
	for _, task := range tasks {
		tid, err := strconv.Atoi(task.Name())
		if err != nil {
			t.Fatal(err)
		}
		a, err := unix.SchedGetAttr(tid, 0)
		if err != nil || a.Policy != unix.SCHED_FIFO || a.Priority != uint32(priority) {
			continue // ended meanwhile, or another's
		}
		comm, _ := os.ReadFile("/proc/self/task/" + task.Name() + "/comm")
		names = append(names, strings.TrimSpace(string(comm)))
	}
	slices.Sort(names)
	return names
}

// Wait waits until the threads of that priority have these names, in byte order.
func Wait(t testing.TB, priority int, want ...string) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		got := Threads(t, priority)
		if slices.Equal(got, want) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("threads under SCHED_FIFO %d: %q, want %q", priority, got, want)
		}
	}
}
