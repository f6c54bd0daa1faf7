package aerinject

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// Options are what an Injector is told. The zero value is of use.
type Options struct {
	Log *slog.Logger // nil discards; its messages begin with what they are about, as the kernel's do
	// Label is how messages about a function begin: "pcieport 1000:00:01.0". nil: "pci" and the address.
	Label func(pci.Addr) string
	// Hardware has a function detect an error itself, which then reports it like any other; bus.ErrNotSupported: it cannot, and the error
	// is laid over what it says. nil: no function can.
	Hardware func(a pci.Addr, e pci.AERError) error
	// Service says whether the root port's errors are served. nil: where its Root Error Command enables an interrupt.
	Service func(root pci.Addr) bool
}

// Injector injects errors into the functions that it was told. Safe for concurrent use.
type Injector struct {
	o Options

	mu  sync.Mutex
	fns map[pci.Addr]function
}

type function struct {
	dev  *Device // nil: it has no Advanced Error Reporting
	root pci.Addr
}

// NewInjector makes an injector that knows no function.
func NewInjector(o Options) *Injector {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Label == nil {
		o.Label = func(a pci.Addr) string { return "pci " + a.String() }
	}
	return &Injector{o: o, fns: map[pci.Addr]function{}}
}

// Add makes a function known, or known anew, and the root port above it: its own address where it is one, the zero Addr
// where there is none. The root port may be added later; what turns out to be none counts as none. dev may be nil for a
// function without Advanced Error Reporting, which need not be wrapped.
func (in *Injector) Add(a pci.Addr, dev *Device, root pci.Addr) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.fns[a] = function{dev, root}
}

// Remove forgets a function.
func (in *Injector) Remove(a pci.Addr) {
	in.mu.Lock()
	defer in.mu.Unlock()
	delete(in.fns, a)
}

// find is a function that is there, and its root port, nil where there is none.
func (in *Injector) find(a pci.Addr) (f function, root *Device, ok bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	f, ok = in.fns[a]
	if !ok || f.dev != nil && f.dev.Err() != nil {
		return f, nil, false
	}
	if f.root != (pci.Addr{}) {
		root = in.fns[f.root].dev
	}
	if root != nil && root.Err() != nil {
		root = nil
	}
	return f, root, true
}

// Inject makes a function have an error, and its root port report it. What it refuses it refuses with the kernel's
// numbers, in the kernel's order:
//
//	ENODEV           no such function; it has no root port
//	EPROTONOSUPPORT  function or root port without Advanced Error Reporting
//	EINVAL           all the correctable bits, or all the uncorrectable ones, are masked
//	ENODEV           the root port has no interrupt, or nobody serves its errors
//
// Masked bits are in the function's status all the same, as the specification has it and the kernel's module does; and
// from the last two on the root port has the error too, and tells of it with the next one.
func (in *Injector) Inject(r Record) error {
	a := r.Addr()
	f, root, ok := in.find(a)
	if !ok {
		return fmt.Errorf("aer_inject: %s: injecting an error: no such device: %w", a, unix.ENODEV)
	}
	if root == nil || !root.isRootPort() {
		return in.refuse(slog.LevelError, a, "Root port not found", unix.ENODEV)
	}
	rootAddr := f.root
	x := f.dev.overlayFor(pci.AERHeader + 16)
	if x == nil {
		return in.refuse(slog.LevelError, a, "Device doesn't support AER", unix.EPROTONOSUPPORT)
	}
	severity, unmasked := x.in.Read32(x.at+pci.AERUncSev), pci.AERError{
		Correctable:   r.Error.Correctable &^ x.in.Read32(x.at+pci.AERCorMask),
		Uncorrectable: r.Error.Uncorrectable &^ x.in.Read32(x.at+pci.AERUncMask),
	}
	rx := root.overlayFor(pci.AERErrSrc + 4)
	if rx == nil {
		return in.refuse(slog.LevelError, rootAddr, "Root port doesn't support AER", unix.EPROTONOSUPPORT)
	}
	said := false
	say := func() {
		if !said { // before the error itself is told of
			said = true
			in.say(slog.LevelInfo, rootAddr, fmt.Sprintf("Injecting errors %08x/%08x into device %s", r.Error.Correctable, r.Error.Uncorrectable, a))
		}
	}
	if in.o.Hardware != nil && unmasked.Correctable|unmasked.Uncorrectable != 0 && in.served(rootAddr, rx) {
		say()
		if err := in.o.Hardware(a, r.Error); !errors.Is(err, bus.ErrNotSupported) {
			return err
		}
	}
	x.report(r.Error)
	if r.Error.Correctable != 0 && unmasked.Correctable == 0 {
		return in.refuse(slog.LevelWarn, a, "The correctable error(s) is masked by device", unix.EINVAL)
	}
	if r.Error.Uncorrectable != 0 && unmasked.Uncorrectable == 0 {
		return in.refuse(slog.LevelWarn, a, "The uncorrectable error(s) is masked by device", unix.EINVAL)
	}
	status := rx.receive(r.Error, uint16(a.Bus)<<8|uint16(a.Devfn()), severity&r.Error.Uncorrectable != 0)
	q := root.vector(int(status & pci.RootStaMessage >> pci.RootStaMsgAt))
	if q == nil {
		return in.refuse(slog.LevelError, rootAddr, "AER device not found", unix.ENODEV)
	}
	if !in.served(rootAddr, rx) {
		return in.refuse(slog.LevelError, rootAddr, "AER device not found", unix.ENODEV)
	}
	say()
	q.Signal()
	return nil
}

func (in *Injector) served(root pci.Addr, x *overlay) bool {
	if in.o.Service != nil {
		return in.o.Service(root)
	}
	return x.in.Read32(x.at+pci.AERRootCmd)&pci.RootCmdAll != 0
}

func (in *Injector) say(l slog.Level, a pci.Addr, text string) {
	in.o.Log.Log(context.Background(), l, in.o.Label(a)+": aer_inject: "+text)
}

// refuse is an error whose reason the kernel logs, so that who only sees the number can look it up.
func (in *Injector) refuse(l slog.Level, a pci.Addr, text string, errno unix.Errno) error {
	in.say(l, a, text)
	return fmt.Errorf("aer_inject: %s: injecting an error: %s: %w", a, text, errno)
}
