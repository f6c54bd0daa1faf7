package ivshmem

import (
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/mmio"
)

// Registers (ivshmem-spec, "PCI BAR 0").
const (
	regIntrMask   bus.Off = 0x00 // Interrupt Mask, RW: for interrupts that this device does not have
	regIntrStatus bus.Off = 0x04 // Interrupt Status, RC: 0
	regIVPosition bus.Off = 0x08 // own ID, RO
	regDoorbell   bus.Off = 0x0c // peer 31:16, vector 15:0, WO

	registersSize = 256
)

// registers are region 0; bus.Region. An access of 64 bits is two of 32; narrower ones read parts, and write nothing.
type registers struct {
	d    *Device
	mask atomic.Uint32
}

func (r *registers) Info() bus.RegionInfo { return bus.RegionInfo{Index: 0, Size: registersSize} }

// ok says whether there is such an access.
func (r *registers) ok(off bus.Off, width bus.Off) bool {
	if off&(width-1) != 0 || off > registersSize-width {
		return false
	}
	select {
	case <-r.d.done:
		return false
	default:
		return true
	}
}

func (r *registers) get(off bus.Off) uint32 {
	switch off {
	case regIntrMask:
		return r.mask.Load()
	case regIVPosition:
		return uint32(r.d.id)
	}
	return 0
}

func (r *registers) set(off bus.Off, v uint32) {
	switch off {
	case regIntrMask:
		r.mask.Store(v)
	case regDoorbell:
		r.d.ring(int(v>>16), int(v&0xffff))
	}
}

func (r *registers) Read8(off bus.Off) uint8 {
	if !r.ok(off, 1) {
		return ^uint8(0)
	}
	return uint8(r.get(off&^3) >> (8 * (off & 3)))
}

func (r *registers) Read16(off bus.Off) uint16 {
	if !r.ok(off, 2) {
		return ^uint16(0)
	}
	return uint16(r.get(off&^3) >> (8 * (off & 3)))
}

func (r *registers) Read32(off bus.Off) uint32 {
	if !r.ok(off, 4) {
		return ^uint32(0)
	}
	return r.get(off)
}

func (r *registers) Read64(off bus.Off) uint64 {
	if !r.ok(off, 8) {
		return ^uint64(0)
	}
	return uint64(r.get(off)) | uint64(r.get(off+4))<<32
}

func (r *registers) Write8(bus.Off, uint8)   {}
func (r *registers) Write16(bus.Off, uint16) {}

func (r *registers) Write32(off bus.Off, v uint32) {
	if r.ok(off, 4) {
		r.set(off, v)
	}
}

func (r *registers) Write64(off bus.Off, v uint64) {
	if r.ok(off, 8) {
		r.set(off, uint32(v))
		r.set(off+4, uint32(v>>32))
	}
}

// one is what signals an eventfd once.
var one = func() (b [8]byte) {
	binary.NativeEndian.PutUint64(b[:], 1)
	return b
}()

// ring signals a peer's vector, if there is one.
func (d *Device) ring(peer, vector int) {
	d.bells.RLock()
	defer d.bells.RUnlock()
	if fds := d.peers[peer]; vector < len(fds) {
		_, _ = unix.Write(fds[vector], one[:]) // full: it is signalled already
	}
}

// memory is region 1; bus.Region, bus.Copier and bus.Holder.
type memory struct {
	*mmio.Region
	b []byte

	mu      sync.Mutex
	holders int
	gone    bool // the device is dead
	unmap   bool // and closed: the last holder unmaps
}

func newMemory(b []byte) (*memory, error) {
	m := &memory{b: b}
	var err error
	m.Region, err = mmio.NewRegion(bus.RegionInfo{Index: 1, Size: uint64(len(b)), Prefetch: true}, b, m.leave)
	return m, err
}

// leave unmaps, or leaves that to the last holder.
func (m *memory) leave([]byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.gone, m.unmap = true, true
	return m.unmapUnused()
}

// unmapUnused is called with mu held.
func (m *memory) unmapUnused() error {
	if m.holders > 0 || !m.unmap || m.b == nil {
		return nil
	}
	b := m.b
	m.b = nil
	if err := unix.Munmap(b); err != nil {
		return fmt.Errorf("unmapping shared memory: %w", err)
	}
	return nil
}

// Suspend has accesses read all-ones.
func (m *memory) Suspend() {
	m.mu.Lock()
	m.gone = true
	m.mu.Unlock()
	m.Region.Suspend()
}

// Hold is the memory itself; bus.Holder.
func (m *memory) Hold() ([]byte, func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.gone {
		return nil, func() {}
	}
	m.holders++
	return m.b, sync.OnceFunc(func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.holders--
		_ = m.unmapUnused()
	})
}

// noConfig is a config space of size 0.
type noConfig struct{}

func (noConfig) Size() int               { return 0 }
func (noConfig) Read8(bus.Off) uint8     { return 0xff }
func (noConfig) Read16(bus.Off) uint16   { return 0xffff }
func (noConfig) Read32(bus.Off) uint32   { return 0xffffffff }
func (noConfig) Write8(bus.Off, uint8)   {}
func (noConfig) Write16(bus.Off, uint16) {}
func (noConfig) Write32(bus.Off, uint32) {}

// noDMA is of a device that masters no bus.
type noDMA struct{ d *Device }

func (n noDMA) Alloc(bus.DMARequest) (*bus.Memory, error) { return nil, n.none() }

func (n noDMA) Map([]byte, bus.DMARequest) (*bus.Memory, error) { return nil, n.none() }

func (n noDMA) none() error {
	if err := n.d.Err(); err != nil {
		return err
	}
	return fmt.Errorf("%s: DMA memory: a peer of an ivshmem server masters no bus: %w", n.d.Address(), bus.ErrNotSupported)
}
