package vfio

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/internal/iova"
)

// What the kernel tells is parsed here as if a stranger told it: a variant driver or another
// process may stand behind the descriptor.

// capability is one of a chain: what follows its header, up to the end of the structure.
type capability struct {
	id   uint16
	body []byte
}

// capHeader is the size of a capability's header: id and version, 16 bits each, and the
// offset of the next one in the structure, 32 bits.
const capHeader = 8

// capabilities walks a chain that begins at first. Offsets must grow, so that it ends.
func capabilities(b []byte, fixed int, first uint32) ([]capability, error) {
	var out []capability
	end := uint32(fixed)
	for at := first; at != 0; {
		if at < end || uint64(at)+capHeader > uint64(len(b)) {
			return nil, fmt.Errorf("a capability at %#x: want it between %#x and the end, %#x: %w", at, end, len(b), bus.ErrProtocol)
		}
		end = at + capHeader
		out = append(out, capability{host.Uint16(b[at:]), b[end:]})
		at = host.Uint32(b[at+4:])
	}
	return out, nil
}

// regionInfo is what the kernel tells of a region.
type regionInfo struct {
	flags  uint32
	size   uint64
	offset int64       // in the device's file
	sparse bool        // only areas can be mapped
	areas  []iova.Span // in the region, sorted
	msix   bool        // the MSI-X table in it can be mapped too
}

func parseRegion(b []byte, page uint64) (regionInfo, error) {
	if len(b) < regionInfoSize {
		return regionInfo{}, fmt.Errorf("%d bytes, want %d: %w", len(b), regionInfoSize, bus.ErrProtocol)
	}
	r := regionInfo{flags: host.Uint32(b[4:]), size: host.Uint64(b[16:])}
	off := host.Uint64(b[24:])
	if off > 1<<63-1 || r.size > 1<<63-1-off {
		return regionInfo{}, fmt.Errorf("%#x bytes at offset %#x: want them below 1<<63: %w", r.size, off, bus.ErrProtocol)
	}
	r.offset = int64(off)
	if r.flags&regionCaps == 0 {
		return r, nil
	}
	caps, err := capabilities(b, regionInfoSize, host.Uint32(b[12:]))
	if err != nil {
		return regionInfo{}, err
	}
	for _, c := range caps {
		switch c.id {
		case capMSIXMappable:
			r.msix = true
		case capSparse:
			r.sparse = true
			if r.areas, err = parseAreas(c.body, r.size, page); err != nil {
				return regionInfo{}, err
			}
		}
	}
	return r, nil
}

// parseAreas reads the areas of a sparse region: their number, 32 bits reserved, then offset
// and size of each.
func parseAreas(b []byte, size, page uint64) ([]iova.Span, error) {
	if len(b) < 8 || uint64(len(b)-8)/16 < uint64(host.Uint32(b)) {
		return nil, fmt.Errorf("areas to map in %d bytes: want 8 and 16 for each: %w", len(b), bus.ErrProtocol)
	}
	var out []iova.Span
	for i := range int(host.Uint32(b)) {
		at, n := host.Uint64(b[8+16*i:]), host.Uint64(b[16+16*i:])
		if n == 0 {
			continue
		}
		if at%page != 0 || at > size || n > size-at {
			return nil, fmt.Errorf("area to map of %#x bytes at %#x: want it on a page, and inside %#x bytes: %w", n, at, size, bus.ErrProtocol)
		}
		out = append(out, iova.Span{Base: at, End: at + n})
	}
	if err := sortApart(out, "areas to map"); err != nil {
		return nil, err
	}
	return out, nil
}

// sortApart sorts spans, of which no two may overlap.
func sortApart(s []iova.Span, what string) error {
	slices.SortFunc(s, func(a, b iova.Span) int { return cmp.Compare(a.Base, b.Base) })
	for i := 1; i < len(s); i++ {
		if s[i].Base < s[i-1].End {
			return fmt.Errorf("%s: %#x overlaps %#x to %#x: %w", what, s[i].Base, s[i-1].Base, s[i-1].End, bus.ErrProtocol)
		}
	}
	return nil
}

// iommuInfo is what the kernel tells of an IOMMU.
type iommuInfo struct {
	pages  uint64      // page sizes, a bit each
	ranges []iova.Span // of IOVAs, sorted; nil where the kernel does not tell (before 5.4)
	avail  int         // how many mappings more there may be, or -1
}

func parseIOMMU(b []byte) (iommuInfo, error) {
	if len(b) < iommuInfoSize {
		return iommuInfo{}, fmt.Errorf("%d bytes, want %d: %w", len(b), iommuInfoSize, bus.ErrProtocol)
	}
	flags := host.Uint32(b[4:])
	info := iommuInfo{avail: -1}
	if flags&iommuPageSizes != 0 {
		info.pages = host.Uint64(b[8:])
	}
	const withCaps = iommuInfoSize + 4
	if flags&iommuCaps == 0 || len(b) < withCaps {
		return info, nil
	}
	caps, err := capabilities(b, withCaps, host.Uint32(b[iommuInfoSize:]))
	if err != nil {
		return iommuInfo{}, err
	}
	for _, c := range caps {
		switch {
		case c.id == capRanges:
			if len(c.body) < 8 || uint64(len(c.body)-8)/16 < uint64(host.Uint32(c.body)) {
				return iommuInfo{}, fmt.Errorf("ranges of addresses in %d bytes: want 8 and 16 for each: %w", len(c.body), bus.ErrProtocol)
			}
			if info.ranges, err = parseRanges(c.body[8 : 8+16*int(host.Uint32(c.body))]); err != nil {
				return iommuInfo{}, err
			}
		case c.id == capAvail && len(c.body) >= 4:
			info.avail = int(host.Uint32(c.body))
		}
	}
	return info, nil
}

// parseRanges reads first and last address of each range. The last address of all is left
// out, since its end has no number.
func parseRanges(b []byte) ([]iova.Span, error) {
	out := []iova.Span{}
	for ; len(b) >= 16; b = b[16:] {
		first, last := host.Uint64(b), host.Uint64(b[8:])
		if first > last {
			return nil, fmt.Errorf("range of addresses %#x to %#x: ends before it begins: %w", first, last, bus.ErrProtocol)
		}
		if last == iova.None {
			last--
		}
		if first <= last {
			out = append(out, iova.Span{Base: first, End: last + 1})
		}
	}
	if err := sortApart(out, "ranges of addresses"); err != nil {
		return nil, err
	}
	return out, nil
}

// dependent is a function that a bus reset hits.
type dependent struct {
	addr  pci.Addr
	group uint32 // its IOMMU group, or what iommufd calls the device
}

// parseHotReset reads what a bus reset of a device hits.
func parseHotReset(b []byte) (flags uint32, out []dependent, err error) {
	if len(b) < hotInfoSize {
		return 0, nil, fmt.Errorf("%d bytes, want %d: %w", len(b), hotInfoSize, bus.ErrProtocol)
	}
	n := host.Uint32(b[8:])
	if uint64(len(b)-hotInfoSize)/hotEntrySize < uint64(n) {
		return 0, nil, fmt.Errorf("%d functions in %d bytes: %w", n, len(b), bus.ErrProtocol)
	}
	for i := range int(n) {
		e := b[hotInfoSize+hotEntrySize*i:]
		devfn := e[7]
		out = append(out, dependent{
			addr:  pci.Addr{Domain: uint32(host.Uint16(e[4:])), Bus: e[6], Dev: devfn >> 3, Fn: devfn & 7},
			group: host.Uint32(e),
		})
	}
	return host.Uint32(b[4:]), out, nil
}
