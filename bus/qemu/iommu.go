package qemu

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/internal/iova"
)

// iommuModel is QEMU's IOMMU for this machine, Intel's VT-d; iommuBase is where its
// registers are.
const (
	iommuModel = "intel-iommu"
	iommuBase  = 0xfed90000
)

// Registers of VT-d (Intel Virtualization Technology for Directed I/O, 11.4). The IOTLB
// registers and the fault records are where ECAP and CAP say.
const (
	vtdVER    = 0x00 // Version, RO, 32 bits: major in 7:4
	vtdCAP    = 0x08 // Capability, RO
	vtdECAP   = 0x10 // Extended Capability, RO
	vtdGCMD   = 0x18 // Global Command, WO, 32 bits
	vtdGSTS   = 0x1c // Global Status, RO, 32 bits: the same bits
	vtdRTADDR = 0x20 // Root Table Address, RW
	vtdCCMD   = 0x28 // Context Command, RW
	vtdFSTS   = 0x34 // Fault Status, 32 bits

	gcmdTE   = 1 << 31 // translate
	gcmdSRTP = 1 << 30 // take the root table pointer

	capSAGAW39 = 1 << 9  // addresses of 39 bits, in tables of 3 levels
	cap2M      = 1 << 34 // pages of 2 MiB
	ecapPT     = 1 << 6  // pass-through

	ccmdICC    = 1 << 63 // invalidate the context cache, stays set until done
	ccmdGlobal = 1 << 61 // of all devices
	ccmdDevice = 3 << 61 // of the source in 31:16

	iotlbIVT    = 1 << 63 // invalidate, stays set until done
	iotlbGlobal = 1 << 60 // all of it
	iotlbDomain = 2 << 60 // of the domain in 47:32
)

// Root and context entries (9.1, 9.3).
const (
	rootPresent = 1 << 0

	ctxPresent     = 1 << 0
	ctxNoFaults    = 1 << 1 // faults are not recorded
	ctxPassThrough = 2 << 2 // untranslated
	ctx39Bits      = 1      // of the upper half: 3 levels; domain ID in 23:8
)

// Domain IDs. 0 is reserved by some implementations.
const (
	passThroughID = 1
	firstDomainID = 2
)

// iommu is the machine's IOMMU, programmed over qtest: its tables are in the machine's RAM.
// Devices that did not ask for it pass through. Safe for concurrent use; a nil one can be
// closed.
type iommu struct {
	m       *Machine
	iotlb   uint64 // address of the IOTLB Invalidate register
	records uint64 // address of the first fault record
	number  int    // of fault records
	large   bool   // pages of 2 MiB can be used

	polling sync.WaitGroup

	mu       sync.Mutex
	closed   bool
	tables   tables
	root     uint64             // the root table
	contexts map[uint8]uint64   // context table by bus
	ids      map[uint16]bool    // of domains
	sources  map[uint16]*device // by requester ID
	iovas    *iova.Pool
	live     []mapping       // what devices may reach now
	freed    []mapping       // what they could reach before, newest last
	strange  map[uint16]bool // faulting sources that are none of ours, told once
}

// startIOMMU gives every device that asked for it a domain, and turns translation on.
func (m *Machine) startIOMMU() error {
	u := &iommu{
		m: m, contexts: map[uint8]uint64{}, ids: map[uint16]bool{}, sources: map[uint16]*device{}, strange: map[uint16]bool{},
		tables: tables{ram: m.ram}, iovas: newIOVAs(),
	}
	m.iommu = u
	u.mu.Lock()
	defer u.mu.Unlock()
	if err := u.identify(); err != nil {
		return err
	}
	if err := u.assign(); err != nil {
		return err
	}
	if err := u.passThrough(); err != nil {
		return err
	}
	for id, d := range u.sources {
		u.setContext(id, ctxPresent|d.domain.top.at, ctx39Bits|uint64(d.domain.id)<<8)
	}
	u.write(vtdRTADDR, 8, u.root)
	u.write(vtdGCMD, 4, gcmdSRTP)
	if err := u.await("the root table", vtdGSTS, 4, gcmdSRTP, gcmdSRTP); err != nil {
		return err
	}
	u.write(vtdCCMD, 8, ccmdICC|ccmdGlobal)
	if err := u.await("the context cache", vtdCCMD, 8, ccmdICC, 0); err != nil {
		return err
	}
	if err := u.invalidate(iotlbGlobal); err != nil {
		return err
	}
	u.write(vtdGCMD, 4, gcmdTE)
	if err := u.await("translation", vtdGSTS, 4, gcmdTE, gcmdTE); err != nil {
		return err
	}
	u.polling.Go(u.poll)
	return nil
}

func (u *iommu) read(off uint64, width int) uint64 {
	v, ok := u.m.qt.ask(cmdRead[width], iommuBase+off)
	if !ok {
		return ^uint64(0)
	}
	return v
}

func (u *iommu) write(off uint64, width int, v uint64) {
	u.m.qt.post(cmdWrite[width], iommuBase+off, v)
}

// identify checks that there is an IOMMU as this package programs it.
func (u *iommu) identify() error {
	ver := uint32(u.read(vtdVER, 4))
	if major := ver >> 4 & 0xf; major == 0 || ver>>8 != 0 {
		return fmt.Errorf("version register %#08x, want major version 1 or later: this QEMU's %s is none that is known; use another, or leave the option iommu out: %w", ver, iommuModel, bus.ErrNotSupported)
	}
	c, e := u.read(vtdCAP, 8), u.read(vtdECAP, 8)
	if c&capSAGAW39 == 0 || e&ecapPT == 0 {
		return fmt.Errorf("capabilities %#x, %#x: want addresses of 39 bits and pass-through: %w", c, e, bus.ErrNotSupported)
	}
	u.large = c&cap2M != 0
	u.records, u.number = (c>>24&0x3ff)*16, int(c>>40&0xff)+1
	u.iotlb = (e>>8&0x3ff)*16 + 8
	return nil
}

// await checks that the IOMMU did what it was told; QEMU does it within the write.
func (u *iommu) await(what string, off uint64, width int, mask, want uint64) error {
	if got := u.read(off, width); got&mask != want {
		if err := u.m.Err(); err != nil {
			return err
		}
		return fmt.Errorf("setting %s: register %#x is %#x, want %#x in %#x: %w", what, off, got, want, mask, bus.ErrProtocol)
	}
	return nil
}

// invalidate drops cached translations: iotlbGlobal, or iotlbDomain with the domain's ID in
// its place. When it returns no device uses them any more.
func (u *iommu) invalidate(what uint64) error {
	u.write(u.iotlb, 8, iotlbIVT|what)
	return u.await("the IOTLB", u.iotlb, 8, iotlbIVT, 0)
}

// forget drops the cached translations of a domain.
func (u *iommu) forget(d *domain) func() error {
	return func() error { return u.invalidate(iotlbDomain | uint64(d.id)<<32) }
}

// assign makes the domains.
func (u *iommu) assign() error {
	for _, d := range u.m.devices() {
		if !d.spec.IOMMU {
			continue
		}
		id := requester(d.fn)
		for _, o := range u.m.devices() {
			// A bridge that has the same ID sends interrupts at most.
			if o != d && !o.platform() && !o.fn.IsBridge() && requester(o.fn) == id {
				return fmt.Errorf("%s and %s stand below the same conventional PCI bridge, where the IOMMU cannot tell them apart: put %s below a pcie-root-port: %w", d.spec.Name, o.spec.Name, d.spec.Name, bus.ErrNotSupported)
			}
		}
		if err := u.newDomain(d, id); err != nil {
			return err
		}
	}
	return nil
}

// newDomain gives a device an address space of its own.
func (u *iommu) newDomain(d *device, source uint16) error {
	n := uint16(firstDomainID)
	for u.ids[n] {
		n++
	}
	top, err := u.tables.take()
	if err != nil {
		return err
	}
	dom := &domain{id: n, tables: &u.tables, large: u.large, top: &table{at: top}}
	// Interrupt messages are writes as any other, and are translated.
	bell := u.m.bell.addr &^ (pageSize - 1)
	if err := dom.enter(bell, bell, pageSize, pteWrite, u.forget(dom)); err != nil {
		u.tables.give(top)
		return err
	}
	u.ids[n] = true
	d.domain, u.sources[source] = dom, d
	return nil
}

// requester is the ID, bus and devfn, that a function's requests carry where they reach the
// IOMMU: below a conventional bus they carry the bridge's (PCI Express to PCI Bridge 1.0,
// 2.3).
func requester(f *pci.Function) uint16 {
	const bridgeToPCI = 7 // device/port type, 7.5.3.2
	id := func(bus, dev, fn uint8) uint16 { return uint16(bus)<<8 | uint16(dev)<<3 | uint16(fn) }
	r := id(f.Addr.Bus, f.Addr.Dev, f.Addr.Fn)
	for up := f.Parent; up != nil; up = up.Parent {
		off, express := pci.FindCap(up.Config, pci.CapPCIe)
		switch {
		case !express:
			r = id(up.Addr.Bus, up.Addr.Dev, up.Addr.Fn)
		case up.Config.Read16(off+2)>>4&0xf == bridgeToPCI:
			r = id(up.Secondary, 0, 0)
		}
	}
	return r
}

// passThrough makes the root table, and context tables that let everything through.
func (u *iommu) passThrough() (err error) {
	if u.root, err = u.tables.take(); err != nil {
		return err
	}
	buses := []uint8{0}
	for _, f := range u.m.topo.Functions {
		if f.IsBridge() {
			buses = append(buses, f.Secondary)
		}
	}
	for id := range u.sources {
		buses = append(buses, uint8(id>>8))
	}
	for _, b := range buses {
		if err := u.cover(b); err != nil {
			return err
		}
	}
	return nil
}

// cover makes the context table of a bus where there is none.
func (u *iommu) cover(b uint8) error {
	if _, ok := u.contexts[b]; ok {
		return nil
	}
	at, err := u.tables.take()
	if err != nil {
		return err
	}
	u.contexts[b] = at
	for fn := range uint16(256) {
		u.setContext(uint16(b)<<8|fn, ctxPresent|ctxPassThrough, ctx39Bits|passThroughID<<8)
	}
	u.tables.set(u.root+16*uint64(b), at|rootPresent)
	return nil
}

// setContext writes the context entry of a source, the half with the present bit last.
func (u *iommu) setContext(source uint16, lo, hi uint64) {
	at := u.contexts[uint8(source>>8)] + 16*uint64(source&0xff)
	u.tables.set(at+8, hi)
	u.tables.set(at, lo)
}

// pollEvery is how soon a fault is told where nobody asks. A look takes some 40 us.
const pollEvery = 20 * time.Millisecond

func (u *iommu) poll() {
	t := time.NewTicker(pollEvery)
	defer t.Stop()
	for {
		select {
		case <-u.m.done:
			return
		case <-t.C:
			u.look()
		}
	}
}

// alloc is bus.DMA's Alloc for a device with a domain.
func (u *iommu) alloc(d *device, q bus.DMARequest) (*bus.Memory, error) {
	who := d.Address()
	if err := iova.Check(who+": allocating", q); err != nil {
		return nil, err
	}
	// Where it is in RAM is nothing to the device.
	s, err := u.place(who, q.Size)
	if err != nil {
		return nil, err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed {
		u.m.ram.release(s)
		return nil, fmt.Errorf("%s: allocating DMA memory: %w", who, bus.ErrClosed)
	}
	if d.domain.left {
		u.m.ram.release(s)
		return nil, fmt.Errorf("%s: allocating DMA memory: %w", who, bus.ErrGone)
	}
	v, ok := takeIOVA(u.iovas, q, s.Base)
	if ok && slices.ContainsFunc(u.live, func(o mapping) bool { return o.dev == d && o.Base < v.End && v.Base < o.End }) {
		u.iovas.Put(v) // where something was placed
		ok = false
	}
	if !ok {
		u.m.ram.release(s)
		return nil, iova.NoRoom(who+": allocating", q, "the device's addresses")
	}
	size := s.End - s.Base
	if err := d.domain.enter(v.Base, s.Base, size, permission(q.Dir), u.forget(d.domain)); err != nil {
		u.iovas.Put(v)
		u.m.ram.release(s)
		return nil, fmt.Errorf("%s: mapping DMA memory: %w", who, err)
	}
	m := mapping{iova.Span{Base: v.Base, End: v.Base + size}, d, q.Dir}
	u.live = append(u.live, m)
	return bus.NewMemory(u.m.ram.slice(s, q.Size), bus.IOVA(v.Base), func() { u.free(m, v, s) }), nil
}

// place finds RAM, aligned for large pages where they can be used.
func (u *iommu) place(who string, size int) (iova.Span, error) {
	if u.large && size >= largePage {
		s, err := u.m.ram.take(who, bus.DMARequest{Size: size, Align: largePage})
		if err == nil || errors.Is(err, bus.ErrClosed) {
			return s, err
		}
	}
	return u.m.ram.take(who, bus.DMARequest{Size: size})
}

// maxFreed is how many former mappings are remembered, for saying what a fault hit.
const maxFreed = 64

// free takes memory away from its device: when it returns the device cannot reach it.
func (u *iommu) free(m mapping, v, s iova.Span) {
	u.mu.Lock()
	if !u.closed {
		u.vacate(m)
		u.iovas.Put(v)
		u.live = slices.DeleteFunc(u.live, func(o mapping) bool { return o.dev == m.dev && o.Base == m.Base })
		u.retire(m.dev)
	}
	u.mu.Unlock()
	u.m.ram.release(s)
}

// vacate unmaps what a device could reach, and remembers that it could. Called with mu held.
func (u *iommu) vacate(m mapping) {
	emptied := m.dev.domain.leave(m.Base, m.End-m.Base)
	// Of a machine that died there is nothing to wait for.
	_ = u.forget(m.dev.domain)()
	for _, at := range emptied {
		u.tables.give(at)
	}
	if len(u.freed) == maxFreed {
		u.freed = slices.Delete(u.freed, 0, 1)
	}
	u.freed = append(u.freed, m)
}

// close gives the tables back; QEMU has ended before.
func (u *iommu) close() {
	if u == nil {
		return
	}
	u.polling.Wait()
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.closed {
		u.closed = true
		u.tables.close()
	}
}

// put64 writes a little-endian quadword with one store.
func put64(b []byte, v uint64) { binary.LittleEndian.PutUint64(b, v) }
