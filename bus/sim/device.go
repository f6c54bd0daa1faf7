package sim

import (
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/dma"
	"github.com/ring3dev/ring3/bus/pci"
)

// device is one function of the machine, or a platform device: bus.Device for its driver, slot for its chip.
type device struct {
	m     *Machine
	spec  DeviceSpec
	index int           // in the machine: no two devices have the same
	slot  uint8         // device number on its bus
	input int           // the line of the machine that its pin is wired to
	up    *device       // the port it stands under; nil: the root bus; guarded by Machine.mu
	addr  pci.Addr      // of a function
	fn    *pci.Function // nil: a platform device, or one that was not enumerated; guarded by Machine.mu
	nth   int           // of a platform device: which of those that firmware calls the same
	hdr   header
	bars  []bus.RegionInfo // the regions, placed
	far   *device          // at the other end of the wire

	irqMu   sync.Mutex // guards irq and closing; before Machine.mu
	irq     irqState
	closing bool // nothing is enabled any more

	// Guarded by Machine.mu.
	chip    chip
	port    *port     // the same, of a port
	below   []*device // of a port: what stands under it
	live    bool      // the ports above lead to it
	masters bool      // and let DMA and messages of it pass
	log     []logged  // uncorrectable errors whose headers are recorded, the first first
	net     netChip   // the same, of a network device
	space   *space    // of a platform device one that nobody reaches
	regions [6]*window
	msixTab []byte
	pending []uint64 // MSI-X vectors that fired while they were masked
	wire    *intx    // the line, while INTx is enabled
	high    bool     // the chip wants INTx
	asserts bool     // and the line is told so
	cut     bool     // the cable is pulled
	memory  pieces
	strayed bool // it was logged
	gone    bool // err is set
	err     error
	closed  bool // by Close

	done      chan struct{}
	closeOnce sync.Once
	closeErr  error
}

// window is a region, and whether the device answers in it.
type window struct {
	info    bus.RegionInfo
	widths  int
	decodes bool
}

// newDevice makes a device of the machine. Called with Machine.mu held, or before anybody else has the machine.
func newDevice(m *Machine, spec DeviceSpec) (*device, error) {
	d, err := makeDevice(m, spec, m.freeIndex())
	if err != nil {
		return nil, err
	}
	switch {
	case d.isPlatform():
		d.standing()
	case spec.Bus == "":
		d.slot = uint8(firstSlot + len(m.roots))
		m.roots = append(m.roots, d)
	default:
		d.up = m.find(spec.Bus)
		d.slot = uint8(len(d.up.below))
		d.up.below = append(d.up.below, d)
	}
	d.addr = pci.Addr{Domain: m.domain, Dev: d.slot}
	for u := d; u != nil; u = u.up {
		d.input = (d.input + int(u.slot)) % pciLines // each bridge turns the pins by its own device number
	}
	d.refresh()
	return d, nil
}

// freeIndex is the first number that no device of the machine has.
func (m *Machine) freeIndex() int {
	for i := 0; ; i++ {
		if !slices.ContainsFunc(m.devices, func(d *device) bool { return d.index == i }) {
			return i
		}
	}
}

// makeDevice makes one that stands nowhere yet.
func makeDevice(m *Machine, spec DeviceSpec, index int) (*device, error) {
	d := &device{m: m, spec: spec, index: index, done: make(chan struct{})}
	props, err := spec.props()
	if err != nil {
		return nil, err
	}
	o := options{index: index, props: props, tpm: spec.TPM}
	for _, x := range m.devices {
		if x.isPlatform() {
			o.nth++
		}
	}
	if d.chip, d.hdr, err = modelOf(spec.Model).make(d, o); err != nil {
		return nil, err
	}
	if d.hdr.pba == 0 {
		d.hdr.pba = pbaAt
	}
	if err := d.hdr.add(props); err != nil {
		return nil, err
	}
	d.net, _ = d.chip.(netChip)
	d.port, _ = d.chip.(*port)
	d.space = newSpace(&d.hdr)
	if d.isPlatform() {
		d.space = newSpace(&header{})
	}
	for _, r := range d.hdr.regions {
		d.regions[r.Index] = &window{info: r, widths: d.hdr.widths[r.Index]}
	}
	d.msixTab = make([]byte, entrySize*d.hdr.msix)
	d.pending = make([]uint64, (d.hdr.msix+63)/64)
	d.resetMSIX()
	return d, nil
}

// place is told where enumeration put the function.
func (d *device) place(fn *pci.Function) {
	d.m.lock()
	defer d.m.unlock()
	d.fn, d.bars, d.addr = fn, fn.BARs, fn.Addr
	for _, r := range fn.BARs {
		d.regions[r.Index].info = r
	}
	d.refresh()
}

// decode finds out in which regions the device answers: where decoding is on, and the BAR says
// what it said when it was placed.
func (d *device) decode() {
	cmd := d.space.command()
	for _, w := range d.regions {
		if w == nil {
			continue
		}
		on := pci.CmdMem
		if w.info.Kind == bus.RegionIO {
			on = pci.CmdIO
		}
		if d.isPlatform() {
			w.decodes = true // nothing turns it off
			continue
		}
		w.decodes = cmd&on != 0 && d.live && !d.space.asleep() && w.info.Addr != 0 && d.space.addr(&w.info) == w.info.Addr && d.forwarded(&w.info)
	}
}

func (d *device) Backend() string       { return "sim:" + d.spec.Model }
func (d *device) Config() bus.Config    { return &config{d} }
func (d *device) DMA() bus.DMA          { return dmaOf{d} }
func (d *device) Done() <-chan struct{} { return d.done }

func (d *device) Regions() []bus.RegionInfo { return slices.Clone(d.bars) }

func (d *device) errorf(format string, args ...any) error {
	return fmt.Errorf(d.Address()+" "+d.spec.Name+": "+format, args...)
}

func (d *device) Err() error {
	d.m.lock()
	defer d.m.unlock()
	return d.errLocked()
}

func (d *device) errLocked() error {
	if d.err != nil {
		return d.errorf("%w", d.err)
	}
	return nil
}

// end is the end of the link: Called with Machine.mu held.
func (d *device) end(why error) {
	if d.err != nil {
		return
	}
	d.err, d.gone = why, true
	d.setLine(false)
	close(d.done)
}

func (d *device) Region(index int) (bus.Region, error) {
	if err := d.Err(); err != nil {
		return nil, err
	}
	for _, r := range d.bars {
		if r.Index == index {
			return &region{d: d, w: d.regions[index], info: r}, nil
		}
	}
	return nil, d.errorf("no region %d: %w", index, bus.ErrNotSupported)
}

// Close masks interrupts, stops the device's bus mastering, and refuses further work.
func (d *device) Close() error {
	d.closeOnce.Do(func() {
		d.irqMu.Lock()
		d.closing = true
		d.closeErr = d.disableIRQs()
		d.irqMu.Unlock()
		d.m.lock()
		defer d.m.unlock()
		d.space.write(pci.CfgCommand, 2, uint32(d.space.command()&^pci.CmdMaster))
		d.closed = true
		delete(d.m.dead, d)
		d.end(bus.ErrClosed)
	})
	return d.closeErr
}

// What follows is slot. Machine.mu is held.

func (d *device) now() time.Duration { return d.m.clock.now() }

func (d *device) after(t time.Duration, f func()) *timer {
	d.m.clock.now()
	x := d.m.clock.after(t, f)
	x.gone = &d.gone
	return x
}

// Kinds of DMA, by what is not allowed: writing memory that the device only reads, and reading what
// it only writes.
const (
	dmaRead  = bus.FromDevice
	dmaWrite = bus.ToDevice
)

// reach is the memory that DMA of n bytes at a goes to, nil where there is none for this device.
func (d *device) reach(a bus.IOVA, n int, kind bus.Direction) *piece {
	if d.space.b[pci.CfgCommand]&byte(pci.CmdMaster) != 0 && !d.gone && d.masters {
		if x := d.memory.find(a, n); x != nil && x.dir != kind {
			return x
		}
	}
	d.astray(a, n, kind)
	return nil
}

// astray counts DMA that goes nowhere, and tells of the first.
func (d *device) astray(a bus.IOVA, n int, kind bus.Direction) {
	if d.strayed {
		d.m.stray++ // told already
		return
	}
	what, why := "read", "no memory of this device's is there"
	if kind == dmaWrite {
		what = "write"
	}
	x := d.memory.find(a, n)
	switch {
	case d.gone:
		why = "the device is gone"
	case d.space.command()&pci.CmdMaster == 0:
		why = "bus mastering is off"
	case !d.masters:
		why = "a bridge above the device lets nothing through"
	case x != nil && kind == dmaWrite:
		why = "that memory is for the device to read only"
	case x != nil:
		why = "that memory is for the device to write only"
	}
	d.fault(fmt.Sprintf("%s of %d bytes at %#x: %s", what, n, uint64(a), why))
}

// fault is slot's.
func (d *device) fault(what string) {
	m := d.m
	m.stray++
	if d.strayed {
		return
	}
	d.strayed = true
	err := d.errorf("stray DMA: %s", what)
	if m.strayE == nil {
		m.strayE = err
	}
	m.log.Warn(err.Error())
}

// unanswered is DMA to memory that is elsewhere, and nobody answered: it counts as stray.
func (d *device) unanswered(a bus.IOVA, n int) {
	d.fault(fmt.Sprintf("%d bytes at %#x: the memory is elsewhere, and nobody answers for it", n, uint64(a)))
}

func (d *device) readMem(a bus.IOVA, p []byte) bool {
	x := d.reach(a, len(p), dmaRead)
	if x != nil && x.read(a, p) {
		return true
	}
	if x != nil {
		d.unanswered(a, len(p))
	}
	for i := range p {
		p[i] = 0xff
	}
	return false
}

func (d *device) writeMem(a bus.IOVA, p []byte) bool {
	x := d.reach(a, len(p), dmaWrite)
	if x != nil && !x.write(a, p) {
		d.unanswered(a, len(p))
		return false
	}
	return x != nil
}

func (d *device) mem(a bus.IOVA, n int) []byte {
	x := d.reach(a, n, dmaRead)
	if x == nil {
		return nil
	}
	if b := x.slice(a, n); b != nil {
		return b
	}
	b := make([]byte, n)
	if !x.read(a, b) {
		d.unanswered(a, n)
		return nil
	}
	return b
}

// ahead has what they point to on its way from the CPU where another process wrote it.
func (d *device) ahead(descriptors []byte) {
	if !d.memory.placed {
		return
	}
	for ; len(descriptors) >= 16; descriptors = descriptors[16:] {
		a := binary.LittleEndian.Uint64(descriptors)
		if x := d.memory.find(bus.IOVA(a), 1); x != nil && x.b != nil {
			dma.Prefetch(&x.b[a-x.base])
		}
	}
}

func (d *device) wrote(a bus.IOVA, b []byte) {
	if x := d.memory.find(a, len(b)); x == nil || x.b != nil {
		return // it was the memory itself
	}
	d.writeMem(a, b)
}

func (d *device) store64(a bus.IOVA, v uint64) bool {
	x := d.reach(a, 8, dmaWrite)
	if x == nil || a&7 != 0 {
		return false
	}
	if b := x.slice(a, 8); b != nil {
		dma.Store64(b, 0, v)
		return true
	}
	return x.write(a, binary.LittleEndian.AppendUint64(nil, v))
}

func (d *device) store32(a bus.IOVA, v uint32) bool {
	x := d.reach(a, 4, dmaWrite)
	if x == nil || a&3 != 0 {
		return false
	}
	if b := x.slice(a, 4); b != nil {
		dma.Store32(b, 0, v)
		return true
	}
	return x.write(a, binary.LittleEndian.AppendUint32(nil, v))
}

func (d *device) load64(a bus.IOVA) (uint64, bool) {
	x := d.reach(a, 8, dmaRead)
	if x == nil || a&7 != 0 {
		return ^uint64(0), false
	}
	if b := x.slice(a, 8); b != nil {
		return dma.Load64(b, 0), true
	}
	var b [8]byte
	if !x.read(a, b[:]) {
		return ^uint64(0), false
	}
	return binary.LittleEndian.Uint64(b[:]), true
}
