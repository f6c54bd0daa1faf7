package mirror

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/ring3dev/ring3/internal/link"
	"github.com/ring3dev/ring3/internal/node"
)

// deeds are what is done with a file, in words.
var deeds = map[link.Method]string{methodShow: "reading", methodReadAt: "reading", methodStore: "writing", methodWriteAt: "writing", methodOpen: "opening"}

// answer is what a call's file or stream says.
func (e *Export) answer(ctx context.Context, m link.Method, id uint64, body []byte) ([]byte, error) {
	switch m {
	case methodRead, methodWrite, methodClose, methodPoll:
		if e.Begun != nil && (m == methodRead || m == methodWrite) {
			defer e.Begun("streaming", nil, nil)()
		}
		return e.streams.answer(ctx, m, id, body)
	}
	e.tab.RLock()
	f := e.files[id]
	e.tab.RUnlock()
	if f == nil {
		return nil, errStale
	}
	if e.Begun != nil {
		defer e.Begun(deeds[m], f, body)()
	}
	switch {
	case m == methodShow:
		return show(ctx, f)
	case m == methodStore && f.Store != nil && len(body) > 0:
		n, err := f.Store(ctx, body)
		reply, err := count(n, len(body), err)
		if err == nil && e.Stored != nil {
			e.Stored(f, body)
		}
		return reply, err
	case m == methodReadAt && f.ReadAt != nil && len(body) == 12:
		off, n := wire.Uint64(body), wire.Uint32(body[8:])
		if n > maxIO || int64(off) < 0 {
			return nil, fmt.Errorf("tree: reading %d bytes at %d: %w", n, off, syscall.EINVAL)
		}
		p := make([]byte, within(f, int64(off), int(n)))
		if len(p) == 0 {
			return nil, nil
		}
		got, err := f.ReadAt(p, int64(off))
		return moved(p, got, err)
	case m == methodWriteAt && f.WriteAt != nil && len(body) >= 8 && int64(wire.Uint64(body)) >= 0:
		off, p := int64(wire.Uint64(body)), body[8:]
		if p = p[:within(f, off, len(p))]; len(p) == 0 {
			return nil, syscall.EFBIG
		}
		n, err := f.WriteAt(p, off)
		return count(n, len(p), err)
	case m == methodOpen && f.Open != nil && len(body) == 4:
		return e.streams.begin(f, int(wire.Uint32(body)))
	}
	return nil, fmt.Errorf("tree: method %#x with %d bytes: %w", uint16(m), len(body), syscall.EIO)
}

// within is how many of n bytes at off are inside the file.
func within(f *node.File, off int64, n int) int {
	if size := int64(f.Size); size > 0 {
		return int(max(0, min(int64(n), size-off)))
	}
	return n
}

func show(ctx context.Context, f *node.File) ([]byte, error) {
	var b bytes.Buffer
	var err error
	switch {
	case f.ShowContext != nil:
		err = f.ShowContext(ctx, &b)
	case f.Show != nil:
		err = f.Show(&b)
	default:
		err = syscall.EIO
	}
	if err == nil && b.Len() > maxText {
		err = errLong
	}
	if err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// count is the answer to a write. A device's count that cannot be is its error.
func count(n, of int, err error) ([]byte, error) {
	switch {
	case err != nil:
		return nil, err
	case n < 0 || n > of:
		return nil, fmt.Errorf("tree: a write of %d bytes took %d: %w", of, n, syscall.EIO)
	}
	return wire.AppendUint32(nil, uint32(n)), nil
}

// moved is the answer to a read.
func moved(p []byte, n int, err error) ([]byte, error) {
	switch {
	case n > 0 && n <= len(p), n == 0 && (err == nil || errors.Is(err, io.EOF)):
		return p[:n], nil
	case err != nil:
		return nil, err
	}
	return nil, fmt.Errorf("tree: a read of %d bytes gave %d: %w", len(p), n, syscall.EIO)
}

// streams are the streams that are open.
type streams struct {
	c atomic.Pointer[link.Conn]

	mu   sync.Mutex
	last uint64
	open map[uint64]*exported
	over bool
}

// exported is a stream of this side.
type exported struct {
	node.Stream

	mu      sync.Mutex
	changed <-chan struct{} // that is watched
	stop    chan struct{}   // ends the watch
}

// begin opens one.
func (s *streams) begin(f *node.File, flags int) ([]byte, error) {
	x, err := f.Open(flags)
	if err == nil && x == nil {
		err = syscall.ENXIO
	}
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	over := s.over
	if !over {
		s.last++
		s.open[s.last] = &exported{Stream: x}
	}
	id := s.last
	s.mu.Unlock()
	if over {
		_ = x.Close()
		return nil, errStale
	}
	_, poller := x.(node.Poller)
	return append(wire.AppendUint64(nil, id), b2u(poller)), nil
}

func b2u(b bool) uint8 {
	if b {
		return 1
	}
	return 0
}

// answer is what a stream says.
func (s *streams) answer(ctx context.Context, m link.Method, id uint64, body []byte) ([]byte, error) {
	s.mu.Lock()
	x := s.open[id]
	if m == methodClose {
		delete(s.open, id)
	}
	s.mu.Unlock()
	if x == nil {
		return nil, errStale
	}
	switch {
	case m == methodClose:
		x.watch(s, id, nil)
		return nil, x.Close()
	case m == methodPoll:
		p, ok := x.Stream.(node.Poller)
		if !ok {
			break
		}
		events, changed := p.Poll()
		x.watch(s, id, changed)
		return append(wire.AppendUint32(nil, events), b2u(changed != nil)), nil
	case m == methodRead && len(body) == 8:
		n := wire.Uint32(body[4:])
		if n > maxIO {
			break
		}
		p := make([]byte, n)
		got, err := x.Read(ctx, p, int(wire.Uint32(body)))
		return moved(p, got, err)
	case m == methodWrite && len(body) > 4:
		n, err := x.Write(ctx, body[4:], int(wire.Uint32(body)))
		clear(body[4:]) // it may be a key
		return count(n, len(body)-4, err)
	}
	return nil, fmt.Errorf("tree: method %#x of a stream with %d bytes: %w", uint16(m), len(body), syscall.EINVAL)
}

// watch tells when changed is closed, in place of what it waited for before. nil only ends that.
func (x *exported) watch(s *streams, id uint64, changed <-chan struct{}) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.changed == changed {
		return
	}
	if x.changed != nil {
		close(x.stop)
		select {
		case <-x.changed: // whoever asked before must still be told
			defer s.tell(id)
		default:
		}
	}
	x.changed, x.stop = changed, nil
	if changed == nil {
		return
	}
	stop := make(chan struct{})
	x.stop = stop
	go func() {
		select {
		case <-changed:
		case <-stop:
			return
		}
		x.mu.Lock()
		if x.stop == stop {
			x.changed, x.stop = nil, nil
		}
		x.mu.Unlock()
		s.tell(id)
	}()
}

// tell says that a stream's Poll may say something else.
func (s *streams) tell(id uint64) {
	if c := s.c.Load(); c != nil {
		_ = c.Send(eventChanged, wire.AppendUint64(nil, id))
	}
}

// closeAll ends all streams, of a supervisor that is gone.
func (s *streams) closeAll() {
	s.mu.Lock()
	s.over = true
	all := s.open
	s.open = nil
	s.mu.Unlock()
	for id, x := range all {
		x.watch(s, id, nil)
		_ = x.Close()
	}
}
