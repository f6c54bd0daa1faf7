package kernfs

import (
	"context"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/ring3dev/ring3/internal/node"
)

// The wire of poll(2), from linux/fuse.h. go-fuse only ever says ENOSYS, after which the
// kernel does not ask again.
const (
	pollFh     = inHeader      // fh, kh, flags, events
	pollKh     = inHeader + 8  // the kernel's name for the open file
	pollFlags  = inHeader + 16 // pollNotify: somebody waits
	pollIn     = inHeader + 24
	pollOut    = outHeader + 8 // revents, padding
	pollNotify = 1 << 0

	notifyPoll    = 1             // the "error" of a message that nobody asked for
	notifyPollOut = outHeader + 8 // kh
)

// What x/sys lacks, from asm-generic/poll.h: the names under which select(2) asks.
const (
	pollRdNorm = 0x40
	pollWrNorm = 0x100
)

// alwaysReady is the kernel's DEFAULT_POLLMASK, of files that have no poll method.
const alwaysReady = unix.POLLIN | unix.POLLOUT | pollRdNorm | pollWrNorm

// answerPoll answers a POLL.
func (s *Server) answerPoll(req []byte) []byte {
	if len(req) < pollIn {
		return errorAnswer(req, unix.EINVAL)
	}
	notify := func() {}
	var wanted bool
	if wire.Uint32(req[pollFlags:])&pollNotify != 0 {
		kh := wire.Uint64(req[pollKh:])
		notify = func() { s.wake(kh) }
		wanted = true
	}
	events, st := s.tree.poll(wire.Uint64(req[pollFh:]), wanted, notify)
	if st != fuse.OK {
		return errorAnswer(req, unix.Errno(st))
	}
	return pollAnswer(req, events)
}

// pollAnswer is the answer to a POLL.
func pollAnswer(req []byte, events uint32) []byte {
	m := make([]byte, pollOut)
	wire.PutUint32(m, pollOut)
	copy(m[8:16], req[8:16]) // unique
	wire.PutUint32(m[outHeader:], events)
	return m
}

// errorAnswer is an answer without a body.
func errorAnswer(req []byte, e unix.Errno) []byte {
	m := make([]byte, outHeader)
	wire.PutUint32(m, outHeader)
	wire.PutUint32(m[4:], uint32(-int32(e)))
	copy(m[8:], req[8:16])
	return m
}

// wake has the kernel poll an open file again.
func (s *Server) wake(kh uint64) {
	m := make([]byte, notifyPollOut)
	wire.PutUint32(m, notifyPollOut)
	wire.PutUint32(m[4:], notifyPoll)
	wire.PutUint64(m[outHeader:], kh)
	_, _ = s.conn.Write(m) // unmounted, at worst
}

// poll says what would not block on an open file. If it is wanted, notify is called once
// when that may have changed.
func (t *tree) poll(fh uint64, wanted bool, notify func()) (uint32, fuse.Status) {
	h, st := t.handleOf(fh)
	if st != fuse.OK {
		return 0, st
	}
	if h.stream == nil {
		return alwaysReady, fuse.OK
	}
	p, ok := h.stream.Stream.(node.Poller)
	if !ok {
		return alwaysReady, fuse.OK
	}
	if !h.stream.begin() {
		return 0, fuse.EBADF
	}
	defer h.stream.leave()
	type answer struct {
		events  uint32
		changed <-chan struct{}
	}
	a, st := call(t, interrupt{}, h.name+": poll", func(context.Context) (answer, error) {
		events, changed := p.Poll()
		return answer{events, changed}, nil
	})
	if st != fuse.OK {
		return 0, st
	}
	if wanted && a.changed != nil {
		h.stream.watch.begin(t, a.changed, notify)
	}
	// select(2) asks for the second name of each.
	if a.events&unix.POLLIN != 0 {
		a.events |= pollRdNorm
	}
	if a.events&unix.POLLOUT != 0 {
		a.events |= pollWrNorm
	}
	if h.stream.hasKept() {
		a.events |= unix.POLLIN | pollRdNorm
	}
	return a.events, fuse.OK
}

// watch is the one goroutine of an open file that waits for a change to tell.
type watch struct {
	mu      sync.Mutex
	over    bool            // closed
	changed <-chan struct{} // what it waits for; nil: there is none
	stop    chan struct{}
}

// begin waits for changed in place of what it waited for before.
func (w *watch) begin(t *tree, changed <-chan struct{}, notify func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over || w.changed == changed {
		return
	}
	if w.changed != nil {
		close(w.stop)
		select {
		case <-w.changed: // whoever asked before must still be told
			defer notify()
		default:
		}
	}
	stop := make(chan struct{})
	w.changed, w.stop = changed, stop
	go func() {
		select {
		case <-changed:
		case <-stop:
			return
		case <-t.ctx.Done():
			return
		}
		w.mu.Lock()
		mine := w.stop == stop
		if mine {
			w.changed, w.stop = nil, nil
		}
		w.mu.Unlock()
		if mine {
			notify()
		}
	}()
}

// end ends the wait, and there is no other.
func (w *watch) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over = true; w.changed != nil {
		close(w.stop)
		w.changed, w.stop = nil, nil
	}
}
