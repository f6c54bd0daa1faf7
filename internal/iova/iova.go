// Package iova is where DMA memory is placed: requests, free ranges, and the addresses that
// devices are given. Backends share it; it maps nothing.
package iova

import (
	"fmt"
	"math/bits"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/bus"
)

// Span is the addresses [Base, End).
type Span struct{ Base, End uint64 }

// Size is how many bytes the span has.
func (s Span) Size() uint64 { return s.End - s.Base }

// Holds says whether an address lies in the span.
func (s Span) Holds(a uint64) bool { return a >= s.Base && a < s.End }

// Spans are free ranges, sorted, with no two that touch.
type Spans []Span

// Cut takes a part out of span i.
func (f *Spans) Cut(i int, part Span) {
	var rest []Span
	if s := (*f)[i]; part.Base > s.Base {
		rest = append(rest, Span{s.Base, part.Base})
	}
	if s := (*f)[i]; part.End < s.End {
		rest = append(rest, Span{part.End, s.End})
	}
	*f = slices.Replace(*f, i, i+1, rest...)
}

// Put gives a span back, and joins it with its neighbours.
func (f *Spans) Put(s Span) {
	l := *f
	i, _ := slices.BinarySearchFunc(l, s, func(a, b Span) int {
		if a.Base < b.Base {
			return -1
		}
		return 1
	})
	l = slices.Insert(l, i, s)
	if i+1 < len(l) && l[i].End == l[i+1].Base {
		l[i].End = l[i+1].End
		l = slices.Delete(l, i+1, i+2)
	}
	if i > 0 && l[i-1].End == l[i].Base {
		l[i-1].End = l[i].End
		l = slices.Delete(l, i, i+1)
	}
	*f = l
}

// Without is f less what lies in s.
func (f Spans) Without(s Span) Spans {
	var out Spans
	for _, g := range f {
		if s.End <= g.Base || s.Base >= g.End {
			out = append(out, g)
			continue
		}
		if s.Base > g.Base {
			out = append(out, Span{g.Base, s.Base})
		}
		if s.End < g.End {
			out = append(out, Span{s.End, g.End})
		}
	}
	return out
}

// Fit places size bytes in a free span, or says that they do not fit.
func Fit(s Span, size, align, boundary, mask uint64) (uint64, bool) {
	at := (s.Base + align - 1) &^ (align - 1)
	if boundary != 0 && at&^(boundary-1) != (at+size-1)&^(boundary-1) {
		at = (at + boundary - 1) &^ (boundary - 1)
		at = (at + align - 1) &^ (align - 1)
	}
	last := at + size - 1
	return at, at >= s.Base && last >= at && last < s.End && (mask == 0 || last <= mask)
}

// Whole is size rounded up to pages.
func Whole(size int, page uint64) uint64 { return (uint64(max(size, 0)) + page - 1) &^ (page - 1) }

// Pow2 says whether x is a power of two, or 0.
func Pow2(x uint64) bool { return bits.OnesCount64(x) <= 1 }

// Check refuses what no memory could satisfy. step is "0000:03:00.0: allocating".
func Check(step string, q bus.DMARequest) error {
	if q.Size <= 0 || !Pow2(q.Align) || !Pow2(q.Boundary) || q.Boundary != 0 && uint64(q.Size) > q.Boundary {
		return fmt.Errorf("%s DMA memory: %+v is impossible: want a positive size, powers of two, a boundary not below the size: %w", step, q, bus.ErrNotSupported)
	}
	return nil
}

// NoRoom is the error where nothing is left of what serves a request.
func NoRoom(step string, q bus.DMARequest, of string) error {
	return fmt.Errorf("%s DMA memory: no %d bytes below %#x with alignment %#x, boundary %#x left of %s: %w",
		step, q.Size, q.Mask, q.Align, q.Boundary, of, unix.ENOMEM)
}
