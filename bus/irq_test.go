package bus_test

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/internal/ioctl"
	"github.com/ring3dev/ring3/internal/rt/rttest"
)

func newIRQ(t *testing.T) *bus.IRQ {
	t.Helper()
	q, err := bus.NewIRQ(bus.MSIX, 3, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = q.Close() })
	return q
}

func TestIRQCounts(t *testing.T) {
	bustest.NoLeaks(t)
	q := newIRQ(t)
	for _, want := range []uint64{1, 3, 100} {
		for range want {
			q.Signal()
		}
		if n, err := q.Wait(t.Context()); n != want || err != nil {
			t.Errorf("Wait after %d signals = %d, %v", want, n, err)
		}
		q.SignalN(0)
		q.SignalN(want)
		if n, err := q.Wait(t.Context()); n != want || err != nil {
			t.Errorf("Wait after SignalN(%d) = %d, %v", want, n, err)
		}
	}
	if q.Mode() != bus.MSIX || q.Vector() != 3 {
		t.Errorf("Mode, Vector = %s, %d, want MSI-X, 3", q.Mode(), q.Vector())
	}
	for m, want := range map[bus.IRQMode]string{bus.INTx: "INTx", bus.MSI: "MSI", bus.MSIX: "MSI-X", 9: "IRQMode(9)"} {
		if got := m.String(); got != want {
			t.Errorf("String = %s, want %s", got, want)
		}
	}
}

// A server of devices has a vector signal its client's eventfd.
func TestIRQDivert(t *testing.T) {
	bustest.NoLeaks(t)
	eventfd := func() int {
		fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		return fd
	}
	count := func(fd int) (n uint64) {
		var b [8]byte
		if _, err := unix.Read(fd, b[:]); err == nil {
			n = binary.NativeEndian.Uint64(b[:])
		}
		return n
	}
	q, first, second := newIRQ(t), eventfd(), eventfd()
	q.SignalN(2)
	if !q.Divert(first) {
		t.Fatal("Divert = false, want true")
	}
	q.Signal()
	if n := count(first); n != 3 {
		t.Errorf("the eventfd was signalled %d times, want 3: two of them before", n)
	}
	if !q.Divert(second) {
		t.Fatal("a second Divert = false, want true")
	}
	q.Signal()
	if a, b := count(first), count(second); a != 0 || b != 1 {
		t.Errorf("the eventfds were signalled %d and %d times, want 0 and 1", a, b)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if n, err := q.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Wait = %d, %v, want none", n, err)
	}
	if q.Divert(-1) {
		t.Error("Divert to nothing = true")
	}
	_ = q.Close()
	q.Signal()
	if n := count(second); n != 0 || !q.Divert(first) {
		t.Errorf("%d signals after Close", n)
	}
	w, err := bus.WrapIRQ(bus.MSI, 0, first, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	o := newIRQ(t)
	o.Observe(func(uint64) {})
	if w.Divert(second) || o.Divert(second) {
		t.Error("Divert of a vector that others signal, or that is observed, = true")
	}
	passed := newIRQ(t)
	defer passed.Close()
	if passed.FD(); passed.Divert(second) {
		t.Error("Divert of a vector whose eventfd somebody took = true")
	}
}

func TestIRQUnmask(t *testing.T) {
	n := 0
	q, err := bus.NewIRQ(bus.INTx, 0, func() { n++ })
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	q.Unmask()
	q.Unmask()
	if n != 2 {
		t.Errorf("unmask was called %d times, want 2", n)
	}
	newIRQ(t).Unmask() // has none
}

func TestIRQClose(t *testing.T) {
	bustest.NoLeaks(t)
	for range 50 {
		q := newIRQ(t)
		ended := make(chan error)
		go func() {
			_, err := q.Wait(context.Background())
			ended <- err
		}()
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				if err := q.Close(); err != nil {
					t.Errorf("Close = %v, want nil, however often", err)
				}
			})
		}
		if err := <-ended; !errors.Is(err, bus.ErrClosed) {
			t.Fatalf("Wait after Close = %v, want ErrClosed", err)
		}
		wg.Wait()
		q.Signal()
		q.Unmask()
		if _, err := q.Wait(t.Context()); !errors.Is(err, bus.ErrClosed) {
			t.Fatalf("Wait of a closed vector = %v, want ErrClosed", err)
		}
	}
}

func TestIRQContext(t *testing.T) {
	bustest.NoLeaks(t)
	q := newIRQ(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := q.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Wait = %v, want DeadlineExceeded", err)
	}
	if _, err := q.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Wait with a ctx that is over = %v, want DeadlineExceeded", err)
	}
	q.Signal()
	if n, err := q.Wait(t.Context()); n != 1 || err != nil {
		t.Errorf("Wait after that = %d, %v, want 1: nothing of the old ctx is left", n, err)
	}
}

// Contexts that end just when the vector fires lose no signal, and leave nothing behind
// that ends a later Wait.
func TestIRQNoSignalLost(t *testing.T) {
	bustest.NoLeaks(t)
	q := newIRQ(t)
	const total = 2000
	go func() {
		for i := range total {
			q.Signal()
			if i%16 == 0 {
				time.Sleep(50 * time.Microsecond) // lets the waiter block
			}
		}
	}()
	var seen uint64
	for until := time.Now().Add(30 * time.Second); seen < total; {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Microsecond)
		n, err := q.Wait(ctx)
		cancel()
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("Wait = %v, want a signal or DeadlineExceeded", err)
		}
		if err != nil && n != 0 {
			t.Fatalf("Wait = %d and %v, want one of the two", n, err)
		}
		if seen += n; time.Now().After(until) {
			t.Fatalf("%d of %d signals arrived", seen, total)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Millisecond)
	defer cancel()
	if n, err := q.Wait(ctx); err == nil {
		t.Errorf("Wait after all = %d, want none: no signal counts twice", n)
	}
}

func TestWrapIRQ(t *testing.T) {
	bustest.NoLeaks(t)
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	one := []byte{1, 0, 0, 0, 0, 0, 0, 0}
	if _, err := unix.Write(fd, one); err != nil {
		t.Fatal(err)
	}
	q, err := bus.WrapIRQ(bus.MSI, 0, fd, nil)
	if err != nil {
		t.Fatal(err)
	}
	if q.FD() == fd {
		t.Error("FD is the caller's own, want a duplicate")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
	defer cancel()
	if n, err := q.Wait(ctx); err == nil {
		t.Errorf("Wait = %d, want none: what came before is forgotten", n)
	}
	if _, err := unix.Write(fd, one); err != nil {
		t.Fatal(err)
	}
	if n, err := q.Wait(t.Context()); n != 1 || err != nil {
		t.Errorf("Wait = %d, %v, want 1", n, err)
	}
	if err := q.Close(); err != nil {
		t.Error(err)
	}
	if _, err := unix.Write(fd, one); err != nil {
		t.Errorf("the caller's descriptor after Close: %v", err)
	}
	if _, err := bus.WrapIRQ(bus.MSI, 0, -1, nil); !errors.Is(err, unix.EBADF) {
		t.Errorf("WrapIRQ(-1) = %v, want EBADF", err)
	}
}

// Waiting takes no thread.
func TestIRQThreads(t *testing.T) {
	threads := func() int {
		e, err := os.ReadDir("/proc/self/task")
		if err != nil {
			t.Skip(err)
		}
		return len(e)
	}
	before := threads()
	var wg sync.WaitGroup
	var all []*bus.IRQ
	for range 200 {
		q := newIRQ(t)
		all = append(all, q)
		wg.Go(func() { _, _ = q.Wait(context.Background()) })
	}
	defer wg.Wait()
	defer func() {
		for _, q := range all {
			_ = q.Close()
		}
	}()
	time.Sleep(20 * time.Millisecond) // all of them block by now, or soon
	if now := threads(); now > before+20 {
		t.Errorf("%d threads for 200 waiters, %d before: want none for each", now, before)
	}
}

func TestMemoryFree(t *testing.T) {
	n := 0
	m := bus.NewMemory(make([]byte, 8), 0x1000, func() { n++ })
	m.Free()
	m.Free()
	(*bus.Memory)(nil).Free()
	(&bus.Memory{}).Free()
	if n != 1 || m.Bytes != nil {
		t.Errorf("free was called %d times, Bytes = %v, want once and nil", n, m.Bytes)
	}
}

func TestObserve(t *testing.T) {
	unmasked := 0
	q, err := bus.NewIRQ(bus.INTx, 0, func() { unmasked++ })
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	var seen []uint64
	q.Observe(func(n uint64) { seen = append(seen, n) })
	q.Observe(func(n uint64) { seen = append(seen, 100+n) })
	q.Signal()
	q.Signal()
	if n, err := q.Wait(t.Context()); n != 2 || err != nil {
		t.Fatalf("Wait() = %d, %v, want 2, nil", n, err)
	}
	q.Unmask()
	if want := []uint64{2, 102, 0, 100}; !slices.Equal(seen, want) || unmasked != 1 {
		t.Errorf("observed %d and unmasked %d times, want %d and 1", seen, unmasked, want)
	}
}

// Somebody who has the eventfd, too, may have it block, and take what was signalled before the waiter does. Close
// returns all the same, however the vector is waited for.
func TestIRQBlocks(t *testing.T) {
	t.Run("goroutine", func(t *testing.T) { irqBlocks(t, func(*testing.T, *bus.IRQ) {}) })
	t.Run("thread", func(t *testing.T) {
		irqBlocks(t, func(t *testing.T, q *bus.IRQ) { q.SetPolicy(rttest.Policy(t, 3)) })
	})
}

func irqBlocks(t *testing.T, prepare func(*testing.T, *bus.IRQ)) {
	bustest.NoLeaks(t)
	for range 20 {
		q := newIRQ(t)
		prepare(t, q)
		fd, err := unix.FcntlInt(uintptr(q.FD()), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		got := make(chan uint64, 1000)
		h := bus.Handle(q, "x", func(n uint64) {
			select {
			case got <- n:
			default:
			}
		})
		if err := unix.SetNonblock(fd, false); err != nil {
			t.Fatal(err)
		}
		q.Signal()
		<-got
		// The other one signals, and takes some of it back.
		var b [8]byte
		for until := time.Now().Add(5 * time.Millisecond); time.Now().Before(until); {
			q.Signal()
			_, _ = ioctl.ReadNow(fd, b[:])
		}
		closed := make(chan error, 1)
		go func() { closed <- h.Close() }()
		select {
		case err := <-closed:
			if err != nil {
				t.Errorf("Close = %v", err)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("Close does not return")
		}
	}
}
