package mport

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/rionet/rapidio"
	"github.com/ring3dev/ring3/rionet/shm"
)

// Registers of ivshmem (QEMU docs/specs/ivshmem-spec, "PCI BAR 0").
const (
	regIVPosition bus.Off = 0x08 // own ID, RO
	regDoorbell   bus.Off = 0x0c // peer 31:16, vector 15:0, WO
)

// daemon is the fabric's ivshmem ID; it has vector 0 only.
const daemon = 0

// Driver drives ivshmem-doorbell with a fabric behind it. Its instances are *Port.
var Driver = &pci.Driver{
	Name:     "rio_ivshmem",
	IDs:      []pci.ID{{Vendor: 0x1af4, Device: 0x1110}},
	Platform: []string{"IVSHMEM"},
	API:      1,
	Options: map[string]string{
		"timeout": "how long a response may take (5s), at least 10ms",
		// These are for who puts the port on a bus.
		"host":  "enumerate, with this device ID",
		"exact": "off: rionet's frames have always 4096 bytes, as the kernel's",
	},
	Probe: func(ctx context.Context, dev bus.Device, env pci.Env) (pci.Instance, error) {
		return probe(ctx, dev, env)
	},
}

// defaultTimeout is longer than any response takes: the fabric itself reports what was lost, after the time that the endpoint's
// register says.
const defaultTimeout = 5 * time.Second

// joinTimeout is how long the fabric may take to make the region anew.
const joinTimeout = 10 * time.Second

// Port is a master port over shared memory; rapidio.Ops. Its Close takes it out of service, and must not be called by Events.
type Port struct {
	dev     bus.Device
	log     *slog.Logger
	regs    bus.Region
	node    *shm.Node
	release func() // of the memory
	info    rapidio.PortInfo
	timeout time.Duration
	vectors int
	irqs    []*bus.Handler

	// life is held for reading while the memory is used. Others are taken in this order: life, txMu, ansMu.
	life sync.RWMutex
	over bool // the memory is not to be used: not joined yet, or closed; guarded by life

	txMu sync.Mutex // guards node.Tx, and Out of direct links
	room roomWait

	ansMu    sync.Mutex // guards node.Answers, calls, and what outboxes say
	calls    []call
	out      [rapidio.MaxMboxes]*outbox
	sleepers int // who waits for an answer's interrupt

	slots   chan uint16 // of calls
	boxes   sync.Mutex  // guards opening and closing of mailboxes, and closing
	closing bool        // there is no Start any more
	in      [rapidio.MaxMboxes]atomic.Pointer[inbox]
	events  *bus.Waker
	missed  *bus.Waker // wakes catchUp
	started atomic.Bool
	wg      sync.WaitGroup

	done  chan struct{}
	dying sync.Once
	err   error // set before done is closed
	close func() error
}

var _ rapidio.Ops = (*Port)(nil)

// probe brings a port into service.
func probe(ctx context.Context, dev bus.Device, env pci.Env) (*Port, error) {
	p := &Port{dev: dev, log: env.Log, timeout: defaultTimeout, events: bus.NewWaker(), missed: bus.NewWaker(), done: make(chan struct{}), over: true}
	if p.log == nil {
		p.log = slog.New(slog.DiscardHandler)
	}
	if v, ok := env.Options["timeout"]; ok {
		d, err := time.ParseDuration(v)
		if err != nil || d < 10*time.Millisecond {
			return nil, p.errorf("timeout %q: want a time of at least 10ms: %w", v, pci.ErrOption)
		}
		p.timeout = d
	}
	p.close = sync.OnceValue(p.shut)
	if err := p.open(); err != nil {
		return nil, err
	}
	if err := p.join(ctx, env.Name); err != nil {
		return nil, errors.Join(err, p.shut())
	}
	p.wg.Go(p.watch)
	p.wg.Go(p.catchUp)
	return p, nil
}

func (p *Port) errorf(format string, args ...any) error {
	return fmt.Errorf("%s: "+format, append([]any{p.dev.Address()}, args...)...)
}

// open finds the region.
func (p *Port) open() error {
	memory := 2
	if len(bus.HardwareIDs(p.dev)) > 0 {
		memory = 1 // regions of a platform device are numbered from 0
	} else {
		pci.SetCommand(p.dev.Config(), pci.CmdMem|pci.CmdMaster, 0)
	}
	var err error
	if p.regs, err = p.dev.Region(0); err != nil {
		return p.errorf("registers: %w", err)
	}
	r, err := p.dev.Region(memory)
	if err != nil {
		return p.errorf("shared memory: %w", err)
	}
	b, release := bus.Hold(r)
	mem := shm.OfRegion(r)
	if b != nil {
		mem = shm.Mapped(b)
	}
	id := p.regs.Read32(regIVPosition)
	if p.node, err = shm.OpenNode(mem, int(id)); err != nil {
		release()
		if errors.Is(err, shm.ErrNoFabric) {
			err = fmt.Errorf("%w: %w", pci.ErrSkip, err)
		}
		return p.errorf("joining the fabric: %w", err)
	}
	p.release = release
	p.info = rapidio.PortInfo{Name: p.node.Name, Model: "ivshmem", IDs: p.node.IDs}
	p.calls = make([]call, shm.MaxCalls)
	p.slots = make(chan uint16, shm.MaxCalls)
	for i := range p.calls {
		p.calls[i].ch = make(chan struct{}, 1)
		p.slots <- uint16(i)
	}
	return nil
}

// join enables interrupts and has the fabric begin anew with this node.
func (p *Port) join(ctx context.Context, name string) error {
	p.vectors = min(p.dev.IRQVectors(bus.MSIX), shm.NumVectors)
	if p.vectors < 1 {
		return p.errorf("interrupts: it has no MSI-X vectors: %w", bus.ErrNotSupported)
	}
	irqs, err := p.dev.EnableIRQs(bus.MSIX, p.vectors)
	if err != nil {
		return p.errorf("interrupts: %w", err)
	}
	for i, q := range irqs {
		p.irqs = append(p.irqs, bus.Handle(q, vectorName(name, i, p.vectors), func(uint64) { p.interrupt(i) }))
	}
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	if err := p.node.Reset(ctx, p.vectors, func() { p.kick(daemon, 0) }); err != nil {
		if gone := p.dev.Err(); gone != nil {
			err = gone
		}
		return p.errorf("joining the fabric: %w", err)
	}
	p.life.Lock()
	p.over = false
	p.life.Unlock()
	return nil
}

// vectorName is what /proc/interrupts shows.
func vectorName(name string, i, n int) string {
	switch {
	case n == 1:
		return name
	case i == shm.VecEvents:
		return name + "-events"
	case i == shm.VecAnswers:
		return name + "-answers"
	}
	return fmt.Sprintf("%s-mbox-%d", name, i-shm.VecMbox)
}

// interrupt is what a vector says. The last ones, where there are not so many, are said by vector 0.
func (p *Port) interrupt(vector int) {
	for v := range shm.NumVectors {
		if v != vector && (vector != 0 || v < p.vectors) {
			continue
		}
		switch v {
		case shm.VecEvents:
			p.events.Wake()
		case shm.VecAnswers:
			p.answered()
		default:
			if b := p.in[v-shm.VecMbox].Load(); b != nil {
				b.waker.Wake()
			}
		}
	}
}

// IRQHandlers are for /proc/interrupts.
func (p *Port) IRQHandlers() []*bus.Handler { return p.irqs }

// kick signals a peer's vector.
func (p *Port) kick(peer, vector int) {
	p.regs.Write32(regDoorbell, uint32(peer)<<16|uint32(vector))
}

// enter begins a use of the memory, which leave ends; it says false where there is none yet, or any more.
func (p *Port) enter() bool {
	p.life.RLock()
	if p.over {
		p.life.RUnlock()
		return false
	}
	return true
}

func (p *Port) leave() { p.life.RUnlock() }

// watch ends the port with its device.
func (p *Port) watch() {
	select {
	case <-p.dev.Done():
		p.lost(p.dev.Err())
	case <-p.done:
	}
}

// lost is the end of the device.
func (p *Port) lost(err error) {
	if !errors.Is(err, bus.ErrGone) && !errors.Is(err, bus.ErrClosed) {
		err = fmt.Errorf("%w (%w)", err, bus.ErrGone)
	}
	p.die(fmt.Errorf("%s: %w", p.info.Name, err))
}

// die ends all that waits, and fails what comes.
func (p *Port) die(err error) {
	p.dying.Do(func() {
		p.err = err
		close(p.done)
		p.events.Wake()
	})
}

// broken is a ring that the fabric, or a peer, broke; or a device that is dead, of which all is all-ones.
func (p *Port) broken(ring string, err error) {
	if gone := p.dev.Err(); gone != nil {
		p.lost(gone)
		return
	}
	p.die(fmt.Errorf("%s: %s: %w (%w)", p.info.Name, ring, err, bus.ErrGone))
}

// Done is closed when the port is gone or closed.
func (p *Port) Done() <-chan struct{} { return p.done }

// Err says why.
func (p *Port) Err() error {
	select {
	case <-p.done:
		return p.err
	default:
		return nil
	}
}

// Info is what does not change.
func (p *Port) Info() rapidio.PortInfo { return p.info }

// Close takes the port out of service.
func (p *Port) Close() error { return p.close() }

func (p *Port) shut() error {
	p.leaveFabric()
	p.die(fmt.Errorf("%s: %w", p.info.Name, bus.ErrClosed))
	var errs []error
	for _, h := range p.irqs {
		errs = append(errs, h.Close())
	}
	p.boxes.Lock()
	p.closing = true
	p.boxes.Unlock()
	p.wg.Wait()
	p.life.Lock()
	p.over = true
	p.life.Unlock()
	p.release()
	return errors.Join(append(errs, p.dev.DisableIRQs())...)
}

// leaveFabric closes what is open in the fabric.
func (p *Port) leaveFabric() {
	if p.Err() != nil {
		return
	}
	if p.started.Load() {
		_ = p.OpenDoorbells(false)
	}
	for i := range p.in {
		if b := p.in[i].Load(); b != nil {
			_ = b.Close()
		}
	}
}
