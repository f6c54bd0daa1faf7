package host

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A goroutine that runs for ever and does nothing takes a CPU, and nothing else tells of it: all the others go on. That it does nothing cannot be seen, but that it
// runs at each look can: one that works waits, now and then, for the device, for a frame, for a lock, or for its time. A look is two, a little apart: who wakes by a clock
// may be about to run whenever the watchdog does, since that wakes by a clock too, and is gone by the second.

const (
	// ticksSpin is how many looks in a row a goroutine must be found to run before that counts as one look at which something was seen.
	ticksSpin = 7
	// spinShare is the part of a CPU that the process used since the look before; with less nobody spins, or nobody gets to.
	spinShare = 0.05
	// spinAgain is how long after the first look of a pair the second comes, at least, and up to four times that: at random, so that no clock keeps step.
	spinAgain = 5 * time.Millisecond
	// spinStacks is how much of the stacks is looked through.
	spinStacks = 1 << 20
)

// workers are who may run for hours, each of them watched by what it does: queues and their frames, interrupts, calls, commands of a TPM, the heartbeat. Of RapidIO it is the peers who say how
// much there is to do: they could have this worker killed.
var workers = [][]byte{
	[]byte("/pktgen.("), []byte("/netdev.("), []byte("/netdev/tap.("), []byte("/bus.(*Handler)"), []byte("/internal/link."), []byte("/tpmdd"), []byte("/rionet/"), []byte("/host.beat."),
}

// spinners finds goroutines that run at every look.
type spinners struct {
	cpu  time.Duration  // of the process, at the look before
	seen map[string]int // looks in a row, by number
	buf  []byte
}

// spins looks for them.
func (w *watchdog) spins(now map[suspectKey]string) {
	s := &w.spin
	used := processTime()
	busy := used-s.cpu >= time.Duration(spinShare*float64(w.tick))
	s.cpu = used
	if !busy || !w.up.Load() {
		s.seen = nil
		return
	}
	if s.buf == nil {
		s.buf = make([]byte, spinStacks)
	}
	seen := map[string]int{}
	for id, where := range runningTwice(func() []byte { return s.buf[:runtime.Stack(s.buf, true)] }, w.pause) {
		if seen[id] = s.seen[id] + 1; seen[id] > ticksSpin {
			now[suspectKey{suspectSpin, "", "goroutine " + id}] = "it never stops, in " + where
		}
	}
	s.seen = seen
}

// pause waits for the second look of a pair.
func (w *watchdog) pause() {
	t := time.NewTimer(spinAgain + rand.N(3*spinAgain))
	defer t.Stop()
	select {
	case <-t.C:
	case <-w.end:
	}
}

// runningTwice are those of running who are so in two listings, with a pause between. Where there is nobody in the first there is no second.
func runningTwice(stacks func() []byte, pause func()) map[string]string {
	first := running(stacks())
	if len(first) == 0 {
		return nil
	}
	pause()
	second := running(stacks())
	maps.DeleteFunc(second, func(id, _ string) bool { return first[id] == "" })
	return second
}

// running are the goroutines in a listing of runtime.Stack's that run, or would if there were a CPU, and whom nobody else watches: by number, where they are. The first is who
// asks.
func running(stacks []byte) map[string]string {
	out := map[string]string{}
	for i, g := range bytes.Split(stacks, []byte("\n\n")) {
		head, rest, _ := bytes.Cut(g, []byte("\n"))
		var id int
		if n, _ := fmt.Sscanf(string(head), "goroutine %d [run", &id); i == 0 || n != 1 || !(bytes.Contains(head, []byte("[running")) || bytes.Contains(head, []byte("[runnable"))) {
			continue
		}
		watched := false
		for _, w := range workers {
			watched = watched || bytes.Contains(rest, w)
		}
		if where := innermost(string(rest)); !watched && where != "" {
			out[fmt.Sprint(id)] = where
		}
	}
	return out
}

// innermost is the first function of a stack that is not the runtime's, nor one of sync or sync/atomic; "" where all are.
func innermost(stack string) string {
	for line := range strings.Lines(stack) {
		line = strings.TrimSuffix(line, "\n")
		if strings.HasPrefix(line, "\t") || strings.HasPrefix(line, "runtime.") || strings.HasPrefix(line, "sync") || strings.HasPrefix(line, "created by ") {
			continue
		}
		if at := strings.LastIndex(line, "("); at > 0 {
			line = line[:at]
		}
		return line[strings.LastIndex(line, "/")+1:]
	}
	return ""
}

// processTime is the CPU time that this process has used.
func processTime() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
