package kernfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/ring3dev/ring3/internal/node"
)

// stream is what a handle has of a file with Open.
type stream struct {
	node.Stream
	watch watch

	use    sync.RWMutex // read-locked by each call, locked by the close
	gone   bool         // closed; guarded by use
	closed chan struct{}

	mu        sync.Mutex
	kept      []byte // what a Read returned that was left to itself; guarded by mu
	forgotten bool   // nothing is kept any more; guarded by mu
}

// openStream is Open of a file with Open.
func (t *tree) openStream(by interrupt, name string, f *node.File, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if in.Flags&syscall.O_DIRECT != 0 { // what no character device of the kernel's knows that this is for
		return fuse.EINVAL
	}
	if f.OneOpen {
		if st := t.awaitCloses(by, f); st != fuse.OK {
			return st
		}
	}
	drop := func(s node.Stream) {
		if s != nil {
			t.closeOne(name, s)
		}
	}
	s, st := callCare(t, by, name+": open", care[node.Stream]{late: drop}, func(context.Context) (node.Stream, error) {
		s, err := f.Open(int(in.Flags))
		if err == nil && s == nil {
			err = syscall.ENXIO
		}
		return s, err
	})
	if st != fuse.OK {
		return st
	}
	h := &handle{name: name, file: f, stream: &stream{Stream: s, closed: make(chan struct{})}}
	t.mu.Lock()
	if t.over { // unmounted meanwhile: nobody else closes it
		t.mu.Unlock()
		drop(s)
		return fuse.ENODEV
	}
	t.nextFh++
	t.open[t.nextFh] = h
	out.Fh = t.nextFh
	t.mu.Unlock()
	// STREAM also has the kernel take no lock of the file's position, which a blocked read
	// would hold against a write by another thread.
	out.OpenFlags = fuse.FOPEN_DIRECT_IO | fuse.FOPEN_NONSEEKABLE | fuse.FOPEN_STREAM
	return fuse.OK
}

// awaitCloses waits for the closes of f that the client asked for before this open. The
// kernel does not: close(2) returns when it has sent the RELEASE, and the next open of a file
// for one program at a time would find it busy. An open that is interrupted meanwhile has the grace time: a close by a kernel takes none.
func (t *tree) awaitCloses(by interrupt, f *node.File) fuse.Status {
	t.mu.Lock()
	var before []*stream
	for _, h := range t.closing {
		if h.file == f {
			before = append(before, h.stream)
		}
	}
	t.mu.Unlock()
	var late <-chan time.Time // nil until it is interrupted
	for len(before) > 0 {
		select {
		case <-before[0].closed:
			before = before[1:]
			continue
		case <-by.cancel:
		case <-by.again:
		case <-late:
			return fuse.EINTR
		case <-t.ctx.Done():
			return fuse.ENODEV
		}
		if by.heed() {
			timer := time.NewTimer(t.grace)
			defer timer.Stop()
			late = timer.C
		}
	}
	return fuse.OK
}

// leaving notes a RELEASE at once, in the order in which the kernel sent it. finish does what may take
// long.
func (t *tree) leaving(fh uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.open[fh]
	delete(t.open, fh)
	if h != nil && h.stream != nil {
		t.closing[fh] = h
	}
}

// finish closes the stream of a handle that is leaving, once no call uses it.
func (t *tree) finish(fh uint64) {
	t.mu.Lock()
	h := t.closing[fh]
	t.mu.Unlock()
	if h == nil || !h.stream.end() {
		return
	}
	h.stream.forget()
	t.closeOne(h.name, h.stream.Stream)
	close(h.stream.closed)
	t.mu.Lock()
	delete(t.closing, fh)
	t.mu.Unlock()
}

// finishAll closes all streams, when nothing more comes from the kernel.
func (t *tree) finishAll() {
	t.mu.Lock()
	t.over = true
	var all []uint64
	for fh, h := range t.open {
		if h.stream != nil {
			t.closing[fh] = h
			delete(t.open, fh)
			all = append(all, fh)
		}
	}
	t.mu.Unlock()
	var wg sync.WaitGroup
	for _, fh := range all {
		wg.Go(func() { t.finish(fh) })
	}
	wg.Wait()
}

// closeOne closes a stream. What it says is too late for the client.
func (t *tree) closeOne(name string, s node.Stream) {
	defer func() {
		if p := recover(); p != nil {
			t.log.Error("panic in a file's code", "file", name+": close", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
		}
	}()
	if err := s.Close(); err != nil {
		t.log.Warn("closing a stream", "file", name, "err", err)
	}
}

// begin is the start of a call, if the stream is not closed. leave is its end.
func (s *stream) begin() bool {
	s.use.RLock()
	if s.gone {
		s.use.RUnlock()
		return false
	}
	return true
}

func (s *stream) leave() { s.use.RUnlock() }

// end waits for the calls, and says whether the caller is the one to close.
func (s *stream) end() bool {
	s.watch.end()
	s.use.Lock()
	defer s.use.Unlock()
	first := !s.gone
	s.gone = true
	return first
}

func (t *tree) readStream(by interrupt, h *handle, flags, n int) (fuse.ReadResult, fuse.Status) {
	s := h.stream
	if !s.begin() {
		return nil, fuse.EBADF
	}
	defer s.leave()
	if p := s.take(n); len(p) > 0 || n == 0 {
		return secret(p), fuse.OK
	}
	p, st := callCare(t, by, h.name+": read", care[[]byte]{late: s.keep}, func(ctx context.Context) ([]byte, error) {
		p := make([]byte, n) // not the answer's buffer, which a Read left to itself must not touch
		got, err := s.Read(ctx, p, flags)
		got, err = t.outcome(ctx, h, got, n, err)
		if got == 0 {
			clear(p)
		}
		return p[:got], err
	})
	if st != fuse.OK {
		return nil, st
	}
	return secret(p), fuse.OK
}

// secret is what a Read gave, a fuse.ReadResult: it may be a key, and stays nowhere once it is in the answer.
type secret []byte

func (s secret) Size() int { return len(s) }
func (s secret) Done()     { clear(s) }

// Bytes copies into the answer, since Done may come before what is returned is used.
func (s secret) Bytes(answer []byte) ([]byte, fuse.Status) {
	return answer[:copy(answer, s)], fuse.OK
}

func (t *tree) writeStream(by interrupt, h *handle, flags int, p []byte) (uint32, fuse.Status) {
	s := h.stream
	if !s.begin() {
		return 0, fuse.EBADF
	}
	defer s.leave()
	// A client told EINTR would write again what is being done.
	n, st := callCare(t, by, h.name+": write", care[int]{wait: true}, func(ctx context.Context) (int, error) {
		defer clear(p) // ours, and not zeroed before a Write that was left to itself is done with it
		n, err := s.Write(ctx, p, flags)
		return t.outcome(ctx, h, n, len(p), err)
	})
	return uint32(n), st
}

// outcome is the count or the error that a Read or Write of a stream gives its client. Bytes
// that were moved count more than an error, as in the kernel; an error without a number of
// its own, after an interrupt, is the interrupt's.
func (t *tree) outcome(ctx context.Context, h *handle, n, of int, err error) (int, error) {
	var e syscall.Errno
	switch {
	case n < 0 || n > of:
		t.log.Error("a stream moved an impossible number of bytes", "file", h.name, "moved", n, "of", of)
		return 0, syscall.EIO
	case n > 0, err == nil, errors.Is(err, io.EOF):
		return n, nil
	case ctx.Err() != nil && !errors.As(err, &e):
		return 0, syscall.EINTR
	}
	return 0, err
}

// keep puts what nobody got before what comes next.
func (s *stream) keep(p []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := slices.Concat(s.kept, p)
	clear(s.kept)
	clear(p)
	if s.kept = all; s.forgotten {
		clear(s.kept)
		s.kept = nil
	}
}

// forget drops what nobody will read any more.
func (s *stream) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.kept)
	s.kept, s.forgotten = nil, true
}

// hasKept says whether take has anything.
func (s *stream) hasKept() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.kept) > 0
}

// take is up to n bytes of what was kept, for the caller to zero.
func (s *stream) take(n int) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.kept[:min(n, len(s.kept))]
	s.kept = s.kept[len(p):]
	return p
}
