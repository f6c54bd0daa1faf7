package vfiouser

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
)

// errShort is a message that is shorter, or longer, than what it says.
var errShort = fmt.Errorf("a message of the wrong length: %w", unix.EINVAL)

// deviceInfo is DEVICE_GET_INFO.
func (x *session) deviceInfo(r *reader) (writer, error) {
	if q := r.deviceInfo(); r.short || q.argsz < deviceInfoSize {
		return nil, errShort
	}
	i := deviceInfo{argsz: deviceInfoSize, flags: devicePCI, regions: numRegions, irqs: numIRQs}
	if x.srv.resets {
		i.flags |= deviceReset
	}
	w := x.begin()
	w.deviceInfo(i)
	return w, nil
}

// regionInfo is DEVICE_GET_REGION_INFO.
func (x *session) regionInfo(r *reader) (writer, []int, error) {
	q := r.regionInfo()
	if r.short || q.argsz < regionInfoSize {
		return nil, nil, errShort
	}
	if q.index >= numRegions {
		return nil, nil, fmt.Errorf("region %d of %d: %w", q.index, numRegions, unix.EINVAL)
	}
	i := regionInfo{argsz: regionInfoSize, index: q.index}
	var caps writer
	var fds []int
	if i.size = x.sizeOf(int(q.index)); i.size != 0 {
		i.flags = regionRead | regionWrite
	}
	if q.index < regionROM && x.regions[q.index] != nil {
		if s, ok := x.regions[q.index].(bus.Shared); ok && x.client.fds() > 0 {
			f, base, parts := s.Shared()
			if parts = x.table.without(int(q.index), parts); f != nil && len(parts) > 0 {
				i.flags |= regionMmap | regionCaps
				i.offset, i.caps = uint64(base), regionInfoSize
				fds = []int{int(f.Fd())}
				caps = sparse(parts)
			}
		}
	}
	i.argsz += uint32(len(caps))
	if i.argsz > q.argsz {
		// The client asks again. QEMU begins with no room for capabilities, and refuses a region that says
		// it has some and not where.
		i.flags &^= regionCaps
		caps, i.caps, fds = nil, 0, nil
	}
	w := x.begin()
	w.regionInfo(i)
	return append(w, caps...), fds, nil
}

// sparse is the capability that lists parts.
func sparse(parts []bus.Part) (w writer) {
	w.u16(capSparse)
	w.u16(1)
	w.u32(0, uint32(len(parts)), 0)
	for _, p := range parts {
		w.u64(uint64(p.Off))
		w.u64(p.Size)
	}
	return w
}

// sizeOf is how many bytes a region has.
func (x *session) sizeOf(index int) uint64 {
	switch {
	case index == regionConfig:
		return uint64(len(x.cfg.own))
	case index >= 0 && index < regionROM && x.regions[index] != nil:
		return x.regions[index].Info().Size
	}
	return 0
}

// span checks what an access says of itself.
func (x *session) span(a access) error {
	size := x.sizeOf(int(min(a.region, numRegions)))
	if a.count == 0 || a.count > ownTransfer || a.off >= size || size-a.off < uint64(a.count) {
		return fmt.Errorf("%d bytes at %#x of region %d, which has %#x: %w", a.count, a.off, a.region, size, unix.EINVAL)
	}
	return nil
}

// accessAt is how many bytes at off are the next access of those that are left: as much as is aligned,
// and words where there are more than one access's.
func accessAt(off uint64, left int) int {
	n := 8
	if left > 8 {
		n = 4 // what is longer than a register is not one of 64 bits
	}
	for n > left || off&uint64(n-1) != 0 {
		n /= 2
	}
	return n
}

// readRegion is REGION_READ.
func (x *session) readRegion(r *reader) (writer, error) {
	a := r.access()
	if r.short || len(r.b) != 0 {
		return nil, errShort
	}
	if err := x.span(a); err != nil {
		return nil, err
	}
	w := x.begin()
	w.access(a)
	for off, left := a.off, int(a.count); left > 0; {
		n := accessAt(off, left)
		v := x.readOne(int(a.region), off, n)
		for i := range n {
			w = append(w, byte(v>>(8*i)))
		}
		off, left = off+uint64(n), left-n
	}
	return w, nil
}

// writeRegion is REGION_WRITE.
func (x *session) writeRegion(r *reader) (writer, error) {
	a := r.access()
	if r.short || uint64(len(r.b)) != uint64(a.count) {
		return nil, errShort
	}
	if err := x.span(a); err != nil {
		return nil, err
	}
	x.writeAll(a, r.b)
	w := x.begin()
	w.access(a)
	return w, nil
}

func (x *session) writeAll(a access, b []byte) {
	for off := a.off; len(b) > 0; {
		n := accessAt(off, len(b))
		v := uint64(0)
		for i := range n {
			v |= uint64(b[i]) << (8 * i)
		}
		x.writeOne(int(a.region), off, n, v)
		off, b = off+uint64(n), b[n:]
	}
}

// writeMulti is REGION_WRITE_MULTI: all of it is checked before any of it is done.
func (x *session) writeMulti(r *reader) (writer, error) {
	n := r.u64()
	if r.short || n > ownTransfer/multiSize || uint64(len(r.b)) < n*multiSize {
		return nil, errShort
	}
	for pass := range 2 {
		c := *r
		for range n {
			a, data := c.access(), c.take(8)
			if pass > 0 {
				x.writeAll(a, data[:a.count])
			} else if a.count > 8 {
				return nil, fmt.Errorf("a write of %d bytes among several: %w", a.count, unix.EINVAL)
			} else if err := x.span(a); err != nil {
				return nil, err
			}
		}
	}
	w := x.begin()
	w.u64(n)
	return w, nil
}

// apply makes a write of the queue.
func (x *session) apply(p post) error {
	a := access{p.off, uint32(p.region), uint32(p.width)}
	if p.off&uint64(p.width-1) != 0 {
		return fmt.Errorf("a write of %d bytes at %#x in the queue: %w", p.width, p.off, bus.ErrProtocol)
	}
	if err := x.span(a); err != nil {
		return fmt.Errorf("in the queue: %w (%w)", err, bus.ErrProtocol)
	}
	x.writeOne(int(p.region), p.off, int(p.width), p.value)
	return nil
}

// readOne is one access, aligned and inside the region.
func (x *session) readOne(region int, off uint64, n int) uint64 {
	if region == regionConfig {
		return x.cfg.read(off, n)
	}
	if x.table.has(region, off) {
		return x.table.read(off, n)
	}
	r, o := x.regions[region], bus.Off(off)
	switch n {
	case 1:
		return uint64(r.Read8(o))
	case 2:
		return uint64(r.Read16(o))
	case 4:
		return uint64(r.Read32(o))
	}
	return r.Read64(o)
}

func (x *session) writeOne(region int, off uint64, n int, v uint64) {
	if region == regionConfig {
		x.cfg.write(off, n, v)
		return
	}
	if x.table.has(region, off) {
		x.table.write(off, n, v)
		return
	}
	r, o := x.regions[region], bus.Off(off)
	switch n {
	case 1:
		r.Write8(o, uint8(v))
	case 2:
		r.Write16(o, uint16(v))
	case 4:
		r.Write32(o, uint32(v))
	default:
		r.Write64(o, v)
	}
}

// vtable is the client's MSI-X table. The device's own holds the server's messages.
type vtable struct {
	mu     *lockedBytes
	region int
	base   uint64
}

func newVTable(dev bus.Device) vtable {
	m, err := pci.OpenMSIX(dev.Config(), dev.Region)
	if err != nil {
		return vtable{region: -1}
	}
	region, off, size := m.Table()
	t := vtable{region: region, base: uint64(off), mu: &lockedBytes{b: make([]byte, size)}}
	const entry, control, masked = 16, 12, 1
	for at := control; at < int(size); at += entry {
		t.mu.b[at] = masked // as after a reset
	}
	return t
}

func (t *vtable) has(region int, off uint64) bool {
	return region == t.region && off >= t.base && off-t.base < uint64(len(t.mu.b))
}

// without is parts of a region without the pages of the table: mapped, they would be the server's.
func (t *vtable) without(region int, parts []bus.Part) (left []bus.Part) {
	if region != t.region {
		return parts
	}
	from, to := t.base&^(pageSize-1), (t.base+uint64(len(t.mu.b))+pageSize-1)&^(pageSize-1)
	for _, p := range parts {
		at, end := uint64(p.Off), uint64(p.Off)+p.Size
		if before := min(end, from); at < before {
			left = append(left, bus.Part{Off: p.Off, Size: before - at})
		}
		if after := max(at, to); after < end {
			left = append(left, bus.Part{Off: bus.Off(after), Size: end - after})
		}
	}
	return left
}

func (t *vtable) read(off uint64, n int) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	var b [8]byte
	copy(b[:n], t.mu.b[off-t.base:])
	return binary.LittleEndian.Uint64(b[:])
}

func (t *vtable) write(off uint64, n int, v uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], v)
	copy(t.mu.b[off-t.base:], b[:n])
}
