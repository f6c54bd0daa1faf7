package rapidio

import (
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/internal/uevent"
)

// modelFabric is a switch with an endpoint at each port, in this process: enough to try the subsystem's core on. Package fabric has the real one.
type modelFabric struct {
	mu     sync.Mutex
	ids    IDSize
	sw     modelRegs
	routes map[DestID]uint8
	ports  []*modelPort
}

// modelRegs are registers: those in ro ignore writes, all others are memory.
type modelRegs struct {
	v  map[Off]uint32
	ro map[Off]bool
}

func registers(v map[Off]uint32) modelRegs {
	r := modelRegs{v, map[Off]bool{}}
	for off := range v {
		if off < RegMbox || off >= RegExtFeatures {
			r.ro[off] = true
		}
	}
	return r
}

func (r modelRegs) read(off Off, w Width) uint32 {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], r.v[off&^3])
	var out [4]byte
	copy(out[4-w:], b[off&3:][:w])
	return binary.BigEndian.Uint32(out[:])
}

func (r modelRegs) write(off Off, w Width, v uint32) {
	if r.ro[off&^3] {
		return
	}
	var b, in [4]byte
	binary.BigEndian.PutUint32(b[:], r.v[off&^3])
	binary.BigEndian.PutUint32(in[:], v)
	copy(b[off&3:][:w], in[4-w:])
	r.v[off&^3] = binary.BigEndian.Uint32(b[:])
}

const (
	modelVendor   = 0x0038
	modelEndpoint = 0x0721
	modelSwitch   = 0x0500
)

func endpointRegs(id DestID, ids IDSize) map[Off]uint32 {
	ops := OpMessage | OpDoorbell | OpPortWrite
	return map[Off]uint32{
		RegDeviceID: modelEndpoint<<16 | modelVendor, RegDeviceInfo: 0x12, RegAsmID: 0x0001_0000 | modelVendor, RegAsmInfo: 0x0002_0100,
		RegPEF: uint32(PEFProcessor | PEFMboxes | PEFDoorbell | PEFExtValid), RegSrcOps: ops, RegDstOps: ops, RegBaseDeviceID: ids.Reg(id), RegHostLock: LockFree,
		0x100: 0x0300<<16 | EFSerialEndpoint, 0x300: EFErrorMgmt,
	}
}

func newModel(ids IDSize, endpoints int) *modelFabric {
	f := &modelFabric{ids: ids, routes: map[DestID]uint8{}}
	f.sw = registers(map[Off]uint32{
		RegDeviceID: modelSwitch<<16 | modelVendor, RegAsmID: 0x0003_0000 | modelVendor, RegPEF: uint32(PEFSwitch | PEFStdRoute | PEFExtValid),
		RegAsmInfo: 0x0001_0100, RegSwitchPort: uint32(endpoints) << 8, 0x100: 0x0400<<16 | EFSerialSwitchRec, 0x400: 0x0500<<16 | EFRoutingTables, 0x500: EFErrorMgmt,
	})
	for i := range endpoints {
		f.ports = append(f.ports, &modelPort{f: f, name: fmt.Sprintf("pe%d", i), regs: registers(endpointRegs(DestID(i), ids)), done: make(chan struct{})})
		f.routes[DestID(i)] = uint8(i)
	}
	return f
}

// at is the registers that a transaction reaches; nil: none.
func (f *modelFabric) at(dest DestID, hop uint8) *modelRegs {
	if hop == 0 {
		return &f.sw
	}
	port, ok := f.routes[dest]
	if !ok || f.ports[port].gone() {
		return nil
	}
	return &f.ports[port].regs
}

// modelPort is an endpoint, and a master port.
type modelPort struct {
	f    *modelFabric
	name string
	regs modelRegs

	events  Events
	inside  sync.Mutex // events come one at a time
	open    atomic.Bool
	opened  func() // called when doorbells were let in; may be nil
	inboxes [MaxMboxes]atomic.Pointer[modelInbox]
	done    chan struct{}
	once    sync.Once
	reads   atomic.Int64
}

func (p *modelPort) die() { p.once.Do(func() { close(p.done) }) }

func (p *modelPort) gone() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

func (p *modelPort) Info() PortInfo        { return PortInfo{Name: p.name, Model: "model", IDs: p.f.ids} }
func (p *modelPort) Start(e Events)        { p.events = e }
func (p *modelPort) Done() <-chan struct{} { return p.done }

func (p *modelPort) Err() error {
	if p.gone() {
		return fmt.Errorf("%s: unplugged: %w", p.name, bus.ErrGone)
	}
	return nil
}

func (p *modelPort) access(r *modelRegs, do func(r *modelRegs)) error {
	if err := p.Err(); err != nil {
		return err
	}
	if r == nil {
		return ErrResponse
	}
	p.f.mu.Lock()
	defer p.f.mu.Unlock()
	do(r)
	return nil
}

func (p *modelPort) LocalRead(_ context.Context, off Off, w Width) (v uint32, err error) {
	err = p.access(&p.regs, func(r *modelRegs) { v = r.read(off, w) })
	return v, err
}

func (p *modelPort) LocalWrite(_ context.Context, off Off, w Width, v uint32) error {
	return p.access(&p.regs, func(r *modelRegs) { r.write(off, w, v) })
}

func (p *modelPort) Read(_ context.Context, dest DestID, hop uint8, off Off, w Width) (v uint32, err error) {
	p.reads.Add(1)
	err = p.access(p.f.at(dest, hop), func(r *modelRegs) { v = r.read(off, w) })
	return v, err
}

func (p *modelPort) Write(_ context.Context, dest DestID, hop uint8, off Off, w Width, v uint32) error {
	return p.access(p.f.at(dest, hop), func(r *modelRegs) { r.write(off, w, v) })
}

func (p *modelPort) Doorbell(_ context.Context, dest DestID, info uint16) error {
	if err := p.Err(); err != nil {
		return err
	}
	port, ok := p.f.routes[dest]
	if !ok || !p.f.ports[port].open.Load() || p.f.ports[port].gone() {
		return ErrResponse
	}
	to := p.f.ports[port]
	id := p.f.ids.Of(p.regs.v[RegBaseDeviceID])
	to.tell(func(e Events) { e.Doorbell(id, info) })
	return nil
}

// tell has an event happen.
func (p *modelPort) tell(what func(Events)) {
	p.inside.Lock()
	defer p.inside.Unlock()
	what(p.events)
}

func (p *modelPort) PortWrite(_ context.Context, dest DestID, data []byte) error {
	if port, ok := p.f.routes[dest]; ok {
		p.f.ports[port].tell(func(e Events) { e.PortWrite(data) })
	}
	return p.Err()
}

func (p *modelPort) OpenDoorbells(open bool) error {
	p.open.Store(open)
	if open && p.opened != nil {
		p.opened()
	}
	return p.Err()
}

func (p *modelPort) OpenOutbox(mbox, entries int) (Outbox, error) {
	return &modelOutbox{p: p, entries: entries}, p.Err()
}

func (p *modelPort) OpenInbox(mbox, entries int) (Inbox, error) {
	i := &modelInbox{p: p, mbox: mbox, c: make(chan Message, entries)}
	p.inboxes[mbox].Store(i)
	return i, p.Err()
}

type modelOutbox struct {
	p       *modelPort
	entries int
	results []Status
}

func (o *modelOutbox) Add(msgs []Message) int {
	for i, m := range msgs {
		if len(o.results) == o.entries {
			return i
		}
		o.results = append(o.results, o.send(m))
	}
	return len(msgs)
}

func (o *modelOutbox) send(m Message) Status {
	port, ok := o.p.f.routes[m.Peer]
	if !ok || m.Mbox >= MaxMboxes || len(m.Data) == 0 || len(m.Data) > MaxMessage {
		return Error
	}
	in := o.p.f.ports[port].inboxes[m.Mbox].Load()
	if in == nil {
		return Error
	}
	m.Peer, m.Data = o.p.f.ids.Of(o.p.regs.v[RegBaseDeviceID]), append([]byte(nil), m.Data...)
	select {
	case in.c <- m:
		return Done
	default:
		return Retry
	}
}

func (o *modelOutbox) Results(st []Status) int {
	n := copy(st, o.results)
	o.results = o.results[n:]
	return n
}
func (o *modelOutbox) InFlight() int                  { return len(o.results) }
func (o *modelOutbox) Wait(ctx context.Context) error { return ctx.Err() }
func (o *modelOutbox) Close() error                   { return nil }

type modelInbox struct {
	p    *modelPort
	mbox int
	c    chan Message
	held []Message
}

func (i *modelInbox) Get(msgs []Message) int {
	for n := range msgs {
		var m Message
		if len(i.held) > 0 {
			m, i.held = i.held[0], i.held[1:]
		} else {
			select {
			case m = <-i.c:
			default:
				return n
			}
		}
		msgs[n].Peer, msgs[n].Mbox = m.Peer, m.Mbox
		msgs[n].Data = msgs[n].Data[:copy(msgs[n].Data, m.Data)]
	}
	return len(msgs)
}

func (i *modelInbox) Wait(ctx context.Context) error {
	if len(i.held) > 0 {
		return nil
	}
	select {
	case m := <-i.c:
		i.held = append(i.held, m)
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-i.p.done:
		return i.p.Err()
	}
}
func (i *modelInbox) Free() int   { return cap(i.c) - len(i.c) }
func (i *modelInbox) Cut() uint64 { return 0 }

func (i *modelInbox) Close() error {
	i.p.inboxes[i.mbox].CompareAndSwap(i, nil)
	return nil
}

// modelScan is an Enumerator for the model: it knows that there is one switch, and what the numbers are.
type modelScan struct {
	mu     sync.Mutex
	pws    []PortWrite
	links  []bool
	wrote  int
	left   int
	fail   error
	during func(ctx context.Context) // called while it scans
}

func (s *modelScan) Enumerate(ctx context.Context, m *Mport) error { return s.find(ctx, m) }
func (s *modelScan) Discover(ctx context.Context, m *Mport) error  { return s.find(ctx, m) }

func (s *modelScan) PortWrite(_ *Mport, pw PortWrite) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pws = append(s.pws, pw)
}

func (s *modelScan) Link(_ *Mport, up bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.links = append(s.links, up)
}

func (s *modelScan) ConfigWritten(*Mport) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wrote++
}

func (s *modelScan) Leave(*Mport) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.left++
}

func (s *modelScan) find(ctx context.Context, m *Mport) error {
	if s.during != nil {
		s.during(ctx)
	}
	if s.fail != nil {
		return s.fail
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	n := m.Bus().AddNet(m)
	sw, err := ReadDevice(ctx, Remote{m, m.IDs().Any(), 0})
	if err != nil {
		return err
	}
	sw.Mport, sw.DestID, sw.Hop, sw.Switch.Ops, sw.Tag = m, m.IDs().Any(), 0, modelOps{}, 0
	if err := n.AddDevice(sw); err != nil {
		return err
	}
	own, err := m.DestID(ctx)
	if err != nil {
		return err
	}
	for i := range sw.Ports() {
		if DestID(i) == own {
			continue
		}
		d, err := ReadDevice(ctx, Remote{m, DestID(i), 1})
		if err != nil {
			continue // unplugged
		}
		d.Mport, d.DestID, d.Prev, d.Tag = m, DestID(i), sw, uint32(i+1)
		if err := n.AddDevice(d); err != nil {
			return err
		}
		n.SetNext(sw, i, d)
		n.SetRoute(sw, d.DestID, uint8(i))
	}
	return nil
}

// modelOps are the operations of the model's switch, which has no tables that could be written.
type modelOps struct{}

func (modelOps) Name() string { return "model" }
func (modelOps) AddEntry(context.Context, SwitchAccess, int, DestID, uint8) error {
	return bus.ErrNotSupported
}
func (modelOps) GetEntry(context.Context, SwitchAccess, int, DestID) (uint8, error) {
	return 0, bus.ErrNotSupported
}
func (modelOps) ClearTable(context.Context, SwitchAccess, int) error { return bus.ErrNotSupported }

// rig is a bus with the model's first endpoint as an enumerating host.
type rig struct {
	t      *testing.T
	f      *modelFabric
	b      *Bus
	m      *Mport
	scan   *modelScan
	events *uevent.Ring
	log    logText
}

func newRig(t *testing.T, ids IDSize, endpoints int) *rig {
	t.Helper()
	r := &rig{t: t, f: newModel(ids, endpoints), scan: &modelScan{}, events: uevent.New(0)}
	r.b = NewBus(BusOptions{Log: r.log.logger(), Uevents: r.events})
	t.Cleanup(r.b.Close)
	r.m = r.add(0, 0)
	if err := r.b.Scan(t.Context(), -1); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *rig) add(endpoint, host int) *Mport {
	r.t.Helper()
	m, err := r.b.AddMport(r.t.Context(), r.f.ports[endpoint], MportOptions{Host: host, Scan: r.scan})
	if err != nil {
		r.t.Fatal(err)
	}
	return m
}

// device is one that must be there.
func (r *rig) device(name string) *Device {
	r.t.Helper()
	d := r.b.find(name)
	if d == nil {
		r.t.Fatalf("no device %s among %v", name, r.b.Devices())
	}
	return d
}

// eventually waits for something that must come to pass.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: it did not come to that", what)
		}
	}
}

// space is a device's registers for ReadDevice alone.
type space map[Off]uint32

func (s space) Read32(_ context.Context, off Off) (uint32, error) { return s[off], nil }

func (s space) with(more space) space {
	out := maps.Clone(s)
	maps.Copy(out, more)
	return out
}
