package vfio

import (
	"errors"
	"reflect"
	"testing"

	"github.com/ring3dev/ring3/bus"
	"github.com/ring3dev/ring3/bus/pci"
	"github.com/ring3dev/ring3/internal/iova"
)

func TestParseRegion(t *testing.T) {
	for _, want := range []regionInfo{
		{flags: 3, size: 4096, offset: 7 << 40},
		{flags: 7, size: 0},
		{flags: 7 | regionCaps, size: 16384, offset: 1 << 40, sparse: true, areas: []iova.Span{{Base: 0, End: 4096}, {Base: 8192, End: 16384}}},
		{flags: 7 | regionCaps, size: 16384, sparse: true},
	} {
		got, err := parseRegion(regionBytes(want), 4096)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("parseRegion = %+v, %v, want %+v", got, err, want)
		}
	}
	// A chain of two, with one that nobody knows between.
	b := regionBytes(regionInfo{flags: 7, size: 4096, sparse: true, areas: []iova.Span{{Base: 0, End: 4096}}})
	at := len(b)
	put32(b[36:], uint32(at))
	b = append(b, make([]byte, 16)...)
	host.PutUint16(b[at:], 99)
	put32(b[at+4:], uint32(at+8))
	host.PutUint16(b[at+8:], capMSIXMappable)
	got, err := parseRegion(b, 4096)
	if err != nil || !got.msix || !got.sparse {
		t.Errorf("parseRegion of three capabilities = %+v, %v, want the MSI-X table mappable", got, err)
	}
}

func TestParseRegionBad(t *testing.T) {
	ok := regionInfo{flags: 7, size: 16384, sparse: true, areas: []iova.Span{{Base: 0, End: 4096}, {Base: 8192, End: 16384}}}
	for what, spoil := range map[string]func([]byte) []byte{
		"short":                 func(b []byte) []byte { return b[:31] },
		"cut":                   func(b []byte) []byte { return b[:len(b)-1] },
		"offset behind 1<<63":   func(b []byte) []byte { host.PutUint64(b[24:], 1<<63); return b },
		"end behind 1<<63":      func(b []byte) []byte { host.PutUint64(b[24:], 1<<63-1); return b },
		"capability in front":   func(b []byte) []byte { put32(b[12:], 8); return b },
		"capability behind":     func(b []byte) []byte { put32(b[12:], uint32(len(b)-7)); return b },
		"capability far behind": func(b []byte) []byte { put32(b[12:], ^uint32(0)); return b },
		"loop":                  func(b []byte) []byte { put32(b[36:], 32); return b },
		"too many areas":        func(b []byte) []byte { put32(b[40:], 3); return b },
		"far too many areas":    func(b []byte) []byte { put32(b[40:], ^uint32(0)); return b },
		"area off a page":       func(b []byte) []byte { host.PutUint64(b[64:], 8200); return b },
		"area behind the end":   func(b []byte) []byte { host.PutUint64(b[64:], 12288); return b },
		"area that wraps":       func(b []byte) []byte { host.PutUint64(b[72:], ^uint64(0)); return b },
		"areas overlap":         func(b []byte) []byte { host.PutUint64(b[64:], 0); return b },
	} {
		if r, err := parseRegion(spoil(regionBytes(ok)), 4096); !errors.Is(err, bus.ErrProtocol) {
			t.Errorf("%s: parseRegion = %+v, %v, want ErrProtocol", what, r, err)
		}
	}
}

func TestParseIOMMU(t *testing.T) {
	ranges := []iova.Span{{Base: 0, End: 0xfee00000}, {Base: 0xfef00000, End: 1 << 39}}
	got, err := parseIOMMU(iommuBytes(4096, ranges, 100))
	if err != nil || got.pages != 4096 || got.avail != 100 || !reflect.DeepEqual(got.ranges, ranges) {
		t.Errorf("parseIOMMU = %+v, %v, want what was written", got, err)
	}
	// As kernels before 5.4 tell.
	old := make([]byte, iommuInfoSize)
	put32(old, iommuInfoSize, iommuPageSizes)
	host.PutUint64(old[8:], 1<<12)
	if got, err := parseIOMMU(old); err != nil || got.pages != 4096 || got.ranges != nil || got.avail != -1 {
		t.Errorf("parseIOMMU of an old kernel = %+v, %v, want only the page size", got, err)
	}
	// All addresses: the last one is left out.
	got, err = parseIOMMU(iommuBytes(4096, []iova.Span{{Base: 0, End: 0}}, 1))
	if want := []iova.Span{{Base: 0, End: iova.None}}; err != nil || !reflect.DeepEqual(got.ranges, want) {
		t.Errorf("parseIOMMU of all addresses = %+v, %v, want %x", got, err, want)
	}
	for what, b := range map[string][]byte{
		"short":           old[:15],
		"cut":             iommuBytes(4096, ranges, 1)[:60],
		"backwards":       iommuBytes(4096, []iova.Span{{Base: 4096, End: 4096}}, 1),
		"overlap":         iommuBytes(4096, []iova.Span{{Base: 0, End: 8192}, {Base: 4096, End: 8192}}, 1),
		"too many ranges": func() []byte { b := iommuBytes(4096, ranges, 1); put32(b[32:], 1<<31); return b }(),
	} {
		if got, err := parseIOMMU(b); !errors.Is(err, bus.ErrProtocol) {
			t.Errorf("%s: parseIOMMU = %+v, %v, want ErrProtocol", what, got, err)
		}
	}
}

func TestParseHotReset(t *testing.T) {
	want := []dependent{{pci.Addr{Bus: 3, Dev: 4, Fn: 5}, 17}, {pci.Addr{Domain: 0xffff, Bus: 255, Dev: 31, Fn: 7}, notOwned}}
	b := hotBytes(hotByDevice, want)
	flags, got, err := parseHotReset(b)
	if err != nil || flags != hotByDevice || !reflect.DeepEqual(got, want) {
		t.Errorf("parseHotReset = %#x, %+v, %v, want %+v", flags, got, err, want)
	}
	for _, bad := range [][]byte{b[:11], b[:len(b)-1], nil} {
		if _, got, err := parseHotReset(bad); !errors.Is(err, bus.ErrProtocol) {
			t.Errorf("parseHotReset of %d bytes = %+v, %v, want ErrProtocol", len(bad), got, err)
		}
	}
}

// FuzzParse: an error or a value, never both, never a panic; what is there lies inside.
func FuzzParse(f *testing.F) {
	f.Add(regionBytes(regionInfo{flags: 7, size: 16384, sparse: true, areas: []iova.Span{{Base: 0, End: 4096}, {Base: 8192, End: 16384}}}))
	f.Add(iommuBytes(4096, []iova.Span{{Base: 0, End: 0xfee00000}, {Base: 0xfef00000, End: 1 << 39}}, 7))
	f.Add(hotBytes(0, []dependent{{pci.Addr{Bus: 3}, 17}}))
	f.Add(iommuBytes(4096, []iova.Span{{Base: iova.None - 10, End: iova.None}}, 7))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseRegion(b, 4096)
		if err != nil && !reflect.DeepEqual(r, regionInfo{}) {
			t.Errorf("parseRegion = %+v and %v", r, err)
		}
		end := uint64(0)
		for _, a := range r.areas {
			if a.Base < end || a.End <= a.Base || a.End > r.size || a.Base%4096 != 0 {
				t.Errorf("area %x of %#x bytes behind %#x", a, r.size, end)
			}
			end = a.End
		}
		i, err := parseIOMMU(b)
		if err != nil && !reflect.DeepEqual(i, iommuInfo{}) {
			t.Errorf("parseIOMMU = %+v and %v", i, err)
		}
		end = 0
		for _, s := range usable(i.ranges) {
			if s.Base < end || s.End <= s.Base || s.Base < lowest || s.Base%pageSize != 0 || s.End%pageSize != 0 {
				t.Errorf("range %x behind %#x", s, end)
			}
			end = s.End
		}
		if _, hit, err := parseHotReset(b); err != nil && hit != nil {
			t.Errorf("parseHotReset = %+v and %v", hit, err)
		}
	})
}
