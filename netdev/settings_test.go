package netdev

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/internal/node"
	"github.com/ring3dev/ring3/sysfs"
)

// tunable is a device all of whose settings can change.
type tunable struct {
	*dev
	mtu  int
	mode RxMode
	napi NAPI
}

func (d *tunable) MTU() int                                    { return d.mtu }
func (d *tunable) MTURange() (lowest, highest int)             { return 68, 9000 }
func (d *tunable) SetMTU(_ context.Context, mtu int) error     { d.mtu = mtu; return nil }
func (d *tunable) RxMode() RxMode                              { return d.mode }
func (d *tunable) SetRxMode(_ context.Context, m RxMode) error { d.mode = m; return nil }
func (d *tunable) NAPI() NAPI                                  { return d.napi }
func (d *tunable) SetNAPI(n NAPI) error                        { d.napi = n; return nil }

// echo writes an attribute as echo(1) does.
func echo(t *testing.T, dir *sysfs.Dir, path, value string) error {
	t.Helper()
	n, err := dir.Walk(path)
	if err != nil {
		return err
	}
	f, ok := n.(*node.File)
	if !ok || f.Store == nil {
		t.Fatalf("%s cannot be written", path)
	}
	k, err := f.Store(context.Background(), []byte(value+"\n"))
	if err == nil && k != len(value)+1 {
		t.Errorf("%s took %d bytes of %q", path, k, value)
	}
	return err
}

// TestSettings writes every attribute that can be written, with the kernel's errors.
func TestSettings(t *testing.T) {
	d := &tunable{dev: newDev("eth0"), mtu: 1500, mode: RxMode{AllMulti: true}}
	dir := ClassDir(d, ClassOptions{})
	for _, c := range []struct {
		file, value, want string
		err               syscall.Errno
	}{
		{"mtu", "", "1500\n", 0}, {"mtu", "9000", "9000\n", 0}, {"mtu", "0x44", "68\n", 0}, {"mtu", "67", "68\n", syscall.EINVAL}, {"mtu", "9001", "68\n", syscall.EINVAL},
		{"mtu", "4294967296", "68\n", syscall.EINVAL}, {"mtu", "-1", "68\n", syscall.EINVAL}, {"mtu", "large", "68\n", syscall.EINVAL},
		{"mtu", "99999999999999999999", "68\n", syscall.ERANGE},
		{"flags", "", "0x1203\n", 0}, {"flags", "0x1303", "0x1303\n", 0}, {"flags", "0x1003", "0x1003\n", 0}, {"flags", "0x101", "0x1103\n", 0},
		{"flags", "0x1002", "0x1103\n", syscall.EOPNOTSUPP}, {"flags", "up", "0x1103\n", syscall.EINVAL},
		{"gro_flush_timeout", "", "0\n", 0}, {"gro_flush_timeout", "200000", "200000\n", 0}, {"gro_flush_timeout", "9223372036854775808", "200000\n", syscall.ERANGE},
		{"gro_flush_timeout", "1ms", "200000\n", syscall.EINVAL},
		{"napi_defer_hard_irqs", "", "0\n", 0}, {"napi_defer_hard_irqs", "2", "2\n", 0}, {"napi_defer_hard_irqs", "2147483648", "2\n", syscall.ERANGE},
	} {
		if c.value != "" {
			if err := echo(t, dir, c.file, c.value); c.err == 0 && err != nil || c.err != 0 && !errors.Is(err, c.err) {
				t.Errorf("echo %s > %s = %v, want %v", c.value, c.file, err, c.err)
			}
		}
		if got, err := cat(t, dir, c.file); err != nil || got != c.want {
			t.Errorf("%s after %q = %q, %v, want %q", c.file, c.value, got, err, c.want)
		}
	}
	if d.napi != (NAPI{DeferHardIRQs: 2, GROFlushTimeout: 200 * time.Microsecond}) {
		t.Errorf("NAPI = %+v", d.napi)
	}
	close(d.done)
	for _, f := range []string{"mtu", "flags", "gro_flush_timeout", "napi_defer_hard_irqs"} {
		if err := echo(t, dir, f, "0x45"); !errors.Is(err, syscall.EINVAL) {
			t.Errorf("echo > %s of a device that is gone = %v, want EINVAL", f, err)
		}
	}
	// A device without these settings has no such files, or they are read-only.
	dir = ClassDir(newDev("eth1"), ClassOptions{})
	for _, f := range []string{"mtu", "flags"} {
		if n, err := dir.Walk(f); err != nil || n.(*node.File).Store != nil {
			t.Errorf("%s of a fixed device can be written, or %v", f, err)
		}
	}
	if dir.Lookup("gro_flush_timeout") != nil {
		t.Error("gro_flush_timeout of a device without is there")
	}
}

// polled is a receive queue that has frames at certain times, and notes what Poll does.
type polled struct {
	far
	napi  NAPI
	done  chan struct{}
	start time.Time
	at    []time.Duration // frames still to come
	log   string
	burst int // the largest asked for
	err   error
}

func (q *polled) NAPI() NAPI            { return q.napi }
func (q *polled) Done() <-chan struct{} { return q.done }

func (q *polled) Burst(bufs []*dma.Buf) int {
	if len(bufs) == 0 {
		return 0
	}
	q.burst = max(q.burst, len(bufs))
	n := 0
	for n < len(bufs) && len(q.at) > 0 && time.Since(q.start) >= q.at[0] {
		q.at = q.at[1:]
		n++
	}
	if n > 0 {
		q.log += fmt.Sprintf(" %d@%s", n, time.Since(q.start))
	}
	return n
}

func (q *polled) Wait(ctx context.Context) error {
	q.log += fmt.Sprintf(" irq@%s", time.Since(q.start))
	if len(q.at) == 0 {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-q.done:
			return q.err
		}
	}
	time.Sleep(q.at[0] - time.Since(q.start))
	return nil
}

// TestPollSettings runs Poll with each setting on a clock of its own.
func TestPollSettings(t *testing.T) {
	ms := time.Millisecond
	for _, c := range []struct {
		name string
		napi NAPI
		at   []time.Duration
		want string
	}{
		{"default", NAPI{}, []time.Duration{0, 0, 5 * ms}, " 2@0s irq@0s 1@5ms irq@5ms"},
		{"weight", NAPI{Weight: 2}, []time.Duration{0, 0, 0, 0, 0}, " 2@0s 2@0s 1@0s irq@0s"},
		{"deferred", NAPI{DeferHardIRQs: 2, GROFlushTimeout: ms}, []time.Duration{0, ms / 2, 9 * ms}, " 1@0s 1@1ms irq@3ms 1@9ms irq@11ms"},
		{"no timeout", NAPI{DeferHardIRQs: 2}, []time.Duration{0, ms}, " 1@0s irq@0s 1@1ms irq@1ms"},
		{"no count", NAPI{GROFlushTimeout: ms}, []time.Duration{0, ms}, " 1@0s irq@0s 1@1ms irq@1ms"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				q := &polled{napi: c.napi, done: make(chan struct{}), start: time.Now(), at: c.at}
				ended := make(chan error, 1)
				go func() { ended <- Poll(ctx, q, func([]*dma.Buf) {}) }()
				time.Sleep(time.Second)
				cancel()
				if err := <-ended; err != nil {
					t.Errorf("Poll = %v, want nil", err)
				}
				if q.log != c.want {
					t.Errorf("Poll did%s, want%s", q.log, c.want)
				}
				if want := c.napi.Weight; want > 0 && q.burst != want {
					t.Errorf("Poll asked for %d frames, want %d", q.burst, want)
				}
			})
		})
	}
}

// TestPollEndsWhileDeferred: neither the end of the device nor that of the context waits for a long timeout.
func TestPollEndsWhileDeferred(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, closed := range []bool{false, true} {
			ctx, cancel := context.WithCancel(t.Context())
			q := &polled{napi: NAPI{DeferHardIRQs: 9, GROFlushTimeout: time.Hour}, done: make(chan struct{}), start: time.Now(), err: bus.ErrGone}
			ended := make(chan error, 1)
			go func() { ended <- Poll(ctx, q, func([]*dma.Buf) {}) }()
			synctest.Wait()
			want := error(nil)
			if closed {
				close(q.done)
				want = bus.ErrGone
			} else {
				cancel()
			}
			if err := <-ended; !errors.Is(err, want) || time.Since(q.start) > time.Second {
				t.Errorf("Poll = %v after %s, want %v at once", err, time.Since(q.start), want)
			}
			cancel()
		}
	})
}

// Changes of parts at the same time do not undo each other.
func TestChangeNAPI(t *testing.T) {
	d := &tunable{}
	var wg sync.WaitGroup
	for range 1000 {
		wg.Go(func() { _ = ChangeNAPI(d, func(p *NAPI) { p.Weight++ }) })
		wg.Go(func() { _ = ChangeNAPI(d, func(p *NAPI) { p.DeferHardIRQs++ }) })
	}
	wg.Wait()
	if d.napi.Weight != 1000 || d.napi.DeferHardIRQs != 1000 {
		t.Errorf("after 1000 changes of each: %+v", d.napi)
	}
}
