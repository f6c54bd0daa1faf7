package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"sync"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/qemu"
	"github.com/ring3dev/ring3/internal/link"
	"github.com/ring3dev/ring3/internal/swtpm"
)

// A supervised group's QEMU is its supervisor's, with its monitor, its captures and the swtpm behind its TPM. A worker has the parts that a
// qemu.Machine is made of, and asks for the rest.

// Methods of outside about QEMU. A machine is called by the name of its first device.
const (
	outsideQEMU     link.Method = 0x0310 // qemuOpen: qemuOpened, and a page of the files
	outsideExecute  link.Method = 0x0311 // qemuExecute: what qemu.Process.Execute answers
	outsideWait     link.Method = 0x0312 // qemuWait: qemuNews, when there are some; where it ended, at once
	outsideCaptured link.Method = 0x0313 // qemuOpen: its captures get their names
)

type qemuOpen struct {
	Machine string `json:"machine"`
	From    int    `json:"from,omitempty"` // the first of its files that are wanted now
}

type qemuOpened struct {
	Meta  json.RawMessage `json:"meta"`
	Files int             `json:"files"` // of all pages
}

type qemuExecute struct {
	Machine string          `json:"machine"`
	Command string          `json:"command"`
	Args    json.RawMessage `json:"args,omitempty"`
}

type qemuWait struct {
	Machine string `json:"machine"`
	Seen    uint64 `json:"seen,omitempty"` // events that were told
}

type qemuNews struct {
	Seen   uint64       `json:"seen"`
	Events []qemu.Event `json:"events,omitempty"`
	Ended  string       `json:"ended,omitempty"` // how QEMU ended
}

// qemuPage is how many files go with one answer, which the kernel bounds.
const qemuPage = 128

// The supervisor's end.

// heldQEMU has the QEMUs of a group; outsideBackend. Safe for concurrent use.
type heldQEMU struct {
	log      *slog.Logger
	plan     *System // without devices: what it would start
	machines map[string]*heldMachine
}

// heldMachine is one QEMU, or will be. Its mu is held while it starts, and while it is quiesced.
type heldMachine struct {
	name   string
	c      Config
	log    *slog.Logger
	config qemu.Config
	group  []DeviceSpec
	tpm    *DeviceSpec // its TPM, if it has one

	mu       sync.Mutex
	p        *qemu.Process // nil: not started yet
	emulator *tpmMachine   // swtpm, without a machine
	unwatch  func()
	turn     chan struct{} // taken by who asks the monitor: of a worker's questions one waits for QEMU, the others end with the worker
	used     bool          // some worker has its parts
	closed   bool

	news sync.Mutex // guards what follows
	// events are those that the worker which has the parts was not told of yet, numbered from seen on.
	events []qemu.Event
	seen   uint64
	more   chan struct{} // closed when there are more
}

func init() { outsideBackends = append(outsideBackends, holdQEMU) }

// holdQEMU is for the QEMUs of a group. They are started when a worker asks for them.
func holdQEMU(c Config, g groupPlan) (outsideBackend, error) {
	if !slices.ContainsFunc(g.Plan.Devices, func(d DeviceSpec) bool { return d.Backend == "qemu" }) {
		return nil, nil
	}
	c.Plan, c.Numbers, c.Outside = g.Plan, g.Numbers, nil
	h := &heldQEMU{plan: newSystem(c), machines: map[string]*heldMachine{}}
	h.log = h.plan.log
	for _, group := range h.plan.plan.groups() {
		if group[0].Backend != "qemu" {
			// What it is numbered by comes before what is numbered after it.
			for _, d := range group {
				h.plan.simSpec(d)
			}
			continue
		}
		q, err := h.plan.qemuConfig(c, group, 0)
		if err != nil {
			return nil, errors.Join(err, h.Close())
		}
		q.Log = paced(h.log, group[0].Name)
		m := &heldMachine{name: group[0].Name, c: c, log: h.log, config: q, group: group, turn: make(chan struct{}, 1), more: make(chan struct{})}
		if qemu.IsTPM(group[0].Device) {
			m.tpm = &group[0]
			h.plan.tpmOf(&m.config, group[0])
		}
		h.machines[m.name] = m
	}
	return h, nil
}

func (h *heldQEMU) calls() map[link.Method]outsideCall {
	return map[link.Method]outsideCall{outsideQEMU: h.open, outsideExecute: h.execute, outsideWait: h.wait, outsideCaptured: h.captured}
}

// machine finds one.
func (h *heldQEMU) machine(name string) (*heldMachine, error) {
	if m := h.machines[name]; m != nil {
		return m, nil
	}
	return nil, fmt.Errorf("qemu: the group has no machine %.64q: %w", name, bus.ErrNotSupported)
}

// open answers outsideQEMU.
func (h *heldQEMU) open(ctx context.Context, body []byte, _ []*os.File) (any, []*os.File, error) {
	var a qemuOpen
	if err := asked(body, &a); err != nil {
		return nil, nil, err
	}
	m, err := h.machine(a.Machine)
	if err != nil {
		return nil, nil, err
	}
	return m.page(ctx, a.From)
}

// page gives some of the files, after it has started QEMU if need be.
func (m *heldMachine) page(ctx context.Context, from int) (any, []*os.File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.closed:
		return nil, nil, fmt.Errorf("qemu: %s: %w", m.name, bus.ErrClosed)
	case from == 0 && m.used:
		return nil, nil, fmt.Errorf("qemu: %s: somebody has it: %w", m.name, bus.ErrBusy)
	case from != 0 && !m.used:
		return nil, nil, fmt.Errorf("qemu: %s: nobody has its first file: %w", m.name, bus.ErrProtocol)
	}
	if m.p == nil {
		if err := m.start(ctx); err != nil {
			return nil, nil, err
		}
	}
	parts, err := m.p.Parts()
	if err != nil {
		return nil, nil, err
	}
	all := parts.Files
	if from < 0 || from >= len(all) {
		parts.Close()
		return nil, nil, fmt.Errorf("qemu: %s: file %d of %d: %w", m.name, from, len(all), bus.ErrProtocol)
	}
	end := min(from+qemuPage, len(all))
	closeOpen(all[:from])
	closeOpen(all[end:])
	if from == 0 {
		m.used = true
		m.news.Lock()
		m.events = nil // of what the one before had
		m.seen = 0
		m.news.Unlock()
	}
	return qemuOpened{parts.Meta, len(all)}, all[from:end], nil
}

// start starts QEMU, after swtpm if it has a TPM. Called with mu held.
func (m *heldMachine) start(ctx context.Context) (err error) {
	q := m.config
	q.Devices = slices.Clone(q.Devices)
	if m.c.Started != nil {
		q.Started = func(pid int) { m.c.Started(pid, "qemu") }
	}
	if m.tpm != nil {
		m.emulator = &tpmMachine{}
		defer func() {
			if err != nil {
				err = errors.Join(err, m.emulator.Close())
				m.emulator = nil
			}
		}()
		if err := m.emulator.startEmulator(m.c, *m.tpm); err != nil {
			return err
		}
		t := &q.Devices[len(q.Devices)-1]
		x := *t.TPM
		x.Control = m.emulator.sw.Control()
		t.TPM = &x
	}
	connected, err := connectFabrics(ctx, m.group, q.Devices)
	if err != nil {
		return err
	}
	defer connected()
	p, err := qemu.Launch(ctx, q)
	if m.emulator != nil {
		m.emulator.sw.CloseControl()
		err = m.emulator.sw.Explain(err)
	}
	if err != nil {
		return qemuMissing(err)
	}
	m.p = p
	m.unwatch = p.Watch(m.tell)
	if m.emulator != nil {
		go m.watchEmulator(p, m.emulator.sw)
	}
	return nil
}

// watchEmulator tells of an swtpm that ended before its QEMU.
func (m *heldMachine) watchEmulator(p *qemu.Process, sw *swtpm.Process) {
	if endedAlone(sw, p.Done()) {
		m.log.Error(sw.End())
	}
}

// maxNews bounds what a worker that does not ask is not told.
const maxNews = 256

// tell keeps an event for the worker.
func (m *heldMachine) tell(e qemu.Event) {
	m.news.Lock()
	defer m.news.Unlock()
	m.events = append(m.events, e)
	if n := len(m.events) - maxNews; n > 0 {
		m.events = slices.Delete(m.events, 0, n)
		m.seen += uint64(n)
	}
	close(m.more)
	m.more = make(chan struct{})
}

// running is the QEMU that a worker has.
func (h *heldQEMU) running(name string) (*heldMachine, *qemu.Process, error) {
	m, err := h.machine(name)
	if err != nil {
		return nil, nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.p == nil || !m.used {
		return nil, nil, fmt.Errorf("qemu: %s: nobody has opened it: %w", m.name, bus.ErrProtocol)
	}
	return m, m.p, nil
}

// execute answers outsideExecute.
func (h *heldQEMU) execute(ctx context.Context, body []byte, _ []*os.File) (any, []*os.File, error) {
	var a qemuExecute
	if err := asked(body, &a); err != nil {
		return nil, nil, err
	}
	m, p, err := h.running(a.Machine)
	if err != nil {
		return nil, nil, err
	}
	select {
	case m.turn <- struct{}{}:
		defer func() { <-m.turn }()
	case <-ctx.Done():
		return nil, nil, context.Cause(ctx)
	}
	r, err := p.Execute(a.Command, a.Args)
	return r, nil, err
}

// wait answers outsideWait.
func (h *heldQEMU) wait(ctx context.Context, body []byte, _ []*os.File) (any, []*os.File, error) {
	var a qemuWait
	if err := asked(body, &a); err != nil {
		return nil, nil, err
	}
	m, p, err := h.running(a.Machine)
	if err != nil {
		return nil, nil, err
	}
	for {
		m.news.Lock()
		first, more := m.seen, m.more
		r := qemuNews{Seen: first + uint64(len(m.events))}
		if a.Seen < r.Seen {
			r.Events = slices.Clone(m.events[max(a.Seen, first)-first:])
		}
		m.news.Unlock()
		if err := p.Err(); err != nil {
			r.Ended = err.Error()
		}
		if r.Ended != "" || len(r.Events) > 0 {
			return r, nil, nil
		}
		select {
		case <-more:
		case <-p.Done():
		case <-ctx.Done():
			return nil, nil, context.Cause(ctx)
		}
	}
}

// captured answers outsideCaptured.
func (h *heldQEMU) captured(ctx context.Context, body []byte, _ []*os.File) (any, []*os.File, error) {
	var a qemuOpen
	if err := asked(body, &a); err != nil {
		return nil, nil, err
	}
	m, _, err := h.running(a.Machine)
	if err != nil {
		return nil, nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range h.plan.captures {
		if slices.ContainsFunc(m.config.Devices, func(d qemu.DeviceSpec) bool { return d.Name == c.device }) {
			if err := c.keep(ctx); err != nil {
				return nil, nil, err
			}
		}
	}
	return nil, nil, nil
}

// renewable says whether devices that are gone come back with the next worker: those of a QEMU that ended or hangs, maybe by what its driver did to it.
func renewable(o outside) bool {
	n, ok := o.(*nearOutside)
	return ok && slices.ContainsFunc(n.backends, func(b outsideBackend) bool { _, ok := b.(*heldQEMU); return ok })
}

// Quiesce implements outsideBackend. A QEMU that cannot be quiesced has ended then, which is as good: the next worker gets another one.
func (h *heldQEMU) Quiesce(ctx context.Context) error {
	var wg sync.WaitGroup
	var errs lockedErrors
	for _, m := range h.machines {
		wg.Go(func() { errs.add(m.quiesce(ctx)) })
	}
	wg.Wait()
	return errs.join()
}

// lockedErrors are errors that several goroutines have.
type lockedErrors struct {
	mu  sync.Mutex
	all []error
}

func (e *lockedErrors) add(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, err)
}

func (e *lockedErrors) join() error { return errors.Join(e.all...) }

func (m *heldMachine) quiesce(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.p == nil || !m.used || m.closed {
		return nil
	}
	m.used = false
	begun := time.Now()
	err := m.p.Quiesce(ctx)
	if err == nil {
		m.log.Debug(fmt.Sprintf("qemu: %s: quiesced in %v", m.name, time.Since(begun).Round(time.Microsecond)))
		return nil
	}
	// What was plugged in is in the next one's slots, and its power is new.
	m.log.Error(fmt.Sprintf("%v: the group gets another one", err))
	if m.tpm != nil {
		m.log.Warn(fmt.Sprintf("%s: it starts anew, as after a loss of power: its PCRs are empty", m.tpm.Name))
	}
	m.config.Devices = m.p.Devices()
	for i := range m.config.Devices {
		if d := &m.config.Devices[i]; d.Capture != nil {
			d.Capture = nil // its header is written once
			m.log.Warn(fmt.Sprintf("%s: its capture ends here, with the QEMU that wrote it", d.Name))
		}
	}
	return m.end()
}

// end ends QEMU and swtpm. Called with mu held.
func (m *heldMachine) end() error {
	var errs []error
	if m.p != nil {
		m.unwatch()
		errs = append(errs, m.p.Close())
		m.p = nil
	}
	if m.emulator != nil {
		errs = append(errs, m.emulator.Close())
		m.emulator = nil
	}
	return errors.Join(errs...)
}

// Close implements outsideBackend.
func (h *heldQEMU) Close() error {
	var errs []error
	for _, m := range h.machines {
		m.mu.Lock()
		m.closed = true
		errs = append(errs, m.end())
		m.mu.Unlock()
	}
	for _, c := range h.plan.captures {
		errs = append(errs, c.close())
	}
	h.plan.cancel()
	return errors.Join(errs...)
}

// qemuMissing says what needs no QEMU, to who has none.
func qemuMissing(err error) error {
	if errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("%w; models of the backend sim, such as sim:e1000e, need nothing", err)
	}
	return err
}
