package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/internal/child"
)

// Process is a running QEMU, with what it inherited and its monitor. It outlives who uses its devices: [Process.Parts] are what a
// [Machine] in any process is made of, one after the other, and [Process.Quiesce] comes between two of them. Safe for concurrent use.
type Process struct {
	c       Config
	log     *slog.Logger
	child   *child.Process
	ram     *os.File
	qtest   int // descriptor, blocking
	bell    *doorbell
	qmp     *qmp
	qmpFile *os.File
	ivshmem int // descriptor

	up      atomic.Bool   // it came up: from now on what it says is for the log
	deleted chan string   // QEMU's names of devices that it has removed
	pressed chan struct{} // the button of some device was pressed
	resets  chan struct{} // the machine was reset
	working sync.WaitGroup
	closing chan struct{}

	mu       sync.Mutex // guards what follows; nobody waits for QMP with it held
	seats    []*seat    // of Config.Devices, in their order, then those plugged in
	plugs    int        // how many devices were ever plugged in
	watchers map[int]func(Event)
	watches  int
	shut     bool

	quiescing sync.Mutex // held while somebody uses the machine from here
	closeOnce sync.Once
}

// seat is a device that QEMU has.
type seat struct {
	spec   DeviceSpec
	serial int    // the lowest that was free: its hub
	key    string // of it QEMU's identifiers are made: dev3, net3; never used twice, since news of its end may be late
	slot   int    // its device number under what it stands

	ready   bool // QEMU has it
	leaving bool // its button was pressed
}

func (s *seat) id() string     { return "dev" + s.key }
func (s *seat) netdev() string { return "net" + s.key }

// Event is what a QEMU tells by itself.
type Event struct {
	Removed string `json:"removed"` // the name of a device that is gone, and is free again
	Key     string `json:"key"`     // of that device, and of no other
}

// Launch starts a QEMU and waits until it answers. Its devices are as after power-up: nobody has looked at its bus yet.
func Launch(ctx context.Context, c Config) (*Process, error) {
	c.fill()
	if err := c.check(); err != nil {
		return nil, err
	}
	path, err := c.find()
	if err != nil {
		return nil, err
	}
	p, err := launch(ctx, &c, path, !unsandboxed(path))
	if err != nil && strings.Contains(err.Error(), "-sandbox") && ctx.Err() == nil {
		noSandbox.Store(path, true)
		c.Log.Debug(fmt.Sprintf("qemu: %s knows no -sandbox, and runs without", path))
		p, err = launch(ctx, &c, path, false)
	}
	return p, err
}

// fill fills in what a configuration leaves out.
func (c *Config) fill() {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Domain == 0 {
		c.Domain = DefaultDomain
	}
}

// launch is Launch of a program that was found.
func launch(ctx context.Context, c *Config, path string, sandbox bool) (_ *Process, err error) {
	p := &Process{c: *c, log: c.Log, qtest: -1, ivshmem: -1, deleted: make(chan string, maxDevices), pressed: make(chan struct{}, 1),
		resets: make(chan struct{}, 1), watchers: map[int]func(Event){}, closing: make(chan struct{})}
	if p.bell, err = newDoorbell(c.vectors()); err != nil {
		return nil, err
	}
	var inherit files
	placed := c.deviceArgs(&inherit)
	if err := p.start(path, placed.args, inherit, sandbox); err != nil {
		p.bell.close()
		return nil, err
	}
	for i, spec := range c.Devices {
		p.seats = append(p.seats, &seat{spec: spec, serial: i, key: strconv.Itoa(i), slot: placed.where[i].slot, ready: true})
	}
	if err := p.greet(ctx); err != nil {
		err = p.explain(err)
		p.Close()
		if ctx.Err() != nil {
			err = fmt.Errorf("qemu: starting: %w", context.Cause(ctx))
		}
		return nil, err
	}
	p.up.Store(true)
	p.working.Go(p.watchEjects)
	return p, nil
}

// greet waits until QEMU answers.
func (p *Process) greet(ctx context.Context) (err error) {
	stop := context.AfterFunc(ctx, p.child.Kill)
	defer stop()
	if err := p.bell.serve(p.ivshmem); err != nil {
		return err
	}
	if p.qmp, err = newQMP(p.qmpFile, startTimeout, p.event); err != nil {
		return err
	}
	if !stop() {
		return fmt.Errorf("qemu: starting: %w", context.Cause(ctx))
	}
	return nil
}

// explain prefers QEMU's own words over the broken pipe that its end looks like.
func (p *Process) explain(err error) error {
	if !errors.Is(err, bus.ErrGone) && !errors.Is(err, bus.ErrTimeout) {
		return err
	}
	select {
	case <-p.child.Done():
		if said := p.c.inUsersWords(p.child.LastWords()); said != "" {
			return fmt.Errorf("qemu: %s", said)
		}
		return p.Err()
	case <-time.After(200 * time.Millisecond):
		return err
	}
}

// Devices are those that QEMU has now: the ones of Config, and those plugged in since.
func (p *Process) Devices() []DeviceSpec {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []DeviceSpec
	for _, s := range p.seats {
		if s.ready {
			out = append(out, s.spec)
		}
	}
	return out
}

// PID is QEMU's process id.
func (p *Process) PID() int { return p.child.PID() }

// Done is closed when QEMU has ended; Err then says how.
func (p *Process) Done() <-chan struct{} { return p.child.Done() }

// Err is nil while QEMU runs, then wraps bus.ErrGone.
func (p *Process) Err() error {
	select {
	case <-p.child.Done():
		return fmt.Errorf("qemu: QEMU (pid %d) ended: %s: %w", p.child.PID(), p.child.End(), bus.ErrGone)
	default:
		return nil
	}
}

// Close ends QEMU and releases everything. It is idempotent.
func (p *Process) Close() error {
	p.closeOnce.Do(func() {
		p.mu.Lock()
		p.shut = true
		p.mu.Unlock()
		close(p.closing)
		p.kill()
		p.quiescing.Lock()
		p.closeFiles()
		p.quiescing.Unlock()
		if p.qmp != nil {
			<-p.qmp.ended
		}
		p.working.Wait()
		p.bell.close()
	})
	return nil
}

// Watch has f told of what happens, on one goroutine, which f must not hold up. stop returns when f will not be called any more.
func (p *Process) Watch(f func(Event)) (stop func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := p.watches
	p.watches++
	p.watchers[n] = f
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.watchers, n)
	}
}

// tell tells those who watch. They are called with mu held, so that stop need not wait for more than mu.
func (p *Process) tell(e Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range p.watchers {
		f(e)
	}
}

// Parts are what a Machine is made of: descriptors, and what must be known of them. They go to another process as they are, at most
// one at a time.
type Parts struct {
	Meta  json.RawMessage
	Files []*os.File // RAM, the qtest socket, then eventfds
}

// Close closes the files.
func (p *Parts) Close() {
	for _, f := range p.Files {
		f.Close()
	}
	p.Files = nil
}

// meta is Parts.Meta.
type meta struct {
	PID     int        `json:"pid"`
	Version [3]int     `json:"version"`
	IOMMU   bool       `json:"iommu,omitempty"`
	Devices []metaSeat `json:"devices"`
}

type metaSeat struct {
	Name   string   `json:"name"`
	Model  string   `json:"model"`
	Bus    string   `json:"bus,omitempty"`
	Props  []string `json:"props,omitempty"`
	IOMMU  bool     `json:"iommu,omitempty"`
	Serial int      `json:"serial"`
	Key    string   `json:"key"`
	Slot   int      `json:"slot"`
	HID    string   `json:"hid,omitempty"`
	Number int      `json:"number,omitempty"`
}

// Parts are duplicates of what a Machine needs, for the caller to close, or to give to [Attach]. Whoever had the parts before must be
// gone, and Quiesce have returned since. It fails with bus.ErrGone where QEMU has ended.
func (p *Process) Parts() (*Parts, error) {
	p.quiescing.Lock()
	defer p.quiescing.Unlock()
	return p.parts(false)
}

// parts makes them. For a machine in this process, which lives as long as its QEMU, the eventfds need not be there twice: it takes them.
func (p *Process) parts(give bool) (*Parts, error) {
	if err := p.Err(); err != nil {
		return nil, err
	}
	m := meta{PID: p.PID(), IOMMU: p.c.iommu()}
	v := p.qmp.version
	m.Version = [3]int{v.Major, v.Minor, v.Micro}
	p.mu.Lock()
	shut := p.shut
	for _, s := range p.seats {
		if !s.ready {
			continue
		}
		x := metaSeat{Name: s.spec.Name, Model: s.spec.Model, Bus: s.spec.Bus, Props: s.spec.Props, IOMMU: s.spec.IOMMU, Serial: s.serial, Key: s.key, Slot: s.slot}
		if t := s.spec.TPM; t != nil {
			x.HID, x.Number = t.HardwareID, t.Number
		}
		m.Devices = append(m.Devices, x)
	}
	p.mu.Unlock()
	if shut {
		return nil, fmt.Errorf("qemu: %w", bus.ErrClosed)
	}
	out := &Parts{}
	var err error
	if out.Meta, err = json.Marshal(m); err != nil {
		return nil, fmt.Errorf("qemu: describing the machine: %w", err)
	}
	fds := append([]int{int(p.ram.Fd()), p.qtest}, p.bell.fds...)
	for i, fd := range fds {
		if i > 1 && give {
			out.Files = append(out.Files, os.NewFile(uintptr(fd), "qemu"))
			continue
		}
		n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			out.Close()
			return nil, fmt.Errorf("qemu: duplicating a descriptor: %w", err)
		}
		out.Files = append(out.Files, os.NewFile(uintptr(n), "qemu"))
	}
	if give {
		p.bell.fds = nil
	}
	return out, nil
}
