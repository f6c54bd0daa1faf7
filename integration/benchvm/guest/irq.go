//go:build linux

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/integration/benchvm/row"
	"github.com/ring3dev/ring3/internal/rt"
	"github.com/ring3dev/ring3/vfio"
)

// Registers of QEMU's edu device (docs/specs/edu) that make it interrupt.
const (
	eduRaise bus.Off = 0x60
	eduAck   bus.Off = 0x64
)

// rtPriority is the priority of --rt here.
const rtPriority = 50

// irqCPU is where the kernel is interrupted, and where the real-time thread runs: waking another
// CPU takes its time.
const irqCPU = 0

// irqArg is what the child "irq" is to do.
type irqArg struct {
	Addr  string `json:"addr"`
	RT    bool   `json:"rt"`
	Times int    `json:"times"`
}

// irqTimes are when an interrupt was asked for and when the handler ran, by CLOCK_MONOTONIC in
// nanoseconds.
type irqTimes struct {
	Raised []int64 `json:"raised"`
	Served []int64 `json:"served"`
}

func clock() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return ts.Nano()
}

// irqMain has a device interrupt, again and again, by a register write.
func irqMain(a irqArg, _ func(func() uint64) error) (r irqTimes, err error) {
	var policy *rt.Policy
	if a.RT {
		if policy, err = rt.New(rt.Config{Priority: rtPriority, CPUs: []int{irqCPU}}); err != nil {
			return r, err
		}
		defer policy.Close()
	}
	d, err := vfio.Open(context.Background(), a.Addr, vfio.Options{})
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	regs, err := d.Region(0)
	if err != nil {
		return r, err
	}
	pci.SetCommand(d.Config(), pci.CmdMem|pci.CmdMaster, 0)
	q, err := d.EnableIRQs(bus.MSI, 1)
	if err != nil {
		return r, err
	}
	q[0].SetPolicy(policy)
	at := make(chan int64, 1)
	h := bus.Handle(q[0], "edu0", func(uint64) {
		t := clock()
		regs.Write32(eduAck, 1) // before the next, which it would swallow
		at <- t
	})
	defer h.Close()
	late := time.NewTimer(patience)
	for range a.Times {
		time.Sleep(500 * time.Microsecond)
		begin := clock()
		regs.Write32(eduRaise, 1)
		late.Reset(patience)
		select {
		case t := <-at:
			r.Raised, r.Served = append(r.Raised, begin), append(r.Served, t)
		case <-late.C:
			return r, fmt.Errorf("interrupt %d of %d: not within %s: %w", len(r.Raised)+1, a.Times, patience, bus.ErrTimeout)
		}
	}
	return r, nil
}

// hogMain keeps a CPU busy.
func hogMain(_ nothing, serve func(func() uint64) error) (nothing, error) {
	go func() {
		for n := uint64(1); n != 0; n++ {
		}
	}()
	return nothing{}, serve(func() uint64 { return 0 })
}

// interrupts measures how long it takes from the register write that makes the device interrupt to
// the handler: ring3's, on ordinary and on real-time threads, and the kernel's own, which the tracepoint
// irq:irq_handler_entry tells of. Once while the CPUs have nothing else to do, once while an
// ordinary program runs on each.
func interrupts(s *session, emit func(...row.Row) error) (err error) {
	set := s.set("irq")
	const times = 500
	const affinity = "/proc/irq/default_smp_affinity" // of interrupts that are set up from now on
	before, err := os.ReadFile(affinity)
	if err != nil {
		return err
	}
	if err := write(affinity, strconv.FormatInt(1<<irqCPU, 16)); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, write(affinity, strings.TrimSpace(string(before)))) }()
	for range min(s.Reps, 3) {
		for _, load := range []string{"idle", "busy"} {
			if err := s.underLoad(set, load, times); err != nil {
				return fmt.Errorf("irq: %s: %w", load, err)
			}
		}
	}
	return emit(set.Rows()...)
}

// irqWays are the ways to be interrupted.
var irqWays = []struct {
	name       string
	rt, traced bool
}{{"ring3", false, false}, {"ring3 rt=" + strconv.Itoa(rtPriority), true, false}, {"kernel's handler", false, true}}

func (s *session) underLoad(set *row.Set, load string, times int) (err error) {
	var hogs []*process
	defer func() {
		for _, h := range hogs {
			err = errors.Join(err, h.result(&nothing{}))
		}
	}()
	for _, w := range irqWays {
		name := w.name + " " + load
		if !set.Wants(name+" p50") && !set.Wants(name+" p99") && !set.Wants(name+" max") {
			continue
		}
		if load == "busy" && hogs == nil {
			for cpu := range 2 {
				h, err := serving(who{cpu: cpu}, "hog", nothing{})
				if err != nil {
					return err
				}
				hogs = append(hogs, h)
			}
		}
		lat, err := s.latencies(w.rt, w.traced, times)
		if err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
		slices.Sort(lat)
		for _, q := range []struct {
			name string
			at   float64
		}{{"p50", 0.5}, {"p99", 0.99}, {"max", 1}} {
			if n := name + " " + q.name; set.Wants(n) {
				set.Add(n, "us", float64(row.Quantile(lat, q.at).Nanoseconds())/1000)
			}
		}
	}
	return nil
}

// latencies has the device interrupt that often.
func (s *session) latencies(realtime, traced bool, times int) ([]time.Duration, error) {
	if err := s.bind(row.Edu, "vfio-pci"); err != nil {
		return nil, err
	}
	if err := unix.Setrlimit(unix.RLIMIT_RTPRIO, &unix.Rlimit{Cur: rtPriority, Max: rtPriority}); err != nil {
		return nil, err
	}
	if traced {
		if err := traceIRQs(); err != nil {
			return nil, err
		}
	}
	var r irqTimes
	if err := ask(who{nobody: true, cpu: -1}, "irq", irqArg{row.Edu, realtime, times}, &r); err != nil {
		return nil, err
	}
	if traced {
		var err error
		if r.Served, err = tracedIRQs(); err != nil {
			return nil, err
		}
	}
	if len(r.Served) != len(r.Raised) {
		return nil, fmt.Errorf("%d interrupts were raised, %d were served", len(r.Raised), len(r.Served))
	}
	lat := make([]time.Duration, len(r.Raised))
	for i := range lat {
		lat[i] = time.Duration(r.Served[i] - r.Raised[i])
	}
	return lat, nil
}

const (
	tracing  = "/sys/kernel/tracing"
	irqEvent = "events/irq/irq_handler_entry"
)

// traceIRQs begins to note when the kernel's handlers of VFIO devices run.
func traceIRQs() error {
	if _, err := os.Stat(filepath.Join(tracing, "trace")); err != nil {
		if err := unix.Mount("tracefs", tracing, "tracefs", 0, ""); err != nil {
			return fmt.Errorf("mounting tracefs: %w", err)
		}
	}
	for _, w := range [][2]string{
		{"trace_clock", "mono"}, {irqEvent + "/filter", `name ~ "vfio-msi*"`}, {irqEvent + "/enable", "1"}, {"tracing_on", "1"},
	} {
		if err := write(filepath.Join(tracing, w[0]), w[1]); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(tracing, "trace"), nil, 0) // opening it for writing empties it
}

var irqLine = regexp.MustCompile(`\s([0-9]+)\.([0-9]{6}): irq_handler_entry:`)

// tracedIRQs ends that and returns the times.
func tracedIRQs() (at []int64, err error) {
	if err := write(filepath.Join(tracing, irqEvent, "enable"), "0"); err != nil {
		return nil, err
	}
	f, err := os.Open(filepath.Join(tracing, "trace"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		m := irqLine.FindStringSubmatch(lines.Text())
		if m == nil || strings.HasPrefix(lines.Text(), "#") {
			continue
		}
		sec, err1 := strconv.ParseInt(m[1], 10, 64)
		usec, err2 := strconv.ParseInt(m[2], 10, 64)
		if err := errors.Join(err1, err2); err != nil {
			return nil, err
		}
		at = append(at, sec*1e9+usec*1e3)
	}
	return at, lines.Err()
}
