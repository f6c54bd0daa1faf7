package iova

import "github.com/ring3dev/ring3/bus"

// None is an address that no memory has.
const None = ^uint64(0)

// Split is where Pools prefer to be above: what reaches no higher than 4 GiB is left the
// addresses below.
const Split = 1 << 32

// Pool gives out addresses of devices. Each piece is followed by a page that is nobody's, so
// that a device that runs over an end hits nothing, and what was given back is used again as
// late as possible. Not safe for concurrent use.
type Pool struct {
	page  uint64
	parts []part // in order of preference
}

// part is free addresses of one kind.
type part struct {
	all  Spans
	free Spans
	next uint64 // where the last piece ended
}

// NewPool is a pool of these spans, in pieces of whole pages. A request that would be served
// anywhere is served above Split, which spares the rest for those that reach no higher.
func NewPool(page uint64, spans Spans) *Pool {
	low := spans.Without(Span{Split, None})
	high := spans.Without(Span{0, Split})
	return &Pool{page: page, parts: []part{newPart(high), newPart(low)}}
}

func newPart(s Spans) part { return part{all: s, free: append(Spans(nil), s...)} }

// Take finds addresses for whole pages and the guard page. They are aligned to better where
// that is possible, and to what the request says in any case; they do not begin at not.
func (p *Pool) Take(q bus.DMARequest, better, not uint64) (Span, bool) {
	for i := range p.parts {
		if v, ok := p.parts[i].take(q, p.page, better, not); ok {
			return v, true
		}
	}
	return Span{}, false
}

func (p *part) take(q bus.DMARequest, page, better, not uint64) (Span, bool) {
	whole := Whole(q.Size, page) + page
	align := max(q.Align, page)
	best := max(align, better)
	for _, try := range []struct{ align, from uint64 }{{best, p.next}, {best, 0}, {align, 0}} {
		for i, s := range p.free {
			s.Base = max(s.Base, try.from)
			at, ok := Fit(s, uint64(q.Size), try.align, q.Boundary, q.Mask)
			if ok && at == not {
				at, ok = Fit(Span{at + 1, s.End}, uint64(q.Size), try.align, q.Boundary, q.Mask)
			}
			if !ok || s.End-at < whole {
				continue
			}
			v := Span{at, at + whole}
			p.free.Cut(i, v)
			p.next = v.End
			return v, true
		}
	}
	return Span{}, false
}

// TakeAt takes addresses that somebody else chose, all of them or none.
func (p *Pool) TakeAt(v Span) bool {
	for i := range p.parts {
		for k, s := range p.parts[i].free {
			if s.Base <= v.Base && v.Base < v.End && v.End <= s.End {
				p.parts[i].free.Cut(k, v)
				return true
			}
		}
	}
	return false
}

// Put gives back what Take and TakeAt gave.
func (p *Pool) Put(v Span) {
	for i := range p.parts {
		for _, s := range p.parts[i].all {
			if s.Holds(v.Base) {
				p.parts[i].free.Put(v)
				return
			}
		}
	}
}

// Limit takes all out of the pool that lies outside of spans. What was given out stays given
// out.
func (p *Pool) Limit(spans Spans) {
	outside := Spans{{0, None}}
	for _, s := range spans {
		outside = outside.Without(s)
	}
	for i := range p.parts {
		for _, s := range outside {
			p.parts[i].all = p.parts[i].all.Without(s)
			p.parts[i].free = p.parts[i].free.Without(s)
		}
	}
}

// Free is the free addresses, sorted.
func (p *Pool) Free() Spans {
	var out Spans
	for i := len(p.parts) - 1; i >= 0; i-- {
		for _, s := range p.parts[i].free {
			out.Put(s)
		}
	}
	return out
}
