package pktgen

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ring3dev/ring3/internal/crash"
	"github.com/ring3dev/ring3/internal/ledger"
	"github.com/ring3dev/ring3/internal/osthread"
	"github.com/ring3dev/ring3/internal/profile"
	"github.com/ring3dev/ring3/internal/rt"
	"github.com/ring3dev/ring3/netdev"
	"github.com/ring3dev/ring3/procfs"
	"golang.org/x/sys/unix"
)

// Config is what an engine needs.
type Config struct {
	// Lookup finds a network device by its name ("eth0"). An error that carries an errno
	// (ENODEV, ENETDOWN) gives it to the writer of add_device; any other means ENODEV.
	Lookup func(name string) (netdev.Device, error)
	// Receiver finds what receives from the network device of a name: xmit_mode netif_receive hands
	// frames to it. nil, here or as a result: nobody does, and each frame is an error.
	Receiver func(name string) netdev.Receiver
	// Profile names the kernel whose texts are followed: "6.12" (the default, pktgen as of 6.15),
	// "6.1".
	Profile string
	// CPUs get a thread each. nil means those that this process may use.
	CPUs []int
	// RT makes the threads real-time ones; nil: they are ordinary.
	RT *rt.Policy
	// Open opens a capture that is to be replayed; nil: it is opened by its name.
	Open func(path string) (*os.File, error)
	// Ledger keeps how far runs are, and what receivers have accounted for, beyond the end of this process: see Save. nil: nothing does.
	Ledger *ledger.Ledger
	// Linger is how long a run goes on whose network device died, before it ends for that: where this process has a successor, which goes on with the
	// run, it is that long at most until somebody ended it. Until then `start` is not answered. 0: it ends at once, as in the kernel. RemoveDevice,
	// `stop` and Close end it all the same.
	Linger time.Duration
	// Changed is called after something changed that Save tells: a device came or went, a command was taken, a run ended. No lock is held. It
	// must not call back but for Save. nil: nobody is told.
	Changed func()
	// Log is told what the kernel would log; nil discards.
	Log *slog.Logger
}

// Engine is a packet generator: the state behind one /proc/net/pktgen. It is safe for
// concurrent use.
type Engine struct {
	lookup  func(string) (netdev.Device, error)
	up      func(string) netdev.Receiver
	log     *slog.Logger
	opener  func(path string) (*os.File, error) // of captures
	prof    *profile.Pktgen
	rt      *rt.Policy
	dir     *procfs.Dir
	threads []*thread
	changed event // a device stopped, or a request was served
	wg      sync.WaitGroup
	debug   atomic.Bool
	tmplID  atomic.Uint32
	rx      receivers
	left    atomic.Bool // Leave was called
	ledger  *ledger.Ledger
	linger  time.Duration
	changes func()

	epoch    atomic.Uint64 // of starts
	starts   *ledger.Area  // epoch, and that of a start under way; nil: not kept
	open     atomic.Uint64 // of a start under way; 0: there is none
	restored atomic.Int64  // when Restore was called
	joining  atomic.Bool   // a start was under way in another process, and whoever writes it again waits for its end

	mu     sync.Mutex // held while a device is added
	closed bool

	portMu sync.Mutex
	ports  map[portKey]*port
}

// New starts an engine and its threads. It fails where there is nothing to look devices
// up with, or no CPU.
func New(c Config) (*Engine, error) {
	if c.Lookup == nil {
		return nil, errors.New("starting pktgen: no Lookup to find devices with")
	}
	cpus := slices.Clone(c.CPUs)
	if cpus == nil {
		cpus = allowedCPUs()
	}
	p, err := profile.Find(c.Profile)
	if err != nil {
		return nil, fmt.Errorf("starting pktgen: %w", err)
	}
	slices.Sort(cpus)
	cpus = slices.Compact(cpus)
	if len(cpus) == 0 || cpus[0] < 0 {
		return nil, fmt.Errorf("starting pktgen: CPUs %v, want at least one, none negative", cpus)
	}
	e := &Engine{lookup: c.Lookup, up: c.Receiver, opener: c.Open, log: c.Log, prof: &p.Pktgen, rt: c.RT, dir: &procfs.Dir{}, ports: make(map[portKey]*port), ledger: c.Ledger, linger: c.Linger, changes: c.Changed}
	if e.log == nil {
		e.log = slog.New(slog.DiscardHandler)
	}
	if e.opener == nil {
		e.opener = openCapture
	}
	if e.ledger != nil {
		if e.starts, _, err = e.ledger.Area("pktgen", startWords); err != nil {
			return nil, fmt.Errorf("starting pktgen: %w", err)
		}
		e.epoch.Store(e.starts.Load(startEpoch))
	}
	e.log.Info("pktgen: " + strings.TrimSpace(version))
	e.dir.Put("pgctrl", procfs.New(0o600, showVersion, e.noted(e.store)))
	for _, cpu := range cpus {
		t := &thread{eng: e, cpu: cpu, name: fmt.Sprintf("kpktgend_%d", cpu), wake: make(chan struct{}, 1)}
		e.threads = append(e.threads, t)
		e.dir.Put(t.name, procfs.New(0o600, t.show, e.noted(t.store)))
		e.wg.Add(1)
		osthread.Go(func() {
			defer crash.Report()
			t.loop()
		})
	}
	return e, nil
}

// Dir is the content of /proc/net/pktgen. Entries come and go as devices do.
func (e *Engine) Dir() *procfs.Dir { return e.dir }

// Close ends every run, removes every device, and joins the threads. The network devices
// must still be there. It is idempotent; called again after a network device that had died or was
// stuck was closed, it gives back the memory of the frames that the device held.
func (e *Engine) Close() {
	e.mu.Lock()
	closed := e.closed
	e.closed = true
	e.mu.Unlock()
	if !closed {
		for _, t := range e.threads {
			t.post(ctlExit)
		}
	}
	e.wg.Wait()
	e.closePorts("")
	e.rxKeep()
}

// goneTime bounds the wait of RemoveDevice, as the kernel bounds its own.
const goneTime = 1250 * time.Millisecond

// RemoveDevice is what the kernel's pktgen does when a network device is unregistered: all devices made of the one of that name, eth0
// and eth0@1, are removed with their files, and the others run on. A run of theirs ends first; who has such a file open gets EIO; results
// of threads stay what they are. The network device may have died before. Nothing of pktgen uses it
// afterwards, unless its own functions did not return within 1.25 s.
//
// Lookup must not find the network device any more, since it could be added again. Where it died with frames of pktgen's, their memory
// is given back by another call, after its driver was closed, or by Close.
func (e *Engine) RemoveDevice(name string) {
	ctx, cancel := context.WithTimeout(context.Background(), goneTime)
	defer cancel()
	e.mu.Lock()
	for _, t := range e.threads {
		t.mu.Lock()
		for _, d := range t.devs {
			if d.base == name {
				d.removed.Store(true)
			}
		}
		t.mu.Unlock()
	}
	e.mu.Unlock()
	defer e.rxGone(name)
	if !e.wait(ctx, e.served(ctlRem)) {
		e.log.Error(fmt.Sprintf("pktgen: pktgen_mark_device: timed out after waiting %d msec for device %s to be removed", goneTime.Milliseconds(), name))
		return
	}
	e.closePorts(name)
}

// served posts c to every thread and returns a function that tells whether all did it.
func (e *Engine) served(c control) func() bool {
	ids := make([]uint64, len(e.threads))
	for i, t := range e.threads {
		ids[i] = t.post(c)
	}
	return func() bool {
		for i, t := range e.threads {
			if !t.done(ids[i]) {
				return false
			}
		}
		return true
	}
}

// busy tells whether any device runs.
func (e *Engine) busy() bool { return slices.ContainsFunc(e.threads, (*thread).busy) }

// wait returns true when cond does, and false when ctx ends or all threads have.
func (e *Engine) wait(ctx context.Context, cond func() bool) bool {
	for {
		changed := e.changed.next()
		if cond() {
			return true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return cond()
		}
	}
}

// add makes a device on a thread. Its error is an errno. before is called with the device, while nobody else has it; nil: the device is new.
func (e *Engine) add(t *thread, name string, before func(d *device)) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return unix.ENODEV
	}
	for _, o := range e.threads {
		o.mu.Lock()
		taken := slices.ContainsFunc(o.devs, func(d *device) bool { return d.name == name })
		o.mu.Unlock()
		if taken {
			return unix.EBUSY
		}
	}
	base, _, _ := strings.Cut(name, "@")
	nd, err := e.lookup(base)
	var errno unix.Errno
	switch {
	case errors.As(err, &errno):
		return errno
	case err != nil || nd == nil:
		return unix.ENODEV
	case name == "" || name == "." || name == ".." || strings.Contains(name, "/") || strings.HasSuffix(name, rxSuffix) || e.dir.Lookup(name) != nil:
		return unix.EINVAL // no name for a file
	}
	d := newDevice(name, base, nd, t)
	if d.gone() {
		return unix.ENODEV
	}
	if e.up != nil {
		d.up = e.up(base)
	}
	if d.keep, err = e.keeper(name); err != nil {
		e.log.Warn("pktgen: how far runs are is not kept", "device", name, "error", err)
	}
	if before != nil {
		before(d)
	}
	d.keepAll()
	// First its files: the thread may remove it as soon as it has it.
	e.dir.Put(name, procfs.New(0o600, d.show, e.noted(d.store)))
	e.rxAdded(name, base)
	t.mu.Lock()
	t.devs = append([]*device{d}, t.devs...)
	t.mu.Unlock()
	return nil
}

// nextTemplate numbers templates, so that a buffer's tag says which one it holds.
func (e *Engine) nextTemplate() uint32 {
	for {
		if id := e.tmplID.Add(1); id != 0 {
			return id
		}
	}
}

// Version is that of the kernel's pktgen which is followed.
const Version = "2.75"

// version is what pgctrl shows.
const version = "Packet Generator for packet performance testing. Version: " + Version + "\n"

func showVersion(w *bytes.Buffer) error {
	w.WriteString(version)
	return nil
}

// stopTime bounds the wait for the results of a run that was interrupted.
const stopTime = 2 * time.Second

// store takes one write to pgctrl.
func (e *Engine) store(ctx context.Context, p []byte) (int, error) {
	if len(p) == 0 {
		return 0, unix.EINVAL
	}
	switch cstring(e.ctrlText(p)) {
	case "start":
		e.start(ctx)
	case "stop":
		e.forgetStart()
		e.served(ctlStop)
	case "reset":
		e.forgetStart()
		served := e.served(ctlRemAll)
		e.wait(ctx, func() bool { return served() && !e.busy() })
	default:
		return 0, unix.EINVAL
	}
	return len(p), nil
}

// ctrlText is the command in a write to pgctrl.
func (e *Engine) ctrlText(p []byte) []byte {
	if e.prof.LastByte {
		return p[:min(len(p), 128)-1]
	}
	return bytes.TrimSuffix(p[:min(len(p), 127)], []byte("\n"))
}

// start runs every device and waits until none runs. When ctx ends, it stops them all. The first one in a process that took over from
// another, where a start was under way, is that start.
func (e *Engine) start(ctx context.Context) {
	c := ctlRun
	if e.join() {
		c = ctlResume
	} else {
		epoch := e.epoch.Add(1)
		e.keepStart(startEpoch, epoch)
		e.keepStart(startOpen, epoch)
	}
	epoch := e.epoch.Load()
	started := e.served(c)
	if !e.wait(ctx, func() bool { return started() && !e.busy() }) {
		bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
		defer cancel()
		e.wait(bounded, e.served(ctlStop))
	}
	if e.left.Load() {
		return // whoever takes over ends it
	}
	if e.epoch.Load() == epoch {
		e.keepStart(startOpen, 0)
	}
}

// event wakes everybody who waits for the next change.
type event struct {
	mu sync.Mutex
	ch chan struct{}
}

// next returns a channel that the next fire closes.
func (v *event) next() <-chan struct{} {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.ch == nil {
		v.ch = make(chan struct{})
	}
	return v.ch
}

func (v *event) fire() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.ch != nil {
		close(v.ch)
		v.ch = nil
	}
}
