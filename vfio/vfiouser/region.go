package vfiouser

import (
	"cmp"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/mmio"
	"github.com/ring3dev/ring3/bus/pci"
)

// region is a BAR of the server's device; bus.Region.
type region struct {
	d     *Device
	info  bus.RegionInfo
	parts []part // that are mapped
	file  *os.File
	base  int64
	bells []bell
}

// part is a piece of a region that is mapped.
type part struct {
	off, end uint64
	r        *mmio.Region
}

// regionReply is what a server says of a region.
type regionReply struct {
	regionInfo
	areas []bus.Part
	file  *os.File
}

// openRegions asks for config space and the BARs.
func (d *Device) openRegions() error {
	c, err := d.askRegion(regionConfig)
	if err != nil {
		return err
	}
	c.drop()
	if c.size != 256 && c.size != 4096 || c.flags&(regionRead|regionWrite) != regionRead|regionWrite {
		return fmt.Errorf("asking for config space: %d bytes, flags %#x, want 256 or 4096 that can be read and written: %w", c.size, c.flags, bus.ErrProtocol)
	}
	d.cfg = &config{d: d, size: c.size}
	for i := 0; i < regionROM; i++ {
		r, err := d.askRegion(i)
		if err != nil {
			return err
		}
		if r.size == 0 {
			r.drop()
			continue
		}
		if r.size > 1<<62 {
			r.drop()
			return fmt.Errorf("asking for region %d: it is said to have %#x bytes: %w", i, r.size, bus.ErrProtocol)
		}
		x := &region{d: d, info: barInfo(d.cfg, i, r.size), file: r.file, base: int64(r.offset)}
		d.regions = append(d.regions, x)
		if err := x.mapParts(r); err != nil {
			return fmt.Errorf("mapping region %d: %w", i, err)
		}
		if err := x.openBells(); err != nil {
			return fmt.Errorf("asking for the doorbells of region %d: %w", i, err)
		}
		if x.info.Is64 {
			i++
		}
	}
	return d.Err()
}

// barInfo is what config space says of a region.
func barInfo(c bus.Config, i int, size uint64) bus.RegionInfo {
	const isIO, is64, prefetch = 1 << 0, 0b10 << 1, 1 << 3
	at := pci.CfgBAR0 + bus.Off(4*i)
	v := c.Read32(at)
	r := bus.RegionInfo{Index: i, Size: size}
	if v&isIO != 0 {
		r.Kind, r.Addr = bus.RegionIO, uint64(v&^0b11)
		return r
	}
	r.Addr, r.Prefetch = uint64(v&^0xf), v&prefetch != 0
	if v&(0b11<<1) == is64 && i < regionROM-1 {
		r.Is64 = true
		r.Addr |= uint64(c.Read32(at+4)) << 32
	}
	return r
}

// firstRegionInfo is room for what most servers say of a region.
const firstRegionInfo = regionInfoSize + sparseSize + 16*sparseArea

// askRegion asks for a region, again with more room where the server wants that.
func (d *Device) askRegion(index int) (out regionReply, err error) {
	room := uint32(firstRegionInfo)
	for range 2 {
		err = d.l.ask(request{
			cmd:  cmdRegionInfo,
			body: func(w *writer) { w.regionInfo(regionInfo{argsz: room, index: uint32(index)}) },
			reply: func(m *message) error {
				out.drop()
				return out.parse(m, index)
			},
		})
		if err != nil || out.argsz <= room {
			break
		}
		if room = out.argsz; room > 64<<10 {
			err = fmt.Errorf("%d bytes of capabilities: %w", room, bus.ErrProtocol)
			break
		}
	}
	if err != nil {
		out.drop()
		return out, fmt.Errorf("asking for region %d: %w", index, err)
	}
	return out, nil
}

// drop closes the descriptor.
func (r *regionReply) drop() {
	if r.file != nil {
		r.file.Close()
		r.file = nil
	}
}

// parse takes a reply apart.
func (r *regionReply) parse(m *message, index int) error {
	b := reader{b: m.body}
	r.regionInfo, r.areas = b.regionInfo(), nil
	if err := b.err(m); err != nil {
		return err
	}
	if r.index != uint32(index) || len(m.fds) > 1 {
		return fmt.Errorf("it is about region %d, with %d descriptors: %w", r.index, len(m.fds), bus.ErrProtocol)
	}
	if len(m.fds) == 1 && r.flags&regionMmap != 0 {
		r.file = m.take(0, fmt.Sprintf("region %d", index))
	}
	if r.flags&regionCaps == 0 || int(r.argsz) > len(m.body) {
		return nil // none, or they come with the next reply
	}
	return r.parseCaps(m.body)
}

// parseCaps walks the capabilities, which begin after the region's.
func (r *regionReply) parseCaps(b []byte) error {
	at := uint64(r.caps)
	for n := 0; at != 0; n++ {
		if at < regionInfoSize || at+capSize > uint64(len(b)) || n > maxSparse {
			return fmt.Errorf("a capability at %#x of %d bytes: %w", at, len(b), bus.ErrProtocol)
		}
		c := reader{b: b[at:]}
		id, _, next := c.u16(), c.u16(), c.u32()
		if id == capSparse {
			n, _ := c.u32(), c.u32()
			if n > maxSparse || uint64(len(c.b)) < uint64(n)*sparseArea {
				return fmt.Errorf("a list of %d parts in %d bytes: %w", n, len(c.b), bus.ErrProtocol)
			}
			r.areas = []bus.Part{}
			for range n {
				r.areas = append(r.areas, bus.Part{Off: bus.Off(c.u64()), Size: c.u64()})
			}
		}
		at = uint64(next)
	}
	return nil
}

// mapParts maps what the server lets be mapped. What a file does not hold for good is reached by
// messages; what it does not hold at all is a lie.
func (g *region) mapParts(r regionReply) error {
	if r.file == nil || r.flags&regionRead == 0 || r.flags&regionWrite == 0 || g.d.o.Without&Maps != 0 {
		return nil
	}
	areas := r.areas
	if areas == nil {
		areas = []bus.Part{{Size: r.size}}
	}
	last := uint64(0)
	slices.SortFunc(areas, func(a, b bus.Part) int { return cmp.Compare(a.Off, b.Off) })
	for _, a := range areas {
		off, end := uint64(a.Off), uint64(a.Off)+a.Size
		at := r.offset + off
		if a.Size == 0 || end < off || end > r.size || off < last || (off|a.Size|at)&(pageSize-1) != 0 || at > 1<<62 {
			return fmt.Errorf("part %#x to %#x of %#x bytes, at %#x of the file: %w", off, end, r.size, at, bus.ErrProtocol)
		}
		last = end
		b, stays, err := mapFile(r.file, int64(at), a.Size)
		if err != nil {
			return err
		}
		if !stays {
			g.d.o.Log.Debug(g.d.errorf("region %d: the server's file may shrink: it is reached by messages", g.info.Index).Error())
			continue
		}
		m, err := mmio.NewRegion(bus.RegionInfo{Index: g.info.Index, Size: a.Size}, b, unix.Munmap)
		if err != nil {
			_ = unix.Munmap(b)
			return err
		}
		g.parts = append(g.parts, part{off, end, m})
	}
	return nil
}

// Shared is bus.Shared's: a mapped region can be served on.
func (g *region) Shared() (*os.File, int64, []bus.Part) {
	if len(g.parts) == 0 {
		return nil, 0, nil
	}
	var parts []bus.Part
	for _, p := range g.parts {
		parts = append(parts, bus.Part{Off: bus.Off(p.off), Size: p.end - p.off})
	}
	return g.file, g.base, parts
}

// close unmaps. Accesses under way are waited for, later ones read all-ones.
func (g *region) close() {
	for _, p := range g.parts {
		_ = p.r.Close()
	}
	for i := range g.bells {
		g.bells[i].close()
	}
	if g.file != nil {
		g.file.Close()
	}
}

func (g *region) Info() bus.RegionInfo { return g.info }

// ok says whether an access is one.
func (g *region) ok(off bus.Off, width uint64) bool {
	o := uint64(off)
	return o&(width-1) == 0 && o < g.info.Size && g.info.Size-o >= width && (width < 8 || g.info.Kind == bus.RegionMem) && !g.d.l.dead.Load()
}

// mapped is the part that an access goes to, nil where it goes by message. Before it is
// touched all that was written before is done.
func (g *region) mapped(off bus.Off, width uint64) (*mmio.Region, bus.Off) {
	for i := range g.parts {
		p := &g.parts[i]
		if o := uint64(off); o >= p.off && o < p.end && p.end-o >= width {
			g.d.settle()
			return p.r, off - bus.Off(p.off)
		}
	}
	return nil, 0
}

func (g *region) read(off bus.Off, width uint64) uint64 {
	if !g.ok(off, width) {
		return ^uint64(0)
	}
	if m, o := g.mapped(off, width); m != nil {
		switch width {
		case 1:
			return uint64(m.Read8(o))
		case 2:
			return uint64(m.Read16(o))
		case 4:
			return uint64(m.Read32(o))
		}
		return m.Read64(o)
	}
	return g.d.read(uint32(g.info.Index), uint64(off), int(width))
}

func (g *region) write(off bus.Off, v, width uint64) {
	if !g.ok(off, width) {
		return
	}
	if m, o := g.mapped(off, width); m != nil {
		switch width {
		case 1:
			m.Write8(o, uint8(v))
		case 2:
			m.Write16(o, uint16(v))
		case 4:
			m.Write32(o, uint32(v))
		default:
			m.Write64(o, v)
		}
		return
	}
	if b := g.bellAt(off, width); b != nil {
		b.ring(g.d, v)
		return
	}
	g.d.write(post{region: uint8(g.info.Index), width: uint8(width), off: uint64(off), value: v})
}

func (g *region) Read8(o bus.Off) uint8       { return uint8(g.read(o, 1)) }
func (g *region) Read16(o bus.Off) uint16     { return uint16(g.read(o, 2)) }
func (g *region) Read32(o bus.Off) uint32     { return uint32(g.read(o, 4)) }
func (g *region) Read64(o bus.Off) uint64     { return g.read(o, 8) }
func (g *region) Write8(o bus.Off, v uint8)   { g.write(o, uint64(v), 1) }
func (g *region) Write16(o bus.Off, v uint16) { g.write(o, uint64(v), 2) }
func (g *region) Write32(o bus.Off, v uint32) { g.write(o, uint64(v), 4) }
func (g *region) Write64(o bus.Off, v uint64) { g.write(o, v, 8) }
