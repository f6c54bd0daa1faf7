package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/bus/trace"
	"github.com/ring3dev/ring3/bus/trace/tracefile"
	"github.com/ring3dev/ring3/internal/crash"
	"github.com/ring3dev/ring3/internal/ledger"
	"github.com/ring3dev/ring3/vfio"
)

// TracePlan is what a user asked to be traced from the beginning.
type TracePlan struct {
	Files  map[string]string // by device name; "-": standard error
	Filter string            // of all of them; "": everything
	Crash  int               // how many records are logged of a device that dies
}

// Defaults of tracing. A device with a file has a longer ring, as a disk may be slow at times.
const (
	defaultCrash   = 8
	recordedToFile = 1 << 16
	traceEnd       = 2 * time.Second // how long the end of a trace may take to be written
)

// addTraces adds what --trace says (NAME=FILE).
func (p *Plan) addTraces(traces []string, filter string, crash int) error {
	p.Trace = TracePlan{Files: map[string]string{}, Filter: filter, Crash: crash}
	if _, err := tracefile.ParseFilter(filter); err != nil {
		return usagef("--trace-filter: %v", err)
	}
	if crash < 0 || crash > trace.DefaultRecords {
		return usagef("--crash-records %d: want 0 to %d", crash, trace.DefaultRecords)
	}
	for _, s := range traces {
		n, file, err := p.fileOf("trace", "traced", s, p.Trace.Files)
		if err != nil {
			return err
		}
		for other, f := range p.Captures {
			if samePath(f, file) {
				return usagef("--trace %q: %s is captured to that file already", s, other)
			}
		}
		p.Trace.Files[n] = file
	}
	return nil
}

// tracing is what a System does of it.
type tracing struct {
	plan  TracePlan
	log   *slog.Logger
	files map[string]*traceFile
	wg    sync.WaitGroup
	calm  func() // after it a panic is no crash of a driver

	ledger *ledger.Ledger // where the last records of each device outlive this process; nil: nowhere

	mu      sync.Mutex
	devices []*trace.Device // guarded by mu
}

// traceFile is a file that a device's trace goes to.
type traceFile struct {
	name string // of the device
	path string
	w    io.Writer
	file *os.File // nil: standard error
	made bool     // there was no such file before
	used bool

	outside Outside // that opened it for us; nil: we did
}

// open opens the files, before anything costs time. stderr is where "-" goes.
func (t *tracing) open(ctx context.Context, plan TracePlan, log *slog.Logger, stderr io.Writer, outside Outside) error {
	t.plan, t.log, t.files = plan, log, map[string]*traceFile{}
	if stderr == nil {
		stderr = io.Discard
	}
	t.calm = crash.Notify(func() { t.crashed(stderr) })
	for name, path := range plan.Files {
		f := &traceFile{name: name, path: path, w: stderr}
		if path != "-" && outside != nil {
			var err error
			if f.file, err = outside.File(ctx, useTrace, name); err != nil {
				return err
			}
			f.w, f.outside = f.file, outside
		} else if path != "-" {
			if err := f.open(); err != nil {
				return err
			}
		}
		t.files[name] = f
	}
	return nil
}

// open opens it. What is in it stays until there is something to write.
func (f *traceFile) open() error {
	_, err := os.Stat(f.path)
	f.made = errors.Is(err, fs.ErrNotExist)
	// A pipe that nobody reads is an error, not something to wait for.
	if f.file, err = os.OpenFile(f.path, os.O_WRONLY|os.O_CREATE|unix.O_NONBLOCK, 0o644); err != nil {
		var pe *fs.PathError
		if errors.As(err, &pe) {
			err = pe.Err
		}
		return fmt.Errorf("%s: opening the trace: open %s: %w", f.name, f.path, err)
	}
	f.w = f.file
	return nil
}

// wrap makes a traced device of a device that is about to be bound, to this driver if it has
// one.
func (t *tracing) wrap(name string, dev bus.Device, driver *pci.Driver, regs []bus.Register) (*trace.Device, error) {
	o := trace.Options{Name: name, Registers: regs, Died: t.died}
	if driver != nil {
		o.Driver = driver.Name
	}
	f := t.files[name]
	if f != nil {
		o.Records = recordedToFile
	}
	o.Shared = flightArea(t.ledger, name)
	d := trace.Wrap(dev, o)
	t.mu.Lock()
	t.devices = append(t.devices, d)
	t.mu.Unlock()
	if f == nil {
		return d, nil
	}
	if err := f.begin(); err != nil {
		return d, fmt.Errorf("%s: writing the trace: %w", name, err)
	}
	t.wg.Go(func() {
		err := writeTrace(context.Background(), []*trace.Device{d}, f.w, tracefile.IsPcapng(f.path), t.plan.Filter, trace.DefaultRecords)
		if errors.Is(err, os.ErrClosed) {
			err = fmt.Errorf("its reader did not read for %s", traceEnd) // close has closed it
		}
		if pe := (*fs.PathError)(nil); errors.As(err, &pe) {
			pe.Path = f.path // a file that somebody else opened is called otherwise
		}
		if err != nil {
			t.log.Warn(fmt.Sprintf("%s: its trace ends here: %v", name, err))
		}
	})
	return d, nil
}

// forget forgets a device that is gone: what it did last takes room.
func (t *tracing) forget(d *trace.Device) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.devices = slices.DeleteFunc(t.devices, func(o *trace.Device) bool { return o == d })
}

// begin empties a file that was there. Who comes again in place of a device that went, writes on.
func (f *traceFile) begin() error {
	if f.used {
		return nil
	}
	f.used = true
	if f.file == nil {
		return nil
	}
	if f.outside != nil {
		return f.outside.Begin(context.Background(), useTrace, f.name)
	}
	if fi, err := f.file.Stat(); err != nil || !fi.Mode().IsRegular() {
		return err
	}
	return f.file.Truncate(0)
}

// close closes it, and removes what was made for nothing.
func (f *traceFile) close() error {
	if f.file == nil {
		return nil
	}
	err := f.file.Close()
	if f.made && !f.used {
		err = errors.Join(err, os.Remove(f.path))
	}
	return err
}

// died logs what a device did last.
func (t *tracing) died(d *trace.Device, err error) {
	if t.plan.Files[d.Name()] == "-" || errors.Is(err, vfio.ErrAskedBack) {
		return // it stands there already; the device did not fail
	}
	if strings.HasPrefix(d.Backend(), onFabric+":") && !errors.Is(err, bus.ErrProtocol) {
		return // its fabric ended, and it joins again
	}
	for _, e := range trace.Snapshot([]*trace.Device{d}, t.plan.Crash) {
		t.log.Warn("before it died: " + e.String())
	}
}

// crashed prints what all devices did last, before the runtime prints the panic.
func (t *tracing) crashed(stderr io.Writer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, d := range t.devices {
		for _, e := range trace.Snapshot([]*trace.Device{d}, t.plan.Crash) {
			fmt.Fprintln(stderr, "ring3: before the panic: "+e.String())
		}
	}
}

// close ends what was opened, after the devices were closed. A file that could not be written
// was said to be so.
func (t *tracing) close() error {
	if t.calm != nil {
		t.calm()
	}
	done := make(chan struct{})
	go func() { t.wg.Wait(); close(done) }()
	slow := false
	select {
	case <-done:
	case <-time.After(traceEnd):
		slow = true // a pipe whose reader does not read: closing it below ends the wait
	}
	var errs []error
	for _, f := range t.files {
		if err := f.close(); err != nil {
			errs = append(errs, fmt.Errorf("%s: closing the trace: %w", f.name, err))
		}
	}
	if slow {
		select {
		case <-done: // it has said so
		case <-time.After(traceEnd / 10): // standard error does not end
		}
	}
	return errors.Join(errs...)
}

// writeTrace writes the entries of devices as they come, until all are closed or ctx ends.
func writeTrace(ctx context.Context, devices []*trace.Device, w io.Writer, pcapng bool, filter string, back int) error {
	f, err := tracefile.ParseFilter(filter)
	if err != nil {
		return err
	}
	out, err := newTraceWriter(devices, w, pcapng)
	if err != nil {
		return err
	}
	if err := out.Flush(); err != nil {
		return err
	}
	return trace.Follow(ctx, devices, back, func(es []trace.Entry) error {
		es, err := f.Keep(es)
		if err != nil || len(es) == 0 {
			return err
		}
		return writeEntries(out, es)
	})
}

func newTraceWriter(devices []*trace.Device, w io.Writer, pcapng bool) (tracefile.Writer, error) {
	var sources []tracefile.Source
	for _, d := range devices {
		sources = append(sources, tracefile.SourceOf(d))
	}
	if pcapng {
		return tracefile.NewPcapng(w, sources)
	}
	return tracefile.NewText(w, sources), nil
}

func writeEntries(w tracefile.Writer, es []trace.Entry) error {
	for i := range es {
		if err := w.Write(&es[i]); err != nil {
			return err
		}
	}
	return w.Flush()
}
