package vfio

import (
	"slices"
	"sync"

	"github.com/ring3dev/ring3/internal/iova"
)

// arenas are where pieces smaller than a huge page come from: memory that is one page where
// the kernel has one, so that what lies together for the process does so for the bus. A buffer that
// crosses a small page is then no reason for a device to read it in two parts, which QEMU's
// e1000e cannot (it drops the frame). Pieces are mapped for devices each by itself. Safe for
// concurrent use.
type arenas struct {
	mu   sync.Mutex
	all  []*arena
	keep bool // an empty one, for the next piece
}

type arena struct {
	mem   []byte
	unmap func()
	free  iova.Spans // offsets
	used  int        // pieces
}

// take gives zeroed memory of whole pages, at most hugePage, and what gives it back.
func (l *arenas) take(size uint64) (mem []byte, free func(), err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range l.all {
		if at, ok := a.take(size); ok {
			return l.piece(a, at)
		}
	}
	b, unmap, err := anonymous(hugePage, PagesAuto)
	if err != nil {
		return nil, nil, err
	}
	a := &arena{mem: b, unmap: unmap, free: iova.Spans{{Base: 0, End: hugePage}}}
	l.all = append(l.all, a)
	at, _ := a.take(size)
	return l.piece(a, at)
}

func (l *arenas) piece(a *arena, at iova.Span) ([]byte, func(), error) {
	mem := a.mem[at.Base:at.End:at.End]
	return mem, func() {
		clear(mem)
		l.mu.Lock()
		defer l.mu.Unlock()
		a.free.Put(at)
		a.used--
		l.trim()
	}, nil
}

// take cuts a piece out of the first hole that it fits into.
func (a *arena) take(size uint64) (iova.Span, bool) {
	for i, s := range a.free {
		if s.Size() >= size {
			at := iova.Span{Base: s.Base, End: s.Base + size}
			a.free.Cut(i, at)
			a.used++
			return at, true
		}
	}
	return iova.Span{}, false
}

// hold says whether an empty arena is kept.
func (l *arenas) hold(keep bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.keep = keep
	l.trim()
}

// trim unmaps empty arenas, but for one that is kept.
func (l *arenas) trim() {
	kept := !l.keep
	l.all = slices.DeleteFunc(l.all, func(a *arena) bool {
		if a.used > 0 {
			return false
		}
		if !kept {
			kept = true
			return false
		}
		a.unmap()
		return true
	})
}
