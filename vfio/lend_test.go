package vfio

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/bustest"
	"github.com/ring3dev/ring3/bus/pci"
)

// lend opens a device of the fake's and lends it.
func lend(t *testing.T, f *fake, o LoanOptions) (*Device, *Loan) {
	t.Helper()
	d := f.mustOpen(t, addr, f.options())
	l, err := d.Lend(o)
	if err != nil {
		t.Fatal(err)
	}
	return d, l
}

// borrow borrows it.
func borrow(t *testing.T, f *fake, l Lender) *Device {
	t.Helper()
	d, err := Borrow(t.Context(), l, f.options())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
	})
	return d
}

// A borrowed device is one like any other.
func TestBorrowed(t *testing.T) {
	for _, cdev := range []bool{false, true} {
		t.Run(map[bool]string{false: "group", true: "cdev"}[cdev], func(t *testing.T) {
			bustest.All(t, func(t *testing.T) bustest.Subject {
				f := newFake(t)
				fn := f.add(addr, 7, "vfio-pci")
				fn.io = true
				if cdev {
					f.withCdev(addr, 7)
				}
				owner, l := lend(t, f, LoanOptions{})
				d := borrow(t, f, l)
				t.Cleanup(func() {
					_ = d.Close()
					if len(fn.space.maps) != 0 || len(l.chunks) != 0 || l.bytes != 0 {
						t.Errorf("%d mappings, %d chunks of %d bytes are left after Close", len(fn.space.maps), len(l.chunks), l.bytes)
					}
					_ = owner.Close()
					if n := users(fn.ino); n != 1 { // the fake's own
						t.Errorf("%d descriptors of the device are left after Close", n-1)
					}
				})
				return bustest.Subject{
					Device:  d,
					Scratch: &bustest.Scratch{Region: 0, Off: 4096, Reads: func(v uint32) uint32 { return v }},
					Raise:   func() { f.raise(fn, true) },
					Lower:   func() { f.raise(fn, false) },
					MaxMove: 65536, MoveMask: 1<<28 - 1,
					Move: func(_ context.Context, dst, src bus.IOVA, n int) error {
						from, to := f.reach(fn, src, n, permRead), f.reach(fn, dst, n, permWrite)
						if from == nil || to == nil {
							return errors.New("stopped by the IOMMU")
						}
						copy(to, from)
						return nil
					},
					Kill: func() {
						f.tell(fn, irqReq)
						<-d.Done()
					},
				}
			})
		})
	}
}

// crash is what the kernel does with a borrower that is killed: its descriptors go, and nothing is said.
func crash(d *Device) {
	why := error(bus.ErrClosed)
	d.endOnce.Do(func() {
		d.end.Store(&why)
		d.cfg.Close()
		for _, w := range d.open {
			_ = w.Close()
		}
		_ = unix.Close(d.fd)
		d.fd = -1
		close(d.done)
		d.lent.mu.Lock()
		d.lent.closed = true
		d.lent.mu.Unlock()
	})
}

// What a borrower that was killed left is taken back in this order: interrupts, the device, its bus mastering, its memory. The next one finds it so.
func TestRecall(t *testing.T) {
	for _, cdev := range []bool{false, true} {
		f := newFake(t)
		fn := f.add(addr, 7, "vfio-pci")
		if cdev {
			f.withCdev(addr, 7)
		}
		owner, l := lend(t, f, LoanOptions{})
		for round := range 3 {
			d := borrow(t, f, l)
			var all []*bus.Memory
			for _, size := range []int{1, 5000, 2 << 20, 3 << 20} {
				m, err := d.DMA().Alloc(bus.DMARequest{Size: size})
				if err != nil {
					t.Fatal(err)
				}
				if slices.ContainsFunc(m.Bytes, func(b byte) bool { return b != 0 }) {
					t.Errorf("round %d: %d bytes are not zeroed", round, size)
				}
				m.Bytes[0] = 9
				if got := f.reach(fn, m.IOVA, size, permRead); got == nil || got[0] != 9 {
					t.Errorf("the device does not find what the borrower wrote")
				}
				all = append(all, m)
			}
			if _, err := d.EnableIRQs(bus.MSIX, 3); err != nil {
				t.Fatal(err)
			}
			pci.SetCommand(d.Config(), pci.CmdMaster, 0)
			// A hostile one takes what tells of the device's end, too.
			if err := f.setIRQs(d.fd, setEventfd|setTrigger, irqReq, 0, 1, []int32{-1}); err != nil {
				t.Fatal(err)
			}
			crash(d)
			f.trace = nil
			if err := l.Recall(t.Context()); err != nil {
				t.Fatal(err)
			}
			trace := strings.Join(f.trace, "\n")
			at := []int{strings.Index(trace, "setIRQs 0x21 2"), strings.Index(trace, "reset"), strings.Index(trace, "unmap")}
			if !slices.IsSorted(at) || at[0] < 0 || fn.resets != round+1 {
				t.Errorf("round %d: recalled by %q, want interrupts, reset, memory", round, trace)
			}
			if pci.Command(binaryAt(t, fn, pci.CfgCommand))&pci.CmdMaster != 0 || len(fn.space.maps) != 0 || fn.irqs[irqMSIX] != nil || fn.irqs[irqReq][0] < 0 {
				t.Errorf("round %d: Command %#x, %d mappings, interrupts %v", round, binaryAt(t, fn, pci.CfgCommand), len(fn.space.maps), fn.irqs)
			}
			for _, m := range all {
				m.Free() // the borrower's view, which the device does not reach
			}
			_ = d.Close()
			if err := l.Recall(t.Context()); err != nil || fn.resets != round+1 {
				t.Errorf("Recall again = %v, %d resets", err, fn.resets)
			}
		}
		if err := owner.Close(); err != nil {
			t.Error(err)
		}
	}
}

// One that has no reset is told of once, and is quiet all the same.
func TestRecallWithoutReset(t *testing.T) {
	f := newFake(t)
	fn := f.add(addr, 7, "vfio-pci")
	fn.canReset = false
	var log strings.Builder
	o := f.options()
	o.Log = slog.New(slog.NewTextHandler(&log, nil))
	d := f.mustOpen(t, addr, o)
	l, err := d.Lend(LoanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		b := borrow(t, f, l)
		pci.SetCommand(b.Config(), pci.CmdMaster, 0)
		crash(b)
		if err := l.Recall(t.Context()); err != nil {
			t.Error(err)
		}
		if pci.Command(binaryAt(t, fn, pci.CfgCommand))&pci.CmdMaster != 0 {
			t.Error("it is still a bus master")
		}
	}
	if n := strings.Count(log.String(), "cannot be reset"); n != 1 {
		t.Errorf("it is said %d times that it cannot be reset, want once: %s", n, log.String())
	}
}

// The kernel asks for a device back: the borrower lets go of it, or is ended.
func TestLentAskedBack(t *testing.T) {
	f := newFake(t)
	fn := f.add(addr, 7, "vfio-pci")
	owner, l := lend(t, f, LoanOptions{})
	d := borrow(t, f, l)
	m, err := d.DMA().Alloc(bus.DMARequest{Size: 100})
	if err != nil {
		t.Fatal(err)
	}
	f.tell(fn, irqReq)
	<-d.Done()
	<-owner.Done()
	if err := d.Err(); !errors.Is(err, bus.ErrGone) || !strings.Contains(err.Error(), "asked it back") {
		t.Errorf("the borrower's Err = %v, want that it was asked back", err)
	}
	m.Bytes[5] = 1 // stays until it is freed
	m.Free()
	if _, err := Borrow(t.Context(), l, f.options()); !errors.Is(err, bus.ErrGone) {
		t.Errorf("borrowing it then = %v, want ErrGone", err)
	}
}

func TestLentOverdue(t *testing.T) {
	f := newFake(t)
	fn := f.add(addr, 7, "vfio-pci")
	d := f.mustOpen(t, addr, f.options())
	overdue := make(chan error, 1)
	l, err := d.Lend(LoanOptions{Overdue: func(why error) { overdue <- why }})
	if err != nil {
		t.Fatal(err)
	}
	// A borrower that listens to nothing.
	_, files, err := l.Call(t.Context(), []byte(`{"op":"open"}`))
	if err != nil || len(files) != 2 {
		t.Fatalf("open = %d files, %v", len(files), err)
	}
	if _, mem, err := l.Call(t.Context(), []byte(`{"op":"alloc","size":4096}`)); err != nil {
		t.Fatal(err)
	} else {
		mem[0].Close()
	}
	f.tell(fn, irqReq)
	select {
	case why := <-overdue:
		if !errors.Is(why, ErrAskedBack) {
			t.Errorf("overdue because of %v, want ErrAskedBack", why)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("it is not said that the borrower is overdue")
	}
	for _, f := range files {
		f.Close()
	}
	_ = l.Recall(t.Context())
	<-d.Done()
	if err := d.Close(); err != nil || len(fn.space.maps) != 0 {
		t.Errorf("Close = %v, %d mappings are left", err, len(fn.space.maps))
	}
}

// A borrower has what its bounds allow, and nothing that is not its own.
func TestLoanBounds(t *testing.T) {
	f := newFake(t)
	fn := f.add(addr, 7, "vfio-pci")
	d, l := lend(t, f, LoanOptions{Bytes: 8 << 20, Pieces: 3})
	if _, err := d.Lend(LoanOptions{}); !errors.Is(err, bus.ErrBusy) {
		t.Errorf("lending it twice = %v, want ErrBusy", err)
	}
	ask := func(q string) (*lentMemory, error) {
		b, files, err := l.Call(t.Context(), []byte(q))
		for _, f := range files {
			f.Close()
		}
		var r lendReply
		if err == nil {
			err = json.Unmarshal(b, &r)
		}
		return r.Memory, err
	}
	if _, err := ask(`{"op":"alloc","size":4096}`); !errors.Is(err, bus.ErrClosed) {
		t.Errorf("memory of what is not lent = %v, want ErrClosed", err)
	}
	b := borrow(t, f, l)
	if _, err := Borrow(t.Context(), l, f.options()); !errors.Is(err, bus.ErrBusy) {
		t.Errorf("borrowing it twice = %v, want ErrBusy", err)
	}
	for q, want := range map[string]error{
		`{"op":"alloc","size":9000000}`:                              unix.ENOMEM,
		`{"op":"alloc","size":9223372036854775807}`:                  unix.ENOMEM,
		`{"op":"alloc","size":-1}`:                                   bus.ErrNotSupported,
		`{"op":"alloc","size":4096,"align":3}`:                       bus.ErrNotSupported,
		`{"op":"alloc","size":4096,"dir":9}`:                         bus.ErrProtocol,
		`{"op":"alloc","size":4096,"mask":5}`:                        unix.ENOMEM,
		`{"op":"alloc","size":4096,"align":9223372036854775808}`:     unix.ENOMEM,
		`{"op":"free","id":77}`:                                      bus.ErrClosed,
		`{"op":"map"}`:                                               bus.ErrProtocol,
		`{`:                                                          bus.ErrProtocol,
		`{"op":"alloc","size":"much"}`:                               bus.ErrProtocol,
		`{"op":"alloc","size":8192,"boundary":4096,"dir":1,"id":77}`: bus.ErrNotSupported,
	} {
		if m, err := ask(q); !errors.Is(err, want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s = %+v, %v, want %v", q, m, err, want)
		}
	}
	var last *lentMemory
	for range 3 {
		m, err := ask(`{"op":"alloc","size":4096}`)
		if err != nil {
			t.Fatal(err)
		}
		last = m
	}
	if _, err := ask(`{"op":"alloc","size":4096}`); !errors.Is(err, unix.ENOMEM) {
		t.Errorf("more pieces than there may be = %v, want ENOMEM", err)
	}
	if len(fn.space.maps) != 3 || len(l.chunks) != 1 {
		t.Errorf("%d mappings in %d chunks, want 3 in 1", len(fn.space.maps), len(l.chunks))
	}
	if _, err := ask(`{"op":"free","id":` + string('0'+rune(last.ID)) + `}`); err != nil {
		t.Error(err)
	}
	if _, err := ask(`{"op":"free","id":` + string('0'+rune(last.ID)) + `}`); !errors.Is(err, bus.ErrClosed) {
		t.Errorf("freeing it twice = %v, want ErrClosed", err)
	}
	if _, err := b.DMA().Map(make([]byte, 4096), bus.DMARequest{}); !errors.Is(err, bus.ErrNotSupported) {
		t.Errorf("mapping one's own memory = %v, want ErrNotSupported", err)
	}
	// What is passed cannot be made shorter under the lender, which has it mapped.
	_, files, err := l.Call(t.Context(), []byte(`{"op":"alloc","size":2097152}`))
	if err != nil {
		t.Fatal(err)
	}
	if err := files[0].Truncate(0); !errors.Is(err, unix.EPERM) {
		t.Errorf("Truncate = %v, want EPERM", err)
	}
	files[0].Close()
}

// FuzzLoan sends anything to who lends a device. Nothing may panic; what is allocated goes with the loan.
func FuzzLoan(f *testing.F) {
	for _, s := range []string{`{"op":"open"}`, "{\"op\":\"open\"}\n{\"op\":\"alloc\",\"size\":4096}\n{\"op\":\"free\",\"id\":2}\n{\"op\":\"close\"}",
		"{\"op\":\"open\"}\n{\"op\":\"alloc\",\"size\":2097152,\"align\":4096,\"boundary\":0,\"mask\":4294967295,\"dir\":1}\n{\"op\":\"reset\"}"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		k := newFake(t)
		fn := k.add(addr, 7, "vfio-pci")
		d := k.mustOpen(t, addr, k.options())
		l, err := d.Lend(LoanOptions{Bytes: 4 << 20, Pieces: 8})
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.SplitSeq(string(b), "\n") {
			reply, files, err := l.Call(t.Context(), []byte(line))
			if (err == nil) == (reply == nil) || err != nil && files != nil {
				t.Fatalf("%q = %q, %d files, %v", line, reply, len(files), err)
			}
			for _, f := range files {
				f.Close()
			}
		}
		_ = l.Recall(t.Context())
		if len(fn.space.maps) != 0 || l.bytes != 0 {
			t.Fatalf("%d mappings, %d bytes are left", len(fn.space.maps), l.bytes)
		}
	})
}

// liar answers with what it was given.
type liar struct {
	reply string
	files int
}

func (l liar) Call(context.Context, []byte) ([]byte, []*os.File, error) {
	var files []*os.File
	for range l.files {
		f, err := os.Open("/dev/null")
		if err != nil {
			return nil, nil, err
		}
		files = append(files, f)
	}
	return []byte(l.reply), files, nil
}

// Who lends lies: an error, and nothing is left.
func TestBorrowFromLiar(t *testing.T) {
	before := descriptors(t)
	for _, c := range []liar{{"", 0}, {"{}", 0}, {"{}", 2}, {`{"device":{}}`, 2}, {`{"device":{"addr":"0000:03:00.0"}}`, 2}, {`{"device":{"addr":"0000:03:00.0"}}`, 3}, {`{"device":7}`, 2}} {
		if d, err := Borrow(t.Context(), c, Options{}); err == nil {
			t.Errorf("%v: Borrow = %v, want an error", c, d.Address())
		}
	}
	if n := descriptors(t); n != before {
		t.Errorf("%d descriptors, want %d as before", n, before)
	}
}

// What could not be stopped is nobody's until it is: who asks for it then gets it.
func TestRecallThatFails(t *testing.T) {
	f := newFake(t)
	fn := f.add(addr, 7, "vfio-pci")
	owner, l := lend(t, f, LoanOptions{})
	crash(borrow(t, f, l))
	f.trace = nil
	if err := l.Recall(t.Context()); err != nil {
		t.Fatal(err)
	}
	reset := slices.Index(f.trace, "reset") + 1
	if reset == 0 {
		t.Fatalf("recalled by %q, want a reset", f.trace)
	}
	fn.resets = 0
	crash(borrow(t, f, l))
	f.failAt = f.ops + reset
	if err := l.Recall(t.Context()); err == nil || fn.resets != 0 {
		t.Fatalf("Recall = %v, %d resets, want an error and none", err, fn.resets)
	}
	f.failAt = f.ops + reset
	if d, err := Borrow(t.Context(), l, f.options()); err == nil {
		_ = d.Close()
		t.Error("a device that was not stopped is lent")
	}
	d := borrow(t, f, l)
	if fn.resets != 1 {
		t.Errorf("lent after %d resets, want 1", fn.resets)
	}
	crash(d)
	f.failAt = f.ops + reset
	if err := l.Recall(t.Context()); err == nil {
		t.Error("Recall = nil, want an error")
	}
	if err := l.Recall(t.Context()); err != nil || fn.resets != 2 {
		t.Errorf("Recall again = %v, %d resets, want 2", err, fn.resets)
	}
	if err := owner.Close(); err != nil {
		t.Error(err)
	}
}
