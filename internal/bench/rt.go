package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/internal/rt"
)

// rtPriority is that of the rows of --rt.
const rtPriority = 50

// rtCase is a way for interrupts to come.
type rtCase struct {
	name string
	busy bool // every CPU has an ordinary process that never stops
	qemu bool // from QEMU's edu; otherwise an eventfd is signalled
}

var rtCases = []rtCase{
	{"MSI rt", false, true},
	{"MSI rt busy", true, true},
	{"eventfd rt", false, false},
	{"eventfd rt busy", true, false},
}

var quantiles = []struct {
	name string
	at   float64
}{{"p50", 0.5}, {"p99", 0.99}, {"max", 1}}

// realTime measures interrupts of a handler under --rt, beside an ordinary one (the limit), each in turn, with half a
// millisecond of rest before each interrupt. What is measured is the way there and back: from what makes the interrupt to
// the handler's answer at a real-time thread, which is the same one for both. Its own clock tells, since
// those of a virtual machine's CPUs may differ by more than an interrupt takes.
//
// On QEMU, which is an ordinary process, a busy machine holds up the device too; the rows of an eventfd tell what becomes
// of the handler alone.
func realTime(ctx context.Context, o *Options, emit func(Row) error) error {
	var wanted []rtCase
	for _, c := range rtCases {
		if o.wantsAny("irq", []string{c.name + " p50", c.name + " p99", c.name + " max"}) {
			wanted = append(wanted, c)
		}
	}
	if len(wanted) == 0 {
		return nil
	}
	p, err := rt.New(rt.Config{Priority: rtPriority, Log: o.Log})
	if err != nil {
		o.Log.Warn("bench: irq rt is left out: " + err.Error())
		return nil
	}
	defer func() { _ = p.Close() }()
	for _, c := range wanted {
		lat, err := rtLatencies(ctx, o, c, p)
		if err != nil {
			return fmt.Errorf("bench: irq %s: %w", c.name, err)
		}
		for _, q := range quantiles {
			us := [2]float64{}
			for i := range us {
				us[i] = float64(quantile(lat[i], q.at).Nanoseconds()) / 1000
			}
			row := Row{Bench: "irq", Case: c.name + " " + q.name, Value: us[1], Unit: "us", Limit: us[0], Ratio: us[1] / us[0]}
			if !o.wants(row.Bench, row.Case) {
				continue
			}
			if err := emit(row); err != nil {
				return err
			}
		}
	}
	return nil
}

// rtLatencies are those of an ordinary handler and of a real-time one, sorted.
func rtLatencies(ctx context.Context, o *Options, c rtCase, p *rt.Policy) (lat [2][]time.Duration, err error) {
	make := eventfdLine
	if c.qemu {
		m, d, r, err := edu(ctx, o)
		if err != nil {
			return lat, err
		}
		defer m.Close()
		make = func(p *rt.Policy) (*line, error) { return eduLine(d, r, p) }
	}
	if c.busy {
		stop, err := busy(ctx)
		if err != nil {
			return lat, err
		}
		defer stop()
	}
	for range max(2, o.Pairs) {
		for i, policy := range []*rt.Policy{nil, p} {
			l, err := make(policy)
			if err != nil {
				return lat, err
			}
			few, err := l.measure(ctx, p, 300)
			l.close()
			if err != nil {
				return lat, err
			}
			lat[i] = append(lat[i], few...)
		}
	}
	for i := range lat {
		slices.Sort(lat[i])
	}
	return lat, nil
}

// line is an interrupt line and what answers it.
type line struct {
	raise  func() // makes the interrupt
	answer int    // an eventfd that the handler signals
	close  func()
}

// newLine makes one of a vector, which is closed with it. ack is called by the handler.
func newLine(q *bus.IRQ, p *rt.Policy, raise, ack func()) (*line, error) {
	answer, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, errors.Join(err, q.Close())
	}
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	q.SetPolicy(p)
	h := bus.Handle(q, "bench", func(uint64) {
		ack()
		_, _ = unix.Write(answer, one[:])
	})
	return &line{raise, answer, func() { _ = h.Close(); _ = unix.Close(answer) }}, nil
}

// eduLine is QEMU's edu.
func eduLine(d bus.Device, r bus.Region, p *rt.Policy) (*line, error) {
	q, err := d.EnableIRQs(bus.MSI, 1)
	if err != nil {
		return nil, err
	}
	return newLine(q[0], p, func() { r.Write32(eduRaise, 1) }, func() { r.Write32(eduAck, 1) }) // before the next raise, which it would swallow
}

// eventfdLine is an eventfd that is signalled as the kernel does it for a device.
func eventfdLine(p *rt.Policy) (*line, error) {
	q, err := bus.NewIRQ(bus.MSI, 0, nil)
	if err != nil {
		return nil, err
	}
	return newLine(q, p, q.Signal, func() {})
}

// answerTime bounds the wait for an interrupt.
const answerTime = 10 * time.Second

// measure makes n interrupts on a real-time thread.
func (l *line) measure(ctx context.Context, p *rt.Policy, n int) (lat []time.Duration, err error) {
	done := make(chan struct{})
	p.Go("measure", func() {
		defer close(done)
		fds := []unix.PollFd{{Fd: int32(l.answer), Events: unix.POLLIN}}
		var b [8]byte
		for len(lat) < n && ctx.Err() == nil {
			rt.Sleep(500 * time.Microsecond)
			begin := time.Now()
			l.raise()
			for fds[0].Revents = 0; fds[0].Revents == 0; {
				if _, err = unix.Poll(fds, int(answerTime.Milliseconds())); err == unix.EINTR {
					continue
				}
				if time.Since(begin) >= answerTime {
					err = fmt.Errorf("no interrupt within %s: %w", answerTime, bus.ErrTimeout)
				}
				if err != nil {
					return
				}
			}
			lat = append(lat, time.Since(begin))
			_, _ = unix.Read(l.answer, b[:])
		}
		err = ctx.Err()
	})
	<-done
	return lat, err
}

// busy starts an ordinary process for each CPU that never stops, and returns what ends them.
func busy(ctx context.Context) (stop func(), err error) {
	var all []*exec.Cmd
	stop = func() {
		for _, c := range all {
			_ = c.Process.Kill()
			_ = c.Wait()
		}
	}
	for range runtime.NumCPU() {
		c := exec.CommandContext(ctx, "sh", "-c", "while :; do :; done")
		c.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
		if err := c.Start(); err != nil {
			stop()
			return nil, errors.Join(errors.New("keeping the machine busy"), err)
		}
		all = append(all, c)
	}
	return stop, nil
}
