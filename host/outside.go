package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/qemu"
	"github.com/ring3dev/ring3/internal/link"
	"github.com/ring3dev/ring3/netdev/tap"
	"github.com/ring3dev/ring3/rionet/fabricd"
	"github.com/ring3dev/ring3/vfio"
)

// Outside is what a System asks for that may open nothing by itself. All of it is what its own plan says it may have. Each backend adds
// what its devices need: the methods stand beside it, in outside_*.go.
type Outside interface {
	// File is an open file: use says what for, name for which device, or which file where the user named it. It is the caller's to close.
	File(ctx context.Context, use, name string) (*os.File, error)
	// Begin says that there is something to write to such a file: a trace is emptied, a capture gets its name. Until then what was there before stays.
	Begin(ctx context.Context, use, name string) error
	// QEMU gives the parts of the machine whose first device is named, and who its monitor is asked by. Both are the caller's, who closes the parts.
	QEMU(ctx context.Context, machine string) (*qemu.Parts, qemu.Monitor, error)
	// Captured says that the captures of that machine may get their names.
	Captured(ctx context.Context, machine string) error
	// VFIO lends a function of this machine that the plan names, and tells what the kernel alone knows of it.
	VFIO(ctx context.Context, device string) (vfio.Lender, FunctionFacts, error)
	// TAP lends the kernel interface that the plan makes of a device.
	TAP(device string) tap.Lender
	// Took tells that a device was opened by this process itself, since nobody could lend it.
	Took(ctx context.Context, device string) error
	// Fabric joins the fabric that the plan names as a device's node, and gives the connection. The one before it ends.
	Fabric(ctx context.Context, device string) (*net.UnixConn, error)
	// Windows are the memory windows of all nodes of that device's fabric, and the number of that list. It waits for another one than the one numbered seen.
	Windows(ctx context.Context, device string, seen uint64) ([]fabricd.Window, uint64, error)
	// Served connects to the server of a vfio-user device. The connection before ends.
	Served(ctx context.Context, device string) (*net.UnixConn, error)
	// Shared makes memory that is shared with that server, in bytes of whole pages.
	Shared(ctx context.Context, device string, size int64) (*os.File, error)
}

// Uses of Outside.File.
const (
	useCapture = "pcap"    // of a device's frames, to write
	useTrace   = "trace"   // of a device's accesses, to write
	useReplay  = "replay"  // a capture that pktgen replays, to read; the user's write named it
	useNetDev  = "net/dev" // the machine's /proc/net/dev, to read again and again; no name
)

// Methods of linkOutside. Bodies are JSON. Backends have sixteen each: QEMU from 0x0310, VFIO from 0x0320, TAP from 0x0330, what is
// opened without an IOMMU from 0x0340, fabrics from 0x0350, vfio-user from
// 0x0360.
const (
	outsideFile  link.Method = 0x0301 // fileArgs; the file
	outsideBegin link.Method = 0x0302 // fileArgs
)

type fileArgs struct {
	Use  string `json:"use"`
	Name string `json:"name,omitempty"`
}

// The worker's end.

// farOutside asks the supervisor; Outside.
type farOutside struct{ c *link.Conn }

// call asks for something. result may be nil. The files are the caller's to close.
func (o *farOutside) call(ctx context.Context, m link.Method, args, result any, files ...*os.File) ([]*os.File, error) {
	body, err := json.Marshal(args)
	if err != nil {
		return nil, err
	}
	reply, got, err := o.c.Call(ctx, m, body, files...)
	if err == nil && result != nil {
		err = json.Unmarshal(reply, result)
	}
	if err != nil {
		closeOpen(got)
		return nil, err
	}
	return got, nil
}

// one is the file of an answer that has one.
func one(files []*os.File, err error) (*os.File, error) {
	if err == nil && len(files) != 1 {
		closeOpen(files)
		err = fmt.Errorf("the supervisor gave %d files, want 1: %w", len(files), bus.ErrProtocol)
	}
	if err != nil {
		return nil, err
	}
	return files[0], nil
}

func (o *farOutside) File(ctx context.Context, use, name string) (*os.File, error) {
	return one(o.call(ctx, outsideFile, fileArgs{use, name}, nil))
}

func (o *farOutside) Begin(ctx context.Context, use, name string) error {
	files, err := o.call(ctx, outsideBegin, fileArgs{use, name}, nil)
	closeOpen(files)
	return err
}

func closeOpen(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// The supervisor's end.

// outside is what a group has of the world, whoever its worker is. As a link.Handler it answers one worker after the other; the next one is let at
// it only after the last one is dead, and Quiesce has returned.
type outside interface {
	link.Handler
	// Quiesce stops the devices of a worker that is dead: interrupts, reset, bus mastering, in that order. Where that cannot be done nobody may use their
	// memory again.
	Quiesce(ctx context.Context) error
	// Wrote is told what the user writes to the group's pktgen devices, before a worker is: it may open the captures that are named there, and no others.
	Wrote(p []byte)
	Close() error
}

// outsideCall answers one method. The body is a worker's, and may be anything. files are closed by who calls it; those that it returns are closed once they were sent,
// so what stays is duplicated.
type outsideCall func(ctx context.Context, body []byte, files []*os.File) (reply any, pass []*os.File, err error)

// outsideBackend is what the devices of one backend need. Its calls come several at a time.
type outsideBackend interface {
	calls() map[link.Method]outsideCall
	Quiesce(ctx context.Context) error
	Close() error
}

// outsideBackends make those of a group; nil: it has no such device. They open what a worker of the group asks for first, or at once.
var outsideBackends = []func(c Config, g groupPlan) (outsideBackend, error){
	holdVFIO, holdTAPs, holdBare, holdFabrics, holdServed,
}

// nearOutside gives a group's workers what its plan says; outside.
type nearOutside struct {
	c        Config
	plan     Plan
	calls    map[link.Method]outsideCall
	backends []outsideBackend

	mu       sync.Mutex
	closed   bool
	files    map[fileArgs]*os.File // that each worker goes on with
	captures map[string]*capture
	traces   map[string]*traceFile
	replays  []string // that the user named last
}

// newOutside prepares what a group has.
func newOutside(c Config, g groupPlan) (outside, error) {
	o := &nearOutside{c: c, plan: g.Plan, files: map[fileArgs]*os.File{}, captures: map[string]*capture{}, traces: map[string]*traceFile{}}
	o.calls = map[link.Method]outsideCall{outsideFile: o.file, outsideBegin: o.begin}
	for _, f := range outsideBackends {
		b, err := f(c, g)
		if err != nil {
			return nil, errors.Join(err, o.Close())
		}
		if b == nil {
			continue
		}
		o.backends = append(o.backends, b)
		for m, call := range b.calls() {
			o.calls[m] = call
		}
	}
	return o, nil
}

// Call implements [link.Handler].
func (o *nearOutside) Call(ctx context.Context, m link.Method, body []byte, files []*os.File, _ func([]byte) error) ([]byte, []*os.File, error) {
	defer closeOpen(files)
	call := o.calls[m]
	if call == nil {
		return nil, nil, fmt.Errorf("method %#x: %w", uint16(m), syscall.ENOSYS)
	}
	reply, pass, err := call(ctx, body, files)
	if err != nil {
		closeOpen(pass)
		return nil, nil, err
	}
	b, err := json.Marshal(reply)
	if err != nil {
		closeOpen(pass)
		return nil, nil, err
	}
	return b, pass, nil
}

// Event implements [link.Handler]: there are none.
func (o *nearOutside) Event(m link.Method, _ []byte, files []*os.File) error {
	closeOpen(files)
	return fmt.Errorf("event %#x is nobody's: %w", uint16(m), bus.ErrProtocol)
}

// asked reads what a worker wants.
func asked(body []byte, v any) error {
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("arguments: %v: %w", err, syscall.EINVAL)
	}
	return nil
}

// file answers outsideFile.
func (o *nearOutside) file(_ context.Context, body []byte, _ []*os.File) (any, []*os.File, error) {
	var a fileArgs
	if err := asked(body, &a); err != nil {
		return nil, nil, err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return nil, nil, bus.ErrClosed
	}
	f := o.files[a]
	if f == nil {
		var err error
		keep := true
		if f, keep, err = o.open(a); err != nil {
			return nil, nil, err
		}
		if !keep {
			return nil, []*os.File{f}, nil
		}
		o.files[a] = f
	}
	d, err := duplicate(f)
	if err != nil {
		return nil, nil, err
	}
	return nil, []*os.File{d}, nil
}

// open opens what the group may have, or says that it may not. keep: the next worker gets the same open file. mu is held.
func (o *nearOutside) open(a fileArgs) (f *os.File, keep bool, err error) {
	switch path := o.plan.Trace.Files[a.Name]; {
	case a.Use == useCapture && o.plan.Captures[a.Name] != "":
		c, err := openCapture(a.Name, o.plan.Captures[a.Name])
		if err != nil {
			return nil, false, err
		}
		o.captures[a.Name] = c
		return c.file, true, nil
	case a.Use == useTrace && path != "" && path != "-":
		t := &traceFile{name: a.Name, path: path}
		if err := t.open(); err != nil {
			return nil, false, err
		}
		o.traces[a.Name] = t
		return t.file, true, nil
	case a.Use == useNetDev && a.Name == "":
		f, err := os.Open("/proc/self/net/dev")
		return f, false, err
	case a.Use == useReplay && slices.Contains(o.replays, a.Name):
		f, err := os.OpenFile(a.Name, os.O_RDONLY|unix.O_NONBLOCK, 0)
		return f, false, err
	}
	return nil, false, fmt.Errorf("file %s %.64q: the plan has no such: %w", a.Use, a.Name, syscall.EACCES)
}

// begin answers outsideBegin.
func (o *nearOutside) begin(_ context.Context, body []byte, _ []*os.File) (any, []*os.File, error) {
	var a fileArgs
	if err := asked(body, &a); err != nil {
		return nil, nil, err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	switch c, t := o.captures[a.Name], o.traces[a.Name]; {
	case a.Use == useCapture && c != nil:
		return nil, nil, c.keep(context.Background())
	case a.Use == useTrace && t != nil:
		return nil, nil, t.begin()
	}
	return nil, nil, fmt.Errorf("file %s %.64q was not opened: %w", a.Use, a.Name, syscall.EINVAL)
}

// maxReplays is how many captures a worker may still open that the user told it to replay.
const maxReplays = 16

// Wrote notes the captures that the user names.
func (o *nearOutside) Wrote(p []byte) {
	for line := range strings.Lines(string(p)) {
		word, path, _ := strings.Cut(strings.TrimSpace(line), " ")
		path = strings.TrimSpace(path)
		if word != "pcap" || !filepath.IsAbs(path) {
			continue
		}
		o.mu.Lock()
		o.replays = append(slices.DeleteFunc(o.replays, func(s string) bool { return s == path }), path)
		o.replays = o.replays[max(0, len(o.replays)-maxReplays):]
		o.mu.Unlock()
	}
}

// duplicate is another descriptor of an open file.
func duplicate(f *os.File) (*os.File, error) {
	c, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	if e := c.Control(func(u uintptr) { fd, err = unix.FcntlInt(u, unix.F_DUPFD_CLOEXEC, 0) }); e != nil {
		return nil, e
	}
	if err != nil {
		return nil, fmt.Errorf("%s: duplicating its descriptor: %w", f.Name(), err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// Quiesce stops what a dead worker's devices do.
func (o *nearOutside) Quiesce(ctx context.Context) error {
	var errs []error
	for _, b := range o.backends {
		errs = append(errs, b.Quiesce(ctx))
	}
	return errors.Join(errs...)
}

// Close lets go of everything.
func (o *nearOutside) Close() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return nil
	}
	o.closed = true
	var errs []error
	for _, b := range slices.Backward(o.backends) {
		errs = append(errs, b.Close())
	}
	for _, t := range o.traces {
		errs = append(errs, t.close())
	}
	for _, c := range o.captures {
		errs = append(errs, c.close())
	}
	return errors.Join(errs...)
}

// openReplay is what opens captures for pktgen; nil: it opens them by itself.
func (s *System) openReplay() func(path string) (*os.File, error) {
	if s.outside == nil {
		return nil
	}
	return func(path string) (*os.File, error) { return s.outside.File(s.ctx, useReplay, path) }
}
