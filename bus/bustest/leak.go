package bustest

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"
)

// NeedQEMU skips a test where there is no QEMU to run. With RING3_NEED_QEMU set in the
// environment it fails it: for a CI that must not pass by testing nothing.
func NeedQEMU(t testing.TB) {
	t.Helper()
	_, err := exec.LookPath("qemu-system-x86_64")
	if err == nil {
		return
	}
	if os.Getenv("RING3_NEED_QEMU") != "" {
		t.Fatalf("needs QEMU (Debian: apt-get install qemu-system-x86), and RING3_NEED_QEMU is set: %v", err)
	}
	t.Skipf("needs QEMU (Debian: apt-get install qemu-system-x86): %v", err)
}

// NoLeaks fails the test if, after all cleanups that were registered later, there are
// descriptors, mappings of shared memory or goroutines that were not there before. Call
// it first. It waits ten seconds for what is still ending.
func NoLeaks(t testing.TB) {
	t.Helper()
	prime()
	before := held()
	t.Cleanup(func() {
		if t.Skipped() {
			return
		}
		var now map[string]int
		for until := time.Now().Add(10 * time.Second); ; {
			now = held()
			if extra(before, now) == "" {
				return
			}
			if time.Now().After(until) {
				break
			}
			time.Sleep(5 * time.Millisecond) // nothing signals that a goroutine is gone
		}
		t.Errorf("the test left behind:\n%s", extra(before, now))
	})
}

// prime has the runtime open what it opens once: its poller, and what os/exec tries.
func prime() {
	if r, w, err := os.Pipe(); err == nil {
		r.Close()
		w.Close()
	}
}

func extra(before, now map[string]int) string {
	var b strings.Builder
	for what, n := range now {
		if more := n - before[what]; more > 0 {
			fmt.Fprintf(&b, "%d x %s\n", more, what)
		}
	}
	return b.String()
}

// held counts descriptors by what they are, mappings of memory files, and goroutines by
// where they were made.
func held() map[string]int {
	h := map[string]int{}
	ent, _ := os.ReadDir("/proc/self/fd")
	for _, e := range ent {
		to, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil {
			continue // the descriptor that lists them
		}
		kind, _, _ := strings.Cut(to, ":[")
		if strings.HasPrefix(to, "anon_inode:") {
			kind = to
		}
		h["descriptor "+kind]++
	}
	maps, _ := os.ReadFile("/proc/self/maps")
	for line := range strings.Lines(string(maps)) {
		if _, name, ok := strings.Cut(line, "/memfd:"); ok {
			h["mapping of memfd "+strings.TrimSpace(name)]++
		}
	}
	buf := make([]byte, 1<<20)
	for _, g := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		_, by, ok := strings.Cut(g, "\ncreated by ")
		if !ok {
			continue
		}
		by, _, _ = strings.Cut(by, "\n")
		by, _, _ = strings.Cut(by, " in goroutine")
		if !strings.HasPrefix(by, "testing.") {
			h["goroutine created by "+by]++
		}
	}
	return h
}
